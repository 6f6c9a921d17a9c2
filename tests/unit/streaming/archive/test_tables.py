"""Upkeep of Delta tables, on tables that are written here without Spark."""

import json
import os
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, PostCommitHookProperties, write_deltalake
from typer.testing import CliRunner

from schemas.documents import load_tables
from schemas.errors import SettingsError, TableClaimedError, TableError
from streaming.archive import tables
from streaming.archive.lease import hold_tables
from streaming.archive.tables import MIN_KEEP, compact_table, describe_table, describe_tables, join_files
from xray.commands.app import app

_DAYS = (date(2026, 1, 30), date(2026, 1, 31), None)
_WEEK = timedelta(days=7)
# So that the log is cleaned by what is tested and by nothing else.
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)


def append(folder: Path, numbers: range, *, day: date | None = _DAYS[0]) -> None:
    """One commit with one file for each number."""
    for number in numbers:
        rows = pa.table({"event_id": [f"{number:032x}"], "date": pa.array([day], pa.date32())})
        write_deltalake(
            folder / "predictions", rows, mode="append", partition_by=["date"], post_commithook_properties=_NO_HOOKS
        )


def event_ids(folder: Path | str) -> list[int]:
    column = DeltaTable(f"{folder}/predictions").to_pyarrow_table()["event_id"]
    return sorted(int(text, 16) for text in column.to_pylist())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table of 3 days (one of them unknown) with 4 files each."""
    for place, day in enumerate(_DAYS):
        append(tmp_path / "tables", range(4 * place, 4 * place + 4), day=day)
    return tmp_path / "tables"


def make_older(folder: Path, days: int) -> None:
    """Put every time that the table knows into the past: of files, and of removals in the log."""
    moment = datetime.now(UTC) - timedelta(days=days)
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for line in lines:
                if "remove" in line:
                    line["remove"]["deletionTimestamp"] = int(moment.timestamp() * 1000)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if path.is_file():
            os.utime(path, (moment.timestamp(), moment.timestamp()))


def test_a_table_is_described(folder: Path) -> None:
    state = describe_table(str(folder), "predictions")

    assert state is not None
    files = list((folder / "predictions").rglob("*.parquet"))
    assert (state.version, state.versions, state.rows, state.files, state.small_files) == (11, 12, 12, 12, 12)
    assert state.bytes == sum(path.stat().st_size for path in files)
    assert (state.dead_files, state.dead_bytes) == (0, 0)
    assert state.log_bytes == sum(p.stat().st_size for p in (folder / "predictions" / "_delta_log").iterdir())
    assert not state.worth_compacting


@pytest.mark.slow
def test_a_table_with_many_small_files_is_worth_compacting(folder: Path) -> None:
    append(folder, range(100, 187))
    almost = describe_table(str(folder), "predictions")
    append(folder, range(187, 188))
    enough = describe_table(str(folder), "predictions")
    assert almost is not None
    assert enough is not None
    assert (almost.small_files, almost.worth_compacting) == (99, False)
    assert (enough.small_files, enough.worth_compacting) == (100, True)


def test_a_single_file_of_a_partition_is_not_to_be_joined(tmp_path: Path) -> None:
    for number, day in enumerate(_DAYS):
        append(tmp_path, range(number, number + 1), day=day)
    state = describe_table(str(tmp_path), "predictions")
    assert state is not None
    assert (state.files, state.small_files) == (3, 0)


def test_tables_that_are_not_there_are_said_to_be_so(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    assert describe_tables(str(folder)) == dict.fromkeys(load_tables())
    assert compact_table(str(folder), "features", keep=_WEEK) is None
    assert not folder.exists()


@pytest.mark.parametrize("as_uri", [False, True])
def test_files_are_joined_by_partition_and_rows_stay(folder: Path, as_uri: bool) -> None:
    place = folder.as_uri() if as_uri else str(folder)
    done = compact_table(place, "predictions", keep=_WEEK)

    assert done is not None
    assert (done.before.files, done.after.files, done.joined_files) == (12, 3, 12)
    assert (done.after.rows, done.after.small_files) == (12, 0)
    assert event_ids(place) == list(range(12))
    # Nothing is a week old: replaced files stay, and so does each version.
    assert (done.removed_files, done.after.dead_files) == (0, 12)
    assert DeltaTable(f"{place}/predictions", version=5).to_pyarrow_table().num_rows == 6
    again = compact_table(place, "predictions", keep=_WEEK)
    assert again is not None
    assert (again.joined_files, again.after.files) == (0, 3)


def test_a_dry_run_changes_nothing(folder: Path) -> None:
    stored = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = compact_table(str(folder), "predictions", keep=_WEEK, dry_run=True)
    assert done is not None
    assert (done.joined_files, done.removed_files, done.after) == (12, 0, done.before)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == stored


def test_what_no_kept_version_refers_to_is_removed_and_nothing_else(folder: Path) -> None:
    compact_table(str(folder), "predictions", keep=_WEEK)
    table = folder / "predictions"
    (table / "left-by-a-killed-writer.parquet").write_bytes(b"x")
    for checkpoint in (table / "_delta_log").glob("*checkpoint*"):
        checkpoint.unlink()  # it has the removals' times too; they are changed in the log alone
    make_older(folder, days=2)
    append(folder, range(12, 14), day=_DAYS[0])
    (table / "of-a-running-writer.parquet").write_bytes(b"x")
    version = DeltaTable(table).version()

    kept = compact_table(str(folder), "predictions", keep=timedelta(days=3), dry_run=True)
    assert kept is not None
    assert kept.removed_files == 0
    done = compact_table(str(folder), "predictions", keep=timedelta(hours=47))

    assert done is not None
    assert done.removed_files == 13
    assert not (table / "left-by-a-killed-writer.parquet").exists()
    assert (table / "of-a-running-writer.parquet").exists()
    assert event_ids(folder) == list(range(14))
    # What was replaced within the time to keep can still be read, what was replaced before cannot.
    assert DeltaTable(table, version=version).to_pyarrow_table().num_rows == 14
    with pytest.raises(FileNotFoundError):
        DeltaTable(table, version=3).to_pyarrow_table()


def test_old_commits_leave_the_log_once_a_checkpoint_covers_them(folder: Path) -> None:
    log = folder / "predictions" / "_delta_log"
    compact_table(str(folder), "predictions", keep=_WEEK)
    make_older(folder, days=40)  # the log's own retention is 30 days
    append(folder, range(12, 13))
    done = compact_table(str(folder), "predictions", keep=_WEEK)

    assert done is not None
    # Left are the commit that the old checkpoint is of, the new file, and its joining.
    assert (done.before.versions, done.after.versions) == (14, 3)
    assert len(list(log.glob("*.json"))) == 3
    assert json.loads((log / "_last_checkpoint").read_text())["version"] == done.after.version
    assert event_ids(folder) == list(range(13))


def test_less_than_an_hour_is_refused(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"running readers .* running writers"):
        compact_table(str(folder), "predictions", keep=MIN_KEEP - timedelta(seconds=1))
    assert describe_table(str(folder), "predictions").files == 12  # type: ignore[union-attr]


def open_first(monkeypatch: pytest.MonkeyPatch, *opened: DeltaTable) -> None:
    """Have what joins open these, as if they had been the newest versions then; after them the real newest one."""
    stale = list(opened)
    newest = tables._reopen
    monkeypatch.setattr(tables, "_reopen", lambda place, *writer: stale.pop(0) if stale else newest(place, *writer))


def test_a_lost_race_is_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_first(monkeypatch, DeltaTable(folder / "predictions"))
    DeltaTable(folder / "predictions").delete(f"event_id = '{5:032x}'")  # it was faster
    assert join_files(f"{folder}/predictions") == 11
    assert len(DeltaTable(folder / "predictions").file_uris()) == 3
    assert event_ids(folder) == [number for number in range(12) if number != 5]


def test_rows_that_were_added_meanwhile_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_first(monkeypatch, DeltaTable(folder / "predictions"))
    append(folder, range(12, 16))
    assert join_files(f"{folder}/predictions") == 12
    assert event_ids(folder) == list(range(16))


def test_races_that_are_lost_again_and_again_are_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_first(monkeypatch, *(DeltaTable(folder / "predictions") for _ in range(6)))
    DeltaTable(folder / "predictions").delete(f"event_id = '{5:032x}'")
    with pytest.raises(TableError, match="changed by another writer at each of 5 attempts"):
        join_files(f"{folder}/predictions")
    assert len(event_ids(folder)) == 11


@pytest.mark.parametrize(("day", "left"), [("2026-01-30", 9), ("2026-01-31", 9), ("", 9), ("2026-02-01", 12)])
def test_one_date_is_joined_alone(folder: Path, day: str, left: int) -> None:
    assert join_files(f"{folder}/predictions", day) == 4 * (12 - left) // 3
    files = pa.table(DeltaTable(folder / "predictions").get_add_actions(flatten=True))["partition.date"].to_pylist()
    assert len(files) == left
    assert files.count(date.fromisoformat(day) if day else None) == (1 if left < 12 else 0)
    assert event_ids(folder) == list(range(12))


@pytest.mark.parametrize("as_uri", [False, True])
def test_whoever_compacts_while_the_tables_are_held_is_refused(folder: Path, as_uri: bool) -> None:
    place = folder.as_uri() if as_uri else str(folder)
    for holder in (place, str(folder)):
        with hold_tables(holder), pytest.raises(TableClaimedError, match="another archive or compaction works on"):
            compact_table(place, "predictions", keep=_WEEK)
    assert DeltaTable(folder / "predictions").version() == 11
    assert compact_table(place, "predictions", keep=_WEEK) is not None


def test_two_joins_at_one_moment_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where there is no lock, as on an object store. Should deltalake notice it one day, the lock can go.
    stale = DeltaTable(folder / "predictions")
    compact_table(str(folder), "predictions", keep=_WEEK)
    open_first(monkeypatch, stale)
    with pytest.raises(TableError, match=r"twice at one moment, in versions 12 and 13.* restore version 12"):
        join_files(f"{folder}/predictions")
    assert len(event_ids(folder)) == 24
    DeltaTable(folder / "predictions").restore(12)
    assert event_ids(folder) == list(range(12))


def _damage_log(table: Path) -> None:
    (table / "_delta_log" / f"{0:020}.json").write_text("junk")


def _empty_log(table: Path) -> None:
    for path in (table / "_delta_log").iterdir():
        path.write_bytes(b"")


def _lose_first_commit(table: Path) -> None:
    (table / "_delta_log" / f"{0:020}.json").unlink()


@pytest.mark.parametrize("damage", [_damage_log, _empty_log, _lose_first_commit])
def test_a_damaged_table_is_a_typed_error(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder / "predictions")
    with pytest.raises(TableError, match="predictions cannot be read") as caught:
        describe_tables(str(folder))
    assert "\n" not in str(caught.value)


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command on the tables."""
    monkeypatch.setenv("XRAY_HOME", str(folder.parent))
    return lambda *words: CliRunner().invoke(app, ["tables", *words])


