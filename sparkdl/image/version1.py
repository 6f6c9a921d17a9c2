"""Rendering version 1, frozen: what the release before made of a file, for the models that were trained on that.

No change of a pixel, not even for the better: its faults are what those models have learned from. It goes away with the
next release. What it shares with the present rendering decides no pixel: errors, limits, and the decoder of JPEG
lossless and JPEG-LS.

What it does is told in `docs/publishing.md` of the release before; tests hold the hashes of its pixels.
"""

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, UnidentifiedImageError
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_frames
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import get_decoder

from schemas.errors import CorruptImageError, Reason, UnsupportedImageError
from sparkdl.image.codecs import decode_frame
from sparkdl.image.limits import DICOM, JPEG, PNG, DecodeLimits

# pydicom logs the values of broken elements; what matters comes back as an exception.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())  # with a 32-bit length (PS3.5 7.1.2)
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLORS = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", *_GRAY)
# SOF0 to SOF15 without the three that are not frame headers, and SOF55 of JPEG-LS.
_JPEG_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_PIXEL_DATA, _FLOAT_PIXEL_DATA, _DOUBLE_FLOAT_PIXEL_DATA = 0x7FE00010, 0x7FE00008, 0x7FE00009
_PIXEL_DATA_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # (7FE0,0010), little and big endian
_BYTE, _WORD = 8, 16
_OUTLIERS = 100
_SAMPLES_A_SIDE = 64  # enough to find a second gray in a radiograph; the whole of 9.4 million pixels takes 14 ms

# The plugin of pydicom's that decodes; None is `sparkdl.image.codecs`.
_PLUGIN_BY_SYNTAX: Final = {
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEG2000Lossless: "pillow",
    uid.JPEG2000: "pillow",
    uid.JPEGLossless: None,
    uid.JPEGLosslessSV1: None,
    uid.JPEGLSLossless: None,
    uid.JPEGLSNearLossless: None,
    uid.RLELossless: "pydicom",
}
_NATIVE_SYNTAXES = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)

# What pydicom and its codecs are known to raise on damaged files.
_FOREIGN_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zlib.error,
)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_BITS_AT, _COLOR_TYPE_AT = 24, 25  # in the payload, for the header chunk is the first
_SIXTEEN_BITS, _SEVERAL_CHANNELS = 16, frozenset({2, 4, 6})  # colour types: RGB, gray with alpha, RGB with alpha
_MARKER_PREFIX, _START_OF_SCAN, _END_OF_IMAGE = 0xFF, 0xDA, b"\xff\xd9"
_LONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})  # those without a length
_SAMPLE_BITS = (8, 10, 12, 14, 16)  # the depths of X-ray devices; PNG stores all above 8 as 16 without saying which
_DRAFT_MARGIN = 2  # DCT scaling stops at twice the wanted size, the margin Pillow's own thumbnail() keeps
_EXIF_ORIENTATION = 0x0112
_SIXTEEN_BIT = "I;16"
_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GRAY_NDIM = 2
_FULL_SCALE_FROM, _PICTURE_SHARE = 1 << 14, 0.01  # of the high bytes of 16-bit colours
# What Pillow's parsers and decoders are known to raise on damaged files.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)

_Pixels = npt.NDArray[np.uint8]
_Values = npt.NDArray[np.float64]
_Codes = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the pixels are stored: what the rest relies on, checked once."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    inverted: bool
    syntax: uid.UID


def sniff_media_type(payload: bytes) -> str | None:
    """Tell the format from the bytes; see `sparkdl.image.decode.sniff_media_type`."""
    if payload.startswith(_PNG_SIGNATURE):
        return PNG
    if payload.startswith(_JPEG_SIGNATURE):
        return JPEG
    return DICOM if _looks_like_dicom(payload) else None


def decode_pixels(
    payload: bytes, media_type: str, size: tuple[int, int] | None, origin: str, limits: DecodeLimits
) -> tuple[_Pixels, tuple[int, int]]:
    """Decode a file to gray or BGR pixels, resized if ``size`` is given, and give its original size too.

    Raises
    ------
    UnsupportedImageError, CorruptImageError
        See `sparkdl.image.decode.decode_image`.
    """
    if media_type == DICOM:
        return _decode_dicom(payload, size, origin, limits)
    pixels, original = _decode_raster(payload, media_type, size, origin, limits)
    return _gray_if_gray(pixels), original


def _gray_if_gray(pixels: _Pixels) -> _Pixels:
    """Keep one channel where all are equal."""
    if pixels.ndim == _GRAY_NDIM:
        return pixels
    blue, green, red = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return blue if np.array_equal(blue, green) and np.array_equal(green, red) else pixels


# --- PNG and JPEG -----------------------------------------------------------------------------------------------------


