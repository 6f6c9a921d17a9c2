"""What docs/alert-sinks.md says, tried: its settings, its routing, and its receiver."""

import base64
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from benchmarks.ports import find_ports
from streaming.alerts.alarm import Delivered, Retry, State
from streaming.alerts.sinks import describe_sinks, open_sinks
from streaming.alerts.sinks.alertmanager import AlertmanagerSettings
from streaming.alerts.sinks.file import FileSettings
from streaming.alerts.sinks.smtp import RETRIES_S as MAIL_RETRIES_S
from streaming.alerts.sinks.smtp import SmtpSettings
from streaming.alerts.sinks.webhook import RETRIES_S, WebhookSettings
from tests.receiver import make_alarm
from tests.unit.docs.test_docs import code_blocks, names_in, read_page, rows_of, section

AMTOOL = shutil.which("amtool")
SECRET, OTHER = (f"whsec_{base64.b64encode(bytes([fill] * 32)).decode()}" for fill in (1, 2))
SETTINGS: dict[str, type[BaseModel]] = {
    "Alertmanager": AlertmanagerSettings,
    "Webhooks": WebhookSettings,
    "Mail": SmtpSettings,
    "File": FileSettings,
}


@pytest.mark.parametrize("heading", SETTINGS)
def test_tables_list_every_field_with_its_default(heading: str) -> None:
    rows = rows_of(section("alert-sinks", heading), "field")
    fields = {name: field for name, field in SETTINGS[heading].model_fields.items() if name != "type"}
    assert [name for row in rows for name in names_in(row[0])] == list(fields)
    for row in rows:
        for field in (fields[name] for name in names_in(row[0])):
            assert (row[1] == "needed") == field.is_required()
            if isinstance(field.default, int | float | str):
                shown = str(field.default).lower() if isinstance(field.default, bool | str) else f"{field.default:g}"
                assert row[1] in (shown, str(field.default))


def test_the_schedules_are_those_of_the_page() -> None:
    minute, hour = 60, 3600
    assert list(RETRIES_S) == [5, 5 * minute, 30 * minute, *(hours * hour for hours in (2, 5, 10, 14, 20, 24))]
    wanted = [10, *(minutes * minute for minutes in (1, 5, 15, 30)), hour]
    assert list(MAIL_RETRIES_S[: len(wanted)]) == wanted
    assert set(MAIL_RETRIES_S[len(wanted) :]) == {2 * hour}
    assert round(sum(MAIL_RETRIES_S) / 86400) == 2


def test_the_example_of_sinks_is_right(tmp_path: Path) -> None:
    config: dict[str, Any] = yaml.safe_load(code_blocks("alert-sinks", "yaml")[0])["sinks"]
    kinds = {kind for settings in SETTINGS.values() for kind in get_args(settings.model_fields["type"].annotation)}
    assert {one["type"] for one in config.values()} == kinds
    jsonschema.validate(config, describe_sinks())
    (tmp_path / "mail").write_text("open sesame")
    config["mail"]["password"] = {"file": str(tmp_path / "mail")}
    config["log"]["path"] = str(tmp_path / "alarms.jsonl")
    assert set(open_sinks(config, {"RIS_SECRET": SECRET})) == set(config)


@pytest.mark.skipif(AMTOOL is None, reason="amtool is not installed (prometheus-alertmanager)")
@pytest.mark.parametrize(("severity", "receiver"), [("page", "on-call"), ("notice", "office"), ("warning", "office")])
def test_alertmanager_takes_the_routing(tmp_path: Path, severity: str, receiver: str) -> None:
    file = tmp_path / "alertmanager.yml"
    file.write_text(code_blocks("alert-sinks", "yaml")[1])
    assert AMTOOL is not None
    checked = subprocess.run([AMTOOL, "check-config", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    labels = ["alertname=pneumonia", f"severity={severity}", "alarm_id=1", "source=/ward"]
    routed = subprocess.run(
        [AMTOOL, "config", "routes", "test", f"--config.file={file}", *labels],
        capture_output=True,
        text=True,
        check=True,
    )
    assert routed.stdout.strip() == receiver
    assert "alarm_id" not in yaml.safe_load(file.read_text())["route"]["group_by"]


def test_the_receiver_verifies_and_drops_what_it_knows(tmp_path: Path) -> None:
    program, file = tmp_path / "receiver.py", tmp_path / "alarms.db"
    program.write_text(code_blocks("alert-sinks", "python")[0])
    port = find_ports(1)
    process = subprocess.Popen([sys.executable, program, str(port), SECRET, file], stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        config = {"type": "webhook", "url": f"http://127.0.0.1:{port}/", "allow_private": True}
        sinks = open_sinks(
            {
                "good": config | {"secrets": [{"env": "OTHER"}, {"env": "SECRET"}]},
                "forged": config | {"secrets": [{"env": "OTHER"}]},
            },
            {"SECRET": SECRET, "OTHER": OTHER},
        )
        for alarm in (make_alarm("a"), make_alarm("a"), make_alarm("a", State.RESOLVED), make_alarm("b")):
            assert sinks["good"].deliver([alarm], 0) == Delivered()
        refused = sinks["forged"].deliver([make_alarm("c")], 0)
        assert isinstance(refused, Retry)
        assert "401" in refused.why
    finally:
        process.kill()
        process.wait()
    with sqlite3.connect(file) as known:
        assert known.execute("SELECT id FROM alarms ORDER BY id").fetchall() == [("a",), ("a-resolved",), ("b",)]


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return


def test_the_secret_that_the_page_makes_is_one() -> None:
    [code] = re.findall(r'`python -c "(.*?)"`', read_page("alert-sinks"))
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    config = {"type": "webhook", "url": "https://receiver.example/", "secrets": [{"env": "MADE"}]}
    assert open_sinks({"a": config}, {"MADE": made.stdout})
