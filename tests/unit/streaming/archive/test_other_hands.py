"""A table that others change too: analysts by hand, a second archive. Rows stay single and complete, or it is told."""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Field, write_deltalake
from deltalake.schema import PrimitiveType

import streaming.archive.upkeep
from schemas import deltatable
from schemas.deltatable import append_rows, arrow_schema
from schemas.documents import load_tables
from schemas.errors import TableClaimedError, TableError, TableMovedError
from streaming.archive.archivetable import WRITER_PROPERTY, ArchiveTable
from streaming.archive.knownids import KnownIds
from streaming.archive.rows import Row
from streaming.archive.tables import compact_table, join_files
from streaming.archive.upkeep import Upkeep
from streaming.kafka.topicids import TopicIds
from streaming.settings import ArchiveSettings

pytestmark = pytest.mark.slow

NAME, TOPIC = "dead_letters", "xray.deadletters"
TABLE = load_tables()[NAME]
IDS = TopicIds("cluster", {TOPIC: "topic-id"})
SPANS = {0: range(1000)}
DAY = 20_484  # 2026-01-31


def make_rows(numbers: Sequence[int], day: int | None = DAY) -> list[Row]:
    date = None if day is None else datetime.fromtimestamp(86_400 * day, UTC).date()
    rows = []
    for number in numbers:
        values = {"event_id": f"{number:032x}", "date": date, "error_message": "PATIENT", "payload_bytes": 5}
        rows.append(Row(values["event_id"], day, DAY, values, 1024))
    return rows


class Filled:
    """A table with its archive, which has what ``range(n)`` names."""

    def __init__(self, folder: Path, writer: str = "first") -> None:
        self.folder = folder
        self.place = folder / NAME
        self.writer = writer
        self.known = KnownIds(35)
        self.table = ArchiveTable(str(folder), TABLE, TOPIC, writer, self.known)

    def claim(self) -> "Filled":
        self.table.claim(IDS, SPANS)
        return self

    def bring(self, numbers: Sequence[int], day: int | None = DAY) -> None:
        """Append; where that fails, open the table again and append once more, as an archive does."""
        rows = make_rows(numbers, day)
        try:
            self.table.append(rows, {0: numbers[-1] + 1})
        except TableError:
            self.table.reopen(SPANS)
            self.table.append(rows, {0: numbers[-1] + 1})

    def upkeep(self, **settings: Any) -> Upkeep:
        return Upkeep(str(self.place), self.writer, ArchiveSettings(**settings))

    def ids(self) -> list[int]:
        found = DeltaTable(self.place).to_pyarrow_table(columns=["event_id"])["event_id"].to_pylist()
        return sorted(int(text, 16) for text in found)


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    filled = Filled(tmp_path / "tables").claim()
    for number in range(4):
        filled.bring([number])
    return filled


def open_again(filled: Filled) -> DeltaTable:
    return DeltaTable(filled.place)


# --- what analysts may do ---------------------------------------------------------------------------------------------


def vacuum(filled: Filled) -> None:
    open_again(filled).vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)


HARMLESS: dict[str, Callable[[Filled], Any]] = {
    "optimize": lambda filled: open_again(filled).optimize.compact(),
    "z-order": lambda filled: open_again(filled).optimize.z_order(["sha256"]),
    "vacuum": vacuum,
    "optimize and vacuum": lambda filled: (open_again(filled).optimize.compact(), vacuum(filled)),
    "update": lambda filled: open_again(filled).update(
        predicate="payload_bytes = 5", updates={"reason": "'looked at'"}
    ),
    "checkpoint": lambda filled: open_again(filled).create_checkpoint(),
    "a property": lambda filled: open_again(filled).alter.set_table_properties({"delta.checkpointInterval": "7"}),
    "a column": lambda filled: open_again(filled).alter.add_columns([Field("note", PrimitiveType("string"))]),
    "a column with values": lambda filled: write_deltalake(
        filled.place,
        DeltaTable(filled.place).to_pyarrow_table().append_column("note", pa.array(["seen"] * 4)),
        mode="overwrite",
        schema_mode="overwrite",
        partition_by=["date"],
    ),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_appends_go_on_and_nothing_is_twice(filled: Filled, what: str) -> None:
    HARMLESS[what](filled)
    filled.bring(range(6))  # all come again, and two new ones

    assert filled.ids() == [*range(6)]
    later = Filled(filled.folder, "later").claim()  # the next start
    later.bring(range(8))
    assert later.ids() == [*range(8)]


@pytest.mark.parametrize("deleted", [[1], [0, 3], [0, 1, 2, 3]])
def test_rows_that_were_deleted_come_again_with_their_records(filled: Filled, deleted: list[int]) -> None:
    listed = ", ".join(f"'{number:032x}'" for number in deleted)
    open_again(filled).delete(f"event_id IN ({listed})")
    filled.bring([4])
    assert filled.ids() == sorted({*range(5)} - {*deleted})

    filled.bring(range(5))

    assert filled.ids() == [*range(5)]


@pytest.mark.parametrize("before", range(3), ids=lambda number: f"{number} appends before")
def test_rows_that_restore_took_away_come_again(filled: Filled, before: int) -> None:
    for number in range(before):
        filled.bring([4 + number])
    open_again(filled).restore(3)
    with pytest.raises(TableMovedError):
        filled.table.append(make_rows([50]), {0: 51})
    filled.table.reopen(SPANS)
    assert filled.table.places == {0: 0}

    filled.bring(range(8))

    assert filled.ids() == [*range(8)]


def rows_of_others(numbers: Sequence[int]) -> pa.Table:
    values = [row.values for row in make_rows(numbers)]
    return pa.Table.from_pylist([dict(value) for value in values], schema=arrow_schema(TABLE))


REFUSED: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "renamed": (lambda rows: rename(rows, "reason", "why"), "reason is missing, wanted string"),
    "gone": (lambda rows: rows.drop_columns(["payload_bytes"]), "payload_bytes is missing, wanted long"),
    "as text": (lambda rows: convert(rows, "payload_bytes", pa.string()), "payload_bytes is string, wanted long"),
    "narrower": (lambda rows: convert(rows, "payload_bytes", pa.int32()), "payload_bytes is integer, wanted long"),
    "as a number": (
        lambda rows: convert(rows.drop_columns(["error_message"]), "error_message", pa.int64()),
        "error_message is long, wanted string",
    ),
}


