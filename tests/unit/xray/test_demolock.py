"""The demo's lock: one demo a folder, and it is found and ended by its process alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import SettingsError
from xray.demolock import end_demo, lock_demo

_HOLD = """
import signal, sys, time
from pathlib import Path
from xray.demolock import lock_demo
signal.signal(signal.SIGTERM, signal.default_int_handler)
with lock_demo(Path(sys.argv[1])):
    try:
        print("held", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("in order", flush=True)
"""


def hold(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_demo_is_refused_and_the_first_is_ended_in_order(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(SettingsError, match="'xray down' ends it"), lock_demo(tmp_path):
            pass
        assert end_demo(tmp_path) is True
        assert process.wait(10) == 0
        assert process.stdout is not None
        assert process.stdout.read() == "in order\n"
    finally:
        process.kill()
    with lock_demo(tmp_path):
        pass


@pytest.mark.parametrize("left", ["nothing", "a folder", "an ended demo", "a killed demo"])
def test_where_none_runs_nothing_is_ended(tmp_path: Path, left: str) -> None:
    """The file that is left may have the number of somebody else's process by now."""
    folder = tmp_path / "demo"
    if left != "nothing":
        folder.mkdir()
    if left == "an ended demo":
        with lock_demo(folder):
            pass
    if left == "a killed demo":
        process = hold(folder)
        process.kill()
        process.wait()
    assert end_demo(folder) is False
