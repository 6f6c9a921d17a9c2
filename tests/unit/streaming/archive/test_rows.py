"""A record becomes a row of its table, whatever is wrong with it; one without an event id becomes none."""

import json
import math
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest

from schemas import envelope
from schemas.documents import load_tables
from streaming.archive.rows import Row, read_row, to_arrow

_RECEIVED = b"2026-01-31T23:30:00.250Z"
_POSITION = {
    envelope.INPUT_TOPIC: b"xray.images",
    envelope.INPUT_PARTITION: b"3",
    envelope.INPUT_OFFSET: b"17",
    envelope.INPUT_TIMESTAMP: _RECEIVED,
}
_DAY = (date(2026, 1, 31) - date(1970, 1, 1)).days

_DEEP = (b"[" * 100_000, b"1" * 10_000, b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}")


class Message:
    """Stands for confluent_kafka's, which nobody else can make."""

    def __init__(self, value: bytes | None, headers: list[tuple[str, bytes | None]], ms: int = 0) -> None:
        self._value, self._headers, self._ms = value, headers, ms

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self._headers or None

    def timestamp(self) -> tuple[int, int]:
        return (1, self._ms)

    def partition(self) -> int:
        return 1

    def offset(self) -> int:
        return 5


def read(name: str, value: Any = None, *, ms: int = 0, **headers: bytes | None) -> Row | None:
    """Read a record with the usual position; ``value`` is its JSON, or its bytes."""
    raw = value if isinstance(value, bytes | None) else json.dumps(value).encode()
    return read_row(name, Message(raw, list({**_POSITION, **headers}.items()), ms))


def values(name: str, value: Any = None, **headers: bytes | None) -> dict[str, Any]:
    """Values of a row as the table has them."""
    row = read(name, value, **headers)
    assert row is not None
    found: dict[str, Any] = to_arrow([row], load_tables()[name]).to_pylist()[0]
    return found


def test_a_prediction_is_a_row() -> None:
    event = {
        "event_id": "e1",
        "image": {
            "source": "/dx-1",
            "id": "7",
            "sha256": "ab",
            "media_type": "image/png",
            "height": 30,
            "width": 20,
            "payload_bytes": 5_000_000_000,
        },
        "model": {"name": "cxr", "version": "v1", "sha256": "cd", "rendering_version": 2},
        "label": "covid",
        "probabilities": {"normal": 0.25, "covid": 0.75},
        "positive_label": "covid",
        "threshold": 1,
        "operating_point": "default",
        "flags": ["uncertain"],
    }
    headers = {
        envelope.CAPTURED_AT: b"2026-01-31T12:00:00+01:00",
        envelope.CE_TIME: b"2026-02-01T00:00:01Z",
        envelope.DECODE_SECONDS: b"0.012",
        envelope.PREDICT_SECONDS: b"1e-2",
    }
    row = values("predictions", event, **headers)
    received = datetime(2026, 1, 31, 23, 30, 0, 250_000, UTC)
    assert row == {
        "event_id": "e1",
        "source": "/dx-1",
        "id": "7",
        "sha256": "ab",
        "media_type": "image/png",
        "height": 30,
        "width": 20,
        "payload_bytes": 5_000_000_000,
        "model_name": "cxr",
        "model_version": "v1",
        "model_sha256": "cd",
        "rendering_version": 2,
        "label": "covid",
        "probabilities": [("normal", 0.25), ("covid", 0.75)],
        "positive_label": "covid",
        "score": 0.75,
        "threshold": 1.0,
        "operating_point": "default",
        "captured_at": datetime(2026, 1, 31, 11, tzinfo=UTC),
        "received_at": received,
        "scored_at": datetime(2026, 2, 1, 0, 0, 1, tzinfo=UTC),
        "decode_seconds": 0.012,
        "predict_seconds": 0.01,
        "input_topic": "xray.images",
        "input_partition": 3,
        "input_offset": 17,
        "date": date(2026, 1, 31),
        "flags": ["uncertain"],
    }
    assert list(row) == list(load_tables()["predictions"].columns)


