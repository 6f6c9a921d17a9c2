"""Rules: what they match, what never makes an alarm, and how a wrong file is told."""

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.documents import RULES_SCHEMA, load_schema
from schemas.errors import SettingsError
from streaming.alerts.matching import Place, Why, find_bar, find_mismatch
from streaming.alerts.outcomeevents import Event, Kind, read_line
from streaming.alerts.rules import AbsenceCondition, Rules, find_absence_begin
from streaming.alerts.rulesfile import parse_rules


def rules_of(**rule: Any) -> Rules:
    named = {"name": "R"} | rule
    return parse_rules(yaml.safe_dump({"version": 1, "rules": [named]}), "rules.yml")


def event_of(kind: str = "prediction", **said: Any) -> Event:
    event = read_line({kind: said, "at": "2026-01-31T14:00:00Z"}, None)
    assert event is not None
    return event


@pytest.mark.parametrize(
    ("condition", "said", "why"),
    [
        ({}, {}, None),
        ({"label": "opacities"}, {}, None),
        ({"label": "opacities"}, {"label": "normal"}, Why.LABEL),
        ({"label": ["effusion", "opa*"]}, {}, None),
        ({"score": 0.9}, {"score": 0.9}, None),
        ({"score": 0.9}, {"score": 0.8999}, Why.SCORE),
        ({"score": {"at_least": 0.2, "below": 0.5}}, {"score": 0.2}, None),
        ({"score": {"at_least": 0.2, "below": 0.5}}, {"score": 0.5}, Why.SCORE),
        ({"score": "operating_point"}, {"score": 0.3, "threshold": 0.3}, None),
        ({"score": "operating_point"}, {"score": 0.29, "threshold": 0.3}, Why.SCORE),
        ({"source": "/hospital/*"}, {"source": "/hospital/ward-3/dx-1"}, None),
        ({"source": "/hospital/*"}, {"source": "/clinic/dx-1"}, Why.SOURCE),
        ({"source": "/dx-?"}, {"source": "/dx-12"}, Why.SOURCE),
        ({"model": "cxr"}, {"model": "cxr@7"}, None),
        ({"model": "cxr@7"}, {"model": "cxr@7"}, None),
        ({"model": "cxr@7"}, {"model": "cxr@8"}, Why.MODEL),
        ({}, {"flags": ["uncertain"]}, Why.FLAGS),
        ({}, {"flags": ["unlike_training"]}, Why.FLAGS),
        ({}, {"flags": ["of_a_later_release"]}, Why.FLAGS),
        ({"flags": ["uncertain"]}, {"flags": ["uncertain"]}, None),
        ({"flags": ["uncertain"]}, {}, Why.FLAGS),
        ({"flags": ["none", "uncertain"]}, {}, None),
        ({"flags": ["none", "uncertain"]}, {"flags": ["unlike_training"]}, Why.FLAGS),
        ({"flags": ["none", "uncertain"]}, {"flags": ["uncertain", "of_a_later_release"]}, Why.FLAGS),
        ({"flags": ["unlike_training"]}, {"flags": ["unlike_training"]}, None),
    ],
)
def test_a_prediction_matches_where_all_that_is_named_holds(
    condition: dict[str, Any], said: dict[str, Any], why: Why | None
) -> None:
    [rule] = rules_of(prediction=condition).rules
    assert find_mismatch(rule, event_of(**said)) == why


@pytest.mark.parametrize(
    ("condition", "said", "why"),
    [
        ({}, {}, None),
        ({"reason": "corrupt_image"}, {}, None),
        ({"reason": ["tombstone", "corrupt_image"]}, {}, None),
        ({"reason": "tombstone"}, {}, Why.REASON),
        ({"source": "/dx-2"}, {}, Why.SOURCE),
    ],
)
def test_a_dead_letter_matches_where_all_that_is_named_holds(
    condition: dict[str, Any], said: dict[str, Any], why: Why | None
) -> None:
    [rule] = rules_of(dead_letter=condition).rules
    assert find_mismatch(rule, event_of("dead_letter", **said)) == why


