"""The one producer, with a client that answers as it is told."""

from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas.errors import BrokerError
from streaming.kafka import producer
from streaming.kafka.producer import Delivery, RecordProducer
from streaming.settings import KafkaSettings

Report = Callable[[KafkaError | None, "Confirmed"], None]


class Confirmed:
    """Stands for a message that the broker has."""

    def partition(self) -> int:
        return 2

    def offset(self) -> int:
        return 7


class Client:
    """Stands for confluent-kafka's producer: takes ``room`` records at once, and answers when polled with a timeout."""

    made: "Client"

    def __init__(self, options: dict[str, Any], logger: None = None) -> None:
        self.options = options
        self.room = 2
        self.refusal: KafkaError | None = None
        self.flush_fails = False
        self.fatal: KafkaError | None = None
        self.produced: list[tuple[str, bytes | None, dict[str, Any]]] = []
        self.waiting: list[Report] = []
        Client.made = self

    def produce(self, topic: str, value: bytes | None, *, on_delivery: Report, **rest: Any) -> None:
        if self.refusal is not None:
            raise KafkaException(self.refusal)
        if len(self.waiting) >= self.room:
            raise BufferError
        self.produced.append((topic, value, rest))
        self.waiting.append(on_delivery)

    def poll(self, timeout_s: float) -> None:
        if self.fatal is not None:
            said, self.fatal = self.fatal, None
            raise KafkaException(said)
        if timeout_s and self.waiting:
            self.waiting.pop(0)(None, Confirmed())

    def __len__(self) -> int:
        return len(self.waiting)

    def flush(self, timeout_s: float) -> int:
        if self.flush_fails:
            raise KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))
        self.poll(timeout_s)
        return len(self.waiting)


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> RecordProducer:
    monkeypatch.setattr(producer, "Producer", Client)
    return RecordProducer(KafkaSettings(), "xray.images")


def test_a_full_queue_is_waited_for_and_every_delivery_is_told_once(sender: RecordProducer) -> None:
    told: list[tuple[int, Delivery]] = []
    for i in range(5):
        sender.send(b"%d" % i, key=b"k", headers=[], on_delivery=lambda one, i=i: told.append((i, one)))
    assert [i for i, _ in told] == [0, 1, 2], "the client has room for two"
    sender.flush()
    assert told == [(i, Delivery(None, "xray.images-2@7")) for i in range(5)]
    assert [value for _, value, _ in Client.made.produced] == [b"0", b"1", b"2", b"3", b"4"]


def test_key_headers_and_partition_are_given_on(sender: RecordProducer) -> None:
    headers = [("a", b"1"), ("b", None), ("a", b"2")]
    sender.send(None, key=None, headers=headers, on_delivery=lambda _: None, partition=3)
    sender.send(b"", key=b"k", headers=(), on_delivery=lambda _: None)
    assert Client.made.produced == [
        ("xray.images", None, {"key": None, "partition": 3, "headers": headers}),
        ("xray.images", b"", {"key": b"k", "partition": -1, "headers": []}),
    ]


def test_a_record_that_the_client_refuses_is_told_as_failed(sender: RecordProducer) -> None:
    told: list[Delivery] = []
    codes = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    for code in codes:
        Client.made.refusal = KafkaError(code)
        sender.send(b"x", key=None, headers=[], on_delivery=told.append)
    assert [one.error for one in told] == [KafkaError(code).str() for code in codes]
    assert [one.is_too_large for one in told] == [True, True, False]
    assert {one.place for one in told} == {None}


def test_a_user_without_any_right_is_told_so(sender: RecordProducer) -> None:
    Client.made.flush_fails = True
    with pytest.raises(BrokerError, match=r"cannot publish to xray\.images: .*docs/security\.md"):
        sender.flush()


@pytest.mark.parametrize("said_in", ["send", "poll", "flush"])
def test_a_client_that_gives_up_says_so_and_the_deliveries_are_still_told(sender: RecordProducer, said_in: str) -> None:
    told: list[Delivery] = []
    sender.send(b"x", key=None, headers=[], on_delivery=told.append)
    assert (sender.is_spent, sender.waiting) == (False, 1)
    Client.made.fatal = KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED)
    if said_in == "send":
        sender.send(b"y", key=None, headers=[], on_delivery=told.append)
    elif said_in == "poll":
        sender.poll(0)
    with pytest.raises(BrokerError, match=r"cannot publish to xray\.images: .*docs/security\.md"):
        sender.flush()
    assert sender.is_spent
    while sender.waiting:
        sender.poll(1)
    assert {one.error for one in told} == {None}
    Client.made.refusal = KafkaError(KafkaError._FATAL)
    sender.send(b"z", key=None, headers=[], on_delivery=told.append)
    assert told[-1].is_fatal


@pytest.mark.parametrize("max_message_bytes", [1024 * 1024, 500_000_000])
def test_memory_is_bounded_and_the_largest_message_has_room(
    monkeypatch: pytest.MonkeyPatch, max_message_bytes: int
) -> None:
    monkeypatch.setattr(producer, "Producer", Client)
    RecordProducer(KafkaSettings(max_message_bytes=max_message_bytes), "t", headroom_bytes=1000)
    options = Client.made.options
    assert options["message.max.bytes"] == max_message_bytes + 1000
    bound = options["queue.buffering.max.kbytes"] * 1024
    assert options["message.max.bytes"] < bound <= max(64 * 1024 * 1024, 2 * options["message.max.bytes"])
    RecordProducer(KafkaSettings(), "t", queue_bytes=900_000_000)
    assert Client.made.options["queue.buffering.max.kbytes"] == 900_000_000 // 1024
