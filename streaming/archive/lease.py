"""One writer of the tables at a time: archive, or compaction by hand.

Where the tables are on a disk, a lock says so at once; it ends with the process, however it ends, and a process that is
frozen keeps it. An object store has no such lock, and not every network file system: there whoever comes claims the
tables, and the one before ends (`streaming.archive.archivetable`). What holds a row single is neither, but the
compare-and-swap of each commit.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from schemas.errors import TableClaimedError
from schemas.objectstore import local_folder

log = logging.getLogger(__name__)

_POLL_S = 0.1


@contextmanager
def hold_tables(folder: str, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold the lock on the tables' folder, where it is on a disk and there; give whether it is held.

    Parameters
    ----------
    folder : str
        Path or URI of the tables.
    wait_s : float
        How long to wait for a holder that may be about to end.

    Raises
    ------
    TableClaimedError
        Another process holds it.
    """
    path = local_folder(folder)
    if path is None or not path.is_dir():
        yield False
        return
    lock = os.open(path, os.O_RDONLY)
    try:
        yield _take(lock, folder, wait_s)
    finally:
        os.close(lock)


def _take(lock: int, folder: str, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            if time.monotonic() < deadline:
                time.sleep(_POLL_S)
                continue
            msg = (
                f"another archive or compaction works on {folder}; one at a time. A running archive ('xray stream' "
                "starts one) compacts by itself: end it first, or leave it to that."
            )
            raise TableClaimedError(msg) from exc
        except OSError as exc:
            # NFS locks nothing that is not open for writing, which a folder never is.
            log.info("%s is on a file system without this lock (%s)", folder, exc.strerror)
            return False
        else:
            return True
