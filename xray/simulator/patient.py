"""People who do not exist, each with a marker that cannot be mistaken for anything else."""

import hashlib
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

MARKER = "ZZMARKER"
"""Begins every text of a person: what is found with it anywhere behind the gateway has leaked."""
SHORT = 16
"""Characters of a DICOM SH, the shortest text: it holds the marker's beginning."""
_OLDEST = date(1930, 1, 1)
_YOUNGEST_DAYS = 80 * 365


@dataclass(frozen=True)
class Patient:
    """A person, and the examination.

    Parameters
    ----------
    marker : str
        In every text about the person: ``ZZMARKER-<seed>-<number>``.
    born, examined : date
        Of the person, and of the study.
    sex : str
        As in DICOM: F, M or O.
    """

    marker: str
    born: date
    examined: date
    sex: str

    @property
    def name(self) -> str:
        """As a DICOM PN."""
        return f"{self.marker}^GIVEN"


def draw_patient(seed: int, number: int) -> Patient:
    """Draw a person; the same for the same numbers."""
    rng = np.random.default_rng([seed, number, 1])
    born = _OLDEST + timedelta(days=int(rng.integers(_YOUNGEST_DAYS)))
    examined = date(2024, 1, 1) + timedelta(days=int(rng.integers(600)))
    return Patient(f"{MARKER}-{seed}-{number}", born, examined, str(rng.choice(["F", "M", "O"])))


def derive_uid(*parts: object) -> str:
    """Make a UID below 2.25 that is the same each time for the same parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16])}"
