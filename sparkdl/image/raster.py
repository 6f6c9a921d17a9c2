"""PNG and JPEG files to gray or BGR pixels of 8 bits, with the checks that decoders do not make.

16 bits become 8 by one rule, in gray and in colour:

1. An sBIT chunk says how many bits the device has. The standard wants samples scaled up from these to 16, but X-ray
   software stores them as they are. So where 99 % of the samples fit in these bits, the largest value of as many bits
   is white. Where they do not, the file keeps the standard, and 65535 is white.
2. Without sBIT, white is the value that 99 % of the samples do not exceed. Nothing says what the device's white is, and
   a guess of its bits makes two pictures of one: a largest value of 1023 and one of 1024 look alike. A hot pixel, or a
   burned-in marker of up to 1 % of the area, changes next to nothing.

Black is 0. What is between is linear, what is above white is white.
"""

import io
import logging
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from schemas.errors import CorruptImageError, Reason, UnsupportedImageError
from sparkdl.image.jpeg import (
    END_OF_IMAGE,
    JPEG_LS,
    LOSSLESS,
    MAX_SCANS,
    JpegHeader,
    count_scans,
    find_first_scan,
    limit_exif,
    read_jpeg_header,
)
from sparkdl.image.limits import PNG, DecodeLimits
from sparkdl.image.pixels import (
    GRAY_NDIM,
    PILLOW_ERRORS,
    blank_rendering,
    check_pixels,
    count_values,
    gray_if_gray,
    is_flat,
    resize_image,
)
from sparkdl.image.png import (
    BYTE,
    COLORS,
    GRAY_ALPHA,
    PALETTE,
    PNG_SIGNATURE,
    RGB_ALPHA,
    WORD,
    PngFile,
    decode_samples,
    read_png,
)
from sparkdl.image.steps import Notice, Step

# Pillow logs the texts of EXIF blocks, at level DEBUG; what matters comes back as an exception.
logging.getLogger("PIL").setLevel(logging.CRITICAL)

__all__ = [
    "JPEG_SIGNATURE",
    "PNG_SIGNATURE",
    "RasterImage",
    "check_jpeg",
    "decode_raster",
    "read_deep_gray",
    "read_orientation",
]

JPEG_SIGNATURE = b"\xff\xd8\xff"

# In hundredths. A burned-in letter of 3 x 3 cm takes 0.6 % of a chest film of 35 x 43 cm.
_SHOWN_SHARE = 99

_LARGEST = (1 << WORD) - 1

_GRAY_AND_ALPHA = 2

# What libjpeg-turbo does not decode: hierarchical JPEGs, and lossless ones with arithmetic coding.
_UNREAD_PROCESSES = frozenset({0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, JPEG_LS})

_DRAFT_MARGIN = 2  # DCT scaling stops at twice the wanted size, the margin Pillow's own thumbnail() keeps

_EXIF_ORIENTATION = 0x0112

_SIXTEEN_BIT = "I;16"

_CHANNEL_WORDS = {
    PALETTE: "palette expanded to red, green and blue",
    GRAY_ALPHA: "alpha dropped",
    RGB_ALPHA: "alpha dropped",
}


class _Turn(NamedTuple):
    transpose: Image.Transpose
    words: str


_TURNS = {
    2: _Turn(Image.Transpose.FLIP_LEFT_RIGHT, "mirrored left to right"),
    3: _Turn(Image.Transpose.ROTATE_180, "turned by 180 degrees"),
    4: _Turn(Image.Transpose.FLIP_TOP_BOTTOM, "mirrored top to bottom"),
    5: _Turn(Image.Transpose.TRANSPOSE, "rows and columns exchanged"),
    6: _Turn(Image.Transpose.ROTATE_270, "turned by 90 degrees to the right"),
    7: _Turn(Image.Transpose.TRANSVERSE, "rows and columns exchanged, and turned by 180 degrees"),
    8: _Turn(Image.Transpose.ROTATE_90, "turned by 90 degrees to the left"),
}
"""What to do with a picture of an EXIF orientation; 1 is upright, and others count as 1."""

_Pixels = npt.NDArray[np.uint8]

