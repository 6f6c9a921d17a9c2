"""DICOM files drawn at random, each beside what the standard makes of its every pixel, one by one.

Drawn are the pixels, how they lie in their words, every encoding that is lossless, and all that decides their gray.
"""

import math
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from schemas.errors import Reason, RecordError
from sparkdl.image.dicom import render_dicom
from sparkdl.image.limits import DecodeLimits
from tests import testimages
from tests.profiles import LONG, SHORT

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
COMPRESSED = (RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless)
TELL_VALUES = (JPEG2000Lossless, HTJ2KLossless)
EXACT = 1e-6
STEPS = {"decode", "modality", "voi", "range", "invert", "padding"}


@dataclass(frozen=True)
class Lut:
    """A Modality or VOI LUT; its largest entry takes all of its bits."""

    first: int
    entries: list[int]
    bits: int


@dataclass(frozen=True)
class Window:
    centers: list[float]
    widths: list[float]
    function: str | None


@dataclass(frozen=True)
class Case:
    """What a file says."""

    values: list[list[int]]
    bits: int
    allocated: int
    high_bit: int
    signed: bool
    says_signed: bool
    junk: list[list[int]]
    syntax: str
    photometric: str
    shape: str | None
    modality: tuple[float, float] | Lut | None
    voi: Window | Lut | None
    padding: tuple[int, int | None] | None


# --- drawing ----------------------------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> Case:
    syntax = draw(st.sampled_from(NATIVE + COMPRESSED))
    bits, allocated, high_bit = draw(layouts(syntax))
    signed = draw(st.booleans())
    lowest = -(1 << bits - 1) if signed else 0
    highest = lowest + (1 << bits) - 1
    height, width = draw(st.sampled_from([(2, 3), (3, 5), (7, 4), (11, 13)]))
    few = draw(st.lists(st.integers(lowest, highest), min_size=1, max_size=9))
    values = draw(grids(height, width, st.sampled_from(few) | st.integers(lowest, highest)))
    for row, column, value in draw(spots(height, width, lowest, highest)):
        values[row][column] = value
    padding = None
    if high_bit == bits - 1 and draw(st.booleans()):
        padding = draw(st.tuples(st.sampled_from(few), st.none() | st.integers(lowest, highest)))
    outside = (1 << allocated) - 1 & ~(((1 << bits) - 1) << high_bit + 1 - bits)
    has_junk = syntax in NATIVE and padding is None and draw(st.booleans())
    junk = draw(grids(height, width, st.integers(0, (1 << allocated) - 1))) if has_junk else [[0] * width] * height
    modality = draw(st.none() | rescales() | luts(lowest, highest))
    low, high = domain(modality, lowest, highest)
    whole = not isinstance(modality, tuple) or modality[0] == round(modality[0])
    near = [math.floor(look_at(modality, value)) for value in few]
    voi = draw(st.none() | windows(low, high, near) | (luts(low, high) if whole else st.none()))
    return Case(
        values=values,
        bits=bits,
        allocated=allocated,
        high_bit=high_bit,
        signed=signed,
        says_signed=draw(st.booleans()) if syntax in TELL_VALUES else signed,
        junk=[[word & outside for word in row] for row in junk],
        syntax=syntax,
        photometric=draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"])),
        shape=draw(st.sampled_from([None, "IDENTITY", "INVERSE"])),
        modality=modality,
        voi=voi,
        padding=padding,
    )


@st.composite
def layouts(draw: st.DrawFn, syntax: str) -> tuple[int, int, int]:
    """Draw bits stored and allocated, and the high bit; compressed values end at the lowest bit."""
    allocated = draw(st.sampled_from([8, 16]))
    fewest = 2 if syntax in (JPEGLossless, JPEGLosslessSV1) else 1  # what the encoder takes
    bits = draw(st.integers(fewest, allocated))
    return bits, allocated, draw(st.integers(bits - 1, allocated - 1)) if syntax in NATIVE else bits - 1


def grids(height: int, width: int, cells: st.SearchStrategy[int]) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(cells, min_size=width, max_size=width), min_size=height, max_size=height)


def spots(height: int, width: int, lowest: int, highest: int) -> st.SearchStrategy[list[tuple[int, int, int]]]:
    """Draw a few pixels that are the brightest or the darkest there can be."""
    ends = st.sampled_from([lowest, highest])
    return st.lists(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1), ends), max_size=3)


def rescales() -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.sampled_from([1.0, 2.0, -1.0, 0.5, -0.25, 3.0]), st.integers(-2000, 2000).map(float))


