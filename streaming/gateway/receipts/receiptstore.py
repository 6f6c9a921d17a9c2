"""The last state of each image on this machine's disk: what the gateway answers from, and what it has still to publish.

A receipt and the place of the outcome that it is from are stored in one transaction, and a receipt stays marked as
untold until the broker has confirmed it. So a kill repeats receipts and loses none; and whoever loses the file loses
the places as well, and reads the topics again from their beginning.
"""

import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from schemas import envelope
from streaming.gateway.receipts.receipt import Receipt, choose_last, read_receipt
from streaming.sqlitefiles import read_file

log = logging.getLogger(__name__)

T = TypeVar("T")
Partition = tuple[str, int]
"""Topic and number."""

STORE_FILE = "receipts.db"
"""In the gateway's folder."""
_HELD = -1
"""Not to be told yet: the image waits in the spool."""
_VERSION = 1
_TABLES = f"""
CREATE TABLE receipts (
    event_id BLOB NOT NULL UNIQUE,
    name INTEGER NOT NULL,
    at TEXT NOT NULL,
    told INTEGER,
    value BLOB NOT NULL
);
CREATE INDEX receipts_name ON receipts (name, event_id);
CREATE INDEX receipts_at ON receipts (at);
CREATE INDEX receipts_untold ON receipts (at) WHERE told IS NULL;
CREATE TABLE topics (topic TEXT PRIMARY KEY, id TEXT NOT NULL);
CREATE TABLE places (topic TEXT, number INTEGER, next INTEGER NOT NULL, PRIMARY KEY (topic, number));
PRAGMA user_version = {_VERSION};
"""
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_WAIT_S = 0.2
"""For somebody else's lock on the file; a device waits as long."""
_LARGE_WAL_BYTES = 4 * 1024 * 1024
_REMOVED_AT_ONCE = 1000


class StoreError(Exception):
    """The store cannot be read or written now. To try again may help: a damaged file has been put away."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A receipt as it is on the receipts topic.

    Parameters
    ----------
    receipt : Receipt
        This gateway's or another one's.
    offset : int
        Where it is in its partition.
    """

    receipt: Receipt
    offset: int


