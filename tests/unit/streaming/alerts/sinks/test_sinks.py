"""What the part `sinks` of the rules may say."""

import base64
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from schemas.errors import SettingsError
from streaming.alerts.sinks import describe_sinks, open_sinks

GOOD = f"whsec_{base64.b64encode(b'k' * 24).decode()}"
SHORT = f"whsec_{base64.b64encode(b'k' * 23).decode()}"
LONG = f"whsec_{base64.b64encode(b'k' * 65).decode()}"
ENVIRONMENT = {
    "GOOD": GOOD,
    "SHORT": SHORT,
    "LONG": LONG,
    "BARE": GOOD.removeprefix("whsec_"),
    "KEY": GOOD.replace("whsec_", "whsk_"),
    "URLSAFE": "whsec_" + "-_" * 20,
    "EMPTY": "",
    "LINES": "one\ntwo",
    "UMLAUT": "pässword",
}


def webhook(**changes: Any) -> dict[str, Any]:
    return {"type": "webhook", "url": "https://receiver.example/hook", "secrets": [{"env": "GOOD"}], **changes}


def alertmanager(**changes: Any) -> dict[str, Any]:
    return {"type": "alertmanager", "urls": ["http://am-1:9093", "http://am-2:9093"], **changes}


def smtp(**changes: Any) -> dict[str, Any]:
    sender, duty = "xray@hospital.example", "duty@hospital.example"
    return {"type": "smtp", "host": "mail", "sender": sender, "recipients": [duty], **changes}


PASSWORD = {"username": "xray", "password": {"env": "GOOD"}}


def test_all_kinds_are_opened_by_name(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"\n{GOOD}\n")
    config = {
        "duty": alertmanager(resend_s=30, **PASSWORD),
        "ris": webhook(secrets=[{"env": "GOOD"}, {"file": str(secret)}]),
        "mail": smtp(alarms_per_message=20, **PASSWORD),
        "log": {"type": "file", "path": str(tmp_path / "alarms.jsonl")},
    }
    sinks = open_sinks(config, ENVIRONMENT)
    assert {name: sink.name for name, sink in sinks.items()} == {name: name for name in config}
    assert [sink.resend_s for sink in sinks.values()] == [30, None, None, None]
    assert [sink.resolved_for_s for sink in sinks.values()] == [900, 0, 0, 0]
    assert [sink.at_once for sink in sinks.values()] == [256, 1, 20, 1000]
    jsonschema.validate(config, describe_sinks())


