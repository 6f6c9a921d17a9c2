"""Image files to image rows: PNG, JPEG and DICOM, the same code in training and in serving.

One direction: ``payload -> checks -> pixels at the wanted size -> ImageRow``. Everything a sender can get wrong ends as
a `RecordError` with its own reason; whatever else escapes is this module's own fault, for the caller's record boundary
to count.

What is done to pixels, and what `RENDERING_VERSION` therefore stands for
    * Gray stays one channel; colour becomes BGR; a colour file whose pixels are all gray becomes one channel.
    * Palettes are expanded, 1-bit becomes 0 / 255, alpha is dropped, not blended: no background is given.
    * 16-bit gray PNG: the smallest of 8, 10, 12, 14, 16 bits that holds the largest value is taken as full scale.
    * PNG with several channels of 16 bits: the high bytes are taken; colours that use 14 bits or fewer are refused.
    * The EXIF orientation of a JPEG is applied. A damaged EXIF block is ignored, as viewers do: the pixels are whole.
    * DICOM is rendered as `sparkdl.dicom` describes.
    * Resizing is bilinear with antialiasing, each channel by itself, to the size wanted: the aspect ratio is not kept.
    * A JPEG much larger than wanted is first shrunk by a power of two inside its decoder (DCT scaling), never below
      twice the wanted size. Against a full decode that moves a pixel by 0.1-0.3 of 255 in the mean, so decode with
      the same ``size`` wherever results are compared.
    * What is then one gray or one colour is refused, unless the pixels of the file are all the same.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from schemas.errors import ContractError, CorruptImageError, Reason, UnsupportedImageError
from sparkdl.bitdepth import fits_14_bits
from sparkdl.dicom import looks_like_dicom, render_dicom
from sparkdl.imagerow import ImageRow, row_from_array

# The largest detector in common use gives 3072 x 3072 x 2 bytes = 18.9 MB uncompressed; its DICOM header fits as well.
MAX_PAYLOAD_BYTES = 20_000_000

# Five times that detector (9.4 M) and three times the largest CR plate (15 M). A decoded image then costs at most
# 150 MB (colour), which a worker survives; a PNG of 20 MB could otherwise ask for 20 GB.
MAX_PIXELS = 50_000_000

# Changes with any change that can move a pixel of the result. It is stored with each model and each prediction, so a
# model is never silently fed images rendered in another way than those it was trained on.
RENDERING_VERSION = 1

PNG, JPEG, DICOM = "image/png", "image/jpeg", "application/dicom"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_BITS_AT, _COLOR_TYPE_AT = 24, 25  # in the payload, for the header chunk is the first
_SIXTEEN_BITS, _SEVERAL_CHANNELS = 16, frozenset({2, 4, 6})  # colour types: RGB, gray with alpha, RGB with alpha
_STRUCTURED_MODE = "application/cloudevents"
_MARKER_PREFIX, _START_OF_SCAN, _END_OF_IMAGE = 0xFF, 0xDA, b"\xff\xd9"
_LONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})  # those without a length
_KNOWN_BUT_UNREAD = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"RIFF": "a WebP or other RIFF file",
    b"%PDF": "a PDF",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 codestream",
    b"PK": "a ZIP archive",
    b"\x1f\x8b": "gzip data",
    b"{": "JSON",
    b"<": "XML or HTML",
}
_UNDECLARED = ("", "application/octet-stream")
_ALIASES = {"image/jpg": JPEG}
_NAMED_IN_ERRORS = frozenset({PNG, JPEG, DICOM, "image/gif", "image/tiff", "application/pdf", "application/json"})

_SAMPLE_BITS = (8, 10, 12, 14, 16)  # the depths of X-ray devices; PNG stores all above 8 as 16 without saying which
_GRAY_NDIM = 2
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


@dataclass(frozen=True)
class DecodeLimits:
    """What one record may cost.

    Parameters
    ----------
    max_payload_bytes : int
        Largest encoded file, in bytes.
    max_pixels : int
        Largest height x width, read from the header before anything is decompressed.
    """

    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    max_pixels: int = MAX_PIXELS


_DEFAULT_LIMITS = DecodeLimits()


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """One decoded file.

    Parameters
    ----------
    image : ImageRow
        The pixels, at the size asked for.
    media_type : str
        What the bytes were: ``"image/png"``, ``"image/jpeg"`` or ``"application/dicom"``.
    original_height, original_width : int
        Size in pixels before the resize, upright (after a JPEG's EXIF orientation).
    """

    image: ImageRow
    media_type: str
    original_height: int
    original_width: int


def sniff_media_type(payload: bytes) -> str | None:
    """Tell the format from the bytes.

    Parameters
    ----------
    payload : bytes
        Encoded file.

    Returns
    -------
    str or None
        ``"image/png"``, ``"image/jpeg"``, ``"application/dicom"`` (with or without its 128-byte preamble), or None.
    """
    if payload.startswith(_PNG_SIGNATURE):
        return PNG
    if payload.startswith(_JPEG_SIGNATURE):
        return JPEG
    return DICOM if looks_like_dicom(payload) else None


def decode_image(
    payload: bytes | None,
    *,
    origin: str,
    content_type: str | None = None,
    size: tuple[int, int] | None = None,
    limits: DecodeLimits = _DEFAULT_LIMITS,
) -> DecodedImage:
    """Decode one PNG, JPEG or DICOM file into an image row.

    Parameters
    ----------
    payload : bytes or None
        Encoded file; None is Kafka's tombstone.
    origin : str
        Where it came from, for tracing: ``"xray.images-3@1024"`` (topic-partition@offset) or a path.
    content_type : str, optional
        The declared media type. Parameters and case are ignored; None, ``""`` and ``application/octet-stream`` declare
        nothing.
    size : tuple of int, optional
        (height, width) in pixels to resize to; the aspect ratio is not kept. None keeps the original size.
    limits : DecodeLimits
        What one record may cost.

    Returns
    -------
    DecodedImage
        Its image has 1 channel for a gray file, else 3 in the order BGR.

    Raises
    ------
    ContractError
        ``TOMBSTONE``, ``EMPTY_PAYLOAD``, ``PAYLOAD_TOO_LARGE``, ``STRUCTURED_MODE``, ``CONTENT_TYPE_MISMATCH``; checked
        in this order, the unknown format before the mismatch.
    UnsupportedImageError
        ``UNSUPPORTED_FORMAT``, ``UNSUPPORTED_COLOR``, ``UNSUPPORTED_BIT_DEPTH`` (a PNG of several 16-bit channels whose
        colours use 14 bits or fewer), ``MULTI_FRAME``, ``TOO_MANY_PIXELS``, those of DICOM, and ``BLANK_RENDERING``
        (the file's pixels differ, but the image would be one gray or one colour).
    CorruptImageError
        ``TRUNCATED_IMAGE`` (PNG and JPEG whose end is missing), ``CORRUPT_IMAGE``, ``DICOM_CORRUPT``.

    Notes
    -----
    Damage inside a JPEG's compressed data cannot always be told: the format has no checksum. PNG has one per chunk, and
    it is checked; only an encoder that writes too few rows and then ends properly goes unseen (they are black).

    References
    ----------
    Spark ``ImageSchema``; PNG (ISO/IEC 15948); JPEG (ITU-T T.81); `sparkdl.dicom` for DICOM.
    """
    payload = _checked_payload(payload, content_type, origin, limits)
    media_type = _agreed_media_type(payload, content_type, origin)
    if media_type == DICOM:
        pixels, (height, width) = _decode_dicom(payload, size, origin, limits)
    else:
        pixels, (height, width) = _decode_raster(payload, media_type, size, origin, limits)
    return DecodedImage(row_from_array(_gray_if_gray(pixels), origin=origin), media_type, height, width)


def resize_pixels(pixels: _Pixels, size: tuple[int, int]) -> _Pixels:
    """Resize by bilinear interpolation with antialiasing, each channel by itself.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 of shape (height, width) or (height, width, 1 | 3 | 4), any channel order.
    size : tuple of int
        (height, width) wanted, in pixels.

    Returns
    -------
    numpy.ndarray
        uint8 of the size wanted, with the dimensions and channels of ``pixels``; ``pixels`` itself if it has that size.

    Raises
    ------
    ValueError
        A side of ``size`` is below 1 (a mistake of the program, not of a record).
    """
    if min(size) < 1:
        msg = f"size is {size}, expected (height, width) of 1 or more pixels"
        raise ValueError(msg)
    if pixels.shape[:2] == tuple(size):
        return pixels
    image = _image_of(pixels)
    return np.asarray(_resized(image, size)).reshape(*size, *pixels.shape[2:])


def _image_of(pixels: _Pixels) -> Image.Image:
    """Wrap pixels for Pillow in a mode that leaves every channel alone (RGBA would weigh the others by alpha)."""
    height, width = pixels.shape[:2]
    mode = {1: "L", 3: "RGB", 4: "RGBX"}[pixels.shape[2] if pixels.ndim > _GRAY_NDIM else 1]
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def _resized(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _gray_if_gray(pixels: _Pixels) -> _Pixels:
    """Keep one channel where all are equal: many public X-ray files are gray pictures saved as colour."""
    if pixels.ndim == _GRAY_NDIM:
        return pixels
    blue, green, red = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return blue if np.array_equal(blue, green) and np.array_equal(green, red) else pixels


def _checked_payload(payload: bytes | None, content_type: str | None, origin: str, limits: DecodeLimits) -> bytes:
    """Check what needs no look at the bytes themselves."""
    if payload is None:
        raise ContractError(Reason.TOMBSTONE, origin, "value is null, expected an image file")
    if not payload:
        raise ContractError(Reason.EMPTY_PAYLOAD, origin, "value has 0 bytes, expected an image file")
    if len(payload) > limits.max_payload_bytes:
        detail = f"value has {len(payload)} bytes, expected at most {limits.max_payload_bytes}"
        raise ContractError(Reason.PAYLOAD_TOO_LARGE, origin, detail)
    if (content_type or "").strip().lower().startswith(_STRUCTURED_MODE):
        detail = "content-type announces a structured CloudEvent, expected binary mode (the value is the image file)"
        raise ContractError(Reason.STRUCTURED_MODE, origin, detail)
    return payload


def _agreed_media_type(payload: bytes, content_type: str | None, origin: str) -> str:
    found = sniff_media_type(payload)
    if found is None:
        # Only names from a closed set: the payload's own bytes may be text about a patient.
        name = next(
            (name for magic, name in _KNOWN_BUT_UNREAD.items() if payload.startswith(magic)), "in no known format"
        )
        detail = f"bytes are {name}, expected a PNG, JPEG or DICOM file"
        raise UnsupportedImageError(Reason.UNSUPPORTED_FORMAT, origin, detail)
    declared = (content_type or "").partition(";")[0].strip().lower()
    declared = _ALIASES.get(declared, declared)
    if declared not in (*_UNDECLARED, found):
        # Only names from a closed set, as above: a header is the sender's own text.
        named = repr(declared) if declared in _NAMED_IN_ERRORS else "something else"
        detail = f"content-type is {named}, but the bytes are {found}"
        raise ContractError(Reason.CONTENT_TYPE_MISMATCH, origin, detail)
    return found


def _check_pixels(height: int, width: int, origin: str, limits: DecodeLimits) -> None:
    if height * width > limits.max_pixels:
        detail = f"image is {height}x{width}, expected at most {limits.max_pixels} pixels"
        raise UnsupportedImageError(Reason.TOO_MANY_PIXELS, origin, detail)


def _decode_dicom(
    payload: bytes, size: tuple[int, int] | None, origin: str, limits: DecodeLimits
) -> tuple[_Pixels, tuple[int, int]]:
    """Render a DICOM image to gray pixels, resized if ``size`` is given, and give its original size too."""
    rendered = render_dicom(payload, origin=origin, limits=limits)
    pixels = rendered if size is None else resize_pixels(rendered, size)
    if _is_flat(pixels) and not _is_flat(rendered):  # what is flat before the resize `render_dicom` has judged
        raise _blank(pixels, origin)
    height, width = rendered.shape
    return pixels, (height, width)


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
        raise _blank(pixels, origin)
    return (pixels if pixels.ndim == _GRAY_NDIM else pixels[..., ::-1]), original


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


def _is_flat(pixels: _Pixels) -> bool:
    """Tell whether all pixels are of one gray or colour; the middle row, which hardly ever is, saves a look at all."""
    first = pixels[0, 0]
    return bool((pixels[len(pixels) // 2] == first).all() and (pixels == first).all())


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


def _blank(pixels: _Pixels, origin: str) -> UnsupportedImageError:
    shade = " ".join(map(str, np.atleast_1d(pixels[0, 0])))
    height, width = pixels.shape[:2]
    detail = f"pixels of the file differ, but as {height}x{width} image all are {shade}; expected two grays or colours"
    return UnsupportedImageError(Reason.BLANK_RENDERING, origin, detail)


def _upright_png(image: Image.Image, size: tuple[int, int] | None) -> tuple[Image.Image, tuple[int, int]]:
    """Decode to gray or RGB at ``size``, and give the original size too."""
    decoded = _gray_or_rgb(image)
    return (_resized(decoded, size) if size else decoded), (image.height, image.width)


def _upright_jpeg(image: Image.Image, size: tuple[int, int] | None) -> tuple[Image.Image, tuple[int, int]]:
    """Like `_upright_png`, shrunk inside the decoder and turned as the EXIF block says."""
    turn = _orientation(image)
    if turn is not None:
        # No draft: rotated files are rare, and the draft's box would have to be rotated with them.
        upright = _gray_or_rgb(image).transpose(turn)
        return (_resized(upright, size) if size else upright), (upright.height, upright.width)
    original = image.height, image.width
    box = _draft(image, size) if size else None
    decoded = _gray_or_rgb(image)
    return (_resized(decoded, size, box) if size else decoded), original


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
