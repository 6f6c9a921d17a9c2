"""What makes one patient look unlike the next."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from xray.phantom.chance import ANATOMY, happens, open_stream


@dataclass(frozen=True)
class Anatomy:
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


def draw_anatomy(seed: int) -> Anatomy:
    """Draw one patient; one seed is one patient."""
    rng = open_stream(seed, ANATOMY)
    female = happens(rng, 0.5)
    habitus = rng.normal()  # slim to stout: drives the wall and lifts the diaphragm
    return Anatomy(
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
        gastric_bubble=rng.uniform(1.5, 4.5) if happens(rng, 0.55) else 0.0,
        shoulder_drop=rng.uniform(-1.0, 1.2),
        tilt_deg=rng.normal(0, 1.3),
        margin=rng.uniform(2.4, 4.4),
        centre_y=rng.uniform(12.3, 14.2),
    )
