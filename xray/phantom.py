"""Chest radiographs made from nothing: a procedural phantom for the demo and the tests.

The torso is a set of simple solids in patient coordinates, in cm: ``x`` to the patient's left (the image's right),
``y`` down from the top of the rib cage, ``z`` towards the front. Their thickness along each ray is summed, attenuated
by Beer-Lambert, and taken through scatter, noise, blur and a display curve, as a real detector and viewer would::

    Anatomy -> thickness of tissue, air and bone -> ray sum -> exposure -> display (uint8)

The two findings share one anatomy per seed. Everything that looks at the whole image (scatter, contrast processing,
windowing) looks at the healthy chest, so opacities change the pixels they cover and no others. Air content, habitus and
exposure vary more between patients than a finding changes the grey level, and a finding is made of foci a few
millimetres wide: 64 pixels of the whole chest say much less about it than the image does. A shortcut is there only
where it is planted (``marker``), so that what finds shortcuts can be tested.
These images teach a network nothing about patients. They exist so that the software can be tried without any.

References
----------
DICOM PS3.3 A.2 (CR Image IOD) for :func:`encode_dicom`.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

FINDINGS = ("normal", "opacities")
MANIFEST_NAME = "manifest.csv"
MANIFEST_HEADER = ("file", "label", "finding", "patient_id", "source")
SOURCE = "phantom"
PLANTED_LETTER = "P"
"""The planted shortcut: as if a ward that has the patients with a finding wrote its letter on its images."""

Map = NDArray[np.floating[Any]]  # float32 wherever it is as large as the image
Format = Literal["png", "jpeg", "dicom"]

# Attenuation in 1/cm at about 120 kVp; bone is what it adds to the soft tissue it replaces.
_MU_SOFT = 0.185
_MU_CORTEX = 0.62
_MU_CANCELLOUS = 0.2
_SPLAT_BLOCK = 16384  # points at a time: their temporaries stay in the cache
_VESSEL_GAIN = 2.4  # veins run along arteries and bronchial walls along both: none is drawn
_PLANTED_AT = (0.93, 0.09)  # (row, column) as a fraction of the image
_LUNG_AIR = 0.74  # by volume: the rest of an inflated lung is blood and tissue

# One random stream per concern: what one draws never shifts another.
_ANATOMY, _VESSELS, _TEXTURE, _OPACITIES, _NOISE, _EXPOSURE, _SIZE, _STUDY = range(8)


@dataclass(frozen=True)
class Radiograph:
    """One synthetic frontal chest radiograph.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (height, width)
        Bone is white, air is black (MONOCHROME2).
    finding : str
        One of ``FINDINGS``.
    patient_id : str
        Depends on the seed alone.
    seed : int
        What it was generated from, 0 or more.
    """

    pixels: NDArray[np.uint8]
    finding: str
    patient_id: str
    seed: int


@dataclass(frozen=True)
class _Anatomy:
    """What makes one patient look unlike the next; lengths in cm."""

    sex: Literal["F", "M"]
    breadth: float  # scale of the rib cage across
    depth: float  # scale of the rib cage front to back
    pitch: float  # distance from one vertebra to the next
    rib_slope: float  # how far a rib falls per cm forward
    rib_height: float
    rib_count: int
    inspiration: float  # diaphragm below its usual place
    hemidiaphragm_gap: float  # the left dome below the right one
    dome_height: float
    heart: float  # scale
    heart_shift: float  # an axial rotation moves the heart and the clavicles past the spine
    knob: float  # scale of the aortic knob
    scoliosis: float
    wall: float  # chest wall outside the ribs
    breast: float  # thickness, 0 for none
    gastric_bubble: float  # thickness, 0 for none
    shoulder_drop: float
    tilt_deg: float
    margin: float  # field outside the rib cage, each side
    centre_y: float


@dataclass(frozen=True)
class _Exposure:
    """How the radiograph was taken and shown."""

    photons: float  # per pixel behind no patient
    scatter: float  # scattered over primary, in a thick chest
    contrast: float  # steepness of the display curve
    level: float  # its middle: 0 lung, 1 abdomen
    equalize: float  # how much low-frequency contrast is taken away, 0-1
    sharpness: float  # weight of the detector blur's neighbours
    marker: str
    marker_at: tuple[float, float]  # (row, column) as a fraction of the image
    shutter: tuple[float, float, float, float]  # top, bottom, left, right, as a fraction of the image


def generate_radiograph(
    seed: int, *, finding: str, height: int = 640, width: int = 544, marker: bool = False
) -> Radiograph:
    """Generate one chest radiograph.

    Parameters
    ----------
    seed : int
        0 or more; one seed is one patient. The same arguments give the same bytes.
    finding : str
        ``"normal"`` or ``"opacities"``: bilateral, peripheral, mostly lower-zone hazes and consolidations.
    height, width : int
        Size in pixels, each at least 64; the whole chest is in the field at any aspect.
    marker : bool
        Write `PLANTED_LETTER` into the lower left corner.

    Returns
    -------
    Radiograph
        ``pixels`` is uint8, shape (height, width). For one seed the findings differ inside the lungs only.

    Raises
    ------
    ValueError
        The finding is unknown, or the image is too small for a chest.
    """
    _check_request(finding, height, width)
    anatomy, exposure = _draw_anatomy(seed), _draw_exposure(seed)
    plane = _Plane.over(anatomy, height, width)
    chest = _Chest(plane, anatomy, seed)
    healthy = chest.ray_sum()
    disease = chest.opacities() if finding == "opacities" else np.zeros_like(healthy)
    pixels = _expose(healthy, disease, chest.lungs, exposure, seed)
    if marker:
        pixels = _add_letter(pixels, PLANTED_LETTER, _PLANTED_AT)
    return Radiograph(pixels, finding, f"PHANTOM-{seed:010d}", seed)


def _check_request(finding: str, height: int, width: int) -> None:
    if finding not in FINDINGS:
        msg = f"finding is {finding!r}, expected one of {', '.join(FINDINGS)}"
        raise ValueError(msg)
    if min(height, width) < 64:  # noqa: PLR2004
        msg = f"radiograph is {height}x{width} px, expected at least 64x64"
        raise ValueError(msg)


# ---------------------------------------------------------------------------------------------------- chance


def _stream(seed: int, concern: int) -> np.random.Generator:
    return np.random.default_rng([seed, concern])


def _happens(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _draw_anatomy(seed: int) -> _Anatomy:
    rng = _stream(seed, _ANATOMY)
    female = _happens(rng, 0.5)
    habitus = rng.normal()  # slim to stout: drives the wall and lifts the diaphragm
    return _Anatomy(
        sex="F" if female else "M",
        breadth=(0.93 if female else 1.0) * rng.uniform(0.94, 1.06),
        depth=rng.uniform(0.9, 1.08) + 0.03 * habitus,
        pitch=rng.uniform(2.2, 2.5),
        rib_slope=rng.uniform(0.46, 0.68),
        rib_height=rng.uniform(0.56, 0.7),
        rib_count=int(rng.choice([10, 11, 12], p=[0.2, 0.5, 0.3])),
        inspiration=rng.normal(0, 0.9) - 0.4 * habitus,
        hemidiaphragm_gap=rng.normal(0.9, 0.5),
        dome_height=rng.uniform(3.6, 5.6),
        heart=rng.normal(1.0, 0.07) + 0.02 * habitus,
        heart_shift=rng.normal(0, 0.45),
        knob=rng.uniform(0.75, 1.2),
        scoliosis=rng.normal(0, 0.35),
        wall=float(np.clip(2.3 + 0.7 * habitus, 1.3, 4.2)),
        breast=rng.uniform(0.8, 3.2) if female else 0.0,
        gastric_bubble=rng.uniform(1.5, 4.5) if _happens(rng, 0.55) else 0.0,
        shoulder_drop=rng.uniform(-1.0, 1.2),
        tilt_deg=rng.normal(0, 1.3),
        margin=rng.uniform(2.4, 4.4),
        centre_y=rng.uniform(12.3, 14.2),
    )


def _draw_exposure(seed: int) -> _Exposure:
    rng = _stream(seed, _EXPOSURE)
    left = _happens(rng, 0.8)  # "L" stands at the patient's left: the image's right
    shutter = rng.uniform(0.0, 0.035, 4) if _happens(rng, 0.4) else np.zeros(4)
    return _Exposure(
        photons=float(np.exp(rng.uniform(np.log(1.2e4), np.log(1e5)))),
        scatter=rng.uniform(0.5, 1.0),
        # As wide as departments differ: brightness and contrast alone must say little about a finding.
        contrast=rng.uniform(2.8, 4.8),
        level=rng.uniform(0.26, 0.6),
        equalize=rng.uniform(0.3, 0.6),
        sharpness=rng.uniform(0.12, 0.3),
        marker="L" if left else "R",
        marker_at=(rng.uniform(0.05, 0.13), rng.uniform(0.9, 0.94) if left else rng.uniform(0.06, 0.1)),
        shutter=(float(shutter[0]), float(shutter[1]), float(shutter[2]), float(shutter[3])),
    )


def _noise_field(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Map:
    """Smooth noise, mean 0 and deviation about 1, with ``cells`` features across the width."""
    coarse = rng.standard_normal((cells * shape[0] // shape[1] + 2, cells), dtype=np.float32)
    return _resize(coarse, shape, Image.Resampling.BICUBIC) * np.float32(1.3)


# ---------------------------------------------------------------------------------------------------- geometry


class _Plane:
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
    def over(cls, anatomy: _Anatomy, height: int, width: int) -> "_Plane":
        """Fit the whole rib cage in the field, whatever the aspect."""
        across = 2 * (13.8 * anatomy.breadth + anatomy.margin)
        return cls((height, width), max(across / width, 34.0 / height), anatomy.centre_y, anatomy.tilt_deg)

    def halved(self) -> "_Plane":
        """Cover the same field with half the pixels along each side."""
        shape = (self.shape[0] // 2, self.shape[1] // 2)
        return _Plane(shape, self.cm_per_px * self.shape[1] / shape[1], self._centre_y, self._tilt_deg)

    def zeros(self) -> Map:
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
class _Ellipsoid:
    """A solid with an elliptic outline; lengths are semi-axes in cm, ``turn_deg`` is clockwise in the image."""

    x: float
    y: float
    a: float
    b: float
    depth: float
    turn_deg: float = 0.0
    bluntness: float = 2.0

    def merge_into(self, total: Map, plane: _Plane) -> None:
        """Take the union with what is already there: overlapping organs share their depth."""
        window = plane.window(self.x, self.y, max(self.a, self.b))
        np.maximum(total[window], self._thickness(plane.x[window], plane.y[window]), out=total[window])

    def add_to(self, total: Map, plane: _Plane, weight: float = 1.0) -> None:
        window = plane.window(self.x, self.y, max(self.a, self.b))
        total[window] += weight * self._thickness(plane.x[window], plane.y[window])

    def _thickness(self, x: Map, y: Map) -> Map:
        cos, sin = math.cos(math.radians(self.turn_deg)), math.sin(math.radians(self.turn_deg))
        along = ((x - self.x) * cos + (y - self.y) * sin) / self.a
        across = ((y - self.y) * cos - (x - self.x) * sin) / self.b
        rest = np.clip(1 - (along**2 + across**2) ** (self.bluntness / 2), 0, None)
        return np.asarray(2 * self.depth * np.sqrt(rest), np.float32)


class _Profile:
    """A smooth function of one coordinate through a few knots, fast to look up on a whole image."""

    _LOW, _HIGH, _STEPS = -20.0, 60.0, 2048

    def __init__(self, at: Sequence[float] | Map, values: Sequence[float] | Map, smooth_cm: float = 1.6) -> None:
        grid = np.linspace(self._LOW, self._HIGH, self._STEPS)
        size = max(1, round(smooth_cm / (grid[1] - grid[0])))
        window = np.hanning(size + 2) / np.hanning(size + 2).sum()
        padded = np.pad(np.interp(grid, at, values), len(window) // 2, mode="edge")
        self._table: Map = np.convolve(padded, window, mode="valid")[: self._STEPS].astype(np.float32)

    def __call__(self, coordinate: Map) -> Map:
        step = (coordinate - self._LOW) * np.float32((self._STEPS - 1) / (self._HIGH - self._LOW))
        return self._table.take(step.astype(np.int32), mode="clip")


_Points = tuple[Map, Map, Map]  # x and y in cm; what each point holds: cm3, or cm3 times attenuation


def _join(parts: Iterable[_Points]) -> _Points:
    x, y, volume = (np.concatenate([part.ravel() for part in same]) for same in zip(*parts, strict=True))
    return x, y, volume


def _tube(path: Map, side: Map, half_height: Map, half_thickness: Map, cortex: Map) -> _Points:
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


def _flat_tube(knots: Sequence[tuple[float, float]], radii: Sequence[float], cortex: float) -> _Points:
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
    return _tube(path, side, radius, radius, cortex * fade)


# ---------------------------------------------------------------------------------------------------- anatomy


class _Chest:
    """One patient in front of one detector."""

    def __init__(self, plane: _Plane, anatomy: _Anatomy, seed: int) -> None:
        self._plane, self._anatomy, self._seed = plane, anatomy, seed
        self._ribs = _rib_cage(anatomy)
        self._midline = _Profile((-10, 2, 14, 30), (0, anatomy.scoliosis, -anatomy.scoliosis, 0), 6.0)
        # These maps are smooth (the edges come from square roots of them later): a quarter of the pixels is enough.
        rough = plane.halved()
        outward = _outward(rough, self._ribs, self._midline)
        self._body_depth, self._outward, self._below_dome, self._off_middle = (
            _resize(smooth, plane.shape)
            for smooth in (
                _body_depth(rough, anatomy),
                outward,
                _depth_below_dome(rough, outward, anatomy),
                _off_middle(rough, self._midline, anatomy),
            )
        )
        self.lungs: Map = self._lung_depth()
        # Vessels show against air only: they fade where the lung thins out in front of heart and diaphragm.
        vessels = self._vessel_tree() * np.clip(self.lungs / 7, 0, _VESSEL_GAIN)
        self._vessels: Map = np.minimum(vessels, self.lungs * np.float32(0.7)).astype(np.float32)

    def ray_sum(self) -> Map:
        """Line integral of attenuation through the healthy chest, without unit, shape (height, width)."""
        air = np.float32(_LUNG_AIR) * (self.lungs - self._vessels) * self._parenchyma()
        soft = np.clip(self._body_depth - air - self._other_air(), 0, None)
        return np.float32(_MU_SOFT) * soft + self._bones()

    def opacities(self) -> Map:
        """Return what fluid in the air spaces adds to :meth:`ray_sum`; 0 outside the lungs."""
        x, outward, below = (_resize(m, self._plane.quarter) for m in (self._plane.x, self._outward, self._below_dome))
        filled = _resize(_filled_share(np.sign(x) * outward, below, self._seed), self._plane.shape)
        return np.float32(_MU_SOFT * _LUNG_AIR) * (self.lungs - self._vessels) * filled

    # -- lungs

    def _lung_depth(self) -> Map:
        half = self._ribs.depth_profile()(self._plane.y)
        inside = np.clip(1 - self._outward**2, 0, 1)
        chord = 2 * half * np.sqrt(inside)
        # The diaphragm is fixed high in front and low at the back, so lung goes on behind its dome.
        recess = 0.5 + 4.5 * inside
        front, back = (np.sqrt(np.clip(self._below_dome / fall, 0, 1)) for fall in (np.float32(0.8), recess))
        above = chord * (1 - 0.5 * front - 0.5 * back)
        # The heart rests on the dome and fills the same depth: take the larger of the two, not their sum.
        return np.asarray(np.clip(np.minimum(above, chord - self._mediastinum(half)), 0, None), np.float32)

    def _mediastinum(self, half_depth: Map) -> Map:
        strip = 2 * half_depth * np.sqrt(np.clip(1 - self._off_middle**3, 0, None))
        heart = self._plane.zeros()
        for organ in _heart(self._anatomy):
            organ.merge_into(heart, self._plane)
        return np.asarray(np.maximum(strip, heart * np.clip(1 - self._below_dome / 2.5, 0, 1)), np.float32)

    def _parenchyma(self) -> Map:
        """Unevenness of the air content, in both findings alike.

        A lung is never flat grey, and chest wall, posture and blood flow shade it broadly: grey levels alone should say
        little about the finding.
        """
        rng = _stream(self._seed, _TEXTURE)
        coarse = self._plane.quarter
        uneven = 0.01 * _noise_field(rng, coarse, 80) + 0.014 * _noise_field(rng, coarse, 26)
        broad = rng.uniform(0.08, 0.16) * _noise_field(rng, coarse, 5)
        shallow = rng.uniform(0, 0.15)  # one patient breathes in less than the next
        return 1 + _resize(uneven + np.clip(broad, -0.35, 0.25), self._plane.shape) - np.float32(shallow)

    def _vessel_tree(self) -> Map:
        rng = _stream(self._seed, _VESSELS)
        branches = [_grow_vessels(rng, hilum, side) for hilum, side in _hila(self._anatomy)]
        return self._plane.splat(*_join(branches))

    # -- the rest of the body

    def _other_air(self) -> Map:
        """Trachea, main bronchi and the stomach's bubble, as thickness of air in cm."""
        a, total = self._anatomy, self._plane.zeros()
        if a.gastric_bubble:
            top = 20.6 + a.inspiration + a.hemidiaphragm_gap
            across, tall = 2.2 + 0.5 * a.gastric_bubble, 1.6 + 0.4 * a.gastric_bubble
            _Ellipsoid(6.4 + a.heart_shift, top + 1.0 + tall, across, tall, a.gastric_bubble / 2, 8).add_to(
                total, self._plane
            )
            # Standing, the stomach holds its gas over a level of fluid.
            total *= np.clip((top + 2.4 + a.gastric_bubble / 2 - self._plane.y) * 3, 0, 1)
        shift = a.heart_shift
        trachea = _airway([(0.1, -12), (0.1 + shift * 0.3, -2), (-0.2 + shift * 0.6, 4), (-0.1 + shift, 8.6)], 0.74)
        right = _airway([(-0.2 + shift, 8.0), (-1.6 + shift, 9.8), (-3.6 + shift, 12.0)], 0.55)
        left = _airway([(0.0 + shift, 8.0), (2.0 + shift, 9.8), (4.6 + shift, 11.4)], 0.48)
        return total + self._plane.splat(*_join([trachea, right, left]))

    def _bones(self) -> Map:
        a, plane = self._anatomy, self._plane
        hanging = [bone for side in (-1, 1) for bone in (*_shoulder_bones(a, side), _clavicle(a, side))]
        drawn = plane.splat(*_join([self._ribs.points(), *hanging]))
        return drawn + _spine(plane, a, self._midline) + _shoulder_plates(plane, a)


