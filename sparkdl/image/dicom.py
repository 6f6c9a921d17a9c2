"""DICOM files to 8-bit gray pixels, as a viewer would show them.

One direction: ``file -> what its elements say of the pixels -> stored words -> grays``. Each part has a module:
`sparkdl.image.dicomfile` reads the file as far as its pixels, `sparkdl.image.codecs` decompresses a frame,
`sparkdl.image.grayscale` works out the gray of every word that a pixel can be.

References
----------
DICOM PS3.3 C.7.6.3 (Image Pixel), C.8.11.1 (DX Series: Presentation Intent); PS3.5 section 8 (encoding of pixels),
Annex A (transfer syntaxes).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset

from schemas.errors import Reason, UnsupportedImageError
from sparkdl.image.codecs import (
    HTJ2K_SYNTAXES,
    JPEG_2000_SYNTAXES,
    SYNTAXES,
    CodecError,
    decode_frame,
    decode_rle,
    frame_size,
)
from sparkdl.image.dicomfile import (
    NATIVE_SYNTAXES,
    DicomFile,
    corrupt,
    join_fragments,
    parsing,
    read_code,
    read_dicom,
    refuse_syntax,
)
from sparkdl.image.grayscale import DeepGray, StoredValues, map_to_deep_gray, map_to_gray, spread_all
from sparkdl.image.limits import DecodeLimits
from sparkdl.image.pixels import count_values
from sparkdl.image.steps import Notice, Step

_TELLS_VALUES = JPEG_2000_SYNTAXES | HTJ2K_SYNTAXES
"""Syntaxes whose streams give values, with their sign, where others give samples of bits."""

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLORS = frozenset(
    "PALETTE COLOR|RGB|YBR_FULL|YBR_FULL_422|YBR_PARTIAL_420|YBR_ICT|YBR_RCT|MONOCHROME1|MONOCHROME2".split("|")
)
_BYTE, _WORD = 8, 16

_UNNAMED = ("", "OT")
"""What `Modality` is where it names none: absent, or "other", as programs write it that wrap a picture into DICOM."""

KNOWN_MODALITIES: Final = frozenset(
    "CR DX RG DR DF DS SC OT CT MR US MG NM PT XA RF IO PX DG BMD XC ES GM SM OP OPT ECG SR PR KO SEG".split()
)
"""Words that an error may repeat."""

_MODALITY_BY_CLASS: Final = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.1.2": "MG",
    "1.2.840.10008.5.1.4.1.1.1.2.1": "MG",
    "1.2.840.10008.5.1.4.1.1.1.3": "IO",
    "1.2.840.10008.5.1.4.1.1.1.3.1": "IO",
    "1.2.840.10008.5.1.4.1.1.6.1": "US",
    "1.2.840.10008.5.1.4.1.1.3.1": "US",
    "1.2.840.10008.5.1.4.1.1.12.1": "XA",
    "1.2.840.10008.5.1.4.1.1.12.2": "RF",
    "1.2.840.10008.5.1.4.1.1.20": "NM",
    "1.2.840.10008.5.1.4.1.1.128": "PT",
}
"""SOP classes that tell the modality of a file that does not name it."""

_FOR_PROCESSING_CLASSES = frozenset(
    {"1.2.840.10008.5.1.4.1.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.2.1", "1.2.840.10008.5.1.4.1.1.1.3.1"}
)


@dataclass(frozen=True, slots=True)
class PixelLayout:
    """How the pixels are stored: what the rest relies on, checked once.

    Parameters
    ----------
    rows, columns : int
        1 or more each.
    bits_allocated : int
        8 or 16.
    bits_stored, high_bit : int
        Within them.
    signed : bool
        As Pixel Representation says; the stream of a JPEG 2000 may know better.
    inverted : bool
        Large values are dark.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    inverted: bool


@dataclass(frozen=True, slots=True)
class RenderedImage:
    """A DICOM image as a viewer would show it.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 of shape (rows, columns), 0 = black.
    steps : tuple of Step
        What made them.
    """

    pixels: npt.NDArray[np.uint8]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class DeepImage:
    """A DICOM image with all its bits.

    Parameters
    ----------
    codes : numpy.ndarray
        Words of 8 or 16 bits, shape (rows, columns).
    gray : DeepGray
        What they mean.
    bits : int
        That are stored of a pixel.
    """

    codes: npt.NDArray[np.unsignedinteger[Any]]
    gray: DeepGray
    bits: int


