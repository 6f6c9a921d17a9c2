"""Reading image files; what becomes of one that cannot be decoded: its row says why, and the others go on."""

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.errors import ContractError, Reason, RecordError


def read_file(path: str, max_bytes: int) -> bytes:
    """Read a file, unless it is too large: that is told before any of it is in memory.

    Raises
    ------
    ContractError
        ``PAYLOAD_TOO_LARGE``.
    OSError
        It cannot be read, or is no regular file: a pipe would never answer.
    """
    file = Path(path)
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    if status.st_size > max_bytes:
        detail = f"file has {status.st_size} bytes, expected at most {max_bytes}"
        raise ContractError(Reason.PAYLOAD_TOO_LARGE, path, detail)
    return file.read_bytes()


@contextmanager
def noting_error(row: dict[str, Any], *, unreadable: str = "cannot_be_read") -> Iterator[None]:
    """Read and decode one file; where that fails, the row's ``error`` says why.

    Parameters
    ----------
    row : dict
        Gets ``error``, ``"code: detail"``, where the file gives no image.
    unreadable : str
        What stands before the system's words where the file cannot be read.

    Raises
    ------
    MemoryError, ImportError
        They are the machine's fault, not the file's.
    """
    try:
        yield
    except (MemoryError, ImportError):
        raise
    except RecordError as exc:
        row["error"] = f"{exc.reason}: {exc.detail}"
    except OSError as exc:
        row["error"] = f"{unreadable}: {exc.strerror}"
    except Exception as exc:  # the record boundary: what is a dead letter in the stream is left out here
        row["error"] = f"{Reason.UNEXPECTED}: {type(exc).__name__}: {exc}"
