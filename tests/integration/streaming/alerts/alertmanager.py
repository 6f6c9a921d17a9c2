"""A real Alertmanager (Debian's), which can be killed and started again, and what it has told its receiver."""

import json
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.ports import find_ports
from tests.integration.streaming.alerts.hooks import wait_until
from tests.receiver import Receiver

ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")

CONFIG = """
route:
  receiver: pager
  group_by: [alertname, severity, source]
  group_wait: 0s
  group_interval: 1s
  repeat_interval: 4h
receivers:
  - name: pager
    webhook_configs:
      - url: %s
        send_resolved: true
"""


class Daemon:
    """One Alertmanager, on a folder of its own, that can be killed and started again.

    What it has told whom, it keeps in its folder when it ends in order, and after each ``snapshot_every``.
    """

    def __init__(self, folder: Path, pager_url: str, snapshot_every: str = "15m") -> None:
        self.folder = folder
        self.snapshot_every = snapshot_every
        self.port = find_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "config.yml").write_text(CONFIG % pager_url)

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:  # noqa: S310
            return json.load(answer)

    def is_ready(self) -> bool:
        try:
            return bool(self.ask("/api/v2/status"))
        except OSError:
            return False

    def shown(self) -> dict[str, dict[str, Any]]:
        return {alert["labels"]["alarm_id"]: alert for alert in self.ask("/api/v2/alerts")}

    @contextmanager
    def run(self, way: signal.Signals = signal.SIGKILL) -> Iterator["Daemon"]:
        own = [f"--config.file={self.folder}/config.yml", f"--storage.path={self.folder}/data"]
        own += [f"--web.listen-address=127.0.0.1:{self.port}", "--cluster.listen-address="]
        own += [f"--data.maintenance-interval={self.snapshot_every}"]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen([str(ALERTMANAGER), *own], stdout=log, stderr=log)
        try:
            wait_until(self.is_ready, "Alertmanager")
            yield self
        finally:
            process.send_signal(way)
            process.wait()


def notified(pager: Receiver) -> list[tuple[str, list[str]]]:
    """Status of each notification, and whose it was."""
    documents = [json.loads(got.body) for got in pager.got]
    return [(one["status"], sorted(alert["labels"]["alarm_id"] for alert in one["alerts"])) for one in documents]