def _body_depth(plane: _Plane, a: _Anatomy) -> Map:
    """Thickness of the body, air included, in cm."""
    x, y = np.abs(plane.x), plane.y
    outer = _rib_cage(a).wall_profile()(y) + a.wall + _Profile((0, 8, 16, 24, 36), (3.5, 2.0, 0.7, 0.4, 0.9), 4)(y)
    half = _Profile((-4, 2, 10, 20, 30), (8.6, 9.8, 10.7, 11.2, 11.6), 4)(y) * a.depth + (a.wall - 2) * 0.7
    torso = 2 * half * np.sqrt(np.sqrt(np.clip(1 - (x / outer) ** 4, 0, None)))
    torso *= _Profile((-3.5, 1.5), (0, 1), 3)(y)
    total = (torso**4 + _neck(x, y) ** 4 + _shoulder(x, y, a) ** 4) ** 0.25
    return np.asarray(total + _breasts(plane, a), np.float32)


def _neck(x: Map, y: Map) -> Map:
    width = _Profile((-14, -5, -1, 4), (5.6, 6.2, 10.5, 16), 4)(y)
    return 17 * np.sqrt(np.clip(1 - (x / width) ** 2, 0, None))


def _shoulder(x: Map, y: Map, a: _Anatomy) -> Map:
    """Join neck and shoulder joint by a tube, and run another down the arm."""
    drop, far = 2.2 + a.shoulder_drop, 16.5 * a.breadth
    girdle = _capsule(x, y, (4.0, 1.0 + drop), (far, 2.2 + drop), 5.6 + 0.5 * a.wall)
    arm = _capsule(x, y, (far + 0.8, 2.2 + drop), (far + 8.0, 19.0), 4.4 + 0.4 * a.wall)
    return np.asarray(np.maximum(1.3 * girdle, 1.4 * arm), np.float32)


