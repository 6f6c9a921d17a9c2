"""Publishing and waiting for the broker's word, with clients that answer as they are told."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streaming.gateway import publisher
from streaming.gateway.offer import Outgoing
from streaming.gateway.publisher import Publisher
from streaming.kafka.producer import Delivery
from streaming.settings import KafkaSettings

_IMAGE = Outgoing("e" * 32, b"key", (("a", b"b"),), b"image")


class Client:
    """Stands for `RecordProducer`: answers what comes next in ``answers`` at once; nothing where that is empty."""

    made: "list[Client]"
    answers: "list[Delivery]"

    def __init__(self, kafka: KafkaSettings, topic: str, *, timeout_s: float, queue_bytes: int) -> None:
        self.timeout_s = timeout_s
        self.flushed = self.is_spent = False
        self.held: list[Callable[[Delivery], None]] = []
        self.kept = 0
        self.made.append(self)

    def send(self, value: bytes, *, key: bytes, headers: Any, on_delivery: Callable[[Delivery], None]) -> None:
        assert (value, key, headers) == (b"image", b"key", (("a", b"b"),))
        if len(self.held) < self.kept:
            self.held.append(on_delivery)
        elif self.answers:
            on_delivery(self.answers.pop(0))

    @property
    def waiting(self) -> int:
        return len(self.held)

    def poll(self, timeout_s: float) -> None:
        threading.Event().wait(0.001)
        if self.is_spent and self.held:
            self.held.pop()(Delivery("purged"))

    def flush(self) -> None:
        self.flushed = True


class Admin:
    """Stands for the admin client."""

    error: KafkaError | None = None
    topic_error: KafkaError | None = None

    def list_topics(self, topic: str, timeout: float) -> Any:
        if self.error is not None:
            raise KafkaException(self.error)
        found = type("Topic", (), {"error": self.topic_error})
        return type("Cluster", (), {"topics": {topic: found}})


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> Admin:
    admin = Admin()
    Client.made, Client.answers = [], []
    monkeypatch.setattr(publisher, "RecordProducer", Client)
    monkeypatch.setattr(publisher, "connect_admin", lambda kafka: admin)
    monkeypatch.setattr(publisher, "GRACE_S", 0.05)
    return admin


@pytest.fixture
def changes() -> list[bool]:
    return []


@pytest.fixture
def running(admin: Admin, changes: list[bool]) -> Iterator[Publisher]:
    running = Publisher(KafkaSettings(), timeout_s=0.05, on_change=changes.append)
    running.start()
    yield running
    running.stop()
    assert Client.made[-1].flushed


def test_a_confirmed_record_is_told_with_its_place(running: Publisher, changes: list[bool]) -> None:
    Client.answers.append(Delivery(None, "xray.images-1@7"))
    assert running.publish(_IMAGE).place == "xray.images-1@7"
    assert running.is_up
    assert changes == [True]


def test_a_failure_is_told_and_noted_until_the_broker_takes_a_record(running: Publisher, changes: list[bool]) -> None:
    Client.answers += [Delivery("timed out"), Delivery("timed out"), Delivery(None, "p")]
    assert running.publish(_IMAGE).error == "timed out"
    assert not running.is_up
    running.publish(_IMAGE)
    assert changes == [True, False]
    running.publish(_IMAGE)
    assert running.is_up
    assert changes == [True, False, True]


def test_a_record_that_is_too_large_says_nothing_of_the_broker(running: Publisher, changes: list[bool]) -> None:
    Client.answers.append(Delivery("too large", is_too_large=True))
    assert running.publish(_IMAGE).is_too_large
    assert changes == [True]


def test_a_client_that_says_nothing_does_not_hold_the_device_for_ever(running: Publisher) -> None:
    assert running.publish(_IMAGE).error is not None
    assert not running.is_up


def test_a_client_that_delivers_nothing_more_is_replaced(running: Publisher) -> None:
    Client.answers += [Delivery("fenced", is_fatal=True), Delivery(None, "p")]
    running.publish(_IMAGE)
    assert len(Client.made) == 2
    assert running.publish(_IMAGE).error is None
    assert Client.made[1].timeout_s == Client.made[0].timeout_s


def test_a_client_that_gave_up_while_nobody_sent_is_replaced_before_kafka_counts_as_up(
    running: Publisher, changes: list[bool]
) -> None:
    Client.made[0].is_spent = True
    running.check()
    assert len(Client.made) == 2
    assert not running.is_up
    running.check()
    assert running.is_up
    assert changes == [True, False, True]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_who_waits_at_a_client_that_gave_up_is_told(
    running: Publisher, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(running, "_timeout_s", 30.0)
    Client.made[0].kept = count
    with ThreadPoolExecutor(count) as pool:
        told = [pool.submit(running.publish, _IMAGE) for _ in range(count)]
        while len(Client.made[0].held) < count:
            threading.Event().wait(0.001)
        Client.made[0].is_spent = True
        running.check()
        assert {one.result(10).error for one in told} == {"purged"}


@pytest.mark.parametrize("kind", ["away", "no topic"])
def test_the_check_sees_that_the_broker_goes_and_comes(
    running: Publisher, admin: Admin, changes: list[bool], kind: str
) -> None:
    error = KafkaError(KafkaError._ALL_BROKERS_DOWN)
    admin.error, admin.topic_error = (error, None) if kind == "away" else (None, error)
    running.check()
    assert not running.is_up
    admin.error = admin.topic_error = None
    running.check()
    assert running.is_up
    assert changes == [True, False, True]
