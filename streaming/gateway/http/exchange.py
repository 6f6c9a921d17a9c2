"""The border of a request: an early answer gets through, and a fault of ours is this request's alone."""

import asyncio
import logging
import traceback
from contextlib import suppress
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Router
from starlette.types import Message, Receive, Scope, Send

from streaming.gateway.http.problems import ProblemError, tell_problem, tell_refusal
from streaming.gateway.refusals import Cause, Refusal

log = logging.getLogger(__name__)

_LINGER_S = 2.0
"""Most clients read an answer only after they have sent all, and lose it where the connection is closed meanwhile."""


class Border:
    """An ASGI application: answers by the routes, and what they raise.

    Parameters
    ----------
    router : Router
        The routes.
    """

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; see ASGI."""
        exchange = _Exchange(scope, receive, send)
        scope["app"] = self  # with it, starlette raises what it does not find
        try:
            await self._router(scope, exchange.receive, exchange.send)
        except Exception as exc:
            answer = _tell(exc)
            if not exchange.is_answered:
                await answer(scope, exchange.receive, exchange.send)


def _tell(exc: Exception) -> Response:
    match exc:
        case ProblemError():
            return tell_problem(exc)
        case Refusal():
            return tell_refusal(exc)
        case HTTPException():
            return tell_problem(ProblemError(exc.status_code, "there is nothing of this kind here", exc.headers))
        case ClientDisconnect():
            return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody reads it
    # A fault of ours is this request's answer, and the door goes on.
    # The words of the exception are withheld: libraries quote what they read, and so a patient's name.
    stack = "".join(traceback.format_tb(exc.__traceback__))
    log.error("http: a request met %s:\n%s", type(exc).__name__, stack)
    return tell_refusal(Refusal(Cause.FAILED))


class _Exchange:
    """A request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self._is_read = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"
        self._is_held_back = headers.get(b"expect", b"").lower() == b"100-continue"
        self.is_answered = False

    async def receive(self) -> Message:
        """Read on."""
        self._is_held_back = False
        message = await self._receive()
        if not message.get("more_body", False):
            self._is_read = True
        return message

    async def send(self, message: Message) -> None:
        """Answer; with a body that is not read to its end, the connection ends too."""
        if message["type"] == "http.response.start":
            self.is_answered = True
            if not self._is_read:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        elif not self._is_read and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        """Read over what still comes, unless the client waits to be asked for it."""
        if self._is_held_back:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while not self._is_read:
                    await self.receive()
