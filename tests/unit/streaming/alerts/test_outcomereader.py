"""The reader's place in the topics, while partitions come and go."""

from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition

from streaming.alerts import outcomereader
from streaming.alerts.outcomereader import OutcomeReader
from streaming.settings import KafkaSettings

KAFKA = KafkaSettings()
ONE, OTHER = (TopicPartition(KAFKA.predictions_topic, number) for number in (0, 1))


class FakeConsumer:
    """Gives what it is told to, of the partitions that it is told to have."""

    def __init__(self) -> None:
        self.mine = {ONE, OTHER}
        self.given: dict[TopicPartition, list[Any]] = {}
        self.committed: dict[TopicPartition, int] = {}

    def subscribe(self, topics: list[str]) -> None:
        """Take part."""

    def assignment(self) -> set[TopicPartition]:
        return self.mine

    def poll(self, **_: Any) -> dict[TopicPartition, list[Any]]:
        given, self.given = self.given, {}
        return given

    def commit(self, offsets: dict[TopicPartition, Any], timeout_ms: int) -> None:
        self.committed = {one: place.offset for one, place in offsets.items()}

    def give(self, partition: TopicPartition, offset: int) -> None:
        self.given[partition] = [SimpleNamespace(offset=offset, headers=(), value=b"", timestamp=0)]


@pytest.mark.parametrize("lost", [{ONE}, {OTHER}, {ONE, OTHER}])
def test_a_partition_that_comes_back_is_not_committed_where_it_was_left(
    lost: set[TopicPartition], monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = FakeConsumer()
    monkeypatch.setattr(outcomereader, "open_consumer", lambda *_args, **_options: consumer)
    reader = OutcomeReader(KAFKA, "group", "member")
    for partition in (ONE, OTHER):
        consumer.give(partition, 10)
    assert reader.poll(0) == ([], 2)
    consumer.mine = {ONE, OTHER} - lost
    reader.poll(0)
    consumer.mine = {ONE, OTHER}
    reader.poll(0)
    for partition in {ONE, OTHER} - lost:
        consumer.give(partition, 11)
    reader.poll(0)
    reader.commit(at_end=True)
    assert consumer.committed == dict.fromkeys({ONE, OTHER} - lost, 12)
