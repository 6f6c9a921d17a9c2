"""A real HTTP or HTTPS server that answers as a test says, and keeps what it got; and alarms to send to it."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from schemas.envelope import DISCLAIMER
from streaming.alerts.alarm import Alarm, State

STARTED = datetime(2026, 11, 30, 8, 0, 0, tzinfo=UTC)
ENDED = datetime(2026, 11, 30, 9, 30, 0, tzinfo=UTC)

Answer = Callable[["Handler"], None]


def make_alarm(ident: str = "0" * 32, state: State = State.OPEN, **changes: Any) -> Alarm:
    """An image's alarm."""
    fields: dict[str, Any] = {
        "rule": "pneumonia",
        "severity": "page",
        "labels": {"source": "/ward-3/dx-1", "model": "chest"},
        "annotations": {"summary": "Suspected pneumonia", "description": "score 0.97, threshold 0.5"},
        "starts_at": STARTED,
        "ends_at": ENDED if state is State.RESOLVED else None,
        "event": {"event_id": "e" * 32, "score": 0.97, "notice": DISCLAIMER},
    }
    return Alarm(id=ident, state=state, **(fields | changes))


@dataclass(frozen=True)
class Got:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        receiver: Receiver = self.server.receiver  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = receiver.note(Got(self.path, headers, body, self.client_address[1]))
        answer(self)

    do_GET = do_POST

    def log_message(self, *args: Any) -> None:
        """Nothing."""


class Receiver:
    """Answers 200 once what ``answers`` holds is used up."""

    def __init__(self, server: ThreadingHTTPServer, scheme: str) -> None:
        self.port: int = server.server_address[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}/hook?key=1"
        self.answers: list[Answer] = []
        self.got: list[Got] = []
        self.ended = threading.Event()
        self._lock = threading.Lock()

    def note(self, got: Got) -> Answer:
        with self._lock:
            self.got.append(got)
            return self.answers.pop(0) if self.answers else say(200)


@contextmanager
def receive(context: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run one on a free port of 127.0.0.1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    receiver = Receiver(server, "http" if context is None else "https")
    server.receiver = receiver  # type: ignore[attr-defined]
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


# --- answers ----------------------------------------------------------------------------------------------------------


def say(status: int, body: bytes = b"", **headers: str) -> Answer:
    """Answer in order; ``Retry_After`` is the header ``Retry-After``."""

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def say_raw(*pieces: bytes) -> Answer:
    """Write these bytes, and hang up."""

    def answer(handler: Handler) -> None:
        for piece in pieces:
            handler.wfile.write(piece)
        handler.close_connection = True

    return answer


def drip(start: bytes, piece: bytes) -> Answer:
    """Write a beginning, and then a piece each 50 ms for as long as the client holds out."""

    def answer(handler: Handler) -> None:
        receiver: Receiver = handler.server.receiver  # type: ignore[attr-defined]
        handler.wfile.write(start)
        while not receiver.ended.wait(0.05):
            handler.wfile.write(piece)
        handler.close_connection = True

    return answer


def say_nothing(handler: Handler) -> None:
    """Keep the client waiting."""
    handler.server.receiver.ended.wait(30)  # type: ignore[attr-defined]
    handler.close_connection = True
