"""What every view has: the parts behind it, its template, who asks, and what a browser sent."""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from schemas.errors import TableError
from streaming.lookup.outcome import Outcome
from streaming.page.guard import Refused
from streaming.page.knows.feed import Feed
from streaming.page.knows.findings import Findings
from streaming.page.knows.modelsview import ModelsView
from streaming.page.knows.moves import Operator
from streaming.page.knows.servicefigures import LabelledService
from streaming.page.knows.trace import Tracer
from streaming.page.knows.vitals import Vitals
from streaming.page.pictures.gallery import Gallery
from streaming.page.pictures.picture import PictureError
from streaming.page.views import Views
from streaming.settings import StreamSettings

MAX_BODY_BYTES = 128 * 1024
"""Of anything that a browser sends: an answer has some hundred bytes, what it has seen already some thousand."""
_TITLES = {
    HTTPStatus.UNAUTHORIZED: "Log in",
    HTTPStatus.FORBIDDEN: "That is not allowed",
    HTTPStatus.NOT_FOUND: "There is no such thing here",
    HTTPStatus.MISDIRECTED_REQUEST: "Another name is wanted",
}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Desk:
    """What routes answer with.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    feed : Feed
        Outcomes.
    gallery : Gallery
        Pictures.
    findings : Findings
        What people said.
    vitals : Vitals
        How the parts are.
    tracer : Tracer
        The way of an image.
    models : ModelsView
        Models and reports.
    service : LabelledService
        What models said of images with a confirmed finding.
    operator : Operator
        Promotes, rolls back and redrives.
    views : Views
        Templates.
    run : str
        Another one each time that the page is started: numbers of outcomes are of one run.
    """

    settings: StreamSettings
    feed: Feed
    gallery: Gallery
    findings: Findings
    vitals: Vitals
    tracer: Tracer
    models: ModelsView
    service: LabelledService
    operator: Operator
    views: Views
    run: str = field(default_factory=lambda: secrets.token_hex(4))

    def answer(self, request: Request, template: str, *, status: int = HTTPStatus.OK, **data: Any) -> Response:
        """Answer with a template, which gets who asks as well."""
        state = request.state
        given = {"person": getattr(state, "person", None), "csrf": getattr(state, "csrf", None), "view": "", **data}
        return HTMLResponse(self.views.render(template, given), status_code=status)

    def refuse(self, request: Request, refused: Refused) -> Response:
        """Answer a request that is refused: a view for a person, a sentence for a script."""
        if refused.status is HTTPStatus.UNAUTHORIZED and _wants_view(request):
            failed = "token" in request.query_params or request.method == "POST"
            data = {"why": refused.why, "failed": failed}
            return self.answer(request, "login.html", status=refused.status, **data)
        if not _wants_view(request):
            return PlainTextResponse(refused.why, status_code=refused.status)
        data = {"code": int(refused.status), "title": _TITLES.get(refused.status, refused.status.phrase)}
        return self.answer(request, "error.html", status=refused.status, why=refused.why, **data)

    def find(self, request: Request) -> Outcome:
        """Find the outcome that an address names.

        Raises
        ------
        Refused
            See `find_outcome`.
        """
        return self.find_outcome(request.path_params["event_id"])

    def find_outcome(self, event_id: str) -> Outcome:
        """Find an outcome, in memory or in the tables; of a large table that takes a second.

        Raises
        ------
        Refused
            It is in neither, or the tables or the older outcomes are not read.
        """
        try:
            outcome = self.feed.find(event_id)
        except TableError as exc:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(exc)) from exc
        if outcome is None and not self.feed.state.is_filled:
            # Not "not found": a browser would throw away what somebody has said of it.
            doing = "are being read" if self.feed.state.is_reading else f"cannot be read: {self.feed.state.why}"
            why = f"No outcome of this id is known yet: those that are in Kafka {doing}. Ask again in a while."
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, why)
        if outcome is None:
            why = "No outcome of this id is in the page's memory, which has the newest ones, or in the tables."
            raise Refused(HTTPStatus.NOT_FOUND, why)
        return outcome


def attempt(make: Callable[[], _T]) -> tuple[_T | None, str]:
    """Make something of an image, or say why that cannot be."""
    try:
        return make(), ""
    except PictureError as exc:
        return None, str(exc)


async def read_json(request: Request) -> Mapping[str, Any]:
    """Read what a script of the page sends.

    Raises
    ------
    Refused
        It is too large, or no JSON object.
    """
    try:
        found = json.loads(await read_body(request))
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError is a ValueError
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "A JSON object was wanted.") from exc
    if not isinstance(found, dict):
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "A JSON object was wanted.")
    return found


async def read_body(request: Request) -> bytes:
    """Read a body that is not large.

    Raises
    ------
    Refused
        It is.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            why = f"More than {MAX_BODY_BYTES} bytes were sent."
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, why)
    return body


def _wants_view(request: Request) -> bool:
    """Whether a person will see the answer as a view: not a picture, a part of a view, or what a script asks."""
    return "text/html" in request.headers.get("accept", "") and "hx-request" not in request.headers
