"""Reads one outcome topic for its table, from given places on, in pieces of bounded size.

It is assigned its partitions, by offset: what a consumer group remembers of it is for lag tools alone, and nothing is
ever read from there.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import BrokerError, DataLossError
from streaming.archive.rows import Row
from streaming.kafka.cluster import describe_cluster
from streaming.kafka.reader import BOUNDED_FETCH, list_partitions, read_spans
from streaming.kafka.topics import HEADROOM_BYTES
from streaming.settings import KafkaSettings

log = logging.getLogger(__name__)

GROUP = "xray-archive"
"""Consumer group that the places are committed to, as other tools look for them there."""

_OPTIONS = {
    "group.id": GROUP,
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    # A place that retention has overtaken is an error, never a jump.
    "auto.offset.reset": "error",
    # How long a commit to the group waits for whoever keeps it, and with it the end of the consumer: for 45 s where
    # this user has no right on the group, or its broker is away. Nothing here is a member of the group.
    "session.timeout.ms": 2000,
    "heartbeat.interval.ms": 1000,
    **BOUNDED_FETCH,
    "log_level": 0,
}
_MAX_BYTES = 64 * 1024 * 1024
"""Of one piece: its rows in memory, and about twice that as what is written."""
_PIECE = 100
_WAIT_S = 0.05
_BY_THE_WAY = frozenset(
    (
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    )
)
"""A broker away, which librdkafka tries again, and what is wrong with the group, which nothing is read from."""


@dataclass
class Piece:
    """What was read in one go.

    Parameters
    ----------
    places : dict of int to int
        Next offset of every partition that is read.
    max_records : int
        How many it may hold.
    rows : list of Row
        Records that are rows.
    n_records : int
        Records that were read.
    n_nameless : int
        Of them, those that are no rows.
    n_bytes : int
        About how much memory the rows take.
    oldest_ms : int or None
        Time of the oldest record, in milliseconds.
    """

    places: dict[int, int]
    max_records: int
    rows: list[Row] = field(default_factory=list)
    n_records: int = 0
    n_nameless: int = 0
    n_bytes: int = 0
    oldest_ms: int | None = None

    @property
    def is_full(self) -> bool:
        """Whether there was more to read."""
        return self.n_records >= self.max_records or self.n_bytes >= _MAX_BYTES

    def add(self, message: Message, row: Row | None) -> None:
        """Add a record and what it became."""
        self.places[message.partition()] = message.offset() + 1
        self.n_records += 1
        ms = message.timestamp()[1]
        self.oldest_ms = ms if self.oldest_ms is None else min(ms, self.oldest_ms)
        if row is None:
            self.n_nameless += 1
        else:
            self.rows.append(row)
            self.n_bytes += row.n_bytes


class OutcomeReader:
    """A consumer of one topic.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker.
    topic : str
        Its name.
    read_row : callable
        Turns a record into a row, or None; nothing else of a record is kept.

    Raises
    ------
    BrokerError, SettingsError
        See `streaming.kafka.cluster.describe_cluster`.
    """

    def __init__(self, kafka: KafkaSettings, topic: str, read_row: Callable[[Message], Row | None]) -> None:
        describe_cluster(kafka)  # a refused log-in is told at once and by its name
        largest = {"receive.message.max.bytes": max(100_000_000, 2 * kafka.max_message_bytes + HEADROOM_BYTES)}
        self._consumer = Consumer(kafka.to_librdkafka() | _OPTIONS | largest)
        self._topic = topic
        self._read_row = read_row
        self._places: dict[int, int] = {}

    @property
    def places(self) -> Mapping[int, int]:
        """Next offset that is read, by partition."""
        return self._places

    def read_spans(self) -> dict[int, range]:
        """Read which offsets each partition has now; BrokerError where nobody answers."""
        return read_spans(self._consumer, self._topic)

    def has_new_partitions(self) -> bool:
        """Tell whether the topic has partitions that are not read; BrokerError where nobody answers."""
        return any(partition not in self._places for partition in list_partitions(self._consumer, self._topic))

    def go_to(self, places: Mapping[int, int]) -> None:
        """Read each partition from a place on."""
        self._places = dict(places)
        self._consumer.assign([TopicPartition(self._topic, partition, place) for partition, place in places.items()])

    def last_ends(self) -> dict[int, int]:
        """Give the end of each partition as the last answer to a fetch had it; those without one yet are left out."""
        found = {}
        for partition in self._places:
            known = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), cached=True)
            if known is not None and known[1] >= 0:
                found[partition] = int(known[1])
        return found

    def read(self, max_records: int, wait_s: float, *, ends: Mapping[int, int] | None = None) -> Piece:
        """Read what there is, up to a number of records or a size.

        Parameters
        ----------
        max_records : int
            At most so many.
        wait_s : float
            Return after so many seconds where there is less.
        ends : Mapping of int to int, optional
            Return as soon as each of these partitions was read up to there.

        Returns
        -------
        Piece
            See there. The reader has moved on: where it is not written, `go_to` goes back.

        Raises
        ------
        DataLossError
            A place is not in the topic any more.
        BrokerError
            Reading fails.
        """
        piece = Piece(dict(self._places), max_records)
        deadline = time.monotonic() + wait_s
        while not piece.is_full and not (ends and all(piece.places[p] >= end for p, end in ends.items())):
            wanted = min(_PIECE, max_records - piece.n_records)
            messages = self._consumer.consume(num_messages=wanted, timeout=_WAIT_S)
            for message in messages:
                error = message.error()
                if error is None:
                    piece.add(message, self._read_row(message))
                elif error.code() == KafkaError._PARTITION_EOF:
                    piece.places[message.partition()] = message.offset()  # behind a transaction's marks too
                elif error.code() not in _BY_THE_WAY:
                    raise self._describe(error, message)
            if len(messages) < wanted and time.monotonic() > deadline:
                break
        self._places = dict(piece.places)
        return piece

    def _describe(self, error: KafkaError, message: Message) -> BrokerError | DataLossError:
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            return DataLossError(f"{self._topic} partition {message.partition()}: {error.str()}")
        return BrokerError(f"topic {self._topic}: {error.str()}")

    def tell_group(self, places: Mapping[int, int]) -> None:
        """Commit places to the consumer group, for lag tools; that this fails harms nothing."""
        offsets = [TopicPartition(self._topic, partition, place) for partition, place in places.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as exc:
            log.info("the group %s was not told the places in %s: %s", GROUP, self._topic, exc.args[0].str())

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()
