"""The table of confirmed findings: one row an image, whoever else writes to it and whoever made it."""

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Field, write_deltalake

from schemas.deltatable import arrow_schema
from schemas.errors import JobError, TableError
from schemas.labels import LABELS_TABLE
from training.data import labelstable
from training.data.archive import features_version
from training.data.labelfile import Confirmation, LabelFile
from training.data.labelstable import match_images, read_labels, record_labels

_NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
_DAY = timedelta(days=1)
A, B, C, D = (letter * 64 for letter in "abcd")


def confirm(label: str = "ill", *digests: str, **parts: object) -> dict[str, Confirmation]:
    one = Confirmation(2, ("",), label, **parts)  # type: ignore[arg-type]
    return dict.fromkeys(digests or (A,), one)


def open_labels(tables: str, version: int | None = None) -> DeltaTable:
    return DeltaTable(f"{tables}/labels", version=version)


def stored(tables: str) -> list[tuple[str, str]]:
    """Every row as it is in the files."""
    rows = open_labels(tables).to_pyarrow_table().to_pylist()
    return sorted((row["sha256"], row["label"]) for row in rows)


def rows_of(tables: str) -> dict[str, Mapping[str, Any]]:
    rows = read_labels(tables).to_pylist()
    found = {row["sha256"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def labels_of(tables: str) -> dict[str, str]:
    return {digest: row["label"] for digest, row in rows_of(tables).items()}


def interrupt(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object], *, times: int = 1) -> None:
    """Let something happen as soon as the next reader of a table has read it, so before it writes."""
    left = [meanwhile] * times
    read = DeltaTable.to_pyarrow_table

    def read_and_stop(table: DeltaTable) -> pa.Table:
        rows = read(table)
        if left:
            left.pop()()
        return rows

    monkeypatch.setattr(DeltaTable, "to_pyarrow_table", read_and_stop)


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_a_repeated_file_changes_nothing(tmp_path: Path) -> None:
    tables = str(tmp_path)
    first = record_labels(tables, confirm(patient_id="p"), now=_NOW)
    again = record_labels(tables, confirm(patient_id="p"), now=_NOW + _DAY)
    assert (first.added, first.total, first.by_label) == (1, 1, {"ill": 1})
    assert (again.added, again.changed, again.unchanged, again.total) == (0, 0, 1, 1)
    table = open_labels(tables)
    assert table.version() == 1  # made, and written once
    assert [column.name for column in table.schema().fields] == list(LABELS_TABLE.columns)
    [row] = rows_of(tables).values()
    assert row["confirmed_at"] == row["recorded_at"] == _NOW


def test_the_newest_confirmation_wins(tmp_path: Path) -> None:
    tables = str(tmp_path)
    record_labels(tables, confirm(confirmed_at=_NOW, patient_id="p"), now=_NOW)
    older = record_labels(tables, confirm("normal", confirmed_at=_NOW - _DAY), now=_NOW)
    assert (older.older, older.changed, older.by_label) == (1, 0, {"ill": 1})
    newer = record_labels(tables, confirm("normal", confirmed_at=_NOW + _DAY), now=_NOW)
    assert (newer.changed, newer.by_label) == (1, {"normal": 1})
    others = record_labels(tables, confirm("ill", B), now=_NOW)
    assert (others.added, others.total, others.by_label) == (1, 2, {"ill": 1, "normal": 1})
    row = rows_of(tables)[A]
    assert row["patient_id"] == "p", "what is known stays where the file says nothing"
    before = open_labels(tables, version=1).to_pyarrow_table().to_pylist()
    assert [row["label"] for row in before] == ["ill"], "history stays in the versions"


def test_an_empty_batch_makes_no_table(tmp_path: Path) -> None:
    recorded = record_labels(str(tmp_path), {}, now=_NOW)
    assert (recorded.total, recorded.by_label) == (0, {})
    assert not (tmp_path / "labels").exists()
    assert read_labels(str(tmp_path)).schema.names == list(LABELS_TABLE.columns)


@pytest.mark.slow
def test_files_stay_few_and_no_version_goes(tmp_path: Path) -> None:
    tables = str(tmp_path)
    most = 0
    for number in range(110):
        recorded = record_labels(tables, confirm("ill", f"{number:064d}"), now=_NOW)
        most = max(most, len(open_labels(tables).file_uris()))
    assert most == 64
    record_labels(tables, confirm("normal", f"{7:064d}"), now=_NOW)
    assert len(open_labels(tables).file_uris()) == 1
    assert (recorded.total, len(rows_of(tables))) == (110, 110)
    assert open_labels(tables, version=5).to_pyarrow_table().num_rows == 5
    assert (tmp_path / "labels" / "_delta_log" / f"{100:020}.checkpoint.parquet").exists()
    assert open_labels(tables).version() == 111


# --- several at once --------------------------------------------------------------------------------------------------


def _compact(tables: str) -> None:
    table = open_labels(tables)
    table.optimize.compact()
    assert table.history(1)[0]["operation"] == "OPTIMIZE"


_MEANWHILE: dict[str, tuple[Callable[[str], object], dict[str, str]]] = {
    "the same": (lambda tables: record_labels(tables, confirm("ill", B, C), now=_NOW), {}),
    "another image": (lambda tables: record_labels(tables, confirm("ill", D), now=_NOW), {D: "ill"}),
    "the same images, older": (
        lambda tables: record_labels(tables, confirm("normal", B, C, confirmed_at=_NOW - _DAY), now=_NOW),
        {},
    ),
    "the same images, newer": (
        lambda tables: record_labels(tables, confirm("normal", B, C, confirmed_at=_NOW + _DAY), now=_NOW),
        {B: "normal", C: "normal"},
    ),
    "another is corrected": (
        lambda tables: record_labels(tables, confirm("ill", A, confirmed_at=_NOW + _DAY), now=_NOW),
        {A: "ill"},
    ),
    "files are joined": (_compact, {}),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("case", _MEANWHILE)
def test_a_recorder_that_was_frozen_between_reading_and_writing_doubles_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, known: bool
) -> None:
    tables = str(tmp_path)
    record_labels(tables, confirm("normal", A), now=_NOW)
    record_labels(tables, confirm("ill", "e" * 64), now=_NOW)
    if known:  # so the frozen one replaces rows, else it appends
        record_labels(tables, confirm("normal", B, confirmed_at=_NOW - 2 * _DAY), now=_NOW)
    meanwhile, then = _MEANWHILE[case]
    batch = confirm("ill", B, C, confirmed_at=_NOW)
    interrupt(monkeypatch, lambda: meanwhile(tables))
    recorded = record_labels(tables, batch, now=_NOW)
    wanted = {A: "normal", B: "ill", C: "ill", "e" * 64: "ill", **then}
    assert stored(tables) == sorted(wanted.items())
    assert recorded.total == len(wanted)

    version = open_labels(tables).version()
    again = record_labels(tables, batch, now=_NOW)
    assert (again.added, again.changed, again.total) == (0, 0, len(wanted))
    assert open_labels(tables).version() == version


@pytest.mark.parametrize("digests", [(A,), (B,), (A, B)])
def test_two_that_make_the_table_leave_one_with_the_rows_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digests: tuple[str, ...]
) -> None:
    tables = str(tmp_path)
    real, others = labelstable.create_table, [confirm("ill", *digests)]

    def create(*arguments: Any) -> DeltaTable:
        if others:
            record_labels(tables, others.pop(), now=_NOW)
        return real(*arguments)

    monkeypatch.setattr(labelstable, "create_table", create)
    recorded = record_labels(tables, confirm("ill", A), now=_NOW)
    assert stored(tables) == [(digest, "ill") for digest in sorted({A, *digests})]
    assert (recorded.added, recorded.unchanged) == ((0, 1) if A in digests else (1, 0))


