"""``xray demo --keep``: a team develops against it, and it ends in order."""

import json
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer

from benchmarks.ports import find_ports
from schemas.documents import load_asyncapi
from tests.e2e.conftest import Shell
from tests.paths import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.kafka, pytest.mark.spark, pytest.mark.timeout(600)]

_START_S = 280.0
_FLOW_S = 120.0


@contextmanager
def sandbox(shell: Shell) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """Run a sandbox while the body runs, which is to end it; give what it says when it is ready."""
    process = shell.start("demo", "--count", "20", "--keep", "--every", "0.5", "--port", str(find_ports()), "--json")
    timer = threading.Timer(_START_S, process.terminate)
    timer.start()
    errors: list[str] = []
    assert process.stderr is not None
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()))
    reader.start()
    try:
        line = process.stdout.readline()
        timer.cancel()
        assert line, "".join(errors)
        ready = json.loads(line)
        assert ready["event"] == "ready"
        yield process, ready
        assert process.wait(_FLOW_S) == 0, "".join(errors)
        reader.join()
        assert "Traceback" not in "".join(errors)
    finally:
        timer.cancel()
        process.terminate()
        try:
            process.wait(_FLOW_S)
        finally:
            process.kill()


def is_open(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def summary_of(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    [line] = process.stdout.read().splitlines()
    summary: dict[str, Any] = json.loads(line)
    return summary


def read_until_all_kinds(address: str) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Read what trickles in until each thing that a consumer must bear has come."""
    consumer = KafkaConsumer(
        "xray.predictions", "xray.deadletters", bootstrap_servers=address, auto_offset_reset="earliest"
    )
    ended = threading.Event()
    timer = threading.Timer(_FLOW_S, ended.set)
    timer.start()
    events: list[dict[str, Any]] = []
    kinds: Counter[str] = Counter()
    ids: set[str] = set()
    try:
        while not ended.is_set() and not {"decided", "flagged", "repeated", "dead letter"} <= set(kinds):
            for record in (record for found in consumer.poll(500).values() for record in found):
                headers = dict(record.headers)
                if b"/xray/sandbox" not in (record.value or b"") and headers.get("ce_source") != b"/xray/sandbox":
                    continue
                if record.topic == "xray.deadletters":
                    kinds["dead letter"] += 1
                    continue
                event = json.loads(record.value)
                events.append(event)
                kinds["repeated" if event["event_id"] in ids else "flagged" if event["flags"] else "decided"] += 1
                ids.add(event["event_id"])
    finally:
        timer.cancel()
        consumer.close()
    return events, kinds


@pytest.mark.long
def test_a_team_develops_against_it_and_xray_down_ends_it(shell: Shell, tmp_path: Path) -> None:
    with sandbox(shell) as (process, ready):
        address = ready["bootstrap_servers"]
        assert ready["topics"] == sorted(channel["address"] for channel in load_asyncapi()["channels"].values())
        events, kinds = read_until_all_kinds(address)
        assert set(kinds) == {"decided", "flagged", "repeated", "dead letter"}

        # A consumer as the examples have it, and our own commands with the environment that was printed.
        example = ROOT / "examples" / "consumers" / "with_kafka_python.py"
        consumer = subprocess.Popen(
            [sys.executable, str(example), address, "team", str(tmp_path / "seen.txt")],
            stdout=subprocess.PIPE,
            text=True,
        )
        timer = threading.Timer(_FLOW_S, consumer.kill)
        timer.start()
        assert consumer.stdout is not None
        told = [consumer.stdout.readline() for _ in range(20 + len({event["event_id"] for event in events}))]
        timer.cancel()
        consumer.kill()
        consumer.wait()
        assert all(told)
        assert len({line.split()[1] for line in told}) == len(told)
        other = Shell({**shell.environ, **ready["environ"]})
        watched = other.run("watch", "--json", "--from-beginning", "--count", "5", "--timeout", "60")
        assert len(watched.stdout.splitlines()) == 5

        second = shell.run("demo", "--count", "20", "--port", str(find_ports()))
        assert (second.returncode, "'xray down' ends it" in second.stderr) == (2, True)
        assert is_open(address)

        assert shell.json("down") == {"stopped": False, "demo_stopped": True}
        assert process.wait(1) == 0
        assert not is_open(address)
        assert summary_of(process)["trickled"] >= len(events)
    assert shell.json("down") == {"stopped": False}


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(shell: Shell, how: signal.Signals) -> None:
    with sandbox(shell) as (process, ready):
        _, kinds = read_until_all_kinds(ready["bootstrap_servers"])
        process.send_signal(how)
        assert process.wait(_FLOW_S) == 0
        assert not is_open(ready["bootstrap_servers"])
        assert summary_of(process)["trickled"] >= kinds.total()
