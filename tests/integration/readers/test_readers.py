"""Whoever reads the archive's tables reads the same rows: deltalake, DuckDB, and Spark with delta-spark."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from pyarrow import parquet

from schemas.documents import load_tables
from streaming.archive.archivetable import ArchiveTable
from streaming.archive.knownids import KnownIds
from streaming.archive.rows import Row
from streaming.archive.tables import clean_log, join_files
from streaming.kafka.topicids import TopicIds
from streaming.run.jars import SPARK_JARS, JarSet, resolve_jars
from tests.paths import FIXTURES, ROOT

pytestmark = pytest.mark.delta

_DELTA_JARS = JarSet(
    name="delta-spark-4.4.0",
    coordinates=("io.delta:delta-spark_4.2_2.13:4.4.0",),
    excluded=(*SPARK_JARS.excluded, "org.apache.spark"),
)
_TIMEOUT_S = 400

_NAMES = ("predictions", "features", "dead_letters")
_NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
_DAYS = (date(2026, 1, 30), date(2026, 1, 31), None)
_IDS = TopicIds("cluster", {"topic": "id"})
_SPANS = {0: range(1000)}

_VALUES: dict[str, Any] = {
    "string": "Thorax a.p. \u2013 \N{BLACK STAR}",
    "int": 7,
    "bigint": 2**40,
    "double": 0.1,
    "map<string,double>": {"normal": 0.75, "covid": 0.25},
    "array<float>": [0.5, 0.25, -1.5],
    "array<string>": ["unlike_training"],
}
_NOTHING: dict[str, Any] = {"map<string,double>": {}, "array<float>": [], "array<string>": []}


def row(name: str, number: int) -> Row:
    """A row with a value in each column, with none in any, or with empty ones; of two days, and without one."""
    day = _DAYS[number % len(_DAYS)]
    values: dict[str, Any] = {}
    for column, kind in load_tables()[name].columns.items():
        moment = _NOON + timedelta(days=number, microseconds=number)
        values[column] = (_VALUES | {"timestamp": moment}, {}, _NOTHING)[number // 3 % 3].get(kind)
    values |= {"event_id": f"{number:032x}", "date": day}
    days = None if day is None else (day - date(1970, 1, 1)).days
    return Row(values["event_id"], days, 20_484 if days is None else days, values, 100)


def write(folder: Path, name: str) -> None:
    """Write a table with all that an archive does to one in its first weeks."""
    whole = load_tables()[name]
    first = dict(list(whole.columns.items())[:-1]) if name == "predictions" else whole.columns  # ``flags`` came later
    for definition, numbers in ((replace(whole, columns=first), range(9)), (whole, range(9, 30))):
        table = ArchiveTable(str(folder), definition, "topic", "writer", KnownIds(35))
        table.claim(_IDS, _SPANS)
        for number in numbers:
            table.append([row(name, number)], {0: number})
            if number == 20:
                assert join_files(f"{folder}/{name}", writer="writer") == 21
                opened = DeltaTable(f"{folder}/{name}")
                opened.create_checkpoint()
                for commit in (folder / name / "_delta_log").glob("*.json"):
                    os.utime(commit, (0, 0))  # older than the log is kept
                clean_log(opened)
                assert not (folder / name / "_delta_log" / f"{0:020}.json").exists()
                table.reopen(_SPANS)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers") / "tables"
    for name in _NAMES:
        write(folder, name)
    return folder


def wanted(name: str) -> list[dict[str, Any]]:
    columns = load_tables()[name].columns
    made = [row(name, number) for number in range(30)]
    return [{column: one.values[column] for column in columns} for one in made]


def rows_of(table: pa.Table, name: str) -> list[dict[str, Any]]:
    maps = {column for column, kind in load_tables()[name].columns.items() if kind.startswith("map")}
    rows = [
        {column: dict(value) if column in maps and value is not None else value for column, value in one.items()}
        for one in table.to_pylist()
    ]
    return sorted(rows, key=lambda one: one["event_id"])


@pytest.mark.parametrize("name", _NAMES)
def test_deltalake_reads_what_was_written(tables: Path, name: str) -> None:
    read = rows_of(DeltaTable(tables / name).to_pyarrow_table(), name)
    for one, other in zip(read, wanted(name), strict=True):
        flags = {} if int(one["event_id"], 16) >= 9 or name != "predictions" else {"flags": None}
        assert one == other | flags


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("day", _DAYS)
def test_a_day_is_read_alone(tables: Path, name: str, day: date | None) -> None:
    table = DeltaTable(tables / name)
    all_rows = table.to_pyarrow_table()
    if day is None:
        chosen = table.to_pyarrow_dataset().to_table(filter=pc.field("date").is_null())
        same = all_rows.filter(pc.is_null(all_rows["date"]))
    else:
        chosen = table.to_pyarrow_table(filters=[("date", "=", day)])
        same = all_rows.filter(pc.equal(all_rows["date"], pa.scalar(day)))
    assert rows_of(chosen, name) == rows_of(same, name)
    assert chosen.num_rows == 10


@pytest.mark.parametrize("name", _NAMES)
def test_duckdb_reads_the_same(tables: Path, name: str) -> None:
    table = DeltaTable(tables / name)
    found = duckdb.from_arrow(table.to_pyarrow_dataset())
    assert rows_of(found.to_arrow_table(), name) == rows_of(table.to_pyarrow_table(), name)
    counts = found.aggregate("date, count(*)", "date").fetchall()
    assert dict(counts) == dict.fromkeys(_DAYS, 10)
    first = found.filter("date = DATE '2026-01-30'").project("event_id").fetchall()
    assert sorted(first) == [(f"{number:032x}",) for number in range(0, 30, 3)]


# --- Spark ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SparkRead:
    """What Spark read and did."""

    shown: str
    out: Path
    merged: Path


@pytest.fixture(scope="module")
def spark_read(tables: Path, jars: Path, tmp_path_factory: pytest.TempPathFactory) -> SparkRead:
    """Everything that is asked of Spark, in one process: its start takes the time."""
    work = tmp_path_factory.mktemp("spark")
    merged = work / "former" / "tables"
    shutil.copytree(FIXTURES / "tables-spark-release" / "tables", merged)
    for name in _NAMES:
        table = ArchiveTable(str(merged), load_tables()[name], "topic", "writer", KnownIds(35))
        table.claim(_IDS, _SPANS, find_former=lambda: {0: 3})
        assert table.append([row(name, number) for number in range(2000, 2004)], {0: 7}) == 4
    listed = ",".join(str(jar) for jar in resolve_jars(_DELTA_JARS, jars))
    arguments = [ROOT / "examples" / "read_tables.py", tables, work / "out", merged]
    submit = ["--master", "local[2]", "--conf", "spark.ui.enabled=false", "--conf", "spark.sql.session.timeZone=UTC"]
    submit += ["--conf", "spark.sql.shuffle.partitions=1", "--jars", listed, "pyspark-shell"]
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("sparkwork.py"), *arguments],
        cwd=work,
        env={**os.environ, "PYSPARK_SUBMIT_ARGS": " ".join(submit)},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return SparkRead(done.stdout, work / "out", merged)


@pytest.mark.long
@pytest.mark.spark
@pytest.mark.timeout(600)  # the first time it fetches jars
@pytest.mark.parametrize("name", _NAMES)
def test_spark_reads_the_same(tables: Path, spark_read: SparkRead, name: str) -> None:
    read = parquet.read_table(spark_read.out / "read" / name)
    assert rows_of(read, name) == rows_of(DeltaTable(tables / name).to_pyarrow_table(), name)
    assert read.column_names == list(load_tables()[name].columns)


@pytest.mark.long
@pytest.mark.spark
@pytest.mark.timeout(600)  # the first time it fetches jars
def test_the_example_counts_predictions(spark_read: SparkRead) -> None:
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in spark_read.shown.splitlines() if "|" in line
    ]
    counts = (["NULL", "6"], [_VALUES["string"], "1"])  # three more of a day are flagged
    days = ("NULL", "2026-01-30", "2026-01-31")
    assert cells == [["date", "label", "count"], *[[day, *count] for day in days for count in counts]]


@pytest.mark.long
@pytest.mark.spark
@pytest.mark.timeout(600)  # the first time it fetches jars
@pytest.mark.parametrize("name", _NAMES)
def test_a_former_table_that_was_taken_over_goes_back_to_spark(spark_read: SparkRead, name: str) -> None:
    read = rows_of(parquet.read_table(spark_read.out / "merged" / name), name)
    assert read == rows_of(DeltaTable(spark_read.merged / name).to_pyarrow_table(), name)
    ids = [one["event_id"] for one in read]
    assert len(ids) == len(set(ids))
    assert {f"{number:032x}" for number in range(2000, 2004)} <= set(ids)
    former = DeltaTable(FIXTURES / "tables-spark-release" / "tables" / name).to_pyarrow_table()["event_id"].to_pylist()
    assert set(former) <= set(ids)
    if name == "predictions":
        assert len(ids) == len(former) + 4 + 1
        assert [one["label"] for one in read if one["event_id"] in ("merged", f"{1:032x}")] == ["normal", "normal"]
        log = sorted((spark_read.merged / name / "_delta_log").glob("*.json"))[-1].read_text(encoding="utf-8")
        [commit] = [json.loads(line)["commitInfo"] for line in log.splitlines() if "commitInfo" in line]
        assert commit["operation"] == "MERGE"
