"""The reader's place in the topics, while partitions come and go."""

from datetime import UTC, datetime, timedelta
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
        self.ends = {ONE: 0, OTHER: 0}
        self._coordinator = SimpleNamespace(rejoining=False)

    def subscribe(self, topics: list[str]) -> None:
        """Take part."""

    def assignment(self) -> set[TopicPartition]:
        return self.mine

    def poll(self, **_: Any) -> dict[TopicPartition, list[Any]]:
        given, self.given = self.given, {}
        return given

    def commit(self, offsets: dict[TopicPartition, Any], timeout_ms: int) -> None:
        self.committed = {one: place.offset for one, place in offsets.items()}

    def end_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        return {one: self.ends[one] for one in partitions}

    def position(self, partition: TopicPartition, timeout_ms: int) -> int:
        return 0

    def commit_async(self, offsets: dict[TopicPartition, Any]) -> None:
        """Lose it, as a connection does that is closed before the answer."""

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


@pytest.mark.parametrize("n_polls", [1, 2, 3])
def test_what_was_read_is_committed_at_the_end_whatever_became_of_the_last_commit(
    n_polls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = FakeConsumer()
    monkeypatch.setattr(outcomereader, "open_consumer", lambda *_args, **_options: consumer)
    reader = OutcomeReader(KAFKA, "group", "member")
    reader.commit(at_end=True)
    assert consumer.committed == {}
    for number in range(n_polls):
        consumer.give(ONE, number)
        reader.poll(0)
        reader.commit()
    assert consumer.committed == {}
    reader.commit(at_end=True)
    assert consumer.committed == {ONE: n_polls}


@pytest.mark.parametrize("slept_s", [60.0, 3600.0, 86_400.0])
def test_what_was_read_before_the_machine_slept_is_of_before(slept_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer, now, slept = FakeConsumer(), datetime.now(UTC), [0.0]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return now + timedelta(seconds=slept[0])

    monkeypatch.setattr(outcomereader, "open_consumer", lambda *_args, **_options: consumer)
    monkeypatch.setattr(outcomereader, "datetime", Clock)
    reader = OutcomeReader(KAFKA, "group", "member")
    assert reader.read_until is None
    reader.look_up_ends()
    assert reader.read_until == now
    slept[0] = slept_s  # the monotonic clock stands still meanwhile
    consumer.give(ONE, 0)  # a receipt of the night, whose outcome is in the other partition
    reader.poll(0)
    assert reader.read_until == now


@pytest.mark.parametrize("behind", [{ONE}, {OTHER}, {ONE, OTHER}])
def test_as_long_as_one_partition_is_behind_nothing_is_told(
    behind: set[TopicPartition], monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = FakeConsumer()
    consumer.ends = {one: 1 if one in behind else 0 for one in (ONE, OTHER)}
    monkeypatch.setattr(outcomereader, "open_consumer", lambda *_args, **_options: consumer)
    reader = OutcomeReader(KAFKA, "group", "member")
    reader.look_up_ends()
    for one in sorted(behind):
        assert reader.read_until is None
        consumer.give(one, 0)
        reader.poll(0)
    assert reader.read_until is not None
