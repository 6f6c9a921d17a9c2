"""xray results run as a user starts it: killed at any moment, it loses no report, and repeats one only with its id."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streaming.settings import StreamSettings
from tests.integration.streaming.reports.test_service import confirm, publish, settings, wait_for
from tests.paths import ROOT
from tests.reportparts import report
from tests.reportpeers import MllpReceiver, run_mllp

__all__ = ["settings"]

pytestmark = pytest.mark.kafka

N_PREDICTIONS = 150


def environment(settings: StreamSettings) -> dict[str, str]:
    kafka = settings.kafka
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "XRAY_HOME": str(settings.home),
        "XRAY_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XRAY_KAFKA__PREDICTIONS_TOPIC": kafka.predictions_topic,
        "XRAY_KAFKA__LABELS_TOPIC": kafka.labels_topic,
        "XRAY_KAFKA__LABELS_DEADLETTERS_TOPIC": kafka.labels_deadletters_topic,
        "XRAY_GATEWAY__CROSSWALK": str(settings.gateway.crosswalk),
        "XRAY_REPORTS__METRICS_PORT": "0",
        "XRAY_REPORTS__REFUSAL_WAIT_S": "0.1",
    }


@contextmanager
def command(settings: StreamSettings, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    run = subprocess.Popen(
        [sys.executable, "-m", "xray", "results", *arguments],
        env=environment(settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield run
    finally:
        if run.poll() is None:
            run.kill()
        run.communicate()


def has_accepted(receiver: MllpReceiver, count: int) -> bool:
    return len(set(receiver.accepted)) >= count


@pytest.mark.long
def test_kills_lose_nothing_and_repeat_only_what_has_its_id(settings: StreamSettings) -> None:
    publish(settings, range(N_PREDICTIONS))
    for number in range(0, N_PREDICTIONS, 10):
        confirm(settings, number)
    wanted = N_PREDICTIONS + N_PREDICTIONS // 10
    receiver, kills, dice = MllpReceiver(), 0, random.Random(7)
    with run_mllp(receiver):
        arguments = ("run", "--to", f"mllp:127.0.0.1:{receiver.port}", "--from-beginning", "--json")
        while len(set(receiver.accepted)) < wanted:
            with command(settings, *arguments) as run:
                goal = min(len(set(receiver.accepted)) + dice.randint(1, 25), wanted)
                wait_for(partial(has_accepted, receiver, goal), "nothing more is delivered")
                run.send_signal(signal.SIGKILL)
                kills += 1
    assert kills >= 5
    first = {report(number).key for number in range(N_PREDICTIONS)}
    assert first < set(receiver.accepted)
    assert len(set(receiver.accepted)) == wanted
    repeated = {key: times for key, times in Counter(receiver.accepted).items() if times > 1}
    assert sum(repeated.values()) - len(repeated) <= kills


def test_it_ends_in_order_when_told_to(settings: StreamSettings) -> None:
    with run_mllp(MllpReceiver()) as receiver:
        with command(settings, "run", "--to", f"mllp:127.0.0.1:{receiver.port}", "--json") as run:
            assert run.stdout is not None
            ready: dict[str, Any] = json.loads(run.stdout.readline())
            assert ready["targets"] == ["mllp"]
            publish(settings, [1])
            wait_for(lambda: len(receiver.accepted) == 1, "it did not come")
            run.send_signal(signal.SIGTERM)
            assert run.wait(30) == 0
            assert json.loads(run.stdout.readline()) == {"event": "ended"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--to", "mllp:127.0.0.1:1"), "XRAY_GATEWAY__CROSSWALK"),
        (("export", "--to", "out"), "XRAY_GATEWAY__CROSSWALK"),
        (("run", "--to", "smtp:x"), "wanted fhir:"),
    ],
)
def test_it_says_in_one_line_why_none_is_sent(
    settings: StreamSettings, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    given = {name: text for name, text in environment(settings).items() if name != "XRAY_GATEWAY__CROSSWALK"}
    run = subprocess.run(
        [sys.executable, "-m", "xray", "results", *arguments],
        env=given, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_an_export_is_told_in_numbers_and_names_nobody(settings: StreamSettings, tmp_path: Path) -> None:
    publish(settings, [1, 2, 777])
    run = subprocess.run(
        [sys.executable, "-m", "xray", "results", "export", "--to", str(tmp_path / "out"), "--format", "sr", "--json"],
        env=environment(settings), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(run.stdout) == {
        "written": 2,
        "amended": 0,
        "left_out": {"not_from_the_gateway": 1},
        "notice": "Research use only. Not a medical device.",
    }
    assert "PAT" not in run.stdout + run.stderr