_Samples = npt.NDArray[Any]


class RasterImage(NamedTuple):
    """A decoded PNG or JPEG.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 of shape (height, width) for gray, else (height, width, 3) in the order BGR.
    original : tuple of int
        (height, width) before the resize, upright.
    steps : tuple of Step
        What was done.
    """

    pixels: _Pixels
    original: tuple[int, int]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class _Picture:
    """A file's picture before the resize: gray or RGB of 8 bits, perhaps shrunk by its decoder, ``box`` of it used."""

    image: Image.Image
    original: tuple[int, int]
    differs: Callable[[], bool]
    colored: bool
    channels: Step | None = None
    box: tuple[float, float, float, float] | None = None


def decode_raster(
    payload: bytes,
    media_type: str,
    size: tuple[int, int] | None,
    origin: str,
    limits: DecodeLimits,
    notice: Notice | None = None,
) -> RasterImage:
    """Decode a PNG or JPEG to gray or BGR pixels, upright, resized if ``size`` is given.

    Parameters
    ----------
    payload : bytes
        The file.
    media_type : str
        ``PNG``; anything else is taken for a JPEG.
    size : tuple of int, optional
        (height, width) wanted.
    origin : str
        Where it came from, for errors.
    limits : DecodeLimits
        ``max_pixels`` bounds height x width.
    notice : callable, optional
        Told of each step. Of 16 bits that have no white yet the upper 8 are shown.

    Returns
    -------
    RasterImage
        Pixels, original size and steps.

    Raises
    ------
    UnsupportedImageError
        ``TOO_MANY_PIXELS``, ``MULTI_FRAME`` (PNG), ``UNSUPPORTED_FORMAT``, ``UNSUPPORTED_BIT_DEPTH`` and
        ``UNSUPPORTED_COLOR`` (JPEG), ``BLANK_RENDERING``.
    CorruptImageError
        ``TRUNCATED_IMAGE``, ``CORRUPT_IMAGE``.
    """
    seen = _Seen(notice)
    picture = _png(payload, origin, limits, seen) if media_type == PNG else _jpeg(payload, size, origin, limits, seen)
    pixels = np.asarray(resize_image(picture.image, size, picture.box) if size else picture.image)
    if is_flat(pixels) and picture.differs():
        raise blank_rendering(pixels, origin)
    shown = gray_if_gray(pixels if pixels.ndim == GRAY_NDIM else pixels[..., ::-1])
    for step in _channels(picture, one_gray=picture.colored and shown.ndim == GRAY_NDIM):
        seen.take(step, picture.image)
    if size:
        step = Step("resize", f"from {_by(picture.original)} to {_by(size)}, bilinear with antialiasing")
        seen.take(step, pixels)
    return RasterImage(shown, picture.original, tuple(seen.steps))


def _channels(picture: _Picture, *, one_gray: bool) -> list[Step]:
    """Give the step of what was done to channels, if anything was."""
    if not one_gray:
        return [picture.channels] if picture.channels else []
    words = "red, green and blue are equal: one gray"
    if picture.channels is None:
        return [Step("channels", words)]
    return [replace(picture.channels, what=f"{picture.channels.what}; {words}")]


class _Seen:
    """The steps so far, and who is told of them."""

    def __init__(self, notice: Notice | None) -> None:
        self.steps: list[Step] = []
        self._notice = notice

    def take(self, step: Step, picture: Image.Image | _Samples) -> None:
        """Add a step, and show what came of it: a picture or samples, gray or RGB."""
        self.steps.append(step)
        if self._notice is None:
            return
        pixels = np.asarray(picture if isinstance(picture, np.ndarray) else _gray_or_rgb(picture))
        if pixels.dtype == np.uint16:
            pixels = (pixels >> BYTE).astype(np.uint8)
        if pixels.ndim > GRAY_NDIM:
            pixels = pixels[..., 2::-1] if pixels.shape[2] > _GRAY_AND_ALPHA else pixels[..., 0]
        self._notice(step, pixels)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# --- PNG --------------------------------------------------------------------------------------------------------------


