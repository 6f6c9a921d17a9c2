"""What is to be delivered to one target and what has been, on disk: written before a report is sent, closed after.

It holds predictions as they are on their topic, so pseudonyms alone; whose image it is, is looked up at each send. Who
loses the file loses no report that waits, since offsets are committed behind those that were delivered; some are then
sent a second time, with the same identifiers.
"""

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schemas.errors import SettingsError, XrayError
from schemas.folders import make_folder, sync_folder
from streaming.reports.findings import Finding
from streaming.reports.report import Correction, Prediction, report_key
from streaming.sqlitefiles import read_file

Partition = tuple[str, int]
"""Topic and number."""

_VERSION = 2
_TABLES = f"""
CREATE TABLE predictions (event_id TEXT PRIMARY KEY, value BLOB NOT NULL, received_at TEXT NOT NULL,
                          scored_at TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX predictions_at ON predictions (at);
CREATE TABLE names (name TEXT NOT NULL, event_id TEXT NOT NULL, PRIMARY KEY (name, event_id)) WITHOUT ROWID;
CREATE INDEX names_event ON names (event_id);
CREATE TABLE findings (name TEXT NOT NULL, label TEXT NOT NULL, confirmed_at TEXT NOT NULL, at REAL NOT NULL,
                       PRIMARY KEY (name, label)) WITHOUT ROWID;
CREATE INDEX findings_at ON findings (at);
CREATE TABLE deliveries (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, event_id TEXT NOT NULL, label TEXT,
                         confirmed_at TEXT, state TEXT NOT NULL, code TEXT NOT NULL, tries INTEGER NOT NULL,
                         due REAL NOT NULL, noted REAL NOT NULL, since REAL NOT NULL, topic TEXT NOT NULL,
                         partition INTEGER NOT NULL, place INTEGER NOT NULL);
CREATE INDEX deliveries_state ON deliveries (state, due, number);
CREATE INDEX deliveries_event ON deliveries (event_id, number);
CREATE TABLE target (address TEXT NOT NULL);
CREATE TABLE begun (topic TEXT PRIMARY KEY) WITHOUT ROWID;
PRAGMA user_version = {_VERSION};
"""
_OPEN = "open"
_DONE = "done"
_GIVEN_UP = "given_up"
_LEFT_OUT = "left_out"
_WAIT_S = 5.0


class LedgerError(XrayError):
    """The ledger cannot be read or written now."""


@dataclass(frozen=True, slots=True)
class Source:
    """The record that a report is of.

    Parameters
    ----------
    topic : str
        Its topic.
    partition, offset : int
        Where it is.
    since_s : float
        Its Kafka timestamp, Unix time.
    """

    topic: str
    partition: int
    offset: int
    since_s: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a record brought.

    Parameters
    ----------
    source : Source
        The record.
    content : Prediction or Finding
        What it says.
    value : bytes
        A prediction's, as it came.
    """

    source: Source
    content: Prediction | Finding
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A report that is to be sent.

    Parameters
    ----------
    number : int
        Its own; the order in which they came.
    value : bytes
        The prediction, as it came.
    received_at, scored_at : datetime
        See `Prediction`.
    correction : Correction or None
        Of an amended report.
    tries : int
        How often it was refused.
    since_s : float
        See `Source`.
    """

    number: int
    value: bytes
    received_at: datetime
    scored_at: datetime
    correction: Correction | None
    tries: int
    since_s: float


@dataclass(frozen=True, slots=True)
class Reported:
    """What became of a report.

    Parameters
    ----------
    target : str
        Where it goes.
    event_id : str
        Of the prediction.
    label : str or None
        The confirmed finding of an amended report; None of the first one.
    state : str
        ``open``, ``done``, ``given_up`` or ``left_out``.
    code : str
        What the target answered, or why there is no report; empty where nothing is to be said.
    tries : int
        How often it was refused.
    noted_at : datetime
        When it came into that state, UTC.
    """

    target: str
    event_id: str
    label: str | None
    state: str
    code: str
    tries: int
    noted_at: datetime

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {
            "target": self.target,
            "event_id": self.event_id,
            "label": self.label,
            "state": self.state,
            "code": self.code or None,
            "tries": self.tries,
            "noted_at": self.noted_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        }


