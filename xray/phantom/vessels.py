"""Vessels that grow out of the hila, and the airways."""

from collections.abc import Sequence

import numpy as np

from xray.phantom.geometry import Points, join_points
from xray.phantom.images import Map
from xray.phantom.patient import Anatomy


def find_hila(a: Anatomy) -> list[tuple[tuple[float, float], int]]:
    """Give place (x, y) and side of both hila."""
    low = 0.3 * a.inspiration
    return [((a.heart_shift - 3.1, 10.9 + low), -1), ((a.heart_shift + 3.5, 10.0 + low), 1)]


def grow_vessels(rng: np.random.Generator, hilum: tuple[float, float], side: int) -> Points:
    """Grow arteries and veins outwards from a hilum, each generation shorter and thinner than the last."""
    x: Map
    y: Map
    heading: Map = np.radians(np.array([-74, -54, -34, -15, 4, 20, 35, 47, 58, 68, 77, 86]) + rng.normal(0, 5, 12))
    x, y = hilum[0] + rng.normal(0, 0.5, 12), hilum[1] + 1.3 * np.sin(heading) + rng.normal(0, 0.4, 12)
    radius: Map = rng.uniform(0.26, 0.5, 12) * np.where(heading > 0, 1.15, 0.9)
    generations = []
    for generation in range(6):
        length = rng.uniform(1.5, 3.2, x.size) * 0.93**generation
        bend = rng.normal(0, 0.22, x.size)
        generations.append(_solid_tube(x, y, heading, bend, length, radius, side))
        x, y = _advance(x, y, heading, bend, length, side)
        heading, radius = heading + 2 * bend, radius * rng.uniform(0.84, 0.96, x.size)
        x, y, heading, radius = _fork(rng, x, y, heading, radius)
    return join_points(generations)


def _fork(rng: np.random.Generator, x: Map, y: Map, heading: Map, radius: Map) -> tuple[Map, Map, Map, Map]:
    spread = rng.uniform(0.16, 0.55, x.size)
    share = rng.uniform(0.62, 0.9, x.size)
    return (
        np.repeat(x, 2),
        np.repeat(y, 2),
        np.stack([heading + spread * (1 - share), heading - spread], axis=1).ravel(),
        np.stack([radius * share, radius * (1.4 - share) * 0.85], axis=1).ravel(),
    )


def _advance(x: Map, y: Map, heading: Map, bend: Map, along: Map, side: int) -> tuple[Map, Map]:
    """Follow a gently curved branch for ``along`` cm."""
    return x + side * along * np.cos(heading + bend), y + along * np.sin(heading + bend)


def _solid_tube(x: Map, y: Map, heading: Map, bend: Map, length: Map, radius: Map, side: int) -> Points:
    """Fill curved round tubes with points whose volumes add up to theirs."""
    share = (np.arange(24, dtype=np.float32) + 0.5) / 24
    chords = np.linspace(-0.9, 0.9, int(np.clip(radius.max() / 0.045, 3, 13)), dtype=np.float32)
    turn = heading[:, None] + bend[:, None] * share
    px = x[:, None] + side * length[:, None] * share * np.cos(turn)
    py = y[:, None] + length[:, None] * share * np.sin(turn)
    out = radius[:, None, None] * chords
    points_x = px[..., None] - side * out * np.sin(turn)[..., None]
    points_y = py[..., None] + out * np.cos(turn)[..., None]
    profile = np.sqrt(1 - chords**2) / np.sqrt(1 - chords**2).sum()
    volume = (np.pi * radius**2 * length / share.size)[:, None, None] * profile
    flat = (points_x, points_y, np.broadcast_to(volume, points_x.shape))
    return tuple(part.astype(np.float32).ravel() for part in flat)  # type: ignore[return-value]


def draw_airway(knots: Sequence[tuple[float, float]], radius: float) -> Points:
    """Draw a tube of air through ``knots`` (x, y), which fades out where it divides."""
    steps, chords = np.linspace(0, 1, 260), np.linspace(-0.97, 0.97, 21)
    at = np.linspace(0, 1, len(knots))
    x, y = (np.interp(steps, at, [knot[axis] for knot in knots]) for axis in (0, 1))
    dx, dy = np.gradient(x), np.gradient(y)
    length = np.hypot(dx, dy)
    points_x = x[:, None] + radius * chords * (dy / length)[:, None]
    points_y = y[:, None] - radius * chords * (dx / length)[:, None]
    profile = np.sqrt(1 - chords**2) / np.sqrt(1 - chords**2).sum()
    fade = np.clip((1 - steps) * 3, 0, 1)  # no hard end where it divides
    volume = np.pi * radius**2 * (length * fade)[:, None] * profile
    flat = (points_x, points_y, volume)
    return tuple(part.astype(np.float32).ravel() for part in flat)  # type: ignore[return-value]