class ReceiptStore:
    """Receipts by event id, in an SQLite file for its owner alone; safe to use from any thread.

    A file that is damaged, or of another version, is removed and made anew.

    Parameters
    ----------
    path : Path
        The file; its folder is made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._generation = 0

    # --- what the gateway does --------------------------------------------------------------------------------------

    def note(self, receipt: Receipt, *, is_held: bool = False) -> None:
        """Store what the gateway has done itself.

        Parameters
        ----------
        receipt : Receipt
            It counts where it is the last state; see `choose_last`.
        is_held : bool
            Whether it is not to be published yet.

        Raises
        ------
        StoreError
            It is not stored.
        """
        self._write(lambda db: _note(db, receipt, told=_HELD if is_held else None))

    def find(self, event_id: str) -> Receipt | None:
        """Give an image's last state.

        Raises
        ------
        StoreError
            The store cannot be read.
        """
        return self._do(lambda db: _find(db, event_id)[0])

    def has_other_bytes(self, source: str, image_id: str, sha256: str) -> bool:
        """Tell whether there is an image of this name with other bytes.

        Raises
        ------
        StoreError
            The store cannot be read.
        """
        event_id = envelope.derive_image_event_id(source, image_id, sha256)
        # 64 bits of a name: that two names of a million have the same is one chance in thirty million.
        query = "SELECT 1 FROM receipts WHERE name = ? AND event_id <> ? LIMIT 1"
        wanted = (_shorten(source, image_id), bytes.fromhex(event_id))
        return self._do(lambda db: db.execute(query, wanted).fetchone() is not None)

    # --- what comes from the topics ---------------------------------------------------------------------------------

    def read_generation(self) -> int:
        """Give a number that is another one once the file was made anew, and so has not what was read so far.

        Raises
        ------
        StoreError
            The store cannot be used.
        """
        return self._do(lambda db: self._generation)

    def absorb(self, found: Iterable[Receipt | Shown], places: Mapping[Partition, int], *, generation: int) -> None:
        """Store what was read, and how far, in one transaction.

        Parameters
        ----------
        found : iterable of Receipt or Shown
            Receipts of outcomes, and what the receipts topic shows, in the order in which they were read.
        places : mapping of (str, int) to int
            Next offset by partition.
        generation : int
            Of `read_generation`, before reading began.

        Raises
        ------
        StoreError
            Nothing is stored. Where the file was made anew, reading is to begin from its places, which it has not.
        """

        def absorb(db: sqlite3.Connection) -> None:
            if generation != self._generation:
                msg = f"{self._path} was made anew"
                raise StoreError(msg)
            for one in found:
                if isinstance(one, Shown):
                    _show(db, one)
                else:
                    _note(db, one, told=None)
            rows = [(*partition, place) for partition, place in places.items()]
            db.executemany("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", rows)

        self._write(absorb)

    def read_places(self, topic: str, topic_id: str) -> dict[int, int]:
        """Give how far each partition of a topic was read.

        Parameters
        ----------
        topic : str
            Its name.
        topic_id : str
            Kafka's own id of it. Of another topic of that name, made anew, nothing was read.

        Raises
        ------
        StoreError
            The store cannot be used.
        """

        def read(db: sqlite3.Connection) -> dict[int, int]:
            known = db.execute("SELECT id FROM topics WHERE topic = ?", (topic,)).fetchone()
            if known is not None and known[0] != topic_id:
                log.warning("topic %s was made anew: its receipts begin from its start", topic)
                db.execute("DELETE FROM places WHERE topic = ?", (topic,))
            db.execute("INSERT OR REPLACE INTO topics VALUES (?, ?)", (topic, topic_id))
            return dict(db.execute("SELECT number, next FROM places WHERE topic = ?", (topic,)))

        return self._write(read)

    # --- what is to be published ------------------------------------------------------------------------------------

    def list_untold(self, limit: int) -> list[Receipt]:
        """List receipts that the broker has not confirmed, the oldest first.

        Raises
        ------
        StoreError
            The store cannot be read.
        """
        query = "SELECT value FROM receipts WHERE told IS NULL ORDER BY at LIMIT ?"
        return self._do(lambda db: [_parse(value) for (value,) in db.execute(query, (limit,))])

    def mark_told(self, shown: Sequence[Shown]) -> None:
        """Note what the broker has confirmed; a receipt that has changed meanwhile stays untold.

        Raises
        ------
        StoreError
            Nothing is noted.
        """
        query = "UPDATE receipts SET told = ? WHERE event_id = ? AND value = ?"
        rows = [(one.offset, bytes.fromhex(one.receipt.event_id), one.receipt.to_json()) for one in shown]
        self._write(lambda db: db.executemany(query, rows))

    def mark_all_untold(self) -> None:
        """Have every receipt published again: the receipts topic was made anew.

        Raises
        ------
        StoreError
            Nothing is noted.
        """
        self._write(lambda db: db.execute("UPDATE receipts SET told = NULL WHERE told >= 0"))

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def remove_before(self, at: str) -> int:
        """Remove receipts that are older; others may use the store in between.

        Returns
        -------
        int
            How many.

        Raises
        ------
        StoreError
            The store cannot be written.
        """
        query = "DELETE FROM receipts WHERE rowid IN (SELECT rowid FROM receipts WHERE at < ? LIMIT ?)"
        removed = 0
        while gone := self._write(lambda db: db.execute(query, (at, _REMOVED_AT_ONCE)).rowcount):
            removed += gone
        return removed

    def tidy(self) -> None:
        """Bring what was written into the file itself, which takes a disk its time; nobody who writes waits for it.

        Raises
        ------
        StoreError
            That failed, or somebody has removed the file.
        """
        wal = Path(f"{self._path}-wal")
        try:
            if self._connection is not None and not self._path.exists():
                self.close()
                msg = f"{self._path} is gone"
                raise StoreError(msg)
            if not wal.exists() or wal.stat().st_size < _LARGE_WAL_BYTES:
                return
            other = sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None)
            try:
                other.execute("PRAGMA wal_checkpoint(PASSIVE)")
                # What came in between is little: who writes waits for that, and the file begins anew.
                other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                other.close()
        except (sqlite3.Error, OSError) as exc:
            msg = f"{self._path}: {exc}"
            raise StoreError(msg) from exc

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            self._close()

    # --- the file ---------------------------------------------------------------------------------------------------

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def write(db: sqlite3.Connection) -> T:
            db.execute("BEGIN IMMEDIATE")
            try:
                done = work(db)
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
            return done

        return self._do(write)

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._open()
                return work(self._connection)
            except _DamagedError as exc:
                self._put_away(exc)
                raise StoreError(str(exc)) from exc
            except (sqlite3.Error, OSError) as exc:
                if getattr(exc, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
                    self._put_away(exc)
                else:
                    self._close()
                msg = f"{self._path}: {exc}"
                raise StoreError(msg) from exc

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            # Made here and not by SQLite, which goes by the umask; its other files take over what this one has.
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL, 0o600))
        db = sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA wal_autocheckpoint = 0")  # see `tidy`
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                db.executescript(f"BEGIN; {_TABLES} COMMIT;")
                self._generation += 1
            elif (found := db.execute("PRAGMA user_version").fetchone()[0]) != _VERSION:
                msg = f"{self._path} is of version {found}, expected {_VERSION}"
                raise _DamagedError(msg)
        except (sqlite3.Error, _DamagedError):
            db.close()
            raise
        return db

    def _put_away(self, why: Exception) -> None:
        log.warning("%s is made anew, and filled again from the topics: %s", self._path, why)
        self._close()
        try:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
        except OSError as exc:
            log.warning("%s cannot be removed: %s", self._path, exc.strerror)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


_NAMED = """
    SELECT value FROM receipts
    WHERE json_extract(CAST(value AS TEXT), '$.image.id') IN (SELECT value FROM json_each(?1))
    OR json_extract(CAST(value AS TEXT), '$.image.sha256') IN (SELECT value FROM json_each(?1))