def _decode_raster(
    payload: bytes, media_type: str, size: tuple[int, int] | None, origin: str, limits: DecodeLimits
) -> tuple[_Pixels, tuple[int, int]]:
    """Decode a PNG or JPEG to gray or BGR pixels, resized if ``size`` is given, and give its original size too."""
    if media_type == PNG:
        _check_png(payload, origin, limits)
    else:
        _check_jpeg(payload, origin)
    with _pillow_border(origin), Image.open(io.BytesIO(payload), formats=("PNG", "JPEG")) as image:
        _check_pixels(image.height, image.width, origin, limits)
        _check_layout(image, origin)
        decoded, original = _upright_png(image, size) if media_type == PNG else _upright_jpeg(image, size)
        pixels = np.asarray(decoded)
        if media_type == PNG and payload[_BITS_AT] == _SIXTEEN_BITS and payload[_COLOR_TYPE_AT] in _SEVERAL_CHANNELS:
            _check_high_bytes(image, origin)
    if _is_flat(pixels) and _differs_inside(payload, origin):
        raise _blank_rendering(pixels, origin)
    return (pixels if pixels.ndim == _GRAY_NDIM else pixels[..., ::-1]), original


def _check_high_bytes(image: Image.Image, origin: str) -> None:
    """Refuse a 16-bit PNG of several channels whose high bytes, all that Pillow keeps, are not its picture.

    They are where the colours use all 16 bits. A 12-bit picture is black in them. Where they are all the same, there
    may be one in the low bytes.
    """
    if _fits_14_bits(image) or not _differs(image.convert("RGB")):
        detail = (
            "PNG has several channels of 16 bits, of which the 8 high ones are read, and no picture in those; "
            "expected 8 bits, colours that use all 16, or 16-bit gray without alpha"
        )
        raise UnsupportedImageError(Reason.UNSUPPORTED_BIT_DEPTH, origin, detail)


def _differs_inside(payload: bytes, origin: str) -> bool:
    """Tell whether the pixels of a PNG or JPEG file differ: at full size, in 16 bits, by palette index or alpha.

    The file is decoded once more, without the shrinking inside the decoder. Hardly any picture comes here.
    """
    with _pillow_border(origin), Image.open(io.BytesIO(payload), formats=("PNG", "JPEG")) as image:
        return _differs(image)


def _differs(image: Image.Image) -> bool:
    extrema = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return any(low != high for low, high in bands)


def _upright_png(image: Image.Image, size: tuple[int, int] | None) -> tuple[Image.Image, tuple[int, int]]:
    """Decode to gray or RGB at ``size``, and give the original size too."""
    decoded = _gray_or_rgb(image)
    return (_resize_image(decoded, size) if size else decoded), (image.height, image.width)


def _upright_jpeg(image: Image.Image, size: tuple[int, int] | None) -> tuple[Image.Image, tuple[int, int]]:
    """Like `_upright_png`, shrunk inside the decoder and turned as the EXIF block says."""
    turn = _orientation(image)
    if turn is not None:
        # No draft: rotated files are rare, and the draft's box would have to be rotated with them.
        upright = _gray_or_rgb(image).transpose(turn)
        return (_resize_image(upright, size) if size else upright), (upright.height, upright.width)
    original = image.height, image.width
    box = _draft(image, size) if size else None
    decoded = _gray_or_rgb(image)
    return (_resize_image(decoded, size, box) if size else decoded), original


