"""The archive's process as a stream has it, for tests that look at it again and again."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from streaming.archive.process import ArchiveProcess
from streaming.metrics import StreamMetrics
from streaming.settings import StreamSettings
from tests.metricspage import CARD

TIMEOUT_S = 60.0


class Beside:
    """The process, and a stream that looks at it for as long as a test drives it."""

    def __init__(self, settings: StreamSettings) -> None:
        self.registry = CollectorRegistry()
        self.process = ArchiveProcess(settings, StreamMetrics(self.registry, CARD))

    def drive(self, until: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not until():
            assert time.monotonic() < deadline, f"never came: {what}"
            self.process.check()
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        pid = self.process.pid
        assert pid is not None
        return pid

    def sample(self, name: str) -> float | None:
        return self.registry.get_sample_value(name, {"query": "archive"})

    @property
    def is_up(self) -> bool:
        return self.sample("xray_query_up") == 1

    @property
    def failures(self) -> float:
        return self.sample("xray_query_failures_total") or 0


def change(settings: StreamSettings, section: str, **values: Any) -> StreamSettings:
    changed = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: changed})


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except FileNotFoundError:
        return True
