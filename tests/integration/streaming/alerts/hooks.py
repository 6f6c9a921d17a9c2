"""A receiver of webhooks that drops ids it knows, and 'xray alerts run' as a process that can be killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from standardwebhooks import Webhook

from streaming.settings import StreamSettings
from tests.alertrecords import SECRET

RULES: list[dict[str, Any]] = [{"name": "Opacities", "prediction": {"label": "opacities", "score": "operating_point"}}]


class Hook:
    """Counts messages by id, and what each said; answers with its status after its delay."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.bodies: dict[str, bytes] = {}
        self.arrived: dict[str, float] = {}
        self.changed: list[str] = []
        self.status = 200
        self.delay_s = 0.0
        self.forged = 0
        self._lock = threading.Lock()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                at = time.time()
                time.sleep(hook.delay_s)
                status = hook.status
                if status < 300:
                    hook.note(dict(self.headers.items()), body, at)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def note(self, headers: dict[str, str], body: bytes, at: float) -> None:
        """Count a message, and notice one that repeats an id with another body."""
        Webhook(SECRET).verify(body, {name.lower(): value for name, value in headers.items()})
        ident = {name.lower(): value for name, value in headers.items()}["webhook-id"]
        with self._lock:
            self.seen[ident] += 1
            if self.bodies.setdefault(ident, body) != body:
                self.changed.append(ident)
            self.arrived.setdefault(ident, at)

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def receiving() -> Iterator[Hook]:
    """A receiver while the body runs."""
    hook = Hook()
    try:
        yield hook
    finally:
        hook.close()


def write_rules(folder: Path, sinks: dict[str, Any], rules: list[dict[str, Any]] | None = None) -> Path:
    """Write a file of rules that go to all of these sinks."""
    secret = folder / "secret"
    secret.write_text(SECRET, encoding="ascii")
    path = folder / "rules.yml"
    value = {"version": 1, "defaults": {"routes": list(sinks)}, "sinks": sinks, "rules": rules or RULES}
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    return path


def hook_sink(hook: Hook, folder: Path, **more: Any) -> dict[str, Any]:
    """The sink that posts to a receiver."""
    return {
        "type": "webhook",
        "url": hook.url,
        "allow_private": True,
        "secrets": [{"file": str(folder / "secret")}],
        **more,
    }


class Program:
    """'xray alerts run', as a process."""

    def __init__(self, settings: StreamSettings, rules: Path, *, kill: str = "", **environment: str) -> None:
        kafka = settings.kafka
        topics = {
            f"XRAY_KAFKA__{name}".upper(): getattr(kafka, name)
            for name in (
                "bootstrap_servers",
                "images_topic",
                "predictions_topic",
                "deadletters_topic",
                "receipts_topic",
            )
        }
        own = {
            "XRAY_HOME": str(settings.home),
            "XRAY_KAFKA__PARTITIONS": str(kafka.partitions),
            "XRAY_ALERTS__METRICS_PORT": "0",
            "XRAY_ALERTS__GROUP": settings.alerts.group,
        }
        kept = {name: text for name, text in os.environ.items() if not name.startswith("XRAY_")}
        self._log = (settings.home / "alerts.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", *self._module(kill), "alerts", "run", str(rules), "--json"],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=kept | topics | own | environment,
        )
        self.metrics = ""

    @staticmethod
    def _module(kill: str) -> list[str]:
        return ["tests.integration.streaming.alerts.killed", kill] if kill else ["xray"]

    def wait_killed(self, timeout_s: float = 60.0) -> None:
        """Wait until it has killed itself where it was told to."""
        assert self._process.wait(timeout_s) == -signal.SIGKILL
        self._close()

    def wait_ready(self) -> "Program":
        """Wait until it reads."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, Path(self._log.name).read_text(encoding="utf-8")[-3000:]
        self.metrics = json.loads(line)["metrics"]
        return self

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait(30)
        self._close()

    def stop(self) -> int:
        """End it in order."""
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(60)
        self._close()
        return code

    def _close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def read_page(self) -> str:
        """The metrics page."""
        with urllib.request.urlopen(self.metrics) as answer:  # noqa: S310
            text: str = answer.read().decode()
        return text

    def health(self) -> dict[str, Any]:
        """What /health says."""
        try:
            with urllib.request.urlopen(self.metrics.removesuffix("metrics") + "health") as answer:  # noqa: S310
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as exc:
            found = json.load(exc)
        return found


@contextmanager
def running(settings: StreamSettings, rules: Path, **environment: str) -> Iterator[Program]:
    """'xray alerts run' while the body runs, and ended in order."""
    program = Program(settings, rules, **environment)
    try:
        yield program.wait_ready()
        assert program.stop() == 0
    finally:
        if program.is_running:
            program.kill()


def wait_until(check: Callable[[], Any], what: str, timeout_s: float = 60.0) -> None:
    """Wait for a state."""
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, f"never came: {what}"
        threading.Event().wait(0.05)