def _breasts(plane: _Plane, a: _Anatomy) -> Map:
    total = plane.zeros()
    if a.breast:
        for side in (-1, 1):
            y = 13.6 + 0.6 * a.breast
            _Ellipsoid(side * 8.0 * a.breadth, y, 5.0 * a.breadth, 4.6 + 0.4 * a.breast, 1, -8 * side).add_to(
                total, plane, 1.0
            )
        # Thin where it leaves the chest above, full below: only its lower edge is seen.
        total *= a.breast / 2 * _Profile((8, 19), (0, 1), 4)(plane.y)
    return total


def _capsule(x: Map, y: Map, start: tuple[float, float], end: tuple[float, float], radius: float) -> Map:
    """Thickness of a straight round tube with round ends, in cm."""
    along = (end[0] - start[0], end[1] - start[1])
    share = ((x - start[0]) * along[0] + (y - start[1]) * along[1]) / (along[0] ** 2 + along[1] ** 2)
    share = np.clip(share, 0, 1)
    distance2 = (x - start[0] - share * along[0]) ** 2 + (y - start[1] - share * along[1]) ** 2
    return 2 * np.sqrt(np.clip(radius**2 - distance2, 0, None))


def _outward(plane: _Plane, ribs: "_RibCage", midline: _Profile) -> Map:
    """Share of the way from the midline (0) to the inner wall of the rib cage (1)."""
    reach = np.maximum(ribs.wall_profile()(plane.y), np.float32(0.1))
    return np.minimum(np.abs(plane.x - midline(plane.y) * np.float32(0.3)) / reach, np.float32(2))


