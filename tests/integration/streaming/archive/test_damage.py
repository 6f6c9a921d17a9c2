"""Tables that are lost, put back, restored or changed under the archive: it fills them again, each row once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

import streaming.archive.upkeep
from schemas.errors import TableError
from streaming.archive.tables import join_files
from streaming.settings import StreamSettings
from tests.integration.streaming.archive.beside import Beside, change
from tests.integration.streaming.archive.scored import Scored
from tests.integration.streaming.archive.test_archive import NAMES, archive, event_id
from tests.integration.streaming.archive.test_kills import as_spark_left_it, delete_a_table, write_former_checkpoint
from tests.integration.streaming.archive.test_service import running, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.delta]


@pytest.fixture
def settings(settings: StreamSettings) -> StreamSettings:
    return change(settings, "archive", trigger_s=0.1, metrics_port=0)


@pytest.fixture
def scored(settings: StreamSettings) -> Scored:
    """Three writes into each table are done, and a copy was made after the second."""
    scored = Scored(settings)
    for copied in (False, True, False):
        scored.add(5)
        archive(settings)
        if copied:
            shutil.copytree(settings.tables_folder, settings.home / "copy")
    return scored


def folder_of(scored: Scored, name: str = "") -> Path:
    return Path(scored.settings.tables_folder) / name


def put_back(scored: Scored, *names: str) -> None:
    for name in names:
        shutil.rmtree(folder_of(scored, name))
        shutil.copytree(scored.settings.home / "copy" / name, folder_of(scored, name))


def restore(scored: Scored, *names: str) -> None:
    for name in names:
        table = DeltaTable(folder_of(scored, name))
        table.restore(table.version() - 1)


def restore_first_rows(scored: Scored) -> None:
    for name in NAMES:
        DeltaTable(folder_of(scored, name)).restore(2)


def delete_rows(scored: Scored) -> None:
    for name in NAMES:
        DeltaTable(folder_of(scored, name)).delete()
    shutil.rmtree(folder_of(scored, "features"))


def forget_last_commit(scored: Scored) -> None:
    """As a disk does that was not told to write it before the power was cut."""
    for name in NAMES:
        max(folder_of(scored, name).glob("_delta_log/*.json")).unlink()


DAMAGE: dict[str, Callable[[Scored], Any]] = {
    "the tables' folder is deleted": lambda scored: shutil.rmtree(folder_of(scored)),
    "a table is deleted": delete_a_table,
    "a table is restored": lambda scored: restore(scored, "predictions"),
    "all are restored, one twice": lambda scored: restore(scored, *NAMES, "features"),
    "all are restored to their first rows": restore_first_rows,
    "an old copy of a table is put back": lambda scored: put_back(scored, "dead_letters"),
    "an old copy of all is put back": lambda scored: put_back(scored, *NAMES),
    "a table is deleted, rows of others too": delete_rows,
    "the last commit is gone": forget_last_commit,
    "a former checkpoint appears": write_former_checkpoint,
    "Spark's tables": as_spark_left_it,
    "Spark's tables, and its checkpoint is gone": lambda scored: (
        as_spark_left_it(scored),
        shutil.rmtree(scored.settings.checkpoints_folder / "archive"),
    ),
}


SHORT = ("the tables' folder is deleted", "an old copy of a table is put back")


@pytest.mark.parametrize("what", [pytest.param(one, marks=() if one in SHORT else pytest.mark.long) for one in DAMAGE])
def test_damage_between_two_runs_is_made_good(settings: StreamSettings, scored: Scored, what: str) -> None:
    DAMAGE[what](scored)
    scored.add(5, twice=True)
    archive(settings)
    if "rows of others" in what:
        archive(settings, from_beginning=True)  # that is not seen: somebody may have meant to delete them
    scored.check()
    scored.publish_again()
    archive(settings)
    scored.check()


RUNNING = [
    pytest.param("a table is restored", 2, id="a table is restored", marks=pytest.mark.long),
    pytest.param("all are restored to their first rows", 1, id="to before its start", marks=pytest.mark.long),
    pytest.param("an old copy of all is put back", 1, id="an old copy is put back", marks=pytest.mark.long),
    pytest.param("a table is deleted", 1, id="a table is deleted", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("what", "writes"), RUNNING)
def test_damage_while_it_runs_is_made_good(settings: StreamSettings, scored: Scored, what: str, writes: int) -> None:
    """Where a table is another one than it knows, it ends, and the stream starts it again."""
    beside = Beside(change(settings, "retry", first_wait_s=0.1, max_wait_s=0.2, give_up_s=1.0))
    beside.process.start()
    try:
        for _ in range(writes):
            scored.add(5)
            beside.drive(lambda: scored.is_archived and beside.is_up, "all rows")
        DAMAGE[what](scored)
        scored.add(5)
        beside.drive(lambda: scored.is_archived, "all rows again")
        assert beside.failures == (what != "a table is restored")
    finally:
        beside.process.stop()
    scored.check()


@pytest.mark.long
def test_a_table_that_is_restored_just_before_it_is_joined_is_filled_again(
    settings: StreamSettings, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version that the restore made is behind the one that the archive has, and the join is behind that."""
    monkeypatch.setattr(streaming.archive.upkeep, "_LOOK_EVERY", 0)
    armed: list[bool] = []
    restored: list[str] = []

    def restore_and_join(place: str, partition: str, **options: str) -> int:
        if armed and place not in restored:
            restored.append(place)
            restore(scored, Path(place).name)
        return join_files(place, partition, **options)

    monkeypatch.setattr(streaming.archive.upkeep, "join_files", restore_and_join)
    with running(change(settings, "archive", compact_files=3)) as (_, errors):
        for _ in range(3):
            scored.add(5)
            wait_until(lambda: scored.is_archived, "all rows")
        armed.append(True)
        scored.add(15)
        scored.add(5)
        wait_until(lambda: len(restored) == len(NAMES), "the joins")
        wait_until(lambda: scored.is_archived, "all rows")
    assert errors == []
    scored.check()


def test_rows_of_others_that_came_while_a_join_failed_are_known(
    settings: StreamSettings, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody brings in the rows of outcomes that come a moment later."""
    monkeypatch.setattr(streaming.archive.upkeep, "_LOOK_EVERY", 0)
    later = range(20, 22)  # of images: one becomes a dead letter, one a prediction and a feature vector
    failed: list[str] = []

    def append_and_fail(place: str, *_: str, **__: str) -> int:
        name = Path(place).name
        if name in failed or scored.count < later.start:
            return 0
        failed.append(name)
        row = DeltaTable(place).to_pyarrow_table().slice(0, 1)
        number = later[0] if name == "dead_letters" else later[1]
        write_deltalake(place, row.set_column(0, "event_id", pa.array([event_id(name, number)])), mode="append")
        msg = "no space left"
        raise TableError(msg)

    monkeypatch.setattr(streaming.archive.upkeep, "join_files", append_and_fail)
    settings = change(settings, "archive", compact_files=2)
    with running(settings) as (_, errors):
        scored.add(5)
        wait_until(lambda: len(failed) == len(NAMES), "the failures")
        scored.add(2)
        scored.publish_again()
        scored.add(5)
        wait_until(lambda: scored.is_archived, "all rows")
    assert errors == []
    scored.check()
