"""A file of JSON lines, for those who tail it: each line is on the disk before its alarm counts as delivered."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from schemas.folders import sync_folder
from streaming.alerts.alarm import Alarm, Delivered, Outcome, Retry
from streaming.alerts.sinks.wording import to_json

_MODE = 0o640
_LONGEST_WAIT_S = 60.0
_MAX_DOUBLINGS = 6
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


def _check_path(path: Path) -> Path:
    if not path.is_absolute():
        msg = "expected an absolute path"
        raise ValueError(msg)
    if path.exists() and not path.is_file():
        msg = f"{path} is no file"
        raise ValueError(msg)
    try:
        os.close(os.open(path, _FLAGS, _MODE))
    except OSError as exc:
        msg = f"{path} cannot be written: {exc.strerror}"
        raise ValueError(msg) from exc
    return path


class FileSettings(BaseModel):
    """A file of JSON lines.

    Parameters
    ----------
    path : Path
        Absolute; its folder exists.
    max_bytes : int
        A file that would grow beyond it is renamed to ``PATH.1``, the one of that name to ``PATH.2``, and so on.
    keep : int
        So many renamed files are kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    type: Literal["file"]
    path: Annotated[Path, AfterValidator(_check_path)]
    max_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    keep: int = Field(default=5, ge=1, le=1000)


class FileSink:
    """Appends alarms to a file, one in a line, as a webhook's body has them.

    Parameters
    ----------
    name : str
        As routes call it.
    settings : FileSettings
        See there.
    """

    resend_s = None
    resolved_for_s = 0.0
    at_once = 1000

    def __init__(self, name: str, settings: FileSettings) -> None:
        self.name = name
        self._path = settings.path
        self._max_bytes = settings.max_bytes
        self._keep = settings.keep
        self._named: tuple[int, int] | None = None

    def deliver(self, alarms: Sequence[Alarm], attempt: int) -> Outcome:
        """Append all of them or none; see `streaming.alerts.alarm.Sink`."""
        lines = "".join(f"{to_json(alarm)}\n" for alarm in alarms).encode()
        try:
            self._append(lines)
        except OSError as exc:
            return Retry(None, f"{self._path}: {exc.strerror}")
        return Delivered()

    def next_try_s(self, attempt: int) -> float | None:
        """Give the wait after an attempt, from 1 s to a minute, without an end; see `streaming.alerts.alarm.Sink`."""
        return min(2.0 ** min(attempt, _MAX_DOUBLINGS), _LONGEST_WAIT_S)

    def _append(self, lines: bytes) -> None:
        # Opened anew each time: another program may have moved the file away.
        descriptor = os.open(self._path, _FLAGS, _MODE)
        try:
            size = _end_line(descriptor)
            if size and size + len(lines) > self._max_bytes:
                os.close(descriptor)
                descriptor = -1
                self._rotate()
                descriptor, size = os.open(self._path, _FLAGS, _MODE), 0
            _write_all(descriptor, lines, size)
            self._sync_name(descriptor)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def _sync_name(self, descriptor: int) -> None:
        """Bring the file's name to the disk, once for each file: what it holds may be there without it."""
        found = os.fstat(descriptor)
        if self._named != (found.st_dev, found.st_ino):
            sync_folder(self._path.parent)
            self._named = (found.st_dev, found.st_ino)

    def _rotate(self) -> None:
        for number in range(self._keep, 1, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self._path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _end_line(descriptor: int) -> int:
    """End a line that a kill or a full disk left unfinished, so that the next one is its own; give the size."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")
        return size + 1
    return size


def _write_all(descriptor: int, lines: bytes, size: int) -> None:
    try:
        left = memoryview(lines)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)  # all or none: they are written again
        raise
