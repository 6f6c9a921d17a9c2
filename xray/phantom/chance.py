"""One random stream per concern: what one draws never shifts another."""

import numpy as np

ANATOMY, VESSELS, TEXTURE, OPACITIES, NOISE, EXPOSURE, SIZE, STUDY = range(8)


def open_stream(seed: int, concern: int) -> np.random.Generator:
    """Give the random numbers of one concern of one patient."""
    return np.random.default_rng([seed, concern])


def happens(rng: np.random.Generator, probability: float) -> bool:
    """Whether something of this probability is so."""
    return bool(rng.random() < probability)
