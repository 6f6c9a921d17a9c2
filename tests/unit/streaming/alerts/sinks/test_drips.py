"""Each kind of sink with a receiver that drips, and with a name server that hangs: it is soon done with, alone."""

import base64
import socket
import time
from typing import Any

import pytest

from streaming.alerts.alarm import Delivered, Retry, Sink
from streaming.alerts.sinks import open_sinks
from tests.drips import ENDLESS, TLS_RECORD, hanging_names, run_drips
from tests.mailserver import serve_mail
from tests.receiver import make_alarm, receive

__all__ = ["hanging_names"]  # a fixture

SECRET = f"whsec_{base64.b64encode(b'k' * 24).decode()}"


def open_sink(kind: str, place: str, **own: Any) -> Sink:
    host, _, port = place.partition(":")
    config = {
        "webhook": {"type": "webhook", "secrets": [{"env": "SECRET"}], "allow_private": True},
        "alertmanager": {"type": "alertmanager"},
        "smtp": {"type": "smtp", "host": host, "port": int(port or 25), "sender": "a@b.example"},
    }[kind] | {"timeout_s": 0.3}
    scheme = own.pop("scheme", "http")
    more: dict[str, Any] = {
        "webhook": {"url": f"{scheme}://{place}/"},
        "alertmanager": {"urls": [f"{scheme}://{place}/"]},
        "smtp": {"recipients": ["c@d.example"], "security": "none"},
    }[kind]
    return open_sinks({"one": config | more | own}, {"SECRET": SECRET})["one"]


def deliver_in_time(sink: Sink) -> str:
    began = time.monotonic()
    outcome = sink.deliver([make_alarm()], 0)
    assert time.monotonic() - began < 5
    assert isinstance(outcome, Retry)
    return outcome.why


@pytest.mark.parametrize("where", ENDLESS)
@pytest.mark.parametrize("kind", ["webhook", "alertmanager"])
@pytest.mark.slow
def test_an_answer_of_http(kind: str, where: str) -> None:
    with run_drips(ENDLESS[where]) as port:
        deliver_in_time(open_sink(kind, f"127.0.0.1:{port}"))


@pytest.mark.parametrize(
    ("kind", "own"),
    [("webhook", {"scheme": "https"}), ("alertmanager", {"scheme": "https"}), ("smtp", {"security": "tls"})],
)
def test_tls(kind: str, own: dict[str, Any]) -> None:
    with run_drips(TLS_RECORD) as port:
        deliver_in_time(open_sink(kind, f"localhost:{port}", **own))


def test_tls_that_is_begun_later() -> None:
    with serve_mail() as server:
        server.answers["STARTTLS"] = "220 go on\r\n" + TLS_RECORD.decode("latin-1")
        server.offers = ("STARTTLS",)
        deliver_in_time(open_sink("smtp", f"127.0.0.1:{server.port}", security="starttls"))


@pytest.mark.parametrize("kind", ["webhook", "alertmanager", "smtp"])
def test_a_name_server(kind: str, hanging_names: list[str]) -> None:
    hung = open_sink(kind, f"{kind}.hangs:1")
    for _ in range(3):
        deliver_in_time(hung)
    assert hanging_names == [f"{kind}.hangs"], "one question at a time"
    with receive() as receiver:  # meanwhile others are reached
        assert open_sink("webhook", f"localhost:{receiver.port}").deliver([make_alarm()], 0) == Delivered()


@pytest.mark.parametrize("own", ["gateway-1", "gateway-1.hospital.example", "localhost"])
def test_nobody_is_asked_for_the_own_name(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_mail() as server:
        monkeypatch.setattr(socket, "gethostname", lambda: own)
        monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("asked"))
        monkeypatch.setattr(socket, "gethostbyname", lambda *_: pytest.fail("asked"))
        assert open_sink("smtp", f"127.0.0.1:{server.port}").deliver([make_alarm()], 0) == Delivered()
        assert server.greeted == [own if "." in own else "[127.0.0.1]"]
