"""The ledger of alarms and of their deliveries, in an SQLite file: written before anything is sent, closed after.

What is read from Kafka and what follows from it is one transaction, on the disk before the offsets are committed. So a
kill repeats records, which are known by their event ids then, and deliveries, which have the id they had; none is lost.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from schemas.errors import JobError
from schemas.folders import sync_folder
from streaming.alerts.alarm import Alarm, State
from streaming.alerts.rules import UNANSWERED_S
from streaming.sqlitefiles import read_file

LEDGER_FILE = "alarms.db"
"""In the state folder."""
KEPT_S = 35 * 86_400.0
"""Longer than Kafka keeps outcomes, so that one which is read again is known."""
MAX_MEMBERS = 10_000
"""Images that a summary names; it counts the others."""
_ANSWERED_S = 86_400.0
_BUSY_MS = 10_000
_REMOVED_AT_ONCE = 500
_VERSION = 2
_TABLES = f"""
CREATE TABLE alarms (
    id TEXT PRIMARY KEY,
    rule TEXT NOT NULL,
    part TEXT NOT NULL,
    kind TEXT NOT NULL,
    severity TEXT NOT NULL,
    state TEXT NOT NULL,
    starts_at REAL NOT NULL,
    ends_at REAL,
    held_at REAL NOT NULL,
    images INTEGER NOT NULL,
    says TEXT NOT NULL
);
CREATE INDEX alarms_start ON alarms (starts_at);
CREATE INDEX alarms_unsettled ON alarms (rule, part) WHERE kind <> 'image' AND state <> 'resolved';
CREATE TABLE deliveries (
    alarm TEXT NOT NULL REFERENCES alarms (id) ON DELETE CASCADE,
    sink TEXT NOT NULL,
    state TEXT NOT NULL,
    status TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    next_at REAL,
    changed_at REAL NOT NULL,
    delivered_at REAL,
    why TEXT NOT NULL,
    said TEXT,
    PRIMARY KEY (alarm, sink, state)
);
CREATE INDEX deliveries_due ON deliveries (sink, next_at) WHERE next_at IS NOT NULL;
CREATE TABLE members (alarm TEXT NOT NULL REFERENCES alarms (id) ON DELETE CASCADE, says TEXT NOT NULL);
CREATE INDEX members_alarm ON members (alarm);
CREATE TABLE disabled (sink TEXT PRIMARY KEY, at REAL NOT NULL, why TEXT NOT NULL);
CREATE TABLE seen (image BLOB PRIMARY KEY, event BLOB NOT NULL, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX seen_at ON seen (at);
CREATE TABLE counts (
    rule TEXT, part TEXT, begin INTEGER, matched INTEGER NOT NULL, total INTEGER NOT NULL,
    PRIMARY KEY (rule, part, begin)
) WITHOUT ROWID;
CREATE TABLE arrivals (rule TEXT, part TEXT, at REAL NOT NULL, PRIMARY KEY (rule, part)) WITHOUT ROWID;
CREATE TABLE waiting (image BLOB PRIMARY KEY, source TEXT NOT NULL, accepted_at REAL, answered_at REAL) WITHOUT ROWID;
CREATE INDEX waiting_open ON waiting (source, accepted_at) WHERE answered_at IS NULL;
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = {_VERSION};
"""


class AlarmKind(StrEnum):
    """What an alarm is about."""

    IMAGE = "image"
    CONDITION = "condition"
    SUMMARY = "summary"
    GATHERING = "gathering"
    """A summary whose images still come in: it is not delivered yet."""


class Status(StrEnum):
    """What became of a delivery."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    REFUSED = "refused"
    GIVEN_UP = "given_up"
    DISABLED = "disabled"
    NO_SINK = "no_sink"
    """The rules name no such sink any more."""


UNDELIVERED = (Status.REFUSED, Status.GIVEN_UP, Status.DISABLED, Status.NO_SINK)
"""Ends of a delivery that nobody got."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An alarm in the ledger.

    Parameters
    ----------
    alarm : Alarm
        As it is now.
    kind : AlarmKind
        See there.
    part : str
        What of its rule it is about: a source, or nothing.
    images : int
        How many images it is about, as far as it counts them.
    held_at : float
        When what it is about was last so, Unix time in seconds.
    routes : tuple of str
        Names of the sinks that get it.
    """

    alarm: Alarm
    kind: AlarmKind
    part: str
    images: int
    held_at: float
    routes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Delivery:
    """One alarm, on its way to one sink.

    Parameters
    ----------
    alarm : Alarm
        In the state that is to be delivered, as it is now.
    told : Alarm
        As it was when it came into that state: what is delivered once says the same at each attempt.
    sink : str
        Name of the sink.
    status : Status
        What became of it.
    attempts : int
        How many there were since it was last delivered.
    next_at : float or None
        When it is tried or delivered again; None where it is not.
    delivered_at : float or None
        When it was first delivered.
    why : str
        Why it was not.
    """

    alarm: Alarm
    told: Alarm
    sink: str
    status: Status
    attempts: int
    next_at: float | None
    delivered_at: float | None
    why: str


class Ledger:
    """Alarms and deliveries, in one file; safe to use from any thread.

    Parameters
    ----------
    path : Path or None
        The file, made where it is missing; None keeps all in memory, to try rules.

    Raises
    ------
    JobError
        It cannot be opened, is damaged, or of another version.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.RLock()
        self._path = path
        try:
            if path is not None:
                path.touch(mode=0o600, exist_ok=True)
                sync_folder(path.parent)
            self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
            self._db.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA foreign_keys = ON")
            with self.transaction():
                self._make_tables()
        except (sqlite3.Error, OSError) as exc:
            msg = f"{path}: the ledger of alarms cannot be opened: {exc}. Moved aside, it takes open alarms along."
            raise JobError(msg) from exc

    def _make_tables(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == _VERSION:
            return
        if version:
            msg = f"{self._path} is of version {version}, wanted {_VERSION}: it is of another release"
            raise JobError(msg)
        for statement in _TABLES.split(";\n"):
            self._db.execute(statement)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """Have all that is written inside on the disk together, or not at all.

        Parameters
        ----------
        durable : bool
            Whether it outlives a power cut; else it outlives the end of the process alone. What is sent twice
            without it has the id it had.

        Raises
        ------
        JobError
            The disk is full or fails; nothing was written.
        """
        with self._lock:
            try:
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except sqlite3.Error as exc:
                msg = f"{self._path}: the ledger of alarms cannot be written: {exc}"
                raise JobError(msg) from exc
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def note_seen(self, image: str, event: str, at: float) -> str | None:
        """Note the outcome of an image; give the event id that was noted before, and stays."""
        with self._lock:
            key = bytes.fromhex(image)
            found = self._db.execute("SELECT event FROM seen WHERE image = ?", (key,)).fetchone()
            if found is None:
                self._db.execute("INSERT INTO seen VALUES (?, ?, ?)", (key, bytes.fromhex(event), int(at)))
                return None
            known: bytes = found[0]
            return known.hex()

    def add(self, entry: Entry) -> bool:
        """Add an alarm, and a delivery to each of its routes; False where it is known already."""
        alarm = entry.alarm
        with self._lock:
            added = self._db.execute(
                "INSERT OR IGNORE INTO alarms VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    alarm.id,
                    alarm.rule,
                    entry.part,
                    entry.kind,
                    alarm.severity,
                    alarm.state,
                    alarm.starts_at.timestamp(),
                    None if alarm.ends_at is None else alarm.ends_at.timestamp(),
                    entry.held_at,
                    entry.images,
                    _write_says(entry),
                ),
            ).rowcount
            if added and entry.kind is not AlarmKind.GATHERING:
                self._route(entry)
            return bool(added)

    def _route(self, entry: Entry) -> None:
        now, alarm = time.time(), entry.alarm
        # An image's alarm says the same for ever; of the others the counts and times go on changing.
        said = None if entry.kind is AlarmKind.IMAGE else _write_says(entry)
        disabled = {name: why for name, _, why in self._db.execute("SELECT * FROM disabled")}
        for sink in entry.routes:
            status, why = (Status.DISABLED, disabled[sink]) if sink in disabled else (Status.WAITING, "")
            self._db.execute(
                "INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?, ?, 0, ?, ?, NULL, ?, ?)",
                (alarm.id, sink, alarm.state, status, None if why else now, now, why, said),
            )

    def find_unsettled(self, rule: str, part: str) -> Entry | None:
        """Give the condition or summary of a rule that is open."""
        with self._lock:
            row = self._db.execute(
                "SELECT * FROM alarms WHERE rule = ? AND part = ? AND kind <> 'image' AND state <> 'resolved'"
                " ORDER BY starts_at DESC LIMIT 1",
                (rule, part),
            ).fetchone()
        return None if row is None else _read_entry(row)

    def list_unsettled(self) -> list[Entry]:
        """Give all conditions and summaries that are open."""
        with self._lock:
            rows = self._db.execute(
                "SELECT * FROM alarms WHERE kind <> 'image' AND state <> 'resolved' ORDER BY starts_at"
            ).fetchall()
        return [_read_entry(row) for row in rows]

    def update(self, entry: Entry) -> None:
        """Write an alarm as it is now, and its next delivery where its state is a new one."""
        alarm = entry.alarm
        with self._lock:
            before = self._db.execute("SELECT kind, state FROM alarms WHERE id = ?", (alarm.id,)).fetchone()
            self._db.execute(
                "UPDATE alarms SET kind = ?, state = ?, ends_at = ?, held_at = ?, images = ?, says = ? WHERE id = ?",
                (
                    entry.kind,
                    alarm.state,
                    None if alarm.ends_at is None else alarm.ends_at.timestamp(),
                    entry.held_at,
                    entry.images,
                    _write_says(entry),
                    alarm.id,
                ),
            )
            if before[0] == AlarmKind.GATHERING and entry.kind is AlarmKind.SUMMARY:
                self._route(replace(entry, alarm=replace(alarm, state=State.OPEN)))
            # A summary is told once: that no more old images come is no news to anybody.
            if before[1] != alarm.state and entry.kind is AlarmKind.CONDITION:
                self._route(entry)

    def add_member(self, alarm: str, says: Mapping[str, Any]) -> None:
        """Note an image that a summary is about."""
        with self._lock:
            self._db.execute("INSERT INTO members VALUES (?, ?)", (alarm, json.dumps(says, ensure_ascii=False)))

    def list_members(self, alarm: str) -> list[dict[str, Any]]:
        """Give the images that a summary is about, at most `MAX_MEMBERS`."""
        with self._lock:
            rows = self._db.execute("SELECT says FROM members WHERE alarm = ? ORDER BY rowid", (alarm,)).fetchall()
        return [json.loads(text) for (text,) in rows]

    def count(self, rule: str, part: str, begin: int, *, matched: bool) -> None:
        """Count an outcome in one step of a rate's window."""
        with self._lock:
            self._db.execute(
                "INSERT INTO counts VALUES (?, ?, ?, ?, 1) ON CONFLICT DO UPDATE"
                " SET matched = matched + excluded.matched, total = total + 1",
                (rule, part, begin, int(matched)),
            )

    def read_counts(self, rule: str, since: float) -> dict[str, tuple[int, int]]:
        """Give how many outcomes matched, and how many there were, by part; steps before are removed."""
        with self._lock:
            self._db.execute("DELETE FROM counts WHERE rule = ? AND begin < ?", (rule, int(since)))
            rows = self._db.execute(
                "SELECT part, sum(matched), sum(total) FROM counts WHERE rule = ? GROUP BY part", (rule,)
            ).fetchall()
        return {part: (matched, total) for part, matched, total in rows}

    def note_arrival(self, rule: str, part: str, at: float) -> None:
        """Note that an image came; the latest counts."""
        with self._lock:
            self._db.execute(
                "INSERT INTO arrivals VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET at = max(at, excluded.at)",
                (rule, part, at),
            )

    def read_arrival(self, rule: str, part: str) -> float | None:
        """Give when the last image came."""
        with self._lock:
            row = self._db.execute("SELECT at FROM arrivals WHERE rule = ? AND part = ?", (rule, part)).fetchone()
        return None if row is None else float(row[0])

    def note_accepted(self, image: str, source: str, at: float) -> None:
        """Note that an image waits for its outcome, unless it has one."""
        with self._lock:
            self._db.execute(
                "INSERT INTO waiting VALUES (?, ?, ?, NULL) ON CONFLICT DO UPDATE SET"
                " accepted_at = coalesce(accepted_at, excluded.accepted_at)",
                (bytes.fromhex(image), source, at),
            )

    def note_answered(self, image: str, source: str, at: float) -> None:
        """Note that an image has its outcome, whichever of the two is read first."""
        with self._lock:
            self._db.execute(
                "INSERT INTO waiting VALUES (?, ?, NULL, ?) ON CONFLICT DO UPDATE"
                " SET answered_at = excluded.answered_at",
                (bytes.fromhex(image), source, at),
            )

    def read_waiting(self, before: float) -> dict[str, tuple[int, float]]:
        """Give how many images have waited since then or longer, and since when the first has, by source."""
        with self._lock:
            rows = self._db.execute(
                "SELECT source, count(*), min(accepted_at) FROM waiting"
                " WHERE answered_at IS NULL AND accepted_at <= ? GROUP BY source",
                (before,),
            ).fetchall()
        return {source: (count, first) for source, count, first in rows}

    def bring_back(self, now: float) -> None:
        """Have nothing that conditions and summaries go by lie ahead: the clock has gone back, and was ahead before.

        Without it an image of two hours ahead would hide an absence for two hours, and a condition would be open for as
        long.
        """
        with self._lock:
            self._db.execute("UPDATE arrivals SET at = ?1 WHERE at > ?1", (now,))
            self._db.execute("UPDATE waiting SET accepted_at = ?1 WHERE accepted_at > ?1", (now,))
            self._db.execute("UPDATE waiting SET answered_at = ?1 WHERE answered_at > ?1", (now,))
            self._db.execute("UPDATE alarms SET held_at = ?1 WHERE held_at > ?1 AND kind <> 'image'", (now,))
            self._db.execute("UPDATE alarms SET starts_at = ?1 WHERE starts_at > ?1 AND kind = 'gathering'", (now,))
            self._db.execute(
                "INSERT INTO counts SELECT rule, part, ?1, matched, total FROM counts WHERE begin > ?1"
                " ON CONFLICT DO UPDATE SET matched = matched + excluded.matched, total = total + excluded.total",
                (int(now),),
            )
            self._db.execute("DELETE FROM counts WHERE begin > ?", (int(now),))

    def list_due(self, sink: str, now: float, limit: int) -> list[Delivery]:
        """Give deliveries that are due, first those that were never tried; a resolved one waits for its open one.

        What was noted at a time that lies ahead is due too: the clock has gone back, and would be waited for.
        """
        with self._lock:
            rows = self._db.execute(
                "SELECT a.*, d.* FROM deliveries d JOIN alarms a ON a.id = d.alarm"
                " WHERE d.sink = ?1 AND (d.next_at <= ?2 OR d.next_at IS NOT NULL AND d.changed_at > ?2)"
                " AND NOT (d.state = 'resolved' AND EXISTS ("
                "SELECT 1 FROM deliveries o"
                " WHERE o.alarm = d.alarm AND o.sink = d.sink AND o.state = 'open' AND o.status = 'waiting'))"
                " ORDER BY d.attempts > 0, d.next_at LIMIT ?3",
                (sink, now, limit),
            ).fetchall()
        return [_read_delivery(row) for row in rows]

    def find_next_due(self, sink: str) -> float | None:
        """Give when the next delivery of a sink is due."""
        with self._lock:
            row = self._db.execute(
                "SELECT min(next_at) FROM deliveries WHERE sink = ? AND next_at IS NOT NULL", (sink,)
            ).fetchone()
        return None if row is None else row[0]

    def begin_attempt(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Note that these are being sent: whoever is killed now knows that they may have arrived."""
        self._change(
            "UPDATE deliveries SET attempts = attempts + 1, changed_at = ? WHERE alarm = ? AND sink = ? AND state = ?",
            (now,),
            deliveries,
        )

    def take_back_attempt(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Note that what was begun was no attempt."""
        self._change(
            "UPDATE deliveries SET attempts = attempts - 1, changed_at = ? WHERE alarm = ? AND sink = ? AND state = ?",
            (now,),
            deliveries,
        )

    def note_delivered(self, deliveries: Sequence[Delivery], now: float, *, next_at: float | None) -> None:
        """Note that these have arrived, and when they are to be delivered again."""
        self._change(
            "UPDATE deliveries SET status = 'delivered', attempts = 0, next_at = ?, changed_at = ?, why = '',"
            " delivered_at = coalesce(delivered_at, ?) WHERE alarm = ? AND sink = ? AND state = ?",
            (next_at, now, now),
            deliveries,
        )

    def note_failed(
        self, deliveries: Sequence[Delivery], status: Status, now: float, *, next_at: float | None, why: str
    ) -> None:
        """Note that these have not arrived, why, and when they are tried again."""
        self._change(
            "UPDATE deliveries SET status = ?, next_at = ?, changed_at = ?, why = ?"
            " WHERE alarm = ? AND sink = ? AND state = ?",
            (status, next_at, now, why),
            deliveries,
        )

    def stop_resending(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Note that what was delivered needs no repetition any more."""
        self._change(
            "UPDATE deliveries SET status = 'delivered', next_at = NULL, changed_at = ?"
            " WHERE alarm = ? AND sink = ? AND state = ?",
            (now,),
            deliveries,
        )

    def _change(self, statement: str, values: tuple[Any, ...], deliveries: Sequence[Delivery]) -> None:
        with self.transaction(durable=False):
            self._db.executemany(statement, [(*values, one.alarm.id, one.sink, one.alarm.state) for one in deliveries])

    def disable(self, sink: str, why: str, now: float) -> None:
        """Note that a receiver wants nothing more, until somebody asks for a replay to it."""
        with self.transaction():
            self._db.execute("INSERT OR REPLACE INTO disabled VALUES (?, ?, ?)", (sink, now, why))
            self._db.execute(
                "UPDATE deliveries SET status = 'disabled', next_at = NULL, changed_at = ?, why = ?"
                " WHERE sink = ? AND next_at IS NOT NULL",
                (now, why, sink),
            )

    def note_sinks(self, sinks: Iterable[str], now: float) -> dict[str, int]:
        """Note which sinks the rules name; give how many deliveries wait for others, by sink.

        These are shown as undelivered, and made once a sink of that name is back.
        """
        names = json.dumps(list(sinks))
        with self.transaction(durable=False):
            self._db.execute(
                "UPDATE deliveries SET status = 'no_sink', next_at = NULL, changed_at = ?1, why = 'no such sink'"
                " WHERE next_at IS NOT NULL AND status = 'waiting' AND sink NOT IN (SELECT value FROM json_each(?2))",
                (now, names),
            )
            self._db.execute(
                "UPDATE deliveries SET status = 'waiting', attempts = 0, next_at = ?1, changed_at = ?1, why = ''"
                " WHERE status = 'no_sink' AND sink IN (SELECT value FROM json_each(?2))",
                (now, names),
            )
            rows = self._db.execute(
                "SELECT sink, count(*) FROM deliveries WHERE status = 'no_sink' GROUP BY sink"
            ).fetchall()
        return dict(rows)

    def read_disabled(self) -> dict[str, str]:
        """Give why each sink is disabled that is."""
        with self._lock:
            return dict(self._db.execute("SELECT sink, why FROM disabled").fetchall())

    def replay(self, alarms: Iterable[str], sink: str | None, now: float) -> int:
        """Deliver alarms again, with the ids they have; give how many deliveries that are.

        Parameters
        ----------
        alarms : iterable of str
            Their ids.
        sink : str or None
            To this one alone, which is enabled again, or to all that they were for.
        now : float
            Unix time in seconds.
        """
        changed = 0
        with self.transaction():
            for alarm in alarms:
                self._db.execute(
                    "DELETE FROM disabled WHERE sink IN"
                    " (SELECT sink FROM deliveries WHERE alarm = ?1 AND (?2 IS NULL OR sink = ?2))",
                    (alarm, sink),
                )
                changed += self._db.execute(
                    "UPDATE deliveries SET status = 'waiting', attempts = 0, next_at = ?3, changed_at = ?3, why = '',"
                    " delivered_at = NULL WHERE alarm = ?1 AND (?2 IS NULL OR sink = ?2)",
                    (alarm, sink, now),
                ).rowcount
        return changed

    def replay_undelivered(self, sink: str | None, now: float) -> tuple[int, int]:
        """Deliver again what a sink has not got and will not get by itself; what another sink has stays as it is.

        Choosing them and enabling the sink is one step: an alarm that comes meanwhile finds the sink either disabled,
        and is among them, or enabled.

        Parameters
        ----------
        sink : str or None
            To this one alone, or to all; each is enabled again where it was disabled.
        now : float
            Unix time in seconds.

        Returns
        -------
        alarms, deliveries : int
            How many there were.
        """
        with self.transaction():
            self._db.execute("DELETE FROM disabled WHERE ?1 IS NULL OR sink = ?1", (sink,))
            changed = self._db.execute(
                "UPDATE deliveries SET status = 'waiting', attempts = 0, next_at = ?3, changed_at = ?3, why = '',"
                " delivered_at = NULL WHERE status IN (SELECT value FROM json_each(?2)) AND (?1 IS NULL OR sink = ?1)"
                " RETURNING alarm",
                (sink, json.dumps(UNDELIVERED), now),
            ).fetchall()
        return len(set(changed)), len(changed)

    def find(self, alarm: str) -> Entry | None:
        """Give an alarm by its id, or by the beginning of it, where that is one alarm's."""
        with self._lock:
            rows = self._db.execute(
                "SELECT * FROM alarms WHERE substr(id, 1, ?) = ? LIMIT 2", (len(alarm), alarm)
            ).fetchall()
        return _read_entry(rows[0]) if len(rows) == 1 else None

    def list_alarms(
        self, *, rule: str | None = None, status: Status | None = None, sink: str | None = None, limit: int = 100
    ) -> list[Entry]:
        """Give alarms, the newest first.

        Parameters
        ----------
        rule : str, optional
            Only this rule's.
        status : Status, optional
            Only those that have such a delivery.
        sink : str, optional
            Only those with a delivery to this sink.
        limit : int
            At most so many.
        """
        with self._lock:
            rows = self._db.execute(
                "SELECT * FROM alarms WHERE (?1 IS NULL OR rule = ?1)"
                " AND (?2 IS NULL AND ?3 IS NULL OR EXISTS (SELECT 1 FROM deliveries WHERE alarm = alarms.id"
                " AND (?2 IS NULL OR status = ?2) AND (?3 IS NULL OR sink = ?3)))"
                " ORDER BY starts_at DESC, id LIMIT ?4",
                (rule, status, sink, limit),
            ).fetchall()
        return [_read_entry(row) for row in rows]

    def list_deliveries(self, alarm: str) -> list[Delivery]:
        """Give all deliveries of an alarm."""
        with self._lock:
            rows = self._db.execute(
                "SELECT a.*, d.* FROM deliveries d JOIN alarms a ON a.id = d.alarm WHERE d.alarm = ?"
                " ORDER BY d.state, d.sink",
                (alarm,),
            ).fetchall()
        return [_read_delivery(row) for row in rows]

    def count_deliveries(self) -> dict[tuple[str, str], int]:
        """Count deliveries by sink and status."""
        with self._lock:
            rows = self._db.execute("SELECT sink, status, count(*) FROM deliveries GROUP BY sink, status").fetchall()
        return {(sink, status): count for sink, status, count in rows}

    def read_oldest_waiting(self) -> dict[str, float]:
        """Give since when the oldest undelivered alarm waits, by sink."""
        with self._lock:
            rows = self._db.execute(
                "SELECT d.sink, min(a.starts_at) FROM deliveries d JOIN alarms a ON a.id = d.alarm"
                " WHERE d.status = 'waiting' AND d.next_at IS NOT NULL GROUP BY d.sink"
            ).fetchall()
        return dict(rows)

    def read_note(self, name: str) -> str | None:
        """Read what was noted under a name."""
        with self._lock:
            row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def write_note(self, name: str, value: str) -> None:
        """Note something under a name."""
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def remove_old(self, now: float) -> bool:
        """Remove some of what is older than `KEPT_S` and closed; tell whether there may be more."""
        old = now - KEPT_S
        removals = (
            (
                "DELETE FROM alarms WHERE id IN (SELECT id FROM alarms WHERE starts_at < ?"
                " AND (kind = 'image' OR state = 'resolved') LIMIT ?)",
                old,
            ),
            ("DELETE FROM seen WHERE image IN (SELECT image FROM seen WHERE at < ? LIMIT ?)", old),
            (
                "DELETE FROM waiting WHERE image IN (SELECT image FROM waiting WHERE answered_at < ? LIMIT ?)",
                now - _ANSWERED_S,
            ),
            (
                "DELETE FROM waiting WHERE image IN (SELECT image FROM waiting WHERE accepted_at < ? LIMIT ?)",
                now - UNANSWERED_S,
            ),
        )
        with self.transaction(durable=False):
            gone = [self._db.execute(text, (than, _REMOVED_AT_ONCE)).rowcount for text, than in removals]
        return _REMOVED_AT_ONCE in gone


_ALARM_COLUMNS = 11


def _write_says(entry: Entry) -> str:
    alarm = entry.alarm
    says = {"labels": dict(alarm.labels), "annotations": dict(alarm.annotations), "event": dict(alarm.event)}
    return json.dumps(says | {"routes": list(entry.routes)}, ensure_ascii=False, separators=(",", ":"))


def _read_entry(row: Sequence[Any]) -> Entry:
    alarm_id, rule, part, kind, severity, state, starts_at, ends_at, held_at, images, text = row
    says = json.loads(text)
    alarm = Alarm(
        alarm_id,
        rule,
        severity,
        State(state),
        says["labels"],
        says["annotations"],
        datetime.fromtimestamp(starts_at, UTC),
        None if ends_at is None else datetime.fromtimestamp(ends_at, UTC),
        says["event"],
    )
    return Entry(alarm, AlarmKind(kind), part, images, held_at, tuple(says["routes"]))


def _read_delivery(row: Sequence[Any]) -> Delivery:
    entry = _read_entry(row[:_ALARM_COLUMNS])
    _, sink, state, status, attempts, next_at, _, delivered_at, why, said = row[_ALARM_COLUMNS:]
    alarm = told = replace(entry.alarm, state=State(state))
    if said is not None:
        then = json.loads(said)
        told = replace(alarm, labels=then["labels"], annotations=then["annotations"], event=then["event"])
        if told.state is State.OPEN:  # that it has ended meanwhile is another message
            told = replace(told, ends_at=None)
    return Delivery(alarm, told, sink, Status(status), attempts, next_at, delivered_at, why)


_ABOUT = """
    SELECT id FROM alarms WHERE json_extract(says, '$.event.event_id') IN (SELECT value FROM json_each(?1))
    UNION SELECT alarm FROM members WHERE json_extract(says, '$.event_id') IN (SELECT value FROM json_each(?1))
"""


def find_alarms_about(path: Path, event_ids: str) -> list[tuple[Entry, list[Delivery]]]:
    """Find the alarms about some outcomes, and summaries that name one, whether or not 'xray alerts run' has the file.

    Parameters
    ----------
    path : Path
        The ledger's file, which is there.
    event_ids : str
        Of predictions and dead letters, as a JSON array.

    Returns
    -------
    list of (Entry, list of Delivery)
        Oldest first. Alarms are kept for `KEPT_S`.

    Raises
    ------
    JobError
        It cannot be read, or is of another version.
    """
    alarms = f"SELECT * FROM alarms WHERE id IN ({_ABOUT}) ORDER BY starts_at, id"  # noqa: S608
    entries = [_read_entry(row) for row in read_file(path, _VERSION, alarms, (event_ids,))]
    sent = (
        "SELECT a.*, d.* FROM deliveries d JOIN alarms a ON a.id = d.alarm"  # noqa: S608
        f" WHERE a.id IN ({_ABOUT}) ORDER BY d.state, d.sink"
    )
    deliveries = [_read_delivery(row) for row in read_file(path, _VERSION, sent, (event_ids,))]
    return [(entry, [one for one in deliveries if one.alarm.id == entry.alarm.id]) for entry in entries]
