"""The gray of every stored value of a DICOM image, as a viewer would show it.

The order is the standard's: stored value, Modality LUT, VOI LUT or window, inversion, 8 bit. All steps depend on the
stored value alone, so they are worked out once for each of the at most 65,536 words that a pixel can be, and then
looked up per pixel.

References
----------
DICOM PS3.3 C.11.1 (Modality LUT), C.11.2 (VOI LUT), C.7.5.1.1.2 (Pixel Padding), C.7.6.3.1.2 (Photometric
Interpretation), C.8.11.3 (DX images: Presentation LUT Shape).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from schemas.errors import Reason, UnsupportedImageError
from sparkdl.image.dicomfile import PYDICOM_ERRORS, corrupt, parsing, read_code, read_decimals
from sparkdl.image.lut import read_table
from sparkdl.image.pixels import count_values
from sparkdl.image.steps import NoticeGray, Step

TAIL_SHARE = 0.01
"""Of the pixels, at either end, that may lie outside the range of an image without window: burned-in marks, dead
pixels. A marker of a fiftieth of the width by a third of the height is less."""

_SAMPLES_A_SIDE = 64  # enough to find a second gray in a radiograph; the whole of 9.4 million pixels takes 14 ms
_WORD_VALUES = 1 << 16
_WHITE = 255

_Values = npt.NDArray[np.float64]
_Words = npt.NDArray[np.bool_]
_Codes = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class StoredValues:
    """What the words of a pixel mean: at word ``w`` stands the value that it stores.

    Parameters
    ----------
    values : numpy.ndarray
        int64 of shape (256,) or (65536,).
    signed : bool
        They are two's complement.
    """

    values: npt.NDArray[np.int64]
    signed: bool

    @classmethod
    def of(cls, word_bits: int, bits: int, *, shift: int = 0, signed: bool = False) -> "StoredValues":
        """Work them out for ``bits`` stored bits, the lowest at ``shift``; the others may hold overlays: dropped."""
        values = np.arange(1 << word_bits) >> shift & ((1 << bits) - 1)
        if signed:
            values[values >= 1 << (bits - 1)] -= 1 << bits
        return cls(values, signed)

    def value_of(self, word: int) -> int:
        """Give the value that 16 bits of another element mean, whatever sign its own VR has."""
        if not self.signed:
            return word
        sign = -int(self.values.min())
        if sign <= word < 2 * sign:
            return word - 2 * sign
        return word - _WORD_VALUES if word >= _WORD_VALUES // 2 else word


def map_to_gray(
    dataset: Dataset,
    stored: StoredValues,
    codes: _Codes,
    *,
    inverted: bool,
    origin: str,
    notice: NoticeGray | None = None,
) -> tuple[npt.NDArray[np.uint8], list[Step]]:
    """Work out the 8-bit gray of every word.

    Parameters
    ----------
    dataset : Dataset
        Has the display parameters.
    stored : StoredValues
        Of the words.
    codes : numpy.ndarray
        The words of the image, shape (rows, columns).
    inverted : bool
        Large values are dark.
    origin : str
        Where the file came from, for tracing.
    notice : callable, optional
        Told of each step; what is not shown yet is spread from the smallest to the largest value that the pixels have.

    Returns
    -------
    tuple of numpy.ndarray and list of Step
        uint8 of shape (256,) or (65536,), 0 = black; and what was done.

    Raises
    ------
    UnsupportedImageError
        ``DICOM_UNSUPPORTED_LUT``, ``BLANK_RENDERING``.
    CorruptImageError
        ``DICOM_CORRUPT``: the display parameters do not parse.
    """
    with parsing(origin, "the display parameters"):
        padded = _find_padding(dataset, stored)
        values, modality = _apply_modality(dataset, stored, origin)
        shown, how = _apply_voi(dataset, values, origin)
    steps: list[Step] = []

    def take(step: Step, gray: Callable[[], npt.NDArray[np.uint8]]) -> None:
        steps.append(step)
        if notice is not None:
            notice(step, gray())

    if modality is not None:
        take(modality, lambda: spread_all(values, count_values(codes, len(values))))
    if shown is None:
        shown, how = _spread_range(values, _count_unpadded(codes, padded))
    upright = shown
    if how is not None:
        take(how, lambda: _to_bytes(upright))
    if inverted:
        shown = 1 - shown
        dark = Step("invert", "large values are dark", _tell(dataset, "PhotometricInterpretation"))
        take(dark, lambda: _to_bytes(1 - upright))
    table = _to_bytes(shown)
    _check_not_blank(table, codes, stored.values, padded, origin)
    if padded.any() and _has_other(codes, padded):
        table[padded] = 0  # after the inversion: a white frame of one make of device would be a mark to learn
        take(Step("padding", "shown as background", _tell(dataset, *_PADDING)), table.copy)
    return table, steps


def _to_bytes(shown: _Values) -> npt.NDArray[np.uint8]:
    return np.rint(shown * 255).astype(np.uint8)


def spread_all(values: _Values, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Give grays from the smallest to the largest of the values that occur; ``counts`` has the pixels of each."""
    there = values[counts > 0]
    return _to_bytes(np.clip((values - there.min()) / (float(there.max() - there.min()) or 1.0), 0, 1))


