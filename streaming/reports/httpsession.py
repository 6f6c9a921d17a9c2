"""What FHIR and DICOMweb servers have in common: a session, and what a status means."""

import requests

from streaming.reports.target import AwayError, RefusedError
from streaming.settings import ReportsSettings

_LATER = frozenset((401, 403, 404, 405, 408, 410, 425, 429))
"""Refusals that are not of this report but of this client or address: each further report would have the same."""
_OK = 200
_REDIRECTED = 300
_REFUSED = 400
_FAILED = 500


def open_session(settings: ReportsSettings) -> requests.Session:
    """Open an HTTP session that shows the token, and follows no redirect to somebody else."""
    session = requests.Session()
    session.max_redirects = 0
    if settings.http_token is not None:
        session.headers["Authorization"] = f"Bearer {settings.http_token.get_secret_value()}"
    if settings.http_ca is not None:
        session.verify = str(settings.http_ca)
    return session


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
