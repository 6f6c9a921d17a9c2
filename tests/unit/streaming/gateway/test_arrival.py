"""Objects on disk while they are received."""

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from streaming.gateway.dicom.arrival import ENDLESS, Arrival, EndlessError

ANNOUNCED = ("1.2", "1.2.3")


def make(folder: Path, max_bytes: int = 1000, head: bytes = b"head") -> Arrival:
    return Arrival(folder, head, max_bytes=max_bytes, announced=ANNOUNCED)


@pytest.mark.parametrize("pieces", [[], [b"a"], [b"ab", b"", b"cd" * 100]])
def test_gives_back_what_came(tmp_path: Path, pieces: list[bytes]) -> None:
    arrival = make(tmp_path)
    for piece in pieces:
        assert arrival.write(piece) == len(piece)
    assert arrival.read_all() == b"head" + b"".join(pieces)
    assert arrival.size == 4 + sum(map(len, pieces))
    assert arrival.failure is None
    arrival.close()


def open_files(folder: Path) -> list[str]:
    """Give where descriptors of this process lead to, of those that lead to a folder."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists them
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [link for link in links if str(folder) in link]


def test_has_no_name_and_gives_its_descriptor_back(tmp_path: Path) -> None:
    arrival = make(tmp_path)
    arrival.write(b"secret")
    assert list(tmp_path.iterdir()) == []
    (link,) = open_files(tmp_path)
    assert link.endswith("(deleted)")
    arrival.close()
    assert open_files(tmp_path) == []
    arrival.close()  # a second time is no error


@pytest.mark.parametrize("excess", [1, 1000, 3 * 1000 - 4])
def test_what_is_too_large_is_counted_and_not_kept(tmp_path: Path, excess: int) -> None:
    arrival = make(tmp_path, head=b"head")
    arrival.write(b"x" * 996)
    assert len(arrival.read_all()) == 1000
    free = arrival.write(b"x" * excess)
    assert free == excess
    assert arrival.size == 1000 + excess
    with pytest.raises(AssertionError):
        arrival.read_all()


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_what_has_no_end_is_not_read_to_it(tmp_path: Path, piece: int) -> None:
    arrival = make(tmp_path)
    with pytest.raises(EndlessError, match="at most 1000"):
        for _ in range(ENDLESS * 1000):
            arrival.write(b"x" * piece)


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_folder_that_takes_no_file_is_told_at_the_end(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    if kind == "a file":
        folder.touch()
    arrival = make(folder)
    assert arrival.write(b"x") == 1
    assert arrival.failure is not None


def test_a_full_disk_is_told_at_the_end(tmp_path: Path) -> None:
    arrival = make(tmp_path)
    with open("/dev/full", "wb", buffering=0) as full:
        assert stat.S_ISCHR(os.fstat(full.fileno()).st_mode)
        arrival._file = full
        assert arrival.write(b"x" * 10) == 10
    assert arrival.failure == "No space left on device"
    assert arrival.write(b"y") == 1
