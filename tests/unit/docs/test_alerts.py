"""docs/alerts.md: its files of rules are right and their tests hold, and it leaves out no field and no reason."""

import re
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from streaming.alerts.evaluator import GATHERING_S, LONGEST_GATHERING_S
from streaming.alerts.ledger import KEPT_S, MAX_MEMBERS
from streaming.alerts.matching import NEVER, Why
from streaming.alerts.rules import (
    AbsenceCondition,
    DeadLetterCondition,
    Defaults,
    ExpectedAlarm,
    PredictionCondition,
    RateCondition,
    Rule,
    Rules,
    UnansweredCondition,
)
from streaming.alerts.rulesfile import parse_rules
from streaming.alerts.trial import run_tests
from tests.unit.docs.test_docs import code_blocks, names_in, read_page, rows_of, section

FILES = [text for text in code_blocks("alerts", "yaml") if text.startswith("version: 1")]


@pytest.mark.parametrize("text", FILES)
def test_a_file_of_rules_is_right_and_its_tests_hold(text: str) -> None:
    rules = parse_rules(text, "docs/alerts.md")
    assert rules.tests
    assert {result.name: result.faults for result in run_tests(rules)} == {test.name: [] for test in rules.tests}


@pytest.mark.parametrize("text", FILES)
def test_its_tests_would_fail_without_the_rules(text: str) -> None:
    value: dict[str, Any] = yaml.safe_load(text)
    names = [rule["name"] for rule in value["rules"]]
    value["rules"] = [{"name": name, "dead_letter": {"source": "/nowhere"}} for name in names]
    assert all(result.faults for result in run_tests(parse_rules(yaml.safe_dump(value), "docs/alerts.md")))


def fields_of(model: type[BaseModel]) -> set[str]:
    return {info.alias or name for name, info in model.model_fields.items()}


def named(heading: str, column: str) -> set[str]:
    rows = rows_of(section("alerts", heading), column)
    return {name for row in rows for name in names_in(row[0])}


@pytest.mark.parametrize(
    ("heading", "column", "model"),
    [
        ("A file of rules", "part", Rules),
        ("A file of rules", "field of a rule", Rule),
        ("prediction", "field", PredictionCondition),
        ("dead_letter", "field", DeadLetterCondition),
        ("rate", "field", RateCondition),
        ("absence", "field", AbsenceCondition),
        ("unanswered", "field", UnansweredCondition),
    ],
)
def test_every_field_is_explained(heading: str, column: str, model: type[BaseModel]) -> None:
    assert named(heading, column) == fields_of(model)


def test_every_reason_is_explained() -> None:
    assert named("What never makes an alarm", "reason") == {why.value for why in NEVER}
    text = section("alerts", "What never makes an alarm")
    assert [why.value for why in Why if f"`{why.value}`" not in text] == []


def test_numbers_are_the_codes() -> None:
    old = section("alerts", "Old images")
    assert f"for {GATHERING_S:.0f} s" in old
    assert f"after {LONGEST_GATHERING_S / 60:.0f} minutes" in old
    assert f"{MAX_MEMBERS:,}" in old
    assert f"stay for {KEPT_S / 86_400:.0f} days" in section("alerts", "The ledger")
    defaults = {
        row[0].strip("`"): row[1].strip("`") for row in rows_of(section("alerts", "A file of rules"), "field of a rule")
    }
    assert defaults["severity"] == Defaults().severity
    assert (defaults["max_age"], defaults["open_for"]) == ("15m", "1h")
    assert (Defaults().max_age, Defaults().open_for) == (15 * 60, 3600)


def test_what_a_test_may_expect_is_named() -> None:
    text = section("alerts", "Tests of rules")
    assert [name for name in fields_of(ExpectedAlarm) if not re.search(rf"`{name}`", text)] == []


def test_it_says_research_use_only() -> None:
    assert "Research use only. Not a medical device." in read_page("alerts").splitlines()[2]
