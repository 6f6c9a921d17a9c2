"""Reads multipart/related while it streams: what begins, comes and ends of its parts, one after the other.

References
----------
RFC 2046 section 5.1 (boundaries, preamble, epilogue), RFC 2387 (multipart/related), PS3.18 8.6.1.2.
"""

import logging
import re
from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

# It logs bytes of what it cannot read.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_MAX_HEADERS = 32
_MAX_HEADER_BYTES = 8192
_MAX_PREAMBLE_BYTES = 64 * 1024
"""A preamble is a sentence for programs that do not know MIME."""


class MultipartError(Exception):
    """The body is not multipart as its content type says; the message quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class MediaType:
    """A media type.

    Parameters
    ----------
    name : str
        In small letters, e.g. ``"image/png"``; empty where there is none.
    parameters : dict of str to str
        Names in small letters.
    """

    name: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part begins."""

    media_type: MediaType


@dataclass(frozen=True, slots=True)
class PartData:
    """Some bytes of the part that began last."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part that began last is whole."""


Event = PartBegin | PartData | PartEnd


def read_media_type(text: str) -> MediaType:
    """Read a ``Content-Type``; parameters that are no text are left out."""
    name, parameters = parse_options_header(text)
    found = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in parameters.items()}
    return MediaType(name.decode("latin-1").strip().lower(), found)


class PartReader:
    """Reads one body.

    Parameters
    ----------
    boundary : str
        Of the content type.

    Raises
    ------
    MultipartError
        It is no boundary.
    """

    def __init__(self, boundary: str) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            msg = "the boundary is not 1 to 70 of the characters that RFC 2046 allows"
            raise MultipartError(msg)
        self._preamble_bytes: int | None = 0
        self._events: list[Event] = []
        self._name, self._value = b"", b""
        self._content_type = b""
        self._is_done = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_name,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
            max_header_count=_MAX_HEADERS,
            max_header_size=_MAX_HEADER_BYTES,
        )
        # The parser wants a boundary at once. So what comes before the first one is a part to it, which nobody sees.
        self._parser.write(b"--" + boundary.encode("ascii") + b"\r\n\r\n\r\n")
        self._events = []

    def feed(self, chunk: bytes) -> list[Event]:
        """Read on.

        Returns
        -------
        list of Event
            As far as the parts are understood now. How the body is cut into chunks makes no difference but in where
            `PartData` are cut.

        Raises
        ------
        MultipartError
            See there.
        """
        self._events = []
        try:
            self._parser.write(chunk)
        except MultipartParseError:
            msg = f"the body is not multipart, or a part has more than {_MAX_HEADERS} headers or a long one"
            raise MultipartError(msg) from None
        if self._preamble_bytes is not None and self._preamble_bytes > _MAX_PREAMBLE_BYTES:
            msg = f"no boundary in the first {_MAX_PREAMBLE_BYTES} bytes"
            raise MultipartError(msg)
        return self._events

    def finish(self) -> None:
        """Say that the body has ended.

        Raises
        ------
        MultipartError
            Its last boundary has not come.
        """
        if not self._is_done:
            msg = "the body ends before its last boundary"
            raise MultipartError(msg)

    def _begin_part(self) -> None:
        self._content_type = b""

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-type":
            self._content_type = self._value
        self._name, self._value = b"", b""

    def _end_headers(self) -> None:
        if self._preamble_bytes is None:
            self._events.append(PartBegin(read_media_type(self._content_type.decode("latin-1"))))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._preamble_bytes is None:
            self._events.append(PartData(data[start:end]))
        else:
            self._preamble_bytes += end - start

    def _end_part(self) -> None:
        if self._preamble_bytes is None:
            self._events.append(PartEnd())
        self._preamble_bytes = None

    def _end(self) -> None:
        self._is_done = True
