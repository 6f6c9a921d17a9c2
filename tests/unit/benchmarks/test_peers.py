"""The peers' figures, and the plain consumer, without any service."""

import json
import multiprocessing as mp
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaError, KafkaException

from benchmarks import onnx
from benchmarks.engines import EngineChoice
from benchmarks.onnx import name_missing
from benchmarks.peers import consumer, measure
from benchmarks.peers.consumer import Classifier, ConsumerPlan, consume, take
from benchmarks.peers.figures import Peer, show, summarize
from benchmarks.peers.host import SparkHost
from benchmarks.peers.lineup import check_alike, check_weights, choose_batch, try_batches
from benchmarks.peers.measure import Turn, count_published, measure_rate
from tests.testimages import png
from training.model.classifier import Head

# -- throughput --------------------------------------------------------------------------------------------------------


@dataclass
class Machine:
    """A clock that stands but for the results, and processor time at half its pace."""

    time_s: float = 100.0

    def results(self, seconds: list[float]) -> Iterator[str | None]:
        """Give a result behind each of so many seconds, and None before one that is waited for."""
        for place, wait_s in enumerate(seconds):
            if wait_s:
                yield None
            self.time_s += wait_s
            yield str(place)

    def used(self) -> float:
        return self.time_s / 2


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: found.time_s)
    return found


def batches(*sizes_and_seconds: tuple[int, float]) -> list[float]:
    """Give results of which a whole micro-batch comes at once: what it took lies before its first one."""
    return [wait_s for size, batch_s in sizes_and_seconds for wait_s in (batch_s, *[0.0] * (size - 1))]


@pytest.mark.parametrize("sizes", [(20, 20, 5), (19, 20, 6), (18, 18, 9), (20, 17, 8), (16, 16, 13)])
def test_a_micro_batch_is_measured_from_end_to_end(machine: Machine, sizes: tuple[int, int, int]) -> None:
    """Whatever it lacks: the next one's images are not its own, nor is the time that they took."""
    first, second, rest = sizes
    seconds = batches((first, 30.0), (second, second / 2), (rest, 7.0))
    rate = measure_rate(machine.results(seconds), 20, machine.used, in_batches=True)
    assert (rate.img_s, rate.cpu_s_per_1000) == (2.0, 250.0)


def test_results_that_trickle_out_of_a_micro_batch_do_not_end_it(machine: Machine) -> None:
    trickle = [2.0, *[0.5] * 18]
    rate = measure_rate(machine.results([*trickle, *trickle, *batches((7, 3.0))]), 20, machine.used, in_batches=True)
    assert rate.img_s == pytest.approx(19 / 11)


def test_the_first_half_warms_up(machine: Machine) -> None:
    rate = measure_rate(machine.results([5.0] * 20 + [0.5] * 25), 20, machine.used, in_batches=False)
    assert (rate.img_s, rate.cpu_s_per_1000) == (2.0, 250.0)


def test_the_last_results_of_single_images_are_left_out(machine: Machine) -> None:
    """One of two processes is done before the other."""
    rate = measure_rate(machine.results([1.0] * 20 + [0.5] * 18 + [1.0] * 7), 20, machine.used, in_batches=False)
    assert rate.img_s == 2.0


@pytest.mark.parametrize("come", [0, 20, 44])
def test_results_that_do_not_come_are_said(machine: Machine, come: int) -> None:
    assert count_published(20) == 45
    with pytest.raises(RuntimeError, match=f"{45 - come} of 45 results"):
        measure_rate(machine.results([1.0] * come), 20, machine.used, in_batches=True)


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ({1: [10.0], 8: [12.0]}, 8),
        ({1: [10.0], 4: [12.0], 8: [11.0]}, 4),
        ({1: [10.0], 8: [10.2]}, 1),  # not worth its latency
        ({1: [10.0, 5.0, 2.0], 8: [9.0, 4.5, 30.0]}, 1),  # the machine was slow in between
        ({1: [10.0]}, 1),
    ],
)
def test_a_batch_must_be_clearly_faster(rates: dict[int, list[float]], best: int) -> None:
    assert choose_batch(rates) == best