def _depth_below_dome(plane: _Plane, outward: Map, a: _Anatomy) -> Map:
    """Depth below the diaphragm's dome in cm, negative above it."""
    left = 1 / (1 + np.exp(-1.6 * (plane.x - a.heart_shift)))
    top = np.float32(20.6 + a.inspiration) + np.float32(a.hemidiaphragm_gap) * left
    off_peak = outward - np.float32(0.46)
    fall = np.where(off_peak > 0, a.dome_height * 3.4, a.dome_height * 1.3)
    return np.asarray(plane.y - top - fall * off_peak**2, np.float32)


def _off_middle(plane: _Plane, midline: _Profile, a: _Anatomy) -> Map:
    """Share of the way from the middle (0) to the edge of the upper mediastinum and spine (1)."""
    heights = (-3, -0.8, 0, 1.5, 4, 9, 13, 19, 24)
    right = _Profile(heights, (6.0, 4.6, 3.4, 2.8, 2.5, 2.5, 2.2, 2.2, 2.4), 1.4)
    left = _Profile(heights, (6.0, 4.6, 3.5, 2.9, 2.7, 2.4, 2.2, 2.2, 2.4), 1.4)
    offset = plane.x - midline(plane.y) - np.float32(0.5 * a.heart_shift)
    return np.asarray(np.abs(offset) / np.where(offset > 0, left(plane.y), right(plane.y)), np.float32)


