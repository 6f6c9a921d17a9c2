"""The ledger of findings, in an SQLite file: on the disk before the page says that one is taken.

Before findings are sent, it is noted that they are, and where the labels topic ended then. So a kill leaves none of
which it is not known where its event would be.
"""

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from schemas.errors import SettingsError
from schemas.folders import make_folder, sync_folder
from streaming.results.finding import Finding, FindingError, LedgerError, Progress
from streaming.sqlitefiles import read_file

LEDGER_FILE = "findings.db"
KEPT = 100_000
"""Published findings that are remembered, the newest."""

_BUSY_MS = 10_000
_VERSION = 1
_TABLES = f"""
CREATE TABLE findings (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT NOT NULL,
    who TEXT NOT NULL,
    request TEXT NOT NULL,
    label TEXT NOT NULL,
    confirmed_ms INTEGER NOT NULL,
    progress TEXT NOT NULL,
    place TEXT,
    marks TEXT,
    UNIQUE (event_id, who, request)
);
CREATE INDEX findings_open ON findings (progress, number) WHERE progress <> '{Progress.PUBLISHED}';
PRAGMA user_version = {_VERSION};
"""
_SELECT = "SELECT event_id, label, who, request, confirmed_ms, progress, place, number FROM findings"
_T = TypeVar("_T")