def test_engines_are_tried_in_turns(network: Any) -> None:
    choices = {name: {batch: EngineChoice(network, batch, name) for batch in (1, 8)} for name in ("a", "b")}
    seen: list[tuple[str, int]] = []

    def run(choice: EngineChoice) -> float:
        seen.append((choice.onnx_path, choice.batch))
        return float(len(seen))

    found = try_batches(choices, run)
    assert seen[:4] == seen[4:8] == seen[8:] == [("a", 1), ("a", 8), ("b", 1), ("b", 8)]
    assert found == {"a": {1: [1, 5, 9], 8: [2, 6, 10]}, "b": {1: [3, 7, 11], 8: [4, 8, 12]}}


@pytest.fixture
def network() -> Any:
    return SimpleNamespace(input_size=(8, 8))


def test_networks_of_other_weights_are_not_compared() -> None:
    one, same, other = (SimpleNamespace(weights_sha256=text) for text in ("aa", "aa", "bb"))
    check_weights(one, same)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="SHA-256 bb, expected aa"):
        check_weights(one, other)  # type: ignore[arg-type]


@dataclass
class Fixed:
    """An engine that gives every image the same features."""

    features: tuple[float, float]

    def start(self) -> Any:
        return lambda images: np.array([self.features] * len(images), np.float32)

    def decode(self, payload: bytes) -> Any:
        return np.zeros((8, 8), np.uint8)


@pytest.mark.parametrize(
    ("other", "alike"), [((1.0, 2.0), True), ((2.0, 4.01), True), ((1.0, 3.0), False), ((-1.0, -2.0), False)]
)
def test_engines_that_compute_something_else_are_not_compared(other: tuple[float, float], alike: bool) -> None:
    engines: Any = (Fixed((1.0, 2.0)), Fixed(other))
    if alike:
        check_alike(*engines, [b"", b""])
        return
    with pytest.raises(RuntimeError, match="cosine"):
        check_alike(*engines, [b"", b""])


@pytest.mark.parametrize(
    ("absent", "note"),
    [
        ((), ""),
        (("onnxruntime",), "not installed: pip install onnxruntime"),
        (("tensorflow", "onnx"), "not installed: pip install onnx tensorflow-cpu"),
    ],
)
def test_a_missing_package_is_named_as_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, absent: tuple[str, ...], note: str
) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name in absent else object())
    assert name_missing("onnxruntime", "onnx", "tensorflow") == note


# -- figures -----------------------------------------------------------------------------------------------------------

BARE = Peer("bare", "OpenVINO fp32", 1, turns=[Turn(80.0, 20.0, 300_000_000), Turn(40.0, 30.0, 320_000_000)])


def test_ratios_are_taken_within_a_round_and_latencies_over_all() -> None:
    turns = [
        Turn(40.0, 30.0, 3_000_000_000, ([0.1, 0.3], [0.5], None)),
        Turn(36.0, 50.0, 3_200_000_000, ([0.2], None, None)),
    ]
    found = summarize(Peer("score", "OpenVINO fp32", 1, turns=turns), BARE, (20.0, 40.0))
    assert (found["img_s"], found["of_bare"], found["cpu_s_per_1000"]) == (38.0, 0.7, 40.0)
    assert found["pss_mb"] == 3100
    idle, low, high = found["latency_seconds"]
    assert (idle["rate_img_s"], idle["images"], round(idle["p50"], 6)) == (1.0, 3, 0.2)
    assert (low["rate_img_s"], low["images"], low["p50"], low["p95"]) == (20.0, 1, 0.5, 0.5)
    assert (high["rate_img_s"], high["images"], high["p50"], high["p95"]) == (40.0, 0, None, None)
    assert [each["img_s"] for each in found["rounds"]] == [40.0, 36.0]
    json.dumps(found)


def test_the_bare_limit_has_no_latency_and_is_its_own_measure() -> None:
    found = summarize(BARE, BARE, (20.0,))
    assert (found["of_bare"], found["img_s"]) == (1.0, 60.0)
    assert [(each["images"], each["p50"]) for each in found["latency_seconds"]] == [(0, None), (0, None)]