def _heart(a: _Anatomy) -> list[_Ellipsoid]:
    """Heart chambers and great vessels; a deep breath draws them down and narrow."""
    x, low, s = a.heart_shift, 0.85 * a.inspiration, a.heart
    return [
        _Ellipsoid(x + 2.6, 17.0 + low, 7.0 * s, 5.2 * s, 8.6 * a.depth, 40, 2.6),  # left ventricle
        _Ellipsoid(x - 0.6, 17.2 + low, 4.1 * s, 5.6 * s, 8.4 * a.depth, 0, 3.0),  # right atrium
        _Ellipsoid(
            x + 2.2, 20.4 + a.inspiration + 0.8 * a.hemidiaphragm_gap, 5.6 * s, 4.2, 8.4 * a.depth, 20, 2.6
        ),  # what rests on the diaphragm
        _Ellipsoid(x + 1.4, 12.4 + low / 2, 3.2 * s, 4.4, 6.5, -24, 2.4),  # pulmonary trunk, left atrial appendage
        _Ellipsoid(x - 1.0, 8.6, 2.6, 7.0, 6.0),  # superior vena cava, ascending aorta
        _Ellipsoid(x + 1.9, 7.0, 1.9 * a.knob, 1.9 * a.knob, 6.0),  # aortic knob
        _Ellipsoid(0.5 * x + 1.5, 14.0, 1.3, 9.5, 1.6, 3),  # descending aorta
    ]


@dataclass(frozen=True)
class _RibCage:
    """Ribs as tilted half rings, and the inner wall of the cage that follows from them; lengths in cm."""

    head_y: Map
    reach: Map
    depth: Map
    slope: Map
    half_height: float

    def wall_profile(self) -> _Profile:
        """Half-width of the space inside the ribs, by height."""
        inner = self.reach - 0.45
        return _Profile([-1.3, -1.0, *self._side_y()], [0.0, 3.6, *inner], 1.3)

    def depth_profile(self) -> _Profile:
        """Half-depth of the space inside the ribs, by height."""
        return _Profile(
            [-1.2, -0.6, 0.5, 2, 5, 9, 15, 30], np.array([0, 1.6, 3, 4.4, 6, 7.6, 8.6, 8.8]) * self._scale, 1.2
        )

    @property
    def _scale(self) -> float:
        return float(self.depth[5] / 9.2)

    def _side_y(self) -> Map:
        return self.head_y + self.slope * self.depth

    def points(self) -> _Points:
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
        return _tube(path, side, self.half_height * swell, 0.3 * np.ones_like(swell), cortex)

    def _half_rings(self, phi: Map) -> tuple[Map, Map]:
        """Centre lines from the spine round to the front, and the directions out of the cage."""
        reach, depth, head = self.reach[:, None], self.depth[:, None], self.head_y[:, None]
        x, z = reach * np.sin(phi) ** 0.92, -depth * np.cos(phi)
        path = np.stack([x, head + self.slope[:, None] * (z + depth), z], axis=-1)
        out = np.stack([depth * np.sin(phi), np.zeros_like(x), -reach * np.cos(phi)], axis=-1)
        return path.astype(np.float32), (out / np.linalg.norm(out, axis=-1, keepdims=True)).astype(np.float32)


def _rib_cage(a: _Anatomy) -> _RibCage:
    count = a.rib_count
    reach = np.array([5.6, 8.6, 10.5, 11.7, 12.6, 13.2, 13.6, 13.8, 13.8, 13.5, 13.0, 11.5])[:count]
    depth = np.array([3.6, 5.2, 6.7, 7.9, 8.7, 9.2, 9.6, 9.8, 9.8, 9.5, 9.0, 8.0])[:count]
    head = -1.6 + a.pitch * np.arange(count)
    steep = np.array([1.5, 1.25, 1.1] + [1.0] * 7 + [1.15, 1.3])[:count]
    rings = (head, reach * a.breadth, depth * a.depth, steep * a.rib_slope)
    return _RibCage(*rings, a.rib_height)


