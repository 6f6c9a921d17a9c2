"""Kafka records drawn at random: each has exactly one outcome, an image or a reason, and none raises."""

import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fuzz.kinds import KINDS
from schemas import envelope
from schemas.errors import Reason
from sparkdl.image.limits import RENDERING_VERSION, DecodeLimits
from streaming.score.decoding import DecodePlan, decode_record, decode_rows
from tests import testimages
from tests.profiles import LONG, SHORT

EVENT_ID = re.compile(r"[0-9a-f]{32}")
REASONS = {reason.value for reason in Reason} - {Reason.UNEXPECTED.value, Reason.DECODER_CRASH.value}

NAMES = st.sampled_from(
    [
        envelope.CONTENT_TYPE,
        envelope.CE_ID,
        envelope.CE_SOURCE,
        envelope.CE_TIME,
        "Content-Type",
        "CE_ID",
        "traceparent",
    ]
)
VALUES = st.sampled_from([b"image/png", b"image/jpeg; q=1", b"application/dicom", b"application/cloudevents+json", b""])
HEADERS = st.lists(
    st.fixed_dictionaries({"key": NAMES | st.text(max_size=9), "value": VALUES | st.none() | st.binary(max_size=40)}),
    max_size=6,
)
WHOLE = [
    *testimages.good_files().values(),
    *(payload for kind in KINDS.values() for payload in map(kind.wrap, kind.seeds())),
]


@st.composite
def payloads(draw: st.DrawFn) -> bytes | None:
    """Draw anything: nothing, bytes, a whole file, one with a few bytes changed or missing."""
    whole = bytearray(draw(st.sampled_from(WHOLE)))
    way = draw(st.integers(0, 5))
    if way <= 1:
        return draw(st.none() | st.binary(max_size=300))
    if way == 2:
        return bytes(whole)
    for _ in range(draw(st.integers(1, 3))):
        whole[draw(st.integers(0, len(whole) - 1))] = draw(st.integers(0, 255))
    return bytes(whole[: draw(st.integers(1, len(whole)))] if way == 3 else whole)


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "topic": draw(st.sampled_from(["xray.images", "images"]) | st.text(min_size=1, max_size=5)),
        "partition": draw(st.integers(0, 100)),
        "offset": draw(st.integers(0, 1 << 62)),
        "timestamp": 0,
        "key": draw(st.none() | st.binary(max_size=30)),
        "headers": draw(st.none() | HEADERS),
        "value": draw(payloads()),
    }


PLANS = st.builds(
    DecodePlan,
    size=st.sampled_from([(24, 20), (1, 1), (64, 48)]),
    limits=st.builds(DecodeLimits, max_payload_bytes=st.sampled_from([500, 1 << 20]), max_pixels=st.just(1 << 14)),
    model_sha256=st.just("0" * 64),
    max_record_bytes=st.sampled_from([1000, 1 << 20]),
    rendering=st.just(RENDERING_VERSION),
)


def check_outcome(found: dict[str, Any]) -> None:
    is_image, is_refused = found.get("image") is not None, found.get("reason") is not None
    assert is_image != is_refused
    assert EVENT_ID.fullmatch(found["event_id"])
    if is_refused:
        assert found["reason"] in REASONS, found.get("error_trace")
        assert found["error_class"]
        said = f"{found['error_message']} {found['error_trace']}"
        assert not any(word in said for word in testimages.PATIENT_NAME.split("^"))
    else:
        assert found["media_type"] in ("image/png", "image/jpeg", "application/dicom")
        assert found["height"] * found["width"] <= 1 << 14


def check_record(row: dict[str, Any], plan: DecodePlan) -> None:
    found = decode_record(row, row["value"], plan)
    check_outcome(found)
    assert found["payload_bytes"] == len(row["value"] or b"")
    if found.get("image") is not None:
        assert (found["image"].height, found["image"].width) == plan.size
    else:
        assert found["payload"] == row["value"]
    again = decode_record(row, row["value"], plan)
    for timed in (found, again):
        timed.pop("decode_seconds")
    assert again == found  # a batch that is done again publishes the same


SCHEMA = pa.schema([
    ("topic", pa.string()), ("partition", pa.int32()), ("offset", pa.int64()), ("timestamp", pa.timestamp("us", "UTC")),
    ("key", pa.binary()), ("value", pa.binary()),
    ("headers", pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))),
])  # fmt: skip


def check_batch(drawn: list[dict[str, Any]], plan: DecodePlan) -> None:
    batch = pa.RecordBatch.from_pylist(drawn, SCHEMA)
    outcomes = decode_rows(batch, plan)
    assert [outcome["offset"] for outcome in outcomes] == [row["offset"] for row in drawn]
    for outcome, row in zip(outcomes, drawn, strict=True):
        check_outcome(outcome)
        if outcome.get("payload") is not None:
            assert outcome["payload"] == row["value"]
        if outcome.get("reason") == Reason.RECORD_TOO_LARGE:
            assert outcome["key"] is outcome["headers"] is outcome["payload"] is None


@SHORT
@given(rows(), PLANS)
def test_a_record_has_one_outcome_and_always_the_same(row: dict[str, Any], plan: DecodePlan) -> None:
    check_record(row, plan)


@SHORT
@given(st.lists(rows(), max_size=4), PLANS)
def test_a_batch_has_one_outcome_for_each_record(drawn: list[dict[str, Any]], plan: DecodePlan) -> None:
    check_batch(drawn, plan)


@pytest.mark.long
@LONG
@given(rows(), PLANS)
def test_a_record_has_one_outcome_and_always_the_same_at_length(row: dict[str, Any], plan: DecodePlan) -> None:
    check_record(row, plan)


@pytest.mark.long
@LONG
@given(st.lists(rows(), max_size=4), PLANS)
def test_a_batch_has_one_outcome_for_each_record_at_length(drawn: list[dict[str, Any]], plan: DecodePlan) -> None:
    check_batch(drawn, plan)
