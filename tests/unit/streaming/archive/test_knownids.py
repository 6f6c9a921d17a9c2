"""A row that a table has within the span is left out, a row that it has not is not, whatever was done to the table."""

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable

from schemas.deltatable import append_rows, create_table
from schemas.documents import load_tables
from schemas.errors import TableError
from streaming.archive import knownids
from streaming.archive.knownids import KnownIds
from streaming.archive.rows import Row, to_arrow
from streaming.archive.tables import join_files

_TABLE = load_tables()["features"]
_TODAY = 20_000


def row(event_id: str, day: int | None = _TODAY, near: int | None = None) -> Row:
    values = {"event_id": event_id, "date": None if day is None else np.datetime64(day, "D").item()}
    place = day if near is None else near
    return Row(event_id, day, _TODAY if place is None else place, values, 100)


def append(place: Path, *rows: Row) -> None:
    """As somebody else does it."""
    append_rows(DeltaTable(place), to_arrow(rows, _TABLE), {})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    create_table(str(tmp_path / "features"), _TABLE, {})
    return tmp_path / "features"


def new(known: KnownIds, place: Path, *rows: Row) -> list[tuple[str, int | None]]:
    return [(one.event_id, one.day) for one in known.drop_known(DeltaTable(place), rows)]


def test_what_the_table_has_within_the_span_is_left_out(place: Path) -> None:
    append(place, row("a"), row("b", _TODAY - 10), row("c", None))
    known = KnownIds(10)
    for day in (_TODAY - 10, _TODAY, _TODAY + 10):
        assert new(known, place, row("a", day), row("d", day)) == [("d", day)]
    assert new(known, place, row("a", _TODAY + 11), row("a", _TODAY - 11)) == [("a", _TODAY + 11), ("a", _TODAY - 11)]
    assert new(known, place, row("b", _TODAY), row("b", _TODAY + 1)) == [("b", _TODAY + 1)]


def test_a_row_without_a_date_is_near_every_row_and_looks_around_its_record(place: Path) -> None:
    append(place, row("a"), row("c", None))
    known = KnownIds(10)
    assert new(known, place, row("c", _TODAY - 5000), row("c", None, near=5)) == []
    assert new(known, place, row("a", None, near=_TODAY + 10)) == []
    assert new(known, place, row("a", None, near=_TODAY + 11)) == [("a", None)]


def test_repetitions_among_the_rows_count_by_the_span_too(place: Path) -> None:
    known = KnownIds(10)
    rows = [row("a"), row("b"), row("a"), row("a", _TODAY + 10), row("a", _TODAY + 11), row("b", None)]
    assert new(known, place, *rows) == [("a", _TODAY), ("a", _TODAY + 11), ("b", _TODAY)]
    assert new(known, place, row("c", None, near=3), row("c", _TODAY)) == [("c", None)]
    assert new(known, place) == []


def test_a_row_that_is_left_out_hides_no_other(place: Path) -> None:
    append(place, row("a", _TODAY - 10))
    known = KnownIds(10)
    assert new(known, place, row("a"), row("a", _TODAY + 1), row("a", _TODAY + 2)) == [("a", _TODAY + 1)]


def test_rows_that_others_wrote_meanwhile_are_seen(place: Path) -> None:
    known = KnownIds(10)
    assert new(known, place, row("a")) == [("a", _TODAY)]
    append(place, row("a"))
    assert new(known, place, row("a"), row("b")) == [("b", _TODAY)]
    append(place, row("b", _TODAY - 3))
    assert new(known, place, row("a"), row("b")) == []


def test_rows_that_were_appended_are_known_without_being_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(place, row("first of its day"))
    known, table = KnownIds(10), DeltaTable(place)
    rows = [row(secrets.token_hex(16)) for _ in range(100)]
    assert known.drop_known(table, rows) == rows
    append_rows(table, to_arrow(rows, _TABLE), {})
    known.note_appended(table, rows)
    read: list[Any] = []
    monkeypatch.setattr(knownids, "_read_ids", lambda _, paths: read.extend(paths) or iter(()))
    other = row(secrets.token_hex(16))
    assert known.drop_known(table, [other]) == [other]
    assert read == []