@st.composite
def luts(draw: st.DrawFn, low: int, high: int) -> Lut:
    """Draw a LUT for inputs of a range: its first value is one that they can have, more or less."""
    bits = draw(st.integers(1, 16))
    entries = draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=1, max_size=30))
    least, most = (-32768, 32767) if low < 0 else (0, 65535)
    first = draw(st.integers(max(least, low - 10), max(least, min(most, high + 10))))
    top = draw(st.integers(1 << bits - 1, (1 << bits) - 1))
    return Lut(first, [*entries, top], bits)


@st.composite
def windows(draw: st.DrawFn, low: int, high: int, near: list[int]) -> Window:
    """Draw one to three windows, some of which are none; narrow ones stand where pixels are."""
    count = draw(st.integers(1, 3))
    narrow = st.tuples(st.sampled_from(near), st.sampled_from([0, -1, 0.5, 1, 2, 2.5, 7, 60]))
    wide = st.tuples(st.integers(low - 5, high + 5), st.integers(1, 2 * (high - low) + 2))
    drawn = draw(st.lists(narrow | wide, min_size=count, max_size=count))
    function = draw(st.sampled_from([None, "LINEAR", "LINEAR_EXACT", "SIGMOID"]))
    return Window([float(center) for center, _ in drawn], [float(width) for _, width in drawn], function)


def domain(modality: tuple[float, float] | Lut | None, lowest: int, highest: int) -> tuple[int, int]:
    """Give the least and the largest value that a VOI LUT or window may have to do with."""
    if isinstance(modality, Lut):
        return min(modality.entries), max(modality.entries)
    ends = [look_at(modality, value) for value in (lowest, highest)]
    return math.floor(min(ends)), math.ceil(max(ends))


# --- writing ----------------------------------------------------------------------------------------------------------


def write(case: Case) -> bytes:
    mask = (1 << case.bits) - 1
    shift = case.high_bit + 1 - case.bits
    words = np.array(case.values) & mask
    stored = (words << shift | np.array(case.junk)).astype(f"u{case.allocated // 8}")
    elements: dict[str, Any] = describe(case)
    if case.syntax == ExplicitVRBigEndian:
        return testimages.big_endian_dicom(stored, **elements)
    if case.syntax in NATIVE:
        return testimages.dicom(stored, syntax=case.syntax, **elements)
    return testimages.encapsulated_dicom(compress(case, stored), case.syntax, stored, **elements)


def compress(case: Case, words: np.ndarray) -> bytes:
    if case.syntax == RLELossless:
        height, width = words.shape
        return RLELosslessEncoder.encode(
            words.tobytes(), rows=height, columns=width, samples_per_pixel=1, number_of_frames=1,
            bits_allocated=case.allocated, bits_stored=case.allocated, pixel_representation=0,
            photometric_interpretation="MONOCHROME2", encoding_plugin="pydicom",
        )  # fmt: skip
    if case.syntax == JPEGLSLossless:
        return bytes(imagecodecs.jpegls_encode(words))
    if case.syntax in (JPEGLossless, JPEGLosslessSV1):
        predictor = 1 if case.syntax == JPEGLosslessSV1 else 6
        narrow = words.astype("u1" if case.bits <= 8 else "u2")
        options = {"lossless": True, "predictor": predictor, "bitspersample": case.bits}
        return bytes(imagecodecs.jpeg8_encode(narrow, **options))
    values = np.array(case.values, f"{'i' if case.signed else 'u'}{case.allocated // 8}")
    if case.syntax == HTJ2KLossless:
        return bytes(imagecodecs.htj2k_encode(values, reversible=True))
    return bytes(imagecodecs.jpeg2k_encode(values, reversible=True, codecformat="j2k", bitspersample=case.bits))


def describe(case: Case) -> dict[str, Any]:
    """Give the elements beside the pixels."""
    elements: dict[str, Any] = {
        "bits_stored": case.bits,
        "photometric": case.photometric,
        "HighBit": case.high_bit,
        "PixelRepresentation": int(case.says_signed),
    }
    if case.shape:
        elements["PresentationLUTShape"] = case.shape
    if isinstance(case.modality, Lut):
        elements["ModalityLUTSequence"] = write_lut(case.modality)
    elif case.modality:
        elements["RescaleSlope"], elements["RescaleIntercept"] = case.modality
    if isinstance(case.voi, Lut):
        elements["VOILUTSequence"] = write_lut(case.voi)
    elif case.voi:
        elements["WindowCenter"], elements["WindowWidth"] = case.voi.centers, case.voi.widths
        if case.voi.function:
            elements["VOILUTFunction"] = case.voi.function
    if case.padding:
        keywords = ("PixelPaddingValue", "PixelPaddingRangeLimit")
        elements |= {
            key: in_16_bits(case, value) for key, value in zip(keywords, case.padding, strict=True) if value is not None
        }
    return elements


