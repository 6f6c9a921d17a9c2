"""Reads confirmed findings from their topic, and puts those that cannot be recorded on a topic of their own. No Spark.

What an event says is nobody's business here: whoever reads gets bytes, records what they say, and then says what is
done (`Confirmations.finish`). Offsets are committed by that alone, so an event is read at least once; recording the
same one again changes nothing.

Held back
    An event may have to wait for its image. It stays in memory, and its partition's committed offset stays before it:
    after a restart it is read again, and with it those behind it that were done already. Dead letters among these are
    written again, with the same ``xray_event_id``. Nobody waits behind an event that is held back.

Bounds
    At most `MAX_OPEN` events or `MAX_OPEN_BYTES` are in memory. Where so many are held back, reading rests until some
    of them are done.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import BrokerError
from streaming.kafka.cluster import describe_cluster
from streaming.kafka.groups import COORDINATOR_COMES, MOVED_ON
from streaming.kafka.producer import Delivery, RecordProducer
from streaming.kafka.reader import list_partitions
from streaming.kafka.topicchecks import check_label_topics
from streaming.kafka.topics import HEADROOM_BYTES, LABEL_BYTES, create_topics, label_topics
from streaming.results.labelevents import GROUP, Event, Rejection, add_error_headers, read_event, without_content
from streaming.settings import KafkaSettings

log = logging.getLogger(__name__)

MAX_OPEN = 20_000
MAX_OPEN_BYTES = 128 * 1024 * 1024

_GATHER_S = 3.0
"""Each batch is one commit of the table, and what the sender waits for is a nightly training: a file in three seconds
is often enough."""
_BATCH = 5000
_BATCH_BYTES = 32 * 1024 * 1024
_FETCH = 500
_POLL_S = 0.2
_TIMEOUT_S = 20.0
_OPTIONS = {
    "group.id": GROUP,
    "partition.assignment.strategy": "range",  # gives all partitions back before it takes some
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",
    # After a kill the partitions are free again in ten seconds, where the default keeps them for 45.
    "session.timeout.ms": 10_000,
    "fetch.wait.max.ms": 100,
    "queued.max.messages.kbytes": 16 * 1024,
    "log_level": 0,
}


class Confirmations:
    """A reader of the labels topic, of the group `GROUP`; `open_confirmations` makes one.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    to_end : bool
        Read what is there, and no further.
    max_event_bytes : int
        Largest event whose dead letter holds all of it; of a larger one only the headers that say why are written, and
        it stays in the labels topic alone.
    """

    def __init__(self, kafka: KafkaSettings, *, to_end: bool = False, max_event_bytes: int = LABEL_BYTES) -> None:
        self._kafka = kafka
        self._max_event_bytes = max_event_bytes
        self._to_end = to_end
        self._reports: list[KafkaError] = []
        self._open: list[Event] = []
        self._assigned: set[int] | None = None
        self._at_end: set[int] = set()
        self._next: dict[int, int] = {}
        self._committed: dict[int, int] = {}
        self._paused = False
        options = {"error_cb": self._reports.append}
        self._consumer = Consumer(kafka.to_librdkafka() | _OPTIONS | options)
        self._producer = RecordProducer(kafka, kafka.labels_deadletters_topic, headroom_bytes=HEADROOM_BYTES)

    def join(self, ended: threading.Event) -> None:
        """Join the group and wait for a share of the partitions; tell of events that retention removed unread.

        Parameters
        ----------
        ended : threading.Event
            Ends the waiting early.

        Raises
        ------
        BrokerError
            Nobody answers, there is no such topic, or the user may not read it or belong to the group.
        """
        topic = self._kafka.labels_topic
        places = [TopicPartition(topic, partition) for partition in list_partitions(self._consumer, topic)]
        try:
            for place in self._read_committed(places):
                low, _ = self._consumer.get_watermark_offsets(place, timeout=_TIMEOUT_S)
                if 0 <= place.offset < low:
                    span = f"{topic}-{place.partition}@{place.offset} to {low - 1}"
                    log.warning("the topic's retention removed %s before they were read", span)
        except KafkaException as exc:
            raise _broker_error(topic, exc.args[0]) from exc
        self._consumer.subscribe([topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke)
        while self._assigned is None and not ended.is_set():
            self._poll()

    def _read_committed(self, places: list[TopicPartition]) -> list[TopicPartition]:
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                found: list[TopicPartition] = self._consumer.committed(places, timeout=_TIMEOUT_S)
                failed = next((place.error for place in found if place.error is not None), None)
                if failed is None:
                    return found
                raise KafkaException(failed)
            except KafkaException as exc:
                if exc.args[0].code() not in COORDINATOR_COMES or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)

    def read(self, ended: threading.Event) -> list[Event]:
        """Gather events for some seconds.

        Parameters
        ----------
        ended : threading.Event
            Ends the gathering early.

        Returns
        -------
        list of Event
            All that are not done: those held back in the last `finish`, and behind them new ones.

        Raises
        ------
        BrokerError
            Nobody answers, or reading fails. Nothing is lost: what was not committed is read again.
        """
        deadline = time.monotonic() + _GATHER_S
        count = size = 0
        self._pause_while_full()
        while count < _BATCH and size < _BATCH_BYTES and time.monotonic() < deadline:
            if ended.is_set() or self.drained:
                break
            came = self._poll()
            count, size = count + len(came), size + _size(came)
        return list(self._open)

    def _poll(self) -> list[Event]:
        messages = self._consumer.consume(num_messages=_FETCH, timeout=_POLL_S)
        came = [read_event(message) for message in messages if self._is_event(message)]
        if self._assigned is None:
            came = []  # they came just before the partitions went
        self._open += came
        self._next |= {event.partition: event.offset + 1 for event in came}
        if self._reports:
            self._reports.clear()
            describe_cluster(self._kafka)  # a broker that is away is told by its name and the settings to look at
        return came

    @property
    def drained(self) -> bool:
        """Whether a reader that goes to the end has come there, or as near as what it holds back lets it."""
        if not self._to_end or self._assigned is None:
            return False
        return self._assigned <= self._at_end or self._is_full()

    def reject(self, rejections: Sequence[Rejection]) -> None:
        """Write events to the dead letters' topic as they came, with headers that say why; wait until they are there.

        One that no dead letter can hold is written without key, value and headers of its own.

        Raises
        ------
        BrokerError
            One was not confirmed.
        """
        failed: list[str] = []

        def note_delivery(delivery: Delivery) -> None:
            if delivery.error is not None:
                failed.append(delivery.error)

        for one in rejections:
            kept = one if one.event.size_bytes <= self._max_event_bytes else without_content(one)
            headers = add_error_headers(kept, self._kafka.labels_topic)
            self._producer.send(kept.event.value, key=kept.event.key, headers=headers, on_delivery=note_delivery)
        self._producer.flush()
        if failed:
            topic = self._kafka.labels_deadletters_topic
            msg = f"topic {topic}: {len(failed)} of {len(rejections)} dead letters were not confirmed: {failed[0]}"
            raise BrokerError(msg)

    def finish(self, held: Iterable[Event]) -> None:
        """Say that all events of the last `read` are done, but for those that are held back; commit the offsets.

        Raises
        ------
        BrokerError
            The commit was refused.
        """
        self._open = list(held)
        wanted = dict(self._next)
        for event in self._open:
            wanted[event.partition] = min(wanted[event.partition], event.offset)
        topic = self._kafka.labels_topic
        places = [TopicPartition(topic, p, offset) for p, offset in wanted.items() if self._committed.get(p) != offset]
        if not places:
            return
        try:
            for place in self._consumer.commit(offsets=places, asynchronous=False):
                if place.error is not None:
                    raise KafkaException(place.error)
                self._committed[place.partition] = place.offset
        except KafkaException as exc:
            if exc.args[0].code() not in MOVED_ON:
                raise _broker_error(topic, exc.args[0]) from exc

    def close(self) -> None:
        """Leave the group, so that others can go on at once."""
        self._consumer.close()

    def _is_event(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return True
        if error.code() == KafkaError._PARTITION_EOF:
            self._at_end.add(message.partition())
        elif error.code() != KafkaError._MAX_POLL_EXCEEDED:  # the group moved on; the next call joins it again
            raise _broker_error(self._kafka.labels_topic, error)
        return False

    def _is_full(self) -> bool:
        return len(self._open) >= MAX_OPEN or _size(self._open) >= MAX_OPEN_BYTES

    def _pause_while_full(self) -> None:
        """Let no more events come while too many are held back; the group is still heard of."""
        full = self._is_full()
        if full != self._paused:
            (self._consumer.pause if full else self._consumer.resume)(self._consumer.assignment())
            self._paused = full

    def _on_assign(self, _consumer: Consumer, places: Sequence[TopicPartition]) -> None:
        self._assigned = {place.partition for place in places}
        self._at_end -= self._assigned
        self._paused = False

    def _on_revoke(self, _consumer: Consumer, _places: Sequence[TopicPartition]) -> None:
        """Forget what is not committed: whoever gets the partitions now, this reader or another, reads it again."""
        self._assigned = None
        self._open, self._next, self._committed = [], {}, {}


@contextmanager
def open_confirmations(
    kafka: KafkaSettings, ended: threading.Event, *, to_end: bool = False
) -> Iterator[Confirmations]:
    """Open a reader of the labels topic; the topics are created where they are missing, and checked.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    ended : threading.Event
        Ends the waiting for partitions early.
    to_end : bool
        Read what is there, and no further.

    Raises
    ------
    BrokerError
        Nobody answers, a topic is missing and cannot be created, or a right is missing; the message says which.
    SettingsError
        No client can be made of the settings.
    """
    create_topics(kafka, label_topics(kafka))
    reader = Confirmations(kafka, to_end=to_end, max_event_bytes=check_label_topics(kafka))
    try:
        reader.join(ended)
        yield reader
    finally:
        reader.close()


def _size(events: Iterable[Event]) -> int:
    return sum(event.size_bytes for event in events)


def _broker_error(topic: str, error: KafkaError) -> BrokerError:
    denied = (
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
    )
    hint = f". The group is {GROUP}; see the roles in docs/security.md" if error.code() in denied else ""
    return BrokerError(f"topic {topic}: {error.str()}{hint}")