def _clavicle(a: _Anatomy, side: int) -> _Points:
    lift = a.shoulder_drop
    knots = [(1.9, 4.4), (5.5, 3.1 + 0.2 * lift), (10.0, 1.0 + 0.7 * lift), (15.4 * a.breadth, 0.6 + lift)]
    placed = [(side * x + 0.8 * a.heart_shift * (1 - x / 15), y) for x, y in knots]
    return _flat_tube(placed, (1.0, 0.68, 0.55, 0.58, 0.75), 0.065)


def _shoulder_bones(a: _Anatomy, side: int) -> list[_Points]:
    """Rims of a shoulder blade turned out of the lung field, and the shaft of the arm."""
    drop, wide = a.shoulder_drop, a.breadth
    top, tip, socket = _blade_corners(a)
    bones = [
        _flat_tube(_beside(side, [top, (11.4 * wide, 7.0 + drop), tip]), (0.2, 0.2), 0.03),
        _flat_tube(_beside(side, [tip, (14.6 * wide, 8.6 + drop), socket]), (0.4, 0.6), 0.05),
        _flat_tube(_beside(side, [(11.6 * wide, 4.6 + drop), (15.6 * wide, 1.4 + drop)]), (0.35, 0.6), 0.035),
    ]
    x, y = 17.6 * wide, 3.2 + drop
    shaft = _flat_tube(_beside(side, [(x + 0.3, y), (x + 2.6, y + 7), (x + 5.2, y + 15)]), (1.6, 1.3, 1.15, 1.1), 0.04)
    return [*bones, shaft]


def _shoulder_plates(plane: _Plane, a: _Anatomy) -> Map:
    """Blades of the shoulders and heads of the arm bones."""
    total = plane.zeros()
    top, tip, socket = _blade_corners(a)
    for side in (-1, 1):
        total += np.float32(0.06) * _polygon(plane, _beside(side, [top, tip, socket]))
        head = _Ellipsoid(side * 17.4 * a.breadth, 2.8 + a.shoulder_drop, 2.4, 2.5, 2.3)
        head.add_to(total, plane, 0.07)
    return total


def _blade_corners(a: _Anatomy) -> list[tuple[float, float]]:
    drop, wide = a.shoulder_drop, a.breadth
    return [(10.8 * wide, 1.6 + drop), (13.6 * wide, 14.0 + drop), (15.2 * wide, 3.2 + drop)]


def _beside(side: int, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(side * x, y) for x, y in points]


def _polygon(plane: _Plane, corners: Sequence[tuple[float, float]]) -> Map:
    rows, columns = plane.pixel(*np.array(corners, np.float32).T)
    canvas = Image.new("L", (plane.shape[1], plane.shape[0]))
    ImageDraw.Draw(canvas).polygon(list(zip(columns.tolist(), rows.tolist(), strict=True)), fill=255)
    return np.asarray(canvas, np.float32) / 255


def _spine(plane: _Plane, a: _Anatomy, midline: _Profile) -> Map:
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


# ---------------------------------------------------------------------------------------------------- vessels


def _hila(a: _Anatomy) -> list[tuple[tuple[float, float], int]]:
    low = 0.3 * a.inspiration
    return [((a.heart_shift - 3.1, 10.9 + low), -1), ((a.heart_shift + 3.5, 10.0 + low), 1)]


def _grow_vessels(rng: np.random.Generator, hilum: tuple[float, float], side: int) -> _Points:
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
    return _join(generations)


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


def _solid_tube(x: Map, y: Map, heading: Map, bend: Map, length: Map, radius: Map, side: int) -> _Points:
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


def _airway(knots: Sequence[tuple[float, float]], radius: float) -> _Points:
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


# ---------------------------------------------------------------------------------------------------- disease


def _filled_share(place: Map, below_dome: Map, seed: int) -> Map:
    """Share of the air spaces filled with fluid, 0 to 0.85.

    Patches lie on both sides, mostly outside and low, with ragged, cloudy edges, each of many small foci. Severity runs
    from foci that are easy to miss to dense consolidation.

    Parameters
    ----------
    place : ndarray, shape (height, width)
        -1 at the right chest wall, 0 in the midline, 1 at the left chest wall.
    below_dome : ndarray, shape (height, width)
        Depth below the diaphragm's dome in cm, negative in the lung above it.
    seed : int
    """
    rng = _stream(seed, _OPACITIES)
    severity, cloud = rng.uniform(0.25, 0.75), np.zeros_like(place)
    for side in (-1, 1):
        for _ in range(rng.integers(2, 5 + round(3 * severity))):
            cloud += _patch(place, below_dome, rng, side)
    ragged = cloud * np.exp(0.45 * _noise_field(rng, place.shape, 11) + 0.35 * _noise_field(rng, place.shape, 28))
    foci = np.clip(0.55 + 0.55 * _noise_field(rng, place.shape, 34) + 0.3 * _noise_field(rng, place.shape, 64), 0, None)
    return np.asarray(np.clip(0.85 * severity * foci * (1 - np.exp(-1.1 * ragged)), 0, 0.85), np.float32)


def _patch(place: Map, below_dome: Map, rng: np.random.Generator, side: int) -> Map:
    outside, height = side * (1 - abs(rng.normal(0.2, 0.16))), 0.5 - abs(rng.normal(2.5, 4.0))
    across, tall = rng.uniform(0.12, 0.3), rng.uniform(1.5, 3.6)
    distance2 = ((place - outside) / across) ** 2 + ((below_dome - height) / tall) ** 2
    return np.asarray(rng.uniform(0.5, 1.4) * np.exp(-distance2), np.float32)


# ---------------------------------------------------------------------------------------------------- detector