def test_features_are_a_row() -> None:
    event = {
        "event_id": "e1",
        "image": {"source": "/dx-1", "id": "7", "sha256": "ab"},
        "featurizer": {"network": "Lite0", "precision": "fp32", "rendering_version": 2, "model_sha256": "cd"},
        "features": [0.5, -0.25, 1.5e-3],
    }
    row = values("features", event)
    assert (row["network"], row["precision"], row["rendering_version"]) == ("Lite0", "fp32", 2)
    assert row["features"] == pytest.approx([0.5, -0.25, 1.5e-3])
    assert (row["model_sha256"], row["date"], row["input_offset"]) == ("cd", date(2026, 1, 31), 17)


def test_a_dead_letter_is_a_row_without_its_bytes() -> None:
    headers = {
        envelope.EVENT_ID: b"e1",
        envelope.REASON: b"corrupt_image",
        envelope.ERROR_EXCEPTION_CLASS: b"CorruptImageError",
        envelope.ERROR_EXCEPTION_MESSAGE: "cut off \u2026".encode(),
        envelope.CE_SOURCE: b"/dx-1",
        envelope.CE_ID: b"7",
        envelope.CONTENT_TYPE: b"image/png",
    }
    row = values("dead_letters", b"abc", **headers)
    assert row["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (row["payload_bytes"], row["dead_letter_partition"], row["dead_letter_offset"]) == (3, 1, 5)
    assert (row["reason"], row["error_message"], row["content_type"]) == (
        "corrupt_image",
        "cut off \u2026",
        "image/png",
    )
    assert values("dead_letters", None, **headers)["payload_bytes"] == 0


@pytest.mark.parametrize(
    "value",
    [None, b"", b"no JSON", b"\xff\xfe", b"[1]", b'"text"', b"{}", b'{"event_id": null}', b'{"event_id": ""}', *_DEEP],
)
def test_a_record_without_an_event_id_is_no_row(value: bytes | None) -> None:
    assert read("predictions", value) is None
    assert read("features", value) is None
    assert read("dead_letters", value) is None
    assert read("dead_letters", value, **{envelope.EVENT_ID: b"x" * (envelope.MAX_HEADER_BYTES + 1)}) is None


def test_of_headers_with_one_name_in_any_case_the_last_counts() -> None:
    headers = [*_POSITION.items(), (envelope.INPUT_OFFSET.upper(), b"18"), (envelope.EVENT_ID, b"e1")]
    row = read_row("dead_letters", Message(b"", headers))
    assert row is not None
    assert row.values["input_offset"] == 18


@pytest.mark.parametrize(
    "text",
    [
        b"junk",
        b"",
        b"2026-02-30T00:00:00Z",
        b"+294246-01-01T00:00:00Z",
        b"0001-01-01T00:00:00+14:00",
        b"12:30",
        b"epoch",
        b"9999-12-31T23:59:59-14:00",
        b"1677-12-31T23:59:59Z",
        b"2262-01-01T00:00:00Z",
        b"2026-01-31T12:00:00+99:99",
        b"\xff\xfe",
        None,
        b"1" * 20_000,
    ],
)
def test_what_is_no_time_is_none_and_the_record_s_own_says_when(text: bytes | None) -> None:
    row = read("predictions", {"event_id": "e1"}, ms=86_400_000 * 20_000 + 5, **{envelope.INPUT_TIMESTAMP: text})
    assert row is not None
    assert (row.values["received_at"], row.values["date"], row.day, row.near) == (None, None, None, 20_000)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        (b" 2026-01-31T12:00:00 ", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        (b"2026-01-31 12:00:00.5+02:00", datetime(2026, 1, 31, 10, 0, 0, 500_000, UTC)),
        (b"2026-01-31T12:00:00.123456789Z", datetime(2026, 1, 31, 12, 0, 0, 123_456, UTC)),
        (b"1678-01-01T00:00:00Z", datetime(1678, 1, 1, tzinfo=UTC)),
    ],
)
def test_times_in_several_ways(text: bytes, wanted: datetime) -> None:
    assert values("predictions", {"event_id": "e"}, **{envelope.CAPTURED_AT: text})["captured_at"] == wanted


