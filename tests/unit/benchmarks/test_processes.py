"""Processor time and memory of processes and all below them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.processes import Process, cpu_seconds, pss_bytes, read_processes, with_children

needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="processes are found in /proc")

NO_PID = 2**22 + 1
"""Linux's largest is 2**22."""


def process(pid: int, parent: int) -> Process:
    return Process(pid, parent, 1, "python", "", 1.0, 1)


@pytest.mark.parametrize(
    ("roots", "wanted"),
    [
        ([2], {2, 3, 4}),
        ([3, 5], {3, 4, 5}),
        ([2, 4], {2, 3, 4}),  # one below the other counts once
        ([9], set()),
        ([], set()),
    ],
)
def test_processes_are_found_with_all_below_them(roots: list[int], wanted: set[int]) -> None:
    living = [process(4, 3), process(3, 2), process(2, 1), process(5, 1), process(1, 0)]
    assert sorted(each.pid for each in with_children(roots, living)) == sorted(wanted)


BURN = "import time\nwhile time.process_time() < 0.3: pass\n"
CHILD = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN!r}], check=True)
kept = bytearray(64_000_000)
kept[::4096] = b"x" * len(kept[::4096])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def child() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@needs_proc
def test_what_an_ended_child_used_is_not_lost(child: "subprocess.Popen[str]") -> None:
    assert 0.3 <= cpu_seconds([child.pid]) < 60
    assert cpu_seconds([os.getpid()]) >= cpu_seconds([child.pid])


@needs_proc
def test_memory_is_that_of_the_pages_in_use(child: "subprocess.Popen[str]") -> None:
    (found,) = (each for each in read_processes() if each.pid == child.pid)
    assert 64_000_000 < pss_bytes([child.pid]) <= found.rss_bytes
    assert (found.parent, found.is_java) == (os.getpid(), False)
    assert "sys.stdin.read" in found.command


@needs_proc
def test_a_process_that_is_gone_uses_nothing() -> None:
    assert (cpu_seconds([NO_PID]), pss_bytes([NO_PID])) == (0, 0)
