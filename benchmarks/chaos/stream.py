"""``xray stream`` as a supervisor sees it: started, watched through /proc and its checkpoint files, stopped, killed.

It is a Python driver with a JVM as its child, which has a Python daemon as its child, which forks the workers; and with
the archive as another child. The driver leads a session of its own, so they are found by the session's number, orphans
too, and with them what they began in other sessions.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.commands import command_line
from benchmarks.processes import Process, read_processes, with_children

_POLL_S = 0.01
_ORPHAN_POLL_S = 0.05
_END_TIMEOUT_S = 60
_ARCHIVE = "streaming.archive"


def list_processes(session: int) -> list[Process]:
    """List a session's living processes, and those that they began in sessions of their own."""
    living = list(read_processes())
    return with_children([process.pid for process in living if process.session == session], living)


@dataclass(frozen=True)
class Memory:
    """Resident bytes of a stream at one moment."""

    time_s: float
    jvm_pid: int
    jvm_bytes: int
    workers_bytes: int


class StreamProcess:
    """A running ``xray stream --json``.

    Parameters
    ----------
    environ : Mapping
        Its environment.
    stderr : Path
        What it prints on standard error is appended here.
    options : sequence of str
        More options of the command.
    command : sequence of str, optional
        What runs instead of ``xray stream --json``, and must say the same.
    folder : Path, optional
        Where it runs; by default here.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        stderr: Path,
        options: Sequence[str] = (),
        *,
        command: Sequence[str] = command_line("stream", "--json"),
        folder: Path | None = None,
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self._ready = threading.Event()
        self._known: list[int] = []
        stderr.parent.mkdir(parents=True, exist_ok=True)
        with stderr.open("ab") as log:
            self.started_s = time.monotonic()
            self._popen = subprocess.Popen(  # noqa: S603 - the benchmark's own arguments
                [*command, *options],
                env=dict(environ),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read_events, daemon=True)
        self._reader.start()

    def _read_events(self) -> None:
        assert self._popen.stdout is not None  # noqa: S101 - it is a pipe
        for line in self._popen.stdout:
            with suppress(ValueError):
                self.events.append(json.loads(line))
                if self.events[-1].get("event") == "ready":
                    self._ready.set()

    @property
    def pid(self) -> int:
        """Of the driver."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether the driver lives."""
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of the driver; negative where a signal ended it."""
        return self._popen.poll()

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until it says that it is ready; False where it ended or took too long."""
        deadline = time.monotonic() + timeout_s
        while self.alive and time.monotonic() < deadline:
            if self._ready.wait(0.1):
                return True
        return self._ready.is_set() and self.alive

    def processes(self) -> list[Process]:
        """List driver, JVM, daemon and workers."""
        return list_processes(self.pid)

    def jvm_pid(self) -> int | None:
        """Process id of the JVM, None where there is none."""
        return next((process.pid for process in self.processes() if process.is_java), None)

    def worker_pids(self) -> list[int]:
        """Process ids of the Python workers."""
        return [process.pid for process in _workers_of(self.processes())]

    def archive_pid(self) -> int | None:
        """Process id of the archive beside the stream; None where there is none just now."""
        found = self.processes()
        return next((p.pid for p in found if p.parent == self.pid and _ARCHIVE in p.command.split("\0")), None)

    def memory(self) -> Memory | None:
        """Measure the memory of JVM and workers; None where there is no JVM."""
        found = self.processes()
        jvm = next((process for process in found if process.is_java), None)
        if jvm is None:
            return None
        workers = sum(process.rss_bytes for process in _workers_of(found))
        return Memory(time.monotonic(), jvm.pid, jvm.rss_bytes, workers)

    def aim(self) -> None:
        """Look all processes up, so that `kill` loses no time over it: the JVM, which publishes, comes first.

        Helpers in sessions of their own have no parent any more once the others are gone, so they are known from here.
        """
        found = self.processes()
        self._known = [p.pid for p in sorted(found, key=lambda process: not process.is_java)]

    def kill(self) -> None:
        """End everything at once, as a power cut would."""
        if self.alive and not self._known:
            self.aim()
        for pid in self._known:
            _kill(pid)
        deadline = time.monotonic() + _END_TIMEOUT_S
        while (left := self.left()) and time.monotonic() < deadline:
            for pid in left:
                _kill(pid)
            time.sleep(_POLL_S)
        self._popen.wait(_END_TIMEOUT_S)

    def kill_driver(self) -> None:
        """End the driver alone; what becomes of the others is for the caller to see."""
        _kill(self.pid)
        self._popen.wait(_END_TIMEOUT_S)

    def left(self) -> list[int]:
        """List process ids that still live, of the session and of those known since `aim`."""
        return sorted({process.pid for process in self.processes()} | set(filter(_lives, self._known)))

    def time_orphans(self, timeout_s: float) -> float | None:
        """Give the seconds until nothing that belonged to it lives any more; None where something still does."""
        started = time.monotonic()
        while self.left():
            if time.monotonic() - started > timeout_s:
                return None
            time.sleep(_ORPHAN_POLL_S)
        return time.monotonic() - started

    def terminate(self, timeout_s: float = 150) -> int:
        """Ask it to end in order (SIGTERM); give its exit code. It is killed where it does not end in time."""
        self._popen.terminate()
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(5)
        return self._popen.wait(_END_TIMEOUT_S)


def _workers_of(found: Sequence[Process]) -> list[Process]:
    """Choose the Python workers: children of the daemon, which is the JVM's child."""
    jvms = {process.pid for process in found if process.is_java}
    daemons = {process.pid for process in found if process.parent in jvms and not process.is_java}
    return [process for process in found if process.parent in daemons]


def _lives(pid: int) -> bool:
    """Tell a living process from none and from a zombie, which has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# -- checkpoint files --------------------------------------------------------------------------------------------------


class Checkpoint:
    """A query's checkpoint folder, read as files: Spark writes ``offsets/N`` before batch N and ``commits/N`` after.

    Parameters
    ----------
    folder : Path
        The query's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def planned(self) -> int:
        """Give the newest batch that was begun; -1 where there is none."""
        return _newest(self.folder / "offsets")

    def committed(self) -> int:
        """Give the newest batch that was finished; -1 where there is none."""
        return _newest(self.folder / "commits")

    def is_committed(self, batch: int) -> bool:
        """Whether a batch was finished."""
        return (self.folder / "commits" / str(batch)).exists()

    def offsets(self, batch: int) -> dict[str, dict[int, int]]:
        """Give the offsets that a batch ends before, by topic and partition; nothing where there is no such batch."""
        try:
            lines = (self.folder / "offsets" / str(batch)).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        document: dict[str, dict[str, int]] = json.loads(lines[-1])
        return {topic: {int(p): offset for p, offset in parts.items()} for topic, parts in document.items()}

    def places(self, batch: int, topic: str) -> set[tuple[int, int]]:
        """Give the records of a topic that are in a batch."""
        before = self.offsets(batch - 1).get(topic, {})
        ends = self.offsets(batch).get(topic, {})
        return {(p, offset) for p, end in ends.items() for offset in range(before.get(p, 0), end)}

    def progress(self) -> dict[str, dict[int, int]]:
        """Give the offsets up to which everything is finished."""
        return self.offsets(self.committed())


def _newest(folder: Path) -> int:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return -1
    return max((int(name) for name in names if name.isdigit()), default=-1)