def test_the_commands_show_and_compact(run: Any, folder: Path) -> None:
    shown = run("show", "--json")
    assert shown.exit_code == 0
    answer = json.loads(shown.stdout)
    assert answer["tables"]["predictions"]["files"] == 12
    assert answer["tables"]["features"] is None
    assert "not there yet" in run("show").stdout
    assert json.loads(run("compact", "--dry-run", "--json").stdout)["tables"]["predictions"]["joined_files"] == 12
    assert "12 → 3" in run("compact", "--keep", "36h").stdout
    assert event_ids(folder) == list(range(12))


@pytest.mark.slow
def test_the_command_hints_at_many_small_files(run: Any, folder: Path) -> None:
    assert "xray tables compact" not in run("show").stdout
    append(folder, range(100, 200))
    assert "predictions. Join them with: xray tables compact" in run("show").stdout


@pytest.mark.parametrize("span", ["30", "7 days", "-1d", "1w"])
def test_a_span_that_is_none_is_wrong_usage(run: Any, span: str) -> None:
    assert run("compact", f"--keep={span}").exit_code == 2


def test_a_keep_below_an_hour_stops_before_anything_is_done(run: Any, folder: Path) -> None:
    result = run("compact", "--keep", "59m")
    assert isinstance(result.exception, SettingsError)
    assert len(DeltaTable(folder / "predictions").file_uris()) == 12
