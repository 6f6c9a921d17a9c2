"""What devices do wrong on purpose, and to which part of what they send."""

from enum import StrEnum

import numpy as np

from xray.simulator.habits import Way


class Damage(StrEnum):
    """A fault that one object in many is sent with."""

    TRUNCATED = "truncated"
    """The file ends in its middle."""
    WRONG_CLASS = "wrong class"
    """It is announced as what it is not: another SOP class, or another content type."""
    NO_PIXELS = "no pixels"
    """A DICOM object without pixel data."""
    GARBAGE = "garbage"
    """Bytes that are no file at all."""
    ABORTED = "aborted"
    """The connection is ended in the middle of the object, which is then sent anew."""
    SLOW = "slow"
    """The object is whole and takes seconds to come."""

    @property
    def spoils(self) -> bool:
        """Whether the object itself is broken: nobody need take it."""
        return self not in {Damage.ABORTED, Damage.SLOW}


_WITHOUT_PIXELS = {Way.POST_PNG, Way.POST_JPEG}
"""A picture file is its pixels: there is nothing to leave out."""
_GARBAGE_BYTES = 20_000


def draw_damage(rng: np.random.Generator, share: float, way: Way) -> Damage | None:
    """Draw whether an object is broken on purpose, and how."""
    if rng.random() >= share:
        return None
    fitting = [damage for damage in Damage if damage is not Damage.NO_PIXELS or way not in _WITHOUT_PIXELS]
    return fitting[int(rng.integers(len(fitting)))]


def spoil(payload: bytes, damage: Damage | None, number: int) -> bytes:
    """Damage the bytes themselves, where the fault is in those."""
    if damage is Damage.TRUNCATED:
        # Half of them end within a word, which PS3.8 forbids of a fragment: some peers end the association then.
        return payload[: len(payload) // 4 * 2 + number % 2]
    if damage is Damage.GARBAGE:
        return np.random.default_rng(number).bytes(_GARBAGE_BYTES)
    return payload
