"""``xray publish``: its exit code, its warnings and its waiting, with doubles of the producer and the consumer."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streaming.devices.publish import PublishReport
from streaming.lookup.outcome import Outcome
from streaming.settings import KafkaSettings
from tests.unit.streaming.page.knows.outcomes import failed, scored
from xray.commands.app import app


class Case:
    """Files, what became of their publishing, and the outcomes that come."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = PublishReport(seconds=0.5)
        self.outcomes: list[Outcome] = []
        self.order: list[str] = []
        self.waited_s = 0.0

    def add(self, name: str, outcome: Outcome | None, *, event_id: str = "") -> Path:
        path = self.folder / name
        path.write_bytes(b"")
        self.report.delivered.append(path)
        self.report.event_ids[path] = event_id or (f"{'0' * 31}f" if outcome is None else outcome.image_key)
        self.outcomes += [] if outcome is None else [outcome]
        return path

    def publish_files(self, files: list[Path], kafka: KafkaSettings, **options: object) -> PublishReport:
        self.order.append("published")
        return self.report

    @contextmanager
    def open_awaited(self, kafka: KafkaSettings) -> Iterator["Case"]:
        self.order.append("began to read")
        yield self

    def read(self, images: Collection[str], timeout_s: float) -> Iterator[Outcome]:
        self.waited_s = timeout_s
        return (one for one in self.outcomes if one.image_key in images)

    def run(self, *options: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["publish", str(self.folder / "*"), *options])
        return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path / "home"))
    folder = tmp_path / "images"
    folder.mkdir()
    made = Case(folder)
    monkeypatch.setattr("streaming.devices.publish.publish_files", made.publish_files)
    monkeypatch.setattr("streaming.lookup.awaited.open_awaited", made.open_awaited)
    return made


def test_without_waiting_it_ends_once_all_are_confirmed(case: Case) -> None:
    case.add("a.png", None)
    code, said, _ = case.run()
    assert (code, case.order) == (0, ["published"])
    assert "1 of 1 image confirmed" in said


def test_waiting_begins_before_publishing_and_prints_a_line_each(case: Case) -> None:
    case.add("a.png", scored(1))
    case.add("b.png", scored(2, flags=("uncertain",)))
    code, said, _ = case.run("--wait", "--timeout", "7")
    assert (code, case.order, case.waited_s) == (0, ["began to read", "published"], 7.0)
    assert "a.png: normal, score 0.250 for opacities, model v1" in said
    assert "b.png: undecided, score 0.250 for opacities, flags uncertain" in said


def test_a_dead_letter_is_no_prediction(case: Case) -> None:
    case.add("a.png", scored(1))
    case.add("b.png", failed(2, error="no end"))
    code, said, _ = case.run("--wait")
    assert code == 1
    assert "corrupt_image: no end" in said


def test_an_image_without_an_outcome_is_named(case: Case) -> None:
    case.add("a.png", scored(1))
    case.add("b.png", None)
    code, _, warned = case.run("--wait")
    assert code == 1
    assert f"b.png, image {'0' * 31}f" in warned
    assert "xray status" in warned


def test_files_of_one_image_share_its_outcome(case: Case) -> None:
    one = scored(1)
    case.add("a.png", one)
    case.add("copy.png", None, event_id=one.image_key)
    code, said, _ = case.run("--wait")
    assert code == 0
    assert said.count(one.event_id) == 2


def test_a_program_reads_all_of_it_as_json(case: Case) -> None:
    path = case.add("a.png", scored(1))
    lost = case.add("b.png", None)
    case.report.no_images.append(lost)
    code, said, warned = case.run("--wait", "--json")
    assert code == 1
    found = json.loads(said)
    assert found["outcomes"][str(path)]["label"] == "normal"
    assert found["outcomes"][str(lost)] is None
    assert found["no_images"] == [str(lost)]
    assert set(found["event_ids"]) == {str(path), str(lost)}
    assert "is no PNG, JPEG or DICOM" in warned
    assert "outcomes" not in json.loads(case.run("--json")[1])


def test_what_is_no_image_is_warned_of_and_is_no_failure(case: Case) -> None:
    case.report.no_images.append(case.add("notes.txt", None))
    code, _, warned = case.run()
    assert code == 0
    assert "notes.txt is no PNG, JPEG or DICOM" in warned


def test_what_was_not_confirmed_is_not_waited_for(case: Case) -> None:
    path = case.add("a.png", scored(1))
    case.report.delivered.remove(path)
    case.report.failed[path] = "timed out"
    code, said, warned = case.run("--wait")
    assert code == 1
    assert "not published" in warned
    assert "score" not in said