@pytest.mark.parametrize("kind", ["dead_letter", "accepted", "answered"])
def test_a_rule_of_predictions_is_about_nothing_else(kind: str) -> None:
    [rule] = rules_of(prediction={}).rules
    assert find_mismatch(rule, event_of(kind)) is Why.KIND


@pytest.mark.parametrize(
    ("kind", "said", "place", "why"),
    [
        ("prediction", {}, Place(), None),
        ("prediction", {"model": "demo@1"}, Place(), Why.DEMONSTRATION),
        ("prediction", {"model": "demo-phantoms@1"}, Place(), Why.DEMONSTRATION),
        ("prediction", {"model": "democracy@1"}, Place(), None),
        ("prediction", {"model": "cxr@2"}, Place(challenger="2"), Why.CHALLENGER),
        ("prediction", {"model": "cxr@1"}, Place(challenger="2"), None),
        ("prediction", {"source": "/xray-stream/canary"}, Place(), Why.CANARY),
        ("dead_letter", {"source": "/xray-stream/canary"}, Place(), Why.CANARY),
        ("prediction", {"redriven": True}, Place(), Why.REDRIVEN),
        ("dead_letter", {"redriven": True}, Place(), Why.REDRIVEN),
        ("dead_letter", {}, Place("xray.images", "2"), None),
    ],
)
def test_what_never_makes_an_alarm_whatever_the_rules_say(
    kind: str, said: dict[str, Any], place: Place, why: Why | None
) -> None:
    assert find_bar(event_of(kind, **said), place) == why


FILE = """
version: 1
defaults: {severity: critical, routes: [ward]}
sinks: {ward: {type: file}}
rules:
- name: Opacities
  prediction: {label: opacities, score: 0.9, flags: [none]}
  summary: "{label} at {source}"
- name: Silent
  absence: {source: /dx-1, for: 1h, days: [mon], hours: 08:00-18:00, time_zone: Europe/Zurich}
"""


@pytest.mark.parametrize(
    ("good", "bad", "told"),
    [
        ("score: 0.9", "scor: 0.9", "rule Opacities: prediction.scor: there is no such field; did you mean score?"),
        ("score: 0.9", "score: 1.2", "rule Opacities: prediction.score: wanted a number from 0 to 1"),
        ("score: 0.9", "score: high", "rule Opacities: prediction.score: wanted a number from 0 to 1"),
        ("score: 0.9", "score: {at_least: 0.6, below: 0.4}", "rule Opacities: prediction.score: wanted a number"),
        ("score: 0.9", "score: {at_least: 0.6, below: 0.6}", "rule Opacities: prediction.score: wanted a number"),
        ("[ward]}", "[ward], max_age: 1000000000d}", "defaults.max_age: wanted 366d at most"),
        ("[ward]}", "[ward], open_for: 367d}", "defaults.open_for: wanted 366d at most"),
        (
            "name: Silent\n  absence:",
            "name: Silent\n  unanswered: {for: 7d}\n  absence:",
            "unanswered.for: wanted less than",
        ),
        (
            "name: Silent\n  absence:",
            "name: Silent\n  unanswered: {for: 8d}\n  absence:",
            "unanswered.for: wanted less than",
        ),
        ("label: opacities", "label: no", "rule Opacities: prediction.label: wanted a list; of texts"),
        ("label: opacities", "label: [no]", "rule Opacities: prediction.label.0: wanted text; YAML reads it"),
        ("flags: [none]", "flags: [unlike_training]", "rule Opacities: prediction: score: of a prediction"),
        ("flags: [none]", "flags: []", "rule Opacities: prediction.flags: "),
        ("[ward]", "[wart]", "rule Opacities: routes: there is no sink wart; sinks: ward"),
        ("severity: critical", "severity: bad", "defaults.severity: Input should be"),
        ("{source}", "{patient}", "rule Opacities: summary: {patient}: wanted one of source, label"),
        ("{source}", "{source.__class__}", "rule Opacities: summary: {source.__class__}: wanted one of"),
        ("{source}", "{source", "rule Opacities: summary: a brace without its other one"),
        ("name: Silent", "name: Opacities", "rules: wanted each name once; found twice: Opacities"),
        ("name: Silent", "nam: Silent", "rule number 2: name: Field required"),
        ("for: 1h", "for: 1", "rule Silent: absence.for: wanted a number and its unit"),
        ("for: 1h", "for: 12h", "rule Silent: absence: for is not shorter than a day's working time"),
        ("for: 1h", "for: 10h", "rule Silent: absence: for is not shorter than a day's working time"),
        ("08:00-18:00", "18:00-08:00", "rule Silent: absence.hours: wanted HH:MM-HH:MM"),
        ("Zurich", "Zrich", "rule Silent: absence.time_zone: there is no such time zone"),
        ("days: [mon]", "days: [monday]", "rule Silent: absence.days.0: Input should be 'mon'"),
        ("  summary:", "  rate: {dead_letter: {}, at_least: 1, within: 1m}\n  summary:", "found prediction and rate"),
        ("version: 1", "version: 2", "version: Input should be 1"),
        ("version: 1", "version: 1\nversion: 1", "line 3: not YAML: the key 'version' is given twice"),
        ("version: 1", "version: [", "not YAML"),
        ("version: 1", "version: !!python/object:os.system 1", "not YAML"),
    ],
)
def test_a_wrong_file_is_told_by_file_rule_and_field(good: str, bad: str, told: str) -> None:
    parse_rules(FILE, "rules.yml")
    with pytest.raises(SettingsError) as caught:
        parse_rules(FILE.replace(good, bad, 1), "rules.yml")
    assert any(line.startswith("rules.yml: ") and told in line for line in str(caught.value).splitlines())


