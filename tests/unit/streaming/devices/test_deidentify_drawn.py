"""Damaged files, drawn at random: what decodes does so to the same pixels, and what does not has the same reason."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Reason, RecordError
from sparkdl.image.decode import decode_image
from streaming.devices.deidentify import Deidentifier, examine
from streaming.devices.pseudonyms import Pseudonyms
from tests.profiles import LONG, SHORT
from tests.unit.streaming.devices.test_deidentify import FILES

# Their streams' decoders are in C and may crash on damage: only what cleans them is tried.
STREAMS = sorted(name for name in FILES if not name.endswith((".png", ".jpg")) and b"\xfe\xff\xdd\xe0" in FILES[name])
OTHERS = sorted(set(FILES) - set(STREAMS))
PIECES = [
    b"\xff\xd9",
    b"\xff\xe1",
    b"\xff\xfe",
    b"\xff\xda",
    b"\xff\x64",
    b"\0\0",
    b"\xff\xff",
    b"\xff" * 4,
    b"IEND",
    b"eXIf",
]
HEAD = 1500  # where numbers are that readers believe


@st.composite
def damaged(draw: st.DrawFn, names: list[str]) -> tuple[str, bytes]:
    """Draw a file, and change, leave out, repeat or cut something; most often near its head."""
    name = draw(st.sampled_from(names))
    payload = bytearray(FILES[name])
    for _ in range(draw(st.integers(1, 4))):
        reach = len(payload) if draw(st.booleans()) else min(len(payload), HEAD)
        at = draw(st.integers(0, max(reach - 1, 0)))
        change = draw(st.sampled_from(["byte", "byte", "byte", "piece", "drop", "repeat", "cut"]))
        if change == "byte":
            payload[at : at + 1] = bytes([draw(st.sampled_from([0, 1, 127, 128, 254, 255]) | st.integers(0, 255))])
        elif change == "piece":
            piece = draw(st.sampled_from(PIECES))
            payload[at : at + len(piece)] = piece
        elif change == "drop":
            del payload[at : at + draw(st.sampled_from([1, 2, 4, 50]))]
        elif change == "repeat":
            payload[at:at] = payload[at : at + draw(st.sampled_from([2, 8, 64]))]
        else:
            del payload[at + 1 :]
    return name, bytes(payload)


@pytest.fixture(scope="module")
def deidentifier(tmp_path_factory: pytest.TempPathFactory) -> Deidentifier:
    return Deidentifier(Pseudonyms(Path(tmp_path_factory.mktemp("keys"), "key")), dates="shift")


def outcome_of(payload: bytes) -> Any:
    try:
        return decode_image(payload, origin="x").image
    except RecordError as exc:
        return exc.reason


def check_same(deidentifier: Deidentifier, name: str, payload: bytes) -> None:
    before = outcome_of(payload)
    try:
        cleaned = deidentifier.deidentify(payload, origin="x")
    except RecordError as exc:
        # Of a JPEG with damaged data decoders make up the rest, and nobody can tell where it ends.
        is_made_up = name.endswith(".jpg") and exc.reason in (Reason.CORRUPT_IMAGE, Reason.TRUNCATED_IMAGE)
        assert exc.reason == before or is_made_up
    else:
        assert outcome_of(cleaned.payload) == before


def check_refusals(deidentifier: Deidentifier, payload: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of pydicom they quote values
        for look in (deidentifier.deidentify, examine):
            try:
                look(payload, origin="x")
            except RecordError as exc:
                assert exc.reason in Reason


@SHORT
@given(damaged(OTHERS))
def test_damaged_files_fare_as_before(deidentifier: Deidentifier, file: tuple[str, bytes]) -> None:
    check_same(deidentifier, *file)


@SHORT
@given(damaged(STREAMS))
def test_damaged_streams_are_cleaned_or_refused(deidentifier: Deidentifier, file: tuple[str, bytes]) -> None:
    check_refusals(deidentifier, file[1])


@SHORT
@given(damaged(OTHERS))
def test_damage_raises_record_errors_alone(deidentifier: Deidentifier, file: tuple[str, bytes]) -> None:
    check_refusals(deidentifier, file[1])


@pytest.mark.long
@LONG
@given(damaged(OTHERS))
def test_many_damaged_files_fare_as_before(deidentifier: Deidentifier, file: tuple[str, bytes]) -> None:
    check_same(deidentifier, *file)


@pytest.mark.long
@LONG
@given(damaged(STREAMS))
def test_many_damaged_streams_are_cleaned_or_refused(deidentifier: Deidentifier, file: tuple[str, bytes]) -> None:
    check_refusals(deidentifier, file[1])
