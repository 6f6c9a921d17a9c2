"""Predictions and findings as they come, for one target: a consumer group of its own."""

import logging
from collections.abc import Mapping, Sequence

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import BrokerError
from streaming.kafka.cluster import describe_cluster
from streaming.kafka.groups import MOVED_ON
from streaming.kafka.reader import BOUNDED_FETCH
from streaming.reports.ledger import Arrival, Ledger, Partition, Source
from streaming.reports.records import read_finding_record, read_prediction_record, read_published_at
from streaming.reports.report import NotReportedError
from streaming.settings import KafkaSettings

log = logging.getLogger(__name__)

SESSION_S = 10.0
"""A member that was killed is one for so long."""

_MOST = 500
_TIMEOUT_S = 20.0
_OPTIONS = {
    "partition.assignment.strategy": "range",  # gives all partitions back before it takes some
    "enable.auto.commit": False,
    "auto.offset.reset": "earliest",
    "session.timeout.ms": int(1000 * SESSION_S),
    # A target may take its time for each report; what is read meanwhile waits in the ledger.
    "max.poll.interval.ms": 900_000,
    "fetch.wait.max.ms": 10,
    "log_level": 0,
    **BOUNDED_FETCH,
}
_MOVED_ON = MOVED_ON | {KafkaError._NO_OFFSET}  # there was nothing to commit


class Inbox:
    """A reader of predictions and findings, of a consumer group.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    group : str
        Name of the group.
    ledger : Ledger
        Tells whether the topics were read before; a first time begins at their ends.
    from_beginning : bool
        Whether a first time begins with the oldest records instead.

    Raises
    ------
    BrokerError, SettingsError
        Nobody answers, or a topic is missing.
    """

    def __init__(self, kafka: KafkaSettings, group: str, ledger: Ledger, *, from_beginning: bool) -> None:
        self._kafka = kafka
        self._ledger = ledger
        self._from_beginning = from_beginning
        self._next: dict[Partition, int] = {}
        self._committed: dict[Partition, int] = {}
        self._is_paused = False
        self.is_assigned = False
        self.is_alone = True
        self.n_strange = 0
        describe_cluster(kafka)
        self._consumer = Consumer(kafka.to_librdkafka() | _OPTIONS | {"group.id": group})
        self._consumer.subscribe(
            [kafka.predictions_topic, kafka.labels_topic],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_revoke,
        )

    def read(self, wait_s: float, *, is_full: bool) -> list[Arrival]:
        """Read what came.

        Parameters
        ----------
        wait_s : float
            For the first record.
        is_full : bool
            Whether nothing more may come for now; the group is still heard of.

        Raises
        ------
        BrokerError
            Reading fails.
        """
        if is_full != self._is_paused:
            (self._consumer.pause if is_full else self._consumer.resume)(self._consumer.assignment())
            self._is_paused = is_full
        arrivals = []
        try:
            message = self._consumer.poll(wait_s)
            while message is not None:
                if (error := message.error()) is None:
                    arrivals += self._take(message)
                elif error.code() != KafkaError._MAX_POLL_EXCEEDED:  # the next call joins the group again
                    raise KafkaException(error)
                message = self._consumer.poll(0) if len(arrivals) < _MOST else None
        except KafkaException as exc:
            raise self._failure(exc) from exc
        return arrivals

    def commit(self, first_open: Mapping[Partition, int]) -> None:
        """Commit the offsets behind all that is delivered.

        Parameters
        ----------
        first_open : mapping of (str, int) to int
            Oldest record of each partition that is not.

        Raises
        ------
        BrokerError
            The commit was refused.
        """
        wanted = {one: min(place, first_open.get(one, place)) for one, place in self._next.items()}
        changed = [one for one, place in wanted.items() if self._committed.get(one) != place]
        if not changed:
            return
        try:
            self._consumer.commit(offsets=[TopicPartition(*one, wanted[one]) for one in changed], asynchronous=False)
        except KafkaException as exc:
            if exc.args[0].code() not in _MOVED_ON:
                raise self._failure(exc) from exc
        else:
            self._committed |= {one: wanted[one] for one in changed}

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def _take(self, message: Message) -> list[Arrival]:
        partition = (message.topic(), message.partition())
        self._next[partition] = message.offset() + 1
        since_s = read_published_at(message).timestamp()
        source = Source(*partition, message.offset(), since_s)
        if message.topic() == self._kafka.labels_topic:
            finding = read_finding_record(message)
            return [] if finding is None else [Arrival(source, finding)]
        try:
            return [Arrival(source, read_prediction_record(message), message.value())]
        except NotReportedError:
            self.n_strange += 1
            return []

    def _on_assign(self, consumer: Consumer, places: Sequence[TopicPartition]) -> None:
        """Begin where the group stands; a group that never was, where it was told to."""
        begins = list(places)
        for i, place in enumerate(consumer.committed(list(places), timeout=_TIMEOUT_S)):
            begin = place.offset
            if begin < 0:
                begin = OFFSET_BEGINNING
                if not self._from_beginning and not self._ledger.has_begun(place.topic):
                    # By number and committed at once: what comes from now on is read, whatever becomes of this process.
                    begin = consumer.get_watermark_offsets(place, timeout=_TIMEOUT_S)[1]
                    self._next[place.topic, place.partition] = begin
            begins[i] = TopicPartition(place.topic, place.partition, begin)
        consumer.assign(begins)
        self.commit({})
        for topic in {place.topic for place in places}:
            self._ledger.begin(topic)
        self.is_alone = len(places) == self._count_partitions()
        if not self.is_alone:
            log.error(
                "somebody else is in the reports' group: each has a part of the reports, and corrections are lost"
            )
        self.is_assigned = True
        self._is_paused = False

    def _count_partitions(self) -> int:
        found = self._consumer.list_topics(timeout=_TIMEOUT_S).topics
        return sum(len(found[topic].partitions) for topic in (self._kafka.predictions_topic, self._kafka.labels_topic))

    def _on_revoke(self, _consumer: Consumer, _places: Sequence[TopicPartition]) -> None:
        self._next, self._committed = {}, {}
        self.is_assigned = False

    def _failure(self, exc: KafkaException) -> BrokerError:
        topics = f"{self._kafka.predictions_topic}, {self._kafka.labels_topic}"
        return BrokerError(f"topics {topics}: {exc.args[0].str()}")
