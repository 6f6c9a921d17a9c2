"""One radiograph from one seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xray.phantom.chest import Chest
from xray.phantom.detector import add_letter, draw_exposure, expose
from xray.phantom.geometry import Plane
from xray.phantom.patient import draw_anatomy

FINDINGS = ("normal", "opacities")

SOURCE = "phantom"

PLANTED_LETTER = "P"
"""The planted shortcut: as if a ward that has the patients with a finding wrote its letter on its images."""

_PLANTED_AT = (0.93, 0.09)  # (row, column) as a fraction of the image


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
    anatomy, exposure = draw_anatomy(seed), draw_exposure(seed)
    plane = Plane.over(anatomy, height, width)
    chest = Chest(plane, anatomy, seed)
    healthy = chest.ray_sum()
    disease = chest.opacities() if finding == "opacities" else np.zeros_like(healthy)
    pixels = expose(healthy, disease, chest.lungs, exposure, seed)
    if marker:
        pixels = add_letter(pixels, PLANTED_LETTER, _PLANTED_AT)
    return Radiograph(pixels, finding, f"PHANTOM-{seed:010d}", seed)


def _check_request(finding: str, height: int, width: int) -> None:
    if finding not in FINDINGS:
        msg = f"finding is {finding!r}, expected one of {', '.join(FINDINGS)}"
        raise ValueError(msg)
    if min(height, width) < 64:  # noqa: PLR2004
        msg = f"radiograph is {height}x{width} px, expected at least 64x64"
        raise ValueError(msg)
