"""What stands before every view: the Host header, the session, the origin of what changes something, and the headers.

A page on 127.0.0.1 is reachable by every site that its user's browser has open. So a request is refused whose Host is
not one of ours (DNS rebinding), that changes something and comes from another origin, or without the session's own
token (CSRF), and whose session is nobody's.
"""

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from streaming.accessfile import hash_token
from streaming.page.people import People, Person, Role

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "xray_page"
CSRF_HEADER = "x-csrf-token"
_SESSION_S = 12 * 3600.0
_MAX_SESSIONS = 1000
_SAFE = ("GET", "HEAD")
_OPEN = ("/assets/", "/health", "/login")
"""What whoever reaches the page may ask for: nothing there is of an image."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; frame-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class Session:
    """A browser that was let in.

    Parameters
    ----------
    digest : str
        Hash of the token that let it in: it is asked again with each request.
    csrf : str
        What each request that changes something has to bring.
    until : float
        Seconds of the clock at which it ends.
    """

    digest: str = field(repr=False)
    csrf: str = field(repr=False)
    until: float


class Sessions:
    """The browsers that were let in; in memory, so that a restart ends them.

    Parameters
    ----------
    people : People
        Who may come in.
    clock : callable
        Seconds; for tests.
    """

    def __init__(self, people: People, clock: Callable[[], float] = time.monotonic) -> None:
        self._people = people
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def open(self, token: str) -> str | None:
        """Let a browser in: the cookie's value; None where nobody has this token."""
        digest = hash_token(token)
        with self._lock:
            if self._people.find(digest) is None:
                return None
            key = secrets.token_urlsafe(32)
            self._sessions[key] = Session(digest, secrets.token_urlsafe(24), self._clock() + _SESSION_S)
            while len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)
            return key

    def find(self, key: str | None) -> tuple[Session, Person] | None:
        """Give the session of a cookie, and whose it is; None where it is nobody's any more."""
        with self._lock:
            session = self._sessions.get(key or "")
            if session is None:
                return None
            person = self._people.find(session.digest) if self._clock() < session.until else None
            if person is None:
                self._sessions.pop(key or "", None)
                return None
            return session, person

    def close(self, key: str | None) -> None:
        """Forget a session."""
        with self._lock:
            self._sessions.pop(key or "", None)


@dataclass
class Refused(Exception):
    """A request that is not answered as asked.

    Parameters
    ----------
    status : HTTPStatus
        Of the answer.
    why : str
        For the person: what was found, what was wanted, what to do.
    """

    status: HTTPStatus
    why: str


class Guard:
    """An ASGI application before another one.

    Parameters
    ----------
    app : callable
        The site. Its requests have ``request.state.person``, ``.session`` and ``.csrf``; None each where `_OPEN` let
        them through.
    sessions : Sessions
        Who is in.
    hosts : callable
        Gives the values of Host that are ours.
    refuse : callable
        Makes the answer from a request and why it is refused.
    secure : bool
        Whether the page speaks TLS, or a proxy before it.
    """

    def __init__(
        self,
        app: App,
        sessions: Sessions,
        *,
        hosts: Callable[[], frozenset[str]],
        refuse: Callable[[Request, Refused], Response],
        secure: bool,
    ) -> None:
        self._app = app
        self._sessions = sessions
        self._hosts = hosts
        self._refuse = refuse
        self._secure = secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; see ASGI."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        answer: App = self._app
        try:
            self._check_host(request)
            entered = self._enter(request)
            if entered is None:
                self._check_session(request)
            else:
                answer = entered
        except Refused as refused:
            answer = self._refuse(request, refused)
        await answer(scope, receive, _add_headers(send))

    def set_cookie(self, request: Request, response: Response, key: str) -> None:
        """Have a browser keep its session."""
        response.set_cookie(
            name_cookie(request),
            key,
            max_age=int(_SESSION_S),
            httponly=True,
            samesite="strict",
            secure=self._secure,
            path="/",
        )

    def _check_host(self, request: Request) -> None:
        host = request.headers.get("host", "").lower()
        if host not in self._hosts():
            why = "The page is not known by the name in the address. Use the address that 'xray page' printed."
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, why)

    def _enter(self, request: Request) -> Response | None:
        """Take the token out of the address, once: it must not stay in the browser's history."""
        token = request.query_params.get("token")
        if request.method != "GET" or token is None:
            return None
        key = self._sessions.open(token)
        if key is None:
            raise Refused(HTTPStatus.UNAUTHORIZED, "The token in the address is not valid, or no longer.")
        rest = urlencode([(name, text) for name, text in parse_qsl(request.url.query) if name != "token"])
        # Of the path alone, and never of two slashes: '//other.example' would be another site.
        path = "/" + request.url.path.lstrip("/\\")
        response = RedirectResponse(path + (f"?{rest}" if rest else ""), status_code=HTTPStatus.SEE_OTHER)
        self.set_cookie(request, response, key)
        return response

    def _check_session(self, request: Request) -> None:
        found = self._sessions.find(request.cookies.get(name_cookie(request)))
        state = request.state
        state.person, state.csrf, state.key = None, None, request.cookies.get(name_cookie(request))
        if found is not None:
            session, state.person = found
            state.csrf = session.csrf
        if request.method not in _SAFE:
            _check_origin(request)
        if request.url.path.startswith(_OPEN):
            return
        if found is None:
            raise Refused(HTTPStatus.UNAUTHORIZED, "Nobody is logged in here, or no longer.")
        if request.method not in _SAFE:
            given = request.headers.get(CSRF_HEADER, "")
            if not hmac.compare_digest(given.encode(), found[0].csrf.encode()):
                why = "The request did not come from a view of this session. Load the view again, then repeat it."
                raise Refused(HTTPStatus.FORBIDDEN, why)


def name_cookie(request: Request) -> str:
    """Give the name of the session's cookie: cookies know no ports, and two pages of one machine are two sessions."""
    port = request.headers.get("host", "").rpartition(":")[2]
    return f"{COOKIE}_{port}" if port.isdigit() else COOKIE


def want(request: Request, role: Role) -> Person:
    """Give who asks, where they may do what a role may.

    Raises
    ------
    Refused
        They may not.
    """
    person: Person = request.state.person
    if person.role < role:
        why = f"This wants the role {role.name.lower()}; {person.name} has {person.role.name.lower()}."
        if role is Role.OPERATE:
            why += " Whether anybody may operate from the page is decided at its start: xray page --allow-operate."
        raise Refused(HTTPStatus.FORBIDDEN, why)
    return person


def _check_origin(request: Request) -> None:
    """Refuse what another site has a browser send.

    Every browser of today sends Origin with a request that is not safe; one without it, and without Sec-Fetch-Site, is
    of a program, which has no cookies of anybody.
    """
    origin, fetched = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    own = f"{request.url.scheme}://{request.headers.get('host', '')}".lower()
    proxied = own.replace("http://", "https://", 1)  # TLS ends at a proxy
    is_foreign = origin is not None and origin.lower() not in {own, proxied}
    if is_foreign or fetched not in {None, "same-origin", "none"}:
        raise Refused(HTTPStatus.FORBIDDEN, "The request came from another site.")


def _add_headers(send: Send) -> Send:
    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            more = {"cache-control": "no-store", **_HEADERS}
            message["headers"] = [
                *message["headers"],
                *((n.encode(), v.encode()) for n, v in more.items() if n.encode() not in given),
            ]
        await send(message)

    return send_with_headers
