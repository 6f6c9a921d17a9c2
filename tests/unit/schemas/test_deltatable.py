"""Delta tables are made from their definition, and changed by whoever was first alone."""

import datetime as dt
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from schemas.deltatable import append_rows, arrow_schema, create_table, open_table, replace_rows
from schemas.documents import Table, load_tables
from schemas.errors import TableError, TableMovedError

_TABLE = Table("notes", {"id": "string", "date": "date"}, {"id": "key", "date": "day"}, ("date",), "Notes.")


def rows(*ids: str) -> pa.Table:
    day = dt.date(2026, 1, 31)
    return pa.table({"id": list(ids), "date": pa.array([day] * len(ids), pa.date32())}, arrow_schema(_TABLE))


def make(place: Path) -> DeltaTable:
    return create_table(str(place), _TABLE, {"delta.checkpointInterval": "100", "own.name": "a"})


def stored(place: Path) -> list[str]:
    table = open_table(str(place))
    assert table is not None
    return sorted(table.to_pyarrow_table()["id"].to_pylist())


def test_a_table_has_its_columns_comments_partitions_and_properties(tmp_path: Path) -> None:
    for table in load_tables().values():
        made = create_table(str(tmp_path / table.name), table, {"own.name": "a"})
        fields = {field.name: field for field in made.schema().fields}
        assert {name: field.metadata["comment"] for name, field in fields.items()} == table.comments
        assert list(fields) == list(table.columns)
        assert tuple(made.metadata().partition_columns) == table.partition_by
        assert (made.metadata().description, made.metadata().configuration) == (table.comment, {"own.name": "a"})
        protocol = made.protocol()
        assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)  # as every reader knows it


def test_two_that_create_one_table_open_the_same(tmp_path: Path) -> None:
    first, second = make(tmp_path / "t"), make(tmp_path / "t")
    assert first.metadata().id == second.metadata().id


def test_those_that_create_a_table_at_the_same_moment_open_one_and_write_it_once(tmp_path: Path) -> None:
    n_threads = 3
    together = threading.Barrier(n_threads)

    def create(place: Path) -> tuple[str, int]:
        together.wait()
        table = make(place)
        return table.metadata().id, table.version()

    with ThreadPoolExecutor(n_threads) as threads:
        for number in range(20):  # not each time they meet
            [(table_id, version)] = set(threads.map(create, [tmp_path / str(number)] * n_threads))
            table = DeltaTable(tmp_path / str(number))
            assert (table.metadata().id, table.version()) == (table_id, version) == (table_id, 0)


@pytest.mark.parametrize("change", ["append", "properties", "replace", "compact"])
def test_an_append_lands_on_the_version_that_was_read_alone(tmp_path: Path, change: str) -> None:
    place = tmp_path / "t"
    append_rows(make(place), rows("a"), {"p": 1})
    append_rows(DeltaTable(place), rows("b"), {"p": 2})
    stale, fresh = DeltaTable(place), DeltaTable(place)
    changes: dict[str, Any] = {
        "append": lambda: append_rows(fresh, rows("c"), {"p": 3}),
        "properties": lambda: fresh.alter.set_table_properties({"own.name": "b"}, raise_if_not_exists=False),
        "replace": lambda: replace_rows(fresh, rows("d")),
        "compact": fresh.optimize.compact,
    }
    changes[change]()
    before = stored(place)
    with pytest.raises(TableMovedError):
        append_rows(stale, rows("e"), {"p": 3})
    with pytest.raises(TableMovedError):
        replace_rows(stale, rows("e"))
    assert stored(place) == before


@pytest.mark.parametrize("feature", ["clustering", "rowTracking", "domainMetadata"])
def test_a_table_that_cannot_be_written_at_all_is_not_taken_for_a_lost_race(tmp_path: Path, feature: str) -> None:
    make(tmp_path / "t")
    log = tmp_path / "t" / "_delta_log" / f"{0:020}.json"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if "protocol" in line:
            line["protocol"] = {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": [feature]}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(TableError, match="features") as told:
        append_rows(DeltaTable(tmp_path / "t"), rows("a"), {})
    assert not isinstance(told.value, TableMovedError)


def test_places_are_a_part_of_the_commit_with_and_without_rows(tmp_path: Path) -> None:
    table = make(tmp_path / "t")
    append_rows(table, rows("a"), {"p": 5, "q": 7}, {"why": "test"})
    append_rows(table, rows(), {"q": 9})
    again = DeltaTable(tmp_path / "t")
    assert [again.transaction_version(name) for name in ("p", "q", "r")] == [5, 9, None]
    assert (again.version(), stored(tmp_path / "t"), len(again.file_uris())) == (2, ["a"], 1)
    assert again.history()[1]["why"] == "test"


def test_where_there_is_no_table_there_is_none_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    assert open_table(str(tmp_path / "none")) is None
    make(tmp_path / "t")
    (tmp_path / "t" / "_delta_log" / f"{0:020}.json").write_text("{", encoding="utf-8")
    with pytest.raises(TableError, match="cannot be read"):
        open_table(str(tmp_path / "t"))


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(TableError, match="cannot be made") as told:
        create_table(str(tmp_path / "file" / "t"), _TABLE, {})
    assert "\n" not in str(told.value)
