"""The archive beside a stream: whatever happens to its process, it is started again, and the stream goes on."""

import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable
from pydantic import SecretStr

from schemas.modelcard import ModelCard
from streaming.settings import StreamSettings
from tests.integration.streaming.archive.beside import TIMEOUT_S, Beside, change, is_gone
from tests.integration.streaming.archive.scored import Scored
from tests.metricspage import CARD

pytestmark = [pytest.mark.kafka, pytest.mark.delta, pytest.mark.timeout(180)]

_MOST_THREADS = 40


@pytest.fixture
def settings(settings: StreamSettings) -> StreamSettings:
    """A quick archive that is soon started again, and noticed soon where it hangs."""
    settings = change(settings, "archive", trigger_s=0.2, metrics_port=0, deadline_s=10.0)
    return change(settings, "retry", first_wait_s=0.2, max_wait_s=1.0)


def waits(lines: list[str]) -> list[int]:
    found = [re.match(r"the archive is started again in (\d+) s: ", line) for line in lines]
    return [int(one[1]) for one in found if one]


def test_killed_it_is_started_again_and_no_row_is_lost_or_twice(
    beside: Beside, scored: Scored, caplog: pytest.LogCaptureFixture
) -> None:
    scored.add(5)
    beside.process.start()
    os.kill(beside.pid, signal.SIGKILL)  # before it has done anything
    beside.drive(lambda: beside.is_up, "its first step")
    for kills in range(2, 4):
        beside.drive(lambda: scored.is_archived, "all rows")
        scored.add(5, twice=True)
        os.kill(beside.pid, signal.SIGKILL)
        with caplog.at_level(logging.WARNING):
            beside.drive(lambda kills=kills: beside.failures == kills, "that it is noticed")
        assert not beside.is_up
        beside.drive(lambda: beside.is_up, "the next start")
    beside.drive(lambda: scored.is_archived, "all rows")
    scored.check()
    assert "it ended with exit code -9. Predictions go on" in caplog.text


