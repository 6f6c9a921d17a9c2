"""Reading another process's SQLite file without a lock on it, and without changing it."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from schemas.errors import JobError

_WAIT_S = 5.0


def read_file(path: Path, version: int, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Read rows of a file that another process may be writing.

    Parameters
    ----------
    path : Path
        The file, which is there.
    version : int
        Wanted ``user_version`` of the file.
    query : str
        One SELECT.
    values : sequence
        Its parameters.

    Returns
    -------
    list of tuple
        The rows as they are now.

    Raises
    ------
    JobError
        It cannot be read, is damaged, or of another release.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_WAIT_S)) as db:
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found == version:
                return db.execute(query, values).fetchall()
    except sqlite3.Error as exc:
        msg = f"{path} cannot be read: {exc}. Read it as the user whose program writes it"
        raise JobError(msg) from exc
    msg = f"{path} is of version {found}, wanted {version}: it is of another release"
    raise JobError(msg)
