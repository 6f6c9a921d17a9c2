"""What a browser shows of a radiograph: a thumbnail, a full view whose window people move, and each step of rendering.

Everything is decoded by the code that the stream decodes with. Of a plate of 32 MiB a thumbnail takes 20 MB
and a full view 50 MB of memory beside the file, for words are shrunk some rows at a time.
"""

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sparkdl.image.decode import decode_image, find_media_type
from sparkdl.image.dicom import render_deep
from sparkdl.image.limits import DICOM, PNG, RENDERING_VERSION, DecodeLimits
from sparkdl.image.pixels import GRAY_NDIM, resize_pixels
from sparkdl.image.raster import read_deep_gray
from sparkdl.image.row import array_from_row
from sparkdl.image.steps import Step

THUMBNAIL_PX = 256
"""Longest side: sharp on a dense screen at 128 CSS pixels, and 2 to 6 kB."""

FULL_PX = 2048
"""Longest side: more than a screen has; a page zooms within it."""

STEP_PX = 512

PNG_TYPE, WEBP_TYPE = "image/png", "image/webp"

_BYTE = 8
_WORD = 16
_WEBP_QUALITY = 80
_PNG_LEVEL = 1  # level 3 takes twice, level 6 six times as long for 5 and 7 % fewer bytes: the low bits are noise
_DEFAULT_LIMITS = DecodeLimits()

_Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class View:
    """One file for a browser.

    Parameters
    ----------
    content : bytes
        PNG or WebP; nothing but pixels.
    media_type : str
        Of ``content``.
    width, height : int
        In pixels.
    bits : int
        8 or 16.
    low, high : int
        What the stream shows black and white, in the view's own values. With 16 bits they may lie outside 0 to 65535.
    """

    content: bytes = field(repr=False)
    media_type: str
    width: int
    height: int
    bits: int = _BYTE
    low: int = 0
    high: int = 255


def make_thumbnail(
    payload: bytes, *, origin: str, limits: DecodeLimits = _DEFAULT_LIMITS, side_px: int = THUMBNAIL_PX
) -> View:
    """Render a file as the stream does, and shrink it.

    Parameters
    ----------
    payload : bytes
        PNG, JPEG or DICOM.
    origin : str
        Where it came from, for errors.
    limits : DecodeLimits
        What one file may cost.
    side_px : int
        Of the longest side; smaller images keep their size.

    Returns
    -------
    View
        WebP, gray or colour.

    Raises
    ------
    RecordError
        See `sparkdl.image.decode.decode_image`.
    """
    decoded = decode_image(payload, origin=origin, limits=limits)
    return _to_webp(array_from_row(decoded.image), side_px)


def make_full(payload: bytes, *, origin: str, limits: DecodeLimits = _DEFAULT_LIMITS, side_px: int = FULL_PX) -> View:
    """Render a file for a window that people move.

    Parameters
    ----------
    payload, origin, limits, side_px
        See `make_thumbnail`.

    Returns
    -------
    View
        PNG. Gray of 16 bits where the file has more than 8: DICOM's values after the Modality LUT, upright and counted
        from the smallest, or a PNG's samples. Else the 8 bits that the stream makes, gray or colour.

    Raises
    ------
    RecordError
        See `sparkdl.image.decode.decode_image`; but a PNG whose 16 bits would be one gray in 8 is shown.
    """
    media_type = find_media_type(payload, origin=origin, limits=limits)
    if media_type == DICOM:
        image = render_deep(payload, origin=origin, limits=limits)
        if image.bits > _BYTE:
            words = _shrink_words(image.codes, image.gray.table, side_px)
            return _to_png(words, bits=_WORD, low=image.gray.low, high=image.gray.high)
    elif media_type == PNG and (deep := read_deep_gray(payload, origin, limits)) is not None:
        samples, white = deep
        return _to_png(_shrink_words(samples, None, side_px), bits=_WORD, high=white)
    pixels = array_from_row(decode_image(payload, origin=origin, limits=limits).image)
    return _to_png(_to_rgb(_shrink(pixels, side_px)))


def make_steps(
    payload: bytes,
    *,
    origin: str,
    size: tuple[int, int],
    limits: DecodeLimits = _DEFAULT_LIMITS,
    rendering: int = RENDERING_VERSION,
    side_px: int = STEP_PX,
) -> list[tuple[Step, View]]:
    """Show what each step of rendering does to a file.

    Parameters
    ----------
    payload, origin, limits, side_px
        See `make_thumbnail`.
    size : tuple of int
        (height, width) that the network takes.
    rendering : int
        Rendering version.

    Returns
    -------
    list of tuple of Step and View
        In their order; empty with version 1, which tells none.

    Raises
    ------
    RecordError
        See `sparkdl.image.decode.decode_image`.
    """
    seen: list[tuple[Step, View]] = []
    decode_image(
        payload,
        origin=origin,
        size=size,
        limits=limits,
        rendering=rendering,
        notice=lambda step, pixels: seen.append((step, _to_webp(pixels, side_px))),
    )
    return seen


# --- smaller ----------------------------------------------------------------------------------------------------------


def fit_size(height: int, width: int, side_px: int) -> tuple[int, int]:
    """Give the (height, width) of at most ``side_px`` in the same shape; never larger than it was."""
    scale = min(1.0, side_px / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _shrink(pixels: _Pixels, side_px: int) -> _Pixels:
    height, width = pixels.shape[:2]
    return resize_pixels(np.ascontiguousarray(pixels), fit_size(height, width, side_px))


def _shrink_words(
    codes: npt.NDArray[Any], table: npt.NDArray[np.uint16] | None, side_px: int
) -> npt.NDArray[np.uint16]:
    """Shrink words, or what they mean by a table, to at most ``side_px``: by whole blocks first, some rows at a time.

    A plate as float32 would be 60 MB, and twice that while it is resized.
    """
    height, width = codes.shape
    block = max(1, max(height, width) // side_px)
    rows = [_average(codes[top : top + block], table, block) for top in range(0, height, block)]
    means = np.stack(rows)
    small = resize_pixels(means, fit_size(height, width, side_px))
    return np.clip(np.rint(small), 0, 65535).astype(np.uint16)


def _average(band: npt.NDArray[Any], table: npt.NDArray[np.uint16] | None, block: int) -> npt.NDArray[np.float32]:
    """Average blocks of a band of rows, to one row; the last block may be narrower."""
    values = band if table is None else table[band]
    starts = np.arange(0, values.shape[1], block)
    widths = np.diff(np.append(starts, values.shape[1]))
    sums = np.add.reduceat(values.sum(axis=0, dtype=np.int64), starts)
    return np.asarray(sums / (widths * values.shape[0]), np.float32)


# --- files ------------------------------------------------------------------------------------------------------------


def _to_rgb(pixels: _Pixels) -> _Pixels:
    """Give (height, width), or (height, width, 3) in the order RGB."""
    if pixels.ndim == GRAY_NDIM:
        return pixels
    return pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[..., 2::-1])


def _to_webp(pixels: _Pixels, side_px: int) -> View:
    image = Image.fromarray(_to_rgb(_shrink(pixels, side_px)))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_WEBP_QUALITY, method=2)
    return View(buffer.getvalue(), WEBP_TYPE, image.width, image.height)


def _to_png(pixels: npt.NDArray[Any], *, bits: int = _BYTE, low: int = 0, high: int = 255) -> View:
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return View(buffer.getvalue(), PNG_TYPE, image.width, image.height, bits, low, high)
