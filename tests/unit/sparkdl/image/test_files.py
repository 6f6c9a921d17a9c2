"""Reading image files: nothing that is too large or never ends gets into memory."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ContractError, Reason
from sparkdl.image.files import noting_error, read_file


@pytest.mark.parametrize(("size", "limit"), [(0, 0), (1, 1), (1024, 1024), (1024, 10**9)])
def test_a_file_up_to_the_limit_is_read(tmp_path: Path, size: int, limit: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(bytes(size))
    assert read_file(str(path), limit) == bytes(size)


@pytest.mark.parametrize(("size", "limit"), [(1, 0), (1025, 1024), (10**12, 10**9)])
def test_a_larger_one_is_refused_unread(tmp_path: Path, size: int, limit: int) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as stream:
        stream.truncate(size)
    with pytest.raises(ContractError) as failure:
        read_file(str(path), limit)
    assert failure.value.reason is Reason.PAYLOAD_TOO_LARGE
    assert failure.value.detail == f"file has {size} bytes, expected at most {limit}"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_not_opened(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(OSError, match="no regular file"):
        read_file(str(path), 10**9)


def test_a_row_says_why_there_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(9))
    rows: list[dict[str, Any]] = [{}, {}]
    for row, name in zip(rows, ("large", "gone"), strict=True):
        with noting_error(row):
            row["image"] = read_file(str(tmp_path / name), 8)
    assert rows == [
        {"error": "payload_too_large: file has 9 bytes, expected at most 8"},
        {"error": "cannot_be_read: No such file or directory"},
    ]
