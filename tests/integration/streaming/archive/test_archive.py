"""ARCHIVE against a real broker, Spark and Delta: one row per event id, whatever is replayed, whatever else comes."""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from confluent_kafka import Producer
from deltalake import DeltaTable
from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession
from pyspark.sql.functions import udf

from schemas import envelope
from schemas.documents import load_tables
from schemas.envelope import derive_event_id
from streaming.archive.query import create_tables, merge_rows, start_archive
from streaming.archive.tables import compact_table
from streaming.settings import StreamSettings

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.delta]

Headers = list[tuple[str, bytes | None]]

NAMES = ("predictions", "features", "dead_letters")
_RECEIVED_AT = "2026-01-31T12:00:00.000Z"


@dataclass(frozen=True)
class Outcome:
    """One record of an outcome topic; which one, the name of its table says."""

    table: str
    value: bytes | None
    headers: Headers = field(default_factory=list)


def position(number: int, *, received_at: str = _RECEIVED_AT) -> Headers:
    place = {envelope.INPUT_TOPIC: "images", envelope.INPUT_PARTITION: "0", envelope.INPUT_OFFSET: str(number)}
    return [(name, text.encode()) for name, text in {**place, envelope.INPUT_TIMESTAMP: received_at}.items()]


def event_id(table: str, number: int) -> str:
    return derive_event_id(table, str(number))


def outcome(table: str, number: int, *, more: Headers | None = None, **changed: Any) -> Outcome:
    """A record as SCORE writes it; ``changed`` are fields of its JSON value, ``more`` are headers behind its own."""
    more = more or []
    if table == "dead_letters":
        own: Headers = [(envelope.EVENT_ID, event_id(table, number).encode()), (envelope.REASON, b"corrupt_image")]
        return Outcome(table, b"no image", [*position(number), *own, *more])
    event: dict[str, Any] = {
        "event_id": event_id(table, number),
        "image": {"source": "/dx-1", "id": str(number), "sha256": "0" * 64, "height": 30, "width": 20},
    }
    if table == "predictions":
        event |= {"label": "normal", "probabilities": {"normal": 0.75, "covid": 0.25}, "positive_label": "covid"}
    else:
        event |= {"features": [0.5, 0.25]}
    times: Headers = [(envelope.CE_TIME, b"2026-01-31T12:00:01.000Z"), (envelope.DECODE_SECONDS, b"0.01")]
    ids: Headers = [(envelope.CE_ID, event["event_id"].encode())]
    return Outcome(table, json.dumps(event | changed).encode(), [*ids, *times, *position(number), *more])


def outcomes(numbers: Sequence[int]) -> list[Outcome]:
    return [outcome(table, number) for number in numbers for table in NAMES]


def publish(settings: StreamSettings, records: Sequence[Outcome]) -> None:
    kafka = settings.kafka
    topics = dict(zip(NAMES, (kafka.predictions_topic, kafka.features_topic, kafka.deadletters_topic), strict=True))
    producer = Producer({**kafka.to_librdkafka(), "message.max.bytes": kafka.max_message_bytes})
    errors: list[Any] = []
    for record in records:
        producer.produce(
            topics[record.table],
            record.value,
            headers=record.headers,
            partition=0,
            on_delivery=lambda error, _: errors.append(error),
        )
    producer.flush()
    assert errors == [None] * len(records)


def archive(spark: SparkSession, settings: StreamSettings) -> None:
    """Archive what is there; raises what stopped the query."""
    create_tables(spark, settings.tables_folder)
    assert start_archive(spark, settings, available_now=True).awaitTermination(200)


def read_ids(settings: StreamSettings) -> dict[str, list[str]]:
    """Event ids of each table, sorted, as often as they are there."""
    ids = {}
    for name in NAMES:
        rows = duckdb.from_arrow(DeltaTable(f"{settings.tables_folder}/{name}").to_pyarrow_dataset())
        ids[name] = [row[0] for row in rows.project("event_id").order("event_id").fetchall()]
    return ids


def wanted_ids(numbers: Sequence[int]) -> dict[str, list[str]]:
    return {name: sorted(event_id(name, number) for number in numbers) for name in NAMES}


