"""Receipts against a real broker: outcomes as SCORE writes them, a foreign consumer, kills, topics made anew."""

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions

from benchmarks.ports import find_ports
from schemas.documents import load_schema
from schemas.errors import BrokerError
from streaming.gateway.offer import Outgoing
from streaming.gateway.receipts.receipt import Receipt, State
from streaming.gateway.receipts.receiptbook import ReceiptBook
from streaming.gateway.receipts.receiptreader import ReceiptReader
from streaming.gateway.receipts.receiptstore import ReceiptStore
from streaming.kafka.cluster import connect_admin, describe_cluster
from streaming.kafka.reader import open_reader, read_spans
from streaming.kafka.topics import create_topics, receipt_topics, wanted_topics
from streaming.settings import KafkaSettings, StreamSettings
from tests.imageoutcomes import MODEL, Record, broken, outgoing, score
from tests.integration.consumers import read_topic
from tests.paths import ROOT
from xray.broker import LocalBroker

pytestmark = [pytest.mark.kafka]

_TIMEOUT_S = 60.0


@pytest.fixture
def place(settings: StreamSettings) -> StreamSettings:
    """A state folder, and a receipts topic of this test's own."""
    kafka = settings.kafka.model_copy(update={"receipts_topic": f"{uuid.uuid4().hex[:8]}.receipts"})
    create_topics(kafka, receipt_topics(kafka))
    return settings.model_copy(update={"kafka": kafka})


@dataclass
class Figures:
    """What the book told the metrics."""

    states: list[str] = field(default_factory=list)
    lags: list[int] = field(default_factory=list)

    def note_receipt(self, state: str) -> None:
        self.states.append(state)

    def note_receipts_lag(self, records: int) -> None:
        self.lags.append(records)


@contextmanager
def running(place: StreamSettings, figures: Figures | None = None) -> Iterator[ReceiptBook]:
    book = ReceiptBook(place, figures or Figures())
    book.start()
    try:
        yield book
    finally:
        book.stop()


def publish(kafka: KafkaSettings, *records: Record) -> None:
    producer = Producer(kafka.to_librdkafka())
    failed: list[str] = []
    for record in records:
        producer.produce(
            record.topic(),
            record.value(),
            key=record.key(),
            headers=record.headers(),
            on_delivery=lambda error, _: error and failed.append(error.str()),
        )
    producer.flush()
    assert failed == []


def accept(book: ReceiptBook, kafka: KafkaSettings, images: Sequence[Outgoing]) -> None:
    for offset, image in enumerate(images):
        book.note_accepted(image, f"{kafka.images_topic}-0@{offset}")


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def written(kafka: KafkaSettings) -> dict[str, list[Receipt]]:
    """Every receipt on the topic by its key, as a foreign consumer reads them."""
    found: dict[str, list[Receipt]] = {}
    for record in read_topic(kafka, kafka.receipts_topic):
        value = json.loads(record.value or b"")
        jsonschema.validate(value, load_schema("receipt"))
        assert value["place"] is not None
        assert (record.key or b"").decode() == value["event_id"]
        assert record.text("ce_type") == "xray.receipt.v1"
        image = value["image"]
        found.setdefault(value["event_id"], []).append(
            Receipt(
                *(value["event_id"], image["source"], image["id"], image["sha256"], State(value["state"]), value["at"]),
                flags=tuple(value["flags"]),
                reason=value.get("reason"),
                model=value.get("model"),
            )
        )
    return found


def last_states(kafka: KafkaSettings) -> dict[str, str]:
    return {event_id: receipts[-1].state.value for event_id, receipts in written(kafka).items()}


def await_states(kafka: KafkaSettings, images: Sequence[Outgoing], state: str) -> None:
    wanted = {image.event_id: state for image in images}
    wait_for(lambda: last_states(kafka) == wanted)


# --- what is told -----------------------------------------------------------------------------------------------------


