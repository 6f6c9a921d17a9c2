"""The archive is killed or frozen at each point of its work: no row is lost or twice, and the account balances."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake

from benchmarks.chaos.halts import AT_START, AT_WORK, Halts
from streaming.settings import StreamSettings
from tests.integration.streaming.archive.beside import Beside, change, is_gone
from tests.integration.streaming.archive.scored import Scored
from tests.integration.streaming.archive.test_archive import NAMES, archive

pytestmark = [pytest.mark.kafka, pytest.mark.delta, pytest.mark.timeout(300)]

_ORPHANS = 50

# Behind a commit, the same files without it are what is left of a process that was killed just before it.
UNCOMMITTED = {"appended": "append", "joined": "join", "dead-files-removed": "clean-up"}


@pytest.fixture
def settings(settings: StreamSettings) -> StreamSettings:
    """An archive that joins two files as soon as there are two, and is started again at once."""
    settings = change(settings, "archive", trigger_s=0.1, metrics_port=0, compact_files=2)
    return change(settings, "retry", first_wait_s=0.05, max_wait_s=0.1)


@pytest.fixture
def halts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Halts:
    halts = Halts(tmp_path / "halts")
    for name, value in halts.environ(os.environ).items():
        monkeypatch.setenv(name, value)
    return halts


def newest_commit(settings: StreamSettings) -> Path:
    """The file that was committed last, of all tables."""
    commits = Path(settings.tables_folder).glob("*/_delta_log/*.json")
    return max(commits, key=lambda path: path.stat().st_mtime_ns)


def leave_dead_files(settings: StreamSettings) -> None:
    """As writers leave them that were killed some time ago."""
    month_ago = time.time() - 30 * 86_400
    for name in NAMES:
        for number in range(_ORPHANS):
            path = Path(settings.tables_folder) / name / f"part-{number:05d}-orphan.parquet"
            path.write_bytes(b"PAR1")
            os.utime(path, (month_ago, month_ago))


def kill_at(beside: Beside, halts: Halts, point: str) -> None:
    """Let it come to a point, and kill it there."""
    beside.drive(lambda: halts.has_halted(point), point)
    os.kill(beside.pid, signal.SIGKILL)
    failures = beside.failures
    beside.drive(lambda: beside.failures > failures, "that it is noticed")


def strike(beside: Beside, scored: Scored, halts: Halts, point: str, *, committed: bool = True) -> None:
    """Kill it at a point while it has outcomes to write, new and known ones."""
    if point.startswith("dead-files"):
        leave_dead_files(scored.settings)
    halts.ask_for(point)
    scored.add(6, twice=True)
    if not committed:
        beside.drive(lambda: halts.has_halted(point), point)
        newest_commit(scored.settings).unlink()
    kill_at(beside, halts, point)
    beside.drive(lambda: scored.is_archived, f"all rows after {point}")
    assert scored.faults() == {}, point


SHORT = [("ids-checked", True), ("appended", False), ("appended", True), ("joined", False)]
ALL = [(point, True) for point in AT_WORK] + [(point, False) for point in UNCOMMITTED]


@pytest.mark.parametrize(
    "points", [pytest.param(SHORT, id="the worst"), pytest.param(ALL, id="all", marks=pytest.mark.long)]
)
def test_killed_at_its_work(beside: Beside, scored: Scored, halts: Halts, points: list[tuple[str, bool]]) -> None:
    scored.add(6)
    beside.process.start()
    beside.drive(lambda: scored.is_archived, "the first rows")
    for point, committed in points:
        strike(beside, scored, halts, point, committed=committed)
        if point in ("appended", "joined"):
            scored.publish_again()  # what was written, or joined, is known afterwards
    beside.drive(lambda: scored.is_archived, "all rows")
    beside.process.stop()
    archive(scored.settings)
    scored.check()


def as_spark_left_it(scored: Scored) -> None:
    """Tables without a place in them, and a checkpoint that has the places: the former release's."""
    settings = scored.settings
    for name in NAMES:
        place = Path(settings.tables_folder) / name
        rows = DeltaTable(place).to_pyarrow_table()
        shutil.rmtree(place)
        write_deltalake(place, rows, partition_by=["date"])
    write_former_checkpoint(scored)


