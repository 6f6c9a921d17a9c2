"""The JVM as a process that is launched ahead. Spark's launcher is a script; no JVM is started."""

import os
import signal
from pathlib import Path

import pytest
from pyspark.errors import PySparkRuntimeError

from sparkdl.spark import jvm
from sparkdl.spark.jvm import Jvm


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Spark's script."""
    script = tmp_path / "bin" / "spark-submit"
    script.parent.mkdir()
    monkeypatch.setattr(jvm, "_find_spark_home", lambda: str(tmp_path))
    return script


def behave(launcher: Path, text: str) -> None:
    launcher.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    launcher.chmod(0o755)


@pytest.mark.parametrize("text", ["exit 1", "exit 0", "kill -9 $$"])
def test_a_jvm_that_ends_before_it_answers_is_told(launcher: Path, tmp_path: Path, text: str) -> None:
    behave(launcher, f"echo it says why >&2; {text}")
    console = tmp_path / "console.log"
    console.write_text("of a former start\n", encoding="utf-8")
    started = Jvm({"spark.master": "local"}, os.environ, console)
    with pytest.raises(PySparkRuntimeError, match="JAVA_GATEWAY_EXITED"):
        started.connect()
    assert console.read_bytes()[started.printed_before :] == b"it says why\n"
    started.end()


def test_its_properties_are_what_spark_is_told(launcher: Path, tmp_path: Path) -> None:
    behave(launcher, 'echo "$@"; echo "$OF_THE_CALLER"')
    console = tmp_path / "console.log"
    started = Jvm({"spark.a": "1", "spark.b": "two words"}, os.environ | {"OF_THE_CALLER": "yes"}, console)
    with pytest.raises(PySparkRuntimeError):
        started.connect()
    said = console.read_text(encoding="utf-8")
    assert said == "--conf spark.a=1 --conf spark.b=two words pyspark-shell\nyes\n"


@pytest.mark.parametrize("text", ["exec sleep 600", "sleep 600 & wait", "trap '' TERM; sleep 600 & wait"])
def test_one_that_nobody_connected_to_ends_with_all_it_began(launcher: Path, tmp_path: Path, text: str) -> None:
    behave(launcher, f"echo begun; {text}")
    console = tmp_path / "console"
    os.mkfifo(console)
    read = os.open(console, os.O_RDONLY | os.O_NONBLOCK)
    started = Jvm({}, os.environ, console)
    os.set_blocking(read, True)
    with os.fdopen(read, "rb") as ends:  # whoever still runs holds the other end open
        assert ends.readline() == b"begun\n"
        started.end()
        assert ends.read() == b""


def test_to_end_it_twice_is_no_error(launcher: Path) -> None:
    behave(launcher, "exec sleep 600")
    started = Jvm({}, os.environ, None)
    started.end()
    started.end()


def test_an_interrupt_of_the_program_does_not_reach_it(launcher: Path) -> None:
    """Ctrl-C goes to the group of processes that has the terminal."""
    behave(launcher, "exec sleep 600")
    started = Jvm({}, os.environ, None)
    assert os.getpgid(started.pid) == started.pid != os.getpgid(0)
    os.killpg(started.pid, signal.SIGKILL)
    started.end()