def checkpoint(settings: StreamSettings) -> Path:
    return settings.checkpoints_folder / "archive"


@pytest.mark.long
def test_a_restored_old_checkpoint_loses_no_row_and_adds_none(spark: SparkSession, settings: StreamSettings) -> None:
    publish(settings, outcomes(range(4)))
    archive(spark, settings)
    old = settings.home / "old"
    shutil.copytree(checkpoint(settings), old)
    publish(settings, outcomes(range(4, 8)))
    archive(spark, settings)

    shutil.rmtree(checkpoint(settings))
    shutil.copytree(old, checkpoint(settings))
    # The batch that is planned anew has the number of the one before, and other records.
    publish(settings, outcomes(range(8, 12)))
    archive(spark, settings)

    assert read_ids(settings) == wanted_ids(range(12))


def test_a_deleted_checkpoint_adds_no_row(spark: SparkSession, settings: StreamSettings) -> None:
    publish(settings, outcomes(range(4)))
    archive(spark, settings)
    shutil.rmtree(checkpoint(settings))
    publish(settings, outcomes(range(4, 6)))
    archive(spark, settings)

    assert read_ids(settings) == wanted_ids(range(6))


def test_a_batch_that_failed_between_two_tables_is_done_again(spark: SparkSession, settings: StreamSettings) -> None:
    publish(settings, outcomes(range(2)))
    archive(spark, settings)
    publish(settings, outcomes(range(2, 5)))
    tables = Path(settings.tables_folder)
    (tables / "features" / "_delta_log").rename(settings.home / "moved")
    query = start_archive(spark, settings, available_now=True)
    with pytest.raises(StreamingQueryException):
        query.awaitTermination(200)
    shutil.rmtree(tables / "features" / "_delta_log", ignore_errors=True)
    (settings.home / "moved").rename(tables / "features" / "_delta_log")
    half_done = read_ids(settings)
    archive(spark, settings)

    assert half_done == wanted_ids(range(2)) | {"predictions": wanted_ids(range(5))["predictions"]}
    assert read_ids(settings) == wanted_ids(range(5))


def test_outcomes_that_are_published_again_add_no_row(spark: SparkSession, settings: StreamSettings) -> None:
    # In one batch and over two: a repetition meets a row that is new itself, and one that is there already.
    publish(settings, [*outcomes(range(3)), *outcomes(range(3))])
    archive(spark, settings)
    publish(settings, outcomes(range(5)))
    archive(spark, settings)

    assert read_ids(settings) == wanted_ids(range(5))


_EVENT_ID = envelope.EVENT_ID.encode()
_DEEP = 5000


def nameless(table: str) -> list[Outcome]:
    """Records of other hands, without an event id of this stream."""
    values: list[bytes | None] = [None, b"", b" ", b"null", b"[]", b"{}", b"no JSON", b"\xff\xfe\x00", b'{"event_id":']
    values += [b'{"event_id": null}', b'{"event_id": ""}', b"[1, 2]", b'"text"', b"1e999999999", b"[" * _DEEP]
    values += [b'{"other": ' + b"[" * _DEEP + b"]" * _DEEP + b"}"]
    headers: list[Headers] = [
        [],
        [("", b"")],
        [("a", None), ("a", b"\xff"), ("A", b"2")],
        [(envelope.INPUT_PARTITION, b"junk"), (envelope.INPUT_OFFSET, None), (envelope.INPUT_TIMESTAMP, b"\xff")],
        [(envelope.EVENT_ID, None)],
        [(envelope.EVENT_ID, b"")],
    ]
    return [Outcome(table, value) for value in values] + [Outcome(table, b"{}", each) for each in headers]


