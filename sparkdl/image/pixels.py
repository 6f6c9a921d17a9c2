"""Pixels on their way: resizing, gray or colour, and what no picture is."""

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from schemas.errors import Reason, UnsupportedImageError
from sparkdl.image.limits import DecodeLimits

GRAY_NDIM = 2

# What Pillow's parsers and decoders are known to raise on damaged files.
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,  # of what a good file would have, such as a palette
    AttributeError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)

_Pixels = npt.NDArray[np.uint8]


def resize_pixels(pixels: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Resize by bilinear interpolation with antialiasing, each channel by itself.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 or float32 of shape (height, width) or (height, width, 1 | 3 | 4), any channel order.
    size : tuple of int
        (height, width) wanted, in pixels.

    Returns
    -------
    numpy.ndarray
        Of the size wanted, with the type, dimensions and channels of ``pixels``; ``pixels`` itself if it has that size.

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
    if pixels.dtype == np.float32:  # Pillow has floats of one channel only
        planes = np.moveaxis(np.atleast_3d(pixels), -1, 0)
        resized = [np.asarray(resize_image(Image.fromarray(plane), size)) for plane in planes]
        return np.stack(resized, axis=-1).reshape(*size, *pixels.shape[2:])
    image = _image_of(pixels)
    return np.asarray(resize_image(image, size)).reshape(*size, *pixels.shape[2:])


def _image_of(pixels: _Pixels) -> Image.Image:
    """Wrap pixels for Pillow in a mode that leaves every channel alone (RGBA would weigh the others by alpha)."""
    height, width = pixels.shape[:2]
    mode = {1: "L", 3: "RGB", 4: "RGBX"}[pixels.shape[2] if pixels.ndim > GRAY_NDIM else 1]
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def resize_image(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """Resize a Pillow image, or the box of it, to (height, width), as `resize_pixels` does."""
    height, width = size
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def gray_if_gray(pixels: _Pixels) -> _Pixels:
    """Keep one channel where all are equal: many public X-ray files are gray pictures saved as colour."""
    if pixels.ndim == GRAY_NDIM:
        return pixels
    blue, green, red = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return blue if np.array_equal(blue, green) and np.array_equal(green, red) else pixels


def check_pixels(height: int, width: int, origin: str, limits: DecodeLimits) -> None:
    """Refuse an image of more pixels than the limits allow, read from its header."""
    if height * width > limits.max_pixels:
        detail = f"image is {height}x{width}, expected at most {limits.max_pixels} pixels"
        raise UnsupportedImageError(Reason.TOO_MANY_PIXELS, origin, detail)


def count_values(samples: npt.NDArray[Any], n_values: int) -> npt.NDArray[np.int64]:
    """Count the samples of each value, 0 to ``n_values - 1``; an array of shape (n_values,).

    A million at a time: ``bincount`` makes 8 bytes of each sample, which is 400 MB for the largest image.
    """
    counts = np.zeros(n_values, np.int64)
    for some in np.array_split(samples, max(1, samples.size >> 20)):
        counts += np.bincount(some.ravel(), minlength=n_values)
    return counts


def is_flat(pixels: _Pixels) -> bool:
    """Tell whether all pixels are of one gray or colour; the middle row, which hardly ever is, saves a look at all."""
    first = pixels[0, 0]
    return bool((pixels[len(pixels) // 2] == first).all() and (pixels == first).all())


def blank_rendering(pixels: _Pixels, origin: str) -> UnsupportedImageError:
    """Make the error of an image that is one gray or one colour while the pixels of its file differ."""
    shade = " ".join(map(str, np.atleast_1d(pixels[0, 0])))
    height, width = pixels.shape[:2]
    detail = f"pixels of the file differ, but as {height}x{width} image all are {shade}; expected two grays or colours"
    return UnsupportedImageError(Reason.BLANK_RENDERING, origin, detail)