def _expose(healthy: Map, disease: Map, lungs: Map, exposure: _Exposure, seed: int) -> NDArray[np.uint8]:
    """Turn a ray sum into display values, uint8, shape (height, width)."""
    thumb = _shrink(healthy)
    scatter = _scatter(thumb, exposure)
    seen = -np.log(np.exp(-(healthy + disease)) + _resize(scatter, healthy.shape))
    noise = _stream(seed, _NOISE).standard_normal(healthy.shape, dtype=np.float32)
    seen += noise * np.exp(seen / 2) / np.float32(np.sqrt(exposure.photons))
    reference = -np.log(np.exp(-thumb) + scatter)
    seen = _blur(seen, exposure.sharpness) - _resize(exposure.equalize * _smooth(reference, 6), healthy.shape)
    shown = _display_curve(seen, reference - exposure.equalize * _smooth(reference, 6), _shrink(lungs), exposure)
    return _add_marker_and_shutter(shown, exposure)


def _scatter(thumb: Map, exposure: _Exposure) -> Map:
    """Model scattered photons: a wide blur of the primary beam, stronger behind a thick body."""
    primary = np.exp(-thumb)
    return exposure.scatter * _smooth(np.minimum(primary, 0.15) * np.clip(thumb / 3, 0, 1), 5)


def _display_curve(seen: Map, reference: Map, lungs: Map, exposure: _Exposure) -> Map:
    """Window from the lungs to the densest body part, with the soft ends of film; values 0 to 1."""
    dark = float(np.percentile(reference[lungs > 0.5 * lungs.max()], 30))
    bright = float(np.percentile(reference, 92))
    place = (seen - dark) / (bright - dark)
    return np.asarray(1 / (1 + np.exp(-exposure.contrast * (place - exposure.level))))


def _add_marker_and_shutter(shown: Map, exposure: _Exposure) -> NDArray[np.uint8]:
    height, width = shown.shape
    pixels = _add_letter((shown * 255).clip(0, 255).astype(np.uint8), exposure.marker, exposure.marker_at)
    top, bottom, left, right = exposure.shutter
    pixels[: round(top * height)] = pixels[height - round(bottom * height) :] = 0
    pixels[:, : round(left * width)] = pixels[:, width - round(right * width) :] = 0
    return pixels


def _add_letter(pixels: NDArray[np.uint8], letter: str, place: tuple[float, float]) -> NDArray[np.uint8]:
    height, width = pixels.shape
    canvas = Image.fromarray(pixels)
    font = ImageFont.load_default(0.055 * width)
    ImageDraw.Draw(canvas).text((place[1] * width, place[0] * height), letter, fill=244, font=font, anchor="mm")
    return np.array(canvas)


