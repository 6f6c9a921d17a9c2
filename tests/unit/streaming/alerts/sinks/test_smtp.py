"""Mail to a real server, in every way that it can refuse."""

import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from schemas.envelope import DISCLAIMER
from streaming.alerts.alarm import Delivered, Refused, Retry, Sink, State
from streaming.alerts.sinks import open_sinks
from tests.mailserver import DRIP, HANG_UP, SILENCE, MailServer, serve_mail
from tests.receiver import make_alarm
from tests.unit.streaming.alerts.sinks.test_httppeer import authority, authority_file, serve_as

__all__ = ["authority", "authority_file"]  # fixtures

DUTY, SECOND = "duty@hospital.example", "second@hospital.example"


def open_smtp(server: MailServer, **changes: Any) -> Sink:
    config = {
        "type": "smtp",
        "host": "127.0.0.1",
        "port": server.port,
        "security": "none",
        "sender": "xray@hospital.example",
        "recipients": [DUTY],
        "timeout_s": 10,
    }
    return open_sinks({"mail": config | changes}, {"PASSWORD": "open sesame"})["mail"]


@pytest.fixture
def server() -> Iterator[MailServer]:
    with serve_mail() as server:
        yield server


@pytest.fixture
def context(authority: trustme.CA) -> ssl.SSLContext:
    return serve_as(authority, "127.0.0.1")


def test_a_mail_tells_of_an_alarm(server: MailServer) -> None:
    assert open_smtp(server, recipients=[DUTY, SECOND]).deliver([make_alarm("a" * 32)], 0) == Delivered()
    [mail] = server.mails
    assert mail.recipients == (DUTY, SECOND)
    message = mail.message
    assert message["Message-ID"] == f"<{'a' * 32}@hospital.example>"
    assert message["Subject"] == "[xray page] Suspected pneumonia"
    assert message["Date"].datetime.isoformat() == "2026-11-30T08:00:00+00:00"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message.get_content_type() == "text/plain"
    text = message.get_content()
    assert text.startswith(DISCLAIMER)
    for line in ("rule: pneumonia", "source: /ward-3/dx-1", f"id: {'a' * 32}", "since: 2026-11-30T08:00:00.000Z"):
        assert f"  {line}" in text.splitlines()


def test_that_an_alarm_is_over_answers_its_mail(server: MailServer) -> None:
    sink = open_smtp(server)
    sink.deliver([make_alarm("a" * 32)], 0)
    sink.deliver([make_alarm("a" * 32, State.RESOLVED)], 0)
    first, second = (mail.message for mail in server.mails)
    assert second["In-Reply-To"] == second["References"] == first["Message-ID"] != second["Message-ID"]
    assert second["Subject"] == "[xray page] Suspected pneumonia (resolved)"
    assert "until: 2026-11-30T09:30:00.000Z" in second.get_content()


def test_several_alarms_are_one_mail_with_one_id(server: MailServer) -> None:
    sink = open_smtp(server, alarms_per_message=20)
    alarms = [make_alarm(str(number) * 32, rule=f"rule-{number % 2}") for number in range(3)]
    for order in (alarms, alarms[::-1], alarms[:2]):
        assert sink.deliver(order, 0) == Delivered()
    assert server.mails[0].message["Subject"] == "[xray] 3 alarms: rule-0, rule-1"
    assert all(f"id: {alarm.id}" in server.mails[0].message.get_content() for alarm in alarms)
    assert server.ids[0] == server.ids[1] != server.ids[2]


@pytest.mark.parametrize(
    "text", ["Ångström 肺炎", "two\r\nBcc: other@example.org", "\x00\x1b[31m", "half \ud800 pair", "." * 3]
)
def test_no_text_makes_another_header(server: MailServer, text: str) -> None:
    alarm = make_alarm(annotations={"summary": text, "description": text}, labels={"source": f"{text}\n.\nQUIT"})
    assert open_smtp(server).deliver([alarm], 0) == Delivered()
    [mail] = server.mails
    assert mail.recipients == (DUTY,)
    assert mail.message["Bcc"] is None
    assert mail.message["Subject"].isprintable()
    assert text.split(maxsplit=1)[0].strip("\x00\x1b") in mail.message["Subject"]
    assert f"id: {alarm.id}" in mail.message.get_content()


@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_passwords_go_over_tls(security: str, context: ssl.SSLContext, authority_file: Path) -> None:
    with serve_mail(context, is_tls=security == "tls") as server:
        own = {"security": security, "username": "xray", "password": {"env": "PASSWORD"}}
        assert open_smtp(server, ca=str(authority_file), **own).deliver([make_alarm()], 0) == Delivered()
        assert [(mail.is_private, mail.user) for mail in server.mails] == [(True, "xray")]
        outcome = open_smtp(server, **own).deliver([make_alarm()], 0)
        assert isinstance(outcome, Retry)
        assert "certificate is not accepted" in outcome.why


