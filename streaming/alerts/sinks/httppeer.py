"""One receiver of HTTP posts: its connection is kept, its time and the length of its answer are bounded."""

import http.client
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Url, parse_url

from streaming.alerts.sinks.addresses import resolve_host
from streaming.alerts.sinks.failures import describe_failure
from streaming.deadline import Deadline
from streaming.httpconnections import TimedConnection, TimedTlsConnection

USER_AGENT = f"xray-alerts/{version('xray-stream')}"
MAX_ANSWER_BYTES = 64 * 1024
"""So much of an answer is read, that its connection can be kept; nothing of it is used. A longer one is cut off."""
MAX_RETRY_AFTER_S = 24 * 3600.0
"""The longest that a receiver may ask for: the longest step of Standard Webhooks' own schedule."""

_MAX_DIGITS = 9
_PORTS = {"http": 80, "https": 443}
_FAILURES = (HTTPError, http.client.HTTPException, OSError)
_CLOSED_BEFORE = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)


def _check_url(text: str) -> str:
    try:
        parts = parse_url(text)
    except LocationParseError as exc:
        msg = "is no URL"
        raise ValueError(msg) from exc
    if parts.scheme not in _PORTS or not parts.host:
        msg = "expected a URL that begins with https:// or http:// and names a host"
        raise ValueError(msg)
    if parts.auth is not None:
        msg = "a URL must not hold a user or password"
        raise ValueError(msg)
    if parts.fragment is not None:
        msg = "a URL to post to has no fragment (#)"
        raise ValueError(msg)
    return text


def _check_authority(file: Path) -> Path:
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError as exc:
        msg = f"{file} has no certificate in PEM"
        raise ValueError(msg) from exc
    except OSError as exc:
        msg = f"{file} cannot be read: {exc.strerror}"
        raise ValueError(msg) from exc
    return file


HttpUrl = Annotated[str, AfterValidator(_check_url)]
"""A URL that `HttpPeer` takes; an error does not quote it."""

AuthorityFile = Annotated[Path, AfterValidator(_check_authority)]
"""PEM file of an authority that signs certificates."""


class PostError(Exception):
    """There was no whole answer; says why, in words of this program and of the system alone."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver answered.

    Parameters
    ----------
    status : int
        Of HTTP.
    retry_after_s : float or None
        What ``Retry-After`` asks for, in either form, from 0 to `MAX_RETRY_AFTER_S`; None where it says nothing.
    """

    status: int
    retry_after_s: float | None

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300  # noqa: PLR2004


