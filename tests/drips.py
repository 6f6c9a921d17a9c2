"""Peers whose answers drip: a byte now and then, without an end; and a name server that hangs."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

TLS_RECORD = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"
"""A record of 16 kB, whose content is to come."""
PDU = b"\x02\x00\x00\x00\xff\xff"
"""An A-ASSOCIATE-AC of DICOM, whose content is to come."""
HEAD = b"HTTP/1.1 200 OK\r\n"
ENDLESS = {
    "status": b"",
    "headers": HEAD + b"X: ",
    "body": HEAD + b"Content-Length: 60000\r\n\r\n",
    "body without a length": HEAD + b"Connection: close\r\n\r\n",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n",
}
"""Answers of HTTP up to where they drip."""


@contextmanager
def run_drips(start: bytes, *, ends_well: int = 0, good: bytes = b"") -> Iterator[int]:
    """Answer whatever comes with ``start`` and a byte each 20 ms; the first ``ends_well`` requests with ``good``.

    Yields
    ------
    int
        Its port.
    """
    ended = threading.Event()
    left = [ends_well]

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            try:
                while self.request.recv(65_536):
                    if left[0]:
                        left[0] -= 1
                        self.request.sendall(good)
                        continue
                    self.request.sendall(start)
                    while not ended.wait(0.02):
                        self.request.sendall(b"0")
                    return
            except OSError:
                return

    with _serve(Handler, ended) as server:
        yield server


@contextmanager
def run_dripping_proxy(port: int, n_messages: int) -> Iterator[int]:
    """Pass on what a DICOM peer says, but of its message ``n_messages`` no more than drips.

    Yields
    ------
    int
        Its port.
    """
    ended = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as peer:
                threading.Thread(target=pump, args=(self.request, peer), daemon=True).start()
                try:
                    for _ in range(n_messages):
                        head = receive(peer, 6)
                        self.request.sendall(head + receive(peer, int.from_bytes(head[2:], "big")))
                    self.request.sendall(receive(peer, 6)[:2] + b"\x00\x00\xff\xff")
                    while not ended.wait(0.02):
                        self.request.sendall(b"0")
                except OSError:
                    return

    def receive(peer: socket.socket, n: int) -> bytes:
        found = b""
        while len(found) < n:
            if not (piece := peer.recv(n - len(found))):
                raise ConnectionError
            found += piece
        return found

    def pump(origin: Any, to: Any) -> None:
        try:
            while piece := origin.recv(65_536):
                to.sendall(piece)
        except OSError:
            return

    with _serve(Handler, ended) as server:
        yield server


@contextmanager
def _serve(handler: Any, ended: threading.Event) -> Iterator[int]:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hanging_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Answer no question for a name under ``.hangs``; gives the names that were asked for."""
    ended, asked, really = threading.Event(), list[str](), socket.getaddrinfo

    def hang(host: Any, *args: Any, **options: Any) -> Any:
        if str(host).endswith(".hangs"):
            asked.append(str(host))
            ended.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "late")
        return really(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        yield asked
    finally:
        ended.set()
