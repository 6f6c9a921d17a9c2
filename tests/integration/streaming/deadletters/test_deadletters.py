"""Dead letters and the account against a real broker; once with the real stream from end to end."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from confluent_kafka import Message, Producer
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from typer.testing import CliRunner

from schemas import envelope
from schemas.documents import load_schema
from schemas.errors import JobError, Reason, SettingsError
from streaming.account.audit import Account, Scope, audit_stream
from streaming.deadletters.read import (
    Selection,
    list_dead_letters,
    read_dead_letter,
    show_dead_letter,
    split_headers,
)
from streaming.deadletters.redrive import RedriveReport, Skip, plan_redrive, redrive
from streaming.kafka.places import Headers, Place
from streaming.kafka.reader import open_reader, read_spans, scan_offsets
from streaming.settings import KafkaSettings, StreamSettings
from tests.conftest import Trained
from tests.integration.streams import drain, publish, score
from tests.testimages import good_files, png
from tests.unit.streaming.deadletters.test_deadletters import added_headers
from xray.commands.app import app

pytestmark = pytest.mark.kafka

_LIMIT = 20_000_000
_NAMED: Headers = [("ce_id", b"1"), ("ce_source", b"/dx-1"), ("x-site", b"\xff\x00"), ("x-site", None)]


def produce(kafka: KafkaSettings, topic: str, records: Sequence[dict[str, Any]]) -> list[Place]:
    """Write records as they are and say where they are."""
    places: dict[int, Place] = {}
    producer = Producer({**kafka.to_librdkafka(), "message.max.bytes": kafka.max_message_bytes})
    for i, record in enumerate(records):

        def note(error: Any, message: Message, i: int = i) -> None:
            assert error is None
            places[i] = Place(message.partition(), message.offset())

        producer.produce(topic, on_delivery=note, **{"partition": 0, "value": None, **record})
    producer.flush()
    return [places[i] for i in range(len(records))]


def fail(
    kafka: KafkaSettings, payloads: Sequence[bytes | None], *, original: Headers = (), reason: Reason, **more: Any
) -> tuple[list[Place], list[Place]]:
    """Publish images and write the dead letter of each as the stream does; places of both."""
    images = produce(kafka, kafka.images_topic, [{"value": p, "headers": list(original), **more} for p in payloads])
    letters = []
    for place, payload in zip(images, payloads, strict=True):
        added = added_headers(original, input_place=place, topic=kafka.images_topic, reason=reason)
        letters.append({"value": payload, "headers": [*original, *added], **more})
    return images, produce(kafka, kafka.deadletters_topic, letters)


def read_all(kafka: KafkaSettings, topic: str) -> list[Message]:
    with open_reader(kafka) as reader:
        spans = read_spans(reader, topic)
    messages = list(scan_offsets(kafka, topic, spans))
    return sorted(messages, key=lambda message: (message.partition(), message.offset()))


def redrive_all(kafka: KafkaSettings, *, again: bool = False) -> RedriveReport:
    return redrive(kafka, plan_redrive(kafka, Selection(), max_payload_bytes=_LIMIT, again=again))


# --- list and show ----------------------------------------------------------------------------------------------------


def test_list_gives_the_newest_first_and_counts_all(settings: StreamSettings) -> None:
    kafka = settings.kafka
    _, first = fail(kafka, [b"a", b"bb"], reason=Reason.CORRUPT_IMAGE)
    _, second = fail(kafka, [None], reason=Reason.TOMBSTONE, partition=1)
    produce(kafka, kafka.deadletters_topic, [{"value": b"somebody else's"}])

    listing = list_dead_letters(kafka, Selection())
    assert [letter.place for letter in listing.shown] == [*second, *reversed(first)]
    assert [letter.payload_bytes for letter in listing.shown] == [None, 2, 1]
    assert listing.by_reason == {"corrupt_image": 2, "tombstone": 1}
    assert listing.foreign == 1

    assert [x.place for x in list_dead_letters(kafka, Selection(), limit=1).shown] == second
    counted = list_dead_letters(kafka, Selection(), limit=0)
    assert (counted.shown, counted.by_reason.total()) == ([], 3)
    chosen = list_dead_letters(kafka, Selection(frozenset({Reason.TOMBSTONE})))
    assert ([x.place for x in chosen.shown], chosen.by_reason.total()) == (second, 1)


def test_list_by_time(settings: StreamSettings) -> None:
    kafka = settings.kafka
    now = datetime.now(UTC)
    for hours in (5, 3, 1):
        written = int((now - timedelta(hours=hours)).timestamp() * 1000)
        record = {"value": b"x" * hours, "headers": added_headers(), "timestamp": written}
        produce(kafka, kafka.deadletters_topic, [record])
    middle = Selection(since=now - timedelta(hours=4), until=now - timedelta(hours=2))
    assert [letter.payload_bytes for letter in list_dead_letters(kafka, middle).shown] == [3]
    assert list_dead_letters(kafka, Selection(since=now)).shown == []


def test_show_by_place_and_by_event_id(settings: StreamSettings) -> None:
    kafka = settings.kafka
    _, [first] = fail(kafka, [png()], original=_NAMED, reason=Reason.MULTI_FRAME, key=b"scan")
    _, [newest] = fail(kafka, [png()], original=_NAMED, reason=Reason.CORRUPT_IMAGE, key=b"scan")
    details = show_dead_letter(kafka, first)
    assert (details.letter.place, details.letter.reason, details.payload) == (first, "multi_frame", png())
    assert (details.media_type, details.key_bytes) == ("image/png", 4)
    assert show_dead_letter(kafka, "e" * 32).letter.place == newest
    for absent in (Place(0, 99), Place(9, 0), "0" * 32):
        with pytest.raises(JobError, match="no dead letter"):
            show_dead_letter(kafka, absent)


# --- redrive ----------------------------------------------------------------------------------------------------------


def test_redrive_restores_the_record_in_its_partition(settings: StreamSettings) -> None:
    kafka = settings.kafka
    original: Headers = [*_NAMED, ("__connect.errors.topic", b"failed elsewhere before")]
    [image], _ = fail(kafka, [png()], original=original, reason=Reason.TRUNCATED_IMAGE, key=b"\x00scan", partition=1)
    report = redrive_all(kafka)
    assert (len(report.delivered), report.failed) == (1, {})
    first, again = read_all(kafka, kafka.images_topic)
    assert (again.partition(), again.key(), again.value()) == (1, b"\x00scan", png())
    assert again.headers() == [*first.headers(), (envelope.REDRIVEN_FROM, f"{kafka.images_topic}-{image}".encode())]


def test_redrive_twice_sends_once_unless_it_failed_anew(settings: StreamSettings) -> None:
    kafka = settings.kafka
    fail(kafka, [b"a", b"b"], original=_NAMED, reason=Reason.CORRUPT_IMAGE)
    assert len(redrive_all(kafka).delivered) == 2
    plan = plan_redrive(kafka, Selection(), max_payload_bytes=_LIMIT)
    assert (plan.chosen, plan.skipped) == ({}, {Skip.ALREADY_REDRIVEN: 2})

    # The first of the two fails again: that is a new attempt, and the mark tells of it alone.
    retried = read_all(kafka, kafka.images_topic)[2]
    place = Place(retried.partition(), retried.offset())
    added = added_headers(input_place=place, topic=kafka.images_topic)
    letter = {"value": retried.value(), "headers": [*retried.headers(), *added]}
    [newest] = produce(kafka, kafka.deadletters_topic, [letter])
    plan = plan_redrive(kafka, Selection(), max_payload_bytes=_LIMIT)
    assert (list(plan.chosen), plan.skipped) == ([newest], {Skip.ALREADY_REDRIVEN: 2})
    redrive(kafka, plan)
    marks = [
        value for name, value in read_all(kafka, kafka.images_topic)[-1].headers() if name == envelope.REDRIVEN_FROM
    ]
    assert marks == [f"{kafka.images_topic}-{place}".encode()]

    assert len(redrive_all(kafka, again=True).delivered) == 3


def test_two_dead_letters_of_one_attempt_are_sent_once(settings: StreamSettings) -> None:
    kafka = settings.kafka
    [image], _ = fail(kafka, [b"a"], reason=Reason.CORRUPT_IMAGE)
    added = added_headers(input_place=image, topic=kafka.images_topic)
    [newer] = produce(kafka, kafka.deadletters_topic, [{"value": b"a", "headers": added}])
    plan = plan_redrive(kafka, Selection(), max_payload_bytes=_LIMIT)
    assert (list(plan.chosen), plan.skipped) == ([newer], {Skip.REPEATED: 1})


def test_what_cannot_succeed_is_left_out_and_counted(settings: StreamSettings) -> None:
    kafka = settings.kafka
    fail(kafka, [None], reason=Reason.TOMBSTONE)
    fail(kafka, [b""], reason=Reason.EMPTY_PAYLOAD)
    fail(kafka, [b"x" * 2000], reason=Reason.PAYLOAD_TOO_LARGE)
    produce(kafka, kafka.deadletters_topic, [{"value": b"x", "headers": added_headers(topic="other")}, {"value": b"y"}])
    _, [good] = fail(kafka, [b"x" * 1000], reason=Reason.UNEXPECTED)
    plan = plan_redrive(kafka, Selection(), max_payload_bytes=1024)
    assert list(plan.chosen) == [good]
    assert plan.skipped == {
        Skip.TOMBSTONE: 1,
        Skip.EMPTY_PAYLOAD: 1,
        Skip.TOO_LARGE: 1,
        Skip.OTHER_TOPIC: 1,
    }
    assert plan.foreign == 1
    assert plan.to_dict()["selected"] == 5
    roomy = plan_redrive(kafka, Selection(), max_payload_bytes=2000)
    assert roomy.by_reason == {"payload_too_large": 1, "unexpected": 1}


def test_redrive_of_places_and_of_what_is_gone(settings: StreamSettings) -> None:
    kafka = settings.kafka
    _, letters = fail(kafka, [b"a", b"b", b"c"], reason=Reason.CORRUPT_IMAGE)
    plan = plan_redrive(kafka, Selection(places=letters[1:2]), max_payload_bytes=_LIMIT)
    assert list(plan.chosen) == letters[1:2]
    with pytest.raises(JobError, match="no dead letter at 0@99, 7@0"):
        plan_redrive(kafka, Selection(places=[*letters, Place(7, 0), Place(0, 99)]), max_payload_bytes=_LIMIT)
    # Retention can remove one between plan and deed: it is told, not dropped.
    gone = replace(plan, chosen={**plan.chosen, Place(0, 98): "corrupt_image"})
    report = redrive(kafka, gone)
    assert (report.delivered, list(report.failed)) == (letters[1:2], [Place(0, 98)])


def test_redrive_of_the_largest_message_and_of_many(settings: StreamSettings) -> None:
    kafka = settings.kafka
    largest = kafka.max_message_bytes - 1000
    fail(kafka, [b"x" * largest], reason=Reason.UNEXPECTED)
    fail(kafka, [b"y" * 3_000_000] * 40, reason=Reason.UNEXPECTED, partition=1)  # more than client and reader hold
    plan = plan_redrive(kafka, Selection(), max_payload_bytes=largest)
    report = redrive(kafka, plan)
    assert (len(report.delivered), report.failed) == (41, {})
    sizes = [len(message.value()) for message in read_all(kafka, kafka.images_topic)]
    assert sizes == [largest] * 2 + [3_000_000] * 80


def test_commands_print_nothing_of_the_patient(settings: StreamSettings, tmp_path: Path) -> None:
    kafka = settings.kafka
    secret: Headers = [("ce_id", b"DOE^JANE"), ("ce_subject", b"DOE^JANE"), ("ce_source", b"/DOE^JANE")]
    _, [place] = fail(kafka, [b"DOE^JANE"], original=secret, reason=Reason.UNSUPPORTED_FORMAT, key=b"DOE^JANE")
    environ = {
        "XRAY_HOME": str(settings.home),
        "XRAY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XRAY_KAFKA__IMAGES_TOPIC": kafka.images_topic,
        "XRAY_KAFKA__DEADLETTERS_TOPIC": kafka.deadletters_topic,
    }
    saved = tmp_path / "saved"
    answers: dict[str, Any] = {}
    for name, arguments in {
        "list": ["list"],
        "list json": ["list", "--reason", "unsupported_format", "--since", "1h", "--json"],
        "show": ["show", str(place), "--save", str(saved)],
        "show json": ["show", "e" * 32, "--json"],
        "dry": ["redrive", "--all", "--dry-run", "--json"],
        "redrive": ["redrive", str(place)],
        "redrive json": ["redrive", str(place), "--json"],
    }.items():
        done = CliRunner().invoke(app, ["deadletters", *arguments], env=environ, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert "DOE" not in done.output
        answers[name] = json.loads(done.stdout.splitlines()[-1]) if "--json" in arguments else done.output
    assert saved.read_bytes() == b"DOE^JANE"
    assert saved.stat().st_mode & 0o777 == 0o600
    assert answers["list json"]["total"] == 1
    assert answers["show json"]["headers"][0] == {"name": "ce_id", "bytes": 8, "value": None}
    assert answers["dry"] == {
        "dry_run": True,
        "selected": 1,
        "chosen": 1,
        "by_reason": {"unsupported_format": 1},
        "skipped": {},
        "foreign": 0,
    }
    assert "Sending 1 of 1 dead letter to" in answers["redrive"]
    assert answers["redrive json"]["skipped"] == {"already_redriven": 1}
    for arguments in (["redrive"], ["redrive", "--all", str(place)], ["redrive", "0-5"], ["list", "--reason", "bad"]):
        assert CliRunner().invoke(app, ["deadletters", *arguments], env=environ).exit_code == 2


# --- the account ------------------------------------------------------------------------------------------------------


def predicted(kafka: KafkaSettings, place: Place, event_id: str) -> dict[str, Any]:
    headers: Headers = [
        ("ce_id", event_id.encode()),
        ("xray_input_topic", kafka.images_topic.encode()),
        ("xray_input_partition", b"%d" % place.partition),
        ("xray_input_offset", b"%d" % place.offset),
    ]
    return {"value": b"{}", "headers": headers}


def commit_all(settings: StreamSettings) -> None:
    """Leave a checkpoint as SCORE does that has consumed every image."""
    topic = settings.kafka.images_topic
    with open_reader(settings.kafka) as reader:
        ends = {str(partition): span.stop for partition, span in read_spans(reader, topic).items()}
    for folder, text in {"offsets": f"v1\n{{}}\n{json.dumps({topic: ends})}", "commits": "v1\n{}"}.items():
        path = settings.checkpoints_folder / "score" / folder / "0"
        path.parent.mkdir(parents=True)
        path.write_text(text)


@pytest.fixture
def halves(settings: StreamSettings) -> Iterator[tuple[StreamSettings, datetime]]:
    """20 images in two partitions, every one predicted but 0@7 and 1@2; and the moment after the first ten."""
    kafka = settings.kafka
    images = produce(kafka, kafka.images_topic, [{"value": b"x", "partition": i % 2} for i in range(10)])
    time.sleep(0.02)  # the broker's clock has whole milliseconds
    middle = datetime.now(UTC)
    images += produce(kafka, kafka.images_topic, [{"value": b"x", "partition": i % 2} for i in range(10)])
    lost = {Place(0, 7), Place(1, 2)}
    results = [predicted(kafka, place, f"{i:032x}") for i, place in enumerate(images) if place not in lost]
    produce(kafka, kafka.predictions_topic, results)
    commit_all(settings)
    yield settings, middle


def figures(account: Account) -> dict[int, tuple[int, int, int, list[int]]]:
    return {p.partition: (p.first, p.end, p.predicted, p.missing_offsets) for p in account.partitions}


def test_account_of_a_time_and_of_offsets(halves: tuple[StreamSettings, datetime]) -> None:
    settings, middle = halves
    whole = audit_stream(settings)
    assert figures(whole) == {0: (0, 10, 9, [7]), 1: (0, 10, 9, [2])}
    assert (whole.unaccounted, whole.outcomes_read) == (2, 18)
    assert figures(audit_stream(settings, Scope(until=middle))) == {0: (0, 5, 5, []), 1: (0, 5, 4, [2])}
    later = audit_stream(settings, Scope(since=middle))
    assert figures(later) == {0: (5, 10, 4, [7]), 1: (5, 10, 5, [])}
    assert later.tables["predictions"].pending == 9
    assert figures(audit_stream(settings, Scope(first={1: 3}))) == {1: (3, 10, 7, [])}
    assert audit_stream(settings, Scope(first={1: 3}, end={1: 9})).balanced
    assert figures(audit_stream(settings, Scope(until=middle, first={0: 2}, end={0: 99}))) == {0: (2, 5, 3, [])}
    empty = audit_stream(settings, Scope(since=datetime.now(UTC) + timedelta(hours=1)))
    assert (empty.consumed, empty.balanced) == (0, True)
    with pytest.raises(SettingsError, match=r"no partition 7; it has 0, 1"):
        audit_stream(settings, Scope(first={7: 0}))


def test_offsets_without_a_record_are_not_missed(settings: StreamSettings) -> None:
    kafka = settings.kafka
    options = {**kafka.to_librdkafka(), "transactional.id": kafka.images_topic}
    producer = Producer(options)
    producer.init_transactions()
    for _ in range(5):  # each commit takes an offset that no reader ever sees
        producer.begin_transaction()
        for _ in range(3):
            producer.produce(kafka.images_topic, b"x", partition=0)
        producer.commit_transaction()
    images = [Place(0, message.offset()) for message in read_all(kafka, kafka.images_topic)]
    assert [place.offset for place in images] == [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18]
    results = [predicted(kafka, place, f"{i:032x}") for i, place in enumerate(images)]
    produce(kafka, kafka.predictions_topic, [*results[:6], *results[8:]])
    commit_all(settings)
    account = audit_stream(settings)
    assert (account.total("predicted"), account.partitions[0].missing_offsets) == (13, [8, 9])
    assert account.consumed == 15


# --- from end to end --------------------------------------------------------------------------------------------------


@pytest.mark.spark
@pytest.mark.delta
def test_a_redriven_image_is_one_prediction_and_the_account_balances(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    kafka = settings.kafka
    payload = good_files()["explicit.dcm"]
    named = [("ce_id", b"1"), ("ce_source", b"/dx-1")]
    foreign = [("x-site", b"\xff\x00"), ("__connect.errors.topic", b"failed elsewhere before")]
    small = settings.model_copy(update={"score": settings.score.model_copy(update={"max_payload_bytes": 1024})})
    publish(small, {"named": (payload, named), "plain": (payload, foreign), "tomb": (None, []), "good": (png(), [])})
    score(spark, small, trained)

    letters = {message.key(): message for message in read_all(kafka, kafka.deadletters_topic)}
    assert set(letters) == {b"named", b"plain", b"tomb"}
    for key, brought in {b"named": named, b"plain": foreign, b"tomb": []}.items():
        original, added = split_headers(letters[key].headers())
        assert original == brought
        # What the other tests here write by hand is what the stream writes.
        by_hand = added_headers(original, topic_id="of the topic")
        assert list(added) == [name for name, _ in by_hand]
        letter = read_dead_letter(letters[key])
        assert letter is not None
        assert letter.reason == ("tombstone" if key == b"tomb" else "payload_too_large")
    assert plan_redrive(kafka, Selection(), max_payload_bytes=1024).skipped == {Skip.TOO_LARGE: 2, Skip.TOMBSTONE: 1}

    report = redrive_all(kafka)
    assert (len(report.delivered), report.failed) == (2, {})
    assert len(redrive_all(kafka).delivered) == 0
    for message in read_all(kafka, kafka.images_topic):
        headers = {k: v.decode(errors="replace") for k, v in message.headers() or ()}
        jsonschema.validate(headers, load_schema("image_headers"))
    drain(spark, settings, trained)

    predictions = read_all(kafka, kafka.predictions_topic)
    assert sorted(message.key() for message in predictions) == [b"good", b"named", b"plain"]
    account = audit_stream(settings)
    assert account.balanced
    assert (account.consumed, account.total("predicted"), account.total("dead_lettered")) == (6, 3, 3)
    assert (account.total("repeated"), account.pending) == (0, 0)
    assert account.tables["predictions"].rows == account.tables["dead_letters"].rows == 3
    # Whoever asks which dead letters still wait for an answer: those whose image has no prediction.
    tables = {n: DeltaTable(f"{settings.tables_folder}/{n}").to_pyarrow_table() for n in account.tables}
    ids = {name: set(table["event_id"].to_pylist()) for name, table in tables.items()}
    assert ids["predictions"].isdisjoint(ids["dead_letters"])
    assert audit_stream(settings, Scope(since=datetime.now(UTC) - timedelta(hours=1))).balanced

    # Once more on purpose: an image with a name is the same event, plain bytes are a new one.
    assert len(redrive_all(kafka, again=True).delivered) == 2
    drain(spark, settings, trained)
    account = audit_stream(settings)
    assert account.balanced
    assert (account.consumed, account.total("predicted")) == (8, 5)
    assert account.tables["predictions"].rows == 4