class Ledger:
    """The ledger of one target, for one process at a time; `open_ledger` opens it. For one thread at a time.

    Parameters
    ----------
    path : Path
        SQLite file, made where it is missing, for its owner alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = self._connect()
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc

    def has_begun(self, topic: str) -> bool:
        """Tell whether a topic was read before."""
        with self._using() as db:
            return db.execute("SELECT 1 FROM begun WHERE topic = ?", (topic,)).fetchone() is not None

    def begin(self, topic: str) -> None:
        """Note that a topic's offsets are committed from now on."""
        with self._using() as db:
            db.execute("INSERT OR IGNORE INTO begun VALUES (?)", (topic,))

    def note_target(self, address: str) -> None:
        """Note whose it is, for people."""
        with self._using() as db:
            db.execute("DELETE FROM target")
            db.execute("INSERT INTO target VALUES (?)", (address,))

    def read_target(self) -> str:
        """Give whose it is; empty where nobody has said so."""
        with self._using() as db:
            found = db.execute("SELECT address FROM target").fetchone()
        return "" if found is None else str(found[0])

    def absorb(self, arrivals: Sequence[Arrival]) -> None:
        """Note what came, in one transaction; what is known already changes nothing.

        Raises
        ------
        LedgerError
            Nothing is noted.
        """
        now = time.time()
        with self._using() as db:
            for one in arrivals:
                if isinstance(one.content, Prediction):
                    _add_prediction(db, one, one.content, now)
                else:
                    _add_finding(db, one.source, one.content, now)

    def list_due(self, limit: int) -> list[Delivery]:
        """List reports that may be sent now, the oldest first; an amended one not before the one that it amends.

        One whose refusal was noted at a time that lies ahead is sent now: the clock has gone back, and would be waited
        for.

        Raises
        ------
        LedgerError
            It cannot be read.
        """
        query = """
            SELECT d.number, p.value, p.received_at, p.scored_at, d.label, d.confirmed_at, d.tries, d.since
            FROM deliveries d JOIN predictions p USING (event_id)
            WHERE d.state = ?1 AND (d.due <= ?2 OR d.noted > ?2) AND NOT EXISTS (
                SELECT 1 FROM deliveries e WHERE e.event_id = d.event_id AND e.number < d.number AND e.state = ?1)
            ORDER BY d.number LIMIT ?3
        """
        with self._using() as db:
            rows = db.execute(query, (_OPEN, time.time(), limit)).fetchall()
        return [_read_delivery(*row) for row in rows]

    def close_done(self, delivery: Delivery) -> None:
        """Note that the target has taken a report."""
        self._set(delivery, _DONE, "", tries=delivery.tries, due=0.0)

    def close_left_out(self, delivery: Delivery, reason: str) -> None:
        """Note that there is no report of a prediction."""
        self._set(delivery, _LEFT_OUT, reason, tries=delivery.tries, due=0.0)

    def note_refusal(self, delivery: Delivery, code: str, *, again_in_s: float | None) -> None:
        """Note a refusal.

        Parameters
        ----------
        delivery : Delivery
            Which.
        code : str
            What the target answered.
        again_in_s : float or None
            When it is sent again; None gives it up.
        """
        state = _GIVEN_UP if again_in_s is None else _OPEN
        self._set(delivery, state, code, tries=delivery.tries + 1, due=time.time() + (again_in_s or 0.0))

    def reopen(self) -> int:
        """Have everything that was given up sent again; tell how many."""
        query = "UPDATE deliveries SET state = ?, tries = 0, due = 0 WHERE state = ?"
        with self._using() as db:
            return db.execute(query, (_OPEN, _GIVEN_UP)).rowcount

    def count(self) -> dict[str, int]:
        """Count reports that wait (``open``) and that were given up (``given_up``)."""
        # Not those that are done: there may be millions, and this is asked several times a second.
        query = "SELECT count(*) FROM deliveries WHERE state = ?"
        with self._using() as db:
            return {state: int(db.execute(query, (state,)).fetchone()[0]) for state in (_OPEN, _GIVEN_UP)}

    def first_open(self) -> Mapping[Partition, int]:
        """Give the offset of the oldest report of each partition that its target has not."""
        query = "SELECT topic, partition, min(place) FROM deliveries WHERE state = ? GROUP BY topic, partition"
        with self._using() as db:
            return {(topic, partition): place for topic, partition, place in db.execute(query, (_OPEN,))}

    def remove_before(self, at_s: float) -> None:
        """Forget what came before a time, but for what is still to be sent."""
        with self._using() as db:
            old = "SELECT event_id FROM predictions WHERE at < ?"
            waits = "SELECT event_id FROM deliveries WHERE state = ?"
            db.execute(f"DELETE FROM deliveries WHERE event_id IN ({old}) AND event_id NOT IN ({waits})", (at_s, _OPEN))  # noqa: S608
            db.execute(f"DELETE FROM names WHERE event_id IN ({old}) AND event_id NOT IN ({waits})", (at_s, _OPEN))  # noqa: S608
            db.execute(f"DELETE FROM predictions WHERE at < ? AND event_id NOT IN ({waits})", (at_s, _OPEN))  # noqa: S608
            db.execute("DELETE FROM findings WHERE at < ?", (at_s,))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _set(self, delivery: Delivery, state: str, code: str, *, tries: int, due: float) -> None:
        query = "UPDATE deliveries SET state = ?, code = ?, tries = ?, due = ?, noted = ? WHERE number = ?"
        with self._using() as db:
            db.execute(query, (state, code, tries, due, time.time(), delivery.number))

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """Give the database for one transaction."""
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")  # a closed report must not open again: it would be sent again
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                db.executescript(f"BEGIN; {_TABLES} COMMIT;")
            elif (found := db.execute("PRAGMA user_version").fetchone()[0]) != _VERSION:
                msg = f"{self._path} is of version {found}, expected {_VERSION}"
                raise SettingsError(msg)
        except BaseException:
            db.close()
            raise
        return db

    def _failure(self, exc: sqlite3.Error) -> LedgerError:
        advice = "If it is damaged, move it away: what was not delivered is read from Kafka again"
        return LedgerError(f"the ledger {self._path}: {exc}. {advice}")


@contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """Open a ledger for this process alone.

    Raises
    ------
    SettingsError
        Another process has it, it is of another version, or its folder cannot be used.
    LedgerError
        It is damaged.
    """
    try:
        make_folder(path.parent)
        # SQLite would go by the umask; its other files take over what this one has.
        os.close(os.open(path, os.O_CREAT, 0o600))
        sync_folder(path.parent)
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        msg = f"XRAY_REPORTS__FOLDER: {path} cannot be used: {exc.strerror}"
        raise SettingsError(msg) from exc
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            msg = f"another 'xray results run' delivers to this target: {path} is in use"
            raise SettingsError(msg) from exc
        with closing(Ledger(path)) as ledger:
            yield ledger
    finally:
        os.close(lock)


def find_left_behind(folder: Path, own: Collection[Path]) -> dict[str, int]:
    """Find reports that are open in ledgers of targets that nobody delivers to now.

    Parameters
    ----------
    folder : Path
        Where ledgers are.
    own : collection of Path
        Those that are delivered to.

    Returns
    -------
    dict
        How many there are, by target.
    """
    found = {}
    for path in sorted(folder.glob("*.db")):
        if path in own:
            continue
        try:
            with open_ledger(path) as ledger:
                n, name = ledger.count()[_OPEN], ledger.read_target() or path.stem
        except (SettingsError, LedgerError):  # another process delivers, or it is damaged: who delivers to it is told
            continue
        if n:
            found[name] = n
    return found


