"""Image files to image rows: PNG, JPEG and DICOM, the same code in training and in serving.

One direction: ``payload -> checks -> pixels at the wanted size -> ImageRow``. Everything a sender can get wrong ends as
a `RecordError` with its own reason; whatever else escapes is this module's own fault, for the caller's record boundary
to count.

What is done to pixels, and what `RENDERING_VERSION` therefore stands for
    * Gray stays one channel; colour becomes BGR; a colour file whose pixels are all gray becomes one channel.
    * Palettes are expanded, 1-bit becomes 0 / 255, alpha is dropped, not blended: no background is given.
    * PNG of 16 bits, gray and colour: black is 0, white is what sBIT says, or what 99 % of the samples do not exceed;
      `sparkdl.image.raster` has the rule.
    * The EXIF orientation of a PNG or JPEG is applied. A damaged EXIF block is ignored, as viewers do: the pixels are
      whole. XMP is not asked.
    * Of a JPEG with several pictures the first is taken.
    * DICOM is rendered as `sparkdl.image.dicom` describes.
    * Resizing is bilinear with antialiasing, each channel by itself, to the size wanted: the aspect ratio is not kept.
    * A JPEG much larger than wanted is first shrunk by a power of two inside its decoder (DCT scaling), never below
      twice the wanted size. Against a full decode that moves a pixel by 0.1-0.3 of 255 in the mean, so decode with
      the same ``size`` wherever results are compared.
    * What is then one gray or one colour is refused, unless the pixels of the file are all the same.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.errors import ContractError, Reason, UnsupportedImageError
from sparkdl.image import version1
from sparkdl.image.dicom import render_dicom
from sparkdl.image.dicomfile import looks_like_dicom
from sparkdl.image.limits import DICOM, JPEG, PNG, RENDERING_VERSION, RENDERING_VERSIONS, DecodeLimits
from sparkdl.image.pixels import blank_rendering, is_flat, resize_pixels
from sparkdl.image.raster import JPEG_SIGNATURE, PNG_SIGNATURE, decode_raster
from sparkdl.image.row import ImageRow, row_from_array
from sparkdl.image.steps import Notice, Step

_STRUCTURED_MODE = "application/cloudevents"

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

_Pixels = npt.NDArray[np.uint8]

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
        Size in pixels before the resize, upright (after an EXIF orientation).
    steps : tuple of Step
        What was done to the pixels, in order, and what in the file decided it.
    """

    image: ImageRow
    media_type: str
    original_height: int
    original_width: int
    steps: tuple[Step, ...] = ()


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
    if payload.startswith(PNG_SIGNATURE):
        return PNG
    if payload.startswith(JPEG_SIGNATURE):
        return JPEG
    return DICOM if looks_like_dicom(payload) else None


def find_media_type(payload: bytes | None, *, origin: str, limits: DecodeLimits = _DEFAULT_LIMITS) -> str:
    """Tell the format from the bytes, and refuse what is of none that is read.

    Parameters
    ----------
    payload : bytes or None
        Encoded file.
    origin : str
        Where it came from, for tracing.
    limits : DecodeLimits
        Its ``max_payload_bytes`` counts.

    Returns
    -------
    str
        As `sniff_media_type` gives it.

    Raises
    ------
    ContractError, UnsupportedImageError
        ``TOMBSTONE``, ``EMPTY_PAYLOAD``, ``PAYLOAD_TOO_LARGE``, ``UNSUPPORTED_FORMAT``, as `decode_image`.
    """
    payload = _checked_payload(payload, None, origin, limits)
    return _agreed_media_type(payload, sniff_media_type(payload), None, origin)


def decode_image(
    payload: bytes | None,
    *,
    origin: str,
    content_type: str | None = None,
    size: tuple[int, int] | None = None,
    limits: DecodeLimits = _DEFAULT_LIMITS,
    rendering: int = RENDERING_VERSION,
    notice: Notice | None = None,
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
    rendering : int
        Rendering version, one of `RENDERING_VERSIONS`: that on the card of the model which is to see the image.
    notice : callable, optional
        Told of each step and of the pixels after it, for people who want to see them; by version 1 of nothing.

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
        ``UNSUPPORTED_FORMAT``, ``UNSUPPORTED_COLOR``, ``UNSUPPORTED_BIT_DEPTH`` (a JPEG of other than 8 bits),
        ``MULTI_FRAME``, ``TOO_MANY_PIXELS``, those of DICOM, and ``BLANK_RENDERING`` (the file's pixels differ, but the
        image would be one gray or one colour).
    CorruptImageError
        ``TRUNCATED_IMAGE`` (PNG and JPEG whose end is missing), ``CORRUPT_IMAGE``, ``DICOM_CORRUPT``.
    ValueError
        There is no such rendering version (a mistake of the program, not of a record).

    Notes
    -----
    Damage inside a JPEG's compressed data cannot always be told: the format has no checksum. PNG has one per chunk, and
    it is checked; only an encoder that writes too few rows and then ends properly goes unseen (they are black).

    References
    ----------
    Spark ``ImageSchema``; PNG (ISO/IEC 15948); JPEG (ITU-T T.81); `sparkdl.image.dicom` for DICOM.
    """
    if rendering not in RENDERING_VERSIONS:
        msg = f"rendering version is {rendering}, expected one of {', '.join(map(str, RENDERING_VERSIONS))}"
        raise ValueError(msg)
    payload = _checked_payload(payload, content_type, origin, limits)
    old = rendering != RENDERING_VERSION
    found = version1.sniff_media_type(payload) if old else sniff_media_type(payload)
    media_type = _agreed_media_type(payload, found, content_type, origin)
    if old:
        pixels, (height, width) = version1.decode_pixels(payload, media_type, size, origin, limits)
        return DecodedImage(row_from_array(pixels, origin=origin), media_type, height, width)
    if media_type == DICOM:
        pixels, (height, width), steps = _decode_dicom(payload, size, origin, limits, notice)
    else:
        pixels, (height, width), steps = decode_raster(payload, media_type, size, origin, limits, notice)
    return DecodedImage(row_from_array(pixels, origin=origin), media_type, height, width, steps)


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


def _agreed_media_type(payload: bytes, found: str | None, content_type: str | None, origin: str) -> str:
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


def _decode_dicom(
    payload: bytes, size: tuple[int, int] | None, origin: str, limits: DecodeLimits, notice: Notice | None
) -> tuple[_Pixels, tuple[int, int], tuple[Step, ...]]:
    """Render a DICOM image to gray pixels, resized if ``size`` is given; give its original size and the steps too."""
    rendered = render_dicom(payload, origin=origin, limits=limits, notice=notice)
    height, width = rendered.pixels.shape
    if size is None or size == (height, width):
        return rendered.pixels, (height, width), rendered.steps
    pixels = resize_pixels(rendered.pixels, size)
    if is_flat(pixels) and not is_flat(rendered.pixels):  # what is flat before the resize `render_dicom` has judged
        raise blank_rendering(pixels, origin)
    resize = Step("resize", f"{height}x{width} to {size[0]}x{size[1]}, bilinear with antialiasing")
    if notice is not None:
        notice(resize, pixels)
    return pixels, (height, width), (*rendered.steps, resize)