@dataclass(frozen=True, slots=True)
class DeepGray:
    """The gray of every word with all its bits, for a window that people move.

    Parameters
    ----------
    table : numpy.ndarray
        uint16 of shape (256,) or (65536,); larger is brighter, Pixel Padding is 0.
    low, high : int
        What is shown black and white, in the same unit; either may lie outside 0 to 65535. Between them the rendering
        is a straight line, unless a VOI LUT or a sigmoid bends it.
    """

    table: npt.NDArray[np.uint16]
    low: int
    high: int


def map_to_deep_gray(
    dataset: Dataset, stored: StoredValues, codes: _Codes, *, inverted: bool, origin: str
) -> tuple[DeepGray, list[Step]]:
    """Work out the 16-bit gray of every word: its modality value, upright, counted from the smallest one there is.

    Parameters
    ----------
    dataset, stored, codes, inverted, origin
        See `map_to_gray`.

    Returns
    -------
    tuple of DeepGray and list of Step
        And what the 8-bit rendering does, which decides ``low`` and ``high``.

    Raises
    ------
    UnsupportedImageError, CorruptImageError
        See `map_to_gray`.
    """
    shown, steps = map_to_gray(dataset, stored, codes, inverted=inverted, origin=origin)
    padded = _find_padding(dataset, stored)
    values, _ = _apply_modality(dataset, stored, origin)
    if inverted:
        values = -values
    there = values[_count_unpadded(codes, padded) > 0]
    smallest, span = float(there.min()), float(there.max() - there.min())
    # Whole numbers stay what they are: scaled ones compress far worse.
    whole = span < _WORD_VALUES and bool((there == np.rint(there)).all())
    deep = (values - smallest) * (1.0 if whole else (_WORD_VALUES - 1) / (span or 1.0))
    counted = deep[~padded] if not padded.all() else deep
    gray = shown[~padded] if not padded.all() else shown
    low, high = _find_ends(counted, gray)
    table = np.clip(np.rint(deep), 0, _WORD_VALUES - 1).astype(np.uint16)
    if padded.any() and _has_other(codes, padded):
        table[padded] = 0
    return DeepGray(table, low, max(high, low + 1)), steps


