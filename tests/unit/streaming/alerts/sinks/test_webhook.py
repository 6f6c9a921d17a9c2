"""Webhooks against a real receiver that verifies with the specification's own library."""

import base64
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from standardwebhooks import Webhook, WebhookVerificationError

from schemas.envelope import DISCLAIMER
from streaming.alerts.alarm import Delivered, Disabled, Refused, Retry, Sink, State
from streaming.alerts.sinks import open_sinks
from streaming.alerts.sinks.webhook import MAX_BODY_BYTES, RETRIES_S
from tests.receiver import ENDED, STARTED, Answer, Receiver, make_alarm, receive, say, say_raw
from tests.unit.streaming.alerts.sinks.test_httppeer import authority, authority_file, serve_as

__all__ = ["authority", "authority_file"]  # fixtures

OLD, NEW, OTHER = (f"whsec_{base64.b64encode(bytes([fill] * 32)).decode()}" for fill in (1, 2, 3))


def open_webhook(url: str, secrets: list[Any] | None = None, **changes: Any) -> Sink:
    config = {"type": "webhook", "url": url, "secrets": secrets or [{"env": "OLD"}], "allow_private": True, **changes}
    return open_sinks({"ris": config}, {"OLD": OLD, "NEW": NEW})["ris"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receive() as receiver:
        yield receiver


def test_an_alarm_is_signed_and_thin(receiver: Receiver) -> None:
    sink = open_webhook(receiver.url)
    assert sink.deliver([make_alarm("a" * 32)], 0) == Delivered()
    [got] = receiver.got
    assert got.headers["webhook-id"] == "a" * 32
    assert abs(int(got.headers["webhook-timestamp"]) - time.time()) < 60
    assert got.headers["content-type"] == "application/json"
    document = Webhook(OLD).verify(got.body, got.headers)
    assert set(document) == {"type", "timestamp", "data"}
    assert (document["type"], document["timestamp"]) == ("xray.alarm.open", "2026-11-30T08:00:00.000Z")
    assert document["data"]["event_id"] == "e" * 32
    assert document["data"]["notice"] == DISCLAIMER
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(got.body, got.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(OLD).verify(got.body.replace(b"page", b"none"), got.headers)


@pytest.mark.parametrize("secret", [OLD, NEW])
def test_while_secrets_change_either_verifies(receiver: Receiver, secret: str) -> None:
    sink = open_webhook(receiver.url, [{"env": "NEW"}, {"env": "OLD"}])
    assert sink.deliver([make_alarm()], 0) == Delivered()
    [got] = receiver.got
    assert len(got.headers["webhook-signature"].split(" ")) == 2
    assert Webhook(secret).verify(got.body, got.headers)


def test_a_secret_that_changes_in_its_file_needs_no_restart(receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{OLD}\n")
    sink = open_webhook(receiver.url, [{"file": str(file)}])
    sink.deliver([make_alarm()], 0)
    file.write_text(NEW)
    sink.deliver([make_alarm()], 0)
    for secret, got in zip((OLD, NEW), receiver.got, strict=True):
        assert Webhook(secret).verify(got.body, got.headers)
    for damage in ("", "whsec_short", "no secret at all"):
        file.write_text(damage)
        outcome = sink.deliver([make_alarm()], 0)
        assert isinstance(outcome, Retry)
        assert str(file) in outcome.why
        assert not damage or damage not in outcome.why
    file.unlink()
    assert isinstance(sink.deliver([make_alarm()], 0), Retry)
    assert len(receiver.got) == 2, "nothing goes out unsigned"


def test_a_repetition_has_the_id_and_the_body_that_it_had(receiver: Receiver) -> None:
    receiver.answers = [say(500, Connection="close"), say_raw(b""), say(200)]
    sink = open_webhook(receiver.url)
    outcomes = [sink.deliver([make_alarm("a" * 32)], attempt) for attempt in range(3)]
    assert [type(outcome) for outcome in outcomes] == [Retry, Retry, Delivered]
    assert {(got.headers["webhook-id"], got.body) for got in receiver.got} == {("a" * 32, receiver.got[0].body)}


def test_that_an_alarm_is_over_is_a_message_of_its_own(receiver: Receiver) -> None:
    sink = open_webhook(receiver.url)
    for _ in range(2):
        sink.deliver([make_alarm("a" * 32, State.RESOLVED)], 0)
    assert {got.headers["webhook-id"] for got in receiver.got} == {"a" * 32 + "-resolved"}
    document = Webhook(OLD).verify(receiver.got[0].body, receiver.got[0].headers)
    assert (document["type"], document["timestamp"]) == ("xray.alarm.resolved", "2026-11-30T09:30:00.000Z")
    assert (document["data"]["id"], document["data"]["state"]) == ("a" * 32, "resolved")
    assert STARTED < ENDED


@pytest.mark.parametrize("status", [199, 301, 302, 307, 400, 401, 403, 404, 409, 413, 422, 500, 501, 503])
def test_only_2xx_is_success(receiver: Receiver, status: int) -> None:
    receiver.answers = [say(status, b"secret words", Location="http://127.0.0.1:1/")]
    outcome = open_webhook(receiver.url).deliver([make_alarm()], 0)
    assert isinstance(outcome, Retry)
    assert outcome.after_s is None
    assert "status" in outcome.why
    assert "secret words" not in outcome.why


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_is_success(receiver: Receiver, status: int) -> None:
    receiver.answers = [say(status)]
    assert open_webhook(receiver.url).deliver([make_alarm()], 0) == Delivered()


def test_410_disables(receiver: Receiver) -> None:
    receiver.answers = [say(410)]
    outcome = open_webhook(receiver.url).deliver([make_alarm()], 0)
    assert isinstance(outcome, Disabled)
    assert "410" in outcome.why


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("status", [429, 503, 500])
def test_retry_after_is_heeded_for_every_alarm(receiver: Receiver, status: int, form: str) -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    receiver.answers = [say(status, Retry_After="600" if form == "seconds" else then)]
    sink = open_webhook(receiver.url)
    outcome = sink.deliver([make_alarm()], 0)
    assert isinstance(outcome, Retry)
    assert outcome.tried
    assert outcome.after_s == pytest.approx(600, abs=10)
    other = sink.deliver([make_alarm("b" * 32)], 0)
    assert isinstance(other, Retry)
    assert not other.tried, "it used up no attempt"
    assert other.after_s == pytest.approx(600, abs=10)
    assert len(receiver.got) == 1, "nothing is sent until then"


def test_a_short_wait_is_waited_for(receiver: Receiver) -> None:
    receiver.answers = [say(429, Retry_After="1")]
    sink = open_webhook(receiver.url)
    first = sink.deliver([make_alarm()], 0)
    assert isinstance(first, Retry)
    assert first.after_s is not None
    assert first.after_s >= RETRIES_S[0], "never sooner than the schedule, or its attempts were used up in seconds"
    started = time.monotonic()
    assert sink.deliver([make_alarm("b" * 32)], 0) == Delivered()
    assert time.monotonic() - started > 0.8


@pytest.mark.parametrize("status", [429, 502, 504])
def test_a_receiver_under_load_is_sent_to_less_often(receiver: Receiver, status: int) -> None:
    receiver.answers = [say(status), say(status), say(200), say(status)]
    sink = open_webhook(receiver.url)
    waits = []
    for _ in range(4):
        sink._closed_until = 0.0  # type: ignore[attr-defined]  # as if the time had passed
        outcome = sink.deliver([make_alarm()], 9)
        assert isinstance(outcome, Retry | Delivered)
        waits.append(sink._closed_until - time.monotonic())  # type: ignore[attr-defined]
    assert waits[0] == pytest.approx(5, abs=1)
    assert waits[1] == pytest.approx(10, abs=1)
    assert waits[3] == pytest.approx(5, abs=1), "begins anew after a success"


def test_the_schedule_is_the_specifications() -> None:
    sink = open_webhook("http://127.0.0.1:1/")
    hour = 3600
    wanted = [5, 300, 1800, 2 * hour, 5 * hour, 10 * hour, 14 * hour, 20 * hour, 24 * hour]
    for attempt, wait_s in enumerate(wanted):
        drawn = [sink.next_try_s(attempt) for _ in range(20)]
        assert all(one is not None and wait_s <= one <= 1.1 * wait_s for one in drawn)
        assert len(set(drawn)) > 1, "jitter"
    assert sink.next_try_s(len(wanted)) is None
    assert open_webhook("http://127.0.0.1:1/", retries_s=[1]).next_try_s(1) is None


@pytest.mark.parametrize("kind", ["labels", "annotations", "event"])
def test_a_message_that_is_too_large_is_refused_here(receiver: Receiver, kind: str) -> None:
    sink = open_webhook(receiver.url)
    large = make_alarm(**{kind: {"x": "y" * MAX_BODY_BYTES}})
    assert isinstance(sink.deliver([large], 0), Refused)
    assert receiver.got == []
    smaller = make_alarm(**{kind: {"x": "y" * (MAX_BODY_BYTES - 1000)}})
    assert sink.deliver([smaller], 0) == Delivered()
    assert len(receiver.got[0].body) < MAX_BODY_BYTES


@pytest.mark.parametrize("text", ["Ångström 肺炎", "a\r\nb", "\x00\x1f", "half \ud800 pair", '"}'])
def test_any_text_arrives_signed(receiver: Receiver, text: str) -> None:
    assert open_webhook(receiver.url).deliver([make_alarm(annotations={"summary": text})], 0) == Delivered()
    [got] = receiver.got
    assert Webhook(OLD).verify(got.body, got.headers)["data"]["annotations"]["summary"] == text


def test_https_to_an_own_authority(authority: trustme.CA, authority_file: Path) -> None:
    with receive(serve_as(authority, "127.0.0.1")) as receiver:
        sink = open_webhook(receiver.url, ca=str(authority_file))
        assert sink.deliver([make_alarm()], 0) == Delivered()
        assert Webhook(OLD).verify(receiver.got[0].body, receiver.got[0].headers)
        outcome = open_webhook(receiver.url).deliver([make_alarm()], 0)
        assert isinstance(outcome, Retry)
        assert "certificate" in outcome.why


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.1"])
def test_a_name_that_leads_to_this_machine_is_not_posted_to(host: str, authority: trustme.CA) -> None:
    with receive(serve_as(authority, "localhost")) as receiver:
        sink = open_webhook(f"https://{host}:{receiver.port}/", allow_private=False)
        outcome = sink.deliver([make_alarm()], 0)
        assert isinstance(outcome, Retry), "a name may lead elsewhere later"
        assert "allow_private" in outcome.why
        assert receiver.got == []


def test_nothing_of_a_secret_is_shown(receiver: Receiver) -> None:
    answers: list[Answer] = [say(500), say(410)]
    receiver.answers = answers
    sink = open_webhook(receiver.url)
    shown = [repr(sink.deliver([make_alarm()], 0)) for _ in range(2)] + [
        repr(vars(sink)),
        receiver.got[0].body.decode(),
    ]
    assert not [text for text in shown if OLD in text or OLD.removeprefix("whsec_") in text]
    assert "key=1" not in shown[0], "a query may hold a token"
    assert json.loads(receiver.got[0].body)["type"] == "xray.alarm.open"