@pytest.mark.parametrize("label", ["source", "severity", "event_id", "alarm_id", "9lives", "with space"])
def test_labels_that_say_what_an_alarm_is_about_are_no_rules(label: str) -> None:
    with pytest.raises(SettingsError, match=f"rule R: labels: {label}: wanted"):
        rules_of(prediction={}, labels={label: "x"})


def test_defaults_hold_where_a_rule_says_nothing_else_and_labels_are_added() -> None:
    text = FILE.replace("severity: critical", "severity: critical, labels: {team: a, site: b}, max_age: 5m")
    text = text.replace("- name: Silent", "  labels: {team: c}\n  max_age: 1h\n- name: Silent")
    opacities, silent = parse_rules(text, "rules.yml").rules
    assert (opacities.severity, opacities.labels, opacities.max_age) == ("critical", {"team": "c", "site": "b"}, 3600)
    assert (silent.labels, silent.max_age, silent.routes) == ({"team": "a", "site": "b"}, 300, ("ward",))


def test_the_published_schema_is_the_models_and_takes_what_they_take() -> None:
    schema = load_schema(RULES_SCHEMA)
    wanted = Rules.model_json_schema(by_alias=True)
    assert {name: schema[name] for name in ("properties", "required", "$defs")} == {
        name: wanted[name] for name in ("properties", "required", "$defs")
    }
    jsonschema.validate(yaml.safe_load(FILE), schema)
    for bad in ("score: 1.2", "scor: 0.9", "score: high"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(FILE.replace("score: 0.9", bad)), schema)


OFFICE = AbsenceCondition.model_validate(
    {
        "source": "/dx-1",
        "for": "1h",
        "days": ["mon", "tue", "wed", "thu", "fri"],
        "hours": "08:00-18:00",
        "time_zone": "Europe/Zurich",
    }
)


