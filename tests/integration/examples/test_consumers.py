"""The consumers under examples/, each run as another team would run it, with golden events on a real broker."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from kafka.admin import KafkaAdminClient, MemberToRemove

from schemas.envelope import DISCLAIMER
from schemas.goldenevents import GoldenEvent, load_event
from streaming.kafka.producer import RecordProducer
from streaming.kafka.topics import create_topics
from streaming.run.jars import KAFKA_JARS, resolve_jars
from streaming.settings import StreamSettings
from tests.javasource import run_java_file
from tests.paths import ROOT
from xray.broker import LocalBroker

pytestmark = [pytest.mark.kafka, pytest.mark.e2e]

_CONSUMERS = ROOT / "examples" / "consumers"
_TIMEOUT_S = 60.0
_NAMES = ("kafka-python", "confluent-kafka", "java", "node")
_GOLDEN = ("prediction", "prediction_normal", "prediction_uncertain", "prediction_unlike_training")


def command(name: str, jars: Path, node_modules: Path | None) -> list[str]:
    """How a program is started, up to its own arguments."""
    if name == "java":
        path = os.pathsep.join(map(str, resolve_jars(KAFKA_JARS, jars)))
        return run_java_file(_CONSUMERS / "Consumer.java", path)
    if name == "node":
        assert node_modules is not None
        return ["node", str(node_modules.parent / "consumer.mjs")]
    return [sys.executable, str(_CONSUMERS / f"with_{name.replace('-', '_')}.py")]


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``npm ci`` installs; where it cannot, the tests of Node are skipped and say why."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    for file in ("package.json", "package-lock.json", "consumer.mjs"):
        shutil.copy(_CONSUMERS / file, folder)
    install = ["npm", "ci", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm ci: {done.stderr.strip().splitlines()[0] if done.stderr else done.returncode}")
    return folder / "node_modules"


@dataclass
class Reading:
    """A consumer that runs, and the lines that it has printed."""

    process: "subprocess.Popen[str]"
    lines: list[str] = field(default_factory=list)
    came: threading.Condition = field(default_factory=threading.Condition)

    def await_lines(self, count: int) -> list[str]:
        """Wait until it has printed so many lines or more."""
        with self.came:
            enough = self.came.wait_for(lambda: len(self.lines) >= count, _TIMEOUT_S)
            assert enough, (self.lines, self.process.poll())
            return list(self.lines)

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.came:
                self.lines.append(line.rstrip("\n"))
                self.came.notify_all()


@dataclass(frozen=True)
class Bench:
    """One consumer program, with a topic, a group and a file of its own."""

    settings: StreamSettings
    arguments: Sequence[str]
    group: str

    def publish(self, events: Sequence[tuple[str, GoldenEvent]]) -> None:
        """Put golden events on the topic, each under the key that is given, and wait until they are there."""
        failed: list[str | None] = []
        topic = self.settings.kafka.predictions_topic
        producer = RecordProducer(self.settings.kafka, topic)
        for key, event in events:
            producer.send(
                event.value, key=key.encode(), headers=event.headers, on_delivery=lambda d: failed.append(d.error)
            )
        producer.flush()
        assert failed == [None] * len(events)

    @contextmanager
    def running(self, how: signal.Signals = signal.SIGTERM) -> Iterator[Reading]:
        """Run the consumer while the body runs; end it by a signal."""
        process = subprocess.Popen(self.arguments, stdout=subprocess.PIPE, text=True)
        reading = Reading(process)
        thread = threading.Thread(target=reading.read)
        thread.start()
        try:
            yield reading
        finally:
            process.send_signal(how)
            try:
                process.wait(_TIMEOUT_S)
            finally:
                process.kill()
                thread.join(_TIMEOUT_S)
            self.forget_members()

    def forget_members(self) -> None:
        """Do at once what the broker does when a dead client's session times out, which takes 45 s.

        No signal lets these programs say good-bye.
        """
        admin = KafkaAdminClient(bootstrap_servers=self.settings.kafka.bootstrap_servers)
        try:
            members = admin.describe_groups([self.group])[self.group]["members"]
            if members:
                admin.remove_group_members(self.group, [MemberToRemove(member_id=m["member_id"]) for m in members])
        finally:
            admin.close()

    def await_committed(self, count: int) -> None:
        """Wait until the group has committed so many records."""
        topic = self.settings.kafka.predictions_topic
        consumer = Consumer({"bootstrap.servers": self.settings.kafka.bootstrap_servers, "group.id": self.group})
        places = [TopicPartition(topic, partition) for partition in range(self.settings.kafka.partitions)]
        committed = -1
        try:
            for _ in range(600):
                committed = sum(max(place.offset, 0) for place in consumer.committed(places, timeout=_TIMEOUT_S))
                if committed >= count:
                    break
                threading.Event().wait(0.1)
        finally:
            consumer.close()
        assert committed == count


@pytest.fixture(params=_NAMES)
def bench(request: pytest.FixtureRequest, base_settings: StreamSettings, broker: LocalBroker, tmp_path: Path) -> Bench:
    name, own = request.param, uuid.uuid4().hex[:8]
    modules = request.getfixturevalue("node_modules") if name == "node" else None
    kafka = base_settings.kafka.model_copy(update={"predictions_topic": f"{own}.predictions", "partitions": 2})
    settings = base_settings.model_copy(update={"kafka": kafka})
    create_topics(kafka, {kafka.predictions_topic: {}})
    own_arguments = [kafka.bootstrap_servers, f"ward-{own}", str(tmp_path / "seen.txt"), kafka.predictions_topic]
    return Bench(settings, command(name, base_settings.jars_folder, modules) + own_arguments, f"ward-{own}")


def golden() -> list[tuple[str, GoldenEvent]]:
    return [(f"patient-{place}", load_event(name)) for place, name in enumerate(_GOLDEN)]


def read(event: GoldenEvent) -> dict[str, Any]:
    assert event.value is not None
    value: dict[str, Any] = json.loads(event.value)
    return value


def expected(example: GoldenEvent) -> str:
    """The line that a consumer is to print of a golden event."""
    event = read(example)
    said = "FINDING" if event["label"] == event["positive_label"] else "nothing"
    return " ".join(["UNDECIDED" if event.get("flags") else said, event["event_id"], event["image"]["id"], DISCLAIMER])


def test_each_event_is_told_once_whatever_is_repeated_or_killed(bench: Bench) -> None:
    events = golden()
    wanted = sorted(expected(event) for _, event in events)
    assert {line.split()[0] for line in wanted} == {"FINDING", "nothing", "UNDECIDED"}
    # The last ones repeat, under the same keys and under others, so in another partition too.
    repeated = [*events, *((f"again-{key}", event) for key, event in events)]
    bench.publish(events[:2])
    with bench.running() as reading:
        first = reading.await_lines(2)
        bench.await_committed(2)
    assert sorted(first) == sorted(expected(event) for _, event in events[:2])

    # Down while events come; then it goes on from what it has committed, and is killed with no chance to say good-bye.
    bench.publish(events[2:] + repeated)
    with bench.running(signal.SIGKILL) as reading:
        second = reading.await_lines(len(events) - 2)
        bench.await_committed(2 + len(events) - 2 + len(repeated))
    assert len(second) == len(events) - 2
    assert sorted(first + reading.lines) == wanted

    # All is committed and known: nothing is left to tell, and a new event is.
    new = load_event("prediction_old_rendering")
    bench.publish([("patient-9", new)])
    with bench.running() as reading:
        assert reading.await_lines(1) == [expected(new)]


@pytest.mark.long
def test_kills_at_any_point_lose_nothing(bench: Bench) -> None:
    """What was told and not noted yet is told again: at most one event a kill, never one too few."""
    pattern, kills = load_event("prediction"), 3
    values = [read(pattern) | {"event_id": f"{place:032x}"} for place in range(60)]
    bench.publish([(f"{n}", replace(pattern, value=json.dumps(value).encode())) for n, value in enumerate(values)])
    told: list[str] = []
    for _ in range(kills):
        with bench.running(signal.SIGKILL) as reading:
            reading.await_lines(3)
        told += reading.lines
    with bench.running() as reading:
        bench.await_committed(len(values))
    told += reading.lines
    ids = [line.split()[1] for line in told if line.endswith(DISCLAIMER)]
    assert set(ids) == {value["event_id"] for value in values}
    assert len(ids) <= len(values) + kills


def test_flags_that_nobody_knows_yet_count_as_well(bench: Bench) -> None:
    event = load_event("prediction")
    value = read(event) | {"flags": ["of_a_later_release"], "field_of_a_later_release": {"any": [1, None]}}
    bench.publish([("a", replace(event, value=json.dumps(value).encode()))])
    with bench.running() as reading:
        [line] = reading.await_lines(1)
    assert line.split()[0] == "UNDECIDED"


def test_an_event_that_was_not_committed_is_known_by_its_id(bench: Bench, tmp_path: Path) -> None:
    """The crash between the file of ids and the commit: the event comes again, and is not told again."""
    first, second = load_event("prediction"), load_event("prediction_uncertain")
    (tmp_path / "seen.txt").write_text(f"{read(first)['event_id']}\n")
    bench.publish([("a", first), ("a", second)])
    with bench.running() as reading:
        assert reading.await_lines(1) == [expected(second)]
        bench.await_committed(2)
    assert reading.lines == [expected(second)]


def test_no_consumer_is_long() -> None:
    for path in _CONSUMERS.iterdir():
        if path.suffix in {".py", ".java", ".mjs"}:
            assert len(path.read_text().splitlines()) <= 35, path.name


def test_the_lock_file_names_no_registry() -> None:
    assert "resolved" not in (_CONSUMERS / "package-lock.json").read_text()
