"""What a device was told, and what it makes of that: taken, refused for good, or to be sent again."""

from dataclasses import dataclass, field
from enum import StrEnum

_SUCCESS = 0x0000
_WARNINGS = {0xB000, 0xB006, 0xB007}
_OUT_OF_RESOURCES = 0xA700
_TAKEN = {200, 201, 202}
_LATER = {408, 425, 429, 502, 503, 504}


class Verdict(StrEnum):
    """What a device makes of an answer."""

    TAKEN = "accepted"
    REFUSED = "refused"
    LATER = "later"


@dataclass(frozen=True)
class Answer:
    """What came back for one object.

    Parameters
    ----------
    name : str
        Status as the account names it: ``0000``, ``A700``, ``201``, ``no answer``.
    verdict : Verdict
        What follows.
    event_id : str, optional
        Of the object, where the answer says it.
    wait_s : float, optional
        How long to wait, where the answer says it.
    """

    name: str
    verdict: Verdict
    event_id: str | None = None
    wait_s: float | None = field(default=None)


NO_ANSWER = Answer("no answer", Verdict.LATER)
NO_CONTEXT = Answer("no context", Verdict.REFUSED)
REJECTED = Answer("association rejected", Verdict.REFUSED)
REJECTED_NOW = Answer("association rejected now", Verdict.LATER)


def read_status(status: int) -> Answer:
    """Understand a status of C-STORE (PS3.4 B.2.3): A7xx is for a time, what is no warning is for good."""
    if status == _SUCCESS or status in _WARNINGS:
        return Answer(f"{status:04X}", Verdict.TAKEN)
    later = status & 0xFF00 == _OUT_OF_RESOURCES
    return Answer(f"{status:04X}", Verdict.LATER if later else Verdict.REFUSED)


def read_http(status: int, event_id: str | None = None, wait_s: float | None = None) -> Answer:
    """Understand an HTTP status."""
    if status in _TAKEN:
        return Answer(str(status), Verdict.TAKEN, event_id)
    return Answer(str(status), Verdict.LATER if status in _LATER else Verdict.REFUSED, wait_s=wait_s)
