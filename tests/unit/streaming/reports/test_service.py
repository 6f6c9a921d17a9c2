"""Couriers together: what one of them does at the end is not the others' to wait for."""

import threading
import time
from typing import Any

import pytest

from streaming.reports.service import _run_all


class Courier:
    """Ends when told to, or never."""

    def __init__(self, name: str, ended: threading.Event, *, hangs: bool) -> None:
        self.name = name
        self.is_ready = True
        self.has_ended = False
        self._ended = ended
        self._hangs = hangs

    def run(self) -> None:
        self._ended.wait()
        if self._hangs:
            threading.Event().wait()
        self.has_ended = True


@pytest.mark.parametrize("hanging", [{"fhir"}, {"fhir", "mllp"}, {"files", "fhir", "mllp"}, set()])
def test_a_target_that_does_not_end_holds_up_no_end(hanging: set[str], caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Event()
    couriers: Any = [Courier(name, ended, hangs=name in hanging) for name in ("files", "fhir", "mllp")]
    began = time.monotonic()
    thread = threading.Thread(target=_run_all, args=(couriers, ended, ended.set, 0.5), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert time.monotonic() - began < 10
    assert {one.name for one in couriers if not one.has_ended} == hanging
    assert sum("does not end" in message for message in caplog.messages) == len(hanging)
