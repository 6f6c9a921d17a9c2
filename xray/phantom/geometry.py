"""The detector's plane, and simple solids whose thickness along the rays is drawn on it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from xray.phantom.images import Map
from xray.phantom.patient import Anatomy

_SPLAT_BLOCK = 16384  # points at a time: their temporaries stay in the cache

# Attenuation in 1/cm at about 120 kVp: what bone adds to the soft tissue that it replaces.
_MU_CORTEX = 0.62
_MU_CANCELLOUS = 0.2


class Plane:
    """The detector in patient coordinates, and the drawing of solids on it as thickness maps (cm)."""

    def __init__(self, shape: tuple[int, int], cm_per_px: float, centre_y: float, tilt_deg: float) -> None:
        self.shape = shape
        self.cm_per_px = cm_per_px
        self.quarter = (shape[0] // 4, shape[1] // 4)  # sides of a coarse image for what is smooth
        self._centre_y, self._tilt_deg = centre_y, tilt_deg
        self._cos, self._sin = math.cos(math.radians(tilt_deg)), math.sin(math.radians(tilt_deg))
        rows = ((np.arange(shape[0], dtype=np.float32) + 0.5 - shape[0] / 2) * cm_per_px)[:, None]
        columns = ((np.arange(shape[1], dtype=np.float32) + 0.5 - shape[1] / 2) * cm_per_px)[None, :]
        self.x: Map = (columns * self._cos + rows * self._sin).astype(np.float32)
        self.y: Map = (rows * self._cos - columns * self._sin + centre_y).astype(np.float32)

    @classmethod
    def over(cls, anatomy: Anatomy, height: int, width: int) -> "Plane":
        """Fit the whole rib cage in the field, whatever the aspect."""
        across = 2 * (13.8 * anatomy.breadth + anatomy.margin)
        return cls((height, width), max(across / width, 34.0 / height), anatomy.centre_y, anatomy.tilt_deg)

    def halved(self) -> "Plane":
        """Cover the same field with half the pixels along each side."""
        shape = (self.shape[0] // 2, self.shape[1] // 2)
        return Plane(shape, self.cm_per_px * self.shape[1] / shape[1], self._centre_y, self._tilt_deg)

    def zeros(self) -> Map:
        """Give a map without anything on it."""
        return np.zeros(self.shape, np.float32)

    def pixel(self, x: Map, y: Map) -> tuple[Map, Map]:
        """Fractional (row, column) of points in cm."""
        below = y - self._centre_y
        row = (x * self._sin + below * self._cos) / self.cm_per_px + (self.shape[0] - 1) / 2
        column = (x * self._cos - below * self._sin) / self.cm_per_px + (self.shape[1] - 1) / 2
        return row, column

    def splat(self, x: Map, y: Map, volume: Map) -> Map:
        """Sum small volumes (cm3) at points into thickness (cm), shared between the four nearest pixels."""
        height, width = self.shape
        total = np.zeros((height + 2) * (width + 2))  # what falls outside gathers in a rim, which is cut off
        points = (x.ravel(), y.ravel(), volume.ravel())
        for start in range(0, points[0].size, _SPLAT_BLOCK):
            self._splat_block(total, *(part[start : start + _SPLAT_BLOCK] for part in points))
        inner = total.reshape(height + 2, width + 2)[1:-1, 1:-1]
        return (inner / self.cm_per_px**2).astype(np.float32)

    def _splat_block(self, total: Map, x: Map, y: Map, volume: Map) -> None:
        row, column = self.pixel(x, y)
        height, width = self.shape
        row, column = np.clip(row + 1, 0, height + 0.99), np.clip(column + 1, 0, width + 0.99)
        top, left = row.astype(np.intp), column.astype(np.intp)
        corner, right = top * (width + 2) + left, column - left
        lower = volume * (row - top)
        for offset, share in ((0, volume - lower), (width + 2, lower)):
            np.add.at(total, corner + offset, share * (1 - right))
            np.add.at(total, corner + offset + 1, share * right)

    def window(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """Slices of the image that hold everything within ``reach`` cm of a point."""
        row, column = self.pixel(np.float32(x), np.float32(y))  # type: ignore[arg-type]
        side = reach / self.cm_per_px + 1
        rows = slice(max(0, int(row - side)), max(0, int(row + side) + 1))
        return rows, slice(max(0, int(column - side)), max(0, int(column + side) + 1))


@dataclass(frozen=True)
class Ellipsoid:
    """A solid with an elliptic outline; lengths are semi-axes in cm, ``turn_deg`` is clockwise in the image."""

    x: float
    y: float
    a: float
    b: float
    depth: float
    turn_deg: float = 0.0
    bluntness: float = 2.0

    def merge_into(self, total: Map, plane: Plane) -> None:
        """Take the union with what is already there: overlapping organs share their depth."""
        window = plane.window(self.x, self.y, max(self.a, self.b))
        np.maximum(total[window], self._thickness(plane.x[window], plane.y[window]), out=total[window])

    def add_to(self, total: Map, plane: Plane, weight: float = 1.0) -> None:
        """Add the thickness, times ``weight``."""
        window = plane.window(self.x, self.y, max(self.a, self.b))
        total[window] += weight * self._thickness(plane.x[window], plane.y[window])

    def _thickness(self, x: Map, y: Map) -> Map:
        cos, sin = math.cos(math.radians(self.turn_deg)), math.sin(math.radians(self.turn_deg))
        along = ((x - self.x) * cos + (y - self.y) * sin) / self.a
        across = ((y - self.y) * cos - (x - self.x) * sin) / self.b
        rest = np.clip(1 - (along**2 + across**2) ** (self.bluntness / 2), 0, None)
        return np.asarray(2 * self.depth * np.sqrt(rest), np.float32)


class Profile:
    """A smooth function of one coordinate through a few knots, fast to look up on a whole image."""

    _LOW, _HIGH, _STEPS = -20.0, 60.0, 2048

    def __init__(self, at: Sequence[float] | Map, values: Sequence[float] | Map, smooth_cm: float = 1.6) -> None:
        grid = np.linspace(self._LOW, self._HIGH, self._STEPS)
        size = max(1, round(smooth_cm / (grid[1] - grid[0])))
        window = np.hanning(size + 2) / np.hanning(size + 2).sum()
        padded = np.pad(np.interp(grid, at, values), len(window) // 2, mode="edge")
        self._table: Map = np.convolve(padded, window, mode="valid")[: self._STEPS].astype(np.float32)

    def __call__(self, coordinate: Map) -> Map:
        """Look up every value of ``coordinate``."""
        step = (coordinate - self._LOW) * np.float32((self._STEPS - 1) / (self._HIGH - self._LOW))
        return self._table.take(step.astype(np.int32), mode="clip")


Points = tuple[Map, Map, Map]  # x and y in cm; what each point holds: cm3, or cm3 times attenuation


def join_points(parts: Iterable[Points]) -> Points:
    """Put points of several solids into one set."""
    x, y, volume = (np.concatenate([part.ravel() for part in same]) for same in zip(*parts, strict=True))
    return x, y, volume


def draw_tube(path: Map, side: Map, half_height: Map, half_thickness: Map, cortex: Map) -> Points:
    """Points on hollow bones, a cortical shell around cancellous bone, that hold their attenuation.

    Parameters
    ----------
    path : ndarray, shape (bones, steps, 3)
        Centre lines, in cm.
    side : ndarray, shape (bones, steps, 3)
        Unit vectors across the bone's thin direction.
    half_height, half_thickness : ndarray, broadcastable to (bones, steps)
        Semi-axes of the cross-section, in cm.
    cortex : ndarray, broadcastable to (bones, steps)
        Thickness of the shell, in cm.
    """
    step = np.gradient(path, axis=1)
    length = np.linalg.norm(step, axis=-1)
    up = np.cross(side, step / length[..., None])
    thick, tall = half_thickness[..., None], half_height[..., None]
    count = round(22 * max(1.0, float(half_thickness.max()) / 0.6))
    cos, sin = _turns(count, path.shape[1])
    shell = np.hypot(thick * sin, tall * cos) * (2 * np.pi / count * _MU_CORTEX) * cortex[..., None]
    inner_cos, inner_sin = _turns(8, path.shape[1])
    core = np.pi / 8 * _MU_CANCELLOUS * thick * tall * np.minimum(1, cortex / 0.06)[..., None] * np.ones_like(inner_cos)
    out = thick * np.concatenate([cos, 0.55 * inner_cos], axis=-1)
    along = tall * np.concatenate([sin, 0.55 * inner_sin], axis=-1)
    x, y = (path[..., i, None] + side[..., i, None] * out + up[..., i, None] * along for i in (0, 1))
    held = np.concatenate([shell, core], axis=-1) * length[..., None]
    return x.astype(np.float32), y.astype(np.float32), held.astype(np.float32)


def _turns(count: int, steps: int) -> tuple[Map, Map]:
    """Cosines and sines around a tube; a golden turn from step to step keeps the points from lining up in rails."""
    angle = 2 * np.pi / count * (np.arange(count) + 0.618 * np.arange(steps)[:, None])
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def draw_flat_tube(knots: Sequence[tuple[float, float]], radii: Sequence[float], cortex: float) -> Points:
    """Draw a round bone that lies in the image plane, through ``knots`` (x, y)."""
    at = np.linspace(0, 1, len(knots))
    steps = np.linspace(0, 1, 220, dtype=np.float32)
    degree = min(3, len(knots) - 1)
    path = np.zeros((1, steps.size, 3), np.float32)
    for axis in (0, 1):
        path[0, :, axis] = np.polyval(np.polyfit(at, [knot[axis] for knot in knots], degree), steps)
    side = np.broadcast_to(np.array([0, 0, 1], np.float32), path.shape)
    radius = np.interp(steps, np.linspace(0, 1, len(radii)), radii)[None].astype(np.float32)
    fade = np.clip(np.minimum(steps, 1 - steps) * 7 + 0.1, 0, 1)[None].astype(np.float32)
    return draw_tube(path, side, radius, radius, cortex * fade)


def draw_capsule(x: Map, y: Map, start: tuple[float, float], end: tuple[float, float], radius: float) -> Map:
    """Thickness of a straight round tube with round ends, in cm."""
    along = (end[0] - start[0], end[1] - start[1])
    share = ((x - start[0]) * along[0] + (y - start[1]) * along[1]) / (along[0] ** 2 + along[1] ** 2)
    share = np.clip(share, 0, 1)
    distance2 = (x - start[0] - share * along[0]) ** 2 + (y - start[1] - share * along[1]) ** 2
    return 2 * np.sqrt(np.clip(radius**2 - distance2, 0, None))
