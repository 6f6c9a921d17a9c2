"""What the page knows, with a real broker: outcomes as they come, findings that are published once, parts that hang."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Producer

from schemas import envelope
from streaming.kafka.cluster import connect_admin, describe_cluster
from streaming.kafka.places import read_headers
from streaming.kafka.reader import open_reader, read_spans, scan_offsets
from streaming.kafka.topicids import read_topic_ids
from streaming.kafka.topics import create_topics, label_topics, receipt_topics
from streaming.lookup.outcome import Kind
from streaming.page.knows.feed import Feed
from streaming.page.knows.findings import Findings
from streaming.page.knows.latest import Filter
from streaming.page.knows.moves import Operator
from streaming.page.knows.trace import Tracer
from streaming.page.knows.trail import Trail
from streaming.page.knows.vitals import Vitals
from streaming.results.finding import Progress
from streaming.scraping import ARCHIVE, PartState
from streaming.settings import StreamSettings
from tests.alertrecords import dead_letter, prediction, publish, receipt
from tests.unit.streaming.page.knows.outcomes import scored
from xray.broker import LocalBroker
from xray.modelmoves import PageMoves

pytestmark = [pytest.mark.kafka]

_WITHIN_S = 20.0


def wait_for(holds: Callable[[], bool], within_s: float = _WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def own(settings: StreamSettings) -> StreamSettings:
    """Settings with topics of labels and receipts of this test's own."""
    prefix = settings.kafka.images_topic.partition(".")[0]
    names = ("labels", "labels_deadletters", "receipts")
    kafka = settings.kafka.model_copy(update={f"{name}_topic": f"{prefix}.{name}" for name in names})
    create_topics(kafka, label_topics(kafka) | receipt_topics(kafka))
    return settings.model_copy(update={"kafka": kafka})


def test_outcomes_appear_in_order_and_images_without_one_are_named(own: StreamSettings) -> None:
    kafka = own.kafka
    send_images(own, 6)
    publish(kafka, prediction(kafka, 0), prediction(kafka, 1), dead_letter(kafka, 2), receipt(kafka, 4))
    with Feed(own) as feed:
        wait_for(lambda: feed.state.is_filled)
        before = feed.latest.since(0)
        assert (len(before.outcomes), before.skipped) == (3, 0)
        assert [one.published_at for one in before.outcomes] == sorted(one.published_at for one in before.outcomes)
        late = prediction(kafka, 3, flags=["uncertain"])
        publish(kafka, late, prediction(kafka, 1))  # the second one is a repetition
        wait_for(lambda: feed.latest.last > before.last)
        [came] = feed.latest.since(before.last).outcomes
        assert (came.event_id, came.shown_label) == (late.event_id, "undecided")
        assert [one.place.offset for one in feed.latest.search(Filter(kind=Kind.DEAD_LETTER))] == [2]
        wait_for(lambda: feed.find_unanswered().waiting == 2)
        missing = feed.find_unanswered()
        assert {one.place.offset: one.image_id for one in missing.newest} == {4: "1.2.4", 5: None}
        assert feed.state.is_reading
        assert feed.state.known_from == 0


def send_images(settings: StreamSettings, count: int) -> None:
    """Bytes in partition 0 of the images topic, as many as there are offsets."""
    producer = Producer(settings.kafka.to_librdkafka())
    for _ in range(count):
        producer.produce(settings.kafka.images_topic, b"an image", partition=0)
    assert producer.flush(20) == 0


def read_labels(settings: StreamSettings) -> list[tuple[str, dict[str, str]]]:
    """Id and value of each event of the labels topic."""
    topic = settings.kafka.labels_topic
    with open_reader(settings.kafka) as reader:
        spans = read_spans(reader, topic)
    found = scan_offsets(settings.kafka, topic, spans)
    return [(read_headers(one)["ce_id"].decode(), json.loads(one.value() or b"")) for one in found]