@pytest.mark.parametrize(
    ("config", "place", "words"),
    [
        ({"a": None}, "sinks.a", "dictionary"),
        ({"a": {}}, "sinks.a", "type"),
        ({"a": {"type": "pager"}}, "sinks.a", "alertmanager"),
        ({"a b": alertmanager()}, "sinks.a b", "pattern"),
        ({"a": webhook(colour="red")}, "sinks.a.colour", "Extra"),
        ({"a": webhook(url="receiver.example")}, "sinks.a.url", "https://"),
        ({"a": webhook(url="ftp://receiver.example/")}, "sinks.a.url", "https://"),
        ({"a": webhook(url="https://")}, "sinks.a.url", "host"),
        ({"a": webhook(url="https://me:hidden@receiver.example/")}, "sinks.a.url", "user or password"),
        ({"a": webhook(url="https://receiver.example/#hidden")}, "sinks.a.url", "fragment"),
        ({"a": webhook(url="https://receiver.example:99999/")}, "sinks.a.url", "no URL"),
        ({"a": webhook(url="http://receiver.example/")}, "sinks.a", "allow_private"),
        ({"a": webhook(url="https://10.0.0.1/")}, "sinks.a", "allow_private"),
        ({"a": webhook(url="https://[::1]/")}, "sinks.a", "allow_private"),
        ({"a": webhook(url="https://[::ffff:127.0.0.1]/")}, "sinks.a", "allow_private"),
        ({"a": webhook(url="https://0.0.0.0/", allow_private=True)}, "sinks.a", "not allowed"),
        ({"a": webhook(secrets=[])}, "sinks.a.secrets", "at least 1"),
        ({"a": webhook(secrets=[{"env": "GOOD"}] * 3)}, "sinks.a.secrets", "at most 2"),
        ({"a": webhook(secrets=[GOOD])}, "sinks.a.secrets.0", "dictionary"),
        ({"a": webhook(secrets=[{"env": "GOOD"}, {"env": "NONE"}])}, "sinks.a.secrets.1", "variable NONE is empty"),
        ({"a": webhook(secrets=[{"env": "EMPTY"}])}, "sinks.a.secrets.0", "empty"),
        ({"a": webhook(secrets=[{"env": "SHORT"}])}, "sinks.a.secrets.0", "24 to 64"),
        ({"a": webhook(secrets=[{"env": "LONG"}])}, "sinks.a.secrets.0", "24 to 64"),
        ({"a": webhook(secrets=[{"env": "BARE"}])}, "sinks.a.secrets.0", "whsec_"),
        ({"a": webhook(secrets=[{"env": "KEY"}])}, "sinks.a.secrets.0", "whsec_"),
        ({"a": webhook(secrets=[{"env": "URLSAFE"}])}, "sinks.a.secrets.0", "base64"),
        ({"a": webhook(secrets=[{"file": "/nowhere/secret"}])}, "sinks.a.secrets.0", "No such file"),
        ({"a": webhook(secrets=[{"file": "/"}])}, "sinks.a.secrets.0", "directory"),
        ({"a": webhook(secrets=[{"env": "GOOD", "file": "/x"}])}, "sinks.a.secrets.0", "either"),
        ({"a": webhook(secrets=[{}])}, "sinks.a.secrets.0", "either"),
        ({"a": webhook(ca="/nowhere/ca.pem")}, "sinks.a.ca", "No such file"),
        ({"a": webhook(ca=__file__)}, "sinks.a.ca", "no certificate"),
        ({"a": webhook(timeout_s=0)}, "sinks.a.timeout_s", "greater"),
        ({"a": webhook(timeout_s=31)}, "sinks.a.timeout_s", "30"),
        ({"a": alertmanager(urls=[])}, "sinks.a.urls", "at least 1"),
        ({"a": alertmanager(urls=["http://am-1", "am-2"])}, "sinks.a.urls.1", "https://"),
        ({"a": alertmanager(username="me")}, "sinks.a", "belong together"),
        ({"a": alertmanager(bearer={"env": "GOOD"}, **PASSWORD)}, "sinks.a", "both"),
        ({"a": alertmanager(bearer={"env": "LINES"})}, "sinks.a.bearer", "one line"),
        ({"a": alertmanager(bearer={"env": "UMLAUT"})}, "sinks.a.bearer", "ASCII"),
        ({"a": alertmanager(resend_s=0)}, "sinks.a.resend_s", "1"),
        ({"a": smtp(sender="duty")}, "sinks.a.sender", "pattern"),
        ({"a": smtp(recipients=[])}, "sinks.a.recipients", "at least 1"),
        ({"a": smtp(recipients=["a@b", "c@d\nBcc: e@f"])}, "sinks.a.recipients.1", "pattern"),
        ({"a": smtp(recipients=["a@b, c@d"])}, "sinks.a.recipients.0", "pattern"),
        ({"a": smtp(security="none", **PASSWORD)}, "sinks.a", "for all to read"),
        ({"a": smtp(password={"env": "GOOD"})}, "sinks.a", "belong together"),
        ({"a": smtp(port=0)}, "sinks.a.port", "1"),
        ({"a": {"type": "file", "path": "alarms.jsonl"}}, "sinks.a.path", "absolute"),
        ({"a": {"type": "file", "path": "/nowhere/alarms.jsonl"}}, "sinks.a.path", "No such file"),
        ({"a": {"type": "file", "path": "/"}}, "sinks.a.path", "is no file"),
        ({"a": {"type": "file", "path": "/dev/null"}}, "sinks.a.path", "is no file"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(config: dict[str, Any], place: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_sinks(config, ENVIRONMENT)
    assert str(caught.value).startswith(f"{place}: ")
    assert words in str(caught.value)
    shown = f"{caught.value!r} {caught.value.__cause__!r}"
    assert not [value for value in ("hidden", GOOD, SHORT, LONG, "pässword") if value in shown]


def test_nothing_is_wrong_with_no_sinks() -> None:
    assert open_sinks({}) == {}
