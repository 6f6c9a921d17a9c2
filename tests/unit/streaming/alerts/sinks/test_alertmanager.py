"""What Alertmanager's members are sent; a real Alertmanager takes it in the integration tests."""

import base64
import json
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from schemas.envelope import DISCLAIMER
from streaming.alerts.alarm import Delivered, Refused, Retry, Sink, State
from streaming.alerts.sinks import open_sinks
from tests.receiver import ENDED, STARTED, Receiver, make_alarm, receive, say, say_nothing
from tests.unit.streaming.alerts.sinks.test_httppeer import authority, authority_file, serve_as

__all__ = ["authority", "authority_file"]  # fixtures

NOW = datetime.now(UTC)


def open_alertmanager(*urls: str, **changes: Any) -> Sink:
    config = {"type": "alertmanager", "urls": [url.partition("/hook")[0] for url in urls], **changes}
    return open_sinks({"duty": config}, {"TOKEN": "open-sesame"})["duty"]


def alerts_in(receiver: Receiver) -> list[dict[str, Any]]:
    return [alert for got in receiver.got for alert in json.loads(got.body)]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receive() as receiver:
        yield receiver


@pytest.fixture
def second() -> Iterator[Receiver]:
    with receive() as receiver:
        yield receiver


def test_an_alarm_has_labels_of_its_own_and_says_research_use_only(receiver: Receiver) -> None:
    sink = open_alertmanager(receiver.url, generator_url="https://grafana.example/d/xray")
    alarm = make_alarm("a" * 32, starts_at=NOW - timedelta(hours=1))
    assert sink.deliver([alarm], 0) == Delivered()
    assert receiver.got[0].path == "/api/v2/alerts"
    [alert] = alerts_in(receiver)
    assert alert["labels"] == {
        "alertname": "pneumonia",
        "severity": "page",
        "alarm_id": "a" * 32,
        "source": "/ward-3/dx-1",
        "model": "chest",
    }
    assert alert["annotations"]["notice"] == DISCLAIMER
    assert alert["annotations"]["event_id"] == "e" * 32
    assert alert["annotations"]["summary"] == "Suspected pneumonia"
    assert alert["generatorURL"] == "https://grafana.example/d/xray"


@pytest.mark.parametrize("resend_s", [1, 60, 300])
def test_an_open_alarm_outlives_three_repetitions(receiver: Receiver, resend_s: int) -> None:
    sink = open_alertmanager(receiver.url, resend_s=resend_s)
    assert sink.resend_s == resend_s
    sink.deliver([make_alarm(starts_at=NOW - timedelta(hours=1), ends_at=NOW - timedelta(minutes=1))], 0)
    ends = datetime.fromisoformat(alerts_in(receiver)[0]["endsAt"])
    assert (ends - datetime.now(UTC)).total_seconds() == pytest.approx(3 * resend_s, abs=5)


@pytest.mark.parametrize(
    ("starts_at", "ends_at", "wanted"),
    [
        (STARTED, ENDED, ENDED),
        (STARTED, STARTED, STARTED),
        (ENDED, STARTED, ENDED),  # Alertmanager refuses an end before the start
    ],
)
def test_a_resolved_alarm_ends_when_it_ended(
    receiver: Receiver, starts_at: datetime, ends_at: datetime, wanted: datetime
) -> None:
    past = timedelta(days=3650)
    alarm = make_alarm("a", State.RESOLVED, starts_at=starts_at - past, ends_at=ends_at - past)
    open_alertmanager(receiver.url).deliver([alarm], 0)
    assert datetime.fromisoformat(alerts_in(receiver)[0]["endsAt"]) == wanted - past


@pytest.mark.parametrize("ends_at", [None, NOW + timedelta(hours=1)])
def test_a_resolved_alarm_is_over_now_at_the_latest(receiver: Receiver, ends_at: datetime | None) -> None:
    alarm = make_alarm("a", State.RESOLVED, starts_at=NOW + timedelta(hours=2), ends_at=ends_at)
    open_alertmanager(receiver.url).deliver([alarm], 0)
    [alert] = alerts_in(receiver)
    starts, ends = (datetime.fromisoformat(alert[name]) for name in ("startsAt", "endsAt"))
    assert starts <= ends <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("site-id", "site_id"), ("9lives", "_9lives"), ("Ä.b c", "__b_c"), ("", "_"), ("alertname", None)],
)
def test_labels_have_names_that_alertmanager_takes(receiver: Receiver, name: str, wanted: str | None) -> None:
    open_alertmanager(receiver.url).deliver([make_alarm("a", labels={name: "x", "empty": ""})], 0)
    labels = alerts_in(receiver)[0]["labels"]
    assert labels["alertname"] == "pneumonia"
    assert set(labels) == {"alertname", "severity", "alarm_id", *([wanted] if wanted else [])}