class FindingsLedger:
    """Findings and how far they have come; safe between threads.

    Parameters
    ----------
    path : Path
        Of the file, which is there.

    Raises
    ------
    SettingsError
        It is damaged or of another version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=_BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # what is taken is on the disk
            if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                self._db.executescript(f"BEGIN; {_TABLES} COMMIT;")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as exc:
            self._db.close()
            msg = f"the ledger of findings {path} cannot be used: {exc}. If it is damaged, move it away"
            raise SettingsError(msg) from exc
        if found != _VERSION:
            self._db.close()
            msg = f"the ledger of findings {path} is of version {found}, expected {_VERSION}"
            raise SettingsError(msg)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def enter(self, finding: Finding) -> Finding:
        """Enter a finding; what was entered before is given as it is.

        Returns
        -------
        Finding
            As it is kept: later than what was said of the image before. The former one where the same person said the
            same last.

        Raises
        ------
        FindingError
            The request has said something else before.
        LedgerError
            The disk does not take it.
        """

        def write(db: sqlite3.Connection) -> Finding:
            key = (finding.event_id, finding.who, finding.request)
            known = _one(db, "event_id = ? AND who = ? AND request = ?", key)
            if known is not None:
                if known.label != finding.label:
                    msg = f"entry {finding.request} said {known.label} before and says {finding.label} now"
                    raise FindingError(msg)
                return known
            last = _one(db, "event_id = ? ORDER BY number DESC", (finding.event_id,))
            if last is not None and (last.who, last.label) == (finding.who, finding.label):
                return last
            # By the table of labels the later one counts, and a clock may be set back.
            at = finding.confirmed_ms if last is None else max(finding.confirmed_ms, last.confirmed_ms + 1)
            kept = replace(finding, confirmed_ms=at, progress=Progress.QUEUED)
            columns = "(event_id, who, request, label, confirmed_ms, progress) VALUES (?, ?, ?, ?, ?, ?)"
            row = (*key, kept.label, at, kept.progress.value)
            return replace(kept, number=db.execute(f"INSERT INTO findings {columns}", row).lastrowid or 0)

        return self._write(write)

    def list_for(self, event_id: str) -> list[Finding]:
        """List what was said of an image, oldest first."""
        return self._read(f"{_SELECT} WHERE event_id = ? ORDER BY number", (event_id,))

    def select_known(self, event_ids: Collection[str]) -> set[str]:
        """Select those of some images of which anything was said."""
        wanted = json.dumps(list(event_ids))
        query = "SELECT DISTINCT event_id FROM findings WHERE event_id IN (SELECT value FROM json_each(?))"
        return {row[0] for row in self._query(query, (wanted,))}

    def list_newest(self, limit: int) -> list[Finding]:
        """List the findings entered last, newest first."""
        return self._read(f"{_SELECT} ORDER BY number DESC LIMIT ?", (limit,))

    def list_open(self, progress: Progress, limit: int) -> list[Finding]:
        """List findings that are queued or being sent, oldest first."""
        query = f"{_SELECT} WHERE progress = ? ORDER BY number LIMIT ?"
        return self._read(query, (progress.value, limit))

    def count_open(self) -> tuple[int, int | None]:
        """Count findings that are not published, and give when the oldest of them was entered, in milliseconds."""
        query = "SELECT count(*), min(confirmed_ms) FROM findings WHERE progress <> ?"
        [(count, oldest)] = self._query(query, (Progress.PUBLISHED.value,))
        return int(count), oldest

    def read_marks(self) -> dict[int, int]:
        """Read from where on events may be of findings whose sending was begun, by partition."""
        marks: dict[int, int] = {}
        query = "SELECT DISTINCT marks FROM findings WHERE progress = ?"
        for (text,) in self._query(query, (Progress.SENDING.value,)):
            for partition, offset in json.loads(text).items():
                marks[int(partition)] = min(int(offset), marks.get(int(partition), int(offset)))
        return marks

    def note_sending(self, findings: Iterable[Finding], ends: Mapping[int, int]) -> None:
        """Note that findings are about to be sent, and where the topic ends before."""
        marks = json.dumps({str(partition): end for partition, end in ends.items()})
        rows = [(Progress.SENDING.value, marks, one.number) for one in findings]
        self._write(lambda db: db.executemany("UPDATE findings SET progress = ?, marks = ? WHERE number = ?", rows))

    def note_published(self, places: Mapping[int, str]) -> None:
        """Note that findings are in the topic, by their numbers; forget the oldest of too many."""
        rows = [(Progress.PUBLISHED.value, place, number) for number, place in places.items()]

        def write(db: sqlite3.Connection) -> None:
            db.executemany("UPDATE findings SET progress = ?, place = ?, marks = NULL WHERE number = ?", rows)
            db.execute(
                "DELETE FROM findings WHERE progress = ? AND number <= (SELECT max(number) FROM findings) - ?",
                (Progress.PUBLISHED.value, KEPT),
            )

        self._write(write)

    def note_unsent(self, findings: Iterable[Finding]) -> None:
        """Note that findings did not come into the topic: they are sent again."""
        rows = [(Progress.QUEUED.value, one.number) for one in findings]
        self._write(lambda db: db.executemany("UPDATE findings SET progress = ?, marks = NULL WHERE number = ?", rows))

    def _read(self, query: str, values: Sequence[Any]) -> list[Finding]:
        return [_finding(row) for row in self._query(query, values)]

    def _query(self, query: str, values: Sequence[Any]) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except sqlite3.Error as exc:
                msg = f"{self._path} cannot be read: {exc}. If it is damaged, move it away"
                raise LedgerError(msg) from exc

    def _write(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                answer = action(self._db)
                self._db.execute("COMMIT")
            except BaseException as exc:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(exc, sqlite3.Error):
                    msg = f"{self._path} does not take it: {exc}. Make room on the disk, then enter it again"
                    raise LedgerError(msg) from exc
                raise
            return answer


def _one(db: sqlite3.Connection, condition: str, values: Sequence[Any]) -> Finding | None:
    row = db.execute(f"{_SELECT} WHERE {condition} LIMIT 1", values).fetchone()
    return None if row is None else _finding(row)


def _finding(row: Sequence[Any]) -> Finding:
    event_id, label, who, request, confirmed_ms, progress, place, number = row
    return Finding(event_id, label, who, request, confirmed_ms, Progress(progress), place, number)


@contextmanager
def open_ledger(folder: Path) -> Iterator[FindingsLedger]:
    """Open the ledger in a folder, for this process alone.

    Raises
    ------
    SettingsError
        Another page has it, it is damaged, or the folder cannot be used.
    """
    path = folder / LEDGER_FILE
    try:
        make_folder(folder)
        # SQLite would go by the umask; its other files take over what this one has.
        os.close(os.open(path, os.O_CREAT, 0o600))
        sync_folder(folder)
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        msg = f"the folder of findings {folder} cannot be used: {exc.strerror}"
        raise SettingsError(msg) from exc
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            msg = f"another 'xray page' keeps its findings in {folder}; end it, or give this one another folder"
            raise SettingsError(msg) from exc
        with closing(FindingsLedger(path)) as ledger:
            yield ledger
    finally:
        os.close(lock)


def find_findings(path: Path, event_ids: str) -> list[Finding]:
    """Find what was said of some predictions, whether or not a page has the file.

    Parameters
    ----------
    path : Path
        The ledger's file, which is there.
    event_ids : str
        Of the predictions, as a JSON array.

    Returns
    -------
    list of Finding
        Oldest first. Of published ones the newest `KEPT` are remembered.

    Raises
    ------
    JobError
        It cannot be read, or is of another version.
    """
    query = f"{_SELECT} WHERE event_id IN (SELECT value FROM json_each(?)) ORDER BY number"  # noqa: S608
    return [_finding(row) for row in read_file(path, _VERSION, query, (event_ids,))]


def now_ms() -> int:
    """Give the time as findings have it."""
    return int(time.time() * 1000)
