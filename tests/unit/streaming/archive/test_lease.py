"""Who fills or compacts tables on a disk holds them, for as long as the process lives; elsewhere there is no lock."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from schemas.errors import TableClaimedError
from schemas.objectstore import local_folder
from streaming.archive.lease import hold_tables

_HOLDER = """
import sys, time
from streaming.archive.lease import hold_tables
with hold_tables(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> "subprocess.Popen[str]":
    """Another process that holds the tables."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("as_uri", [False, True])
def test_a_second_one_is_refused_and_the_next_one_is_not(tmp_path: Path, as_uri: bool) -> None:
    folder = tmp_path.as_uri() if as_uri else str(tmp_path)
    with hold_tables(str(tmp_path)), pytest.raises(TableClaimedError, match="one at a time"), hold_tables(folder):
        pytest.fail("held twice")
    with hold_tables(folder):
        pass


@pytest.mark.parametrize("frozen", [False, True])
def test_a_process_holds_them_until_it_ends_however_it_ends(
    tmp_path: Path, holder: "subprocess.Popen[str]", frozen: bool
) -> None:
    if frozen:
        os.kill(holder.pid, signal.SIGSTOP)
    with pytest.raises(TableClaimedError), hold_tables(str(tmp_path), wait_s=0.3):
        pytest.fail("held twice")
    holder.kill()
    holder.wait()
    with hold_tables(str(tmp_path)):
        pass


def test_one_that_is_about_to_end_is_waited_for(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    assert holder.stdin is not None
    threading.Timer(0.2, holder.stdin.close).start()
    with hold_tables(str(tmp_path), wait_s=20):
        pass
    assert holder.wait() == 0


def test_where_there_is_no_disk_or_no_folder_there_is_no_lock(tmp_path: Path) -> None:
    for folder in ("s3://bucket/tables", str(tmp_path / "none")):
        with hold_tables(folder), hold_tables(folder):
            pass
    assert not (tmp_path / "none").exists()
    assert local_folder("s3://bucket/tables") is None
    assert local_folder("file:///a%20b") == Path("/a b")
    assert local_folder("a/b") == Path("a/b")
