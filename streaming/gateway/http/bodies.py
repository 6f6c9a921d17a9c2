"""Keeps an object while it is received: in memory as long as it is small, then in a file that has no name."""

import asyncio
import tempfile
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import IO

from streaming.gateway.refusals import Cause, Refusal

IN_MEMORY_BYTES = 256 * 1024
"""So much of an object is in memory at most. The usual PNG needs no file at all."""


class Body:
    """The bytes of an object, as far as they have come.

    The file is without a name from the start: nothing of it is left when the process is killed.

    Parameters
    ----------
    folder : Path
        Where the file goes.
    max_bytes : int
        A longer one is refused.
    executor : Executor
        Writes, so that a slow disk holds up this object alone.
    """

    def __init__(self, folder: Path, max_bytes: int, executor: Executor) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._executor = executor
        self._waiting = bytearray()
        self._file: IO[bytes] | None = None
        self.size = 0

    def add(self, data: bytes) -> None:
        """Take what came.

        Raises
        ------
        Refusal
            ``TOO_LARGE``.
        """
        self.size += len(data)
        if self.size > self._max_bytes:
            self._waiting += data[: IN_MEMORY_BYTES - len(self._waiting)] if self._file is None else b""  # its name
            raise Refusal(Cause.TOO_LARGE, f"more than {self._max_bytes} bytes")
        self._waiting += data

    async def settle(self) -> None:
        """Bring to the disk what is too much for memory.

        Raises
        ------
        Refusal
            ``BUSY``: the disk does not take it.
        """
        if len(self._waiting) > IN_MEMORY_BYTES:
            data, self._waiting = self._waiting, bytearray()
            await asyncio.get_running_loop().run_in_executor(self._executor, self._write, data)

    def read(self) -> bytes:
        """Give all of it; takes as long as the disk does."""
        if self._file is None:
            return bytes(self._waiting)
        self._file.seek(0)
        return self._file.read() + self._waiting

    def read_head(self, size: int) -> bytes:
        """Give its first bytes, at most so many."""
        if self._file is None:
            return bytes(self._waiting[:size])
        self._file.seek(0)
        return self._file.read(size)

    def close(self) -> None:
        """Forget it."""
        self._waiting = bytearray()
        if self._file is not None:
            with suppress(OSError):  # what a full disk still had to write goes nowhere
                self._file.close()
            self._file = None

    def _write(self, data: bytes | bytearray) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        except OSError as exc:
            detail = f"an object cannot be kept while it is received: {exc.strerror}"
            raise Refusal(Cause.BUSY, detail) from exc
