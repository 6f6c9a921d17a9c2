"""What other programs keep, read while they have their files: real ledgers, written by their own code."""

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from schemas.errors import JobError
from streaming.alerts.alarm import Alarm, State
from streaming.alerts.ledger import LEDGER_FILE, AlarmKind, Entry, Status
from streaming.alerts.ledger import Ledger as AlarmLedger
from streaming.gateway.receipts.receipt import Receipt
from streaming.gateway.receipts.receiptstore import STORE_FILE, ReceiptStore
from streaming.lookup.history import Reach
from streaming.lookup.ledgers import search_alarms, search_page_findings, search_receipt_store, search_reports
from streaming.lookup.query import read_query
from streaming.reports.findings import Finding as Confirmed
from streaming.reports.ledger import Arrival, Source, open_ledger
from streaming.reports.report import Correction
from streaming.results.finding import Finding
from streaming.results.findingsledger import open_ledger as open_findings
from streaming.settings import StreamSettings, load_settings
from streaming.sqlitefiles import read_file
from tests.imageoutcomes import outgoing
from tests.reportparts import event, report

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> StreamSettings:
    return load_settings({}, home=tmp_path)


def test_where_nothing_runs_there_is_nothing_and_it_is_said(settings: StreamSettings) -> None:
    receipts, looked = search_receipt_store(settings, read_query("1.2"), ())
    assert (receipts, looked.reach) == ([], Reach.ALL)
    assert "no gateway" in looked.limits
    assert search_page_findings(settings, "[]")[0] == []
    assert search_reports(settings, "[]")[0] == []
    assert search_alarms(settings, "[]")[0] == []


@pytest.mark.parametrize("asked", ["event_id", "image_id", "sha256"])
def test_a_receipt_is_found_by_each_of_its_names_while_the_gateway_writes(settings: StreamSettings, asked: str) -> None:
    receipts = [Receipt.of_accepted(outgoing(bytes([i])), "xray.images-0@4", NOW) for i in range(3)]
    store = ReceiptStore(settings.gateway_folder / STORE_FILE)
    store.absorb(receipts, {}, generation=store.read_generation())
    try:
        found, looked = search_receipt_store(settings, read_query(getattr(receipts[1], asked)), ())
    finally:
        store.close()
    assert found == [receipts[1]]
    assert looked.found == 1


def alarm(number: int, *, kind: AlarmKind = AlarmKind.IMAGE, event_id: str = "") -> Entry:
    said = {"type": "prediction", "event_id": event_id} if event_id else {"type": "summary"}
    made = Alarm(f"{number:032x}", "finding", "page", State.OPEN, {}, {}, NOW, None, said)
    return Entry(made, kind, "", 1, NOW.timestamp(), ("ward", "mail"))


def test_alarms_of_an_image_and_the_summary_that_names_it_are_found(settings: StreamSettings) -> None:
    settings.alerts_folder.mkdir(parents=True)
    ledger = AlarmLedger(settings.alerts_folder / LEDGER_FILE)
    with ledger.transaction():
        ledger.add(alarm(1, event_id="ab" * 16))
        ledger.add(alarm(2, event_id="cd" * 16))
        ledger.add(alarm(3, kind=AlarmKind.SUMMARY))
        ledger.add_member(f"{3:032x}", {"event_id": "ab" * 16})
    found, looked = search_alarms(settings, json.dumps(["ab" * 16]))
    ledger.close()
    assert [one.entry.alarm.id for one in found] == [f"{1:032x}", f"{3:032x}"]
    assert [(one.sink, one.status) for one in found[0].deliveries] == [
        ("mail", Status.WAITING),
        ("ward", Status.WAITING),
    ]
    assert looked.found == 2
    json.dumps(found[0].to_dict())


def test_reports_to_every_target_are_found_while_they_are_delivered(settings: StreamSettings) -> None:
    predictions = [report(number).prediction for number in (1, 2)]
    arrivals = [
        Arrival(Source("predictions", 0, i, 1.0), one, json.dumps(event(i + 1)).encode())
        for i, one in enumerate(predictions)
    ]
    for name in ("a", "b"):
        with open_ledger(settings.reporting_folder / f"{name}.db") as ledger:
            ledger.note_target(f"files:/reports/{name}")
            ledger.absorb(arrivals)
            ledger.close_done(ledger.list_due(1)[0])
            if name == "b":
                found, looked = search_reports(settings, json.dumps([predictions[0].event_id]))
    assert [(one.target, one.state, one.label) for one in found] == [
        ("files:/reports/a", "done", None),
        ("files:/reports/b", "done", None),
    ]
    assert [one.found for one in looked] == [1, 1]


def test_an_amended_report_says_to_what(settings: StreamSettings) -> None:
    prediction = report(1).prediction
    with open_ledger(settings.reporting_folder / "a.db") as ledger:
        ledger.absorb([Arrival(Source("predictions", 0, 0, 1.0), prediction, json.dumps(event(1)).encode())])
        confirmed = Confirmed(prediction.names[1], Correction("normal", NOW))
        ledger.absorb([Arrival(Source("labels", 0, 0, 1.0), confirmed)])
    found, _ = search_reports(settings, json.dumps([prediction.event_id]))
    assert [(one.target, one.label, one.state) for one in found] == [("a", None, "open"), ("a", "normal", "open")]


def test_a_finding_that_waits_on_the_page_is_found(settings: StreamSettings) -> None:
    with open_findings(settings.page_folder) as ledger:
        ledger.enter(Finding("ab" * 16, "normal", "dr-1", "r1", 1_769_860_000_000))
        ledger.enter(Finding("cd" * 16, "normal", "dr-1", "r2", 1_769_860_000_000))
        [found], _ = search_page_findings(settings, json.dumps(["ab" * 16]))
    assert (found.label, found.who) == ("normal", "dr-1")
    assert "queued" in found.known_by


@pytest.mark.parametrize("content", [b"no database at all" * 100, None], ids=["damaged", "another release"])
def test_a_file_that_cannot_be_read_is_told(settings: StreamSettings, content: bytes | None) -> None:
    path = settings.alerts_folder / LEDGER_FILE
    path.parent.mkdir(parents=True)
    if content is None:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 77")
    else:
        path.write_bytes(content)
    found, looked = search_alarms(settings, "[]")
    assert (found, looked.reach) == ([], Reach.FAILED)
    assert str(path) in looked.limits


def test_reading_a_file_does_not_change_it(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 3")
        db.execute("CREATE TABLE t (a)")
    before = path.read_bytes()
    with pytest.raises(JobError, match="readonly"):
        read_file(path, 3, "DELETE FROM t RETURNING a", ())
    assert read_file(path, 3, "SELECT 1", ()) == [(1,)]
    assert path.read_bytes() == before
    with pytest.raises(JobError, match="cannot be read"):
        read_file(tmp_path / "none.db", 3, "SELECT 1", ())
    assert not (tmp_path / "none.db").exists()
