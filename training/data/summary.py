"""What a look at an image without its content sees: a thumbnail, borders, corners, size."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparkdl.image.pixels import resize_pixels
from training.arrays import Floats

_THUMBNAIL_PX = 8

_BORDER_PX, _BORDER_WIDTH_PX = 32, 2  # 6 % of each side

_CORNERS_PX, _CORNER_WIDTH_PX, _CORNER_CELLS = 224, 40, 2  # 18 % of each side, where markers and text stand

_MARKER_PX = 15  # 7 % of a side: strokes of markers and text are thinner, ribs and the body's edge are not


@dataclass(frozen=True, eq=False)
class ImageSummary:
    """What the probes may know of one image; made by `summarize_image`.

    Parameters
    ----------
    thumbnail : numpy.ndarray
        float64, shape (64,): 8x8 grey levels, 0 to 255.
    borders : numpy.ndarray
        float64, shape (240,): the outermost 2 of 32x32 grey levels.
    corners : numpy.ndarray
        float64, shape (48,): in 2x2 cells of each corner the mean grey level, and the contrast of the most conspicuous
        small bright thing and small dark thing.
    metadata : numpy.ndarray
        float64, shape (5,): logarithms of height, width, aspect ratio, bytes, and bytes per pixel.
    """

    thumbnail: Floats
    borders: Floats
    corners: Floats
    metadata: Floats


def summarize_image(pixels: npt.NDArray[np.uint8], *, original_size: tuple[int, int], n_bytes: int) -> ImageSummary:
    """Boil an image down to what the probes look at.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8, shape (height, width) or (height, width, n_channels), of any size from 64x64 on, e.g. as the network gets
        it; colours are averaged.
    original_size : tuple of int
        (height, width) of the file in pixels, before any resize.
    n_bytes : int
        Size of the file.

    Returns
    -------
    ImageSummary
        About 4 kB.
    """
    borders = np.ones((_BORDER_PX, _BORDER_PX), bool)
    borders[_BORDER_WIDTH_PX:-_BORDER_WIDTH_PX, _BORDER_WIDTH_PX:-_BORDER_WIDTH_PX] = False
    return ImageSummary(
        thumbnail=_gray(pixels, _THUMBNAIL_PX).ravel(),
        borders=_gray(pixels, _BORDER_PX)[borders],
        corners=_corners(_gray(pixels, _CORNERS_PX)),
        metadata=_metadata(*original_size, n_bytes),
    )


def _gray(pixels: npt.NDArray[np.uint8], side: int) -> Floats:
    small = np.asarray(resize_pixels(pixels, (side, side)), np.float64)
    return np.asarray(small.reshape(side, side, -1).mean(axis=2))


def _corners(gray: Floats) -> Floats:
    """Look for what is small and stands out; measured on phantoms, grey levels alone miss a marker half of the time."""
    from scipy.ndimage import black_tophat, white_tophat  # noqa: PLC0415  part of the train extra only

    width, around = _CORNER_WIDTH_PX, _CORNER_WIDTH_PX + _MARKER_PX
    found = []
    # Each corner is turned to the top left; the filter sees a little more than the corner, and no edge of its own.
    for corner in (gray, gray[:, ::-1], gray[::-1], gray[::-1, ::-1]):
        patch = corner[:around, :around]
        found.append(_cells(patch[:width, :width]).mean(axis=(1, 3)))
        for stand_out in (white_tophat, black_tophat):
            found.append(_cells(stand_out(patch, size=_MARKER_PX)[:width, :width]).max(axis=(1, 3)))
    return np.concatenate([part.ravel() for part in found])


def _cells(corner: Floats) -> Floats:
    side = _CORNER_WIDTH_PX // _CORNER_CELLS
    return corner.reshape(_CORNER_CELLS, side, _CORNER_CELLS, side)


def _metadata(height: int, width: int, n_bytes: int) -> Floats:
    known = (height, width, height / width, max(1, n_bytes), max(1, n_bytes) / (height * width))
    return np.array([math.log(value) for value in known])
