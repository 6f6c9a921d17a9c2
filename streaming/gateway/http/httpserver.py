"""Serves HTTP in a thread of its own, to clients that may be slow, silent or broken.

uvicorn and httptools bound neither the time nor the size of a request's head, nor the number of connections; this does.
"""

import asyncio
import json
import logging
import resource
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from streaming.gateway.certificates import Certificates
from streaming.gateway.http import problems
from streaming.gateway.listeners import open_listener

MAX_HEAD_BYTES = 32 * 1024
_MAX_CONNECTIONS = 4000
_BACKLOG = 1024
_GRACE_S = 2.0

# uvicorn logs what goes wrong with its tracebacks, and libraries quote what they read.
for _name in ("uvicorn.error", "uvicorn.access"):
    logging.getLogger(_name).setLevel(logging.CRITICAL + 1)


class CurrentContext(ssl.SSLContext):
    """A TLS context that is, at each handshake, as the files are then."""

    _certificates: Certificates

    @classmethod
    def of(cls, certificates: Certificates) -> "CurrentContext":
        """Make one."""
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context._certificates = certificates
        return context

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """Begin a handshake, for asyncio."""
        context = self._certificates.current()
        assert context is not None  # noqa: S101
        return context.wrap_bio(*args, **options)


class _Config(uvicorn.Config):
    """uvicorn's, and what the protocol below needs."""

    idle_s: float
    max_connections: int


class _HeadError(Exception):
    """The head of a request is too large."""


class LimitedProtocol(HttpToolsProtocol):
    """A connection: its head is bounded in size and time, and it gives way to a new one while nothing is under way."""

    config: _Config

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; see `asyncio.Protocol`."""
        super().connection_made(transport)
        self._head_bytes = 0
        self._is_in_head = False
        self._fault = HTTPStatus.BAD_REQUEST
        self._deadline: asyncio.TimerHandle | None = None
        self._expect_head()
        if len(self.connections) > self.config.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; see `asyncio.Protocol`."""
        self._end_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; see `asyncio.Protocol`."""
        if self._is_in_head:  # the first piece is not counted: it may have the end of another request's body
            self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        except httptools.HttpParserUpgrade as exc:
            self._stay_with_http(data[exc.args[0] :])
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._fault = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self.send_400_response("")

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._is_in_head = True
        self._head_bytes = self._named_bytes = 0
        self._expect_head()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Read a piece of the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Read a header."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Have the request answered."""
        self._is_in_head = False
        self._end_deadline()
        if not self._asks_for_another_protocol:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Have the whole body."""
        if not self._asks_for_another_protocol:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with what came, and end; ``msg`` is the parser's own and is not told."""
        content: dict[str, Any] = {"type": "about:blank", "title": self._fault.phrase, "status": self._fault.value}
        content |= {"detail": "this is not HTTP as it is understood here", "cause": None, "retry": False}
        body = json.dumps(content).encode()
        head = (
            f"HTTP/1.1 {self._fault.value} {self._fault.phrase}\r\ncontent-type: {problems.MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        if not self.transport.is_closing():
            if not self._is_answering:
                self.transport.write(head.encode() + body)
            self.transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def _is_answering(self) -> bool:
        """Whether something of an answer is on its way already."""
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete

    @property
    def _asks_for_another_protocol(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _stay_with_http(self, rest: bytes) -> None:
        """Read a request again as one that asks for no other protocol, which a server may do (RFC 9110, 7.8).

        Java's client offers HTTP/2 with the first request of a connection. The parser takes its body for that already.
        """
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        with suppress(AttributeError):  # as uvicorn has it; not before httptools 0.6.3
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def _count(self, size: int) -> None:
        self._named_bytes += size
        if self._named_bytes > MAX_HEAD_BYTES:
            self._fault = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise _HeadError

    def _expect_head(self) -> None:
        self._end_deadline()
        self._deadline = self.loop.call_later(self.config.idle_s, self._give_up)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if not self.is_idle:  # one request under way, and the next one begun already
            self._expect_head()
        elif self._is_in_head:
            self._fault = HTTPStatus.REQUEST_TIMEOUT
            self.send_400_response("")
        else:
            self.transport.close()

    def _make_room(self) -> None:
        for other in list(self.connections):
            if other is not self and isinstance(other, LimitedProtocol) and other.is_idle:
                self.connections.discard(other)
                other.transport.abort()  # at once: the new one has its place
                return
        self.transport.abort()


class HttpServer:
    """Serves an ASGI application.

    Parameters
    ----------
    app : callable
        See ASGI.
    idle_s : float
        Seconds of silence after which a connection is ended, and within which the head of a request has to come.
    certificates : Certificates
        Of TLS, where that is on.
    """

    def __init__(self, app: Callable[..., Any], *, idle_s: float, certificates: Certificates) -> None:
        config = _Config(
            app,
            loop="asyncio",
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=int(idle_s) or 1,
        )
        if certificates.current() is not None:
            config.ssl_context_factory = lambda *_: CurrentContext.of(certificates)
        config.idle_s = idle_s
        config.max_connections = _count_connections()
        self._server = uvicorn.Server(config)
        self._config = config
        self._thread: threading.Thread | None = None
        self._loop: Future[asyncio.AbstractEventLoop] = Future()

    def start(self, host: str, port: int, setting: str = "XRAY_GATEWAY__HTTP_PORT") -> int:
        """Listen, and give the port; ``setting`` is the variable that names it.

        Raises
        ------
        SettingsError
            It cannot listen there.
        """
        listener = open_listener(host, port, setting, backlog=_BACKLOG)
        self._thread = threading.Thread(target=self._run, args=(listener,), name="http", daemon=True)
        self._thread.start()
        bound: int = listener.getsockname()[1]
        return bound

    def stop(self, timeout_s: float, on_stop: Callable[[], None]) -> None:
        """Take no new requests, let those under way be answered for so many seconds, and end.

        Parameters
        ----------
        timeout_s : float
            What is not answered then is cut off.
        on_stop : callable
            Called in the event loop.
        """
        if self._thread is not None:
            self._loop.result().call_soon_threadsafe(on_stop)
            self._config.timeout_graceful_shutdown = max(1, int(timeout_s))
            self._server.should_exit = True
            self._thread.join(timeout_s + _GRACE_S)

    def _run(self, listener: socket.socket) -> None:
        with asyncio.Runner() as runner:
            self._loop.set_result(runner.get_loop())
            runner.run(self._server.serve(sockets=[listener]))


def _count_connections() -> int:
    """Give how many connections may be open: half of the files that this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(_MAX_CONNECTIONS, soft // 2)