def test_a_peer_that_was_not_measured_says_why() -> None:
    found = summarize(Peer("consumer_onnx", "ONNX Runtime fp32", note="not installed"), BARE, (20.0,))
    assert found["note"] == "not installed"
    figures = ("img_s", "of_bare", "cpu_s_per_1000", "pss_mb", "batch")
    assert [found[name] for name in figures] == [None] * len(figures)
    assert found["rounds"] == []


def test_the_table_has_a_row_for_each(capfd: pytest.CaptureFixture[str]) -> None:
    absent = Peer("consumer_onnx", "ONNX Runtime fp32", note="not installed")
    show([summarize(peer, BARE, (20.0,)) for peer in (BARE, absent)], (20.0,), "a title")
    lines = capfd.readouterr().out.splitlines()
    (bare,) = (line for line in lines if "OpenVINO fp32 x1" in line)
    assert "60.0" in bare
    assert any("not installed" in line for line in lines)


# -- the plain consumer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_consumer_predicts_as_the_served_classifier_does(n_classes: int) -> None:
    rng = np.random.default_rng(n_classes)
    rows = 1 if n_classes == 2 else n_classes
    head = Head(rng.normal(size=(rows, 5)), rng.normal(size=rows))
    features = rng.normal(size=(4, 5)).astype(np.float32)
    classifier = Classifier(("a", "b", "c")[:n_classes], head.coefficients, head.intercepts)
    np.testing.assert_allclose(classifier.predict(features), head.predict(features))


@dataclass
class Infer:
    """An engine of two features; it keeps how many images it was given at a time."""

    batch: int
    input_size: tuple[int, int] = (8, 8)
    sizes: list[int] = field(default_factory=list)

    def start(self) -> Any:
        def infer(images: Any) -> Any:
            self.sizes.append(len(images))
            return np.ones((len(images), 2), np.float32)

        return infer

    def decode(self, payload: bytes) -> Any:
        return EngineChoice(SimpleNamespace(input_size=self.input_size), self.batch).decode(payload)  # type: ignore[arg-type]


def make_plan(**changes: Any) -> ConsumerPlan:
    parts: dict[str, Any] = {
        "kafka": {},
        "images_topic": "images",
        "results_topic": "results",
        "engine": Infer(1),
        "classifier": Classifier(("NORMAL", "PNEUMONIA"), np.ones((1, 2)), np.zeros(1)),
    }
    return ConsumerPlan(**parts | changes)


@dataclass
class Message:
    """What the client gives."""

    name: bytes = b""
    payload: bytes = b""
    fault: KafkaError | None = None

    def key(self) -> bytes:
        return self.name

    def value(self) -> bytes:
        return self.payload

    def error(self) -> KafkaError | None:
        return self.fault


@dataclass
class Broker:
    """Both clients; it writes down what they do, in order, and ends the consumer when nothing is left."""

    waiting: list[Message]
    ended: threading.Event = field(default_factory=threading.Event)
    done: list[str] = field(default_factory=list)
    results: dict[bytes, Any] = field(default_factory=dict)
    reports: list[Any] = field(default_factory=list)
    refuses_commit: int | None = None
    refuses_result: KafkaError | None = None

    def __call__(self, options: dict[str, Any]) -> "Broker":
        self.options = options
        return self

    def subscribe(self, topics: list[str], on_revoke: Any) -> None:
        assert topics == ["images"]
        self.revoke = on_revoke

    def poll(self, timeout_s: float) -> Message | None:
        if timeout_s == 0:
            return None  # the producer's
        if not self.waiting:
            self.ended.set()
            return None
        return self.waiting.pop(0)

    def consume(self, count: int, timeout: float) -> list[Message]:
        assert timeout == 0, "a batch that is not full must not wait"
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    def produce(self, topic: str, value: bytes, key: bytes, on_delivery: Any) -> None:
        assert topic == "results"
        self.results[key] = json.loads(value)
        self.done.append("produce")
        self.reports.append(on_delivery)

    def flush(self) -> None:
        self.done.append("flush")
        while self.reports:
            self.reports.pop(0)(self.refuses_result, None)

    def commit(self, asynchronous: bool) -> None:
        assert not asynchronous
        self.done.append("commit")
        if self.refuses_commit is not None:
            raise KafkaException(KafkaError(self.refuses_commit))

    def close(self) -> None:
        self.revoke(self, [])


