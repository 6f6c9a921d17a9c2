"""The folders that the stream writes to."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import SettingsError
from streaming.folders import empty_scratch


def leave_a_file(scratch: Path) -> None:
    (scratch / "left").write_bytes(b"1")


def leave_a_folder(scratch: Path) -> None:
    (scratch / "blockmgr-1" / "0a").mkdir(parents=True)
    (scratch / "blockmgr-1" / "0a" / "rows").write_bytes(b"1")


def leave_a_link(scratch: Path) -> None:
    elsewhere = scratch.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_bytes(b"1")
    (scratch / "link").symlink_to(elsewhere)


@pytest.mark.parametrize("leave", [leave_a_file, leave_a_folder, leave_a_link])
def test_what_a_killed_stream_left_is_removed_and_nobody_else_looks_in(
    tmp_path: Path, leave: Callable[[Path], None]
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir(mode=0o755)
    leave(scratch)
    empty_scratch(scratch)
    assert list(scratch.iterdir()) == []
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    assert all((tmp_path / "elsewhere" / "kept").exists() for _ in tmp_path.glob("elsewhere"))


def test_a_scratch_folder_on_another_disk_stays_a_link(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    leave_a_file(disk)
    (tmp_path / "scratch").symlink_to(disk)
    empty_scratch(tmp_path / "scratch")
    assert (tmp_path / "scratch").is_symlink()
    assert list(disk.iterdir()) == []


def test_a_scratch_folder_that_is_missing_is_made(tmp_path: Path) -> None:
    empty_scratch(tmp_path / "home" / "scratch")
    assert stat.S_IMODE((tmp_path / "home" / "scratch").stat().st_mode) == 0o700


def test_a_scratch_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_bytes(b"a file")
    with pytest.raises(SettingsError, match=rf"cannot empty {tmp_path}/scratch: File exists"):
        empty_scratch(tmp_path / "scratch")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may remove anything")
def test_a_scratch_folder_that_cannot_be_emptied_is_named(tmp_path: Path) -> None:
    leave_a_folder(tmp_path / "scratch")
    (tmp_path / "scratch" / "blockmgr-1" / "0a").chmod(0o500)
    try:
        with pytest.raises(SettingsError, match="Permission denied"):
            empty_scratch(tmp_path / "scratch")
    finally:
        (tmp_path / "scratch" / "blockmgr-1" / "0a").chmod(0o700)