def test_findings_entered_fast_are_published_once_each_and_in_order(own: StreamSettings, tmp_path: Path) -> None:
    outcomes = [scored(number) for number in range(300)]
    with Findings(own, tmp_path / "page") as findings:
        for number, outcome in enumerate(outcomes):
            for _ in range(2):  # the browser sends each again
                findings.label(outcome, "normal", who="r-3", request=f"q{number}")
        corrected = findings.label(outcomes[0], "opacities", who="r-3", request="q-again")
        wait_for(lambda: findings.state.waiting == 0)
        state = findings.find_state(outcomes[0].event_id)
        assert state is not None
        assert state.current.progress is Progress.PUBLISHED
        assert state.current.place is not None
    events = read_labels(own)
    assert len(events) == len({ce_id for ce_id, _ in events}) == 301
    [first, second] = [value for _, value in events if value["event_id"] == outcomes[0].event_id]
    assert (first["label"], second["label"]) == ("normal", "opacities")
    assert first["confirmed_at"] < second["confirmed_at"] == corrected.confirmed_at


_KILLED_BETWEEN = """
import os, sys
from pathlib import Path
from streaming.page.knows.findings import Findings
from streaming.results.findingsledger import FindingsLedger
from streaming.settings import KafkaSettings, StreamSettings
from tests.unit.streaming.page.knows.outcomes import scored
from xray.broker import LocalBroker
from xray.modelmoves import PageMoves

FindingsLedger.note_published = lambda self, places: os._exit(9)  # the topic has it, and the ledger does not know
settings = StreamSettings(kafka=KafkaSettings.model_validate_json(sys.argv[1]))
with Findings(settings, Path(sys.argv[2])) as findings:
    findings.label(scored(1), "normal", who="r-3", request="q1")
    findings._thread.join(30)
"""


def test_a_finding_is_published_once_though_the_page_was_killed_before_it_knew(
    own: StreamSettings, tmp_path: Path
) -> None:
    kafka = own.kafka.model_dump_json()
    killed = subprocess.run([sys.executable, "-c", _KILLED_BETWEEN, kafka, str(tmp_path)], check=False, timeout=60)
    assert killed.returncode == 9
    assert len(read_labels(own)) == 1
    with Findings(own, tmp_path) as findings:
        assert findings.state.waiting == 1
        findings.label(scored(2), "normal", who="r-3", request="q2")
        wait_for(lambda: findings.state.waiting == 0)
    assert [value["event_id"] for _, value in read_labels(own)] == [scored(1).event_id, scored(2).event_id]


def test_kafka_goes_and_comes_back(own: StreamSettings, broker: LocalBroker, tmp_path: Path) -> None:
    before, after = prediction(own.kafka, 1), prediction(own.kafka, 2)
    publish(own.kafka, before)
    with Feed(own) as feed, Findings(own, tmp_path) as findings:
        wait_for(lambda: feed.latest.find(before.event_id) is not None)
        broker.stop()
        try:
            findings.label(scored(1), "normal", who="r-3", request="q1")
            wait_for(lambda: not feed.state.is_reading and bool(findings.state.why), within_s=40)
            assert "cannot reach Kafka" in findings.state.why
            assert findings.state.waiting == 1
        finally:
            broker.start()
        publish(own.kafka, after)
        wait_for(lambda: feed.latest.find(after.event_id) is not None, within_s=40)
        wait_for(lambda: findings.state.waiting == 0 and not findings.state.why, within_s=40)
        assert feed.state.is_reading
        assert [one.event_id for one in feed.latest.since(0).outcomes] == [before.event_id, after.event_id]
    assert [value["event_id"] for _, value in read_labels(own)] == [scored(1).event_id]


def test_the_way_of_an_image_and_a_dead_letter_that_is_sent_again_once(own: StreamSettings, tmp_path: Path) -> None:
    kafka = own.kafka
    send_images(own, 3)
    broken = dead_letter(kafka, 1)
    publish(kafka, receipt(kafka, 2, age_s=3.0), prediction(kafka, 2, age_s=2.0), broken)
    trail = Trail(tmp_path / "audit.jsonl")
    operator = Operator(own, PageMoves(own), trail)
    with Feed(own) as feed, Findings(own, tmp_path / "page") as findings:
        wait_for(lambda: feed.latest.last == 2 and feed.find_unanswered().looked_at == 3)
        [scored_one] = feed.latest.search(Filter(kind=Kind.PREDICTION))
        wait_for(lambda: feed.find_receipt(scored_one.image_key) is not None)
        findings.label(scored_one, "normal", who="r-3", request="q1")
        way = Tracer(own, feed, findings).trace(scored_one)
        assert [one.name for one in way] == ["accepted", "received", "published", "archived", "confirmed"]
        times = [one.at for one in way if one.at is not None]
        assert times == sorted(times)
        assert way[3].has_passed is False
        letter = feed.latest.find(broken.event_id)
        assert letter is not None
        assert operator.redrive(letter.record, who="op-1").done
        again = operator.redrive(letter.record, who="op-1")
        assert (again.done, "sent again before" in again.text) == (False, True)
    assert [(one.action, one.done) for one in trail.list_newest()] == [("redrive", False), ("redrive", True)]


