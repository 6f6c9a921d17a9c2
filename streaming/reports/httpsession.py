"""What FHIR and DICOMweb servers have in common: a session, its deadline, and what a status means."""

import ssl
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from streaming.deadline import Deadline
from streaming.httpconnections import FindDeadline, make_pools
from streaming.pemfiles import load_authority
from streaming.reports.target import AwayError, RefusedError
from streaming.reports.targettls import Wanted, load_context
from streaming.settings import ReportsSettings

_CA = "XRAY_REPORTS__HTTP_CA"
_LATER = frozenset((401, 403, 404, 405, 408, 410, 425, 429))
"""Refusals that are not of this report but of this client or address: each further report would have the same."""
_OK = 200
_REDIRECTED = 300
_REFUSED = 400
_FAILED = 500


class Session(requests.Session):  # type: ignore[misc]  # requests has no types
    """An HTTP session that waits for the whole of an answer, and no longer; for one thread.

    Parameters
    ----------
    within_s : float
        Seconds from a request to the last byte of its answer.
    """

    def __init__(self, within_s: float) -> None:
        super().__init__()
        # Reports name patients: a proxy that a shell has for other things must not get them, nor a password of ~/.netrc
        # take the token's place, nor REQUESTS_CA_BUNDLE that of our authority.
        self.trust_env = False
        self._within_s = within_s
        self._deadline = Deadline(0.0)
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(lambda: self._deadline))

    def request(self, *args: Any, **options: Any) -> requests.Response:
        """Ask, and read the whole answer; see requests."""
        with Deadline(self._within_s) as deadline:
            self._deadline = deadline
            answer = super().request(*args, **options)
            if deadline.is_over:  # what was cut off may look like the end of an answer without a length
                raise requests.Timeout
        return answer


class _Adapter(HTTPAdapter):  # type: ignore[misc]
    def __init__(self, find: FindDeadline) -> None:
        self._find = find
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = make_pools(self._find)


def open_session(settings: ReportsSettings) -> Session:
    """Open an HTTP session that shows the token, and a certificate where one is wanted, and follows no redirect.

    Raises
    ------
    SettingsError
        A file of TLS is not what it should be; names the setting.
    """
    session = Session(settings.answer_s)
    session.max_redirects = 0
    if settings.http_token is not None:
        session.headers["Authorization"] = f"Bearer {settings.http_token.get_secret_value()}"
    if settings.http_ca is not None:
        load_authority(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), settings.http_ca, setting=_CA)
        session.verify = str(settings.http_ca)
    if settings.tls_certificate is not None:
        load_context(settings)
        session.cert = (str(settings.tls_certificate), str(settings.tls_key))
    return session


def describe_failure(exc: OSError, url: str, settings: ReportsSettings) -> str:
    """Say why there was no answer; of what TLS failed, where it was that."""
    wanted = Wanted(
        urlsplit(url).hostname or "", "http:", settings.http_ca, _CA, shows_own=settings.tls_certificate is not None
    )
    inner: BaseException | None = exc
    while inner is not None:  # requests wraps an error of urllib3, and this one that of the socket
        if isinstance(inner, ssl.SSLError):
            return wanted.describe(inner, is_connected=False)
        inner = inner.__context__
    return type(exc).__name__


def check_status(status: int) -> None:
    """Read an HTTP status.

    Raises
    ------
    RefusedError
        The report was refused.
    AwayError
        The server, or this client's right to it, is at fault.
    """
    if _OK <= status < _REDIRECTED:
        return
    if _REFUSED <= status < _FAILED and status not in _LATER:
        msg = f"HTTP {status}"
        raise RefusedError(msg)
    msg = f"HTTP {status}"
    raise AwayError(msg)