@contextmanager
def _pillow_border(origin: str) -> Iterator[None]:
    """Turn what Pillow raises into this project's errors, and keep its warnings off the terminal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError as exc:
        detail = "image has more pixels than Pillow opens"
        raise UnsupportedImageError(Reason.TOO_MANY_PIXELS, origin, detail) from exc
    except UnidentifiedImageError as exc:
        # Its message names a memory address, and a replayed record must give the same dead letter.
        detail = "image header does not parse"
        raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, detail) from exc
    except _PILLOW_ERRORS as exc:
        # The file's own end was seen by the structure check; data that still runs out ended too early inside.
        truncated = "truncated" in str(exc).lower()
        reason = Reason.TRUNCATED_IMAGE if truncated else Reason.CORRUPT_IMAGE
        detail = f"image does not decode ({type(exc).__name__}: {exc})"
        raise CorruptImageError(reason, origin, detail) from exc


def _check_layout(image: Image.Image, origin: str) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise UnsupportedImageError(Reason.MULTI_FRAME, origin, f"file has {frames} frames, expected 1")
    if image.mode == "CMYK":
        raise UnsupportedImageError(Reason.UNSUPPORTED_COLOR, origin, "colours are CMYK, expected gray or RGB")


def _draft(image: Image.Image, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Let the JPEG decoder shrink by a power of two; give the box of the shrunk image that the original covers."""
    height, width = size
    drafted = image.draft(None, (_DRAFT_MARGIN * width, _DRAFT_MARGIN * height))
    return drafted[1] if drafted else None


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Find how to turn a JPEG upright; a damaged EXIF block counts as none."""
    if "exif" not in image.info:
        return None
    try:
        return _TRANSPOSE_BY_ORIENTATION.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except _PILLOW_ERRORS:
        return None


def _gray_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode == _SIXTEEN_BIT:
        return Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.mode in ("L", "RGB"):
        image.load()
        return image
    if image.mode == "P" and image.palette is None:
        msg = "palette is missing"
        raise ValueError(msg)
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _to_8_bits(samples: npt.NDArray[np.uint16]) -> _Pixels:
    """Scale 16-bit samples by the smallest usual depth that holds the largest of them.

    PNG seldom says how many of its 16 bits a device used. Taking all 16 for full scale would turn a 12-bit X-ray black;
    the range actually present would change with every outlier. This keeps black black and a full-range image as it is.
    """
    largest = int(samples.max())
    full_scale = next((1 << bits) - 1 for bits in _SAMPLE_BITS if largest < 1 << bits)
    table = np.minimum(np.rint(np.arange(1 << 16) * (255 / full_scale)), 255).astype(np.uint8)
    pixels: _Pixels = table[samples]
    return pixels


def _check_png(payload: bytes, origin: str, limits: DecodeLimits) -> None:
    """Walk the chunks: the pixel cap first, then their sums, a second frame and the end.

    Pillow stops reading when it has all rows, so it neither sees a missing end nor a wrong sum after that.
    """
    offset, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        header = payload[offset : offset + 8]
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        end = offset + 12 + length
        if end > len(payload):
            detail = f"PNG ends at byte {len(payload)} inside a chunk, expected {end} bytes or more"
            raise CorruptImageError(Reason.TRUNCATED_IMAGE, origin, detail)
        body = memoryview(payload)[offset + 4 : end - 4]
        if zlib.crc32(body) != int.from_bytes(payload[end - 4 : end], "big"):
            raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, f"PNG chunk at byte {offset} has a wrong checksum")
        if offset == len(_PNG_SIGNATURE):
            _check_png_header(kind, body[4:], origin, limits)
        elif kind == b"acTL" and int.from_bytes(body[4:8], "big") > 1:
            raise UnsupportedImageError(Reason.MULTI_FRAME, origin, "PNG is animated, expected one frame")
        offset = end


def _check_png_header(kind: bytes, body: memoryview, origin: str, limits: DecodeLimits) -> None:
    """Check the first chunk: IHDR begins with width and height."""
    if kind != b"IHDR" or len(body) != 13:  # noqa: PLR2004
        raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, "PNG does not begin with an IHDR chunk of 13 bytes")
    width, height = struct.unpack(">II", body[:8])
    _check_pixels(height, width, origin, limits)


def _check_jpeg(payload: bytes, origin: str) -> None:
    """Look for the end marker after the start of the first scan.

    Compressed data never holds the marker by chance (FF is stuffed). A thumbnail in the EXIF block has its own, hence
    the walk over the segments.
    """
    scan = _first_scan(payload)
    if scan is None or payload.rfind(_END_OF_IMAGE, scan) < 0:
        detail = f"JPEG ends at byte {len(payload)} without its end marker"
        raise CorruptImageError(Reason.TRUNCATED_IMAGE, origin, detail)


def _first_scan(payload: bytes) -> int | None:
    """Find the offset of the first start-of-scan marker, or None where the segments lead past the end."""
    offset = 2
    while offset + 4 <= len(payload):
        prefix, marker = payload[offset], payload[offset + 1]
        if prefix != _MARKER_PREFIX or marker == _START_OF_SCAN:
            return offset  # a wrong prefix is damage that Pillow names; the end marker is searched from there
        if marker == _MARKER_PREFIX:
            offset += 1  # a fill byte
        elif marker in _LONE_MARKERS:
            offset += 2
        else:
            offset += 2 + max(2, int.from_bytes(payload[offset + 2 : offset + 4], "big"))
    return None


def _fits_14_bits(high_bytes: Image.Image) -> bool:
    """Tell whether the high bytes are no picture: all but a few of the file's values fit in 14 bits or less."""
    colors = [high_bytes.getchannel(band) for band in high_bytes.getbands() if band != "A"]
    enough = max(1, _PICTURE_SHARE * high_bytes.width * high_bytes.height)
    return not any(sum(color.histogram()[_FULL_SCALE_FROM >> _BYTE :]) >= enough for color in colors)


def _resize_pixels(pixels: _Pixels, size: tuple[int, int]) -> _Pixels:
    if pixels.shape == tuple(size):
        return pixels
    return np.asarray(_resize_image(Image.fromarray(pixels), size))