def write_former_checkpoint(scored: Scored) -> None:
    """ARCHIVE's, as Spark wrote it; it has read all that there is."""
    kafka = scored.settings.kafka
    topics = dict(zip(NAMES, (kafka.predictions_topic, kafka.features_topic, kafka.deadletters_topic), strict=True))
    counts = {topic: sum(one.table == name for one in scored.outcomes) for name, topic in topics.items()}
    offsets = ", ".join(f'"{topic}": {{"0": {count}, "1": 0}}' for topic, count in counts.items())
    checkpoint = scored.settings.checkpoints_folder / "archive"
    for folder, last in {"offsets": f"{{{offsets}}}", "commits": '{"nextBatchWatermarkMs": 0}'}.items():
        (checkpoint / folder).mkdir(parents=True)
        (checkpoint / folder / "0").write_text(f"v1\n{{}}\n{last}", encoding="utf-8")


def delete_a_table(scored: Scored) -> None:
    shutil.rmtree(Path(scored.settings.tables_folder) / "features")


def delete_a_table_beside_a_former_checkpoint(scored: Scored) -> None:
    """That one says that all is archived, which holds for the table that is gone."""
    delete_a_table(scored)
    write_former_checkpoint(scored)


BEFORE_START: dict[str, Callable[[Scored], None]] = {
    "table-made": delete_a_table_beside_a_former_checkpoint,
    "places-taken-over": as_spark_left_it,
}


@pytest.mark.parametrize(
    "point", [pytest.param(one, marks=() if one == "table-made" else pytest.mark.long) for one in AT_START]
)
def test_killed_while_it_claims(beside: Beside, scored: Scored, halts: Halts, point: str) -> None:
    scored.add(6)
    archive(scored.settings)
    BEFORE_START.get(point, lambda _: None)(scored)
    halts.ask_for(point)
    beside.process.start()
    for _ in range(1 if point in BEFORE_START else 2):  # again where it can come there again
        halts.ask_for(point)
        kill_at(beside, halts, point)
    scored.add(6, twice=True)
    beside.drive(lambda: scored.is_archived, "all rows")
    scored.publish_again()
    beside.process.stop()
    archive(scored.settings)
    scored.check()


@pytest.mark.long
def test_killed_while_it_removes_dead_files(beside: Beside, scored: Scored, halts: Halts) -> None:
    """In the midst of it: some are gone, others are not."""
    scored.add(6)
    archive(scored.settings)
    leave_dead_files(scored.settings)
    halts.ask_for("dead-files-found")
    beside.process.start()
    beside.drive(lambda: halts.has_halted("dead-files-found"), "its clean-up")
    orphans = {path for path in Path(scored.settings.tables_folder).rglob("*orphan*")}
    halts.let_go_on("dead-files-found")
    while all(path.exists() for path in orphans):
        pass
    os.kill(beside.pid, signal.SIGKILL)
    scored.add(6)
    beside.drive(lambda: beside.failures == 1, "that it is noticed")
    beside.drive(lambda: scored.is_archived, "all rows")
    beside.drive(lambda: not any(path.exists() for path in orphans), "the rest of the clean-up")
    beside.process.stop()
    scored.check()


