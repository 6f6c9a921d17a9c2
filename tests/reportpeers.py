"""Peers that reports are delivered to: an MLLP receiver and a FHIR server that do as they are told, and count."""

import json
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import hl7


@dataclass
class MllpReceiver:
    """Acknowledges messages; ``answer`` decides how, by the message's control id and how often it has come.

    ``AA``, ``AE``, ``AR``, ``silence``, ``hang up``, ``another`` (acknowledges another message), ``nonsense``, ``drip``
    (never ends); ``cut`` acknowledges by the first ``n_named`` characters of the id. With ``tls`` it speaks TLS only.
    """

    answer: Callable[[str, int], str] = lambda _id, _times: "AA"
    port: int = 0
    messages: list[Any] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    n_connections: int = 0
    n_named: int = 20
    tls: ssl.SSLContext | None = None

    def times(self, control_id: str) -> int:
        return sum(str(one.segment("MSH")[10]) == control_id for one in self.messages)


@contextmanager
def run_mllp(receiver: MllpReceiver) -> Iterator[MllpReceiver]:
    ended = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def setup(self) -> None:
            if receiver.tls is not None:
                self.request = receiver.tls.wrap_socket(self.request, server_side=True)
            super().setup()

        def finish(self) -> None:
            super().finish()
            self.request.close()

        def handle(self) -> None:
            receiver.n_connections += 1
            left = b""
            while piece := self.connection.recv(65_536):
                left += piece
                while b"\x1c\r" in left:
                    frame, _, left = left.partition(b"\x1c\r")
                    assert frame.startswith(b"\x0b")
                    if not self.acknowledge(hl7.parse(frame[1:].decode())):
                        return

        def acknowledge(self, message: Any) -> bool:
            control_id = str(message.segment("MSH")[10])
            receiver.messages.append(message)
            code = receiver.answer(control_id, receiver.times(control_id))
            if code == "hang up":
                return False
            if code == "silence":
                ended.wait(20)
                return False
            if code == "drip":
                self.wfile.write(b"\x0b")
                while not ended.wait(0.05):
                    self.wfile.write(b"M")
                return False
            if code in ("AA", "cut"):
                receiver.accepted.append(control_id)
            named = {"another": "0" * 32, "cut": control_id[: receiver.n_named]}.get(code, control_id)
            code = "AA" if code in ("cut", "another") else code
            text = f"MSH|^~\\&|RIS||XRAY||20260131||ACK^R01|9|P|2.5.1\rMSA|{code}|{named}\r"
            answer = b"SMITH^JOHN" if code == "nonsense" else text.encode()
            half = len(answer) // 2
            self.wfile.write(b"\x0b" + answer[:half])
            self.wfile.flush()
            self.wfile.write(answer[half:] + b"\x1c\r")
            return True

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing of a connection that is none of TLS, or was given up."""
            if not isinstance(sys.exception(), OSError):
                super().handle_error(request, client_address)

    with Server(("127.0.0.1", receiver.port), Handler) as server:
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            ended.set()
            server.shutdown()
            thread.join()


@dataclass
class FhirStore:
    """Holds resources by identifier, as a server with conditional update does; ``statuses`` are answered first.

    ``answer`` is in each body.
    """

    statuses: list[int] = field(default_factory=list)
    answer: Any = field(default_factory=lambda: {"resourceType": "OperationOutcome", "text": "patient SMITH"})
    resources: dict[str, Any] = field(default_factory=dict)
    requests: list[dict[str, str]] = field(default_factory=list)
    address: str = ""


@contextmanager
def run_fhir(store: FhirStore) -> Iterator[FhirStore]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            store.requests.append(dict(self.headers))
            status = store.statuses.pop(0) if store.statuses else 200
            if status == 200:
                for entry in json.loads(body)["entry"]:
                    store.resources[entry["request"]["url"]] = entry["resource"]
            answer = store.answer if isinstance(store.answer, bytes) else json.dumps(store.answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            if 300 <= status < 400:
                self.send_header("Location", f"{store.address}/elsewhere")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store.address = f"http://127.0.0.1:{server.server_port}/fhir"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