def test_each_image_has_its_last_state_and_a_foreign_consumer_reads_it(place: StreamSettings) -> None:
    kafka, figures = place.kafka, Figures()
    good, bad, waiting = outgoing(flags="burned_in_annotation"), broken(), outgoing()
    with running(place, figures) as book:
        accept(book, kafka, [good, bad, waiting])
        await_states(kafka, [good, bad, waiting], "accepted")
        publish(kafka, score(good, kafka, place="0@0"), score(bad, kafka, place="0@1"))
        wait_for(lambda: set(last_states(kafka).values()) == {"accepted", "predicted", "dead_lettered"})
        found = written(kafka)
        assert [one.state for one in found[good.event_id]] == ["accepted", "predicted"]
        assert found[good.event_id][-1].model == MODEL
        assert {one.flags for one in found[good.event_id]} == {("burned_in_annotation",)}
        assert [(one.state, one.reason) for one in found[bad.event_id]] == [
            ("accepted", None), ("dead_lettered", "truncated_image"),
        ]  # fmt: skip
        assert [one.state for one in found[waiting.event_id]] == ["accepted"]
        answer = book.find(good.event_id)
        assert answer is not None
        assert (answer.state, answer.score, answer.place) == (State.PREDICTED, None, f"{kafka.images_topic}-0@0")
        assert book.find("0" * 32) is None
        assert book.find("no event id") is None
    assert sorted(figures.states) == ["accepted"] * 3 + ["dead_lettered", "predicted"]
    assert figures.lags[-1] == 0


def test_scores_are_told_where_a_setting_says_so(place: StreamSettings) -> None:
    image, flagged = outgoing(), outgoing()
    gateway = place.gateway.model_copy(update={"receipt_scores": True})
    with running(place.model_copy(update={"gateway": gateway})) as book:
        publish(place.kafka, score(image, place.kafka), score(flagged, place.kafka, flags=["uncertain"]))
        await_states(place.kafka, [image, flagged], "predicted")
        shown = [book.find(one.event_id) for one in (image, flagged)]
    values = [one.to_dict() for one in shown if one is not None]
    assert [(one.get("label"), one.get("probability"), one.get("undecided")) for one in values] == [
        ("normal", 0.75, None), (None, None, ["uncertain"]),
    ]  # fmt: skip


def test_an_image_sent_again_after_its_dead_letter_is_predicted(place: StreamSettings) -> None:
    kafka, image = place.kafka, outgoing()
    dead = score(broken(), kafka)  # the decoder crashed, and does not any more
    dead = dead.changed(value=image.value, headers=[*image.headers, *(h for h in dead.headers() if h[0][:3] != "ce_")])
    with running(place) as book:
        accept(book, kafka, [image])
        await_states(kafka, [image], "accepted")
        publish(kafka, dead)
        await_states(kafka, [image], "dead_lettered")
        publish(kafka, score(image, kafka, place="0@9"))
        await_states(kafka, [image], "predicted")
        book.note_accepted(image, f"{kafka.images_topic}-0@10")
        publish(kafka, score(image, kafka, place="0@10"))
        other = outgoing()
        accept(book, kafka, [other])
        wait_for(lambda: other.event_id in last_states(kafka))
    assert [one.state for one in written(kafka)[image.event_id]] == ["accepted", "dead_lettered", "predicted"]


def test_a_spooled_image_is_told_when_it_has_a_place(place: StreamSettings) -> None:
    kafka, spooled, other = place.kafka, outgoing(), outgoing()
    with running(place) as book:
        book.note_accepted(spooled, None)
        accept(book, kafka, [other])
        await_states(kafka, [other], "accepted")
        found = book.find(spooled.event_id)
        assert found is not None
        assert (found.state, found.place) == (State.ACCEPTED, None)
        book.note_accepted(spooled, f"{kafka.images_topic}-1@3")
        await_states(kafka, [spooled, other], "accepted")


def test_other_bytes_under_an_id_are_told_of_all_gateways(place: StreamSettings) -> None:
    first, second = outgoing(b"one", name="1.2.3"), outgoing(b"two", name="1.2.3")
    with running(place) as book:
        accept(book, place.kafka, [first])
        assert not book.other_bytes("/dx-1", "1.2.3", Receipt.of_accepted(first, None, datetime.now(UTC)).sha256)
        assert book.other_bytes("/dx-1", "1.2.3", Receipt.of_accepted(second, None, datetime.now(UTC)).sha256)
        await_states(place.kafka, [first], "accepted")
    with running(place.model_copy(update={"home": place.home / "another"})) as other:
        wait_for(lambda: other.other_bytes("/dx-1", "1.2.3", "0" * 64))


def test_nameless_and_foreign_records_are_passed_over(place: StreamSettings) -> None:
    kafka, image = place.kafka, outgoing()
    prediction = score(image, kafka)
    foreign = [
        prediction.changed(value=b"{"),
        prediction.changed(headers=[]),
        prediction.with_value(image={"sha256": "0" * 64}),
        prediction.changed(topic=kafka.deadletters_topic, headers=[], value=None),
        Record(kafka.receipts_topic, b"key", b"nonsense", []),
        Record(kafka.receipts_topic, b"key", None, []),
        prediction,
    ]
    with running(place) as book:
        publish(kafka, *foreign)
        wait_for(lambda: book.find(image.event_id) is not None)


