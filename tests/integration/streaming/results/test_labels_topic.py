"""Confirmed findings as events: real broker, real Delta tables, the command as a process of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource
from deltalake import DeltaTable

from benchmarks.ports import find_ports
from schemas.documents import load_schema
from schemas.errors import BrokerError
from schemas.labels import LabelReason
from schemas.modelcard import ModelCard
from streaming.deadletters.read import Selection, list_dead_letters
from streaming.deadletters.redrive import plan_redrive, redrive
from streaming.kafka.cluster import connect_admin
from streaming.kafka.topicchecks import check_label_topics
from streaming.kafka.topics import LABEL_BYTES, create_topics, label_topics
from streaming.results.labelevents import GROUP
from streaming.settings import KafkaSettings, StreamSettings
from tests.integration.consumers import Record, read_topic
from tests.paths import ROOT
from tests.stored import add_champion, score_images
from training.data.labelstable import read_labels
from xray.broker import LocalBroker

pytestmark = [pytest.mark.kafka, pytest.mark.delta]

MARKERS = ("MUSTERMANN", "FERNARZT", "KLINIKUM-WALDBAD", "ERIKA-4711")
"""What stands for a patient, and must be in nothing but the event itself."""
_TIMEOUT_S = 90.0

_KILLED_BEFORE_COMMIT = """
import os, signal
from streaming.results.confirmations import Confirmations
from xray.__main__ import main
Confirmations.finish = lambda self, held: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


@pytest.fixture
def place(settings: StreamSettings) -> StreamSettings:
    """A state folder, and topics of labels of this test's own."""
    return _with_topics(settings)


@pytest.fixture
def card(place: StreamSettings) -> ModelCard:
    return add_champion(place.home)


def _with_topics(settings: StreamSettings) -> StreamSettings:
    own = uuid.uuid4().hex[:8]
    names = {"labels_topic": f"{own}.labels", "labels_deadletters_topic": f"{own}.labels.deadletters"}
    kafka = settings.kafka.model_copy(update=names)
    assert create_topics(kafka, label_topics(kafka)) == sorted(names.values())
    return settings.model_copy(update={"kafka": kafka})


def send(kafka: KafkaSettings, *events: Mapping[str, Any] | bytes | None, partition: int = 0, **options: Any) -> None:
    failed: list[str] = []
    producer = Producer(kafka.to_librdkafka())
    for event in events:
        value = json.dumps(event).encode() if isinstance(event, Mapping) else event
        producer.produce(
            kafka.labels_topic,
            value,
            partition=partition,
            on_delivery=lambda error, _: error and failed.append(error.str()),
            **options,
        )
    producer.flush()
    assert failed == []