def render_dicom(payload: bytes, *, origin: str, limits: DecodeLimits, notice: Notice | None = None) -> RenderedImage:
    """Render one single-frame gray DICOM image to 8 bit.

    Parameters
    ----------
    payload : bytes
        The file, with or without preamble and file meta information.
    origin : str
        Where it came from, for tracing.
    limits : DecodeLimits
        ``max_pixels`` bounds rows x columns, in the header and in the compressed stream, before decompression;
        ``modalities`` and ``for_processing`` say which images are rendered.
    notice : callable, optional
        Told of each step. What has no window yet is shown from its smallest to its largest value.

    Returns
    -------
    RenderedImage
        At full size. Without a VOI LUT or window the range is that of the values present, Pixel Padding and a hundredth
        of the pixels at either end excluded; a constant image is then all 0 before the inversion.

    Raises
    ------
    UnsupportedImageError
        ``MULTI_FRAME``, ``TOO_MANY_PIXELS``, ``UNSUPPORTED_COLOR``, ``DICOM_NO_PIXEL_DATA``,
        ``DICOM_FOREIGN_MODALITY``, ``DICOM_FOR_PROCESSING``, ``DICOM_UNSUPPORTED_TRANSFER_SYNTAX``,
        ``DICOM_UNSUPPORTED_PIXELS`` (float pixels; other than 8 or 16 bits allocated), ``DICOM_UNSUPPORTED_LUT``
        (entries of the VOI LUT do not tell how many bits they have), ``BLANK_RENDERING`` (the stored values differ,
        Pixel Padding left out, but all would be shown as one gray).
    CorruptImageError
        ``DICOM_CORRUPT``: the elements or the pixels do not decode, or contradict each other.

    Notes
    -----
    A VOI LUT wins over a window, the first usable one of several is taken. Not applied: overlays, shutters,
    Presentation LUT Sequences, pixel aspect ratios.

    References
    ----------
    DICOM PS3.3 C.11.1, C.11.2, C.7.6.3.1.2.
    """
    file = read_dicom(payload, origin=origin)
    layout = check_header(file, origin=origin, limits=limits)
    codes, stored, how = _decode(file, layout, origin, limits)
    if notice is not None:
        spread = spread_all(stored.values.astype(np.float64), count_values(codes, len(stored.values)))
        notice(how, spread[codes])
    gray = None if notice is None else lambda step, table: notice(step, table[codes])
    table, steps = map_to_gray(file.dataset, stored, codes, inverted=layout.inverted, origin=origin, notice=gray)
    return RenderedImage(table[codes], (how, *steps))


def render_deep(payload: bytes, *, origin: str, limits: DecodeLimits) -> DeepImage:
    """Give a DICOM image with all its bits, for a window that people move; what is refused, `render_dicom` refuses too.

    Parameters
    ----------
    payload, origin, limits
        See `render_dicom`.

    Raises
    ------
    UnsupportedImageError, CorruptImageError
        See `render_dicom`.
    """
    file = read_dicom(payload, origin=origin)
    layout = check_header(file, origin=origin, limits=limits)
    codes, stored, _ = _decode(file, layout, origin, limits)
    gray, _ = map_to_deep_gray(file.dataset, stored, codes, inverted=layout.inverted, origin=origin)
    return DeepImage(codes, gray, layout.bits_stored)


def check_header(file: DicomFile, *, origin: str, limits: DecodeLimits) -> PixelLayout:
    """Refuse what is not rendered, as far as the elements before the pixels tell.

    Parameters
    ----------
    file : DicomFile
        Of `read_dicom`.
    origin : str
        Where it came from, for tracing.
    limits : DecodeLimits
        As `render_dicom` takes them.

    Returns
    -------
    PixelLayout
        How the pixels are stored.

    Raises
    ------
    UnsupportedImageError, CorruptImageError
        As `render_dicom`, and in its order.
    """
    with parsing(origin, "the image pixel module"):
        _check_purpose(file.dataset, origin, limits)
        layout = _read_layout(file.dataset, origin)
    _check_layout(layout, file.syntax, origin, limits)
    return layout


