"""Maps of the image plane, and what is done to a whole one: enlarge, shrink, smooth, blur."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Map = NDArray[np.floating[Any]]  # float32 wherever it is as large as the image


def noise_field(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Map:
    """Smooth noise, mean 0 and deviation about 1, with ``cells`` features across the width."""
    coarse = rng.standard_normal((cells * shape[0] // shape[1] + 2, cells), dtype=np.float32)
    return resize(coarse, shape, Image.Resampling.BICUBIC) * np.float32(1.3)


def shrink(image: Map) -> Map:
    """Give an eighth of each side, averaged."""
    height, width = image.shape
    return resize(image, (max(8, height // 8), max(8, width // 8)), Image.Resampling.BOX)


def resize(image: Map, shape: tuple[int, ...], how: Image.Resampling = Image.Resampling.BILINEAR) -> Map:
    """Resample a map to ``shape`` (height, width)."""
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize((shape[1], shape[0]), how), np.float32)


def smooth(image: Map, radius: int) -> Map:
    """Blur a small image by a box, twice, edges held."""
    for axis in (0, 1, 0, 1):
        pad = [(radius + 1, radius) if i == axis else (0, 0) for i in (0, 1)]
        total = np.cumsum(np.pad(image, pad, mode="edge"), axis=axis, dtype=np.float64)
        size = 2 * radius + 1
        far, near = (total.take(range(a, a + image.shape[axis]), axis=axis) for a in (size, 0))
        image = ((far - near) / size).astype(np.float32)
    return image


def blur(image: Map, neighbour: float) -> Map:
    """Spread each pixel over its neighbours, as the detector's screen does."""
    weight = np.float32(neighbour)
    padded = np.pad(image, 1, mode="edge")
    across = padded[:, 1:-1] * (1 - 2 * weight) + (padded[:, :-2] + padded[:, 2:]) * weight
    return across[1:-1] * (1 - 2 * weight) + (across[:-2] + across[2:]) * weight
