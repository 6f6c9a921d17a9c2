"""Ribs, clavicles, shoulders and spine."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from xray.phantom.geometry import Ellipsoid, Plane, Points, Profile, draw_flat_tube, draw_tube
from xray.phantom.images import Map
from xray.phantom.patient import Anatomy


@dataclass(frozen=True)
class RibCage:
    """Ribs as tilted half rings, and the inner wall of the cage that follows from them; lengths in cm."""

    head_y: Map
    reach: Map
    depth: Map
    slope: Map
    half_height: float

    def wall_profile(self) -> Profile:
        """Half-width of the space inside the ribs, by height."""
        inner = self.reach - 0.45
        return Profile([-1.3, -1.0, *self._side_y()], [0.0, 3.6, *inner], 1.3)

    def depth_profile(self) -> Profile:
        """Half-depth of the space inside the ribs, by height."""
        return Profile(
            [-1.2, -0.6, 0.5, 2, 5, 9, 15, 30], np.array([0, 1.6, 3, 4.4, 6, 7.6, 8.6, 8.8]) * self._scale, 1.2
        )

    @property
    def _scale(self) -> float:
        return float(self.depth[5] / 9.2)

    def _side_y(self) -> Map:
        return self.head_y + self.slope * self.depth

    def points(self) -> Points:
        """Give the points of all ribs, both sides."""
        # The last two ribs float: they end at the side.
        ends = np.where(np.arange(self.reach.size) < 10, 2.45, 1.35)  # noqa: PLR2004
        phi = np.linspace(0.2, ends, 220, axis=-1, dtype=np.float32)
        path, side = self._half_rings(phi)
        mirror = np.array([-1, 1, 1], np.float32)
        path, side = np.concatenate([path, path * mirror]), np.concatenate([side, side * mirror])
        phi = np.concatenate([phi, phi])
        # Ribs are slim at the spine, broad at the side and flat in front.
        swell = np.interp(phi, (0.2, 0.6, 1.8, 2.45), (0.75, 0.9, 1.0, 1.12))
        # The bone thins out towards the side, where rays run along it, and passes into cartilage in front.
        cortex = np.interp(phi, (0.2, 0.5, 1.2, 1.9, 2.25, 2.45), (0.04, 0.075, 0.03, 0.025, 0.04, 0.0))
        return draw_tube(path, side, self.half_height * swell, 0.3 * np.ones_like(swell), cortex)

    def _half_rings(self, phi: Map) -> tuple[Map, Map]:
        """Centre lines from the spine round to the front, and the directions out of the cage."""
        reach, depth, head = self.reach[:, None], self.depth[:, None], self.head_y[:, None]
        x, z = reach * np.sin(phi) ** 0.92, -depth * np.cos(phi)
        path = np.stack([x, head + self.slope[:, None] * (z + depth), z], axis=-1)
        out = np.stack([depth * np.sin(phi), np.zeros_like(x), -reach * np.cos(phi)], axis=-1)
        return path.astype(np.float32), (out / np.linalg.norm(out, axis=-1, keepdims=True)).astype(np.float32)


def make_rib_cage(a: Anatomy) -> RibCage:
    """Make the ribs of one patient."""
    count = a.rib_count
    reach = np.array([5.6, 8.6, 10.5, 11.7, 12.6, 13.2, 13.6, 13.8, 13.8, 13.5, 13.0, 11.5])[:count]
    depth = np.array([3.6, 5.2, 6.7, 7.9, 8.7, 9.2, 9.6, 9.8, 9.8, 9.5, 9.0, 8.0])[:count]
    head = -1.6 + a.pitch * np.arange(count)
    steep = np.array([1.5, 1.25, 1.1] + [1.0] * 7 + [1.15, 1.3])[:count]
    rings = (head, reach * a.breadth, depth * a.depth, steep * a.rib_slope)
    return RibCage(*rings, a.rib_height)


def draw_clavicle(a: Anatomy, side: int) -> Points:
    """Draw one clavicle; ``side`` is -1 for the patient's right, 1 for the left."""
    lift = a.shoulder_drop
    knots = [(1.9, 4.4), (5.5, 3.1 + 0.2 * lift), (10.0, 1.0 + 0.7 * lift), (15.4 * a.breadth, 0.6 + lift)]
    placed = [(side * x + 0.8 * a.heart_shift * (1 - x / 15), y) for x, y in knots]
    return draw_flat_tube(placed, (1.0, 0.68, 0.55, 0.58, 0.75), 0.065)


