"""``xray find``: exit codes, JSON, and lines for people; the search has tests of its own."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streaming.gateway.receipts.receipt import Receipt
from streaming.lookup.history import History, ImageRecord, Looked, Reach, TableRow
from streaming.lookup.query import Query, read_query
from streaming.reports.ledger import Reported
from streaming.settings import StreamSettings
from tests.imageoutcomes import outgoing
from tests.unit.streaming.page.knows.outcomes import failed, scored
from xray.commands.app import app
from xray.historyview import describe_history

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
NOT_ASKED = Looked("all topics", limits="not looked through: no Kafka broker answers", reach=Reach.FAILED)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr("streaming.lookup.search.find_image", find)
    return CliRunner()


def find(settings: StreamSettings, query: Query, **options: object) -> History:
    history = History(query, looked=[NOT_ASKED])
    if query.text == "1.2.1":
        history.add_outcomes([scored(1)])
    return history


def lines(history: History) -> str:
    return "\n".join(describe_history(history))


def test_what_is_found_ends_with_0(run: CliRunner) -> None:
    result = run.invoke(app, ["find", "1.2.1", "--json"])
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert (said["found"], said["whole"]) == (True, False)
    [outcome] = said["outcomes"]
    assert outcome["image_place"] == "xray.images-1@0"
    assert outcome["model"] == {"name": "cxr", "version": "v1", "sha256": "e" * 64}
    assert outcome["received_at"] == "1970-01-01T00:00:01.000Z"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_is_not_found_ends_with_1(run: CliRunner, options: list[str]) -> None:
    result = run.invoke(app, ["find", "unknown", *options])
    assert result.exit_code == 1
    assert "no Kafka broker answers" in result.stdout


def test_a_redriven_image_is_told_as_one_story() -> None:
    names = {"image_id": "1.2", "source": "/dx-1", "image_key": "f" * 32, "sha256": "a" * 64}
    history = History(read_query("1.2"))
    again = scored(9, **names, redriven_from="xray.images-1@0")
    history.add_outcomes([again, failed(1, error="no end", **names)])
    text = lines(history)
    assert text.index("dead letter") < text.index("sent again: it had failed at xray.images-1@0") < text.index("normal")
    assert text.count("Image f") == 1
    assert "has no prediction" not in text
    assert "model cxr v1" in text


def test_a_flagged_prediction_shows_no_label() -> None:
    history = History(read_query("x"))
    history.add_outcomes([scored(1, flags=("uncertain",))])
    assert "undecided, score 0.250 for opacities (threshold 0.5), flags uncertain" in lines(history)


def test_a_dead_letter_without_a_prediction_says_what_to_do() -> None:
    history = History(read_query("x"))
    history.add_outcomes([failed(1, error="no end")])
    assert "corrupt_image: no end" in lines(history)
    assert "xray deadletters redrive" in lines(history)


def test_an_image_that_waits_is_told_by_its_receipt() -> None:
    history = History(read_query("x"), receipts=[Receipt.of_accepted(outgoing(), None, NOW)])
    assert "accepted" in lines(history)
    assert "in the gateway's spool" in lines(history)


def test_everything_else_is_a_line() -> None:
    history = History(
        read_query("x"),
        rows=[TableRow("predictions", "ab" * 16, NOW.date())],
        reports=[Reported("fhir:x", "ab" * 16, "normal", "given_up", "400", 3, NOW)],
        images=[ImageRecord("xray.images-0@3", NOW.timestamp(), None)],
        looked=[Looked("topic xray.images", reach=Reach.LEFT_OUT), Looked("table features, version 3", 1)],
    )
    text = lines(history)
    assert "date 2026-01-31" in text
    assert "Report amended to normal" in text
    assert "given_up (400)" in text
    assert "xray.images-0@3, received 2026-01-31T12:00:00.000Z" in text
    assert "not: topic xray.images" in text
    assert "table features, version 3: 1 found" in text
    assert "Not all of it" not in text


def test_a_file_that_is_not_found_is_told_why_it_may_have_other_bytes(tmp_path: Path) -> None:
    file = tmp_path / "scan.dcm"
    file.write_bytes(b"x")
    assert "de-identified" in lines(History(read_query(str(file))))


def test_a_name_cannot_draw_on_the_terminal(run: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = History(read_query("x"))
    hostile.add_outcomes([scored(1, image_id="\x1b[2J[red]")])
    monkeypatch.setattr("streaming.lookup.search.find_image", lambda *_, **__: hostile)
    result = run.invoke(app, ["find", "x"])
    assert "\x1b" not in result.stdout
    assert "[red]" in result.stdout
