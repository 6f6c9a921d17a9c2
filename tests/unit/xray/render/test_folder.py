"""The folder of outputs: nothing of anybody else's is written over."""

from pathlib import Path

import pytest

from schemas.errors import JobError, SettingsError
from xray.render.folder import PAGE_FILE, OutFolder, sheet_name
from xray.render.rendering import MADE_BY

OURS = MADE_BY.encode()


@pytest.fixture
def out(tmp_path: Path) -> OutFolder:
    return OutFolder(tmp_path / "deep" / "out")


def test_an_own_file_is_replaced(out: OutFolder) -> None:
    out.write("a.txt", OURS + b"1")
    out.write("a.txt", OURS + b"2")
    assert out.read("a.txt") == OURS + b"2"


@pytest.mark.parametrize("content", [b"", b"somebody's", bytes(5000) + OURS])
def test_somebody_elses_file_stays(content: bytes, out: OutFolder) -> None:
    (out.path / "a.txt").write_bytes(content)
    with pytest.raises(JobError, match="'xray render' did not make it"):
        out.write("a.txt", OURS)
    assert (out.path / "a.txt").read_bytes() == content


def test_a_folder_in_the_way_is_an_error(out: OutFolder) -> None:
    (out.path / "a.txt").mkdir()
    with pytest.raises(JobError, match="did not make it"):
        out.write("a.txt", OURS)


def test_a_file_that_cannot_be_written_is_one_line(out: OutFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(JobError, match=r"cannot write .*a\.txt: No space left on device"):
        out.write("a.txt", OURS)


@pytest.mark.parametrize("name", [PAGE_FILE, sheet_name(1)])
def test_a_page_or_sheet_of_somebody_else_is_told_at_the_start(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"somebody's")
    with pytest.raises(SettingsError, match=name):
        OutFolder(tmp_path)
    (tmp_path / name).write_bytes(OURS)
    OutFolder(tmp_path)


def test_sheets_of_an_earlier_run_go_and_others_stay(out: OutFolder) -> None:
    for number in (1, 2, 11):
        out.write(sheet_name(number), OURS)
    (out.path / "contact-sheet-of-mine.png").write_bytes(b"somebody's")
    out.remove_sheets()
    assert [path.name for path in out.path.iterdir()] == ["contact-sheet-of-mine.png"]


def test_bases_differ_between_owners_in_more_than_case(out: OutFolder) -> None:
    assert out.take_base("scan-01", 1) == "scan-01"
    assert out.take_base("scan-01", 1) == "scan-01"
    assert out.take_base("scan-01", 2) == "scan-01-2"
    assert out.take_base("SCAN-01", 3) == "SCAN-01-3"
    assert out.take_base("e\u0301-01", 4) == "e_-01"
    assert out.take_base("e*-01", 5) == "e_-01-2"


def test_the_hash_at_the_end_of_a_long_name_is_kept(out: OutFolder) -> None:
    first, second = (out.take_base(f"{'a' * 250}.dcm-{digest * 16}", digest) for digest in "01")
    assert first != second
    assert first.endswith("-" + "0" * 16)
    assert len(first) < 130
