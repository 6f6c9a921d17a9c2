"""An object while it is received: on disk, in a file without a name, so that no kill leaves a readable one behind."""

import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

ENDLESS = 4
"""An object that grows beyond so many times of the limit is not read to its end."""


class EndlessError(ValueError):
    """The object goes on far beyond the limit."""


class Arrival(BytesIO):
    """The data set of a C-STORE as it comes, behind its file meta information.

    pynetdicom wants a `BytesIO` for a data set. This one keeps nothing in memory: what is written goes to the file.

    Parameters
    ----------
    folder : Path
        On the disk that the file takes room of.
    head : bytes
        Preamble and file meta information.
    max_bytes : int
        Of a larger object nothing is kept; it is received all the same, so that its sender can be told.
    announced : tuple of str
        SOP Class UID and SOP Instance UID of the request.
    is_late : bool
        The gateway was about to end when it began.
    """

    def __init__(
        self, folder: Path, head: bytes, *, max_bytes: int, announced: tuple[str, str], is_late: bool = False
    ) -> None:
        super().__init__()
        self.announced = announced
        self.is_late = is_late
        self.size = 0
        """Bytes so far, whether kept or not."""
        self.failure: str | None = None
        """Why it could not be kept; None where it could."""
        self._max_bytes = max_bytes
        self._file = None
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
        except OSError as exc:
            self.failure = exc.strerror
        self.write(head)

    def write(self, data: Any, /) -> int:
        """Keep a piece.

        Raises
        ------
        EndlessError
            See ``ENDLESS``.
        """
        length = len(data)
        self.size += length
        if self.size > ENDLESS * self._max_bytes:
            msg = f"an object has more than {self.size} bytes, and at most {self._max_bytes} are taken"
            raise EndlessError(msg)
        if self.size > self._max_bytes:
            self._drop()
        if self._file is not None:
            try:
                _write_all(self._file, data)
            except OSError as exc:
                self.failure = exc.strerror
                self._drop()
        return length

    def read_all(self) -> bytes:
        """Give the whole file."""
        assert self._file is not None  # noqa: S101
        self._file.seek(0)
        return self._file.readall()

    def close(self) -> None:
        """Give back the room on the disk."""
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _write_all(file: Any, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
