"""'xray alerts check': the tests of a file of rules, and what would fire."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from schemas.errors import SettingsError
from streaming.alerts.rulesfile import parse_rules
from streaming.alerts.trial import read_events, run_tests
from xray.commands.app import app

FILE: dict[str, Any] = {
    "version": 1,
    "rules": [{"name": "Opacities", "prediction": {"label": "opacities"}, "labels": {"team": "a"}}],
    "tests": [
        {
            "name": "two findings and an old one",
            "events": [
                {"prediction": {"id": "1"}, "at": "2026-01-30T09:00:00Z"},
                {"prediction": {"id": "2"}},
                {"prediction": {"id": "3", "flags": ["uncertain"]}},
                {"prediction": {"id": "4"}, "age_s": 3600},
            ],
            "expect": [
                {"rule": "Opacities", "count": 2, "labels": {"source": "/dx-1", "team": "a"}},
                {"rule": "Opacities", "summary_of": 1},
            ],
        }
    ],
}


def with_test(**changes: Any) -> str:
    return yaml.safe_dump(FILE | {"tests": [FILE["tests"][0] | changes]})


def test_a_test_that_is_as_expected_has_no_fault() -> None:
    [result] = run_tests(parse_rules(with_test(), "r.yml"))
    assert result.faults == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"expect": []}, "not expected: 2 x rule Opacities, open"),
        ({"expect": [{"rule": "Opacities", "count": 3}]}, "found 2 of 3"),
        ({"expect": [{"rule": "Opacities", "summary_of": 2}]}, "found 0 of 1"),
        ({"expect": [{"rule": "Opacities", "labels": {"team": "b"}}]}, "found 0 of 1"),
        ({"expect": [{"rule": "Opacities", "state": "resolved"}]}, "found 0 of 1"),
        ({"expect": [{"rule": "Other"}]}, "found 0 of 1"),
        ({"events": [{"prediction": {"patient": 1}}]}, "event 1 is none of the forms"),
    ],
)
def test_a_test_that_is_not_as_expected_says_why(changes: dict[str, Any], fault: str) -> None:
    [result] = run_tests(parse_rules(with_test(**changes), "r.yml"))
    assert any(fault in one for one in result.faults)


def test_time_passes_in_a_test_so_that_conditions_open_and_resolve() -> None:
    rules = [{"name": "Silent", "absence": {"source": "/dx-1", "for": "1h"}}]
    begin, until = "2026-01-30T09:00:00Z", "2026-01-30T10:30:00Z"
    late = {"prediction": {}, "at": "2026-01-30T10:20:00Z"}
    cases = [([], "open"), ([late], "resolved")]
    for events, state in cases:
        test = {"name": "t", "begin": begin, "until": until, "events": events}
        text = yaml.safe_dump(
            {"version": 1, "rules": rules, "tests": [test | {"expect": [{"rule": "Silent", "state": state}]}]}
        )
        [result] = run_tests(parse_rules(text, "r.yml"))
        assert result.faults == []


@pytest.mark.parametrize(("expect", "code"), [(FILE["tests"][0]["expect"], 0), ([], 1)])
def test_check_tells_by_its_exit_code(tmp_path: Path, expect: list[Any], code: int) -> None:
    path = tmp_path / "rules.yml"
    path.write_text(with_test(expect=expect), encoding="utf-8")
    done = CliRunner().invoke(app, ["alerts", "check", str(path)])
    assert done.exit_code == code
    assert f"1 tests, {code} failed" in done.output


def test_check_says_of_each_event_what_fires_and_why_not(tmp_path: Path) -> None:
    path, events = tmp_path / "rules.yml", tmp_path / "events.jsonl"
    path.write_text(with_test(), encoding="utf-8")
    lines = [json.dumps(one) for one in [*FILE["tests"][0]["events"], {"dead_letter": {"id": "9"}}]]
    events.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["alerts", "check", str(path), "--against", str(events), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [one["why"] for one in found["verdicts"]] == [None, None, "flags", "older_than_max_age", "another_kind"]
    fired = [one["alarm"] for one in found["verdicts"] if one["alarm"]]
    assert sorted(fired) == sorted(one["id"] for one in found["alarms"] if one["kind"] == "image")


@pytest.mark.parametrize("line", ["{}", "no json", "[1]", '{"prediction": {"at": 3}}'])
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"prediction": {}}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="line 2 is no event"):
        read_events(path)
