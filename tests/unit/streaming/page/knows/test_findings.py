"""Findings: taken once, on the disk, corrected in order; refused with a reason."""

import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.documents import load_schema
from schemas.errors import SettingsError
from streaming.page.knows.findings import Findings
from streaming.results.finding import Finding, FindingError, Progress
from streaming.results.findingsledger import LEDGER_FILE, FindingsLedger, open_ledger
from streaming.settings import KafkaSettings, StreamSettings
from tests.unit.streaming.page.knows.outcomes import failed, scored
from training.data.labelevents import read_events

NOBODY = StreamSettings(kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[FindingsLedger]:
    with open_ledger(tmp_path) as ledger:
        yield ledger


def entry(request: str, label: str = "normal", *, who: str = "r-3", at: int = 1000) -> Finding:
    return Finding("ab" * 16, label, who, request, at)


def test_an_entry_that_is_sent_again_is_taken_once(ledger: FindingsLedger) -> None:
    first = ledger.enter(entry("q1"))
    assert ledger.enter(entry("q1", at=5000)) == first
    assert ledger.count_open() == (1, 1000)


def test_a_key_that_is_pressed_twice_says_nothing_new(ledger: FindingsLedger) -> None:
    first = ledger.enter(entry("q1"))
    assert ledger.enter(entry("q2", at=5000)) == first
    assert ledger.enter(entry("q3", who="r-4")).number == 2


def test_a_correction_is_later_than_what_it_corrects_whatever_the_clock_says(ledger: FindingsLedger) -> None:
    ledger.enter(entry("q1", at=9000))
    corrected = ledger.enter(entry("q2", "opacities", at=10))
    assert corrected.confirmed_ms == 9001
    assert [one.label for one in ledger.list_for("ab" * 16)] == ["normal", "opacities"]
    assert corrected.ce_id != ledger.list_for("ab" * 16)[0].ce_id


def test_an_entry_that_says_something_else_under_its_id_is_refused(ledger: FindingsLedger) -> None:
    ledger.enter(entry("q1"))
    with pytest.raises(FindingError, match="said normal before and says opacities now"):
        ledger.enter(entry("q1", "opacities"))
    assert ledger.count_open()[0] == 1


def test_marks_of_what_is_being_sent_go_back_to_the_first(ledger: FindingsLedger) -> None:
    first, second = ledger.enter(entry("q1")), ledger.enter(entry("q2", "opacities"))
    ledger.note_sending([first], {0: 5, 1: 7})
    ledger.note_sending([second], {0: 9, 1: 7, 2: 1})
    assert ledger.read_marks() == {0: 5, 1: 7, 2: 1}
    ledger.note_published({first.number: "xray.labels-0@5"})
    assert ledger.read_marks() == {0: 9, 1: 7, 2: 1}
    ledger.note_unsent([second])
    assert [one.number for one in ledger.list_open(Progress.QUEUED, 10)] == [second.number]
    assert ledger.list_for("ab" * 16)[0].place == "xray.labels-0@5"


def test_images_of_which_something_was_said_are_selected(ledger: FindingsLedger) -> None:
    ledger.enter(entry("q1"))
    ledger.enter(entry("q2", "opacities"))
    assert ledger.select_known([f"{number:032x}" for number in range(5_000)] + ["ab" * 16]) == {"ab" * 16}
    assert ledger.select_known([]) == set()


def test_one_page_alone_has_the_ledger_and_its_owner_alone_reads_it(ledger: FindingsLedger, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="another 'xray page'"), open_ledger(tmp_path):
        pass
    assert (tmp_path / LEDGER_FILE).stat().st_mode & 0o777 == 0o600


def test_a_ledger_of_another_version_or_a_damaged_one_is_told(tmp_path: Path) -> None:
    with open_ledger(tmp_path):
        pass
    db = sqlite3.connect(tmp_path / LEDGER_FILE)
    db.execute("PRAGMA user_version = 9")
    db.close()
    with pytest.raises(SettingsError, match="version 9, expected 1"), open_ledger(tmp_path):
        pass
    for left in tmp_path.glob(f"{LEDGER_FILE}*"):
        left.unlink()
    (tmp_path / LEDGER_FILE).write_bytes(b"no database at all" * 100)
    with pytest.raises(SettingsError, match="move it away"), open_ledger(tmp_path):
        pass


def test_findings_are_taken_and_kept_while_kafka_is_away(tmp_path: Path) -> None:
    outcome = scored(7)
    with open_ledger(tmp_path) as ledger:  # the run before
        ledger.enter(Finding(outcome.event_id, "normal", "r-3", "q1", 1000))
    with Findings(NOBODY, tmp_path) as findings:
        findings.label(outcome, "opacities", who="r-3", request="q2")
        assert findings.state.waiting == 2
        state = findings.find_state(outcome.event_id)
        assert state is not None
        assert (state.current.label, [one.label for one in state.former]) == ("opacities", ["normal"])
        assert findings.find_state("cd" * 16) is None
        assert [one.label for one in findings.list_newest()] == ["opacities", "normal"]


@pytest.mark.parametrize(
    ("dead", "label", "who", "request_id", "said"),
    [
        (True, "normal", "r-3", "q1", "dead letter"),
        (False, "pneumonia", "r-3", "q1", "wanted one of normal, opacities"),
        (False, "normal", "", "q1", "pseudonym"),
        (False, "normal", "r\n3", "q1", "pseudonym"),
        (False, "normal", "r-3", "", "entry's id"),
        (False, "normal", "r-3", "x" * 65, "entry's id"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_the_reason(
    tmp_path: Path, dead: bool, label: str, who: str, request_id: str, said: str
) -> None:
    with Findings(NOBODY, tmp_path) as findings:
        with pytest.raises(FindingError, match=said):
            findings.label(failed(1) if dead else scored(1), label, who=who, request=request_id)
        assert findings.state.waiting == 0


def test_the_event_is_in_the_schema_of_labels() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    said = entry("q1", at=1_769_868_239_123)
    jsonschema.validate(json.loads(said.to_json()), load_schema("label"))
    headers = {name: (value or b"").decode() for name, value in said.to_headers()}
    jsonschema.validate(headers, load_schema("label_headers"))
    assert headers["ce_time"] == "2026-01-31T14:03:59.123Z"


def test_the_event_is_read_as_a_confirmed_finding() -> None:
    said = entry("q1", "opacities", at=1_769_868_239_123)
    found = read_events([(said.to_json(), datetime.now(UTC))], ("normal", "opacities"))
    assert found.wrong == ()
    [file] = found.files
    [confirmed] = file.confirmations
    assert (file.key_names, confirmed.key, confirmed.label) == (("event_id",), ("ab" * 16,), "opacities")
    assert confirmed.confirmed_at == datetime(2026, 1, 31, 14, 3, 59, 123_000, UTC)
