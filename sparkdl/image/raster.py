"""PNG and JPEG files to gray or BGR pixels, with the checks that Pillow does not make."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from schemas.errors import CorruptImageError, Reason, UnsupportedImageError
from sparkdl.image.bitdepth import fits_14_bits
from sparkdl.image.limits import PNG, DecodeLimits
from sparkdl.image.pixels import GRAY_NDIM, PILLOW_ERRORS, blank_rendering, check_pixels, is_flat, resize_image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

JPEG_SIGNATURE = b"\xff\xd8\xff"

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

_Pixels = npt.NDArray[np.uint8]


def decode_raster(
    payload: bytes, media_type: str, size: tuple[int, int] | None, origin: str, limits: DecodeLimits
) -> tuple[_Pixels, tuple[int, int]]:
    """Decode a PNG or JPEG to gray or BGR pixels, resized if ``size`` is given, and give its original size too."""
    if media_type == PNG:
        _check_png(payload, origin, limits)
    else:
        _check_jpeg(payload, origin)
    with _pillow_border(origin), Image.open(io.BytesIO(payload), formats=("PNG", "JPEG")) as image:
        check_pixels(image.height, image.width, origin, limits)
        _check_layout(image, origin)
        decoded, original = _upright_png(image, size) if media_type == PNG else _upright_jpeg(image, size)
        pixels = np.asarray(decoded)
        if media_type == PNG and payload[_BITS_AT] == _SIXTEEN_BITS and payload[_COLOR_TYPE_AT] in _SEVERAL_CHANNELS:
            _check_high_bytes(image, origin)
    if is_flat(pixels) and _differs_inside(payload, origin):
        raise blank_rendering(pixels, origin)
    return (pixels if pixels.ndim == GRAY_NDIM else pixels[..., ::-1]), original


def _check_high_bytes(image: Image.Image, origin: str) -> None:
    """Refuse a 16-bit PNG of several channels whose high bytes, all that Pillow keeps, are not its picture.

    They are where the colours use all 16 bits. A 12-bit picture is black in them. Where they are all the same, there
    may be one in the low bytes.
    """
    if fits_14_bits(image) or not _differs(image.convert("RGB")):
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
    return (resize_image(decoded, size) if size else decoded), (image.height, image.width)


def _upright_jpeg(image: Image.Image, size: tuple[int, int] | None) -> tuple[Image.Image, tuple[int, int]]:
    """Like `_upright_png`, shrunk inside the decoder and turned as the EXIF block says."""
    turn = _orientation(image)
    if turn is not None:
        # No draft: rotated files are rare, and the draft's box would have to be rotated with them.
        upright = _gray_or_rgb(image).transpose(turn)
        return (resize_image(upright, size) if size else upright), (upright.height, upright.width)
    original = image.height, image.width
    box = _draft(image, size) if size else None
    decoded = _gray_or_rgb(image)
    return (resize_image(decoded, size, box) if size else decoded), original


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
    except PILLOW_ERRORS as exc:
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
    except PILLOW_ERRORS:
        return None


def _gray_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode == _SIXTEEN_BIT:
        return Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.mode in ("L", "RGB"):
        image.load()
        return image
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
    offset, kind = len(PNG_SIGNATURE), b""
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
        if offset == len(PNG_SIGNATURE):
            _check_png_header(kind, body[4:], origin, limits)
        elif kind == b"acTL" and int.from_bytes(body[4:8], "big") > 1:
            raise UnsupportedImageError(Reason.MULTI_FRAME, origin, "PNG is animated, expected one frame")
        offset = end


def _check_png_header(kind: bytes, body: memoryview, origin: str, limits: DecodeLimits) -> None:
    """Check the first chunk: IHDR begins with width and height."""
    if kind != b"IHDR" or len(body) != 13:  # noqa: PLR2004
        raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, "PNG does not begin with an IHDR chunk of 13 bytes")
    width, height = struct.unpack(">II", body[:8])
    check_pixels(height, width, origin, limits)


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