def test_many_that_begin_at_once_all_count(tmp_path: Path) -> None:
    tables, failures = str(tmp_path), []
    ready = threading.Barrier(4)

    def record(number: int) -> None:
        ready.wait()
        try:
            for batch in range(3):
                own = [f"{number}{batch}{i:062d}" for i in range(5)]
                record_labels(tables, confirm(f"by {number}", A, *own))
        except Exception as exc:  # shown by the assertion
            failures.append(exc)

    threads = [threading.Thread(target=record, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = [digest for digest, _ in stored(tables)]
    assert len(found) == len(set(found)) == 1 + 4 * 3 * 5
    assert [row["label"] for row in rows_of(tables).values()].count("by 2") >= 15


def test_one_that_is_always_behind_gives_up_and_has_written_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = str(tmp_path)
    record_labels(tables, confirm("ill", A), now=_NOW)
    others: list[str] = []

    def be_first() -> None:
        others.append(f"{len(others):064d}")
        write_deltalake(f"{tables}/labels", _rows("ill", others[-1]), mode="append")

    interrupt(monkeypatch, be_first, times=20)
    with pytest.raises(JobError, match="was written by others at each of 20 attempts"):
        record_labels(tables, confirm("ill", B), now=_NOW)
    assert [digest for digest, _ in stored(tables)] == [*others, A]
    assert len(others) == 20


# --- tables of others -------------------------------------------------------------------------------------------------


def _rows(label: str, *digests: str, at: datetime = _NOW, recorded: datetime = _NOW) -> pa.Table:
    about = {"label": label, "patient_id": "p", "confirmed_at": at, "recorded_at": recorded}
    return pa.Table.from_pylist([{"sha256": digest, **about} for digest in digests], arrow_schema(LABELS_TABLE))


def make_former(tables: str) -> DeltaTable:
    """Make a table of two images as former releases did: with a MERGE, whose files have another kind of text."""
    place = f"{tables}/labels"
    description = "One row per image."
    DeltaTable.create(place, schema=arrow_schema(LABELS_TABLE), mode="ignore", name="labels", description=description)
    for digest in (A, B):
        (
            DeltaTable(place)
            .merge(_rows("ill", digest), predicate="old.sha256 = new.sha256", source_alias="new", target_alias="old")
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .execute()
        )
    return DeltaTable(place)


def _recast(rows: pa.Table, text: pa.DataType) -> pa.Table:
    fields = [pa.field(f.name, text if f.type == pa.string() else f.type) for f in rows.schema]
    return rows.cast(pa.schema(fields))


@pytest.mark.parametrize(
    "text", [None, pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_a_table_that_exists_is_read_and_written(tmp_path: Path, text: pa.DataType | None) -> None:
    tables = str(tmp_path)
    table_id = make_former(tables).metadata().id
    if text is not None:
        write_deltalake(f"{tables}/labels", _recast(_rows("ill", C), text), mode="append")
    else:
        record_labels(tables, confirm("ill", C, patient_id="p"), now=_NOW)
    assert read_labels(tables).schema.field("sha256").type == pa.string()

    unchanged = record_labels(tables, confirm("ill", A, B, C), now=_NOW)
    assert (unchanged.unchanged, unchanged.total) == (3, 3)
    added = record_labels(tables, confirm("ill", D), now=_NOW)
    changed = record_labels(tables, confirm("normal", B, C), now=_NOW)
    assert (added.added, changed.changed) == (1, 2)
    assert labels_of(tables) == {A: "ill", B: "normal", C: "normal", D: "ill"}
    assert [rows_of(tables)[digest]["patient_id"] for digest in (A, B, C, D)] == ["p", "p", "p", None]
    assert open_labels(tables).metadata().id == table_id


def test_columns_that_a_later_release_has_added_keep_their_values(tmp_path: Path) -> None:
    tables = str(tmp_path)
    make_former(tables).alter.add_columns([Field("remark", "string")])
    remarked = _rows("ill", C).append_column("remark", pa.array(["kept"]))
    write_deltalake(f"{tables}/labels", remarked, mode="append")
    for batch in (confirm("ill", D), confirm("normal", A, C)):
        record_labels(tables, batch, now=_NOW)
    found = {row["sha256"]: row["remark"] for row in open_labels(tables).to_pyarrow_table().to_pylist()}
    assert found == {A: None, B: None, C: "kept", D: None}
    assert list(read_labels(tables).schema.names) == list(LABELS_TABLE.columns)


def _join_twice(tables: str) -> None:
    for table in [open_labels(tables), open_labels(tables)]:
        table.optimize.compact()


def _append(tables: str, rows: pa.Table) -> None:
    write_deltalake(f"{tables}/labels", rows, mode="append")


_DOUBLED: dict[str, tuple[Callable[[str], object], str]] = {
    "two joined at once": (_join_twice, "ill"),
    "the same again": (lambda tables: _append(tables, _rows("ill", A, B)), "ill"),
    "older": (lambda tables: _append(tables, _rows("normal", A, at=_NOW - _DAY)), "ill"),
    "newer": (lambda tables: _append(tables, _rows("normal", A, at=_NOW + _DAY)), "normal"),
    "as old, recorded before": (lambda tables: _append(tables, _rows("normal", A, recorded=_NOW - _DAY)), "ill"),
    "as old, recorded later": (lambda tables: _append(tables, _rows("normal", A, recorded=_NOW + _DAY)), "normal"),
}


@pytest.mark.parametrize("batch", [confirm("ill", C), confirm("normal", B, confirmed_at=_NOW + _DAY)])
@pytest.mark.parametrize("case", _DOUBLED)
def test_rows_that_former_releases_have_doubled_become_one(
    tmp_path: Path, case: str, batch: dict[str, Confirmation]
) -> None:
    tables = str(tmp_path)
    make_former(tables)
    double, label = _DOUBLED[case]
    double(tables)
    assert len(stored(tables)) > 2
    assert labels_of(tables) == {A: label, B: "ill"}
    record_labels(tables, batch, now=_NOW)
    wanted = {A: label, B: "ill"} | {digest: one.label for digest, one in batch.items()}
    assert stored(tables) == sorted(wanted.items())


# --- what cannot be read or written -----------------------------------------------------------------------------------


_FILE = LabelFile(("sha256",), tuple(confirm().values()), ())


_READERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "read_labels": ("labels", read_labels),
    "record_labels": ("labels", lambda folder: record_labels(folder, confirm())),
    "match_images": ("features", lambda folder: match_images(folder, _FILE)),
    "features_version": ("features", features_version),
}


@pytest.mark.parametrize("reader", _READERS)
def test_a_damaged_log_is_told_in_one_line(tmp_path: Path, reader: str) -> None:
    name, use = _READERS[reader]
    write_deltalake(tmp_path / name, _rows("ill", A))
    (tmp_path / name / "_delta_log" / f"{0:020}.json").write_text("{", encoding="utf-8")
    with pytest.raises(TableError, match=rf"{name}/? cannot be read: ") as told:
        use(str(tmp_path))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("reader", ["read_labels", "record_labels", "match_images"])
def test_a_file_that_is_gone_is_told_in_one_line(tmp_path: Path, reader: str) -> None:
    name, use = _READERS[reader]
    write_deltalake(tmp_path / name, _rows("ill", A))
    [file] = (tmp_path / name).glob("*.parquet")
    file.unlink()
    with pytest.raises(TableError, match=rf"{name}/? cannot be read: ") as told:
        use(str(tmp_path))
    assert "\n" not in str(told.value)


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(TableError, match=r"labels cannot be made: ") as told:
        record_labels(str(tmp_path / "file"), confirm())
    assert "\n" not in str(told.value)
