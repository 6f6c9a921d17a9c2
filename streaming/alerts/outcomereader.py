"""Reads predictions, dead letters and receipts with kafka-python, in a group whose offsets follow the ledger."""

import logging
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.structs import OffsetAndMetadata

from streaming.alerts.outcomeevents import Event, read_dead_letter, read_prediction, read_receipt
from streaming.kafka.places import headers_by_name
from streaming.settings import KafkaSettings

log = logging.getLogger(__name__)

SESSION_S = 15.0
"""A member that was killed is one for so long."""

_FETCH_WAIT_MS = 100
_MOST = 500
_METADATA_MS = 5_000
_PARTITIONS_S = 30.0
_COMMIT_EVERY_S = 0.5
_ENDS_EVERY_S = 3.0
_ENDS_COUNT_S = 10.0
_ASK_MS = 3000
_BEGIN_MS = 30_000
_AGAIN_S = 0.1


class OutcomeReader:
    """A member of the group; for one thread.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    group : str
        Name of the consumer group.
    member : str
        Of this member, the same after a restart: the group gives it its partitions back at once then. Under a new name
        it waits until the broker has noticed that its former self was killed.

    Raises
    ------
    kafka.errors.KafkaError
        No broker answers.
    """

    def __init__(self, kafka: KafkaSettings, group: str, member: str) -> None:
        self._kafka = kafka
        self.topics = (kafka.predictions_topic, kafka.deadletters_topic, kafka.receipts_topic)
        self._consumer = open_consumer(kafka, group, group_instance_id=member)
        self._consumer.subscribe(topics=list(self.topics))
        self._next: dict[TopicPartition, int] = {}
        self._uncommitted = False
        self._committed_at = 0.0
        self._ends: dict[TopicPartition, int] = {}
        self._begins: dict[TopicPartition, int] = {}
        self._ends_at = self._asked_at = -_ENDS_COUNT_S
        self._ends_of = datetime.fromtimestamp(0, UTC)

    def poll(self, wait_s: float) -> tuple[list[Event], int]:
        """Read what there is.

        Parameters
        ----------
        wait_s : float
            How long to wait where there is nothing.

        Returns
        -------
        tuple of list of Event and int
            What was read, in each partition's order, and how many records were nobody's of ours.
        """
        events: list[Event] = []
        n_foreign = 0
        for partition, records in self._consumer.poll(timeout_ms=int(wait_s * 1000), max_records=_MOST).items():
            for record in records:
                event = self._read(partition.topic, record)
                if event is None:
                    n_foreign += 1
                else:
                    events.append(event)
            self._next[partition] = records[-1].offset + 1
            self._uncommitted = True
        self._take_up_join()
        # Of a partition that another member had meanwhile, the place from before would be committed over its own.
        mine = self._consumer.assignment()
        self._next = {one: at for one, at in self._next.items() if one in mine}
        return events, n_foreign

    def _take_up_join(self) -> None:
        """Have the next poll go on with a join that the last one left, for kafka-python 3.0 may forget it.

        It joins once more where it sees that a topic's partitions have changed, as at every start. If the broker's
        answer comes after the poll has ended, the change counts as seen, nobody takes the answer up, and the member
        stays without partitions and heartbeats for ever: one start in ten, on a machine with much to do.
        """
        coordinator = self._consumer._coordinator
        if coordinator.rejoining and not coordinator.need_rejoin():
            coordinator.request_rejoin()

    def _read(self, topic: str, record: Any) -> Event | None:
        headers = headers_by_name(record.headers or ())
        # A year that Python has no number for is nobody's clock.
        recorded_at = datetime.fromtimestamp(min(max(record.timestamp / 1000, 0), time.time()), UTC)
        if topic == self._kafka.receipts_topic:
            return read_receipt(record.value)
        read = read_prediction if topic == self._kafka.predictions_topic else read_dead_letter
        return read(record.value, headers, recorded_at)

    def commit(self, *, at_end: bool = False) -> None:
        """Commit what was read, which the ledger has; a failure repeats records, so it is no more than told.

        Parameters
        ----------
        at_end : bool
            Now, and wait for the broker's answer.
        """
        # At the end all of it again: the last one may be under way still, and would be lost with the connection.
        if not at_end and (not self._uncommitted or time.monotonic() - self._committed_at < _COMMIT_EVERY_S):
            return
        mine = self._consumer.assignment()
        offsets = {one: OffsetAndMetadata(at, "", -1) for one, at in self._next.items() if one in mine}
        try:
            if offsets and at_end:
                self._consumer.commit(offsets, timeout_ms=_ASK_MS)
            elif offsets:
                self._consumer.commit_async(offsets)
        except KafkaError as exc:
            log.info("offsets were not committed, so records may be read again: %s", exc)
        self._uncommitted = False
        self._committed_at = time.monotonic()

    @property
    def has_partitions(self) -> bool:
        """Whether the group has given it any."""
        return bool(self._consumer.assignment())

    @property
    def holds_all(self) -> bool:
        """Whether no other member of the group has a partition: only then can it be told that something is absent."""
        mine = {one.topic: 0 for one in self._consumer.assignment()}
        for one in self._consumer.assignment():
            mine[one.topic] += 1
        return all(mine.get(topic) == len(self._consumer.partitions_for_topic(topic) or ()) for topic in self.topics)

    @property
    def read_until(self) -> datetime | None:
        """When the broker was last asked for the topics' ends; None where that is long ago, or not all is read."""
        if time.monotonic() - self._ends_at > _ENDS_COUNT_S or set(self._ends) != self._consumer.assignment():
            return None
        is_read = all(self._next.get(one, self._begins.get(one, 0)) >= end for one, end in self._ends.items())
        return self._ends_of if is_read else None

    def read_lag(self) -> dict[tuple[str, int], int]:
        """Give how many records are unread, by topic and partition, as of the last answer."""
        known = {one: self._next.get(one, self._begins.get(one, end)) for one, end in self._ends.items()}
        return {(one.topic, one.partition): max(0, end - known[one]) for one, end in self._ends.items()}

    def look_up_ends(self) -> None:
        """Ask the broker for the topics' ends, now and then."""
        if time.monotonic() - self._asked_at < _ENDS_EVERY_S:
            return
        self._asked_at = time.monotonic()
        assigned = self._consumer.assignment()
        if not assigned:
            return
        # By the clock too: a machine that slept for a night has a monotonic one that did not go on.
        asked_of = datetime.now(UTC)
        try:
            ends = self._consumer.end_offsets(list(assigned), timeout_ms=_ASK_MS)
            self._begins = {one: self._consumer.position(one, timeout_ms=_ASK_MS) or 0 for one in assigned}
        except KafkaError as exc:
            log.info("the ends of the topics are not known: %s", exc)
            return
        self._ends, self._ends_at, self._ends_of = ends, time.monotonic(), asked_of

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close(autocommit=False, timeout_ms=_ASK_MS)