def test_deleted_and_restored_rows_are_new_again(place: Path) -> None:
    append(place, row("a"), row("b"))
    version = DeltaTable(place).version()
    append(place, row("c"))
    known = KnownIds(10)
    assert new(known, place, row("a"), row("c")) == []
    DeltaTable(place).delete("event_id = 'a'")
    assert new(known, place, row("a"), row("b")) == [("a", _TODAY)]
    DeltaTable(place).restore(version)
    assert new(known, place, row("a"), row("c")) == [("c", _TODAY)]


def test_joined_files_are_not_read_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        append(place, row(f"id-{number}"), row(f"undated-{number}", None))
    known = KnownIds(10)
    assert new(known, place, row("id-1")) == []
    before = DeltaTable(place)
    assert join_files(str(place)) == 8
    joined = DeltaTable(place)
    known.note_joined(before, joined)
    read: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(knownids, "_read_ids", lambda _, paths: read.extend(paths) or iter(()))
        known.drop_known(joined, [row("new")])
    assert read == []
    assert new(known, place, row("id-3"), row("undated-2"), row("new")) == [("new", _TODAY)]


def test_joining_hides_no_file_that_was_not_looked_at_yet(place: Path) -> None:
    append(place, row("a"), row("old", _TODAY - 1000))
    known = KnownIds(10)
    assert new(known, place, row("b")) == [("b", _TODAY)]  # today's ids are known from now on
    append(place, row("x"))  # somebody else's
    assert new(known, place, row("far", _TODAY - 1000)) == [("far", _TODAY - 1000)]  # looks at other dates alone
    append(place, row("old-2", _TODAY - 1000))
    for day in (_TODAY, _TODAY - 1000):
        before = DeltaTable(place)
        assert join_files(str(place), np.datetime64(day, "D").item().isoformat()) == 2
        known.note_joined(before, DeltaTable(place))
    assert new(known, place, row("x"), row("old-2", _TODAY - 1000), row("c")) == [("c", _TODAY)]


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"junk" * 1000])
def test_a_damaged_file_is_a_fault_of_its_table_and_is_named(place: Path, damage: bytes) -> None:
    append(place, row("a"))
    path = next(place.rglob("*.parquet"))
    path.write_bytes(damage)
    with pytest.raises(TableError, match=path.name):
        new(KnownIds(10), place, row("b"))


def test_ids_with_the_same_bits_are_told_apart(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(place, row("a"), row("b"))
    monkeypatch.setattr(knownids, "shorten", lambda ids: np.zeros(len(ids), np.uint64))
    assert new(KnownIds(10), place, row("a"), row("c"), row("d")) == [("c", _TODAY), ("d", _TODAY)]


@pytest.mark.parametrize("event_id", ["", "x", "é" * 40, "\x00", "0" * 32, "a" * 10_000])
def test_ids_of_any_kind(place: Path, event_id: str) -> None:
    append(place, row("other"), row(event_id + "-"))
    known = KnownIds(10)
    assert new(known, place, row(event_id)) == [(event_id, _TODAY)]
    append(place, row(event_id))
    assert new(known, place, row(event_id)) == []


def test_dates_far_away_are_forgotten_once_they_are_many(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knownids, "_KEPT_IDS", 5)
    days = [_TODAY - 100 * number for number in range(4)]
    for day in days:
        append(place, *(row(f"{day}-{number}", day) for number in range(3)))
    known = KnownIds(10)
    for day in [*days, *days]:
        assert new(known, place, row(f"{day}-1", day), row("new", day)) == [("new", day)]
        assert len(known._shorts) <= 3
