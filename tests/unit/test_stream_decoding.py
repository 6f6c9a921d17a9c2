"""The decode stage without Spark: envelopes, identities, and the boundary that no record crosses."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from schemas.errors import CorruptImageError, Reason
from sparkdl.decode import DecodeLimits
from streaming import decoding
from streaming.decoding import DecodePlan, decode_batches, decode_record
from tests.specimens import good_files, png

_PLAN = DecodePlan(size=(20, 30), limits=DecodeLimits(), model_sha256="m" * 64)


def record(payload: bytes | None, headers: Sequence[tuple[str, bytes | None]] = (), offset: int = 7) -> dict[str, Any]:
    row = {"topic": "t", "partition": 1, "offset": offset, "headers": [{"key": k, "value": v} for k, v in headers]}
    return decode_record(row, payload, _PLAN)


def test_image_is_resized_and_its_payload_left_behind() -> None:
    added = record(png())
    assert (added["image"]["height"], added["image"]["width"]) == _PLAN.size
    assert added["image"]["origin"] == "t-1@7"
    assert added.get("payload") is None
    assert added.get("reason") is None
    assert added["payload_bytes"] == len(png())


def test_failed_record_keeps_its_bytes() -> None:
    added = record(b"no image")
    assert added["payload"] == b"no image"
    assert added["image"] is None
    assert added["error_class"] == "schemas.errors.UnsupportedImageError"
    assert "UnsupportedImageError" in added["error_trace"]


def test_identity_is_source_and_id_and_bytes_and_model() -> None:
    named = [("ce_id", b"1"), ("ce_source", b"/a")]
    ids = {
        "same": record(png(), named)["event_id"],
        "elsewhere": record(png(), named, offset=8)["event_id"],
        "other bytes": record(good_files()["gray.jpg"], named)["event_id"],
        "other source": record(png(), [("ce_id", b"1"), ("ce_source", b"/b")])["event_id"],
        "half named": record(png(), [("ce_id", b"1")])["event_id"],
        "plain": record(png())["event_id"],
        "plain elsewhere": record(png(), offset=8)["event_id"],
    }
    assert ids["same"] == ids["elsewhere"]
    assert ids["half named"] == ids["plain"]
    assert len(set(ids.values())) == 5


def test_headers_are_read_in_any_case_and_the_last_counts() -> None:
    added = record(
        png(), [("CE_ID", b"first"), ("ce_id", b"last"), ("ce_source", b"/a"), ("Content-Type", b"image/png")]
    )
    assert added["id"] == "last"
    assert record(png(), [("content-type", b"image/jpeg")])["reason"] == "content_type_mismatch"


@pytest.mark.parametrize("value", [b"\xff\xfe", None])
def test_odd_header_values(value: bytes | None) -> None:
    added = record(png(), [("ce_id", value)])
    assert added.get("reason") == (Reason.INVALID_HEADER.value if value else None)


def test_unexpected_error_is_a_dead_letter_with_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        msg = "a defect of ours"
        raise KeyError(msg)

    monkeypatch.setattr(decoding, "decode_image", fail)
    added = record(png())
    assert added["reason"] == "unexpected"
    assert added["payload"] == png()
    assert "in fail\n" in added["error_trace"]
    assert added["error_trace"].endswith("KeyError\n")


def test_what_a_library_says_is_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    quoted = "Muster" + "mann"  # put together here: a stack shows the lines of the source

    def fail(*_args: object, origin: str, **_options: object) -> None:
        try:
            raise ValueError(quoted)
        except ValueError as exc:
            if origin.endswith("@7"):
                raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, "it does not decode") from exc
            raise

    monkeypatch.setattr(decoding, "decode_image", fail)
    for offset, reason in ((7, "corrupt_image"), (8, "unexpected")):
        added = record(png(), offset=offset)
        assert added["reason"] == reason
        assert "ValueError" in added["error_trace"]
        assert quoted not in str(added)
    assert "ValueError" in added["error_message"]


def test_lack_of_memory_is_the_jobs_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "decode_image", fail)
    with pytest.raises(MemoryError):
        record(png())


def test_batches_keep_rows_order_and_columns() -> None:
    rows = [
        {"topic": "t", "partition": 0, "offset": i, "timestamp": None, "key": b"k", "headers": None, "value": value}
        for i, value in enumerate([png(), None, b"no image"])
    ]
    header = pa.struct([("key", pa.string()), ("value", pa.binary())])
    schema = pa.schema(
        [("topic", pa.string()), ("partition", pa.int32()), ("offset", pa.int64()),
         ("timestamp", pa.timestamp("us", tz="UTC")), ("key", pa.binary()), ("headers", pa.list_(header)),
         ("value", pa.binary())]
    )  # fmt: skip
    [decoded] = decode_batches(iter([pa.RecordBatch.from_pylist(rows, schema=schema)]), _PLAN)
    assert decoded.column("offset").to_pylist() == [0, 1, 2]
    assert decoded.column("reason").to_pylist() == [None, "tombstone", "unsupported_format"]
    assert "value" not in decoded.schema.names