def open_consumer(kafka: KafkaSettings, group: str, **options: Any) -> KafkaConsumer:
    """Open a consumer of the group, which commits by itself nothing."""
    return KafkaConsumer(
        **kafka.to_kafka_python(),
        **options,
        group_id=group,
        client_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=_FETCH_WAIT_MS,
        session_timeout_ms=int(1000 * SESSION_S),
        allow_auto_create_topics=False,
        # A topic that was just made shows no partitions for a moment: without this it would be asked about again after
        # five minutes, and so would partitions that are added.
        metadata_max_age_ms=_METADATA_MS,
        # A dead letter holds its image; the largest one comes whole, whatever the limit of a fetch is.
        receive_message_max_bytes=4 * kafka.max_message_bytes,
    )


def begin_group(kafka: KafkaSettings, group: str, topics: Iterable[str], since: datetime) -> None:
    """Give a group that has read nothing yet its place: the records since a time; nothing where it has one.

    Without it, the first start would make alarms of all that the topics have kept.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker.
    group : str
        Name of the consumer group.
    topics : iterable of str
        What it will read.
    since : datetime
        With a time zone.

    Raises
    ------
    kafka.errors.KafkaError
        No broker answers, or it refuses.
    """
    consumer = open_consumer(kafka, group)
    try:
        partitions = [one for topic in topics for one in _await_partitions(consumer, topic)]
        new = [one for one in partitions if consumer.committed(one, timeout_ms=_BEGIN_MS) is None]
        if new:
            times = dict.fromkeys(new, int(since.timestamp() * 1000))
            found = consumer.offsets_for_times(times, timeout_ms=_BEGIN_MS)
            ends = consumer.end_offsets(new, timeout_ms=_BEGIN_MS)
            begins = {one: ends[one] if found[one] is None else found[one].offset for one in new}
            consumer.commit({one: OffsetAndMetadata(at, "", -1) for one, at in begins.items()}, timeout_ms=_BEGIN_MS)
    finally:
        consumer.close(autocommit=False)


def _await_partitions(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    """Wait until the broker shows a topic's partitions; one that was just made has none for a moment."""
    deadline = time.monotonic() + _PARTITIONS_S
    while not (found := consumer.partitions_for_topic(topic)):
        if time.monotonic() > deadline:
            msg = f"topic {topic} shows no partitions"
            raise KafkaTimeoutError(msg)
        time.sleep(_AGAIN_S)
    return [TopicPartition(topic, number) for number in sorted(found)]
