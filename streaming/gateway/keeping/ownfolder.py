"""A folder of one gateway alone, for what must be on the disk before a device is answered.

Files come in whole or not at all: written under a temporary name, synced, renamed, and the folder synced. Only its
owner may read them, since they may name patients.
"""

import errno
import fcntl
import itertools
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from schemas.errors import SettingsError
from schemas.folders import sync_folder

TEMPORARY = ".tmp"
_LOCK = "lock"
_FOLDER_MODE = 0o700
_FILE_MODE = 0o600


class OwnFolder:
    """Makes the folder where it is missing, locks it, and removes what a killed gateway had half written.

    No file is written to try it: where the disk is full, a gateway must start all the same, to empty its spool.

    Parameters
    ----------
    path : Path
        Where.
    setting : str
        What to change where that is not possible.

    Raises
    ------
    SettingsError
        It cannot be made or locked, or another gateway has it.
    """

    def __init__(self, path: Path, setting: str) -> None:
        self.path = path
        self._numbers = itertools.count()
        self._asked = 0
        self._synced = 0
        self._lost = 0
        self._asking = threading.Lock()
        self._syncing = threading.Lock()
        try:
            make_folder(path)
            path.chmod(_FOLDER_MODE)  # one that was there before may be open to others
            self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, _FILE_MODE)
            self._own(setting)
            self._folder = os.open(path, os.O_RDONLY)
            for left in path.glob(f"*{TEMPORARY}"):
                left.unlink()
        except OSError as exc:
            msg = f"{setting}: cannot use {path}: {exc.strerror}. Give this user leave to write there, or change it."
            raise SettingsError(msg) from exc

    def _own(self, setting: str) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(self._lock)
            msg = f"{setting}: another gateway uses {self.path}; each needs a folder of its own"
            raise SettingsError(msg) from exc

    def close(self) -> None:
        """Let another gateway have it."""
        os.close(self._folder)
        os.close(self._lock)

    @property
    def free_bytes(self) -> int:
        """Room on its disk for this user."""
        found = os.fstatvfs(self._folder)
        return found.f_bavail * found.f_frsize

    def write(self, parts: Iterable[bytes]) -> Path:
        """Write a file under a temporary name, and sync it.

        Returns
        -------
        Path
            For `os.rename`, within this folder's file system.

        Raises
        ------
        OSError
            It could not be written; nothing of it is left where that could be removed.
        """
        path = self.path / f"{next(self._numbers)}{TEMPORARY}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
        try:
            try:
                for part in parts:
                    _write_all(file, part)
                os.fsync(file)
            finally:
                os.close(file)
        except OSError:
            discard(path)
            raise
        return path

    def sync(self) -> None:
        """Bring to the disk what was renamed into the folder before; callers at one time share a sync.

        Raises
        ------
        OSError
            The disk did not take it.
        """
        with self._asking:
            self._asked += 1
            own = self._asked
        with self._syncing:
            if self._synced < own:
                self._sync_for_all()
            if own <= self._lost:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _sync_for_all(self) -> None:
        upto = self._asked
        try:
            os.fsync(self._folder)
        except OSError:
            self._lost = upto  # the system tells one caller only, and nothing of what it lost to the next
            raise
        finally:
            self._synced = upto


def make_folder(path: Path) -> None:
    """Make a folder for its owner alone, and bring its name to the disk.

    Raises
    ------
    OSError
        It cannot be made.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    with suppress(FileExistsError):  # another thread was quicker
        path.mkdir(_FOLDER_MODE)
    sync_folder(path.parent)


def discard(path: Path) -> None:
    """Remove a file that nobody shall find; where that cannot be, the next start removes it."""
    with suppress(OSError):
        path.unlink()


def _write_all(file: int, part: bytes) -> None:
    left = memoryview(part)
    while left:
        left = left[os.write(file, left) :]