def _shrink(image: Map) -> Map:
    height, width = image.shape
    return _resize(image, (max(8, height // 8), max(8, width // 8)), Image.Resampling.BOX)


def _resize(image: Map, shape: tuple[int, ...], how: Image.Resampling = Image.Resampling.BILINEAR) -> Map:
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize((shape[1], shape[0]), how), np.float32)


def _smooth(image: Map, radius: int) -> Map:
    """Blur a small image by a box, twice, edges held."""
    for axis in (0, 1, 0, 1):
        pad = [(radius + 1, radius) if i == axis else (0, 0) for i in (0, 1)]
        total = np.cumsum(np.pad(image, pad, mode="edge"), axis=axis, dtype=np.float64)
        size = 2 * radius + 1
        far, near = (total.take(range(a, a + image.shape[axis]), axis=axis) for a in (size, 0))
        image = ((far - near) / size).astype(np.float32)
    return image


def _blur(image: Map, neighbour: float) -> Map:
    """Spread each pixel over its neighbours, as the detector's screen does."""
    weight = np.float32(neighbour)
    padded = np.pad(image, 1, mode="edge")
    across = padded[:, 1:-1] * (1 - 2 * weight) + (padded[:, :-2] + padded[:, 2:]) * weight
    return across[1:-1] * (1 - 2 * weight) + (across[:-2] + across[2:]) * weight


# ---------------------------------------------------------------------------------------------------- files


def encode_png(radiograph: Radiograph) -> bytes:
    """Encode as an 8-bit grey PNG, without loss."""
    return _encode(radiograph, "PNG")


def encode_jpeg(radiograph: Radiograph, *, quality: int = 92) -> bytes:
    """Encode as an 8-bit grey JPEG; ``quality`` is Pillow's, 1 to 95."""
    return _encode(radiograph, "JPEG", quality=quality)


def _encode(radiograph: Radiograph, name: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(radiograph.pixels).save(buffer, name, **options)
    return buffer.getvalue()


def encode_dicom(radiograph: Radiograph) -> bytes:
    """Encode as a single-frame Computed Radiography image, DICOM Part 10, explicit VR little endian.

    12 bits are stored in 16. About a third of the seeds is MONOCHROME1. Window and rescale bring the stored values back
    to ``radiograph.pixels`` within one grey level. Names, identifiers and dates are invented from the seed; the UIDs
    are the same each time.
    """
    dataset = FileDataset(None, {}, preamble=b"\0" * 128, file_meta=_file_meta(radiograph))
    for module in (_patient_and_study, _series_and_equipment, _image_and_pixels):
        dataset.update(module(radiograph))
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _uid(radiograph: Radiograph, level: str) -> str:
    """Make a UID that is the same each time; study and series belong to the seed, the instance to the pixels too."""
    instance = [radiograph.finding, str(radiograph.pixels.shape)] if level == "instance" else []
    return str(generate_uid(entropy_srcs=[SOURCE, level, str(radiograph.seed), *instance]))


def _file_meta(radiograph: Radiograph) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(radiograph, "instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def _patient_and_study(radiograph: Radiograph) -> Dataset:
    rng = _stream(radiograph.seed, _STUDY)
    day = date(2020, 3, 1) + timedelta(days=int(rng.integers(0, 1400)))
    dataset = Dataset()
    dataset.PatientName = f"PHANTOM^{radiograph.seed:010d}"
    dataset.PatientID = radiograph.patient_id
    dataset.PatientBirthDate = f"{day.year - int(rng.integers(25, 85))}0101"
    dataset.PatientSex = _draw_anatomy(radiograph.seed).sex
    dataset.StudyInstanceUID = _uid(radiograph, "study")
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = f"{day:%Y%m%d}"
    clock = f"{int(rng.integers(7, 20)):02d}{int(rng.integers(0, 60)):02d}00"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = dataset.AcquisitionTime = clock
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "", ""
    dataset.StudyDescription = "Chest, synthetic"
    return dataset


def _series_and_equipment(radiograph: Radiograph) -> Dataset:
    dataset = Dataset()
    dataset.Modality = "CR"
    dataset.SeriesInstanceUID = _uid(radiograph, "series")
    dataset.SeriesNumber = 1
    dataset.BodyPartExamined, dataset.ViewPosition, dataset.Laterality = "CHEST", "PA", ""
    dataset.Manufacturer, dataset.ManufacturerModelName = "xray-stream", SOURCE
    dataset.KVP = 120
    return dataset


def _image_and_pixels(radiograph: Radiograph) -> Dataset:
    inverted = _happens(_stream(radiograph.seed, _STUDY), 1 / 3)
    dataset = Dataset()
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = _uid(radiograph, "instance")
    dataset.InstanceNumber = 1
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.PatientOrientation = ["L", "F"]
    dataset.BurnedInAnnotation = "NO"  # the side marker names nobody
    dataset.LossyImageCompression = "00"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.Rows, dataset.Columns = radiograph.pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.WindowCenter, dataset.WindowWidth = 2048, _STORED_PER_GREY * 255 + 1
    dataset.PixelData = _stored_values(radiograph.pixels, inverted=inverted).tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


_STORED_PER_GREY = 14  # 255 greys take 3570 of the 4096 stored values: the window has something to do


def _stored_values(pixels: NDArray[np.uint8], *, inverted: bool) -> NDArray[np.uint16]:
    grey = 255 - pixels if inverted else pixels
    lowest = 2048 - _STORED_PER_GREY * 255 // 2
    return (grey.astype("<u2") * _STORED_PER_GREY + lowest).astype("<u2")


_ENCODERS: dict[Format, tuple[str, Callable[[Radiograph], bytes]]] = {
    "png": (".png", encode_png),
    "jpeg": (".jpeg", encode_jpeg),
    "dicom": (".dcm", encode_dicom),
}


def generate_set(n: int, *, seed: int, marker: bool = False) -> Iterator[Radiograph]:
    """Generate ``n`` patients, normal and opacities in turn, in sizes that vary alike in both.

    Parameters
    ----------
    n : int
        How many; 0 gives none.
    seed : int
        0 or more; the same seed gives the same set, and a longer set begins with a shorter one.
    marker : bool
        Plant a shortcut: `PLANTED_LETTER` in one corner of every image with opacities, and of no other.
    """
    for index in range(n):
        patient = int(np.random.default_rng([seed, index]).integers(0, 2**32))
        rng = _stream(patient, _SIZE)
        height, width = int(rng.integers(600, 681)), int(rng.integers(512, 577))
        finding = FINDINGS[index % 2]
        planted = marker and finding == "opacities"
        yield generate_radiograph(patient, finding=finding, height=height, width=width, marker=planted)


def write_folder(
    folder: Path,
    n: int,
    *,
    seed: int,
    formats: Sequence[Format] = ("png", "jpeg", "dicom"),
    marker: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a labelled set of images and its manifest.

    Parameters
    ----------
    folder : Path
        Gets ``<finding>/<patient_id>.<extension>`` and ``manifest.csv``; made where missing.
    n, seed, marker
        As in :func:`generate_set`.
    formats : sequence of str
        Used in turn, the same for both findings.
    progress : callable, optional
        Called with (images written, images in all) after each.

    Returns
    -------
    Path
        The manifest: ``file`` (relative to the folder), ``label`` (0 normal, 1 opacities), ``finding``, ``patient_id``
        and ``source``.

    Raises
    ------
    ValueError
        A format is unknown, or there is none.
    """
    _check_formats(formats)
    rows = []
    for index, radiograph in enumerate(generate_set(n, seed=seed, marker=marker)):
        # A pair of findings shares its format, or the format would tell the label.
        suffix, encode = _ENCODERS[formats[index // 2 % len(formats)]]
        name = f"{radiograph.finding}/{radiograph.patient_id}{suffix}"
        _write(folder / name, encode(radiograph))
        rows.append((name, FINDINGS.index(radiograph.finding), radiograph.finding, radiograph.patient_id, SOURCE))
        if progress:
            progress(index + 1, n)
    return _write_manifest(folder, rows)


def _check_formats(formats: Sequence[str]) -> None:
    if not formats or set(formats) - set(_ENCODERS):
        msg = f"formats are {list(formats)}, expected one or more of {', '.join(_ENCODERS)}"
        raise ValueError(msg)


def _write(path: Path, payload: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)


def _write_manifest(folder: Path, rows: list[tuple[str, int, str, str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST_NAME
    with manifest.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([MANIFEST_HEADER, *rows])
    return manifest
