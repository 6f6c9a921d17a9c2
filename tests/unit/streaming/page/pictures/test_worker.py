"""A process that is ended by what it works on."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streaming.page.pictures.picture import PictureError, PictureUnreadable
from streaming.page.pictures.worker import Worker
from tests.paths import ROOT


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    time.sleep(60)


def pid() -> int:
    return os.getpid()


def refuse() -> None:
    msg = "truncated_image: it ends too early"
    raise PictureUnreadable(msg)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(task_s=2.0, wait_s=0.2)
    yield worker
    worker.close()


def test_a_crash_ends_the_child_alone_and_the_next_task_has_another(worker: Worker) -> None:
    with worker.take_turn() as turn:
        first = turn.run(pid)
        assert first != os.getpid()
        with pytest.raises(PictureUnreadable, match="ended the process that decoded it"):
            turn.run(crash)
        assert turn.run(pid) not in (first, os.getpid())


def test_what_hangs_is_given_up_with_its_process(worker: Worker) -> None:
    with worker.take_turn() as turn:
        hung = turn.run(pid)
        with pytest.raises(PictureUnreadable, match="not done within 2 s"):
            turn.run(hang)
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)


def test_words_for_people_come_through(worker: Worker) -> None:
    with worker.take_turn() as turn, pytest.raises(PictureUnreadable, match="truncated_image: it ends too early"):
        turn.run(refuse)


def test_a_child_ends_with_a_parent_that_was_killed() -> None:
    script = """
        from streaming.page.pictures.worker import Worker
        from tests.unit.streaming.page.pictures.test_worker import pid
        import time
        with Worker().take_turn() as turn:
            print(turn.run(pid), flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and _state(child) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_who_waits_too_long_is_told(worker: Worker) -> None:
    told = []

    def ask() -> None:
        with pytest.raises(PictureError, match="ask again") as failure:
            worker.take_turn()
        told.append(failure)

    with worker.take_turn():
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(5)
    assert told
    with worker.take_turn() as turn:  # the turn was given back
        assert turn.run(pid)