def read_deep_gray(payload: bytes, origin: str, limits: DecodeLimits) -> tuple[npt.NDArray[np.uint16], int] | None:
    """Give the samples of a gray PNG of 16 bits, upright, and the one that is shown white; black is 0.

    Parameters
    ----------
    payload, origin, limits
        See `decode_raster`.

    Returns
    -------
    tuple of numpy.ndarray and int, or None
        uint16, shape (height, width); None where it has 8 bits or colour.

    Raises
    ------
    UnsupportedImageError, CorruptImageError
        See `decode_raster`.
    """
    png = read_png(payload, origin, limits)
    if png.bits != WORD:
        return None
    samples, _ = _stored(png, origin)
    colors, significant = _gray_of(np.asarray(samples), png)
    if colors.ndim > GRAY_NDIM:
        return None
    [white], _ = _whites(colors, significant)
    turn = _TURNS.get(read_orientation(png.exif))
    upright = colors if turn is None else np.asarray(Image.fromarray(colors).transpose(turn.transpose))
    return upright, white


def _png(payload: bytes, origin: str, limits: DecodeLimits, seen: _Seen) -> _Picture:
    png = read_png(payload, origin, limits)
    size, header = (png.height, png.width), f"bit depth {png.bits}, colour type {png.color_type}"
    stored, decoder = _stored(png, origin)
    with _pillow_border(origin):
        seen.take(Step("decode", f"{_by(size)} pixels of {png.bits} bits, by {decoder}", {"IHDR": header}), stored)
        image = _gray_or_rgb(stored) if isinstance(stored, Image.Image) else _image_of(stored, png, seen)
    turned = _turned(image, read_orientation(png.exif), png.exif_chunk, seen)
    words = _CHANNEL_WORDS.get(png.color_type)
    channels = Step("channels", words, {"IHDR": f"colour type {png.color_type}"}) if words else None
    colored = COLORS[png.color_type] > 1
    return _Picture(turned, (turned.height, turned.width), lambda: _differs(stored), colored, channels)


def _stored(png: PngFile, origin: str) -> tuple[_Samples | Image.Image, str]:
    """Decode what the file holds: samples of 8 or 16 bits, alpha among them, or a Pillow image of any mode.

    The second is the name of what decodes them.
    """
    found = decode_samples(png)
    if found is not None:
        return found
    with _pillow_border(origin):
        image = _opened(PngImageFile, png.pixel_data, origin)
        image.load()
    if image.mode == _SIXTEEN_BIT:
        return np.asarray(image), "Pillow"
    if png.bits == WORD:  # of which Pillow keeps 8; two libraries have refused them
        raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, "PNG of 16 bits does not decode")
    return image, "Pillow"


def _gray_of(samples: _Samples, png: PngFile) -> tuple[_Samples, Sequence[int]]:
    """Give the colours of samples of 16 bits, alpha dropped, one where all are equal; and the bits that sBIT says."""
    colors, significant = samples, png.significant_bits
    if samples.ndim > GRAY_NDIM:
        colors = gray_if_gray(samples[..., :3]) if COLORS[png.color_type] > 1 else samples[..., 0]
    if colors.ndim == GRAY_NDIM:
        significant = significant and (max(significant),)
    return colors, significant


def _image_of(samples: _Samples, png: PngFile, seen: _Seen) -> Image.Image:
    """Make gray or RGB of 8 bits from samples."""
    if samples.dtype == np.uint8:
        return Image.fromarray(samples)
    colors, significant = _gray_of(samples, png)
    whites, step = _whites(colors, significant)
    if len(set(whites)) == 1:
        shown = _table(whites[0]).take(colors)
    else:
        shown = np.stack([_table(white).take(colors[..., n]) for n, white in enumerate(whites)], axis=-1)
    seen.take(step, shown)
    return Image.fromarray(shown)