def draw_shoulder_bones(a: Anatomy, side: int) -> list[Points]:
    """Rims of a shoulder blade turned out of the lung field, and the shaft of the arm."""
    drop, wide = a.shoulder_drop, a.breadth
    top, tip, socket = _blade_corners(a)
    bones = [
        draw_flat_tube(_beside(side, [top, (11.4 * wide, 7.0 + drop), tip]), (0.2, 0.2), 0.03),
        draw_flat_tube(_beside(side, [tip, (14.6 * wide, 8.6 + drop), socket]), (0.4, 0.6), 0.05),
        draw_flat_tube(_beside(side, [(11.6 * wide, 4.6 + drop), (15.6 * wide, 1.4 + drop)]), (0.35, 0.6), 0.035),
    ]
    x, y = 17.6 * wide, 3.2 + drop
    shaft = draw_flat_tube(
        _beside(side, [(x + 0.3, y), (x + 2.6, y + 7), (x + 5.2, y + 15)]), (1.6, 1.3, 1.15, 1.1), 0.04
    )
    return [*bones, shaft]


def draw_shoulder_plates(plane: Plane, a: Anatomy) -> Map:
    """Blades of the shoulders and heads of the arm bones."""
    total = plane.zeros()
    top, tip, socket = _blade_corners(a)
    for side in (-1, 1):
        total += np.float32(0.06) * _polygon(plane, _beside(side, [top, tip, socket]))
        head = Ellipsoid(side * 17.4 * a.breadth, 2.8 + a.shoulder_drop, 2.4, 2.5, 2.3)
        head.add_to(total, plane, 0.07)
    return total


def _blade_corners(a: Anatomy) -> list[tuple[float, float]]:
    drop, wide = a.shoulder_drop, a.breadth
    return [(10.8 * wide, 1.6 + drop), (13.6 * wide, 14.0 + drop), (15.2 * wide, 3.2 + drop)]


def _beside(side: int, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(side * x, y) for x, y in points]


def _polygon(plane: Plane, corners: Sequence[tuple[float, float]]) -> Map:
    rows, columns = plane.pixel(*np.array(corners, np.float32).T)
    canvas = Image.new("L", (plane.shape[1], plane.shape[0]))
    ImageDraw.Draw(canvas).polygon(list(zip(columns.tolist(), rows.tolist(), strict=True)), fill=255)
    return np.asarray(canvas, np.float32) / 255


def draw_spine(plane: Plane, a: Anatomy, midline: Profile) -> Map:
    """Ray sum of the vertebrae, in a strip of the image."""
    window = (slice(None), plane.window(0.0, 0.0, 6.5)[1])
    y = plane.y[window]
    x = np.abs(plane.x[window] - midline(y))
    level = (y + 1.6) / np.float32(a.pitch) + np.float32(0.5)
    phase = level - np.floor(level)  # 0 to 1 from one disc to the next
    half = (1.45 + 0.028 * np.clip(y, -8, 36)) * (1 + 0.3 * (phase - 0.5) ** 2)
    total = plane.zeros()
    total[window] = _vertebral_body(x / half, phase) + _vertebral_arch(x / half, phase)
    return total


def _vertebral_body(across: Map, phase: Map) -> Map:
    edge = np.clip((1 - across) * 2.5, 0, 1)
    height = np.clip((0.43 - np.abs(phase - 0.5)) * 16, 0, 1)
    endplate = np.exp(-(((np.abs(phase - 0.5) - 0.4) / 0.035) ** 2))
    cortex = np.exp(-(((across - 0.93) / 0.07) ** 2))
    return np.asarray(edge * (0.06 + 0.06 * height + 0.04 * endplate) + 0.03 * cortex * height)


def _vertebral_arch(across: Map, phase: Map) -> Map:
    """Pedicles, spinous and transverse processes."""
    ring = np.hypot((across - 0.62) / 0.2, (phase - 0.36) / 0.17)
    pedicle = np.exp(-(((ring - 0.85) / 0.3) ** 2))
    spinous = np.clip(1.3 - np.hypot(across / 0.17, (phase - 0.72) / 0.17), 0, 0.5)
    transverse = (
        np.clip(1 - np.abs(phase - 0.34) / 0.17, 0, 1)
        * np.clip((1.75 - across) * 3, 0, 1)
        * np.clip((across - 0.8) * 9, 0, 1)
    )
    return np.asarray(0.07 * pedicle + 0.14 * spinous + 0.05 * np.sqrt(transverse))