class HttpPeer:
    """Posts to one URL. Redirects are not followed, the environment's proxies are not used. For one thread.

    Parameters
    ----------
    url : str
        See `HttpUrl`.
    timeout_s : float
        For the whole of a post: the name's addresses, connection, request and answer.
    ca : Path or None
        PEM file of the authority that signs the receiver's certificate; None: those that the system trusts.
    allow_private : bool
        See `streaming.alerts.sinks.addresses.is_allowed`.
    """

    def __init__(self, url: str, *, timeout_s: float, ca: Path | None = None, allow_private: bool = True) -> None:
        self._url = parse_url(url)
        self._timeout_s = timeout_s
        self._allow_private = allow_private
        self._context = ssl.create_default_context(cafile=ca) if self._url.scheme == "https" else None
        self._connection: TimedConnection | None = None

    @property
    def place(self) -> str:
        """Host and port, for the operator: the rest of a URL may be a secret."""
        return f"{self._url.host}:{_port_of(self._url)}"

    def post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post a body, and wait for the whole answer.

        Parameters
        ----------
        body : bytes
            As it is sent.
        headers : mapping of str to str
            ``Host``, ``Content-Length`` and ``User-Agent`` are added.

        Raises
        ------
        PostError
            The receiver may have the body or not.
        """
        with Deadline(self._timeout_s) as deadline:
            try:
                kept = self._take_kept()
                if kept is not None:
                    try:
                        return self._exchange(kept, body, headers, deadline)
                    except _CLOSED_BEFORE:
                        pass  # the receiver closed it meanwhile, as it may: that says nothing of the receiver
                return self._exchange(self._connect(deadline), body, headers, deadline)
            except _FAILURES as exc:
                msg = f"{self.place}: {self._describe(exc, is_late=deadline.is_over)}"
                raise PostError(msg) from exc

    def close(self) -> None:
        """Close the connection that is kept."""
        kept = self._take_kept()
        if kept is not None:
            kept.close()

    def _take_kept(self) -> TimedConnection | None:
        kept, self._connection = self._connection, None
        if kept is None or kept.is_connected:
            return kept
        kept.close()
        return None

    def _connect(self, deadline: Deadline) -> TimedConnection:
        host = str(self._url.host).strip("[]")
        port = _port_of(self._url)
        addresses = resolve_host(host, port, allow_private=self._allow_private, within_s=deadline.left_s)
        for position, address in enumerate(addresses):
            is_last = position == len(addresses) - 1
            if deadline.is_over:
                raise TimeoutError
            # An address that does not answer leaves time for those behind it.
            connection = self._make_connection(address, host, deadline.left_s / (len(addresses) - position))
            connection.find_deadline = lambda: deadline
            try:
                connection.connect()
            except _FAILURES:
                connection.close()
                if is_last:
                    raise
            else:
                return connection
        msg = "resolve_host gives at least one address"
        raise AssertionError(msg)

    def _make_connection(self, address: str, host: str, timeout_s: float) -> TimedConnection:
        port = _port_of(self._url)
        if self._context is None:
            return TimedConnection(address, port, timeout=timeout_s)
        # The certificate is checked for the name in the URL, not for the address that it had.
        return TimedTlsConnection(address, port, timeout=timeout_s, ssl_context=self._context, server_hostname=host)

    def _exchange(
        self, connection: TimedConnection, body: bytes, headers: Mapping[str, str], deadline: Deadline
    ) -> Answer:
        connection.find_deadline = lambda: deadline
        connection.timeout = deadline.left_s
        try:
            connection.request(
                "POST",
                self._url.request_uri,
                body,
                {"Host": self._url.netloc or "", "User-Agent": USER_AGENT, **headers},
                preload_content=False,
                decode_content=False,
            )
            response = connection.getresponse()
            is_whole = _read_away(response.read)
            if deadline.is_over:
                raise TimeoutError  # what was cut off may look like an end of headers, or of an answer without a length
            self._connection = connection if is_whole else None
        finally:
            if self._connection is not connection:
                connection.close()
        return Answer(response.status, parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC)))

    def _describe(self, exc: BaseException, *, is_late: bool) -> str:
        cause = exc.__cause__ if isinstance(exc, HTTPError) and exc.__cause__ is not None else exc
        if is_late or isinstance(cause, TimeoutError):
            return f"no whole answer within {self._timeout_s:g} s"
        if isinstance(cause, http.client.RemoteDisconnected):
            return "the connection was closed without an answer"
        return describe_failure(cause) if isinstance(cause, OSError) else "the answer broke off, or was not HTTP"


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Read a ``Retry-After`` header: seconds, or a date.

    Parameters
    ----------
    value : str or None
        The header, None where there is none.
    now : datetime
        With a time zone; a date is counted from it.

    Returns
    -------
    float or None
        Seconds, from 0 to `MAX_RETRY_AFTER_S`; None where it says nothing that can be read.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), MAX_RETRY_AFTER_S) if len(text) <= _MAX_DIGITS else MAX_RETRY_AFTER_S
    try:
        then = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    then = then.replace(tzinfo=UTC) if then.tzinfo is None else then
    return min(max(0.0, (then - now).total_seconds()), MAX_RETRY_AFTER_S)


def _read_away(read: Callable[[int], bytes]) -> bool:
    """Read an answer to its end; False where it has none within `MAX_ANSWER_BYTES`."""
    left = MAX_ANSWER_BYTES
    while chunk := read(4096):
        left -= len(chunk)
        if left < 0:
            return False
    return True


def _port_of(url: Url) -> int:
    return url.port or _PORTS[str(url.scheme)]