def in_16_bits(case: Case, value: int) -> int:
    """Give a value as the VR can hold it that the declared sign asks for."""
    word = value % 65536
    return word - 65536 if case.says_signed and word >= 32768 else word


def write_lut(lut: Lut) -> Any:
    return testimages.lookup_table(lut.entries, first=lut.first, bits=lut.bits)


# --- what the standard says -------------------------------------------------------------------------------------------


def look_up(lut: Lut, value: float) -> int:
    """PS3.3 C.11.1.1 and C.11.2.1.1: below the first value its entry, above the last the last."""
    place = round(value) - lut.first
    return lut.entries[0] if place < 0 else lut.entries[-1] if place >= len(lut.entries) else lut.entries[place]


def look_at(modality: tuple[float, float] | Lut | None, value: int) -> float:
    """PS3.3 C.11.1: a stored value in the modality's units."""
    if isinstance(modality, Lut):
        return look_up(modality, value)
    slope, intercept = modality or (1.0, 0.0)
    return value * slope + intercept


def apply_window(window: Window, value: float) -> float | None:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, 0 to 1; None where no window can be used."""
    function = window.function or "LINEAR"
    for center, width in zip(window.centers, window.widths, strict=True):
        if width <= 0 or (function == "LINEAR" and width < 1):
            continue
        if function == "SIGMOID":
            exponent = -4 * (value - center) / width
            return 0.0 if exponent > 700 else 1 / (1 + math.exp(exponent))
        middle, half = (center - 0.5, (width - 1) / 2) if function == "LINEAR" else (center, width / 2)
        if value <= middle - half:
            return 0.0
        if value > middle + half:
            return 1.0
        return (value - middle) / (2 * half) + 0.5
    return None


def is_padding(case: Case, value: int) -> bool:
    """PS3.3 C.7.5.1.1.2: the value, or all between it and the limit."""
    if case.padding is None:
        return False
    ends = [end for end in case.padding if end is not None]
    return min(ends) <= value <= max(ends)


def expected_shades(case: Case) -> list[list[float]]:
    """Give 0 to 255 for every pixel, before it is rounded."""
    pixels = [value for row in case.values for value in row]
    counted = [value for value in pixels if not is_padding(case, value)] or pixels
    ordered = sorted(look_at(case.modality, value) for value in counted)
    tail = len(ordered) // 100  # a hundredth at either end does not count
    black, white = ordered[tail], ordered[-1 - tail]
    if black == white:
        black, white = ordered[0], ordered[-1]

    def shade(value: int) -> float:
        real = look_at(case.modality, value)
        if isinstance(case.voi, Lut):
            shown: float | None = look_up(case.voi, real) / ((1 << case.voi.bits) - 1)
        else:
            shown = apply_window(case.voi, real) if case.voi else None
        if shown is None:
            shown = min(1.0, max(0.0, (real - black) / ((white - black) or 1)))
        inverted = case.photometric == "MONOCHROME1" or case.shape == "INVERSE"
        return 255 * (1 - shown if inverted else shown)

    return [[shade(value) for value in row] for row in case.values]


def check(case: Case) -> None:
    values, shades = np.array(case.values), np.array(expected_shades(case))
    padded = np.array([[is_padding(case, value) for value in row] for row in case.values])
    counted = ~padded if not padded.all() else padded
    differ = bool(np.ptp(values[counted]))
    try:
        rendered = render_dicom(write(case), origin="here", limits=DecodeLimits())
    except RecordError as exc:
        assert exc.reason == Reason.BLANK_RENDERING, exc
        assert differ
        assert np.ptp(shades[counted]) <= 1 + EXACT
        return
    shown = rendered.pixels.astype(float)
    if not padded.all():
        np.testing.assert_array_equal(shown[padded], 0)
    assert np.abs(shown - shades)[counted].max() <= 0.5 + EXACT  # halves may be rounded either way
    assert np.ptp(shown[counted]) > 0 or not differ
    assert {step.name for step in rendered.steps} <= STEPS


@SHORT
@given(cases())
@pytest.mark.slow
def test_every_pixel_is_shown_as_the_standard_says(case: Case) -> None:
    check(case)


@pytest.mark.long
@LONG
@given(cases())
def test_every_pixel_is_shown_as_the_standard_says_at_length(case: Case) -> None:
    check(case)
