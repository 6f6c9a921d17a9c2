"""Dead letters without a broker: what is ours in one, what may be shown, what a command line may say."""

import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest
import typer
from confluent_kafka import Message

from schemas import envelope
from schemas.documents import load_schema
from schemas.errors import Reason
from streaming.deadletters.read import (
    DeadLetter,
    Selection,
    _describe,
    cut_runs,
    read_dead_letter,
    split_headers,
)
from streaming.deadletters.redrive import _read_mark
from streaming.kafka.places import Headers, Origin, Place, read_headers
from tests.testimages import png
from xray.commands.options import read_moment, read_place

_WRITTEN_MS = 1_780_000_000_000


def added_headers(
    original: Headers = (),  # type: ignore[assignment]
    *,
    input_place: tuple[int, int] = (1, 17),
    topic: str = "xray.images",
    reason: Reason = Reason.CORRUPT_IMAGE,
    event_id: str = "e" * 32,
    topic_id: str = "",
) -> Headers:
    """The block that `routing` appends, in its order; a test with the real stream holds this against it."""
    partition, offset = (b"%d" % number for number in input_place)
    taken = {name for name, _ in original}
    block: Headers = [
        (envelope.INPUT_TOPIC, topic.encode()),
        (envelope.INPUT_PARTITION, partition),
        (envelope.INPUT_OFFSET, offset),
        (envelope.INPUT_TIMESTAMP, b"2026-01-31T12:00:00.000Z"),
        *([(envelope.INPUT_TOPIC_ID, topic_id.encode())] if topic_id else []),
        (envelope.EVENT_ID, event_id.encode()),
        (envelope.REASON, reason.value.encode()),
        (envelope.ERROR_TOPIC, topic.encode()),
        (envelope.ERROR_PARTITION, partition),
        (envelope.ERROR_OFFSET, offset),
        (envelope.ERROR_CONNECTOR, b"xray-score"),
        (envelope.ERROR_TASK, partition),
        (envelope.ERROR_STAGE, b"VALUE_CONVERTER"),
        (envelope.ERROR_CLASS, b"streaming.decoding.decode_record"),
        (envelope.ERROR_EXCEPTION_CLASS, b"schemas.errors.CorruptImageError"),
        (envelope.ERROR_EXCEPTION_MESSAGE, b"what was found, what was wanted"),
        (envelope.ERROR_EXCEPTION_STACKTRACE, b"Traceback ..."),
    ]
    return [(name, value) for name, value in block if name not in taken or not name.startswith(envelope.ERROR_PREFIX)]


def dead_letter(original: Headers, payload: bytes | None = b"bytes", key: bytes | None = b"k", **what: Any) -> Message:
    headers = [*original, *added_headers(original, **what)]
    return Message("dead", 0, 5, key, payload, headers, timestamp=(1, _WRITTEN_MS))


def test_the_block_of_these_tests_keeps_the_contract() -> None:
    block = {name: (value or b"").decode() for name, value in added_headers()}
    jsonschema.validate(block, load_schema("dead_letter_headers"))


@pytest.mark.parametrize(
    "original",
    [
        [],
        [("ce_id", b"1"), ("x", None), ("x", b"\xff\x00"), ("ce_id", b"2")],
        # What failed elsewhere before, and a device that uses our own names: both are the record's, and stay with it.
        [("__connect.errors.topic", b"elsewhere"), ("__connect.errors.exception.message", b"Jane Doe")],
        [(envelope.INPUT_TOPIC, b"theirs"), (envelope.REASON, b"theirs"), ("x", b"y")],
    ],
)
def test_original_headers_are_told_from_ours(original: Headers) -> None:
    found, added = split_headers([*original, *added_headers(original)])
    assert found == original
    assert added[envelope.REASON] == b"corrupt_image"
    assert added[envelope.INPUT_TOPIC] == b"xray.images"


def test_a_message_of_somebody_else_is_never_shown_as_ours() -> None:
    letter = read_dead_letter(dead_letter([("__connect.errors.exception.message", b"Jane Doe")]))
    assert letter is not None
    assert letter.message == ""


def test_reading_a_dead_letter() -> None:
    letter = read_dead_letter(dead_letter([("ce_id", b"1")]))
    assert letter == DeadLetter(
        place=Place(0, 5),
        time=datetime.fromtimestamp(_WRITTEN_MS / 1000, UTC),
        event_id="e" * 32,
        reason="corrupt_image",
        stage="VALUE_CONVERTER",
        error_class="schemas.errors.CorruptImageError",
        message="what was found, what was wanted",
        input=Origin("xray.images", Place(1, 17)),
        received_at="2026-01-31T12:00:00.000Z",
        payload_bytes=5,
    )
    assert letter.origin == "xray.images-1@17"
    tombstone = read_dead_letter(dead_letter([], None))
    assert tombstone is not None
    assert tombstone.payload_bytes is None


