"""An object store for tests: moto's server, behind a proxy that loses, holds and spoils what is wanted.

Both are a process of their own: some calls of delta-rs keep Python's lock until the store has answered.
"""

import json
import logging
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.paths import ROOT

BUCKET = "xray"
KEY_ID, SECRET = "AKIAXRAYTESTKEYID", "a-secret-that-nobody-may-see"
_TOLD = ("if-none-match",)
_OWN = ("transfer-encoding", "content-length", "connection")


@dataclass(frozen=True)
class Fault:
    """What befalls requests.

    Parameters
    ----------
    kind : str
        ``lose``: a request does not reach the store, and its sender hears nothing. ``lose answers``: the store does
        what is asked, and its sender hears nothing. ``answer``: with ``status`` and ``body`` instead of the store.
        ``hold``: until ``count`` requests are held at once, or the fault is over. ``none``.
    path : str
        Part of the paths of those that it befalls.
    method : str
        Of those; any where empty.
    times : int
        How many it befalls; all where 0.
    """

    kind: str = "none"
    path: str = ""
    method: str = ""
    times: int = 0
    status: int = 200
    body: str = ""
    count: int = 1_000_000


def commits(version: int | None = None) -> dict[str, str]:
    """Name the requests that put a version of a table, or any."""
    return {"method": "PUT", "path": "/_delta_log/0" if version is None else f"/_delta_log/{version:020}.json"}


@dataclass(frozen=True)
class Seen:
    """A request that came; of its headers those that matter here."""

    method: str
    path: str
    headers: dict[str, str]
    befallen: str


class ObjectStore:
    """The store's process, as tests see it."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {_MAIN}"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{self._told()['port']}"

    @property
    def environment(self) -> dict[str, str]:
        """What its clients have to know."""
        return {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
        }

    def spoil(self, kind: str, **options: Any) -> None:
        """Let a `Fault` befall requests from now; those that are held go on."""
        self._ask({"do": "spoil", "fault": asdict(Fault(kind, **options))})

    def heal(self) -> None:
        self.spoil("none")

    def close(self) -> None:
        """Refuse connections; those that there are end at their next request."""
        self._ask({"do": "close"})

    def open(self) -> None:
        self._ask({"do": "open"})

    def seen(self) -> list[Seen]:
        """Give what was asked of it since the last call."""
        return [Seen(**one) for one in self._ask({"do": "tell"})["seen"]]

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._told()

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


_MAIN = "from tests.objectstore import serve; serve()"


class _Proxy:
    """What stands before moto."""

    def __init__(self, store: tuple[str, int]) -> None:
        self._store = store
        self._fault, self._befallen, self._held = Fault(), 0, 0
        self._changed = threading.Condition()
        self.seen: list[Seen] = []
        self.port = 0
        self.open()

    def open(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def spoil(self, fault: Fault) -> None:
        with self._changed:
            self._fault, self._befallen, self._held = fault, 0, 0
            self._changed.notify_all()

    def befall(self, method: str, path: str, headers: dict[str, str]) -> Fault:
        """Tell what befalls a request, after it was held where that is the fault."""
        with self._changed:
            fault = self._fault
            meant = fault.path in path and fault.method in ("", method)
            if not meant or (fault.times and self._befallen >= fault.times):
                fault = replace(fault, kind="none")
            else:
                self._befallen += 1
            told = {name: value for name, value in headers.items() if name in _TOLD}
            self.seen.append(Seen(method, path, told, fault.kind))
            if fault.kind == "hold":
                self._held += 1
                if self._held == fault.count:
                    self._fault = Fault()
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._fault is not fault)
            return fault

    def pass_on(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, bytes]:
        connection = HTTPConnection(*self._store)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        length = answer.getheader("content-length") if method == "HEAD" else str(len(data))
        named = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OWN]
        connection.close()
        return answer.status, [*named, ("Content-Length", length or "0")], data


def _handler(proxy: _Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            closed = self.server is not proxy.server
            fault = Fault("lose") if closed else proxy.befall(self.command, self.path, headers)
            if fault.kind == "answer":
                data = fault.body.encode()
                status, named = fault.status, [("Content-Length", str(len(data)))]
            elif fault.kind != "lose":
                status, named, data = proxy.pass_on(self.command, self.path, headers, body)
            if fault.kind in ("lose", "lose answers"):
                self.close_connection = True
                return
            self.send_response_only(status)
            for name, value in named:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        def log_message(self, *_: object) -> None:
            """Nothing: what is asked is in `seen`."""

    return Handler


def serve() -> None:
    """Serve until standard input ends; orders come there, a line each."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415  in this process alone

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    proxy = _Proxy(moto.get_host_and_port())
    proxy.pass_on("PUT", f"/{BUCKET}", {}, b"")
    _tell({"port": proxy.port})
    for line in sys.stdin:
        order, told = json.loads(line), {}
        match order["do"]:
            case "spoil":
                proxy.spoil(Fault(**order["fault"]))
            case "close":
                proxy.close()
            case "open":
                proxy.open()
            case "tell":
                told, proxy.seen = {"seen": [asdict(one) for one in proxy.seen]}, []
        _tell(told)


def _tell(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
