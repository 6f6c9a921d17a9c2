"""Who gets alarms and reports: a receiver of webhooks and a hospital's system, and rules that name them."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.receiver import Receiver, receive
from tests.reportpeers import MllpReceiver, run_mllp

SECRET = "whsec_" + base64.b64encode(b"of the receiver of the webhooks.").decode()

N_MANY = 100
"""With so many rules that each make an alarm, a thousand outcomes take seconds."""


@dataclass(frozen=True)
class Listeners:
    """What a test tells to refuse, to be away, or to take all again."""

    webhook: Receiver
    hospital: MllpReceiver


@contextmanager
def open_listeners() -> Iterator[Listeners]:
    """Run both, on free ports of this machine."""
    with receive() as webhook, run_mllp(MllpReceiver()) as hospital:
        yield Listeners(webhook, hospital)


def write_rules(folder: Path, source: str, *, webhook: str, alertmanager: str) -> Path:
    """Write rules that tell of every image of a source, and of each kind of condition."""
    sinks = {
        "duty": {"type": "alertmanager", "urls": [alertmanager], "resend_s": 5},
        "ris": {
            "type": "webhook",
            "url": webhook,
            "secrets": [{"env": "RIS_SECRET"}],
            "allow_private": True,
            "retries_s": [1] * 100,
        },
        "log": {"type": "file", "path": str(folder / "alarms.jsonl")},
    }
    rules = [
        {"name": "EachImage", "prediction": {"source": source, "flags": ["none", "uncertain", "unlike_training"]}},
        {"name": "Broken", "rate": {"dead_letter": {}, "at_least": 1000, "within": "30m"}},
        {"name": "Silent", "absence": {"source": source, "for": "4h"}},
        {"name": "NeverAnswered", "unanswered": {"for": "1h"}},
    ]
    # Images are open for as short as it goes: each half second brings one, and Alertmanager keeps what is open.
    return _write(folder / "RULES.yml", sinks, rules, {"routes": list(sinks), "open_for": "10s"})


def write_many_rules(folder: Path) -> Path:
    """Write rules that make far more alarms than anybody wants, for no sink."""
    rules = [{"name": f"Any{number}", "prediction": {"score": {"at_least": 0}}} for number in range(N_MANY)]
    return _write(folder / "MANY.yml", {}, rules, {})


def _write(path: Path, sinks: object, rules: object, defaults: object) -> Path:
    document = {"version": 1, "defaults": defaults, "sinks": sinks, "rules": rules}
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path
