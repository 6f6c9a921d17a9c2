"""Where reports go: what is common to all targets, and how one is named on the command line."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from schemas.errors import SettingsError
from streaming.reports.report import Report

EXAMPLES = (
    "fhir:https://HOST/fhir, dicom:AET@HOST:PORT, stow:https://HOST/dicom-web, mllp:HOST:PORT or files:FOLDER; "
    "with TLS dicoms:AET@HOST:PORT or mllps:HOST:PORT"
)

_HIGHEST_PORT = 65_535
_AET_CHARS = 16


class Kind(StrEnum):
    """Kinds of target; label values of metrics."""

    FHIR = "fhir"
    DICOM = "dicom"
    DICOMS = "dicoms"
    STOW = "stow"
    MLLP = "mllp"
    MLLPS = "mllps"
    FILES = "files"


class RefusedError(Exception):
    """The target does not take this report; it may take the next one.

    Parameters
    ----------
    code : str
        What it answered, as a code: ``"HTTP 422"``, ``"AE"``, ``"status A900"``. Never a text of the answer, which may
        quote the report.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class AwayError(Exception):
    """The target cannot take any report now: it does not answer, or says so. It is tried again later.

    Parameters
    ----------
    why : str
        Never a text of an answer.
    """


class Target(Protocol):
    """Takes reports, one at a time."""

    def send(self, report: Report) -> None:
        """Deliver a report; it is with the target when this returns. To deliver it again changes nothing there.

        Raises
        ------
        RefusedError
            It does not take this one.
        AwayError
            It takes none now.
        NotReportedError
            There is no such report in this format.
        """

    def close(self) -> None:
        """Close connections; the next report opens them again."""


@dataclass(frozen=True, slots=True)
class Address:
    """A target as the command line names it.

    Parameters
    ----------
    kind : Kind
        Which protocol.
    place : str
        A URL without a ``/`` at its end, a host, or a folder.
    port : int
        Of a host; else 0.
    aet : str
        Called title of a DICOM peer; else empty.
    """

    kind: Kind
    place: str
    port: int = 0
    aet: str = ""

    def __str__(self) -> str:
        host = f"[{self.place}]" if ":" in self.place else self.place
        if self.kind in (Kind.DICOM, Kind.DICOMS):
            return f"{self.kind}:{self.aet}@{host}:{self.port}"
        return (
            f"{self.kind}:{host}:{self.port}" if self.kind in (Kind.MLLP, Kind.MLLPS) else f"{self.kind}:{self.place}"
        )

    @property
    def has_tls(self) -> bool:
        """Whether a DICOM or MLLP peer is reached by TLS; of an HTTP server the URL says it."""
        return self.kind in (Kind.DICOMS, Kind.MLLPS)


def read_address(text: str) -> Address:
    """Read a target of the command line.

    Raises
    ------
    SettingsError
        It is none; the message says how one looks.
    """
    kind, _, rest = text.partition(":")
    if kind in (Kind.FHIR, Kind.STOW) and re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", rest):
        return Address(Kind(kind), rest.rstrip("/"))
    if kind == Kind.FILES and rest:
        return Address(Kind.FILES, rest)
    if kind in (Kind.MLLP, Kind.MLLPS) and (found := _read_host(rest)):
        return Address(Kind(kind), *found)
    if kind in (Kind.DICOM, Kind.DICOMS):
        aet, _, host = rest.rpartition("@")
        if (
            0 < len(aet) <= _AET_CHARS
            and aet.strip()
            and aet.isascii()
            and "\\" not in aet
            and (found := _read_host(host))
        ):
            return Address(Kind(kind), *found, aet=aet)
    msg = f"--to: {text!r} is no target; wanted {EXAMPLES}"
    raise SettingsError(msg)


def _read_host(text: str) -> tuple[str, int] | None:
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:/@\[\]]+)):(\d{1,5})", text)
    if found is None or not 0 < int(found[3]) <= _HIGHEST_PORT:
        return None
    host = found[1] or found[2]
    try:
        host.encode("idna")  # what connects does so, and would fail of it with each report
    except UnicodeError:
        return None
    return host, int(found[3])
