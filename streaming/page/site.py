"""All addresses of the page, what is told to open tabs, and the guard before them."""

import gzip
import logging
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from importlib.resources import files
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from streaming.page.desk import Desk, read_body
from streaming.page.eventstream import EventStreams
from streaming.page.guard import Guard, Refused, Sessions, name_cookie
from streaming.page.imageroutes import ImageRoutes
from streaming.page.labelroutes import LabelRoutes
from streaming.page.modelroutes import ModelRoutes
from streaming.page.nowroutes import NowRoutes

log = logging.getLogger(__name__)

_KEEP = "public, max-age=31536000, immutable"
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}


class Site:
    """The page as an ASGI application.

    Parameters
    ----------
    desk : Desk
        What views are made of.
    sessions : Sessions
        Who is in.
    hosts : callable
        Gives the values of Host that are ours.
    secure : bool
        Whether browsers reach it by TLS.
    """

    def __init__(self, desk: Desk, sessions: Sessions, *, hosts: Callable[[], frozenset[str]], secure: bool) -> None:
        self._desk = desk
        self._sessions = sessions
        now = NowRoutes(desk)
        self.streams = EventStreams(now.tell, max_tabs=desk.settings.page.max_tabs)
        routes = [
            Route("/login", self._show_login),
            Route("/login", self._log_in, methods=["POST"]),
            Route("/health", self._say_health),
            Route("/events", self._follow),
            Route("/assets/{name:path}", self._give_asset),
            *now.routes,
            *ImageRoutes(desk).routes,
            *LabelRoutes(desk).routes,
            *ModelRoutes(desk).routes,
        ]
        app = Starlette(
            routes=routes,
            exception_handlers={Refused: self._refuse, HTTPException: self._say_missing, Exception: self._say_failed},
        )
        self.guard = Guard(app, sessions, hosts=hosts, refuse=desk.refuse, secure=secure)

    # --- who is in --------------------------------------------------------------------------------------------------

    def _show_login(self, request: Request) -> Response:
        return self._desk.answer(request, "login.html", why="", failed=False)

    async def _log_in(self, request: Request) -> Response:
        sent = parse_qs((await read_body(request)).decode(errors="replace"))
        key = self._sessions.open(sent.get("token", [""])[0].strip())
        if key is None:
            raise Refused(HTTPStatus.UNAUTHORIZED, "Nobody has this token, or no longer.")
        self._sessions.close(request.cookies.get(name_cookie(request)))
        response = RedirectResponse("/", status_code=HTTPStatus.SEE_OTHER)
        self.guard.set_cookie(request, response, key)
        return response

    def _say_health(self, request: Request) -> Response:
        state = self._desk.feed.state
        found = {"ok": state.is_reading, "reading": state.is_reading, "filled": state.is_filled}
        status = HTTPStatus.OK if state.is_reading else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse(found, status_code=status)

    # --- what is new ------------------------------------------------------------------------------------------------

    async def _follow(self, request: Request) -> Response:
        if self.streams.is_full:  # 204 tells a browser not to try again
            return Response(status_code=HTTPStatus.NO_CONTENT)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        key = request.cookies.get(name_cookie(request))
        events = self.streams.follow(lambda: self._sessions.find(key) is not None)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _give_asset(self, request: Request) -> Response:
        found = _read_asset(request.path_params["name"])
        if found is None:
            raise Refused(HTTPStatus.NOT_FOUND, "There is no such asset.")
        plain, small, media_type = found
        headers = {"cache-control": _KEEP, "vary": "accept-encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(small, media_type=media_type, headers=headers | {"content-encoding": "gzip"})
        return Response(plain, media_type=media_type, headers=headers)

    async def _refuse(self, request: Request, refused: Exception) -> Response:
        assert isinstance(refused, Refused)  # noqa: S101
        return self._desk.refuse(request, refused)

    async def _say_missing(self, request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)  # noqa: S101
        return self._desk.refuse(request, Refused(HTTPStatus(exc.status_code), "The page has no view at this address."))

    async def _say_failed(self, request: Request, exc: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=exc)
        why = "The page failed over this, which is written in its log. What was entered is kept."
        return PlainTextResponse(why, status_code=HTTPStatus.INTERNAL_SERVER_ERROR)


@lru_cache(maxsize=64)
def _read_asset(name: str) -> tuple[bytes, bytes, str] | None:
    """Give an asset as it is, smaller, and its type; None where there is none of that name."""
    parts = name.split("/")
    if any(part in {"", ".", ".."} or "\\" in part for part in parts):
        return None
    try:
        content = files("streaming.page").joinpath("assets", *parts).read_bytes()
    except (OSError, ValueError):  # none, a folder, longer than a name can be, or no name at all
        return None
    media_type = _TYPES.get(name.rpartition(".")[2], "application/octet-stream")
    return content, gzip.compress(content, mtime=0), media_type