def _find_ends(deep: _Values, gray: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Find what is just black and just white; where a window goes beyond all words, along the line that it draws."""
    black, white = deep[gray == 0], deep[gray == _WHITE]
    first, last = float(black.max() if black.size else deep.min()), float(white.min() if white.size else deep.max())
    # What is just black rounds down from nearly half a gray, what is just white up from half a gray below.
    darkest = 0.5 if black.size else float(gray.min())
    brightest = _WHITE - 0.5 if white.size else float(gray.max())
    slope = (last - first) / ((brightest - darkest) or 1.0)
    return round(first - darkest * slope), round(last + (_WHITE - brightest) * slope)


# --- Modality LUT -----------------------------------------------------------------------------------------------------


def _apply_modality(dataset: Dataset, stored: StoredValues, origin: str) -> tuple[_Values, Step | None]:
    """Bring stored values to the modality's units (C.11.1): by a LUT, or by slope and intercept."""
    if (lut := read_table(dataset, "ModalityLUTSequence")) is not None:
        what = f"Modality LUT of {len(lut.entries)} entries"
        return lut.look_up(stored.values, signed=stored.signed), Step("modality", what)
    slope, intercept = _first_of(dataset, "RescaleSlope", 1.0), _first_of(dataset, "RescaleIntercept", 0.0)
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise corrupt(origin, f"rescale slope is {slope}, intercept {intercept}; expected a finite slope other than 0")
    rescaled = stored.values.astype(np.float64) * slope + intercept
    if (slope, intercept) == (1, 0):
        return rescaled, None
    decided_by = {"RescaleSlope": f"{slope:g}", "RescaleIntercept": f"{intercept:g}"}
    return rescaled, Step("modality", f"value x {slope:g} + {intercept:g}", decided_by)


def _first_of(dataset: Dataset, keyword: str, default: float) -> float:
    value = next(iter(read_decimals(dataset, keyword)), None)
    return default if value is None else value


# --- VOI LUT or window ------------------------------------------------------------------------------------------------


def _apply_voi(dataset: Dataset, values: _Values, origin: str) -> tuple[_Values | None, Step | None]:
    """Bring modality values to 0..1 by the first VOI LUT, else the first window (C.11.2); None without either."""
    if (lut := read_table(dataset, "VOILUTSequence")) is not None:
        if lut.bits is None:
            detail = (
                f"entries of the VOI LUT go up to {lut.entries.max():.0f}, and nearly all take fewer bits; "
                f"its descriptor says {lut.declared_bits}; expected entries that tell their depth"
            )
            raise UnsupportedImageError(Reason.DICOM_UNSUPPORTED_LUT, origin, detail)
        shown = np.clip(lut.look_up(values, signed=bool(values.min() < 0)) / ((1 << lut.bits) - 1), 0, 1)
        what = f"VOI LUT of {len(lut.entries)} entries of {lut.bits} bits"
        return shown, Step("voi", what, {"LUTDescriptor bits": str(lut.declared_bits)})
    windows = list(zip_longest(read_decimals(dataset, "WindowCenter"), read_decimals(dataset, "WindowWidth")))
    usable = [(c, w) for c, w in windows if c is not None and w is not None and np.isfinite([c, w]).all() and w > 0]
    if not usable:
        return None, None
    function = read_code(dataset, "VOILUTFunction") or "LINEAR"
    if function not in _WINDOWS:
        raise corrupt(origin, "VOI LUT Function is none of LINEAR, LINEAR_EXACT, SIGMOID")
    smallest = 1 if function == "LINEAR" else 0
    center, width = next(((c, w) for c, w in usable if w >= smallest), (0.0, 0.0))
    if width == 0:
        return None, None
    decided_by = {"WindowCenter": f"{center:g}", "WindowWidth": f"{width:g}", "VOILUTFunction": function}
    return _WINDOWS[function](values, center, width), Step("voi", f"window {center:g} wide {width:g}", decided_by)


def _linear(values: _Values, center: float, width: float) -> _Values:
    """C.11.2.1.2.1: the window of width w covers w integer values, so its ends lie w - 1 apart."""
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _linear_exact(values: _Values, center: float, width: float) -> _Values:
    """C.11.2.1.3.2."""
    return np.clip((values - center) / width + 0.5, 0, 1)


def _sigmoid(values: _Values, center: float, width: float) -> _Values:
    """C.11.2.1.3.1; the exponent is bounded where the result is 0 or 1 in 8 bits anyway."""
    exponent = np.clip(-4 * (values - center) / width, -50, 50)
    shown: _Values = 1 / (1 + np.exp(exponent))
    return shown


_WINDOWS: dict[str, Callable[[_Values, float, float], _Values]] = {
    "LINEAR": _linear,
    "LINEAR_EXACT": _linear_exact,
    "SIGMOID": _sigmoid,
}


# --- without window ---------------------------------------------------------------------------------------------------


def _spread_range(values: _Values, counts: npt.NDArray[np.int64]) -> tuple[_Values, Step]:
    """Spread the values that the pixels have from black to white, but for a hundredth of the pixels at either end.

    The smallest and the largest value would do as well, but for one burned-in marker or dead pixel. Where nearly all
    pixels are one value, they have to do.
    """
    words = np.flatnonzero(counts)
    words = words[np.argsort(values[words], kind="stable")]
    below, total = np.cumsum(counts[words]), counts.sum()
    tail = int(total * TAIL_SHARE)
    low = values[words[np.searchsorted(below, tail, side="right")]]
    high = values[words[np.searchsorted(below, total - tail, side="left")]]
    if low == high:
        low, high = values[words[0]], values[words[-1]]
    shown: _Values = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    return shown, Step(
        "range", f"no window: {low:g} is black, {high:g} white; {TAIL_SHARE:.0%} of the pixels beyond each"
    )


def _count_unpadded(codes: _Codes, padded: _Words) -> npt.NDArray[np.int64]:
    """Count the pixels of each word, without those of the Pixel Padding if others remain."""
    counts = count_values(codes, len(padded))
    unpadded = np.where(padded, 0, counts)
    return unpadded if unpadded.any() else counts


# --- Pixel Padding ----------------------------------------------------------------------------------------------------


_PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")


def _find_padding(dataset: Dataset, stored: StoredValues) -> _Words:
    """Mark the words of the Pixel Padding (C.7.5.1.1.2), with the sign of the pixels whatever that of their VR.

    Where its elements do not parse there is none: with a window nothing else needs them.
    """
    ends = read_padding(dataset)
    if not ends:
        return np.zeros(stored.values.shape, dtype=bool)
    low, high = min(map(stored.value_of, ends)), max(map(stored.value_of, ends))
    padded: _Words = (stored.values >= low) & (stored.values <= high)
    # Bits above the stored ones, which are dropped, may be what marks the padding.
    if ends[0] < len(padded):
        padded[ends[0]] = True
    return padded


def read_padding(dataset: Dataset) -> tuple[int, ...]:
    """Read Pixel Padding Value and, where there is one, Pixel Padding Range Limit, each as the 16 bits that it has.

    Returns
    -------
    tuple of int
        One or two words; none where there is no padding or its elements do not parse.
    """
    try:
        words = tuple(_read_word(dataset, word) for word in _PADDING if dataset.get(word) not in (None, "", b""))
        return words if dataset.get(_PADDING[0]) is not None else ()
    except PYDICOM_ERRORS:
        return ()


def _read_word(dataset: Dataset, keyword: str) -> int:
    value = dataset[keyword].value
    if isinstance(value, bytes):
        return int.from_bytes(value[:2], "little" if dataset.original_encoding[1] is not False else "big")
    return int(value) % _WORD_VALUES


def _has_other(codes: _Codes, padded: _Words) -> bool:
    """Tell whether some pixel is no padding: most often a few rows show one."""
    some = codes[:: max(1, codes.shape[0] // 8)]
    return not bool(padded[some].all()) or not bool(padded[codes].all())


def _tell(dataset: Dataset, *keywords: str) -> dict[str, str]:
    """Give elements that are numbers or words of a closed set, for a step."""
    found = {keyword: dataset.get(keyword) for keyword in keywords}
    return {keyword: str(value).strip() for keyword, value in found.items() if isinstance(value, int | str)}


# --- blank ------------------------------------------------------------------------------------------------------------


def _check_not_blank(
    table: npt.NDArray[np.uint8], codes: _Codes, values: npt.NDArray[np.int64], padded: _Words, origin: str
) -> None:
    """Refuse stored values that differ but are all shown as one gray, Pixel Padding left out: its gray is another.

    Nearly every picture shows two grays in a few thousand of its pixels, so only the others are looked at in full.
    """
    rows, columns = (max(1, side // _SAMPLES_A_SIDE) for side in codes.shape)
    sample = codes[::rows, ::columns]
    if _differ(table[sample[~padded[sample]]]):
        return
    words = np.flatnonzero(_count_unpadded(codes, padded))
    if _differ(values[words]) and not _differ(table[words]):
        found, shade = values[words], table[words][0]
        detail = (
            f"stored values {found.min()} to {found.max()} are all shown as gray {shade} by their window or LUTs; "
            "expected two grays or more"
        )
        raise UnsupportedImageError(Reason.BLANK_RENDERING, origin, detail)


def _differ(values: npt.NDArray[Any]) -> bool:
    return bool(values.size) and bool(values.min() < values.max())