def rename(rows: pa.Table, old: str, new: str) -> pa.Table:
    return rows.rename_columns([new if name == old else name for name in rows.column_names])


def convert(rows: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    if name not in rows.column_names:
        return rows.append_column(name, pa.nulls(len(rows), kind))
    return rows.set_column(rows.schema.get_field_index(name), name, rows[name].cast(kind))


@pytest.mark.parametrize("how", REFUSED)
def test_a_column_that_was_changed_is_named_and_no_value_is(filled: Filled, how: str) -> None:
    change, told = REFUSED[how]
    rows = change(DeltaTable(filled.place).to_pyarrow_table())
    write_deltalake(filled.place, rows, mode="overwrite", schema_mode="overwrite", partition_by=["date"])

    with pytest.raises(TableError, match="has other columns than its rows: ") as refused:
        filled.bring(range(6))

    assert str(refused.value).endswith(told)
    assert "PATIENT" not in str(refused.value)
    assert DeltaTable(filled.place).count() == 4


@pytest.mark.parametrize("how", ["as text", "narrower", "as a number"])
def test_nor_is_such_a_table_claimed(filled: Filled, how: str) -> None:
    rows = REFUSED[how][0](DeltaTable(filled.place).to_pyarrow_table())
    write_deltalake(filled.place, rows, mode="overwrite", schema_mode="overwrite", partition_by=["date"])
    with pytest.raises(TableError, match=REFUSED[how][1]):
        Filled(filled.folder, "later").claim()


FORBIDDEN = {
    "a number": "payload_bytes > 5",
    "text": "error_message <> 'PATIENT'",
    "a date": "date > '2026-03-01'",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_rows_that_a_check_forbids_are_not_quoted_and_leave_no_file(filled: Filled, what: str) -> None:
    open_again(filled).delete()
    open_again(filled).alter.add_constraint({"own": FORBIDDEN[what]})
    filled.table.reopen(SPANS)
    before = {path.name for path in filled.place.rglob("*.parquet")}

    for _ in range(3):
        with pytest.raises(TableError, match="cannot be written: ") as refused:
            filled.bring(range(6))
        filled.table.reopen(SPANS)
        assert not any(word in str(refused.value) for word in ("PATIENT", "000000", "2026-01"))
        assert "\n" not in str(refused.value)

    assert {path.name for path in filled.place.rglob("*.parquet")} == before
    open_again(filled).alter.drop_constraint("own")
    filled.bring(range(6))
    assert filled.ids() == [*range(6)]


@pytest.mark.parametrize("day", [DAY, DAY + 40, None])
def test_an_append_that_fails_while_the_log_is_away_leaves_its_file_to_the_clean_up(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, day: int | None
) -> None:
    before = {path.name for path in filled.place.rglob("*.parquet")}
    log, away = filled.place / "_delta_log", filled.place / "_away"

    def hide_log(*_: object) -> None:
        monkeypatch.undo()
        log.rename(away)
        log.write_bytes(b"")

    write = filled.known.drop_known

    def drop_known_and_hide(table: DeltaTable, rows: Sequence[Row]) -> list[Row]:
        found = write(table, rows)
        hide_log()
        return found

    monkeypatch.setattr(filled.known, "drop_known", drop_known_and_hide)
    with pytest.raises(TableError, match="cannot be written"):
        filled.table.append(make_rows([4, 5], day), {0: 6})
    # What the log says is unknown then: nothing is removed before it can be read.
    assert len({path.name for path in filled.place.rglob("*.parquet")} - before) == 1

    log.unlink()
    away.rename(log)
    filled.table.reopen(SPANS)
    filled.bring([4, 5], day)
    assert filled.ids() == [*range(6)]


# --- two that both live -----------------------------------------------------------------------------------------------


def test_who_was_there_before_ends_at_its_next_append(filled: Filled) -> None:
    other = Filled(filled.folder, "second").claim()
    with pytest.raises(TableClaimedError, match="is filled by another archive since"):
        filled.bring(range(6))
    other.bring(range(6))
    assert other.ids() == [*range(6)]


@pytest.mark.parametrize("what", ["joins", "log", "dead files"])
def test_who_was_there_before_ends_at_its_next_upkeep(
    filled: Filled, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nothing to append, so it does not know yet; of two joins at one moment both would land."""
    upkeep = filled.upkeep(compact_files=2 if what == "joins" else 1000)
    upkeep.turn(filled.table.opened)
    monkeypatch.setattr(streaming.archive.upkeep, "_LOOK_EVERY", 0)
    if what == "log":
        monkeypatch.setattr(streaming.archive.upkeep, "_CHECKPOINT_EVERY", 1)
    if what == "dead files":
        monkeypatch.setattr(upkeep, "_vacuum_at", 0.0)
    other = Filled(filled.folder, "second").claim()
    before = sorted(path.name for path in filled.place.rglob("*"))

    with pytest.raises(TableClaimedError, match="is filled by another archive since"):
        upkeep.turn(filled.table.opened)

    assert sorted(path.name for path in filled.place.rglob("*")) == before
    other.bring(range(6))
    assert other.ids() == [*range(6)]


def test_a_join_that_another_archive_interrupts_is_not_tried_again(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first try fails, as the claim moved the table; a second one would race with the other's own joins."""

    def open_and_lose(place: str) -> DeltaTable | None:
        monkeypatch.undo()
        table = deltatable.open_table(place)
        Filled(filled.folder, "second").claim()
        return table

    monkeypatch.setattr("streaming.archive.archivetable.open_table", open_and_lose)
    with pytest.raises(TableClaimedError, match="is filled by another archive since"):
        join_files(str(filled.place), writer=filled.writer)
    assert filled.ids() == [*range(4)]


def test_a_compaction_by_hand_claims_tables_that_it_cannot_lock(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, which locks no folder: "Bad file descriptor"."""

    def refuse(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr("streaming.archive.lease.fcntl.flock", refuse)
    compaction = compact_table(str(filled.folder), NAME, keep=timedelta(days=7))

    assert compaction is not None
    assert compaction.joined_files == 4
    assert str(open_again(filled).metadata().configuration[WRITER_PROPERTY]).startswith("compaction ")
    with pytest.raises(TableClaimedError):
        filled.bring(range(6))
    assert Filled(filled.folder, "later").claim().ids() == [*range(4)]


# --- files that others wrote ------------------------------------------------------------------------------------------


def make_old(folder: Path, days: int) -> None:
    moment = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    for path in folder.rglob("*.parquet"):
        os.utime(path, (moment, moment))


@pytest.mark.parametrize("what", ["append", "optimize", "update"])
def test_files_that_others_wrote_while_nothing_came_in_are_not_dead(
    filled: Filled, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive has opened the table before, and cleans up when those files are as old as what it removes."""
    upkeep = filled.upkeep(compact_files=1000)
    monkeypatch.setattr(upkeep, "_vacuum_at", 0.0)
    if what == "append":
        append_rows(open_again(filled), rows_of_others([70, 71]), {})
    else:
        HARMLESS[what](filled)
    make_old(filled.place, 8)

    assert upkeep.turn(filled.table.opened)

    assert filled.ids() == [*range(4), *([70, 71] if what == "append" else [])]
    assert Counter(filled.ids()).most_common(1)[0][1] == 1


def test_an_old_copy_of_a_table_that_is_put_back_is_filled_again(filled: Filled, tmp_path: Path) -> None:
    shutil.copytree(filled.place, tmp_path / "copy")
    filled.bring([4, 5])
    shutil.rmtree(filled.place)
    (tmp_path / "copy").rename(filled.place)

    with pytest.raises(TableError, match="cannot be written"):
        filled.table.append(make_rows([6]), {0: 7})
    filled.table.reopen(SPANS)
    assert filled.table.places == {0: 4}
    filled.bring([4, 5, 6])

    assert filled.ids() == [*range(7)]


def test_a_table_that_is_deleted_is_not_written_to(filled: Filled, caplog: pytest.LogCaptureFixture) -> None:
    """A commit without those before it would be no table, and stand in the way of a new one."""
    shutil.rmtree(filled.place)
    with caplog.at_level(logging.INFO), pytest.raises(TableError, match="cannot be written"):
        filled.table.append(make_rows([6]), {0: 7})
    with pytest.raises(TableError, match="was removed meanwhile"):
        filled.table.reopen(SPANS)
    assert not (filled.place / "_delta_log").exists()
    later = Filled(filled.folder, "later").claim()
    later.bring(range(7))
    assert later.ids() == [*range(7)]
