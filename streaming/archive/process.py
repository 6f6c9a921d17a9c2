"""The archive beside a stream on one machine: a process of its own, which is started, watched, and started again.

Nothing that happens to it reaches SCORE: it has its own memory and its own exit, it is niced, it uses one thread for
what it computes, and where it hangs it is ended.
"""

import logging
import math
import os
import pickle
import subprocess
import sys
import time
from dataclasses import dataclass

from streaming.metrics import StreamMetrics
from streaming.retry import Backoff
from streaming.settings import PREFIX, StreamSettings

log = logging.getLogger(__name__)

_QUERY = "archive"
_STOP_TIMEOUT_S = 60.0
_KILL_S = 5.0
BEAT, BEGUN = b".", b"!"
"""What it writes to its standard output: that it took a step, and that every table has its places."""
_HEALTHY_S = 60.0
_START_S = 60.0
"""What a start may take before the first step: a busy machine, a broker that is away."""
_BOUNDED = {"TOKIO_WORKER_THREADS": "1", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""Of delta-rs, its engine and numpy. Arenas of glibc keep what they once had; two are enough here."""


def _environ() -> dict[str, str]:
    """Give this process's environment without the settings: among them may be secrets, and the process is told them."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}


@dataclass(frozen=True)
class Order:
    """What the process is told on its standard input.

    Parameters
    ----------
    settings : StreamSettings
        All of them, secrets included; they are on no command line and in no environment.
    accept_loss : bool
        See `streaming.archive.service.run_archive`.
    log_level : int
        Of its log, which goes to standard error.
    """

    settings: StreamSettings
    accept_loss: bool
    log_level: int


class ArchiveProcess:
    """The process and its supervisor.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    metrics : StreamMetrics
        Where it shows whether it runs, and how often it has failed.
    accept_loss : bool
        Go on behind outcomes that are gone, and in topics that were made anew.
    """

    def __init__(self, settings: StreamSettings, metrics: StreamMetrics, *, accept_loss: bool = False) -> None:
        self._settings = settings
        self._metrics = metrics
        self._accept_loss = accept_loss
        self._process: subprocess.Popen[bytes] | None = None
        self._next_start = 0.0
        # It never gives up: for as long as SCORE works, its outcomes want to be archived.
        self._backoff = Backoff(settings.retry.model_copy(update={"give_up_s": math.inf}), healthy_s=_HEALTHY_S)
        self._beat_at = 0.0
        self._has_beaten = self._is_killed = False
        # Where the archive runs elsewhere the stream says nothing of it: a 0 would be an alert for ever.
        metrics.query_up.labels(_QUERY).set(0)
        metrics.query_failures.labels(_QUERY)

    @property
    def pid(self) -> int | None:
        """Its process id; None while it does not run."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process; that it cannot be started is answered like its end."""
        order = Order(self._settings, self._accept_loss, logging.getLogger().getEffectiveLevel())
        self._backoff.start_try()
        self._beat_at, self._has_beaten, self._is_killed = time.monotonic(), False, False
        try:
            # A group of its own: Ctrl-C on a terminal is for the stream, which ends SCORE before it ends this. No
            # session of its own: the kernel would share the cores between sessions first, whatever the niceness.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "streaming.archive"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,
                env=_environ() | _BOUNDED,
            )
            assert self._process.stdin is not None  # noqa: S101
            assert self._process.stdout is not None  # noqa: S101
            os.set_blocking(self._process.stdout.fileno(), False)
            self._process.stdin.write(pickle.dumps(order))
            self._process.stdin.flush()
        except OSError as exc:
            if self._process is not None:
                self._kill()
            self._note_end(f"it cannot be started: {exc}")

    def check(self) -> None:
        """Start the process again where it ended, and end it where it hangs."""
        if self._process is None:
            if time.monotonic() >= self._next_start:
                self.start()
            return
        code = self._process.poll()
        if code is not None:
            self._note_end(f"it ended with exit code {code}")
        elif not self._is_killed:
            self._look_for_beats()

    def _look_for_beats(self) -> None:
        beats = self._read_beats()
        if BEGUN in beats:
            self._accept_loss = False  # that was agreed to once
        if beats:
            self._beat_at = time.monotonic()
            if not self._has_beaten:
                self._has_beaten = True
                self._metrics.query_up.labels(_QUERY).set(1)
        elif time.monotonic() - self._beat_at > self._patience_s:
            log.warning("the archive took no step for %.0f s and is killed", self._patience_s)
            self._metrics.query_up.labels(_QUERY).set(0)
            self._kill()
        if self._has_beaten and self._backoff.is_failing and self._backoff.has_run_long:
            log.warning("the archive works again")
            self._backoff.reset()

    @property
    def _patience_s(self) -> float:
        archive = self._settings.archive
        return archive.deadline_s + archive.trigger_s + _START_S

    def _read_beats(self) -> bytes:
        assert self._process is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        return self._process.stdout.read() or b""

    def _note_end(self, why: str) -> None:
        self._close()
        self._metrics.query_up.labels(_QUERY).set(0)
        self._metrics.query_failures.labels(_QUERY).inc()
        wait_s = self._backoff.note_failure() or 0.0
        self._next_start = time.monotonic() + wait_s
        log.warning("the archive is started again in %.0f s: %s. Predictions go on", wait_s, why)

    def stop(self) -> None:
        """Let it finish its write, and end it."""
        if self._process is None:
            return
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.close()
        except OSError:
            pass  # it has ended already
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            log.warning("the archive did not end within %.0f s and was killed; nothing is lost", _STOP_TIMEOUT_S)
            self._kill()
        self._close()
        self._metrics.query_up.labels(_QUERY).set(0)

    def _kill(self) -> None:
        """Kill it, frozen or not; one that waits for a disk that does not answer ends later, and is not waited for."""
        assert self._process is not None  # noqa: S101
        self._is_killed = True
        self._process.kill()
        try:
            self._process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            log.warning("the archive (process %s) does not end: its disk does not answer", self._process.pid)

    def _close(self) -> None:
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass  # what was not written yet has nobody to read it
        self._process = None
