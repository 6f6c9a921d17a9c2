"""What alarms and reports write is on the disk by its name too: a power cut leaves no file without one."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from streaming.alerts.alarm import Delivered
from streaming.alerts.service import open_ledger as open_alarms
from streaming.alerts.sinks import open_sinks
from streaming.reports.export import NDJSON_FILE, _Lines
from streaming.reports.ledger import open_ledger as open_reports
from streaming.reports.reportfolder import ReportFolder
from streaming.settings import ReportsSettings
from tests.receiver import make_alarm
from tests.reportparts import report

SETTINGS = ReportsSettings()


class Disk:
    """Says which folders were synced, with the names that they had then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[Path, set[str]] = {}
        self._really = os.fsync
        monkeypatch.setattr(os, "fsync", self._sync)

    def _sync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            self.names[path] = {one.name for one in path.iterdir()}
        self._really(descriptor)

    def has(self, path: Path) -> bool:
        return path.name in self.names.get(path.parent, ())


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def write_file(folder: Path, form: Any) -> Path:
    ReportFolder(folder, SETTINGS, form).send(report())
    return folder / f"{report().key}.{ {'fhir': 'json', 'sr': 'dcm', 'hl7': 'hl7'}[form] }"


def write_lines(folder: Path) -> Path:
    with ExitStack() as stack:
        _Lines(folder, SETTINGS, stack).send(report())
    return folder / NDJSON_FILE


def open_ledger_of_alarms(folder: Path) -> Path:
    with open_alarms(folder):
        return folder / "alarms.db"


def open_ledger_of_reports(folder: Path) -> Path:
    with open_reports(folder / "one.db"):
        return folder / "one.db"


WRITES: dict[str, Callable[[Path], Path]] = {
    "fhir": lambda folder: write_file(folder, "fhir"),
    "sr": lambda folder: write_file(folder, "sr"),
    "hl7": lambda folder: write_file(folder, "hl7"),
    "ndjson": write_lines,
    "alarms": open_ledger_of_alarms,
    "reports": open_ledger_of_reports,
}


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("is_there", [True, False])
def test_the_name_is_on_the_disk(what: str, disk: Disk, tmp_path: Path, *, is_there: bool) -> None:
    folder = tmp_path if is_there else tmp_path / "deep" / "out"
    written = WRITES[what](folder)
    assert disk.has(written)
    assert is_there or (disk.has(folder) and disk.has(folder.parent))


@pytest.mark.parametrize("fault", ["none", "once", "twice"])
def test_the_name_of_a_file_of_alarms_is_on_the_disk_before_they_count_as_delivered(
    disk: Disk, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "alarms.jsonl"
    sink = open_sinks({"log": {"type": "file", "path": str(path), "max_bytes": 1000}})["log"]
    left, sync = [{"none": 0, "once": 1, "twice": 2}[fault]], os.fsync

    def fail(descriptor: int) -> None:
        if left[0] and Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_dir():
            left[0] -= 1
            raise OSError(5, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    while sink.deliver([make_alarm()], 0) != Delivered():
        assert path.name not in disk.names.get(tmp_path, ())
    assert disk.has(path)
    disk.names.clear()
    assert sink.deliver([make_alarm()], 0) == Delivered()
    if disk.names:  # it was full, and is another one now
        assert disk.has(tmp_path / "alarms.jsonl.1")
