"""Seconds from a prediction on its topic to its alarm at a webhook's receiver, as the receiver sees them.

``xray alerts run`` runs as a process of its own with a real broker, its ledger on the disk; the receiver checks each
message's signature and answers at once. Measured at a rate, at which every prediction or only one of ten makes an
alarm, and for a burst that all makes alarms: how long the first waits and the last, and how many go in a second.

Run it: ``python -m benchmarks.alarms`` (``--help``). Nothing else should run on the machine.
"""

import base64
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Annotated
from uuid import uuid4

import numpy as np
import typer
import yaml
from confluent_kafka import Producer
from standardwebhooks import Webhook

from benchmarks.chaos.scene import clean_environ
from benchmarks.gateway.receivers import open_broker
from schemas import envelope
from schemas.envelope import derive_event_id
from schemas.goldenevents import load_event
from streaming.settings import StreamSettings
from xray.console import err, new_table, step

_RULE = "Finding"
_SECRET = f"whsec_{base64.b64encode(os.urandom(32)).decode()}"
_ARRIVED_WITHIN_S = 120.0
_STOP_TIMEOUT_S = 60
_WARM_UP = 50
"""Before those that count: it runs for weeks, not for its first seconds."""


@dataclass
class Result:
    """Latency of one situation, in seconds.

    Parameters
    ----------
    situation : str
        What was measured.
    alarms : int
        How many counted.
    p50, p95, p99, longest : float
        From before the producer takes the prediction to the whole message at the receiver.
    alarms_s : float
        Alarms a second, from the first prediction to the last alarm.
    """

    situation: str
    alarms: int
    p50: float
    p95: float
    p99: float
    longest: float
    alarms_s: float