def test_a_long_topic_is_read_from_its_newest_outcomes_in_memory_that_is_bounded(own: StreamSettings) -> None:
    kafka = own.kafka
    publish(kafka, *(prediction(kafka, number) for number in range(3_000)))
    with Feed(own, most=1_000) as feed:
        wait_for(lambda: feed.state.is_filled)
        assert 900 <= len(feed.latest) <= 1_000
        assert feed.state.known_from is not None
        assert feed.state.known_from > 0
        # Images whose outcomes were not read are not called unanswered.
        assert feed.find_unanswered().looked_at == 0
        seen = feed.latest.last
        publish(kafka, *(prediction(kafka, number) for number in range(3_000, 8_000)))
        wait_for(lambda: feed.latest.last == seen + 5_000)
        assert len(feed.latest) == 1_000
        assert feed.latest.since(seen, limit=100).skipped == 4_900


def test_outcomes_of_a_topic_that_was_made_anew_answer_no_image_of_the_new_one(
    own: StreamSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.page.knows.feed._IDS_S", 0.5)
    kafka = own.kafka
    send_images(own, 2)
    former = {envelope.INPUT_TOPIC_ID: read_topic_ids(kafka, [kafka.images_topic]).topics[kafka.images_topic]}
    publish(kafka, prediction(kafka, 0, headers=former), prediction(kafka, 1, headers=former))
    with Feed(own) as feed:
        wait_for(lambda: feed.latest.last == 2 and feed.find_unanswered().looked_at == 2)
        assert feed.find_unanswered().newest == ()
        admin = connect_admin(kafka)  # it must outlive its answer
        admin.delete_topics([kafka.images_topic])[kafka.images_topic].result()
        wait_for(lambda: kafka.images_topic not in describe_cluster(kafka).topics)
        create_topics(kafka)
        send_images(own, 1)
        wait_for(lambda: [str(one.place) for one in feed.find_unanswered().newest] == ["0@0"], within_s=40)
        assert feed.latest.last == 2


_PART = """
import time
from prometheus_client import CollectorRegistry
from streaming.metrics import serve_metrics

address, _ = serve_metrics(CollectorRegistry(), "127.0.0.1", 0, health=lambda: {"ok": True, "tables": {}})
print(address, flush=True)
time.sleep(120)
"""


def test_a_part_that_hangs_goes_on_and_ends_is_told_each_time() -> None:
    with subprocess.Popen([sys.executable, "-c", _PART], stdout=subprocess.PIPE, text=True) as part:
        assert part.stdout is not None
        address = part.stdout.readline().strip().removesuffix("/metrics")
        with Vitals({ARCHIVE: address}, every_s=0.1) as vitals:

            def wait_until_it_is(state: PartState) -> None:
                wait_for(lambda: vitals.take_snapshot().find_part(ARCHIVE).state is state)

            wait_until_it_is(PartState.UP)
            part.send_signal(signal.SIGSTOP)
            wait_until_it_is(PartState.HANGING)
            part.send_signal(signal.SIGCONT)
            wait_until_it_is(PartState.UP)
            part.kill()
            wait_until_it_is(PartState.DOWN)


def test_no_topic_is_created_for_findings(own: StreamSettings, tmp_path: Path) -> None:
    missing = own.kafka.model_copy(update={"labels_topic": f"{own.kafka.labels_topic}.missing"})
    with Findings(own.model_copy(update={"kafka": missing}), tmp_path) as findings:
        findings.label(scored(1), "normal", who="r-3", request="q1")
        wait_for(lambda: "xray up" in findings.state.why)
        assert findings.state.waiting == 1
    assert missing.labels_topic not in describe_cluster(own.kafka).topics