def find_reports(path: Path, event_ids: str) -> list[Reported]:
    """Find what became of some predictions' reports, whether or not 'xray results run' has the file.

    Parameters
    ----------
    path : Path
        The ledger's file, which is there.
    event_ids : str
        Of the predictions, as a JSON array.

    Returns
    -------
    list of Reported
        In the order in which they came.

    Raises
    ------
    JobError
        It cannot be read, or is of another version.
    """
    query = """
        SELECT coalesce((SELECT address FROM target), ''), event_id, label, state, code, tries, noted FROM deliveries
        WHERE event_id IN (SELECT value FROM json_each(?)) ORDER BY number
    """
    return [
        Reported(target or path.stem, event_id, label, state, code, tries, datetime.fromtimestamp(noted, UTC))
        for target, event_id, label, state, code, tries, noted in read_file(path, _VERSION, query, (event_ids,))
    ]


def _add_prediction(db: sqlite3.Connection, arrival: Arrival, found: Prediction, now: float) -> None:
    times = (found.received_at.isoformat(), found.scored_at.isoformat())
    added = db.execute(
        "INSERT OR IGNORE INTO predictions VALUES (?, ?, ?, ?, ?)", (found.event_id, arrival.value, *times, now)
    )
    if added.rowcount == 0:
        return
    db.executemany("INSERT OR IGNORE INTO names VALUES (?, ?)", [(name, found.event_id) for name in found.names])
    _add_delivery(db, arrival.source, found.event_id, None)
    marks = ", ".join("?" * len(found.names))
    query = f"SELECT label, confirmed_at FROM findings WHERE name IN ({marks}) ORDER BY confirmed_at DESC"  # noqa: S608
    rows = db.execute(query, found.names).fetchall()
    # The newest that the model knows; where it knows none, that is told of one of them.
    for label, confirmed_at in ([row for row in rows if row[0] in found.labels] or rows)[:1]:
        _add_delivery(db, arrival.source, found.event_id, Correction(label, datetime.fromisoformat(confirmed_at)))


def _add_finding(db: sqlite3.Connection, source: Source, found: Finding, now: float) -> None:
    correction = found.correction
    at = correction.confirmed_at.isoformat()
    db.execute(
        """
        INSERT INTO findings VALUES (?, ?, ?, ?) ON CONFLICT (name, label) DO UPDATE
        SET confirmed_at = excluded.confirmed_at, at = excluded.at
        WHERE excluded.confirmed_at >= findings.confirmed_at
        """,
        (found.name, correction.label, at, now),
    )
    query = "SELECT event_id, value FROM names JOIN predictions USING (event_id) WHERE name = ?"
    for event_id, value in db.execute(query, (found.name,)).fetchall():
        if not _has_later(db, event_id, json.loads(value)["probabilities"], at):
            _add_delivery(db, source, event_id, correction)


def _has_later(db: sqlite3.Connection, event_id: str, labels: Collection[str], at: str) -> bool:
    """Tell whether a report has a later finding already: an older one is no news. One that amends nothing is none."""
    query = "SELECT label FROM deliveries WHERE event_id = ? AND confirmed_at > ?"
    return any(label in labels for (label,) in db.execute(query, (event_id, at)))


def _add_delivery(db: sqlite3.Connection, source: Source, event_id: str, correction: Correction | None) -> None:
    said = (None, None) if correction is None else (correction.label, correction.confirmed_at.isoformat())
    place = (source.since_s, source.topic, source.partition, source.offset)
    query = """
        INSERT OR IGNORE INTO deliveries
            (key, event_id, label, confirmed_at, state, code, tries, due, noted, since, topic, partition, place)
        VALUES (?, ?, ?, ?, ?, '', 0, 0, 0, ?, ?, ?, ?)
    """
    db.execute(query, (report_key(event_id, correction), event_id, *said, _OPEN, *place))


def _read_delivery(  # a row of `Ledger.list_due`
    number: int,
    value: bytes,
    received_at: str,
    scored_at: str,
    label: str | None,
    confirmed_at: str | None,
    tries: int,
    since_s: float,
) -> Delivery:
    correction = None
    if label is not None and confirmed_at is not None:
        correction = Correction(label, datetime.fromisoformat(confirmed_at))
    times = (datetime.fromisoformat(received_at), datetime.fromisoformat(scored_at))
    return Delivery(number, value, *times, correction, tries, since_s)
