"""The decode stage without Spark: envelopes, identities, and the boundary that no record crosses."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from schemas.errors import CorruptImageError, Reason
from sparkdl.image.decode import DecodedImage, decode_image
from sparkdl.image.limits import RENDERING_VERSION, RENDERING_VERSIONS, DecodeLimits
from streaming.score import decoding
from streaming.score.decoding import DecodePlan, RecordSizes, decode_record, decode_rows, measure_records
from tests.testimages import good_files, png
from tests.unit.streaming.score.records import STAMP, batch_of, headers_of

_PLAN = DecodePlan(size=(20, 30), limits=DecodeLimits(), model_sha256="m" * 64, rendering=RENDERING_VERSION)


def record(payload: bytes | None, headers: Sequence[tuple[str, bytes | None]] = (), offset: int = 7) -> dict[str, Any]:
    row = {"topic": "t", "partition": 1, "offset": offset, "headers": [{"key": k, "value": v} for k, v in headers]}
    return decode_record(row, payload, _PLAN)


def test_image_is_resized_and_its_payload_left_behind() -> None:
    added = record(png())
    assert (added["image"].height, added["image"].width) == _PLAN.size
    assert added["image"].origin == "t-1@7"
    assert added.get("payload") is None
    assert added.get("reason") is None
    assert added["payload_bytes"] == len(png())


def test_failed_record_keeps_its_bytes() -> None:
    added = record(b"no image")
    assert added["payload"] == b"no image"
    assert "image" not in added
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


def test_batches_keep_rows_and_their_order() -> None:
    batch = batch_of({}, {"value": None}, {"value": b"no image"})
    decoded = decode_rows(batch, _PLAN)
    assert [row["offset"] for row in decoded] == [0, 1, 2]
    assert [row.get("reason") for row in decoded] == [None, "tombstone", "unsupported_format"]
    assert decoded[1]["timestamp_ms"] == int(STAMP.timestamp() * 1000)


def test_records_are_measured_wherever_a_batch_is_cut() -> None:
    rows = [
        {"key": None, "headers": headers_of(("ab", b"cde"), ("f", None)), "value": b"1234"},
        {"headers": headers_of()},
        {"headers": None, "value": None},
        {"key": b"kk", "headers": headers_of(("\u00e9", b"x" * 10)), "value": b""},
    ]
    wanted = [
        RecordSizes(key=0, value=4, largest_header=5, headers=6 + 2 * 8, n_headers=2),
        RecordSizes(key=1, value=len(png()), largest_header=0, headers=0, n_headers=0),
        RecordSizes(key=1, value=0, largest_header=0, headers=0, n_headers=0),
        RecordSizes(key=2, value=0, largest_header=12, headers=12 + 8, n_headers=1),
    ]
    batch = batch_of(*rows)
    assert measure_records(batch) == wanted
    assert measure_records(batch.slice(1, 3)) == wanted[1:]
    assert measure_records(batch.slice(3)) == wanted[3:]
    assert measure_records(batch.slice(4)) == []


_BIG = 8 * 1024
_BOUNDS: dict[str, tuple[dict[str, Any], str | None]] = {
    "key": ({"key": b"k" * 4096}, None),
    "longer key": ({"key": b"k" * 4097}, "key_too_large"),
    "header": ({"headers": headers_of(("x", b"y" * (_BIG - 1)))}, None),
    "longer header": ({"headers": headers_of(("x", b"y" * _BIG))}, "header_too_large"),
    "header's name": ({"headers": headers_of(("x" * (_BIG + 1), None))}, "header_too_large"),
    "headers": ({"headers": headers_of(*[("x", b"y" * (_BIG - 9))] * 8)}, None),
    "longer headers": ({"headers": headers_of(*[("x", b"y" * (_BIG - 9))] * 8, ("", b""))}, "headers_too_large"),
    "many headers": ({"headers": headers_of(*[("", b"")] * 8192)}, None),
    "more headers": ({"headers": headers_of(*[("", b"")] * 8193)}, "headers_too_large"),
    # A re-drive adds its marks to whatever was allowed.
    "headers that are sent again": (
        {"headers": headers_of(*[("x", b"y" * (_BIG - 9))] * 8, ("xray_redriven_from", b"t-1@7"))},
        None,
    ),
    "marks that are none": ({"headers": headers_of(*[("xray_redriven_from", b"y" * 8000)] * 9)}, "headers_too_large"),
    "record": ({"value": bytes(99_999)}, "unsupported_format"),
    "larger record": ({"value": bytes(100_000)}, "record_too_large"),
    "larger record by its headers": ({"headers": headers_of(("x", bytes(100_000)))}, "record_too_large"),
}


@pytest.mark.parametrize("name", _BOUNDS)
def test_what_travels_on_has_bounds(name: str) -> None:
    row, reason = _BOUNDS[name]
    plan = replace(_PLAN, max_record_bytes=100_000)
    before, decoded, behind = decode_rows(batch_of({}, row, {}), plan)
    assert (before.get("reason"), decoded.get("reason"), behind.get("reason")) == (None, reason, None)
    kept = {part: decoded.get(part) for part in ("key", "headers", "payload")}
    sent = batch_of({}, row)
    whole = {part: sent.column(part)[1].as_py() for part in ("key", "headers")}
    if reason == "record_too_large":  # no dead letter could hold it
        assert kept == {"key": None, "headers": None, "payload": None}
        assert decoded["payload_bytes"] == len(sent.column("value")[1].as_py())
    elif name == "more headers":
        assert kept == {"key": b"k", "headers": None, "payload": png()}
    else:
        assert kept == {**whole, "payload": None if reason is None else sent.column("value")[1].as_py()}
    if reason and reason != "unsupported_format":
        assert "expected at most" in decoded["error_message"]
        assert len(decoded["event_id"]) == 32


@pytest.mark.parametrize("version", RENDERING_VERSIONS)
def test_an_image_is_decoded_by_the_rendering_of_the_models_card(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    asked = []

    def decode(payload: bytes, **options: Any) -> DecodedImage:
        asked.append(options["rendering"])
        return decode_image(payload, **options)

    monkeypatch.setattr(decoding, "decode_image", decode)
    row = {"topic": "images", "partition": 0, "offset": 1, "headers": []}
    plan = replace(_PLAN, rendering=version)
    assert decode_record(row, png(), plan).get("reason") is None
    assert asked == [version]
