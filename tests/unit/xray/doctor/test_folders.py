"""Room, leave to write and modes: real folders, with disks made up where a full one is wanted."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from streaming.settings import ArchiveSettings, GatewaySettings, PageSettings, StreamSettings, choose_env_file
from xray.doctor.finding import Finding, Verdict
from xray.doctor.folders import check_disks, check_modes, list_folders


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    tmp_path.chmod(0o700)


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")])


def worst(findings: list[Finding]) -> Finding:
    order = [Verdict.OK, Verdict.WARNING, Verdict.FAULT]
    return max(findings, key=lambda one: order.index(one.verdict))


def test_every_folder_that_settings_name_is_looked_at(tmp_path: Path) -> None:
    gateway = GatewaySettings(spool=tmp_path / "spool", keep_originals=tmp_path / "kept")
    settings = StreamSettings(
        home=tmp_path,
        gateway=gateway,
        archive=ArchiveSettings(folder="s3://bucket/tables"),
        page=PageSettings(thumbnails=tmp_path / "t"),
    )
    named = {one.setting: one.path for one in list_folders(settings) if one.setting != "XRAY_HOME"}
    assert named["XRAY_GATEWAY__SPOOL"] == tmp_path / "spool"
    assert named["XRAY_GATEWAY__KEEP_ORIGINALS"] == tmp_path / "kept"
    assert named["XRAY_PAGE__THUMBNAILS"] == tmp_path / "t"
    assert "XRAY_ARCHIVE__FOLDER" not in named, "an object store has no disk here"


def test_a_disk_with_room_is_well_and_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    before = listing(tmp_path)
    found = list(check_disks(StreamSettings(home=tmp_path)))
    assert worst(found).verdict is Verdict.OK
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("free", "verdict"), [(100, Verdict.FAULT), (500_000_000, Verdict.FAULT), (600_000_000, Verdict.WARNING)]
)
def test_a_full_disk_is_told_by_the_room_at_which_its_program_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: Verdict
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    settings = StreamSettings(home=tmp_path, archive=ArchiveSettings(min_free_bytes=500_000_000))
    [tables] = [one for one in check_disks(settings) if "XRAY_ARCHIVE__FOLDER" in one.advice]
    assert tables.verdict is verdict
    assert str(tmp_path / "tables") in tables.found


def test_few_inodes_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=1000, f_favail=3))
    finding = worst(list(check_disks(StreamSettings(home=tmp_path))))
    assert finding.verdict is Verdict.WARNING
    assert "3 files more" in finding.found


def test_a_folder_without_leave_to_write_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "models")
    (tmp_path / "models").mkdir()
    faults = [one for one in check_disks(StreamSettings(home=tmp_path)) if one.verdict is Verdict.FAULT]
    assert [one.found for one in faults] == [f"this user may not write to {tmp_path / 'models'}"]


def test_a_file_in_the_place_of_a_folder_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    finding = worst(list(check_disks(StreamSettings(home=tmp_path))))
    assert (finding.verdict, finding.found) == (Verdict.FAULT, f"{tmp_path / 'logs'} is a file, wanted a folder")


def test_modes_as_the_product_makes_them_are_well(tmp_path: Path) -> None:
    (tmp_path / "gateway").mkdir(mode=0o700)
    (tmp_path / "xray.env").touch(mode=0o600)
    [finding] = check_modes(StreamSettings(home=tmp_path))
    assert finding.verdict is Verdict.OK


@pytest.mark.parametrize("name", ["xray.env", "gateway/pseudonyms.key", "page/findings.db", "reporting/a.db"])
def test_a_file_for_its_owner_alone_that_others_may_read_is_a_fault(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.touch()
    path.chmod(0o640)
    [finding] = check_modes(StreamSettings(home=tmp_path))
    assert finding.verdict is Verdict.FAULT
    assert finding.advice == f"chmod 600 {path}"
    assert path.stat().st_mode & 0o777 == 0o640, "it is told, not changed"


def test_another_file_of_settings_is_looked_at_too(tmp_path: Path) -> None:
    file = tmp_path / "elsewhere.env"
    file.touch()
    file.chmod(0o644)
    choose_env_file(file)
    try:
        [finding] = check_modes(StreamSettings(home=tmp_path))
    finally:
        choose_env_file(None)
    assert str(file) in finding.found


def test_a_folder_with_patients_data_that_others_may_enter_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(0o755)
    [finding] = check_modes(StreamSettings(home=tmp_path, gateway=GatewaySettings(spool=tmp_path / "spool")))
    assert (finding.verdict, finding.advice) == (Verdict.FAULT, f"chmod 700 {tmp_path / 'spool'}")


def test_a_state_folder_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    [finding] = check_modes(StreamSettings(home=tmp_path))
    assert finding.verdict is Verdict.WARNING


def test_a_state_folder_of_another_user_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: -1)
    [finding] = check_modes(StreamSettings(home=tmp_path))
    assert "belongs to user" in finding.found


def test_a_state_folder_that_is_not_there_is_no_fault(tmp_path: Path) -> None:
    [finding] = check_modes(StreamSettings(home=tmp_path / "none"))
    assert finding.verdict is Verdict.WARNING
