"""Reading offsets, with a client that answers as it is told."""

from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from schemas.errors import BrokerError
from streaming.kafka import reader
from streaming.kafka.reader import assign_all, offsets_at, read_spans

Answer = tuple[int, int] | int | None


class Client:
    """Has one partition of one topic; an answer that is a number is an error's code."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.assigned: list[TopicPartition] = []

    def list_topics(self, topic: str, timeout: float) -> Any:
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions={3: None})})

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int] | None:
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            raise KafkaException(KafkaError(answer))
        return answer

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned = partitions


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_LEADER_WAIT_S", 0)


_NO_LEADER = (KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION)


def test_a_leader_that_is_not_there_yet_is_waited_for() -> None:
    """A topic that the stream has just made has none for a moment."""
    assert read_spans(Client(*_NO_LEADER, (5, 9)), "t") == {3: range(5, 9)}
    client = Client(*_NO_LEADER, (5, 9))
    assert assign_all(client, "t", at="end") == 1
    assert [(one.partition, one.offset) for one in client.assigned] == [(3, 9)]


@pytest.mark.parametrize("answer", [None, KafkaError.TOPIC_AUTHORIZATION_FAILED])
def test_what_no_waiting_helps_against_is_told_at_once(answer: Answer) -> None:
    with pytest.raises(BrokerError, match=r"topic t: .* partition 3"):
        read_spans(Client(answer), "t")


def test_a_leader_that_does_not_come_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_TIMEOUT_S", -1)
    with pytest.raises(BrokerError, match="cannot read the offsets of partition 3"):
        read_spans(Client(KafkaError.NOT_LEADER_FOR_PARTITION), "t")


def test_a_partition_that_cannot_answer_is_not_taken_for_one_without_a_record() -> None:
    def ask(places: list[TopicPartition], timeout: float) -> list[Any]:
        error = KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)
        return [
            SimpleNamespace(partition=0, offset=7, error=None),
            SimpleNamespace(partition=1, offset=-1, error=error),
        ]

    client: Any = SimpleNamespace(offsets_for_times=ask)
    with pytest.raises(BrokerError, match="topic t: cannot find the offsets of a time"):
        offsets_at(client, "t", {0: range(9), 1: range(9)}, 1000)


def test_a_partition_without_a_record_of_that_time_gives_its_end() -> None:
    def ask(places: list[TopicPartition], timeout: float) -> list[Any]:
        return [SimpleNamespace(partition=p.partition, offset=(7, -1)[p.partition], error=None) for p in places]

    client: Any = SimpleNamespace(offsets_for_times=ask)
    assert offsets_at(client, "t", {0: range(9), 1: range(9)}, 1000) == {0: 7, 1: 9}