@pytest.mark.parametrize(
    ("now", "last", "begin"),
    [
        ("2026-01-30T10:00:00Z", "2026-01-30T09:30:00Z", "2026-01-30T09:30:00Z"),
        ("2026-01-30T10:00:00Z", "2026-01-29T17:00:00Z", "2026-01-30T07:00:00Z"),  # a Friday; Zurich is UTC+1
        ("2026-07-31T10:00:00Z", "2026-07-30T10:00:00Z", "2026-07-31T06:00:00Z"),  # and in summer UTC+2
        ("2026-03-30T06:30:00Z", "2026-03-27T10:00:00Z", "2026-03-30T06:00:00Z"),  # the Monday after the change
        ("2026-01-31T10:00:00Z", "2026-01-30T10:00:00Z", None),  # a Saturday
        ("2026-01-30T06:59:00Z", "2026-01-29T10:00:00Z", None),
        ("2026-01-30T17:00:00Z", "2026-01-29T10:00:00Z", None),
    ],
)
def test_an_absence_counts_in_working_time_alone(now: str, last: str, begin: str | None) -> None:
    at = datetime.fromisoformat(last).timestamp()
    found = find_absence_begin(OFFICE, at, datetime.fromisoformat(now))
    assert found == (None if begin is None else datetime.fromisoformat(begin).timestamp())


@pytest.mark.parametrize(
    ("days", "now", "begin"),
    [
        (["mon", "tue", "wed", "thu", "fri"], "2026-01-28T10:00:00Z", "2026-01-25T23:00:00Z"),
        (["mon", "tue", "wed", "thu", "fri"], "2026-01-26T10:00:00Z", "2026-01-25T23:00:00Z"),
        (["sat", "sun", "mon"], "2026-03-30T10:00:00Z", "2026-03-27T23:00:00Z"),  # over the change to summer time
        (["mon", "wed"], "2026-01-28T10:00:00Z", "2026-01-27T23:00:00Z"),
        (["mon", "wed"], "2026-01-27T10:00:00Z", None),
    ],
)
def test_a_night_between_two_whole_days_is_working_time(days: list[str], now: str, begin: str | None) -> None:
    condition = AbsenceCondition.model_validate(
        {"source": "/dx-1", "for": "23h", "days": days, "time_zone": "Europe/Zurich"}
    )
    found = find_absence_begin(condition, 0.0, datetime.fromisoformat(now))
    assert found == (None if begin is None else datetime.fromisoformat(begin).timestamp())


@pytest.mark.parametrize(
    ("days", "longest"), [(["mon", "tue", "wed"], 3), (["sun", "mon"], 2), (["mon", "wed", "fri"], 1)]
)
def test_whole_days_on_end_bound_how_long_an_absence_may_be(days: list[str], longest: int) -> None:
    for hours, is_taken in ((24 * longest - 1, True), (24 * longest, False)):
        said = {"source": "/dx-1", "for": f"{hours}h", "days": days}
        if is_taken:
            AbsenceCondition.model_validate(said)
        else:
            with pytest.raises(ValidationError, match="would never be over"):
                AbsenceCondition.model_validate(said)


@given(st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)), st.floats(0, 1e6))  # noqa: DTZ001
def test_an_absence_never_begins_before_its_last_image_nor_before_working_time(now: datetime, ago_s: float) -> None:
    begin = find_absence_begin(OFFICE, now.timestamp() - ago_s, now)
    if begin is not None:
        assert now.timestamp() - ago_s <= begin <= now.timestamp()
        local = datetime.fromtimestamp(begin, UTC)
        assert begin == now.timestamp() - ago_s or local.minute == local.second == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(JSON)
def test_no_text_of_a_file_ends_in_anything_but_a_rule_or_an_error(value: Any) -> None:
    with pytest.raises(SettingsError):
        parse_rules(json.dumps(value), "rules.yml")


@given(st.dictionaries(st.sampled_from([*Kind, "at", "age_s", "headers", "topic", "value", "probabilities"]), JSON))
def test_no_line_of_a_file_of_events_ends_in_anything_but_an_event_or_nothing(line: dict[str, Any]) -> None:
    found = read_line(line, None)
    assert found is None or isinstance(found, Event)