def test_frozen_it_is_killed_and_started_again(
    beside: Beside, scored: Scored, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scored.add(5)
    beside.process.start()
    beside.drive(lambda: scored.is_archived and beside.is_up, "all rows")
    frozen = beside.pid
    os.kill(frozen, signal.SIGSTOP)
    scored.add(5)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("streaming.archive.process._START_S", -8.0)  # patience is counted from its deadline, 10 s
        beside.drive(lambda: beside.failures == 1, "that it is noticed")
    assert is_gone(frozen)
    assert "the archive took no step for 2 s and is killed" in caplog.text
    assert "it ended with exit code -9. Predictions go on" in caplog.text
    beside.drive(lambda: scored.is_archived and beside.is_up, "all rows")
    scored.check()


def test_one_that_no_kill_ends_is_not_waited_for(
    beside: Beside, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that waits for a disk that does not answer: the kernel ends it once that does."""
    beside.process.start()
    beside.drive(lambda: beside.is_up, "its first step")
    stuck = beside.pid
    os.kill(stuck, signal.SIGSTOP)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("streaming.archive.process._START_S", -8.0)
        patch.setattr("streaming.archive.process._KILL_S", 0.1)
        patch.setattr(subprocess.Popen, "kill", lambda _: None)
        beside.drive(lambda: "does not end" in caplog.text, "that it is noticed")
        started = time.monotonic()
        for _ in range(100):
            beside.process.check()
        assert time.monotonic() - started < 5
    assert (beside.pid, beside.is_up, beside.failures) == (stuck, False, 0)  # no second one beside it
    os.kill(stuck, signal.SIGKILL)
    beside.drive(lambda: beside.failures == 1, "its end")
    beside.drive(lambda: beside.is_up, "the next start")


_PARENT = """
import pickle, sys, time
from prometheus_client import CollectorRegistry
from streaming.archive.process import ArchiveProcess
from streaming.metrics import StreamMetrics
settings, card = pickle.load(sys.stdin.buffer)
process = ArchiveProcess(settings, StreamMetrics(CollectorRegistry(), card))
process.start()
print(process.pid, flush=True)
while True:
    process.check()
    time.sleep(0.05)
"""


def start_parent(settings: StreamSettings, card: ModelCard = CARD) -> "subprocess.Popen[bytes]":
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None
    parent.stdin.write(pickle.dumps((settings, card)))
    parent.stdin.close()
    return parent


@pytest.mark.parametrize("when", [pytest.param("while it starts", marks=pytest.mark.long), "while it works"])
def test_it_ends_by_itself_where_the_stream_is_killed(settings: StreamSettings, scored: Scored, when: str) -> None:
    scored.add(5)
    parent = start_parent(settings)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    deadline = time.monotonic() + TIMEOUT_S
    while when == "while it works" and not scored.is_archived:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    killed = time.monotonic()
    while not is_gone(pid):
        assert time.monotonic() < killed + 20
        time.sleep(0.05)
    # Nobody is left who holds the tables: the next one can begin at once.
    next_one = Beside(settings)
    next_one.process.start()
    try:
        next_one.drive(lambda: scored.is_archived, "all rows")
    finally:
        next_one.process.stop()
    scored.check()


def test_stopped_in_order_it_finishes_its_write(
    settings: StreamSettings, scored: Scored, caplog: pytest.LogCaptureFixture
) -> None:
    scored.add(4000)
    beside = Beside(change(settings, "archive", max_records_per_batch=500))
    beside.process.start()
    log = Path(settings.tables_folder) / "features" / "_delta_log"
    beside.drive(lambda: log.exists() and len(list(log.glob("*.json"))) > 2, "its first writes")
    pid = beside.pid
    with caplog.at_level(logging.WARNING):
        beside.process.stop()
    assert is_gone(pid)
    assert caplog.messages == []
    assert not scored.is_archived
    assert all(doubled == 0 for _, doubled in scored.faults().values())
    # What it wrote last was committed whole: no file lies about that no version has.
    for name in ("predictions", "features"):
        place = Path(settings.tables_folder) / name
        assert {path.name for path in place.rglob("part-*")} == live_files(place)
    assert beside.process.pid is None
    beside.process.start()
    beside.drive(lambda: scored.is_archived, "all rows")
    beside.process.stop()
    scored.check()


def live_files(place: Path) -> set[str]:
    return {Path(uri).name for uri in DeltaTable(place).file_uris()}


def test_what_it_is_told_nobody_else_can_read_and_it_stands_back(
    settings: StreamSettings, scored: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "s3cr3t-of-the-cluster"  # noqa: S105
    monkeypatch.setenv("XRAY_SPARK__SECRET", secret)
    settings = change(settings, "spark", secret=SecretStr(secret))
    beside = Beside(settings)
    scored.add(5)
    beside.process.start()
    try:
        beside.drive(lambda: scored.is_archived, "all rows")
        proc = Path(f"/proc/{beside.pid}")
        for name in ("cmdline", "environ"):
            assert secret.encode() not in (proc / name).read_bytes()
        assert b"XRAY_" not in (proc / "environ").read_bytes()
        niceness = int((proc / "stat").read_text().rpartition(") ")[2].split()[16])
        threads = int(re.search(r"^Threads:\s+(\d+)$", (proc / "status").read_text(), re.MULTILINE)[1])  # type: ignore[index]
        assert (niceness, int((proc / "oom_score_adj").read_text())) == (10, 500)
        assert threads < _MOST_THREADS
        assert os.getpgid(beside.pid) == beside.pid  # Ctrl-C on a terminal is for the stream
    finally:
        beside.process.stop()


def take_port(settings: StreamSettings, _folder: Path) -> tuple[StreamSettings, Callable[[], object]]:
    other = socket.socket()
    other.bind(("127.0.0.1", 0))
    other.listen()
    return change(settings, "archive", metrics_port=other.getsockname()[1]), other.close


def put_a_file_there(settings: StreamSettings, folder: Path) -> tuple[StreamSettings, Callable[[], object]]:
    (folder / "tables").write_text("", encoding="utf-8")
    return settings, (folder / "tables").unlink


def forbid_to_write(settings: StreamSettings, folder: Path) -> tuple[StreamSettings, Callable[[], object]]:
    # Root may write everywhere, but not make a folder in /proc.
    (folder / "tables").symlink_to("/proc/none")
    return settings, (folder / "tables").unlink


@pytest.mark.parametrize(
    "prevent",
    [pytest.param(one, marks=pytest.mark.long) for one in (take_port, put_a_file_there, forbid_to_write)],
    ids=lambda one: one.__name__,
)
def test_one_that_cannot_start_is_tried_again_with_longer_waits(
    settings: StreamSettings,
    scored: Scored,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    prevent: Callable[[StreamSettings, Path], tuple[StreamSettings, Callable[[], object]]],
) -> None:
    changed, allow = prevent(change(settings, "retry", first_wait_s=1.0, max_wait_s=2.0), tmp_path)
    beside = Beside(changed)
    scored.add(3)
    try:
        with caplog.at_level(logging.WARNING):
            beside.process.start()
            beside.drive(lambda: beside.failures == 2, "a second failure")
        assert waits(caplog.messages) == [1, 2]
        assert len(caplog.messages) == 2  # one line for each try
        assert not beside.is_up
        allow()
        beside.drive(lambda: scored.is_archived, "all rows")
    finally:
        beside.process.stop()
    scored.check()


def test_one_whose_program_is_gone_is_tried_again_too(
    beside: Beside, scored: Scored, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scored.add(3)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("streaming.archive.process.sys.executable", "/nowhere/python")
        beside.process.start()
        beside.drive(lambda: beside.failures == 4, "four failures")
    assert waits(caplog.messages) == [0, 0, 1, 1]  # 0.2 s, 0.4 s, 0.8 s, and then 1 s at most
    beside.drive(lambda: scored.is_archived and beside.is_up, "all rows")
    assert beside.failures == 4


@pytest.mark.long
def test_a_second_archive_beside_it_is_refused_in_one_line(
    settings: StreamSettings, beside: Beside, scored: Scored, tmp_path: Path
) -> None:
    scored.add(5)
    beside.process.start()
    beside.drive(lambda: scored.is_archived, "all rows")
    second = run_command(settings)
    assert second.returncode == 1
    assert second.stdout == ""
    assert " ".join(second.stderr.split()).startswith("error: another archive or compaction works on")
    assert "Traceback" not in second.stderr
    beside.drive(lambda: beside.is_up, "the first one, unharmed")
    beside.process.stop()
    scored.add(5)
    assert run_command(settings).returncode == 0
    scored.check()


def run_command(settings: StreamSettings) -> "subprocess.CompletedProcess[str]":
    kafka = settings.kafka
    names = [name for name in type(kafka).model_fields if name.endswith("_topic")]
    topics = {f"XRAY_KAFKA__{name.upper()}": getattr(kafka, name) for name in names}
    environ = {
        **os.environ,
        **topics,
        "XRAY_HOME": str(settings.home),
        "XRAY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XRAY_KAFKA__PARTITIONS": "2",
    }
    return subprocess.run(
        [sys.executable, "-m", "xray", "archive", "--available-now"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
