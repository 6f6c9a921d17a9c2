"""What xray doctor and xray support print, and their exit codes; the checks and the bundle's parts are made up."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from xray.commands.app import app
from xray.doctor.finding import Finding, Verdict
from xray.support.bundle import Bundle

OK = Finding("java", Verdict.OK, "17")
WARNING = Finding("disks", Verdict.WARNING, "[little] room", "Make room.")
FAULT = Finding("kafka", Verdict.FAULT, "no answer", "Start it with 'xray up'.")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))


def answer_with(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> None:
    monkeypatch.setattr("xray.doctor.examination.examine", lambda *_, **__: list(findings))


@pytest.mark.parametrize(("findings", "code"), [((OK, WARNING), 0), ((OK, FAULT), 1)])
def test_a_fault_is_exit_code_1_and_a_warning_is_not(
    monkeypatch: pytest.MonkeyPatch, findings: tuple[Finding, ...], code: int
) -> None:
    answer_with(monkeypatch, *findings)
    for arguments in (["doctor"], ["doctor", "--json"]):
        assert CliRunner().invoke(app, arguments).exit_code == code


def test_people_read_what_was_found_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, OK, WARNING, FAULT)
    output = CliRunner().invoke(app, ["doctor"]).output
    for said in ("[little] room", "Make room.", "no answer", "Start it with 'xray up'.", "1 ok, 1 warning, 1 fault"):
        assert said in output


def test_a_program_reads_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, OK, FAULT)
    told = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).output)
    assert told["counts"] == {"ok": 1, "fault": 1}
    assert told["findings"][1] == {
        "check": "kafka",
        "verdict": "fault",
        "found": "no answer",
        "advice": "Start it with 'xray up'.",
    }


def test_roles_are_handed_on_and_an_unknown_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def list_checks(roles: Any = ()) -> dict[str, Any]:
        asked.append(roles)
        return {}

    answer_with(monkeypatch, OK)
    monkeypatch.setattr("xray.doctor.examination.list_checks", list_checks)
    assert CliRunner().invoke(app, ["doctor", "--role", "stream", "--role", "gateway"]).exit_code == 0
    assert asked == [("stream", "gateway")]
    refused = CliRunner().invoke(app, ["doctor", "--role", "surgeon"])
    assert refused.exit_code == 2
    assert "surgeon" in refused.output


def test_support_tells_what_is_in_the_file_and_what_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = Bundle(tmp_path / "b.zip", ("doctor.json",), {"topics.json": "BrokerError"})
    monkeypatch.setattr("xray.support.bundle.write_bundle", lambda *_: bundle)
    output = CliRunner().invoke(app, ["support", str(bundle.path)]).output
    assert "topics.json (BrokerError)" in output
    assert "doctor.json" in output
    told = CliRunner().invoke(app, ["support", str(bundle.path), "--json"]).stdout.splitlines()[-1]
    assert json.loads(told) == bundle.to_dict()