"""


def find_receipts(path: Path, event_ids: Iterable[str], names: Iterable[str]) -> list[Receipt]:
    """Find receipts in a store that a gateway may be using.

    Parameters
    ----------
    path : Path
        The file, which is there.
    event_ids : iterable of str
        Images' own event ids.
    names : iterable of str
        Images' ids as they were published, or SHA-256 of their bytes. The whole file is read for these.

    Returns
    -------
    list of Receipt
        Each once.

    Raises
    ------
    JobError
        It cannot be read, or is of another version.
    """
    keys, wanted = [bytes.fromhex(one) for one in event_ids], json.dumps(sorted(names))
    marks = ", ".join("?" * len(keys))
    rows = read_file(path, _VERSION, f"SELECT value FROM receipts WHERE event_id IN ({marks})", keys)  # noqa: S608
    if wanted != "[]":
        rows += read_file(path, _VERSION, _NAMED, (wanted,))
    found = (read_receipt(value) for (value,) in rows)
    return list({one.event_id: one for one in found if one is not None}.values())


class _DamagedError(Exception):
    """The file holds what this program has not written."""


def _find(db: sqlite3.Connection, event_id: str) -> tuple[Receipt | None, int | None]:
    query = "SELECT value, told FROM receipts WHERE event_id = ?"
    found = db.execute(query, (bytes.fromhex(event_id),)).fetchone()
    return (None, None) if found is None else (_parse(found[0]), found[1])


def _parse(value: bytes) -> Receipt:
    receipt = read_receipt(value)
    if receipt is None:
        msg = "a receipt in the store cannot be read"
        raise _DamagedError(msg)
    return receipt


def _note(db: sqlite3.Connection, receipt: Receipt, *, told: int | None) -> None:
    known, _ = _find(db, receipt.event_id)
    last = choose_last(known, receipt)
    if last != known:
        _put(db, last, told)


def _show(db: sqlite3.Connection, shown: Shown) -> None:
    known, told = _find(db, shown.receipt.event_id)
    if told is not None and told >= shown.offset:
        return  # written by this gateway, or read before
    last = choose_last(known, shown.receipt)
    # Behind it is another state than the last one: a slow gateway has written late. The last one is written again.
    _put(db, last, shown.offset if last.says_the_same(shown.receipt) else None)


def _put(db: sqlite3.Connection, receipt: Receipt, told: int | None) -> None:
    query = """
        INSERT INTO receipts VALUES (?, ?, ?, ?, ?)
        ON CONFLICT (event_id) DO UPDATE SET at = excluded.at, told = excluded.told, value = excluded.value
    """
    name = _shorten(receipt.source, receipt.image_id)
    db.execute(query, (bytes.fromhex(receipt.event_id), name, receipt.at, told, receipt.to_json()))


def _shorten(source: str, image_id: str) -> int:
    return int.from_bytes(bytes.fromhex(envelope.derive_event_id(source, image_id))[:8], "big", signed=True)
