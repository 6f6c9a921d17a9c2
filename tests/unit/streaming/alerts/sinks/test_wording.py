"""How alarms are told."""

import json
from datetime import datetime, timedelta, timezone

import pytest

from schemas.envelope import DISCLAIMER
from streaming.alerts.alarm import State
from streaming.alerts.sinks.wording import format_time, message_id, to_document, to_json, to_subject, to_text
from tests.receiver import make_alarm


def test_the_alarm_itself_says_what_it_is() -> None:
    lying = {"id": "x", "state": "x", "rule": "x", "notice": "x", "score": 0.5}
    data = to_document(make_alarm("a", event=lying))["data"]
    assert (data["id"], data["state"], data["rule"], data["notice"]) == ("a", "open", "pneumonia", DISCLAIMER)
    assert data["score"] == 0.5


@pytest.mark.parametrize("text", ["two\nlines", "肺炎", "half \ud800 pair", "\u2028"])
def test_json_is_one_line_of_ascii(text: str) -> None:
    line = to_json(make_alarm(labels={text: text}))
    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert json.loads(line)["data"]["labels"] == {text: text}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_has_not_are_null(value: float) -> None:
    line = to_json(make_alarm(event={"score": value, "all": [{"one": value}, 1.5]}))
    data = json.loads(line, parse_constant=pytest.fail)["data"]
    assert (data["score"], data["all"]) == (None, [{"one": None}, 1.5])


def test_a_time_is_utc_to_the_millisecond() -> None:
    east = timezone(timedelta(hours=5, minutes=45))
    assert format_time(datetime(2026, 11, 30, 5, 45, 0, 123999, tzinfo=east)) == "2026-11-30T00:00:00.123Z"


def test_open_and_resolved_are_messages_of_their_own() -> None:
    idents = {message_id(make_alarm("a", state)) for state in State}
    assert len(idents) == len(State)
    assert not any("." in ident for ident in idents)


@pytest.mark.parametrize("count", [1, 2, 50])
def test_text_says_research_use_only_once(count: int) -> None:
    annotations = {"summary": "s", "notice": DISCLAIMER}
    alarms = [make_alarm(str(number), annotations=annotations) for number in range(count)]
    assert to_text(alarms).count(DISCLAIMER) == 1
    assert to_text(alarms).count("rule: pneumonia") == count


def test_an_alarm_without_a_summary_is_called_by_its_rule() -> None:
    assert to_subject([make_alarm(annotations={})]) == "[xray page] pneumonia"