def test_every_member_gets_every_alarm(receiver: Receiver, second: Receiver) -> None:
    sink = open_alertmanager(receiver.url, second.url)
    assert sink.deliver([make_alarm(str(number)) for number in range(sink.at_once)], 0) == Delivered()
    assert len(alerts_in(receiver)) == len(alerts_in(second)) == sink.at_once
    assert len(receiver.got) == 1


@pytest.mark.parametrize("status", [500, 503, 404, 400])
def test_one_member_is_enough_and_the_other_is_named_once(
    receiver: Receiver, second: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    second.answers = [say(status), say(status), say(200), say(status)]
    sink = open_alertmanager(receiver.url, second.url)
    for _ in range(4):
        assert sink.deliver([make_alarm()], 0) == Delivered()
    place = f"127.0.0.1:{second.port}"
    told = [record.getMessage() for record in caplog.records if place in record.getMessage()]
    assert [str(status) in text for text in told] == [True, False, True]


def test_a_member_that_is_silent_delays_no_other(receiver: Receiver, second: Receiver) -> None:
    receiver.answers = [say_nothing]
    sink = open_alertmanager(receiver.url, second.url, timeout_s=1)
    started = time.monotonic()
    assert sink.deliver([make_alarm()], 0) == Delivered()
    assert len(second.got) == 1
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("statuses", "wanted"),
    [
        ((400, 400), Refused),
        ((413, 422), Refused),
        ((400, 500), Retry),
        ((500, 503), Retry),
        ((401, 403), Retry),
        ((307, 404), Retry),
    ],
)
def test_what_no_member_takes(
    receiver: Receiver, second: Receiver, statuses: tuple[int, int], wanted: type[object]
) -> None:
    receiver.answers, second.answers = [say(statuses[0], b"secret words")], [say(statuses[1])]
    outcome = open_alertmanager(receiver.url, second.url).deliver([make_alarm()], 0)
    assert isinstance(outcome, wanted)
    assert all(str(status) in repr(outcome) for status in statuses)
    assert "secret words" not in repr(outcome)


def test_the_soonest_member_is_asked_again_first(receiver: Receiver, second: Receiver) -> None:
    sink = open_alertmanager(receiver.url, second.url)
    receiver.answers, second.answers = [say(503, Retry_After="60")], [say(503, Retry_After="7")]
    outcome = sink.deliver([make_alarm()], 0)
    assert isinstance(outcome, Retry)
    assert outcome.after_s == 7
    receiver.answers, second.answers = [say(503, Retry_After="60")], [say(500)]
    outcome = sink.deliver([make_alarm()], 0)
    assert isinstance(outcome, Retry)
    assert outcome.after_s is None


def test_it_is_tried_without_end() -> None:
    sink = open_alertmanager("http://127.0.0.1:1")
    assert [sink.next_try_s(attempt) for attempt in (0, 1, 3, 6, 10_000)] == [1, 2, 8, 60, 60]
    assert open_alertmanager("http://127.0.0.1:1", resend_s=5).next_try_s(6) == 5
    assert isinstance(sink.deliver([make_alarm()], 0), Retry)


@pytest.mark.parametrize(
    ("credentials", "wanted"),
    [
        ({"bearer": {"env": "TOKEN"}}, "Bearer open-sesame"),
        (
            {"username": "xräy", "password": {"env": "TOKEN"}},
            "Basic " + base64.b64encode("xräy:open-sesame".encode()).decode(),
        ),
        ({}, None),
    ],
)
def test_credentials_go_in_the_header_over_tls(
    credentials: dict[str, Any], wanted: str | None, authority: trustme.CA, authority_file: Path
) -> None:
    with receive(serve_as(authority, "127.0.0.1")) as receiver:
        sink = open_alertmanager(receiver.url, ca=str(authority_file), **credentials)
        assert sink.deliver([make_alarm()], 0) == Delivered()
        assert receiver.got[0].headers.get("authorization") == wanted


def test_a_token_that_is_gone_is_tried_again(receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    sink = open_alertmanager(receiver.url, bearer={"file": str(file)})
    sink.deliver([make_alarm()], 0)
    file.write_text("second")
    sink.deliver([make_alarm()], 0)
    file.unlink()
    assert isinstance(sink.deliver([make_alarm()], 0), Retry)
    assert [got.headers["authorization"] for got in receiver.got] == ["Bearer first", "Bearer second"]
