"""What an HTTP client is told where a request does not succeed: Problem Details, RFC 9457.

Nothing of a request is quoted: its path, headers and body may name a patient.
"""

import math
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse, Response

from streaming.gateway.refusals import Refusal

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
"""Where nobody knows better."""
_TYPE_PREFIX = "urn:xray:gateway:"
_AUTHENTICATE = {"www-authenticate": 'Bearer realm="xray"'}


class ProblemError(Exception):
    """A request does not succeed, for a reason that is no object's.

    Parameters
    ----------
    status : int
        Of the answer.
    detail : str
        What was found and wanted.
    headers : Mapping, optional
        Of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


class UnauthorizedError(ProblemError):
    """A token is wanted, or another one."""

    def __init__(self, detail: str) -> None:
        super().__init__(HTTPStatus.UNAUTHORIZED, detail, _AUTHENTICATE)


def tell_problem(problem: ProblemError) -> Response:
    """Render it."""
    return _render(problem.status, "about:blank", problem.detail, problem.headers)


def tell_refusal(refusal: Refusal) -> Response:
    """Render why an object is not taken."""
    cause = refusal.cause
    return _render(
        cause.value.http,
        _TYPE_PREFIX + cause.label,
        refusal.detail,
        retry_headers(refusal),
        cause=cause.label,
        retry=cause.value.is_transient,
    )


def retry_headers(refusal: Refusal) -> dict[str, str]:
    """Say when to send the object again; empty where that makes no sense."""
    if not refusal.cause.value.is_transient:
        return {}
    wait_s = RETRY_AFTER_S if refusal.retry_after_s is None else refusal.retry_after_s
    return {"retry-after": str(max(1, math.ceil(wait_s)))}


def _render(
    status: int,
    kind: str,
    detail: str,
    headers: Mapping[str, str],
    *,
    cause: str | None = None,
    retry: bool = False,
) -> Response:
    title = HTTPStatus(status).phrase
    content = {"type": kind, "title": title, "status": status, "detail": detail, "cause": cause, "retry": retry}
    return JSONResponse(content, status, headers, media_type=MEDIA_TYPE)
