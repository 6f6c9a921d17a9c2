"""What was done to the pixels of a file, step by step, and what in it decided that."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Step:
    """One step from a file's stored values to the pixels of an image row.

    Parameters
    ----------
    name : str
        Of a closed set, in the order of the way: ``"decode"``, ``"modality"``, ``"voi"``, ``"range"``, ``"padding"``,
        ``"invert"``, ``"orient"``, ``"channels"``, ``"resize"``.
    what : str
        What was done, in words and numbers; never a text of the file.
    decided_by : dict of str to str
        What in the file decided it: DICOM keywords, PNG chunks or JPEG segments, and their values. Numbers and words of
        closed sets alone, so nothing about a patient. Empty where nothing in the file speaks of it.

    References
    ----------
    DICOM PS3.3 C.11.1, C.11.2, C.7.6.3; PNG (ISO/IEC 15948).
    """

    name: str
    what: str
    decided_by: dict[str, str] = field(default_factory=dict)


Notice = Callable[[Step, npt.NDArray[np.uint8]], None]
"""Told of a step and of the pixels after it: (height, width), or (height, width, 3) in the order BGR."""

NoticeGray = Callable[[Step, npt.NDArray[np.uint8]], None]
"""Told of a step and of the gray that every stored word has after it, shape (256,) or (65536,)."""