@pytest.mark.parametrize("offers", [(), ("AUTH PLAIN",), ("STARTTLS",)])
def test_what_is_not_offered_is_not_done_without(
    offers: tuple[str, ...], context: ssl.SSLContext, authority_file: Path
) -> None:
    with serve_mail(context) as server:
        server.offers = offers
        own = {"security": "starttls", "username": "xray", "password": {"env": "PASSWORD"}}
        outcome = open_smtp(server, ca=str(authority_file), **own).deliver([make_alarm()], 0)
        assert isinstance(outcome, Retry)
        assert "does not offer" in outcome.why
        assert server.mails == []


@pytest.mark.parametrize("what", ["MAIL", DUTY, "DATA"])
@pytest.mark.parametrize("status", [421, 450, 451, 452, 550, 552, 554])
def test_4xx_is_tried_again_and_5xx_is_not(server: MailServer, what: str, status: int) -> None:
    server.answers[what] = f"{status} secret words"
    sink = open_smtp(server)
    outcome = sink.deliver([make_alarm()], 0)
    assert isinstance(outcome, Retry if status < 500 else Refused)
    assert str(status) in outcome.why
    assert "secret words" not in outcome.why
    assert server.mails == []
    server.answers.clear()
    assert sink.deliver([make_alarm()], 1) == Delivered()


@pytest.mark.parametrize(
    ("what", "reply"),
    [("GREETING", "554 no"), ("GREETING", "421 busy"), ("STARTTLS", "454 no"), ("AUTH", "535 no"), ("AUTH", "454 no")],
)
def test_a_conversation_that_fails_is_no_refusal_of_an_alarm(
    what: str, reply: str, context: ssl.SSLContext, authority_file: Path
) -> None:
    with serve_mail(context) as server:
        server.answers[what] = reply
        own = {"security": "starttls", "username": "xray", "password": {"env": "PASSWORD"}}
        outcome = open_smtp(server, ca=str(authority_file), **own).deliver([make_alarm()], 0)
        assert isinstance(outcome, Retry)
        assert "open sesame" not in outcome.why


def test_a_challenge_that_is_none_is_a_failure_of_the_conversation(
    context: ssl.SSLContext, authority_file: Path
) -> None:
    with serve_mail(context) as server:
        server.offers = ("STARTTLS", "AUTH CRAM-MD5")
        own = {"security": "starttls", "username": "xray", "password": {"env": "PASSWORD"}}
        outcome = open_smtp(server, ca=str(authority_file), **own).deliver([make_alarm()], 0)
        assert isinstance(outcome, Retry)
        assert "no known way" in outcome.why


@pytest.mark.parametrize("what", ["GREETING", "MAIL", DUTY, "DATA"])
@pytest.mark.parametrize("way", [HANG_UP, SILENCE, DRIP])
@pytest.mark.slow
def test_a_server_that_hangs_is_left(server: MailServer, what: str, way: str) -> None:
    server.answers[what] = way
    sink = open_smtp(server, timeout_s=0.5)
    started = time.monotonic()
    assert isinstance(sink.deliver([make_alarm()], 0), Retry)
    assert time.monotonic() - started < 5
    server.answers.clear()
    assert open_smtp(server).deliver([make_alarm()], 1) == Delivered()


@pytest.mark.parametrize("way", [HANG_UP, SILENCE, DRIP, "500 no"])
def test_a_message_that_was_taken_is_delivered_without_a_goodbye(server: MailServer, way: str) -> None:
    server.answers["QUIT"] = way
    assert open_smtp(server, timeout_s=0.5).deliver([make_alarm()], 0) == Delivered()
    assert len(server.mails) == 1


def test_who_has_a_message_gets_no_second_one(server: MailServer) -> None:
    server.answers[SECOND] = "450 greylisted"
    sink = open_smtp(server, recipients=[DUTY, SECOND])
    assert isinstance(sink.deliver([make_alarm()], 0), Retry)
    server.answers.clear()
    assert sink.deliver([make_alarm()], 1) == Delivered()
    assert [mail.recipients for mail in server.mails] == [(DUTY,), (SECOND,)]
    assert len(set(server.ids)) == 1
    assert sink.deliver([make_alarm()], 0) == Delivered()
    assert server.mails[-1].recipients == (DUTY, SECOND), "a repetition that is asked for goes to all"


def test_one_recipient_that_is_refused_keeps_it_from_no_other(server: MailServer) -> None:
    server.answers[SECOND] = "550 unknown"
    assert open_smtp(server, recipients=[DUTY, SECOND]).deliver([make_alarm()], 0) == Delivered()
    server.answers[DUTY] = "550 unknown"
    assert isinstance(open_smtp(server, recipients=[DUTY, SECOND]).deliver([make_alarm()], 0), Refused)


def test_nobody_there_is_tried_again_for_two_days(server: MailServer) -> None:
    sink = open_smtp(server, host="nobody.invalid")
    outcome = sink.deliver([make_alarm()], 0)
    assert isinstance(outcome, Retry)
    assert "cannot be resolved" in outcome.why
    waits = []
    while (wait_s := sink.next_try_s(len(waits))) is not None:
        waits.append(wait_s)
    assert waits == sorted(waits)
    assert 2 * 86400 <= sum(waits) <= 3 * 86400