def _whites(colors: npt.NDArray[np.uint16], significant: Sequence[int]) -> tuple[Sequence[int], Step]:
    """Find the value that becomes white, of all colours or of each one: the rule is this module's docstring."""
    if not significant:
        white = _usual_largest(colors)
        why = f"{_SHOWN_SHARE} % of the samples are not above it" if white else "the largest, for nearly all are 0"
        white = white or int(colors.max()) or 1
        return [white], Step("range", f"0 is black, {white} white: {why}")
    planes = [colors] if colors.ndim == GRAY_NDIM else [colors[..., n] for n in range(colors.shape[-1])]
    fit = all(_usual_largest(plane) < 1 << bits for plane, bits in zip(planes, significant, strict=True))
    whites = [(1 << bits) - 1 if fit else _LARGEST for bits in significant]
    words = "stored as they are" if fit else "scaled up to 16 bits"
    what = f"0 is black, {' '.join(map(str, dict.fromkeys(whites)))} white: samples are {words}"
    return whites, Step("range", what, {"sBIT": " ".join(map(str, significant))})


def _usual_largest(samples: npt.NDArray[np.uint16]) -> int:
    """Give the smallest value that 99 % of the samples do not exceed."""
    counts = count_values(samples, _LARGEST + 1)
    return int(np.searchsorted(np.cumsum(counts), -(-samples.size * _SHOWN_SHARE // 100)))


def _table(white: int) -> _Pixels:
    """Give the 8 bits of every value, 0 to 65535."""
    return np.minimum(np.rint(np.arange(_LARGEST + 1) * 255 / white), 255).astype(np.uint8)


# --- JPEG -------------------------------------------------------------------------------------------------------------


def _jpeg(payload: bytes, size: tuple[int, int] | None, origin: str, limits: DecodeLimits, seen: _Seen) -> _Picture:
    with _pillow_border(origin):
        header, image = _open_jpeg(payload, origin, limits)
        original, orientation = (image.height, image.width), read_orientation(image.info.get("exif", b""))
        # No draft of a turned file: it is rare, and the draft's box would have to be turned with it.
        shrinks = size and orientation not in _TURNS and not (header and header.process == LOSSLESS)
        box = _draft(image, size) if size and shrinks else None
        decoded = _gray_or_rgb(image)
    seen.take(_decode_step(header, original, (decoded.height, decoded.width)), decoded)
    turned = _turned(decoded, orientation, "APP1", seen)
    original = original if box else (turned.height, turned.width)
    colored = decoded.mode == "RGB"
    return _Picture(turned, original, lambda: _differs_inside(payload, origin), colored, box=box)


def check_jpeg(payload: bytes, origin: str, limits: DecodeLimits) -> int:
    """Refuse a JPEG that is not read, as far as its headers and its end tell; nothing is decompressed.

    Parameters
    ----------
    payload, origin, limits
        As `decode_raster` takes them.

    Returns
    -------
    int
        Its EXIF orientation, as `read_orientation` gives it.

    Raises
    ------
    UnsupportedImageError, CorruptImageError
        As `decode_raster`, and in its order.
    """
    with _pillow_border(origin):
        _, image = _open_jpeg(payload, origin, limits)
        return read_orientation(image.info.get("exif", b""))


def _open_jpeg(payload: bytes, origin: str, limits: DecodeLimits) -> tuple[JpegHeader | None, ImageFile]:
    header = read_jpeg_header(payload)
    if header:
        _check_process(header, origin)
    _check_end(payload, origin)
    image = _opened(JpegImageFile, limit_exif(payload), origin)
    check_pixels(image.height, image.width, origin, limits)
    if image.mode == "CMYK":
        raise UnsupportedImageError(Reason.UNSUPPORTED_COLOR, origin, "colours are CMYK, expected gray or RGB")
    return header, image


def _decode_step(header: JpegHeader | None, original: tuple[int, int], decoded: tuple[int, int]) -> Step:
    what = f"{_by(original)} pixels of {BYTE} bits, by Pillow"
    if decoded != original:
        what += f", shrunk to {_by(decoded)} inside the decoder"
    return Step("decode", what, {header.name: f"{header.bits} bits, components: {header.components}"} if header else {})


def _check_process(header: JpegHeader, origin: str) -> None:
    """Refuse by name what a good file may be and is not read here."""
    if header.process in _UNREAD_PROCESSES:
        kind = "a JPEG-LS" if header.process == JPEG_LS else "a JPEG of a process"
        detail = f"file is {kind} that is not read ({header.name}), expected a baseline, extended or progressive JPEG"
        raise UnsupportedImageError(Reason.UNSUPPORTED_FORMAT, origin, detail)
    if header.bits != BYTE:
        detail = f"JPEG has {header.bits} bits a sample ({header.name}), expected {BYTE}"
        raise UnsupportedImageError(Reason.UNSUPPORTED_BIT_DEPTH, origin, detail)


def _check_end(payload: bytes, origin: str) -> None:
    """Look for the end marker after the start of the first scan, and count the scans, for each goes over all pixels.

    Compressed data never holds the marker by chance (FF is stuffed). A thumbnail in the EXIF block has its own, hence
    the walk over the segments.
    """
    scan = find_first_scan(payload)
    if scan is None or payload.rfind(END_OF_IMAGE, scan) < 0:
        detail = f"JPEG ends at byte {len(payload)} without an end marker behind its first scan"
        raise CorruptImageError(Reason.TRUNCATED_IMAGE, origin, detail)
    if (scans := count_scans(payload, scan)) > MAX_SCANS:
        detail = f"JPEG has {scans} scans, expected at most {MAX_SCANS}"
        raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, detail)


def _draft(image: Image.Image, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Let the JPEG decoder shrink by a power of two; give the box of the shrunk image that the original covers."""
    height, width = size
    drafted = image.draft(None, (_DRAFT_MARGIN * width, _DRAFT_MARGIN * height))
    return drafted[1] if drafted else None


def _differs_inside(payload: bytes, origin: str) -> bool:
    """Tell whether the pixels of a JPEG differ at full size; it is decoded once more. Hardly any picture comes here."""
    with _pillow_border(origin):
        image = _opened(JpegImageFile, limit_exif(payload), origin)
        image.load()
        return _differs(image)


# --- both -------------------------------------------------------------------------------------------------------------


@contextmanager
def _pillow_border(origin: str) -> Iterator[None]:
    """Turn what Pillow raises into this project's errors, and keep its warnings off the terminal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except PILLOW_ERRORS as exc:
        # The file's own end was seen by the structure check; data that still runs out ended too early inside.
        truncated = "truncated" in str(exc).lower()
        reason = Reason.TRUNCATED_IMAGE if truncated else Reason.CORRUPT_IMAGE
        detail = f"image does not decode ({type(exc).__name__}: {exc})"
        raise CorruptImageError(reason, origin, detail) from exc


def _opened(plugin: type[ImageFile], payload: bytes, origin: str) -> ImageFile:
    """Let Pillow read the header, by the plugin itself.

    ``Image.open`` takes a JPEG of several pictures, as phones write it, for another format; the first is wanted. And it
    has a cap of its own: 179 million pixels, whatever this project's limits say.
    """
    try:
        return plugin(io.BytesIO(payload))
    except (SyntaxError, IndexError, TypeError, struct.error) as exc:
        detail = "image header does not parse"
        raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, detail) from exc


def _differs(stored: _Samples | Image.Image) -> bool:
    """Tell whether the pixels differ: in 16 bits, by palette index or alpha."""
    if isinstance(stored, np.ndarray):
        return bool((stored != stored[0, 0]).any())
    extrema = stored.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return any(low != high for low, high in bands)


def read_orientation(exif: bytes) -> int:
    """Read the orientation from an EXIF block.

    Returns
    -------
    int
        1 to 8, or any other number, which counts as 1 (upright), as a damaged block or none does.
    """
    if not exif:
        return 1
    block = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            block.load(exif)
            return int(block.get(_EXIF_ORIENTATION, 1))
    except PILLOW_ERRORS:
        return 1


def _turned(image: Image.Image, orientation: int, segment: str, seen: _Seen) -> Image.Image:
    turn = _TURNS.get(orientation)
    if turn is None:
        return image
    upright = image.transpose(turn.transpose)
    seen.take(Step("orient", turn.words, {segment: f"Orientation {orientation}"}), upright)
    return upright


def _gray_or_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("L", "RGB"):
        image.load()
        return image
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
