"""ARCHIVE against a real broker and Delta tables: one row per event id, whatever is replayed, whatever else comes."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import duckdb
import pytest
from confluent_kafka import Producer
from deltalake import DeltaTable

from schemas import envelope
from schemas.envelope import derive_event_id
from streaming.account.archived import topics_by_table
from streaming.archive.service import run_archive
from streaming.settings import StreamSettings

pytestmark = [pytest.mark.kafka, pytest.mark.delta]

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
    topics = topics_by_table(kafka)
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


def archive(settings: StreamSettings, **options: bool) -> None:
    """Archive what is there."""
    run_archive(settings, available_now=True, **options)


def read_ids(settings: StreamSettings) -> dict[str, list[str]]:
    """Event ids of each table, sorted, as often as they are there."""
    ids = {}
    for name in NAMES:
        rows = duckdb.from_arrow(DeltaTable(f"{settings.tables_folder}/{name}").to_pyarrow_dataset())
        ids[name] = [row[0] for row in rows.project("event_id").order("event_id").fetchall()]
    return ids


def wanted_ids(numbers: Sequence[int]) -> dict[str, list[str]]:
    return {name: sorted(event_id(name, number) for number in numbers) for name in NAMES}


def test_all_is_read_again_and_no_row_added(settings: StreamSettings) -> None:
    publish(settings, outcomes(range(4)))
    archive(settings)
    publish(settings, outcomes(range(4, 6)))
    archive(settings, from_beginning=True)

    assert read_ids(settings) == wanted_ids(range(6))


def test_outcomes_that_are_published_again_add_no_row(settings: StreamSettings) -> None:
    # In one piece and over two: a repetition meets a row that is new itself, and one that is there already.
    publish(settings, [*outcomes(range(3)), *outcomes(range(3))])
    archive(settings)
    publish(settings, outcomes(range(5)))
    archive(settings)

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


def test_nothing_on_the_topics_stops_it(settings: StreamSettings, caplog: pytest.LogCaptureFixture) -> None:
    junk = {table: nameless(table) for table in NAMES}
    odd = {table: spoilt(table, 1000) for table in NAMES}
    publish(settings, outcomes(range(3)))
    publish(settings, [record for table in NAMES for record in [*junk[table], *odd[table]]])
    publish(settings, outcomes(range(3, 6)))
    with caplog.at_level(logging.WARNING, "streaming.archive"):
        archive(settings)
        publish(settings, outcomes(range(6, 8)))
        archive(settings, from_beginning=True)

    named = {table: [event_id(table, 1000 + i) for i in range(len(odd[table]))] for table in NAMES}
    assert read_ids(settings) == {name: sorted(ids + named[name]) for name, ids in wanted_ids(range(8)).items()}
    lines = caplog.messages
    for table, topic in topics_by_table(settings.kafka).items():
        told = f"records without event id were left out: {len(junk[table])} of {topic}"
        assert lines.count(told) == 2  # once for each time
        rows = DeltaTable(f"{settings.tables_folder}/{table}").to_pyarrow_table().to_pylist()  # every value can be read
        by_id = {row["event_id"]: row for row in rows}
        for number in range(8):
            row = by_id[event_id(table, number)]
            assert (row["input_topic"], row["input_partition"], row["input_offset"]) == ("images", 0, number)
            assert row["date"] == datetime(2026, 1, 31, tzinfo=UTC).date()
    assert len(lines) == 2 * len(NAMES)