def environment(place: StreamSettings, **changes: str) -> dict[str, str]:
    kafka = place.kafka
    own = {
        "XRAY_HOME": str(place.home),
        "XRAY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XRAY_KAFKA__LABELS_TOPIC": kafka.labels_topic,
        "XRAY_KAFKA__LABELS_DEADLETTERS_TOPIC": kafka.labels_deadletters_topic,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return {**os.environ, **own, **changes}


def record_now(place: StreamSettings, *options: str, program: tuple[str, ...] = ("-m", "xray")) -> Any:
    """Run the command on what is there."""
    command = [sys.executable, *program, "label", "--follow", "--available-now", "--json", *options]
    return subprocess.run(
        command, env=environment(place), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def last_of(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    last = lines_of(done.stdout)[-1]
    assert last.pop("event") == "ended"
    return last


@contextmanager
def following(place: StreamSettings, *options: str, **changes: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the command until the body has ended it, or end it."""
    command = [sys.executable, "-m", "xray", "label", "--follow", "--json", *options]
    with (place.home / "stderr.txt").open("w") as errors:
        process = subprocess.Popen(
            command, env=environment(place, **changes), stdout=subprocess.PIPE, stderr=errors, text=True
        )
    watchdog = threading.Timer(_TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def await_line(process: "subprocess.Popen[str]", event: str, **wanted: int) -> dict[str, Any]:
    """Read lines until one has these figures."""
    assert process.stdout is not None
    for text in process.stdout:
        line: dict[str, Any] = json.loads(text)
        if line["event"] == event and wanted.items() <= line.items():
            return line
    pytest.fail(f"no line {event} with {wanted}")


def committed(kafka: KafkaSettings, partition: int = 0) -> int:
    consumer = Consumer(kafka.to_librdkafka() | {"group.id": GROUP, "enable.auto.commit": False})
    try:
        [found] = consumer.committed([TopicPartition(kafka.labels_topic, partition)], timeout=20)
        return int(found.offset)
    finally:
        consumer.close()


def rewind(kafka: KafkaSettings) -> None:
    """Have the group read its topic from the beginning."""
    starts = [TopicPartition(kafka.labels_topic, partition, 0) for partition in range(kafka.partitions)]
    admin = connect_admin(kafka)
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            [future] = admin.alter_consumer_group_offsets([ConsumerGroupTopicPartitions(GROUP, starts)]).values()
            future.result()
            return
        except KafkaException:  # a reader of the group that was killed belongs to it for ten seconds more
            if time.monotonic() > deadline:
                raise


def stored(place: StreamSettings) -> dict[str, dict[str, Any]]:
    return {row["sha256"]: row for row in read_labels(place.tables_folder).to_pylist()}


def version(place: StreamSettings) -> int:
    return int(DeltaTable(f"{place.tables_folder}/labels").version())


def dead_letters(place: StreamSettings) -> list[Record]:
    return read_topic(place.kafka, place.kafka.labels_deadletters_topic)


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_events_of_every_kind_are_recorded_and_a_replay_changes_nothing(place: StreamSettings, card: ModelCard) -> None:
    digests = score_images(place.home, card, 12).digests
    events = [
        {"label": "ill", "sha256": digests[0].upper(), "patient_id": "p1", "confirmed_by": "r1"},
        {"label": "normal", "event_id": digests[1][:32], "confirmed_at": "2026-01-31T12:00+01:00"},
        {"label": "ill", "source": "ward 1", "id": "image 0 2"},
        {"label": "normal", "sha256": digests[3], "confirmed_at": "2026-01-02"},
        {"label": "ill", "sha256": digests[3], "confirmed_at": "2026-01-01"},
    ]
    for number, event in enumerate(events):
        jsonschema.validate(event, load_schema("label"))
        headers = {"content-type": "application/json", "ce_type": "xray.label.v1"} if number % 2 else None
        send(place.kafka, event, partition=number // 3, headers=headers)

    last = last_of(record_now(place))
    assert last == {
        "events": 5, "added": 4, "changed": 0, "unchanged": 0, "older": 0, "left_out": 0, "reasons": {}, "held": 0,
    }  # fmt: skip
    rows = stored(place)
    labels = {digest: row["label"] for digest, row in rows.items()}
    assert labels == dict(zip(digests[:4], ("ill", "normal", "ill", "normal"), strict=True))
    assert (rows[digests[0]]["patient_id"], rows[digests[0]]["confirmed_by"]) == ("p1", "r1")
    assert rows[digests[1]]["confirmed_at"].isoformat() == "2026-01-31T11:00:00+00:00"
    assert version(place) == 1, "the table was made, and written once"
    assert (committed(place.kafka, 0), committed(place.kafka, 1)) == (3, 2)

    assert last_of(record_now(place))["events"] == 0
    rewind(place.kafka)
    again = last_of(record_now(place))
    assert (again["events"], again["unchanged"], again["added"], again["changed"]) == (5, 4, 0, 0)
    for event in events:
        send(place.kafka, event)  # as a sender does that was not sure
    resent = last_of(record_now(place))
    assert (resent["events"], resent["added"], resent["older"]) == (5, 0, 0)
    assert {digest: row["label"] for digest, row in stored(place).items()} == labels


def test_an_older_event_changes_nothing_and_a_newer_one_does(place: StreamSettings, card: ModelCard) -> None:
    [digest] = score_images(place.home, card, 1).digests
    for moment, label in (("2026-01-02", "ill"), ("2026-01-01", "normal"), ("2026-01-03", "normal")):
        send(place.kafka, {"label": label, "sha256": digest, "confirmed_at": moment})
        last_of(record_now(place))
    rewind(place.kafka)
    again = last_of(record_now(place))
    assert (again["events"], again["unchanged"]) == (3, 1)
    assert stored(place)[digest]["label"] == "normal"
    assert version(place) == 2


# --- what is left out -------------------------------------------------------------------------------------------------


def test_what_cannot_be_recorded_is_kept_with_its_reason_and_told_without_a_patient(
    place: StreamSettings, card: ModelCard
) -> None:
    digests = score_images(place.home, card, 4).digests
    table = DeltaTable(f"{place.tables_folder}/features")
    table.update({"source": "'ward 1'", "id": "'twice'"}, predicate=f"sha256 IN ('{digests[2]}', '{digests[3]}')")
    about = {"patient_id": MARKERS[0], "confirmed_by": MARKERS[1]}
    good = {"label": "ill", "sha256": digests[0], **about}
    named = {"source": MARKERS[2], "id": MARKERS[3]}
    wrong: list[tuple[Mapping[str, Any] | bytes | None, LabelReason]] = [
        (None, LabelReason.TOMBSTONE),
        (b'{"id": "' + MARKERS[3].encode(), LabelReason.NOT_JSON),
        ({"specversion": "1.0", "data": good}, LabelReason.STRUCTURED_MODE),
        (good | named, LabelReason.INVALID_FIELD),
        (good | {"label": MARKERS[0]}, LabelReason.UNKNOWN_LABEL),
        (good | {"confirmed_at": "9999-12-31"}, LabelReason.INVALID_TIME),
        ({"label": "ill", "source": "ward 1", "id": "twice", **about}, LabelReason.AMBIGUOUS_IMAGE),
        ({"label": "ill", **named, **about}, LabelReason.UNKNOWN_IMAGE),
    ]
    assert {reason for _, reason in wrong} == set(LabelReason)
    sent = {"ce_id": b"q", "ce_type": b"xray.label.v1", "__connect.errors.stage": b"PRODUCE"}
    send(place.kafka, *[event for event, _ in wrong], good, key=b"the key", headers=sent)

    done = record_now(place, "--wait", "0")
    last = last_of(done)
    assert (last["events"], last["added"], last["left_out"], last["held"]) == (1, 1, len(wrong), 0)
    assert last["reasons"] == {reason.value: 1 for _, reason in wrong}
    assert [marker for marker in MARKERS if marker.lower() in (done.stderr + done.stdout).lower()] == []
    for offset, (_, reason) in enumerate(wrong):
        assert f"{place.kafka.labels_topic}-0@{offset}: left out ({reason.value}): " in done.stderr

    letters = sorted(dead_letters(place), key=lambda letter: int(letter.text("xray_input_offset")))
    allowed = set(load_schema("dead_letter_headers")["properties"])
    for letter, (event, reason) in zip(letters, wrong, strict=True):
        assert letter.value == (json.dumps(event).encode() if isinstance(event, Mapping) else event)
        assert letter.key == b"the key"
        assert letter.text("xray_reason") == reason.value
        assert letter.text("__connect.errors.stage") == "PRODUCE", "a header of a failure elsewhere is kept"
        added = letter.headers[len(sent) :]
        assert dict(letter.headers[: len(sent)]) == sent
        assert {name for name, _ in added} == allowed - {"__connect.errors.stage", "xray_input_topic_id"}
        assert [marker for marker in MARKERS if marker.encode() in b" ".join(text for _, text in added)] == []


def test_the_dead_letters_are_listed_and_sent_again_by_the_command_for_those_of_images(
    place: StreamSettings, card: ModelCard
) -> None:
    send(place.kafka, {"label": "ill", "source": "ward 1", "id": "image 7 0"})
    score_images(place.home, card, 2)
    assert last_of(record_now(place, "--wait", "0"))["reasons"] == {"unknown_image": 1}
    own = place.kafka.model_copy(
        update={"deadletters_topic": place.kafka.labels_deadletters_topic, "images_topic": place.kafka.labels_topic}
    )
    assert list_dead_letters(own, Selection()).by_reason == {"unknown_image": 1}
    score_images(place.home, card, 1, seed=7)
    plan = plan_redrive(own, Selection(), max_payload_bytes=1_000_000)
    assert len(redrive(own, plan).delivered) == 1
    assert last_of(record_now(place))["added"] == 1


# --- images that are not there yet ------------------------------------------------------------------------------------


def test_an_event_waits_for_its_image_and_those_behind_it_do_not(place: StreamSettings, card: ModelCard) -> None:
    digests = score_images(place.home, card, 3).digests
    early = {"label": "ill", "source": "ward 1", "id": "image 5 0"}
    send(place.kafka, {"label": "ill", "sha256": digests[0]}, early, {"label": "ill", "sha256": digests[1]})
    with following(place) as process:
        await_line(process, "ready")
        await_line(process, "batch", events=2, added=2, held=1, left_out=0)
        assert committed(place.kafka) == 1, "up to the event that waits"
        process.send_signal(signal.SIGTERM)
        await_line(process, "ended", events=2, held=1)
        assert process.wait(20) == 0
    assert len(stored(place)) == 2

    with following(place) as process:
        await_line(process, "batch", events=1, unchanged=1, held=1)  # it was behind the one that waits
        send(place.kafka, {"label": "normal", "sha256": digests[2]})
        await_line(process, "batch", events=1, added=1, held=1)
        late = score_images(place.home, card, 1, seed=5).digests[0]
        await_line(process, "batch", events=1, added=1, held=0)
        process.send_signal(signal.SIGINT)
        await_line(process, "ended", events=3, added=2, unchanged=1, held=0)
        assert process.wait(20) == 0
    assert set(stored(place)) == {*digests, late}
    assert committed(place.kafka) == 4
    assert dead_letters(place) == []


def test_an_event_whose_image_never_comes_is_left_out_in_the_end(place: StreamSettings, card: ModelCard) -> None:
    score_images(place.home, card, 1)
    wait_s = 6
    with following(place, "--wait", str(wait_s)) as process:
        await_line(process, "ready")
        send(place.kafka, {"label": "ill", "sha256": "0" * 64})
        await_line(process, "batch", events=0, held=0, left_out=1)
    assert committed(place.kafka) == 1
    own = place.kafka.model_copy(update={"deadletters_topic": place.kafka.labels_deadletters_topic})
    [letter] = list_dead_letters(own, Selection()).shown
    assert letter.reason == "unknown_image"
    assert (letter.time - datetime.fromisoformat(letter.received_at)).total_seconds() >= wait_s


# --- kills and failures -----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_kill_between_record_and_commit_reads_again_and_records_once(place: StreamSettings, card: ModelCard) -> None:
    digests = score_images(place.home, card, 6).digests
    send(place.kafka, *[{"label": "ill", "sha256": digest} for digest in digests], b"nonsense")
    killed = record_now(place, program=("-c", _KILLED_BEFORE_COMMIT))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert set(stored(place)) == set(digests)
    assert committed(place.kafka) < 0

    last = last_of(record_now(place))
    assert (last["events"], last["unchanged"], last["added"], last["changed"], last["left_out"]) == (6, 6, 0, 0, 1)
    assert version(place) == 1
    assert DeltaTable(f"{place.tables_folder}/labels").to_pyarrow_table().num_rows == len(digests)
    assert committed(place.kafka) == 7
    letters = dead_letters(place)
    assert len(letters) == 2, "a dead letter may be written twice"
    assert len({letter.text("xray_event_id") for letter in letters}) == 1


def test_nothing_is_lost_while_there_is_no_archive(place: StreamSettings, card: ModelCard) -> None:
    send(place.kafka, {"label": "ill", "source": "ward 1", "id": "image 0 0"})
    refused = record_now(place, "--wait", "0")
    assert refused.returncode == 1
    assert "there is no archive in" in refused.stderr
    with following(place, XRAY_RETRY__FIRST_WAIT_S="0.1", XRAY_RETRY__MAX_WAIT_S="0.1") as process:
        await_line(process, "ready")
        score_images(place.home, card, 1)
        await_line(process, "batch", events=1, added=1)
    assert dead_letters(place) == []


def test_an_event_that_no_dead_letter_can_hold_stops_nothing(place: StreamSettings, card: ModelCard) -> None:
    """A broker measures what a client has compressed: this event is some kilobytes there, and 20 MB when it is read."""
    [digest] = score_images(place.home, card, 1).digests
    producer = Producer(place.kafka.to_librdkafka() | {"compression.type": "gzip", "message.max.bytes": 100_000_000})
    failed: list[Any] = []
    producer.produce(
        place.kafka.labels_topic, bytes(20_000_000), partition=0, on_delivery=lambda e, _: failed.append(e)
    )
    producer.flush()
    assert failed == [None]
    send(place.kafka, {"label": "ill", "sha256": digest})
    last = last_of(record_now(place))
    assert (last["added"], last["left_out"]) == (1, 1)
    [letter] = dead_letters(place)
    assert letter.value is None
    assert letter.text("xray_reason")
    assert committed(place.kafka) == 2


def test_topics_that_would_lose_a_finding_are_refused(place: StreamSettings) -> None:
    kafka = place.kafka
    assert check_label_topics(kafka) == LABEL_BYTES
    assert check_label_topics(kafka.model_copy(update={"max_message_bytes": LABEL_BYTES})) == LABEL_BYTES
    entry = ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, kafka.labels_topic, incremental_configs=[entry])
    admin = connect_admin(kafka)  # must outlive the futures it gives
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()
    for _ in range(int(_TIMEOUT_S * 10)):  # the broker heeds it once its metadata log has it
        try:
            check_label_topics(kafka)
        except BrokerError as exc:
            assert f"topic {kafka.labels_topic} has cleanup.policy=compact, wanted delete" in str(exc)
            return
        threading.Event().wait(0.1)
    pytest.fail("compaction was never refused")


def test_it_gives_up_after_the_time_of_the_settings(place: StreamSettings, card: ModelCard) -> None:
    send(place.kafka, {"label": "ill", "sha256": "0" * 64})
    with following(place, XRAY_RETRY__GIVE_UP_S="0") as process:
        assert process.wait(_TIMEOUT_S) == 1
    assert "there is no archive in" in (place.home / "stderr.txt").read_text()
    assert committed(place.kafka) < 0


@pytest.mark.long
def test_it_goes_on_when_the_broker_is_back(base_settings: StreamSettings, jars: Path, tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path / "own", jars, find_ports())
    try:
        broker.start()
        kafka = base_settings.kafka.model_copy(update={"bootstrap_servers": broker.bootstrap_servers, "partitions": 1})
        place = _with_topics(base_settings.model_copy(update={"home": tmp_path, "kafka": kafka}))
        digests = score_images(tmp_path, add_champion(tmp_path), 2).digests
        send(kafka := place.kafka, {"label": "ill", "sha256": digests[0]})
        with following(place, XRAY_RETRY__FIRST_WAIT_S="0.5", XRAY_RETRY__MAX_WAIT_S="0.5") as process:
            await_line(process, "batch", events=1, added=1)
            broker.stop()
            _await_text(place.home / "stderr.txt", f"cannot reach Kafka at {kafka.bootstrap_servers}")
            broker.start()
            send(kafka, {"label": "normal", "sha256": digests[1]})
            await_line(process, "batch", events=1, added=1)
            process.send_signal(signal.SIGTERM)
            await_line(process, "ended", events=2, added=2)
            assert process.wait(20) == 0
        assert committed(kafka) == 2
    finally:
        broker.stop()


def _await_text(path: Path, text: str) -> None:
    for _ in range(int(_TIMEOUT_S * 10)):
        if text in path.read_text():
            return
        threading.Event().wait(0.1)
    pytest.fail(f"{path} never had {text!r}: {path.read_text()}")


# --- the example ------------------------------------------------------------------------------------------------------


def test_the_example_publishes_what_is_recorded(place: StreamSettings, card: ModelCard) -> None:
    [digest] = score_images(place.home, card, 1).digests
    text = (ROOT / "examples" / "confirm_finding.py").read_text()
    assert '"xray.labels"' in text
    script = place.home / "example.py"
    script.write_text(text.replace("xray.labels", place.kafka.labels_topic))
    done = subprocess.run(
        [sys.executable, str(script), place.kafka.bootstrap_servers, digest, "ill"],
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "confirmed by the broker\n", "")
    [record] = read_topic(place.kafka, place.kafka.labels_topic)
    jsonschema.validate(json.loads(record.value or b""), load_schema("label"))
    assert record.text("ce_type") == "xray.label.v1"
    assert last_of(record_now(place))["added"] == 1
