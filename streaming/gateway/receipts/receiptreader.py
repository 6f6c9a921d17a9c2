"""Reads outcomes, and the receipts of all gateways, from where the store has come to."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from schemas.errors import BrokerError
from streaming.gateway.receipts.outcome import Outcome, read_dead_letter, read_prediction
from streaming.gateway.receipts.receipt import read_receipt
from streaming.gateway.receipts.receiptstore import Partition, ReceiptStore, Shown, StoreError
from streaming.kafka.cluster import describe_cluster
from streaming.kafka.reader import BOUNDED_FETCH, read_spans
from streaming.kafka.topicids import read_topic_ids
from streaming.kafka.topics import HEADROOM_BYTES
from streaming.settings import KafkaSettings

log = logging.getLogger(__name__)

GROUP = "xray-gateway"
"""A consumer must name one. Nothing is committed to it, and nothing read from it."""

_OPTIONS = {
    "group.id": GROUP,
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    # Where retention overtakes the reader, it goes on with the oldest record that is there.
    "auto.offset.reset": "earliest",
    # The broker answers as soon as there is one record; this is how long it holds a question where there is none.
    "fetch.wait.max.ms": 100,
    "fetch.queue.backoff.ms": 5,
    **BOUNDED_FETCH,
    "log_level": 0,
}
_MOST = 500
_MOST_BYTES = 16 * 1024 * 1024
_ASIDE = frozenset((KafkaError._PARTITION_EOF, KafkaError.GROUP_AUTHORIZATION_FAILED))
"""No failure: the end of a partition, and what is wrong with a group that nothing is read from."""


@dataclass(frozen=True)
class Layout:
    """Which topics these are: a change means to begin with them anew.

    Parameters
    ----------
    cluster : str
        Kafka's id of the cluster.
    ids : mapping of str to str
        Kafka's own ids of the topics, by name.
    counts : mapping of str to int
        Partitions, by name.
    """

    cluster: str
    ids: Mapping[str, str]
    counts: Mapping[str, int]


def read_layout(kafka: KafkaSettings) -> Layout:
    """Ask the broker which topics these are now.

    Raises
    ------
    BrokerError
        Nobody answers, or one is missing.
    """
    names = [kafka.receipts_topic, kafka.predictions_topic, kafka.deadletters_topic]
    found = read_topic_ids(kafka, names)
    topics = describe_cluster(kafka).topics
    return Layout(found.cluster, found.topics, {name: len(topics[name].partitions) for name in names if name in topics})


@dataclass
class Piece:
    """What was read in one go.

    Parameters
    ----------
    found : list of Outcome or Shown
        In the order in which it was read. Images are not kept.
    places : dict of (str, int) to int
        Next offset of each partition of which there was something.
    is_answer : bool
        Whether the broker has answered, be it that there is nothing.
    """

    found: list[Outcome | Shown] = field(default_factory=list)
    places: dict[Partition, int] = field(default_factory=dict)
    is_answer: bool = False


class ReceiptReader:
    """A consumer of the outcomes and the receipts, of no group.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    store : ReceiptStore
        Where to begin.
    with_scores : bool
        Whether receipts have what the model said.

    Raises
    ------
    BrokerError
        Nobody answers, or a topic is missing.
    StoreError
        See `ReceiptStore`.
    """

    def __init__(self, kafka: KafkaSettings, store: ReceiptStore, *, with_scores: bool) -> None:
        self._kafka = kafka
        self._with_scores = with_scores
        self.layout = read_layout(kafka)
        self.generation = store.read_generation()
        largest = {"receive.message.max.bytes": max(100_000_000, 2 * kafka.max_message_bytes + HEADROOM_BYTES)}
        self._consumer = Consumer(kafka.to_librdkafka() | _OPTIONS | largest)
        try:
            self._places, self._ends = self._begin(store)
        except (BrokerError, StoreError):
            self._consumer.close()
            raise
        self._consumer.assign([TopicPartition(*partition, place) for partition, place in self._places.items()])

    def _begin(self, store: ReceiptStore) -> tuple[dict[Partition, int], dict[Partition, int]]:
        """Find where to begin, and where the receipts end now."""
        begins: dict[Partition, int] = {}
        ends: dict[Partition, int] = {}
        for topic, topic_id in self.layout.ids.items():
            # Of the cluster, too: an empty id is a broker's that has none.
            places = store.read_places(topic, f"{self.layout.cluster}/{topic_id}")
            if topic == self._kafka.receipts_topic and not places:
                store.mark_all_untold()  # a new one, or a new store, which has none
            for number, span in read_spans(self._consumer, topic).items():
                begins[topic, number] = _choose_begin(topic, number, span, places.get(number))
                if topic == self._kafka.receipts_topic and span.stop > begins[topic, number]:
                    ends[topic, number] = span.stop
        return begins, ends

    @property
    def knows_receipts(self) -> bool:
        """Whether the receipts that there were at the begin are read: none of them is to be written again."""
        return not self._ends

    def read(self, wait_s: float) -> Piece:
        """Read what is there, up to a number of records or a size; wait for the first one.

        Raises
        ------
        BrokerError
            Reading fails.
        """
        piece = Piece()
        n_bytes = n_records = 0
        message = self._consumer.poll(wait_s)
        while message is not None:
            if (error := message.error()) is None:
                n_records += 1
                n_bytes += len(message)
                self._take(message, piece)
            elif error.code() not in _ASIDE:
                msg = f"outcomes cannot be read: {error.str()}"
                raise BrokerError(msg)
            elif error.code() == KafkaError._PARTITION_EOF:
                piece.is_answer = True
                self._ends.pop((message.topic(), message.partition()), None)
            message = self._consumer.poll(0) if n_records < _MOST and n_bytes < _MOST_BYTES else None
        return piece

    def _take(self, message: Message, piece: Piece) -> None:
        partition = (message.topic(), message.partition())
        place = message.offset() + 1
        piece.is_answer = True
        piece.places[partition] = self._places[partition] = place
        if place >= self._ends.get(partition, place + 1):
            del self._ends[partition]
        found: Outcome | Shown | None
        if message.topic() == self._kafka.predictions_topic:
            found = read_prediction(message, with_score=self._with_scores)
        elif message.topic() == self._kafka.deadletters_topic:
            found = read_dead_letter(message)
        else:
            found = _read_shown(message)
        if found is not None:
            piece.found.append(found)

    def count_unread(self) -> int:
        """Count outcomes that are not read yet, as far as the last answers of the broker tell."""
        return sum(self._unread(partition, place) for partition, place in self._places.items())

    def _unread(self, partition: Partition, place: int) -> int:
        if partition[0] == self._kafka.receipts_topic:
            return 0
        known = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
        return 0 if known is None else max(int(known[1]) - place, 0)

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()


def _choose_begin(topic: str, number: int, span: range, place: int | None) -> int:
    if place is None:
        return span.start
    if place in span or place == span.stop:
        return place
    what = "was removed unread" if place < span.start else "has fewer records than were read"
    log.warning("topic %s partition %s: it %s; its receipts go on at offset %s", topic, number, what, span.start)
    return span.start


def _read_shown(message: Message) -> Shown | None:
    receipt = read_receipt(message.value() or b"")
    if receipt is None or message.key() != receipt.event_id.encode():
        return None
    return Shown(receipt, message.offset())
