"""The body's outline, heart and mediastinum, and where lungs and diaphragm lie."""

import numpy as np

from xray.phantom.geometry import Ellipsoid, Plane, Profile, draw_capsule
from xray.phantom.images import Map
from xray.phantom.patient import Anatomy
from xray.phantom.skeleton import RibCage, make_rib_cage


def measure_body_depth(plane: Plane, a: Anatomy) -> Map:
    """Thickness of the body, air included, in cm."""
    x, y = np.abs(plane.x), plane.y
    outer = make_rib_cage(a).wall_profile()(y) + a.wall + Profile((0, 8, 16, 24, 36), (3.5, 2.0, 0.7, 0.4, 0.9), 4)(y)
    half = Profile((-4, 2, 10, 20, 30), (8.6, 9.8, 10.7, 11.2, 11.6), 4)(y) * a.depth + (a.wall - 2) * 0.7
    torso = 2 * half * np.sqrt(np.sqrt(np.clip(1 - (x / outer) ** 4, 0, None)))
    torso *= Profile((-3.5, 1.5), (0, 1), 3)(y)
    total = (torso**4 + _neck(x, y) ** 4 + _shoulder(x, y, a) ** 4) ** 0.25
    return np.asarray(total + _breasts(plane, a), np.float32)


def _neck(x: Map, y: Map) -> Map:
    width = Profile((-14, -5, -1, 4), (5.6, 6.2, 10.5, 16), 4)(y)
    return 17 * np.sqrt(np.clip(1 - (x / width) ** 2, 0, None))


def _shoulder(x: Map, y: Map, a: Anatomy) -> Map:
    """Join neck and shoulder joint by a tube, and run another down the arm."""
    drop, far = 2.2 + a.shoulder_drop, 16.5 * a.breadth
    girdle = draw_capsule(x, y, (4.0, 1.0 + drop), (far, 2.2 + drop), 5.6 + 0.5 * a.wall)
    arm = draw_capsule(x, y, (far + 0.8, 2.2 + drop), (far + 8.0, 19.0), 4.4 + 0.4 * a.wall)
    return np.asarray(np.maximum(1.3 * girdle, 1.4 * arm), np.float32)


def _breasts(plane: Plane, a: Anatomy) -> Map:
    total = plane.zeros()
    if a.breast:
        for side in (-1, 1):
            y = 13.6 + 0.6 * a.breast
            Ellipsoid(side * 8.0 * a.breadth, y, 5.0 * a.breadth, 4.6 + 0.4 * a.breast, 1, -8 * side).add_to(
                total, plane, 1.0
            )
        # Thin where it leaves the chest above, full below: only its lower edge is seen.
        total *= a.breast / 2 * Profile((8, 19), (0, 1), 4)(plane.y)
    return total


def measure_outward(plane: Plane, ribs: "RibCage", midline: Profile) -> Map:
    """Share of the way from the midline (0) to the inner wall of the rib cage (1)."""
    reach = np.maximum(ribs.wall_profile()(plane.y), np.float32(0.1))
    return np.minimum(np.abs(plane.x - midline(plane.y) * np.float32(0.3)) / reach, np.float32(2))


def measure_below_dome(plane: Plane, outward: Map, a: Anatomy) -> Map:
    """Depth below the diaphragm's dome in cm, negative above it."""
    left = 1 / (1 + np.exp(-1.6 * (plane.x - a.heart_shift)))
    top = np.float32(20.6 + a.inspiration) + np.float32(a.hemidiaphragm_gap) * left
    off_peak = outward - np.float32(0.46)
    fall = np.where(off_peak > 0, a.dome_height * 3.4, a.dome_height * 1.3)
    return np.asarray(plane.y - top - fall * off_peak**2, np.float32)


def measure_off_middle(plane: Plane, midline: Profile, a: Anatomy) -> Map:
    """Share of the way from the middle (0) to the edge of the upper mediastinum and spine (1)."""
    heights = (-3, -0.8, 0, 1.5, 4, 9, 13, 19, 24)
    right = Profile(heights, (6.0, 4.6, 3.4, 2.8, 2.5, 2.5, 2.2, 2.2, 2.4), 1.4)
    left = Profile(heights, (6.0, 4.6, 3.5, 2.9, 2.7, 2.4, 2.2, 2.2, 2.4), 1.4)
    offset = plane.x - midline(plane.y) - np.float32(0.5 * a.heart_shift)
    return np.asarray(np.abs(offset) / np.where(offset > 0, left(plane.y), right(plane.y)), np.float32)


def list_heart_parts(a: Anatomy) -> list[Ellipsoid]:
    """Heart chambers and great vessels; a deep breath draws them down and narrow."""
    x, low, s = a.heart_shift, 0.85 * a.inspiration, a.heart
    return [
        Ellipsoid(x + 2.6, 17.0 + low, 7.0 * s, 5.2 * s, 8.6 * a.depth, 40, 2.6),  # left ventricle
        Ellipsoid(x - 0.6, 17.2 + low, 4.1 * s, 5.6 * s, 8.4 * a.depth, 0, 3.0),  # right atrium
        Ellipsoid(
            x + 2.2, 20.4 + a.inspiration + 0.8 * a.hemidiaphragm_gap, 5.6 * s, 4.2, 8.4 * a.depth, 20, 2.6
        ),  # what rests on the diaphragm
        Ellipsoid(x + 1.4, 12.4 + low / 2, 3.2 * s, 4.4, 6.5, -24, 2.4),  # pulmonary trunk, left atrial appendage
        Ellipsoid(x - 1.0, 8.6, 2.6, 7.0, 6.0),  # superior vena cava, ascending aorta
        Ellipsoid(x + 1.9, 7.0, 1.9 * a.knob, 1.9 * a.knob, 6.0),  # aortic knob
        Ellipsoid(0.5 * x + 1.5, 14.0, 1.3, 9.5, 1.6, 3),  # descending aorta
    ]
