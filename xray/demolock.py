"""Which process runs the demo of a folder: one at a time, and found by whoever is to end it."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import JobError, SettingsError

_LOCK = "demo.lock"
_END_TIMEOUT_S = 180.0
_POLL_S = 0.2


@contextmanager
def lock_demo(home: Path) -> Iterator[None]:
    """Hold the demo's folder, and say there which process does; the lock ends with the process, however it ends.

    Raises
    ------
    SettingsError
        Another demo runs there.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / _LOCK).open("a+", encoding="ascii") as lock:
        if not _try_lock(lock.fileno()):
            msg = f"a demo runs in {home} already; 'xray down' ends it"
            raise SettingsError(msg)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def end_demo(home: Path) -> bool:
    """End a demo of that folder, in order: the stream, then its broker.

    Returns
    -------
    bool
        False where none runs.

    Raises
    ------
    JobError
        It did not end in time.
    """
    try:
        lock = (home / _LOCK).open("r", encoding="ascii")
    except FileNotFoundError:
        return False
    with lock:
        if _try_lock(lock.fileno()):
            return False
        deadline = time.monotonic() + _END_TIMEOUT_S
        pid = None
        while not _try_lock(lock.fileno()):
            if pid is None and (text := lock.read()):  # one that has just begun may not have written it yet
                pid = int(text)
                os.kill(pid, signal.SIGTERM)
            if time.monotonic() > deadline:
                msg = f"the demo of {home} (process {pid}) did not end in {_END_TIMEOUT_S:.0f} s"
                raise JobError(msg)
            time.sleep(_POLL_S)
    return True


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