def spoilt(table: str, first: int) -> list[Outcome]:
    """Records with an event id in which something else is not what it should be; numbered from ``first`` on."""
    times = [b"junk", b"", b"2026-02-30T00:00:00Z", b"+294246-01-01T00:00:00Z", b"-200000-01-01T00:00:00Z"]
    times += [b"0000-01-01T00:00:00Z", b"0001-01-01T00:00:00Z", b"1500-01-01T00:00:00Z", b"9999-12-31T23:59:59.999999Z"]
    times += [b"1678-01-01T00:00:00Z", b"2261-12-31T23:59:59.999999Z", b"2262-01-01T00:00:00Z"]
    times += [b"10000-01-01", b"12:30", b"epoch", b"2026-01-31T12:00:00+99:99", b"\xff\xfe"]
    more: list[Headers] = [[(envelope.INPUT_TIMESTAMP, time)] for time in times]
    more += [[(envelope.CAPTURED_AT, time), (envelope.CE_TIME, time)] for time in times]
    more += [
        [(name, value)]
        for name in (envelope.INPUT_PARTITION, envelope.INPUT_OFFSET, envelope.DECODE_SECONDS, envelope.PREDICT_SECONDS)
        for value in (b"junk", b"", None, b"\xff\xfe", b"99999999999999999999", b"1.5", b"NaN", b"-1", b"0x10")
    ]
    more += [[(envelope.INPUT_TOPIC, b"\xff\xfe")], [(envelope.CE_ID, b"\xff\xfe")], [(envelope.REASON, b"\x00\xff")]]
    more += [[(envelope.INPUT_OFFSET.upper(), b"junk"), (envelope.INPUT_OFFSET.upper(), b"junk")]]
    records = [outcome(table, first + i, more=headers) for i, headers in enumerate(more)]
    if table == "dead_letters":
        return records
    fields: list[dict[str, Any]] = [
        {"image": 5},
        {"image": {"height": "tall", "width": 1.5, "payload_bytes": 10**30, "id": {"a": 1}}},
        {"image": {"id": "\ud800", "source": "\x00"}},
        {"model": [1], "label": {"a": 1}, "threshold": "high"},
        {"probabilities": [1]},
        {"probabilities": {"normal": "much"}},
        {"probabilities": {"other": 1.0}},
        {"probabilities": None, "positive_label": None},
        {"featurizer": "x", "features": "x"},
        {"features": [1e300, None, "NaN", "x"]},
        {"features": []},
        {"other": {"deep": [{}]}},
    ]
    records += [outcome(table, first + len(records) + i, **changed) for i, changed in enumerate(fields)]
    twice = outcome(table, first + len(records))
    value = (twice.value or b"")[:-1] + b', "label": "covid", "label": "a\xffb", "probabilities": {"a": 1, "a": 2}}'
    return [*records, Outcome(table, value, twice.headers)]


def test_nothing_on_the_topics_stops_it(
    spark: SparkSession, settings: StreamSettings, caplog: pytest.LogCaptureFixture
) -> None:
    junk = {table: nameless(table) for table in NAMES}
    odd = {table: spoilt(table, 1000) for table in NAMES}
    publish(settings, outcomes(range(3)))
    publish(settings, [record for table in NAMES for record in [*junk[table], *odd[table]]])
    publish(settings, outcomes(range(3, 6)))
    with caplog.at_level(logging.WARNING, "streaming.archive.query"):
        archive(spark, settings)
    publish(settings, outcomes(range(6, 8)))
    shutil.rmtree(checkpoint(settings))  # and all of it once more
    archive(spark, settings)

    named = {table: [event_id(table, 1000 + i) for i in range(len(odd[table]))] for table in NAMES}
    assert read_ids(settings) == {name: sorted(ids + named[name]) for name, ids in wanted_ids(range(8)).items()}
    line = caplog.messages[0]
    kafka = settings.kafka
    topics = (kafka.predictions_topic, kafka.features_topic, kafka.deadletters_topic)
    for table, topic in zip(NAMES, topics, strict=True):
        assert f"{len(junk[table])} of {topic}" in line
        rows = DeltaTable(f"{settings.tables_folder}/{table}").to_pyarrow_table().to_pylist()  # every value can be read
        by_id = {row["event_id"]: row for row in rows}
        for number in range(8):
            row = by_id[event_id(table, number)]
            assert (row["input_topic"], row["input_partition"], row["input_offset"]) == ("images", 0, number)
            assert row["date"] == datetime(2026, 1, 31, tzinfo=UTC).date()
    assert caplog.messages == [line, line]  # one for each time