def _resize_image(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """Resize a Pillow image, or the box of it, to (height, width), as `_resize_pixels` does."""
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _check_pixels(height: int, width: int, origin: str, limits: DecodeLimits) -> None:
    """Refuse an image of more pixels than the limits allow, read from its header."""
    if height * width > limits.max_pixels:
        detail = f"image is {height}x{width}, expected at most {limits.max_pixels} pixels"
        raise UnsupportedImageError(Reason.TOO_MANY_PIXELS, origin, detail)


def _is_flat(pixels: _Pixels) -> bool:
    """Tell whether all pixels are of one gray or colour; the middle row, which hardly ever is, saves a look at all."""
    first = pixels[0, 0]
    return bool((pixels[len(pixels) // 2] == first).all() and (pixels == first).all())


def _blank_rendering(pixels: _Pixels, origin: str) -> UnsupportedImageError:
    """Make the error of an image that is one gray or one colour while the pixels of its file differ."""
    shade = " ".join(map(str, np.atleast_1d(pixels[0, 0])))
    height, width = pixels.shape[:2]
    detail = f"pixels of the file differ, but as {height}x{width} image all are {shade}; expected two grays or colours"
    return UnsupportedImageError(Reason.BLANK_RENDERING, origin, detail)


# --- DICOM ------------------------------------------------------------------------------------------------------------


def _decode_dicom(
    payload: bytes, size: tuple[int, int] | None, origin: str, limits: DecodeLimits
) -> tuple[_Pixels, tuple[int, int]]:
    """Render a DICOM image to gray pixels, resized if ``size`` is given, and give its original size too."""
    rendered = _render_dicom(payload, origin, limits)
    pixels = rendered if size is None else _resize_pixels(rendered, size)
    if _is_flat(pixels) and not _is_flat(rendered):
        raise _blank_rendering(pixels, origin)
    height, width = rendered.shape
    return pixels, (height, width)


def _looks_like_dicom(payload: bytes) -> bool:
    """Tell whether bytes are a DICOM file or a bare little-endian data set."""
    if payload.startswith(_MAGIC, _PREAMBLE_BYTES):
        return True
    first = _element_at(payload, 0)
    if first is None or first[0] >> 16 not in (0x0002, 0x0008):
        return False
    second = _element_at(payload, first[2])
    return second is not None and second[0] > first[0] and second[0] >> 16 <= 0x7FE0  # noqa: PLR2004


def _render_dicom(payload: bytes, origin: str, limits: DecodeLimits) -> _Pixels:
    """Render one single-frame gray image to 8 bit, 0 = black."""
    with _quiet():
        dataset = _read(payload, origin)
        _check_pixel_element(dataset, payload, origin)
        layout = _checked_layout(dataset, origin, limits)
        codes = _stored_codes(dataset, layout, origin, limits)
        stored = _stored_values(layout, 8 * codes.dtype.itemsize)
        with _parsing(origin, "the display parameters"):
            table = _display_table(dataset, layout, stored, codes, origin)
        _check_not_blank(table, codes, stored, _padded(dataset, layout, stored), origin)
    return table[codes]


def _corrupt(origin: str, detail: str) -> CorruptImageError:
    return CorruptImageError(Reason.DICOM_CORRUPT, origin, detail)


def _refuse(reason: Reason, origin: str, detail: str) -> UnsupportedImageError:
    return UnsupportedImageError(reason, origin, detail)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _parsing(origin: str, what: str) -> Iterator[None]:
    """Turn what pydicom raises into an error that quotes nothing: its messages carry the values of elements."""
    try:
        yield
    except _FOREIGN_ERRORS as exc:
        raise _corrupt(origin, f"{what} cannot be read ({type(exc).__name__})") from None


# --- reading ----------------------------------------------------------------------------------------------------------


def _element_at(payload: bytes, offset: int) -> tuple[int, bytes, int] | None:
    """Read one little-endian element: (tag, value, offset of the next), or None where there is no plausible one."""
    if offset + 8 > len(payload):
        return None
    group, element = struct.unpack_from("<HH", payload, offset)
    vr = payload[offset + 4 : offset + 6]
    start = offset + 8
    if vr in _SHORT_VRS:
        (length,) = struct.unpack_from("<H", payload, offset + 6)
    elif vr in _LONG_VRS and start + 4 <= len(payload):
        (length,) = struct.unpack_from("<I", payload, start)
        start += 4
    else:  # implicit VR
        (length,) = struct.unpack_from("<I", payload, offset + 4)
    if length % 2 or start + length > len(payload):
        return None
    return group << 16 | element, payload[start : start + length], start + length


def _declared_syntax(payload: bytes) -> bytes:
    """Find the transfer syntax in the file meta information without pydicom; empty if it is not there."""
    offset = _PREAMBLE_BYTES + len(_MAGIC) if payload.startswith(_MAGIC, _PREAMBLE_BYTES) else 0
    while (element := _element_at(payload, offset)) and element[0] >> 16 == 0x0002:  # noqa: PLR2004
        if element[0] == 0x00020010:  # noqa: PLR2004
            return element[1].rstrip(b"\0 ")
        offset = element[2]
    return b""


def _read(payload: bytes, origin: str) -> FileDataset:
    # pydicom would inflate a deflated data set whole, whatever its size, before anything can be checked.
    if _declared_syntax(payload) == uid.DeflatedExplicitVRLittleEndian.encode():
        raise _bad_syntax(origin, uid.DeflatedExplicitVRLittleEndian)
    with _parsing(origin, "the data set"):
        return pydicom.dcmread(io.BytesIO(payload), force=True)


def _bad_syntax(origin: str, syntax: uid.UID) -> UnsupportedImageError:
    # A UID that is not in the dictionary may be any text, so it is not repeated.
    known = f"{syntax.name} ({syntax})" if syntax in uid.UID_dictionary else "not one of the standard"
    reason = Reason.DICOM_UNSUPPORTED_TRANSFER_SYNTAX
    return _refuse(reason, origin, f"transfer syntax is {known}, which is not decoded here")


def _transfer_syntax(dataset: FileDataset, origin: str) -> uid.UID:
    """Give the transfer syntax; a bare data set has none and is native by its nature."""
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if not syntax:
        implicit, little = dataset.original_encoding
        native = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        return uid.ImplicitVRLittleEndian if implicit else native
    if syntax not in _NATIVE_SYNTAXES and syntax not in _PLUGIN_BY_SYNTAX:
        raise _bad_syntax(origin, uid.UID(syntax))
    return uid.UID(syntax)


# --- checking ---------------------------------------------------------------------------------------------------------


def _checked_layout(dataset: FileDataset, origin: str, limits: DecodeLimits) -> _Layout:
    """Read what describes the pixels, and refuse what is not rendered, before any pixel is decompressed."""
    with _parsing(origin, "the image pixel module"):
        _check_color(dataset, origin)
        frames = int(dataset.get("NumberOfFrames") or 1)
        if frames > 1:
            raise _refuse(Reason.MULTI_FRAME, origin, f"file has {frames} frames, expected 1")
        shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
        layout = _Layout(
            rows=int(dataset.Rows),
            columns=int(dataset.Columns),
            bits_allocated=int(dataset.BitsAllocated),
            bits_stored=int(dataset.BitsStored),
            signed=bool(int(dataset.get("PixelRepresentation") or 0)),
            # In a DX image the two go together (C.8.11.3): one inversion, not two.
            inverted=dataset.PhotometricInterpretation == "MONOCHROME1" or shape == "INVERSE",
            syntax=_transfer_syntax(dataset, origin),
        )
        high_bit = int(dataset.get("HighBit", layout.bits_stored - 1))
    _check_size(layout.rows, layout.columns, origin, limits)
    _check_bits(layout, high_bit, origin)
    return layout


def _check_pixel_element(dataset: FileDataset, payload: bytes, origin: str) -> None:
    if _FLOAT_PIXEL_DATA in dataset or _DOUBLE_FLOAT_PIXEL_DATA in dataset:
        raise _refuse(Reason.DICOM_UNSUPPORTED_PIXELS, origin, "pixels are floating point, expected integers")
    if _PIXEL_DATA in dataset:
        return
    if not len(dataset) or any(tag in payload for tag in _PIXEL_DATA_TAGS):
        # pydicom drops compressed pixels that never reach their delimiter: the file was cut.
        raise _corrupt(origin, "data set ends before its elements do")
    raise _refuse(Reason.DICOM_NO_PIXEL_DATA, origin, "data set has no Pixel Data element")


def _check_color(dataset: FileDataset, origin: str) -> None:
    samples = int(dataset.get("SamplesPerPixel") or 1)
    interpretation = str(dataset.PhotometricInterpretation)
    if samples != 1 or interpretation not in _GRAY:
        known = interpretation if interpretation in _COLORS else "something else"
        detail = f"pixels have {samples} samples, photometric interpretation {known}; expected 1 of MONOCHROME1 or 2"
        raise _refuse(Reason.UNSUPPORTED_COLOR, origin, detail)


def _check_size(rows: int, columns: int, origin: str, limits: DecodeLimits) -> None:
    if rows < 1 or columns < 1:
        raise _corrupt(origin, f"image is {rows}x{columns}, expected 1x1 or more")
    if rows * columns > limits.max_pixels:
        detail = f"image is {rows}x{columns}, expected at most {limits.max_pixels} pixels"
        raise _refuse(Reason.TOO_MANY_PIXELS, origin, detail)


def _check_bits(layout: _Layout, high_bit: int, origin: str) -> None:
    if layout.bits_allocated not in (_BYTE, _WORD) or not 1 <= layout.bits_stored <= layout.bits_allocated:
        detail = f"pixels have {layout.bits_stored} of {layout.bits_allocated} bits, expected up to 8 of 8 or 16 of 16"
        raise _refuse(Reason.DICOM_UNSUPPORTED_PIXELS, origin, detail)
    if high_bit != layout.bits_stored - 1:
        detail = f"high bit is {high_bit}, expected {layout.bits_stored - 1} for {layout.bits_stored} bits stored"
        raise _refuse(Reason.DICOM_UNSUPPORTED_PIXELS, origin, detail)
    if layout.syntax == uid.JPEGExtended12Bit and layout.bits_stored > _BYTE:
        raise _bad_syntax(origin, layout.syntax)


# --- pixels -----------------------------------------------------------------------------------------------------------


def _stored_codes(dataset: FileDataset, layout: _Layout, origin: str, limits: DecodeLimits) -> _Codes:
    """Give the pixels as the unsigned words of the file, shape (rows, columns): bits above the stored ones included."""
    shape = layout.rows, layout.columns
    if layout.syntax in _NATIVE_SYNTAXES:
        return _native_codes(dataset, layout, origin).reshape(shape)
    with _parsing(origin, "the encapsulated pixel data"):
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    _check_codestream(frame, layout, origin, limits)
    try:
        pixels = _decompressed(dataset, frame, layout)
    except _FOREIGN_ERRORS as exc:
        detail = f"pixels do not decode as {layout.syntax.name} ({type(exc).__name__})"
        raise _corrupt(origin, detail) from exc
    if pixels.shape != shape:
        raise _corrupt(origin, f"decoded pixels have shape {pixels.shape}, expected {shape}")
    codes: _Codes = pixels.view(f"u{pixels.dtype.itemsize}")
    return codes


def _decompressed(dataset: FileDataset, frame: bytes, layout: _Layout) -> npt.NDArray[Any]:
    plugin = _PLUGIN_BY_SYNTAX[layout.syntax]
    if plugin is None:  # lossless, or decoded to the same values by every library
        return decode_frame(frame, str(layout.syntax)).pixels.astype(f"u{layout.bits_allocated // 8}")
    pixels: npt.NDArray[Any]
    pixels, _ = get_decoder(layout.syntax).as_array(dataset, raw=True, index=0, decoding_plugin=plugin)
    return pixels


def _native_codes(dataset: FileDataset, layout: _Layout, origin: str) -> _Codes:
    with _parsing(origin, "the pixel data"):
        element = dataset[_PIXEL_DATA]
        data = bytes(element.value)
    if element.is_undefined_length:
        raise _corrupt(origin, f"pixel data is compressed, but the transfer syntax is {layout.syntax.name}")
    count, width = layout.rows * layout.columns, layout.bits_allocated // 8
    if len(data) < count * width:
        raise _corrupt(origin, f"pixel data has {len(data)} bytes, expected {count * width}")
    big_endian = layout.syntax == uid.ExplicitVRBigEndian
    if big_endian and width == 1 and element.VR == "OW":
        data = np.frombuffer(data[: len(data) // 2 * 2], "<u2").byteswap().tobytes()  # 8-bit pixels, two to a word
    codes = np.frombuffer(data, f"{'>' if big_endian else '<'}u{width}", count=count)
    native: _Codes = codes.astype(codes.dtype.newbyteorder("="), copy=False)
    return native


def _check_codestream(frame: bytes, layout: _Layout, origin: str, limits: DecodeLimits) -> None:
    """Compare the compressed stream's own size with Rows and Columns: codecs obey the first, the cap saw the others."""
    if layout.syntax == uid.RLELossless:
        return  # RLE has no size of its own
    size = _jpeg2000_size(frame) if layout.syntax in (uid.JPEG2000, uid.JPEG2000Lossless) else _jpeg_size(frame)
    if size is None:
        raise _corrupt(origin, f"compressed pixels have no {layout.syntax.name} header")
    _check_size(*size, origin, limits)
    if size != (layout.rows, layout.columns):
        detail = f"compressed pixels are {size[0]}x{size[1]}, expected {layout.rows}x{layout.columns} (Rows x Columns)"
        raise _corrupt(origin, detail)


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    """Read (height, width) from the frame header of a JPEG, lossless JPEG or JPEG-LS stream."""
    offset = 2
    while stream.startswith(b"\xff\xd8") and offset + 9 <= len(stream) and stream[offset] == 0xFF:  # noqa: PLR2004
        marker = stream[offset + 1]
        if marker == 0xFF:  # noqa: PLR2004 (fill byte)
            offset += 1
        elif marker in _JPEG_FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", stream, offset + 5)
            return height, width
        else:
            offset += 2 + max(2, int.from_bytes(stream[offset + 2 : offset + 4], "big"))
    return None


def _jpeg2000_size(stream: bytes) -> tuple[int, int] | None:
    """Read (height, width) from the SIZ segment of a JPEG 2000 codestream."""
    start = stream.find(
        b"\xff\x4f\xff\x51"
    )  # start of codestream and SIZ; DICOM has no JP2 boxes before, some files do
    if start < 0 or start + 24 > len(stream):
        return None
    right, bottom, left, top = struct.unpack_from(">IIII", stream, start + 8)
    return bottom - top, right - left


# --- display ----------------------------------------------------------------------------------------------------------


def _display_table(
    dataset: FileDataset, layout: _Layout, stored: npt.NDArray[np.int64], codes: _Codes, origin: str
) -> npt.NDArray[np.uint8]:
    """Work out the 8-bit gray of every stored word: shape (256,) or (65536,)."""
    values = _modality(dataset, layout, stored, origin)
    shown = _voi(dataset, layout, values, origin)
    if shown is None:
        shown = _full_range(values, _present(dataset, stored, codes))
    if layout.inverted:
        shown = 1 - shown
    return np.rint(shown * 255).astype(np.uint8)


def _stored_values(layout: _Layout, word_bits: int) -> npt.NDArray[np.int64]:
    """Give the value of every word: unused high bits dropped (they may hold overlays), the sign extended."""
    values = np.arange(1 << word_bits) & ((1 << layout.bits_stored) - 1)
    if layout.signed:
        values[values >= 1 << (layout.bits_stored - 1)] -= 1 << layout.bits_stored
    return values


def _modality(dataset: FileDataset, layout: _Layout, stored: npt.NDArray[np.int64], origin: str) -> _Values:
    """Bring stored values to the modality's units (C.11.1): by a LUT, or by slope and intercept."""
    if sequence := dataset.get("ModalityLUTSequence"):
        table, first, bits = _lookup_table(sequence[0], layout)
        if not 1 <= bits <= _WORD:
            msg = "the LUT has not the depth that its descriptor says"
            raise ValueError(msg)
        return _looked_up(table, first, stored)
    slope, intercept = _number(dataset, "RescaleSlope", 1.0), _number(dataset, "RescaleIntercept", 0.0)
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise _corrupt(origin, f"rescale slope is {slope}, intercept {intercept}; expected a finite slope other than 0")
    rescaled: _Values = stored * slope + intercept
    return rescaled


def _voi(dataset: FileDataset, layout: _Layout, values: _Values, origin: str) -> _Values | None:
    """Bring modality values to 0..1 by the first VOI LUT, else the first window (C.11.2); None without either."""
    if sequence := dataset.get("VOILUTSequence"):
        table, first, bits = _lookup_table(sequence[0], layout)
        _check_lut_depth(table, bits, origin)
        return np.clip(_looked_up(table, first, values) / ((1 << bits) - 1), 0, 1)
    center, width = _number(dataset, "WindowCenter", None), _number(dataset, "WindowWidth", None)
    if center is None or width is None:
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    smallest = 1 if function == "LINEAR" else 0
    if not np.isfinite([center, width]).all() or width < smallest or width == 0:
        raise _corrupt(origin, f"window is {center} wide {width}; expected a finite one of width 1 or more")
    if function not in _WINDOWS:
        raise _corrupt(origin, "VOI LUT Function is none of LINEAR, LINEAR_EXACT, SIGMOID")
    return _WINDOWS[function](values, center, width)


def _check_lut_depth(table: _Values, bits: int, origin: str) -> None:
    """Refuse a VOI LUT whose entries take other bits than its descriptor says: 12 of 16 would make the picture black.

    One entry in a hundred may stand out above the others, and says nothing of their bits. Two more pass: a largest
    entry of 2 ** bits, one too high, is clipped; zeros alone do not tell how many bits.
    """
    usual = len(table) - 1 - len(table) // _OUTLIERS
    largest, typical = int(table.max()), int(np.partition(table, usual)[usual])
    too_dark = largest > 0 and typical.bit_length() < bits
    too_bright = (largest - 1).bit_length() > bits
    if too_dark or too_bright or not 1 <= bits <= _WORD:
        shown = typical if too_dark else largest
        detail = (
            f"largest entry of the VOI LUT is {shown}, which takes {shown.bit_length()} bits, "
            f"but its descriptor says {bits}; expected the same"
        )
        raise _refuse(Reason.DICOM_UNSUPPORTED_LUT, origin, detail)


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
    exponent: _Values = np.clip(-4 * (values - center) / width, -50, 50)
    return 1 / (1 + np.exp(exponent))


_WINDOWS = {"LINEAR": _linear, "LINEAR_EXACT": _linear_exact, "SIGMOID": _sigmoid}


def _full_range(values: _Values, present: npt.NDArray[np.bool_]) -> _Values:
    """Bring the smallest present value to 0 and the largest to 1."""
    lowest, highest = values[present].min(), values[present].max()
    shown: _Values = np.clip((values - lowest) / ((highest - lowest) or 1.0), 0, 1)
    return shown


def _present(dataset: FileDataset, stored: npt.NDArray[np.int64], codes: _Codes) -> npt.NDArray[np.bool_]:
    """Mark the words that occur in the image, without those of the Pixel Padding (C.7.5.1.1.2) if others remain."""
    present = np.zeros(stored.shape, dtype=bool)
    present[codes] = True
    ends = _padding_ends(dataset)
    if ends is None:
        return present
    unpadded = present & ~((stored >= ends[0]) & (stored <= ends[1]))
    return unpadded if unpadded.any() else present


def _padding_ends(dataset: FileDataset) -> tuple[int, int] | None:
    """Give the lowest and the highest value of the Pixel Padding, or None without one."""
    padding = dataset.get("PixelPaddingValue")
    if padding is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    lowest, highest = sorted((int(padding), int(padding if limit is None else limit)))
    return lowest, highest


def _padded(dataset: FileDataset, layout: _Layout, stored: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Mark the words of the Pixel Padding, to leave them out of what decides whether a picture is blank.

    Where its elements do not parse there is none: with a window nothing else needs them. Values that are written in the
    other sign's VR are read with the sign of the pixels.
    """
    try:
        ends = np.array(_padding_ends(dataset) or (), np.int64).astype(np.int16 if layout.signed else np.uint16)
    except _FOREIGN_ERRORS:
        ends = np.array(())
    if not ends.size:
        return np.zeros(stored.shape, dtype=bool)
    return (stored >= ends.min()) & (stored <= ends.max())


def _check_not_blank(
    table: npt.NDArray[np.uint8],
    codes: _Codes,
    stored: npt.NDArray[np.int64],
    padded: npt.NDArray[np.bool_],
    origin: str,
) -> None:
    """Refuse stored values that differ but are all shown as one gray, Pixel Padding left out: its gray is another.

    Nearly every picture shows two grays in a few thousand of its pixels, so only the others are looked at in full.
    """
    rows, columns = (max(1, side // _SAMPLES_A_SIDE) for side in codes.shape)
    sample = codes[::rows, ::columns]
    if _differ(table[sample[~padded[sample]]]):
        return
    present = np.zeros(stored.shape, dtype=bool)
    present[codes] = True
    unpadded = present & ~padded
    words = unpadded if unpadded.any() else present
    if _differ(stored[words]) and not _differ(table[words]):
        values, shade = stored[words], table[words][0]
        detail = (
            f"stored values {values.min()} to {values.max()} are all shown as gray {shade} by their window or LUTs; "
            "expected two grays or more"
        )
        raise _refuse(Reason.BLANK_RENDERING, origin, detail)


def _differ(values: npt.NDArray[Any]) -> bool:
    return bool(values.size) and bool(values.min() < values.max())


def _number(dataset: Dataset, keyword: str, default: Any) -> Any:
    """Give the first of a decimal element's values as float, or the default where it is absent or empty."""
    value = dataset.get(keyword)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if len(value) else None
    return default if value is None or value == "" else float(value)


def _lookup_table(item: Dataset, layout: _Layout) -> tuple[_Values, int, int]:
    """Read a LUT item: (its entries, the input value of the first, bits per entry)."""
    length, first, bits = (int(number) for number in item.LUTDescriptor)
    count = length or 1 << 16  # 0 stands for 65,536, which 16 bits cannot say
    data = item.LUTData
    if isinstance(data, bytes):
        packed = len(data) < 2 * count  # 8-bit entries may be packed two to a word
        order = ">" if layout.syntax == uid.ExplicitVRBigEndian else "<"
        entries = np.frombuffer(data, np.uint8 if packed else f"{order}u2", count=count)
    else:
        entries = np.atleast_1d(np.asarray(data, dtype=np.int64))[:count] & 0xFFFF
    if len(entries) != count:
        msg = "the LUT has not the length that its descriptor says"
        raise ValueError(msg)
    return entries.astype(np.float64), first, bits


def _looked_up(table: _Values, first: int, values: npt.NDArray[Any]) -> _Values:
    """Values below the first entry take that, values above the last take the last (C.11.1.1, C.11.2.1.1)."""
    entries: _Values = table[np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.intp)]
    return entries
