"""TOML files of who may come in: read whole or refused with the place of the fault, and read again when they change.

Tokens are in them as hashes, so that the file lets nobody in who reads it.
"""

import hashlib
import logging
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, Field, ValidationError

from schemas.errors import SettingsError

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""A file is looked at that often, so that who comes needs no restart, and who leaves is out without one."""

TokenHash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
"""As `hash_token` gives it."""

_File = TypeVar("_File", bound=BaseModel)
_T = TypeVar("_T")


def hash_token(token: str) -> str:
    """Give what a file has instead of a token."""
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


def read_access(file: Path, kind: type[_File], setting: str) -> _File:
    """Read a file.

    Parameters
    ----------
    file : Path
        Its path.
    kind : type
        What it has to be.
    setting : str
        The setting that names it, for errors.

    Raises
    ------
    SettingsError
        It cannot be read, or says something wrong; names the file and the place.
    """
    try:
        with file.open("rb") as stream:
            return kind.model_validate(tomllib.load(stream))
    except OSError as exc:
        msg = f"{setting}: {file} cannot be read: {exc.strerror}"
        raise SettingsError(msg) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        msg = f"{setting}: {file} is not TOML: {exc}"
        raise SettingsError(msg) from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        where, why = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        msg = f"{setting}: {file}: {where}: {why}"
        raise SettingsError(msg) from exc


class WatchedFile(Generic[_T]):
    """What a file says now; safe between threads.

    Parameters
    ----------
    file : Path
        Its path.
    read : callable
        Reads it; raises SettingsError.
    kept : str
        What the log says before a wrong change: what stays as it was.
    describe : callable
        What the log says behind the name of a file that was read again.
    clock : callable
        Seconds; for tests.

    Raises
    ------
    SettingsError
        The file cannot be read, or says something wrong. Once it was read, a wrong change is left out, and logged.
    """

    def __init__(
        self,
        file: Path,
        read: Callable[[Path], _T],
        *,
        kept: str,
        describe: Callable[[_T], str] = lambda _: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._read = read
        self._kept = kept
        self._describe = describe
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at = clock()
        self._stamp = _stamp(file)
        self._found = read(file)

    def current(self) -> _T:
        """Give what it says, as of a second ago at most."""
        with self._lock:
            now = self._clock()
            if now - self._looked_at >= _LOOK_S:
                self._looked_at = now
                stamp = _stamp(self._file)
                if stamp != self._stamp:
                    self._stamp = stamp
                    self._read_again()
            return self._found

    def _read_again(self) -> None:
        try:
            self._found = self._read(self._file)
        except SettingsError as exc:
            log.error("%s: %s", self._kept, exc)
        else:
            log.warning("%s was read again%s", self._file, self._describe(self._found))


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