@pytest.mark.parametrize(
    "headers",
    [
        None,
        [],
        [("xray_reason", b"corrupt_image")],
        [*added_headers()[:1], ("xray_input_partition", b"one")],
        [(name, b"\xff" if name == envelope.EVENT_ID else value) for name, value in added_headers()],
    ],
)
def test_what_the_stream_did_not_write_is_no_dead_letter(headers: Headers | None) -> None:
    assert read_dead_letter(Message("dead", 0, 5, None, b"", headers, timestamp=(1, _WRITTEN_MS))) is None


def test_details_show_no_value_that_could_be_about_a_patient() -> None:
    headers: Headers = [
        ("Content-Type", b"image/png"),
        ("ce_id", b"DOE^JANE"),
        ("ce_source", b"/ward/DOE-JANE"),
        ("ce_subject", b"DOE^JANE"),
        ("ce_time", b"1970-01-31T00:00:00Z"),
        ("ce_type", b"DOE.JANE"),
        ("content-type", b"image/png; name=DOE^JANE"),
        ("traceparent", b"00-doe-jane-01"),
        ("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),
        (envelope.REDRIVEN_FROM, b"xray.images-0@17"),
        ("x-patient", b"DOE^JANE"),
    ]
    message = dead_letter(headers, png(), key=b"DOE^JANE")
    letter = read_dead_letter(message)
    assert letter is not None
    details = _describe(message, letter)
    shown = {view.name: view.text for view in details.headers if view.text is not None}
    assert shown == {
        "Content-Type": "image/png",
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
        envelope.REDRIVEN_FROM: "xray.images-0@17",
    }
    assert [view.name for view in details.headers] == [name for name, _ in headers]
    assert (details.media_type, details.key_bytes, details.payload) == ("image/png", 8, png())
    assert "DOE" not in str(details.to_dict()).upper()
    assert "1970" not in str(details.to_dict())


@pytest.mark.parametrize(
    ("selection", "taken"),
    [
        (Selection(), True),
        (Selection(frozenset({Reason.CORRUPT_IMAGE, Reason.TOMBSTONE})), True),
        (Selection(frozenset({Reason.TOMBSTONE})), False),
        (Selection(since=datetime.fromtimestamp(_WRITTEN_MS / 1000, UTC)), True),
        (Selection(until=datetime.fromtimestamp(_WRITTEN_MS / 1000, UTC)), False),
        (Selection(since=datetime.fromtimestamp(_WRITTEN_MS / 1000 + 0.001, UTC)), False),
    ],
)
def test_selection(selection: Selection, *, taken: bool) -> None:
    letter = read_dead_letter(dead_letter([]))
    assert letter is not None
    assert selection.takes(letter) is taken


@pytest.mark.parametrize(
    ("places", "runs"),
    [
        ([], []),
        ([(0, 5)], [{0: range(5, 6)}]),
        ([(0, 7), (0, 5), (1, 9)], [{0: range(5, 8), 1: range(9, 10)}]),
        ([(0, 5), (0, 90_000), (1, 9)], [{0: range(5, 6), 1: range(9, 10)}, {0: range(90_000, 90_001)}]),
    ],
)
def test_runs_cover_places_and_jump_over_what_is_far(
    places: Sequence[tuple[int, int]], runs: list[dict[int, range]]
) -> None:
    assert list(cut_runs(Place(*place) for place in places)) == runs


def test_marks_are_read_of_this_topic_only() -> None:
    def read(mark: bytes | None, topic_id: bytes | None = None) -> object:
        headers: Headers = [("xray_redriven_from", mark), ("xray_redriven_topic_id", topic_id)]
        return _read_mark(read_headers(Message("xray.images", 0, 5, None, b"", headers)), "xray.images")

    assert read(b"xray.images-3@1024") == Origin("xray.images", Place(3, 1024))
    assert read(b"xray.images-3@1024", b"its-id") == Origin("xray.images", Place(3, 1024), "its-id")
    for mark in (None, b"", b"xrayXimages-3@1024", b"other-3@1024", b"xray.images-3", b"\xff"):
        assert read(mark) is None
    assert _read_mark({}, "xray.images") is None


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:30Z", datetime(2026, 1, 31, 12, 0, 30, tzinfo=UTC)),
        ("2026-01-31T12:00+02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    assert read_moment(text) == moment


@pytest.mark.parametrize(("text", "ago_s"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604_800)])
def test_relative_moments(text: str, ago_s: int) -> None:
    assert abs(datetime.now(UTC) - timedelta(seconds=ago_s) - read_moment(text)) < timedelta(seconds=5)


@pytest.mark.parametrize("text", ["", "yesterday", "2", "h", "-2h", "2w", "9999999h", "2026-13-01"])
def test_no_moments(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no time"):
        read_moment(text)


def test_places() -> None:
    assert read_place("3@1024") == (3, 1024)
    for text in ("", "3", "@", "a@1", "3@-1", "topic-3@1"):
        with pytest.raises(typer.BadParameter, match="is no place"):
            read_place(text)


def test_it_starts_without_spark() -> None:
    code = "import sys, streaming.deadletters.redrive, streaming.account.audit; sys.exit('pyspark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
