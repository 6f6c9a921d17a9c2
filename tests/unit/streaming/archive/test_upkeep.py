"""A table that is written often stays small: its files, its log, and what killed writers left."""

import logging
import os
import shutil
import time
from datetime import date
from pathlib import Path

import pytest
from deltalake import DeltaTable

from schemas.documents import load_tables
from schemas.errors import TableError
from streaming.archive import upkeep
from streaming.archive.archivetable import ArchiveTable
from streaming.archive.knownids import KnownIds
from streaming.archive.rows import Row
from streaming.archive.upkeep import Upkeep
from streaming.kafka.topicids import TopicIds
from streaming.settings import ArchiveSettings

pytestmark = pytest.mark.slow

_NAME, _TOPIC = "features", "xray.features"
_SPANS = {0: range(1000)}
_DAYS = (date(2026, 1, 30), date(2026, 1, 31), None)


def row(event_id: str, day: date | None) -> Row:
    number = None if day is None else (day - date(1970, 1, 1)).days
    values = {"event_id": event_id, "date": day}
    return Row(event_id, number, 20_000 if number is None else number, values, 100)


class Writer:
    """Appends and looks after its table, as the archive does."""

    def __init__(self, folder: Path, **settings: int) -> None:
        self.place = folder / _NAME
        self.known = KnownIds(35)
        self.table = ArchiveTable(str(folder), load_tables()[_NAME], _TOPIC, "w", self.known)
        self.table.claim(TopicIds("c", {_TOPIC: "t"}), _SPANS)
        self.upkeep = Upkeep(str(self.place), "w", ArchiveSettings(**settings))
        self.count = 0

    def append(self, day: date | None, times: int = 1) -> None:
        for _ in range(times):
            self.count += 1
            assert self.table.append([row(f"id-{self.count}", day)], {0: self.count}) == 1
            self.turn()

    def turn(self) -> bool:
        before = self.table.opened
        if not self.upkeep.turn(before):
            return False
        self.table.reopen(_SPANS)
        if self.table.version == before.version() + 1:
            self.known.note_joined(before, self.table.opened)
        return True

    @property
    def files(self) -> dict[str, int]:
        """Files of the newest version, by folder."""
        found: dict[str, int] = {}
        for uri in DeltaTable(self.place).file_uris():
            folder = uri.split("/")[-2].removeprefix("date=")
            found[folder] = found.get(folder, 0) + 1
        return found

    @property
    def rows(self) -> int:
        table = DeltaTable(self.place).to_pyarrow_table(columns=["event_id"])["event_id"]
        assert len(set(table.to_pylist())) == len(table)
        return len(table)


def test_small_files_of_a_date_are_joined_once_they_are_many(tmp_path: Path) -> None:
    writer = Writer(tmp_path, compact_files=12)
    for day in _DAYS:
        writer.append(day, 11)
    assert sum(writer.files.values()) == 33
    for day in _DAYS:
        writer.append(day, 11)
    # It looks every ten commits, so a few more than twelve may be there.
    assert all(count < 22 for count in writer.files.values())
    assert writer.upkeep.joined >= 36
    assert writer.rows == 66
    assert writer.table.places == {0: 66}


def test_without_upkeep_nothing_is_touched(tmp_path: Path) -> None:
    writer = Writer(tmp_path, compact_files=0)
    writer.append(_DAYS[0], 120)
    assert writer.files == {"2026-01-30": 120}
    assert not (writer.place / "_delta_log" / "_last_checkpoint").exists()


def test_days_that_are_over_are_tidied_now_and_then(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for day in _DAYS:
        writer.append(day, 2)
    assert not writer.turn()
    writer.upkeep._tidy_at = 0.0
    assert writer.turn()
    assert set(writer.files.values()) == {1}
    assert writer.rows == 6


def test_the_log_is_bounded_however_many_commits_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_CHECKPOINT_EVERY", 20)
    writer = Writer(tmp_path, compact_files=10)
    properties = {"delta.logRetentionDuration": "interval 0 seconds"}
    DeltaTable(writer.place).alter.set_table_properties(properties)
    writer.table.reopen(_SPANS)
    log = writer.place / "_delta_log"
    most = 0
    for _ in range(100):
        writer.append(_DAYS[0])
        most = max(most, len(list(log.iterdir())))
    assert most < 60
    assert writer.rows == 100
    assert DeltaTable(writer.place).transaction_version("xray-archive/c/t/0") == 100


def test_what_nothing_refers_to_is_removed_once_it_is_old(tmp_path: Path) -> None:
    writer = Writer(tmp_path, keep_days=2)
    writer.append(_DAYS[0], 2)
    names = {"old.parquet": 3 * 86_400, "young.parquet": 86_400}
    for name, age_s in names.items():
        (writer.place / name).write_bytes(b"x")
        os.utime(writer.place / name, (time.time() - age_s,) * 2)
    assert not writer.turn()
    writer.upkeep._vacuum_at = 0.0
    assert writer.turn()
    assert [name for name in names if (writer.place / name).exists()] == ["young.parquet"]
    assert not writer.turn()  # a day later again
    assert writer.rows == 2


@pytest.mark.parametrize("age_days", [0.5, 2])
def test_one_that_ends_soon_does_what_is_due_once_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_days: float
) -> None:
    writer = Writer(tmp_path, keep_days=2)
    for day in _DAYS:
        writer.append(day, 2)
    (writer.place / "old.parquet").write_bytes(b"x")
    os.utime(writer.place / "old.parquet", (time.time() - 3 * 86_400,) * 2)
    now = time.time() + age_days * 86_400
    monkeypatch.setattr(upkeep.time, "time", lambda: now)
    assert writer.upkeep.finish(writer.table.opened) == (age_days > 1)
    assert (writer.place / "old.parquet").exists() == (age_days < 1)
    assert set(writer.files.values()) == ({1} if age_days > 1 else {2})
    monkeypatch.undo()
    again = Writer(tmp_path, keep_days=2)  # the next one, a little later
    assert not again.upkeep.finish(again.table.opened)
    assert writer.rows == 6


@pytest.mark.parametrize("what", ["join_files", "clean_log", "remove_dead_files"])
def test_upkeep_that_fails_is_told_and_left_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    monkeypatch.setattr(upkeep, "_CHECKPOINT_EVERY", 4)
    writer = Writer(tmp_path, compact_files=2)
    writer.upkeep._vacuum_at = 0.0
    calls: list[str] = []

    def fail(*_: object, **__: object) -> int:
        calls.append(what)
        msg = "deletion vectors are not supported"
        raise TableError(msg)

    monkeypatch.setattr(upkeep, what, fail)
    with caplog.at_level(logging.WARNING):
        writer.append(_DAYS[0], 30)
    assert calls == [what]
    assert (writer.upkeep.failures, writer.rows) == (1, 30)
    assert [message.rpartition(": ")[2] for message in caplog.messages] == ["deletion vectors are not supported"]


def test_a_table_that_was_removed_fails_no_turn(tmp_path: Path) -> None:
    writer = Writer(tmp_path, compact_files=2)
    writer.append(_DAYS[0], 2)
    table = writer.table.opened
    shutil.rmtree(writer.place)
    writer.upkeep._looked_at = -100
    assert writer.upkeep.turn(table)
    assert writer.upkeep.failures == 1
