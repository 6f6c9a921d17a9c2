"""'xray alerts list': the newest of what nobody got, as many as were asked for."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streaming.alerts.alarm import Alarm, State
from streaming.alerts.ledger import LEDGER_FILE, AlarmKind, Entry, Ledger, Status
from xray.commands.app import app

START = datetime(2026, 1, 30, 9, 0, tzinfo=UTC)
N_ALARMS = 130


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger whose alarms nobody got: refused and given up by turns, each a minute after the other."""
    monkeypatch.setenv("XRAY_ALERTS__FOLDER", str(tmp_path))
    ledger = Ledger(tmp_path / LEDGER_FILE)
    with ledger.transaction():
        for number in range(N_ALARMS):
            at = START + timedelta(minutes=number)
            alarm = Alarm(f"{number:032x}", "R", "info", State.OPEN, {}, {}, at, None, {})
            ledger.add(Entry(alarm, AlarmKind.IMAGE, "", 1, 0.0, ("ward",)))
    for number in range(N_ALARMS):
        status = (Status.REFUSED, Status.GIVEN_UP)[number % 2]
        ledger.note_failed(ledger.list_deliveries(f"{number:032x}"), status, 0.0, next_at=None, why="422")
    ledger.close()
    return tmp_path


@pytest.mark.parametrize("limit", [1, 3, 120, N_ALARMS, 1000])
def test_the_newest_so_many_are_listed_whatever_became_of_them(limit: int) -> None:
    done = CliRunner().invoke(app, ["alerts", "list", "--undelivered", "--limit", str(limit), "--json"])
    assert done.exit_code == 0, done.output
    numbers = [int(one["id"], 16) for one in json.loads(done.stdout)]
    assert numbers == list(range(N_ALARMS))[::-1][:limit]