# --- who waits --------------------------------------------------------------------------------------------------------


def test_who_waits_is_answered_within_moments(place: StreamSettings) -> None:
    kafka = place.kafka
    with running(place) as book:
        first = outgoing()
        with book.expect(first.event_id) as waiter:
            publish(kafka, score(first, kafka))
            assert waiter.wait(_TIMEOUT_S) is not None, "it follows the topics"
        took: list[float] = []
        for _ in range(20):
            image = outgoing()
            with book.expect(image.event_id) as waiter:
                publish(kafka, score(image, kafka))
                published = time.monotonic()
                answer = waiter.wait(_TIMEOUT_S)
                took.append(time.monotonic() - published)
            assert answer is not None
            assert answer.prediction is not None
            assert answer.prediction["image"]["id"] == image.header("ce_id")
            jsonschema.validate(answer.prediction, load_schema("prediction"))
        bad = broken()
        with book.expect(bad.event_id) as waiter:
            publish(kafka, score(bad, kafka))
            answer = waiter.wait(_TIMEOUT_S)
            assert answer is not None
            assert (answer.prediction, answer.reason) == (None, "truncated_image")
    assert sorted(took)[len(took) // 2] < 0.25


# --- healing, and going on --------------------------------------------------------------------------------------------


def test_a_late_accepted_of_a_slow_gateway_is_healed(place: StreamSettings) -> None:
    kafka, images = place.kafka, [outgoing() for _ in range(3)]
    with running(place):
        publish(kafka, *(score(image, kafka) for image in images))
        await_states(kafka, images, "predicted")
        late = [Receipt.of_accepted(image, f"{kafka.images_topic}-0@1", datetime.now(UTC)) for image in images]
        publish(kafka, *(Record(kafka.receipts_topic, r.event_id.encode(), r.to_json(), r.to_headers()) for r in late))
        wait_for(lambda: all(len(receipts) == 3 for receipts in written(kafka).values()))
    for receipts in written(kafka).values():
        assert [one.state for one in receipts] == ["predicted", "accepted", "predicted"]


class _Pieces:
    """Counts what readers read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_records = 0
        take = ReceiptReader._take

        def count(reader: ReceiptReader, *args: object) -> None:
            self.n_records += 1
            take(reader, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(ReceiptReader, "_take", count)


def test_a_restart_goes_on_and_reads_nothing_twice(place: StreamSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    kafka, images = place.kafka, [outgoing() for _ in range(20)]
    read = _Pieces(monkeypatch)
    with running(place) as book:
        accept(book, kafka, images)
        await_states(kafka, images, "accepted")
        publish(kafka, *(score(image, kafka) for image in images[:10]))
        wait_for(lambda: list(last_states(kafka).values()).count("predicted") == 10)
        wait_for(lambda: read.n_records == 40)
    publish(kafka, *(score(image, kafka) for image in images[10:]))
    with running(place):
        await_states(kafka, images, "predicted")
        wait_for(lambda: read.n_records == 60)
    assert sum(map(len, written(kafka).values())) == 40


def test_a_lost_store_is_filled_from_the_topics_and_nothing_is_written_again(place: StreamSettings) -> None:
    kafka, images = place.kafka, [outgoing() for _ in range(10)]
    with running(place) as book:
        accept(book, kafka, images)
        await_states(kafka, images, "accepted")
        publish(kafka, *(score(image, kafka) for image in images[:5]))
        wait_for(lambda: list(last_states(kafka).values()).count("predicted") == 5)
    for file in place.gateway_folder.iterdir():
        file.unlink()
    with running(place) as book:
        wait_for(lambda: all(book.find(image.event_id) is not None for image in images))
        publish(kafka, *(score(image, kafka) for image in images[5:]))
        await_states(kafka, images, "predicted")
    assert sum(map(len, written(kafka).values())) == 20


@pytest.mark.parametrize("damage", ["overwritten", "removed", "cut off"])
def test_a_store_damaged_while_it_runs_is_made_anew(place: StreamSettings, damage: str) -> None:
    kafka, images = place.kafka, [outgoing() for _ in range(10)]
    path = place.gateway_folder / "receipts.db"
    with running(place) as book:
        accept(book, kafka, images)
        await_states(kafka, images, "accepted")
        with sqlite_at_rest(book):
            if damage == "removed":
                for file in place.gateway_folder.iterdir():
                    file.unlink()
            elif damage == "overwritten":
                path.write_bytes(b"\xff" * path.stat().st_size)
            else:
                path.write_bytes(path.read_bytes()[:5000])
        publish(kafka, *(score(image, kafka) for image in images))
        await_states(kafka, images, "predicted")
        wait_for(lambda: all(getattr(book.find(image.event_id), "state", "") == "predicted" for image in images))


@pytest.mark.parametrize("wrong", ["folder in its place", "file in its folder's place", "locked by another"])
def test_a_disk_that_takes_nothing_fails_no_device(place: StreamSettings, wrong: str) -> None:
    folder, images = place.gateway_folder, [outgoing() for _ in range(3)]
    path = folder / "receipts.db"
    undo: Callable[[], object]
    if wrong == "folder in its place":
        path.mkdir(parents=True)
        undo = path.rmdir
    elif wrong == "file in its folder's place":
        folder.write_text("")
        undo = folder.unlink
    else:
        folder.mkdir()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        undo = other.close
    with running(place) as book:
        accept(book, place.kafka, images)
        assert book.find(images[0].event_id) is None
        assert not book.other_bytes("/dx-1", images[0].header("ce_id"), "0" * 64)
        undo()
        await_states(place.kafka, images, "accepted")
        assert book.find(images[0].event_id) is not None


@contextmanager
def sqlite_at_rest(book: ReceiptBook) -> Iterator[None]:
    """Have all that was written in the file itself, and nobody at it."""
    store: ReceiptStore = book._store
    with store._lock:
        store._close()
        yield


# --- the broker -------------------------------------------------------------------------------------------------------


def _delete(kafka: KafkaSettings, *topics: str) -> None:
    admin = connect_admin(kafka)
    for future in admin.delete_topics(list(topics)).values():
        future.result()
    wait_for(lambda: not set(topics) & set(describe_cluster(kafka).topics))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.gateway.receipts.receiptbook._TOPICS_S", 0.5)


@pytest.mark.usefixtures("quick")
def test_outcome_topics_made_anew_are_read_from_their_start(place: StreamSettings) -> None:
    kafka, images = place.kafka, [outgoing() for _ in range(12)]
    with running(place) as book:
        publish(kafka, *(score(image, kafka) for image in images[:3]))
        await_states(kafka, images[:3], "predicted")
        _delete(kafka, kafka.predictions_topic)
        create_topics(kafka, wanted_topics(kafka))
        # More than there were: by their offsets alone the first ones would be passed over.
        publish(kafka, *(score(image, kafka) for image in images[3:]))
        await_states(kafka, images, "predicted")
        assert book.find(images[3].event_id) is not None


@pytest.mark.usefixtures("quick")
def test_a_receipts_topic_made_anew_gets_what_there_is(place: StreamSettings) -> None:
    kafka, images = place.kafka, [outgoing() for _ in range(4)]
    with running(place) as book:
        accept(book, kafka, images[:2])
        await_states(kafka, images[:2], "accepted")
        _delete(kafka, kafka.receipts_topic)
        accept(book, kafka, images[2:])
        wait_for(lambda: kafka.receipts_topic in describe_cluster(kafka).topics)
        await_states(kafka, images, "accepted")


@pytest.mark.usefixtures("quick")
def test_new_partitions_are_read_too(place: StreamSettings) -> None:
    kafka, images = place.kafka, [outgoing() for _ in range(40)]
    with running(place):
        publish(kafka, score(images[0], kafka))
        await_states(kafka, images[:1], "predicted")
        admin = connect_admin(kafka)
        [future] = admin.create_partitions([NewPartitions(kafka.predictions_topic, 5)]).values()
        future.result()
        wait_for(lambda: len(describe_cluster(kafka).topics[kafka.predictions_topic].partitions) == 5)
        publish(kafka, *(score(image, kafka) for image in images[1:]))
        with open_reader(kafka) as reader:
            assert all(len(span) for span in read_spans(reader, kafka.predictions_topic).values())
        await_states(kafka, images, "predicted")


@pytest.fixture
def own_broker(place: StreamSettings) -> Iterator[tuple[StreamSettings, LocalBroker]]:
    kafka = place.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{find_ports()}", "partitions": 1})
    own = place.model_copy(update={"kafka": kafka})
    broker = LocalBroker.of(own)
    broker.start()
    create_topics(kafka)
    try:
        yield own, broker
    finally:
        broker.stop()


@pytest.mark.long
@pytest.mark.usefixtures("quick")
def test_a_broker_that_is_away_is_told_once_and_delays_nobody(
    own_broker: tuple[StreamSettings, LocalBroker],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, broker = own_broker
    tries: list[None] = []

    def create(*args: Any) -> list[str]:
        tries.append(None)
        return create_topics(*args)

    monkeypatch.setattr("streaming.gateway.receipts.receiptbook.create_topics", create)
    kafka, images = own.kafka, [outgoing() for _ in range(200)]
    caplog.set_level(logging.INFO, "streaming.gateway")
    with running(own) as book:
        accept(book, kafka, images[:1])
        await_states(kafka, images[:1], "accepted")
        broker.stop()
        wait_for(lambda: "receipts are not brought up to date" in caplog.text)
        started = time.monotonic()
        accept(book, kafka, images[1:])
        assert time.monotonic() - started < 2
        assert book.other_bytes("/dx-1", images[5].header("ce_id"), "0" * 64)
        assert book.find(images[-1].event_id) is not None
        before = len(tries)
        wait_for(lambda: len(tries) > before + 1)  # it tries again meanwhile, and says nothing
        broker.start()
        publish(kafka, *(score(image, kafka) for image in images[:100]))
        wait_for(lambda: list(last_states(kafka).values()).count("predicted") == 100)
        wait_for(lambda: len(last_states(kafka)) == 200)
        wait_for(lambda: "brought up to date again" in caplog.text)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("streaming.gateway")]
    assert len([line for line in lines if "are not brought up to date" in line]) == 1
    assert len([line for line in lines if "brought up to date again" in line]) == 1


@pytest.mark.long
def test_without_a_broker_it_starts_answers_and_stops(place: StreamSettings) -> None:
    kafka = place.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{find_ports()}"})
    image = outgoing()
    with running(place.model_copy(update={"kafka": kafka})) as book:
        book.note_accepted(image, "t-0@1")
        assert book.find(image.event_id) is not None
        started = time.monotonic()
    assert time.monotonic() - started < 10
    with pytest.raises(BrokerError):
        describe_cluster(kafka)
    with running(place):
        await_states(place.kafka, [image], "accepted")


# --- killed -----------------------------------------------------------------------------------------------------------

_PROGRAM = """
import os, signal, sys
from streaming.gateway.receipts import receiptstore, receiptwriter
from streaming.gateway.receipts.receiptbook import ReceiptBook
from streaming.settings import load_settings

def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

{kill}

class Figures:
    def note_receipt(self, state): pass
    def note_receipts_lag(self, records): pass

book = ReceiptBook(load_settings(), Figures())
book.start()
print("started", flush=True)
sys.stdin.read()
book.stop()
"""
_KILLS = {
    "before the outcome is stored": "receiptstore.ReceiptStore.absorb = die",
    "before the receipt is published": "receiptwriter.ReceiptWriter._send = die",
    "before the receipt is on its way": """
send = receiptwriter.ReceiptWriter._send
receiptwriter.ReceiptWriter._send = lambda self, receipt: (send(self, receipt), die())
""",
    "between the receipt and its note": "receiptstore.ReceiptStore.mark_told = die",
}


@pytest.mark.parametrize("point", _KILLS)
def test_a_kill_repeats_receipts_and_loses_none(place: StreamSettings, point: str) -> None:
    kafka, images = place.kafka, [outgoing() for _ in range(5)] + [broken()]
    publish(kafka, *(score(image, kafka) for image in images))
    names = ("predictions", "deadletters", "receipts")
    environ = {
        **os.environ,
        "XRAY_HOME": str(place.home),
        "XRAY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "PYTHONPATH": str(ROOT),
        **{f"XRAY_KAFKA__{name}_TOPIC".upper(): getattr(kafka, f"{name}_topic") for name in names},
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(kill=_KILLS[point])], env=environ, stdin=subprocess.PIPE
    )
    try:
        assert process.wait(_TIMEOUT_S) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    with running(place):
        wait_for(lambda: sorted(last_states(kafka).values()) == ["dead_lettered"] + ["predicted"] * 5)
    found = written(kafka)
    assert set(found) == {image.event_id for image in images}
    assert all(len(receipts) <= 2 for receipts in found.values())
    assert all(replace(one, flags=()) == receipts[0] for receipts in found.values() for one in receipts)