def read_rows(settings: StreamSettings, name: str) -> list[dict[str, Any]]:
    table = DeltaTable(f"{settings.tables_folder}/{name}").to_pyarrow_table()
    return list(table.sort_by("event_id").to_pylist())


@pytest.mark.long
def test_a_merge_whose_table_is_compacted_meanwhile_tries_again(
    spark: SparkSession, settings: StreamSettings, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        publish(settings, outcomes([number]))
        archive(spark, settings)
    folder, table = settings.tables_folder, load_tables()["features"]
    once = settings.home / "compacted"

    def compact(event):  # type: ignore[no-untyped-def]  # Spark would look for a pandas function's hints
        # Spark reads the rows when the MERGE has chosen its version of the table and not committed yet.
        if not once.exists():
            once.touch()
            DeltaTable(f"{folder}/features").optimize.compact()
        return event

    new = [event_id("features", number) for number in (1, 2)]  # one is there already
    nulls = [f"CAST(NULL AS {kind}) AS {name}" for name, kind in table.columns.items() if name != "event_id"]
    rows = spark.createDataFrame([(event,) for event in new], "event_id string").coalesce(1)
    rows = rows.withColumn("event_id", udf(compact)("event_id")).selectExpr("event_id", *nulls)
    with caplog.at_level(logging.INFO, "streaming.archive.query"):
        merge_rows(rows, table, folder)

    assert ["ConcurrentAppendException" in message for message in caplog.messages] == [True]
    assert read_ids(settings)["features"] == wanted_ids(range(3))["features"]
    operations = [entry["operation"] for entry in DeltaTable(f"{folder}/features").history()]
    assert operations == ["MERGE", "OPTIMIZE", "MERGE", "MERGE", "CREATE TABLE"]


@pytest.mark.long
def test_compaction_beside_a_running_archive_loses_and_repeats_nothing(
    spark: SparkSession, settings: StreamSettings
) -> None:
    rounds, each = 3, 5
    folder = settings.tables_folder
    create_tables(spark, folder)
    query = start_archive(spark, settings)
    joined = attempts = 0
    try:
        for number in range(rounds):
            publish(settings, outcomes(range(number * each, (number + 1) * each)))
            wanted = query.lastProgress.batchId if query.lastProgress else -1
            while query.isActive and (query.lastProgress is None or query.lastProgress.batchId == wanted):
                for name in NAMES:
                    done = compact_table(folder, name, keep=timedelta(hours=1))
                    assert done is not None
                    joined += done.joined_files
                attempts += 1
                assert attempts < 1000
                query.awaitTermination(0.2)
        query.processAllAvailable()
    finally:
        query.stop()

    assert query.exception() is None
    assert joined > 0
    assert read_ids(settings) == wanted_ids(range(rounds * each))


@pytest.mark.long
def test_compaction_changes_no_value_and_spark_goes_on(spark: SparkSession, settings: StreamSettings) -> None:
    for start in (1000, 2000):  # two files in each partition, those of years far away and of no date at all included
        publish(settings, [*outcomes([start]), *[record for table in NAMES for record in spoilt(table, start + 1)]])
        archive(spark, settings)
    before = {name: read_rows(settings, name) for name in NAMES}
    for path in Path(settings.tables_folder).rglob("*.parquet"):
        os.utime(path, (0, 0))  # however old a file is: it is dead only since it was replaced
    for name in NAMES:
        done = compact_table(settings.tables_folder, name, keep=timedelta(hours=1))
        assert done is not None
        assert (done.joined_files, done.after.files) == (done.before.files, done.before.files // 2)
        assert (done.removed_files, done.after.dead_files) == (0, done.before.files)

    assert {name: repr(read_rows(settings, name)) for name in NAMES} == {name: repr(before[name]) for name in NAMES}
    shutil.rmtree(checkpoint(settings))  # Spark reads what was joined, and the log's checkpoint
    publish(settings, outcomes([3000]))
    archive(spark, settings)
    wanted = {name: sorted([row["event_id"] for row in before[name]] + [event_id(name, 3000)]) for name in NAMES}
    assert read_ids(settings) == wanted
