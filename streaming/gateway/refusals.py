"""Why an object is not taken: each cause once, with what a DICOM device and an HTTP client are told of it.

References
----------
DICOM PS3.7 annex C (statuses of C-STORE), PS3.4 B.2.3 (which a Storage SCP may answer), PS3.18 10.5.3 (STOW-RS).
"""

from dataclasses import dataclass
from enum import Enum

MAX_COMMENT = 64
"""Characters of an Error Comment (0000,0902), which has VR LO."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device is told.

    Parameters
    ----------
    status : int
        Of C-STORE.
    http : int
        Of an HTTP answer.
    comment : str
        At most 64 characters, without any word of the object.
    is_transient : bool
        To send the same object again later may succeed.
    """

    status: int
    http: int
    comment: str
    is_transient: bool = False


class Cause(Enum):
    """Why an object is not taken. The names are label values of metrics."""

    BROKER_AWAY = Answer(0xA700, 503, "Kafka cannot take it now; send it again later", is_transient=True)
    SPOOL_FULL = Answer(0xA701, 503, "the spool is full; send it again later", is_transient=True)
    BUSY = Answer(0xA702, 503, "too many objects at once; send it again later", is_transient=True)
    RATE = Answer(0xA703, 429, "more objects a second than allowed; send it again later", is_transient=True)
    ENDING = Answer(0xA704, 503, "the gateway is about to end; send it again later", is_transient=True)
    KEEP_FAILED = Answer(0xA705, 503, "the original cannot be kept now; send it again later", is_transient=True)
    WRONG_CLASS = Answer(0xA900, 409, "the object has another SOP class or UID than announced")
    UNREADABLE = Answer(0xC000, 400, "the object cannot be read")
    TOO_LARGE = Answer(0xC001, 413, "the object is larger than is taken")
    UNSUPPORTED = Answer(0xC002, 415, "no image of a kind that is taken")
    NOT_ALLOWED = Answer(0x0124, 403, "this device may not send here")
    SOP_CLASS = Answer(0x0122, 409, "objects of this SOP class are not taken")
    FAILED = Answer(0x0110, 500, "an error of the gateway that nobody foresaw")

    @property
    def label(self) -> str:
        """In metrics and JSON, e.g. ``broker_away``."""
        return self.name.lower()


class Refusal(Exception):
    """An object is not taken.

    Parameters
    ----------
    cause : Cause
        What the device is told.
    detail : str
        What was found and wanted, for the log and for HTTP clients. Never patient data.
    retry_after_s : float, optional
        When to send it again, where that is known.
    """

    def __init__(self, cause: Cause, detail: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(f"{cause.label}: {detail or cause.value.comment}")
        self.cause = cause
        self.detail = detail or cause.value.comment
        self.retry_after_s = retry_after_s