def _refuse(reason: Reason, origin: str, detail: str) -> UnsupportedImageError:
    return UnsupportedImageError(reason, origin, detail)


# --- checking ---------------------------------------------------------------------------------------------------------


def _check_purpose(dataset: Dataset, origin: str, limits: DecodeLimits) -> None:
    """Refuse what is no radiograph to be looked at: raw data of a detector, images of other modalities."""
    sop_class = str(dataset.get("SOPClassUID") or "").strip(" \0")
    modality = read_code(dataset, "Modality")
    if modality in _UNNAMED:
        modality = _MODALITY_BY_CLASS.get(sop_class, "")
    if modality and limits.modalities is not None and modality not in limits.modalities:
        named = modality if modality in KNOWN_MODALITIES else "something else"
        detail = f"modality is {named}, expected one of {', '.join(limits.modalities)} or none"
        raise _refuse(Reason.DICOM_FOREIGN_MODALITY, origin, detail)
    raw = read_code(dataset, "PresentationIntentType") == "FOR PROCESSING" or sop_class in _FOR_PROCESSING_CLASSES
    if raw and not limits.for_processing:
        detail = "image is FOR PROCESSING, raw data of the detector; expected FOR PRESENTATION"
        raise _refuse(Reason.DICOM_FOR_PROCESSING, origin, detail)


def _read_layout(dataset: Dataset, origin: str) -> PixelLayout:
    """Read what describes the pixels, and refuse colour and several frames."""
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if "PhotometricInterpretation" not in dataset:
        raise corrupt(origin, "data set has no Photometric Interpretation")
    interpretation = read_code(dataset, "PhotometricInterpretation")
    if samples != 1 or interpretation not in _GRAY:
        known = interpretation if interpretation in _COLORS else "something else"
        detail = f"pixels have {samples} samples, photometric interpretation {known}; expected 1 of MONOCHROME1 or 2"
        raise _refuse(Reason.UNSUPPORTED_COLOR, origin, detail)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise _refuse(Reason.MULTI_FRAME, origin, f"file has {frames} frames, expected 1")
    bits_stored = int(dataset.BitsStored)
    high_bit = dataset.get("HighBit")
    return PixelLayout(
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        bits_allocated=int(dataset.BitsAllocated),
        bits_stored=bits_stored,
        high_bit=bits_stored - 1 if high_bit is None else int(high_bit),
        signed=bool(int(dataset.get("PixelRepresentation") or 0)),
        # In a DX image the two go together (PS3.3 C.8.11.3): one inversion, not two.
        inverted=interpretation == "MONOCHROME1" or read_code(dataset, "PresentationLUTShape") == "INVERSE",
    )


def _check_layout(layout: PixelLayout, syntax: str, origin: str, limits: DecodeLimits) -> None:
    """Refuse what is not read, before any pixel is decompressed."""
    if syntax not in NATIVE_SYNTAXES and syntax not in SYNTAXES and syntax != uid.RLELossless:
        raise refuse_syntax(origin, syntax)
    _check_size(layout.rows, layout.columns, origin, limits)
    if layout.bits_allocated not in (_BYTE, _WORD) or not 1 <= layout.bits_stored <= layout.bits_allocated:
        detail = f"pixels have {layout.bits_stored} of {layout.bits_allocated} bits, expected up to 8 of 8 or 16 of 16"
        raise _refuse(Reason.DICOM_UNSUPPORTED_PIXELS, origin, detail)
    if not layout.bits_stored - 1 <= layout.high_bit < layout.bits_allocated:
        detail = (
            f"high bit is {layout.high_bit}, expected {layout.bits_stored - 1} to {layout.bits_allocated - 1} "
            f"for {layout.bits_stored} bits stored of {layout.bits_allocated}"
        )
        raise _refuse(Reason.DICOM_UNSUPPORTED_PIXELS, origin, detail)


def _check_size(rows: int, columns: int, origin: str, limits: DecodeLimits) -> None:
    if rows < 1 or columns < 1:
        raise corrupt(origin, f"image is {rows}x{columns}, expected 1x1 or more")
    if rows * columns > limits.max_pixels:
        detail = f"image is {rows}x{columns}, expected at most {limits.max_pixels} pixels"
        raise _refuse(Reason.TOO_MANY_PIXELS, origin, detail)