@pytest.mark.parametrize(
    "text", [b"junk", b"", None, b"\xff", b"99999999999999999999", b"1.5", b"0x10", b"1_0", b"1" * 70]
)
def test_what_is_no_integer_is_null(text: bytes | None) -> None:
    row = values("predictions", {"event_id": "e"}, **{envelope.INPUT_PARTITION: text, envelope.INPUT_OFFSET: text})
    assert (row["input_partition"], row["input_offset"]) == (None, None)


def test_numbers_of_headers() -> None:
    def seconds(text: bytes) -> float | None:
        found: float | None = values("predictions", {"event_id": "e"}, **{envelope.DECODE_SECONDS: text})[
            "decode_seconds"
        ]
        return found

    assert [seconds(text) for text in (b"0.5", b" 1e3 ", b"junk", b"1_0", b"")] == [0.5, 1000.0, None, None, None]
    assert math.isnan(seconds(b"NaN") or 0)


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"image": 5}, {"source": None, "height": None}),
        ({"image": {"height": "tall", "width": 1.5, "payload_bytes": 10**30}}, {"height": None, "width": None}),
        ({"image": {"height": True, "width": 2**31}}, {"height": None, "width": None}),
        ({"image": {"id": {"a": 1}, "source": 5}}, {"id": '{"a":1}', "source": "5"}),
        ({"image": {"id": "\ud800x", "source": "\x00"}}, {"id": "?x", "source": "\x00"}),
        ({"model": [1], "label": {"a": 1}, "threshold": "high"}, {"model_name": None, "threshold": None}),
        ({"probabilities": [1]}, {"probabilities": None, "score": None}),
        ({"probabilities": {"a": "much", "b": None}, "positive_label": "a"}, {"score": None}),
        ({"probabilities": {"a": 10**400}, "positive_label": "a"}, {"score": math.inf}),
        ({"probabilities": {}, "positive_label": None}, {"probabilities": [], "score": None}),
        ({"flags": "x"}, {"flags": None}),
        ({"flags": ["a", None, 1]}, {"flags": ["a", None, "1"]}),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_null_or_text(changed: dict[str, Any], wanted: dict[str, Any]) -> None:
    row = values("predictions", {"event_id": "e", **changed})
    assert {name: row[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("features", "wanted"),
    [
        ("x", None),
        (None, None),
        ({}, None),
        ([], []),
        ([1, 2.5], [1.0, 2.5]),
        ([1e300, -1e300, 10**400], [math.inf, -math.inf, math.inf]),
        ([0.5, None, "NaN", "x", True, [1]], [0.5, None, None, None, None, None]),
    ],
)
def test_feature_vectors_of_any_kind(features: Any, wanted: list[float | None] | None) -> None:
    assert values("features", {"event_id": "e", "features": features})["features"] == wanted


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("features", "features", [0.5] * 100_000),
        ("features", "features", [0] * 100_000),
        ("predictions", "label", "x" * 400_000),
        ("predictions", "flags", ["a"] * 100_000),
        ("predictions", "probabilities", {str(number): 0.5 for number in range(50_000)}),
    ],
)
def test_what_a_row_takes_counts_as_memory(name: str, field: str, value: Any) -> None:
    row = read(name, {"event_id": "e", field: value})
    assert row is not None
    assert row.n_bytes >= 400_000


def test_the_bytes_of_a_dead_letter_are_not_kept() -> None:
    row = read("dead_letters", b"x" * 1_000_000, **{envelope.EVENT_ID: b"e"})
    assert row is not None
    assert row.n_bytes < 10_000


def test_no_rows_have_all_columns() -> None:
    for table in load_tables().values():
        empty = to_arrow([], table)
        assert empty.num_rows == 0
        assert empty.schema.names == list(table.columns)
        assert empty.schema.field("date").type == pa.date32()


def test_the_day_of_a_row_is_its_date() -> None:
    row = read("predictions", {"event_id": "e"})
    assert row is not None
    assert (row.day, row.near) == (_DAY, _DAY)
