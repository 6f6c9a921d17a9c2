"""Opacities: the share of the air spaces that fluid fills."""

import numpy as np

from xray.phantom.chance import OPACITIES, open_stream
from xray.phantom.images import Map, noise_field


def fill_share(place: Map, below_dome: Map, seed: int) -> Map:
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
    rng = open_stream(seed, OPACITIES)
    severity, cloud = rng.uniform(0.25, 0.75), np.zeros_like(place)
    for side in (-1, 1):
        for _ in range(rng.integers(2, 5 + round(3 * severity))):
            cloud += _patch(place, below_dome, rng, side)
    ragged = cloud * np.exp(0.45 * noise_field(rng, place.shape, 11) + 0.35 * noise_field(rng, place.shape, 28))
    foci = np.clip(0.55 + 0.55 * noise_field(rng, place.shape, 34) + 0.3 * noise_field(rng, place.shape, 64), 0, None)
    return np.asarray(np.clip(0.85 * severity * foci * (1 - np.exp(-1.1 * ragged)), 0, 0.85), np.float32)


def _patch(place: Map, below_dome: Map, rng: np.random.Generator, side: int) -> Map:
    outside, height = side * (1 - abs(rng.normal(0.2, 0.16))), 0.5 - abs(rng.normal(2.5, 4.0))
    across, tall = rng.uniform(0.12, 0.3), rng.uniform(1.5, 3.6)
    distance2 = ((place - outside) / across) ** 2 + ((below_dome - height) / tall) ** 2
    return np.asarray(rng.uniform(0.5, 1.4) * np.exp(-distance2), np.float32)
