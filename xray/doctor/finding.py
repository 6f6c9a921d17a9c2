"""One thing that was looked at: how it is, and what to do."""

from dataclasses import asdict, dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and may not for long, or not as meant; or nobody could tell."""
    FAULT = "fault"
    """Something does not work."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Parameters
    ----------
    check : str
        What was looked at: ``java``, ``ports``, ``topics`` and so on.
    verdict : Verdict
        How bad it is.
    found : str
        What was found. Never patient data and no secret.
    advice : str
        What to do next; empty where nothing is.
    """

    check: str
    verdict: Verdict
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """Render for JSON."""
        return {**asdict(self), "verdict": self.verdict.value}