# --- pixels -----------------------------------------------------------------------------------------------------------


def _decode(
    file: DicomFile, layout: PixelLayout, origin: str, limits: DecodeLimits
) -> tuple[npt.NDArray[np.unsignedinteger[Any]], StoredValues, Step]:
    """Give the pixels as unsigned words of shape (rows, columns), what the words mean, and what was done."""
    bits, signed, sample_bits = layout.bits_stored, layout.signed, layout.bits_allocated
    if file.syntax in NATIVE_SYNTAXES:
        pixels = _read_native(file, layout, origin)
    elif file.syntax == uid.RLELossless:
        frame = join_fragments(file.pixels, origin=origin)
        with _decoding(file.syntax, origin):
            pixels = decode_rle(frame, layout.rows, layout.columns, layout.bits_allocated)
    else:
        frame = join_fragments(file.pixels, origin=origin)
        _check_frame_size(frame, file.syntax, layout, origin, limits)
        with _decoding(file.syntax, origin):
            decoded = decode_frame(frame, file.syntax)
        pixels, sample_bits = decoded.pixels, decoded.bits
        if file.syntax in _TELLS_VALUES:  # its own header says the sign and the bits, and the values come out so
            bits, signed = decoded.bits, decoded.signed
    if pixels.shape != (layout.rows, layout.columns):
        raise corrupt(origin, f"decoded pixels have shape {pixels.shape}, expected {(layout.rows, layout.columns)}")
    codes = pixels.view(f"u{pixels.dtype.itemsize}")
    # The stored bits end at the high bit, where the samples reach so far; a codec may know nothing of the bits below.
    ends_at_high_bit = layout.high_bit < sample_bits and file.syntax not in _TELLS_VALUES
    shift = layout.high_bit + 1 - layout.bits_stored if ends_at_high_bit else 0
    stored = StoredValues.of(8 * codes.dtype.itemsize, bits, shift=shift, signed=signed)
    what = f"{layout.rows}x{layout.columns}, {bits} bits{', signed' if signed else ''}, {file.syntax.name}"
    decided_by = {
        "TransferSyntaxUID": str(file.syntax),
        "BitsAllocated": str(layout.bits_allocated),
        "BitsStored": str(layout.bits_stored),
        "HighBit": str(layout.high_bit),
        "PixelRepresentation": str(int(layout.signed)),
    }
    return codes, stored, Step("decode", what, decided_by)


def _read_native(file: DicomFile, layout: PixelLayout, origin: str) -> npt.NDArray[Any]:
    if file.is_encapsulated:
        raise corrupt(origin, f"pixel data is compressed, but the transfer syntax is {file.syntax.name}")
    count, width = layout.rows * layout.columns, layout.bits_allocated // 8
    if len(file.pixels) < count * width:
        raise corrupt(origin, f"pixel data has {len(file.pixels)} bytes, expected {count * width}")
    big_endian = file.syntax == uid.ExplicitVRBigEndian
    data: Any = file.pixels
    if big_endian and width == 1 and file.pixel_vr == "OW":  # 8-bit pixels, two to a word
        data = np.frombuffer(data[: len(data) // 2 * 2], "<u2").byteswap().tobytes() + bytes(data[-1:])
    pixels = np.frombuffer(data, f"{'>' if big_endian else '<'}u{width}", count=count)
    native: npt.NDArray[Any] = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return native.reshape(layout.rows, layout.columns)


@contextmanager
def _decoding(syntax: uid.UID, origin: str) -> Iterator[None]:
    try:
        yield
    except CodecError as exc:
        raise corrupt(origin, f"pixels do not decode as {syntax.name} ({exc})") from exc


def _check_frame_size(frame: bytes, syntax: uid.UID, layout: PixelLayout, origin: str, limits: DecodeLimits) -> None:
    """Compare the compressed stream's own size with Rows and Columns: codecs obey the first, the cap saw the others."""
    size = frame_size(frame, syntax)
    if size is None:
        raise corrupt(origin, f"compressed pixels have no {syntax.name} header")
    _check_size(*size, origin, limits)
    if size != (layout.rows, layout.columns):
        detail = f"compressed pixels are {size[0]}x{size[1]}, expected {layout.rows}x{layout.columns} (Rows x Columns)"
        raise corrupt(origin, detail)
