"""What becomes of an image file that cannot be decoded: its row says why, and the others go on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from schemas.errors import Reason, RecordError


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