# --- two at once ------------------------------------------------------------------------------------------------------


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an object store: no lock keeps two apart, in this process or in the ones it starts."""
    monkeypatch.setattr("streaming.archive.lease.fcntl.flock", lambda *_: None)
    monkeypatch.setenv("CHAOS_UNLOCKED", "1")


FROZEN_AT = ("join-planned", "ids-checked", "dead-files-found", "log-full", "read", "group-untold")


@pytest.mark.usefixtures("unlocked")
@pytest.mark.parametrize(
    "point",
    [pytest.param(one, marks=() if one == FROZEN_AT[0] else pytest.mark.long) for one in FROZEN_AT],
)
def test_one_that_slept_while_another_took_over_ends_and_harms_nothing(
    settings: StreamSettings, scored: Scored, halts: Halts, point: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is frozen in the midst of its work; another one appends, joins, cleans up; then it wakes."""
    sleeper = Beside(change(settings, "retry", first_wait_s=300.0, max_wait_s=300.0))
    scored.add(6)
    sleeper.process.start()
    try:
        sleeper.drive(lambda: scored.is_archived, "the first rows")
        if point.startswith("dead-files"):
            leave_dead_files(settings)
        halts.ask_for(point)
        scored.add(6)
        sleeper.drive(lambda: halts.has_halted(point), point)
        pid = sleeper.pid
        os.kill(pid, signal.SIGSTOP)
        other = Beside(settings)
        other.process.start()
        other.drive(lambda: scored.is_archived, "all rows from the other")
        scored.add(6, twice=True)
        other.drive(lambda: scored.is_archived, "new rows from the other")
        halts.let_go_on(point)
        os.kill(pid, signal.SIGCONT)
        sleeper.drive(lambda: sleeper.failures == 1, "the end of the one that slept")
        assert is_gone(pid)
        scored.add(6)
        other.drive(lambda: scored.is_archived, "all rows at last")
        assert other.failures == 0
        other.process.stop()
    finally:
        sleeper.process.stop()
    assert "is filled by another archive since" in capfd.readouterr().err
    archive(settings)
    scored.check()


@pytest.mark.usefixtures("unlocked")
def test_two_that_both_live_write_no_row_twice(
    settings: StreamSettings, scored: Scored, halts: Halts, capfd: pytest.CaptureFixture[str]
) -> None:
    """A second one is started while the first works through a backlog; the first ends, and the second does the rest."""
    settings = change(settings, "archive", max_records_per_batch=20, trigger_s=0.0, compact_files=2)
    scored.add(200, twice=True)
    first = Beside(change(settings, "retry", first_wait_s=300.0, max_wait_s=300.0))
    second = Beside(settings)
    first.process.start()
    try:
        log = Path(settings.tables_folder) / "features" / "_delta_log"
        first.drive(lambda: log.exists() and len(list(log.glob("*.json"))) > 4, "its first writes")
        second.process.start()
        first.drive(lambda: (second.process.check(), first.failures == 1)[1], "the end of the first")
        second.drive(lambda: scored.is_archived, "all rows")
        scored.publish_again()
        assert second.failures == 0
    finally:
        first.process.stop()
        second.process.stop()
    assert "is filled by another archive since" in capfd.readouterr().err
    archive(settings)
    scored.check()


# --- a disk without room ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """2 MB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_full_disk_it_waits_and_leaves_nothing(
    settings: StreamSettings, scored: Scored, halts: Halts, small_disk: Path
) -> None:
    # The disk is full for others' sake; the archive has not kept any room itself.
    settings = change(settings, "archive", folder=str(small_disk / "tables"), compact_files=0, min_free_bytes=0)
    scored.settings = settings
    beside = Beside(settings)
    scored.add(6)
    beside.process.start()
    try:
        beside.drive(lambda: scored.is_archived, "the first rows")
        before = {path for path in small_disk.rglob("*") if path.is_file()}
        fill(small_disk / "ballast")
        pid = beside.pid
        scored.add(30)
        memory = [resident_mb(pid)]
        settle = time.monotonic() + 5
        beside.drive(lambda: (memory.append(resident_mb(pid)), time.monotonic() > settle)[1], "some tries")
        assert {path for path in small_disk.rglob("*") if path.is_file()} - before == {small_disk / "ballast"}
        assert beside.pid == pid
        assert max(memory) - memory[0] < 50
        (small_disk / "ballast").unlink()
        beside.drive(lambda: scored.is_archived, "all rows")
        assert (beside.pid, beside.failures) == (pid, 0)
    finally:
        beside.process.stop()
    scored.check()


def fill(ballast: Path) -> None:
    """Leave no room."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 4096):
            pass


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