def run(monkeypatch: pytest.MonkeyPatch, broker: Broker, plan: ConsumerPlan) -> None:
    monkeypatch.setattr(consumer, "Consumer", broker)
    monkeypatch.setattr(consumer, "Producer", broker)
    consume(plan, broker.ended)


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1, 1, 1]), (2, [2, 1]), (8, [3])])
def test_every_image_has_a_result_with_its_key(monkeypatch: pytest.MonkeyPatch, batch: int, sizes: list[int]) -> None:
    broker, engine = Broker([Message(b"a", png()), Message(b"b", png()), Message(b"c", png())]), Infer(batch)
    run(monkeypatch, broker, make_plan(engine=engine))
    assert broker.results.keys() == {b"a", b"b", b"c"}
    assert broker.results[b"a"]["label"] == "PNEUMONIA"
    assert sum(broker.results[b"a"]["probabilities"].values()) == pytest.approx(1)
    assert engine.sizes == sizes


def test_offsets_are_committed_behind_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "_COMMIT_S", 0)
    broker = Broker([Message(b"a", png()), Message(b"b", png())])
    run(monkeypatch, broker, make_plan())
    assert broker.done[:3] == ["produce", "flush", "commit"]
    assert broker.done[-2:] == ["flush", "commit"]
    for before, after in zip(broker.done, broker.done[1:], strict=False):
        assert after != "commit" or before == "flush"


def test_a_stop_commits_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker([Message(b"a", png())])
    run(monkeypatch, broker, make_plan())
    assert broker.done == ["produce", "flush", "commit"]


def test_an_image_whose_result_was_given_up_is_not_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker([Message(b"a", png())], refuses_result=KafkaError(KafkaError._MSG_TIMED_OUT))
    with pytest.raises(KafkaException):
        run(monkeypatch, broker, make_plan())
    assert "commit" not in broker.done


def test_nothing_to_commit_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, Broker([], refuses_commit=KafkaError._NO_OFFSET), make_plan())
    with pytest.raises(KafkaException):
        run(monkeypatch, Broker([], refuses_commit=KafkaError.REBALANCE_IN_PROGRESS), make_plan())


@pytest.mark.parametrize("payload", [b"", b"no image of Doe^Jane", png()[:40]])
def test_what_cannot_be_read_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, payload: bytes
) -> None:
    broker = Broker([Message(b"a", payload), Message(b"b", png())])
    run(monkeypatch, broker, make_plan(engine=Infer(8)))
    assert broker.results.keys() == {b"b"}
    assert "left out" in caplog.text
    assert "Doe" not in caplog.text


@pytest.mark.parametrize("place", [0, 1])
def test_a_client_that_cannot_read_fails(place: int) -> None:
    messages = [Message(b"a", png()), Message(b"b", png())]
    messages[place].fault = KafkaError(KafkaError._ALL_BROKERS_DOWN)
    with pytest.raises(KafkaException):
        take(Broker(messages), 2)


# -- the process with a session ----------------------------------------------------------------------------------------


def test_a_host_that_has_ended_is_said() -> None:
    ours, its = mp.Pipe()
    its.close()
    host = SparkHost(SimpleNamespace(pid=1), ours)
    with pytest.raises(RuntimeError, match="has ended"):
        host.await_answer()
    with pytest.raises(RuntimeError, match="has ended"), host.running(None):  # type: ignore[arg-type]
        pytest.fail("it cannot run")


def test_a_host_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.host._TIMEOUT_S", 0)
    ours, _its = mp.Pipe()
    with pytest.raises(RuntimeError, match="did not answer"):
        SparkHost(SimpleNamespace(pid=1), ours).await_answer()