def main(
    alarms: Annotated[int, typer.Option(min=10, help="Alarms of each load.")] = 500,
    rate: Annotated[float, typer.Option(min=0.1, help="Predictions a second of the load.")] = 25,
    burst: Annotated[int, typer.Option(min=10, help="Predictions at once.")] = 2000,
    json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Measure the way of an alarm in one run of 'xray alerts run'."""
    with open_broker() as settings, receiving() as receiver, alerting(settings, receiver):
        probe = Probe(settings, receiver)
        with step("warming up"):
            probe.load("", _WARM_UP, rate)
        results = []
        for situation, count, pace, of in (
            (f"{rate:g} predictions a second, all of them alarms", alarms, rate, 1),
            (f"{10 * rate:g} a second, one of ten an alarm", alarms, 10 * rate, 10),
            (f"{burst} at once, all of them alarms", burst, float("inf"), 1),
        ):
            with step(situation):
                results.append(probe.load(situation, count, pace, of=of))
    if json_:
        sys.stdout.write(json.dumps({"latency_seconds": [asdict(result) for result in results]}) + "\n")
    show(results)


class Receiver:
    """Takes webhooks, and notes when each id first came."""

    def __init__(self) -> None:
        self.arrived: dict[str, float] = {}
        receiver, webhook = self, Webhook(_SECRET)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                at = time.monotonic()
                webhook.verify(body, {name.lower(): value for name, value in self.headers.items()})
                receiver.arrived.setdefault(self.headers["webhook-id"], at)
                self.send_response(204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/"


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Run a receiver while the body runs."""
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join()


@contextmanager
def alerting(settings: StreamSettings, receiver: Receiver) -> Iterator[None]:
    """Run 'xray alerts run' while the body runs, which begins once it reads."""
    environ = clean_environ() | {
        "XRAY_HOME": str(settings.home),
        "XRAY_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "XRAY_ALERTS__METRICS_PORT": "0",
    }
    rules = write_rules(settings.home, receiver.url)
    command = [sys.executable, "-m", "xray", "alerts", "run", str(rules), "--json"]
    with Popen(command, env=environ, stdout=PIPE) as process:  # noqa: S603  our own
        try:
            if process.stdout is None or not process.stdout.readline():
                msg = f"'xray alerts run' ended with {process.wait()}; its own words are on standard error"
                raise RuntimeError(msg)
            yield
        finally:
            process.terminate()
            process.wait(_STOP_TIMEOUT_S)


def write_rules(folder: Path, url: str) -> Path:
    """Write a rule for each finding, and where its alarms go."""
    (folder / "secret").write_text(_SECRET, encoding="ascii")
    secrets = [{"file": str(folder / "secret")}]
    sink = {"type": "webhook", "url": url, "allow_private": True, "secrets": secrets}
    rule = {"name": _RULE, "routes": ["ward"], "prediction": {"label": "opacities", "score": "operating_point"}}
    path = folder / "rules.yml"
    path.write_text(yaml.safe_dump({"version": 1, "sinks": {"ward": sink}, "rules": [rule]}), encoding="utf-8")
    return path


class Probe:
    """Publishes predictions and times their alarms.

    Parameters
    ----------
    settings : StreamSettings
        Broker and topics.
    receiver : Receiver
        Where the alarms arrive.
    """

    def __init__(self, settings: StreamSettings, receiver: Receiver) -> None:
        self._topic = settings.kafka.predictions_topic
        self._producer = Producer(settings.kafka.to_librdkafka() | {"linger.ms": 0, "log_level": 2})
        self._receiver = receiver
        event = load_event("prediction")
        self._headers = dict(event.headers)
        self._value = json.loads(event.value or b"")

    def load(self, situation: str, alarms: int, rate: float, *, of: int = 1) -> Result:
        """Publish at a rate, one of so many a finding, until there are so many alarms; wait for all of them."""
        sent: dict[str, float] = {}
        began = time.monotonic()
        for number in range(alarms * of):
            while (early_s := began + number / rate - time.monotonic()) > 0:
                self._producer.poll(early_s)
            event_id = derive_event_id("benchmark", uuid4().hex)
            at = time.monotonic()
            self._publish(event_id, is_finding=number % of == 0)
            if number % of == 0:
                sent[derive_event_id(event_id, _RULE)] = at
        self._producer.flush()
        waits = [self._await(ident) - at for ident, at in sent.items()]
        last = max(self._receiver.arrived[ident] for ident in sent)
        p50, p95, p99 = np.percentile(waits, [50, 95, 99])
        return Result(situation, alarms, float(p50), float(p95), float(p99), max(waits), alarms / (last - began))

    def _publish(self, event_id: str, *, is_finding: bool) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        image = self._value["image"] | {"id": event_id, "sha256": 2 * event_id}
        value = self._value | {"event_id": event_id, "image": image}
        if not is_finding:
            value |= {"label": "normal", "probabilities": {"normal": 0.9375, "opacities": 0.0625}}
        own = {envelope.CE_ID: event_id, envelope.CE_TIME: now, envelope.INPUT_TIMESTAMP: now}
        headers = self._headers | {name: text.encode() for name, text in own.items()}
        self._producer.produce(self._topic, json.dumps(value).encode(), key=event_id, headers=list(headers.items()))
        self._producer.poll(0)

    def _await(self, ident: str) -> float:
        deadline = time.monotonic() + _ARRIVED_WITHIN_S
        while (at := self._receiver.arrived.get(ident)) is None:
            if time.monotonic() > deadline:
                msg = f"an alarm did not come within {_ARRIVED_WITHIN_S:.0f} s"
                raise RuntimeError(msg)
            time.sleep(0.01)
        return at


def show(results: list[Result]) -> None:
    """Print the results as a table."""
    table = new_table("situation", "#alarms", "#p50 s", "#p95 s", "#p99 s", "#longest s", "#alarms/s")
    for r in results:
        quantiles = [f"{value:.3f}" for value in (r.p50, r.p95, r.p99, r.longest)]
        table.add_row(r.situation, str(r.alarms), *quantiles, f"{r.alarms_s:.1f}")
    err.print(table)


if __name__ == "__main__":
    typer.run(main)
