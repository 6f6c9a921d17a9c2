"""Reads outcomes as they come, in one thread, of no consumer group; nothing is committed and no topic is created.

At the start the newest outcomes that are there are read, so that a page has something to show, and put in the order in
which they were published. Of dead letters, which hold images, only some hundred: so an image whose outcome is older is
not counted as unanswered. Where Kafka is away the thread tries again for as long as the page runs, and goes on where it
was; where a topic was made anew it begins again.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import BrokerError, XrayError
from streaming.gateway.receipts.receipt import Receipt, State, read_receipt
from streaming.kafka.cluster import describe_cluster
from streaming.kafka.places import Origin
from streaming.kafka.reader import BOUNDED_FETCH, offsets_at, read_spans
from streaming.kafka.topicids import TopicIds, read_topic_ids
from streaming.kafka.topics import HEADROOM_BYTES
from streaming.lookup.outcome import Outcome, read_dead_letter, read_prediction
from streaming.page.knows.answered import Answered, UnansweredImages
from streaming.page.knows.bands import Bands
from streaming.page.knows.latest import MOST, MOST_BYTES, Latest
from streaming.page.knows.older import OlderOutcomes
from streaming.periodic import first_line
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

GROUP = "xray-reader"
"""A consumer must name one; nothing is committed to it."""
OLDER_DEAD_LETTERS = 400
"""Read at the start; each may be 32 MiB."""
MOST_ACCEPTED = 20_000

_POLL_S = 0.2
_AT_ONCE = 500
_ENDS_S = 2.0
_IDS_S = 30.0
_FILL_S = 60.0
_FIRST_WAIT_S, _MAX_WAIT_S = 1.0, 10.0
_END_S = 5.0
_OPTIONS = {
    "group.id": GROUP,
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",  # where retention overtakes the reader
    "allow.auto.create.topics": False,
    "fetch.wait.max.ms": 100,
    "fetch.queue.backoff.ms": 5,
    **BOUNDED_FETCH,
    "log_level": 0,
}
_ASIDE = frozenset((KafkaError._PARTITION_EOF, KafkaError.GROUP_AUTHORIZATION_FAILED))
"""No failure: the end of a partition, and what is wrong with a group that nothing is read from."""
_Partition = tuple[str, int]


@dataclass(frozen=True)
class FeedState:
    """How the reading goes.

    Parameters
    ----------
    is_reading : bool
        Whether Kafka answered last time.
    why : str
        Why it does not; empty where it does.
    is_filled : bool
        Whether the outcomes that were there at the start are read.
    foreign : int
        Records of the topics that this stream did not write.
    known_from : float or None
        Outcomes that were published after this moment are all known, Unix time in seconds; None before the first.
    """

    is_reading: bool = False
    why: str = "not asked yet"
    is_filled: bool = False
    foreign: int = 0
    known_from: float | None = None


@dataclass
class _Fill:
    """What is read of the outcomes that were there at the start."""

    missing: set[_Partition]
    ends: dict[_Partition, int]
    begins_late: set[_Partition]
    until: float = 0.0
    held: list[Outcome] = field(default_factory=list)
    known_from_ms: int = 0


class Feed:
    """Keeps the newest outcomes, and which images have none; a context manager.

    Parameters
    ----------
    settings : StreamSettings
        Broker, topics, and the folder of models.
    most, most_bytes : int
        See `Latest`.
    """

    def __init__(self, settings: StreamSettings, *, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._settings = settings
        self._kafka = settings.kafka
        self._most = most
        self.latest = Latest(most, most_bytes)
        self._answered = Answered()
        self._accepted: OrderedDict[str, Receipt] = OrderedDict()
        self._by_place: dict[str, str] = {}
        self._find_band = Bands(settings.models_folder, settings.model).find
        self._older = OlderOutcomes(settings.tables_folder, self._find_band)
        self._state = FeedState()
        self._ids = TopicIds("", {})
        self._next: dict[_Partition, int] = {}
        self._fill: _Fill | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="page-feed", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start to read; does not wait for Kafka."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it waits for is waited for some seconds."""
        self._ended.set()
        self._thread.join(_END_S)

    @property
    def state(self) -> FeedState:
        """How the reading goes."""
        return self._state

    def find(self, event_id: str) -> Outcome | None:
        """Find an outcome by its event id: in memory, else in the archive's tables, which may take a second.

        Raises
        ------
        TableError
            It is not in memory, and a table cannot be read.
        """
        return self.latest.find(event_id) or self._older.find(event_id)

    def list_partitions(self, topic: str) -> list[int]:
        """List the partitions of a topic that is read; none before Kafka has answered."""
        return [partition for name, partition in list(self._next) if name == topic]

    def find_receipt(self, image_key: str) -> Receipt | None:
        """Find what the gateway said when it took an image; None where it came by none, or that is long ago."""
        with self._lock:
            return self._accepted.get(image_key)

    def find_unanswered(self, limit: int = 100) -> UnansweredImages:
        """Find images without an outcome, among the newest of the topic whose outcomes would be known.

        Parameters
        ----------
        limit : int
            How many to name.
        """
        found = self._answered.find_unanswered(limit, time.time())
        with self._lock:
            receipts = [
                self._accepted.get(self._by_place.get(f"{self._kafka.images_topic}-{one.place}", ""))
                for one in found.newest
            ]
        named = tuple(
            one
            if receipt is None
            else replace(one, source=receipt.source, image_id=receipt.image_id, accepted_at=receipt_time(receipt))
            for one, receipt in zip(found.newest, receipts, strict=True)
        )
        return replace(found, newest=named)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._ended.is_set():
            started = time.monotonic()
            try:
                self._read()
            except Exception as exc:  # whatever it is, a thread that ended would go unseen, and the page stand still
                why = exc.args[0].str() if isinstance(exc, KafkaException) else first_line(exc)
                if self._state.is_reading or why != self._state.why:
                    is_expected = isinstance(exc, XrayError | KafkaException)
                    log.warning("the page reads no outcomes: %s", why, exc_info=None if is_expected else exc)
                self._state = replace(self._state, is_reading=False, why=why)
            wait_s = _FIRST_WAIT_S if time.monotonic() - started > _MAX_WAIT_S else min(2 * wait_s, _MAX_WAIT_S)
            self._ended.wait(wait_s)

    def _read(self) -> None:
        """Read until something fails or the page ends."""
        describe_cluster(self._kafka)  # a refused log-in is told by its name
        largest = max(100_000_000, 2 * self._kafka.max_message_bytes + HEADROOM_BYTES)
        consumer = Consumer(self._kafka.to_librdkafka() | _OPTIONS | {"receive.message.max.bytes": largest})
        try:
            self._begin(consumer)
            ends_at = 0.0
            ids_at = time.monotonic() + _IDS_S
            while not self._ended.is_set():
                self._take(consumer.consume(_AT_ONCE, _POLL_S))
                if time.monotonic() > ends_at:
                    self._answered.advance(read_spans(consumer, self._kafka.images_topic))
                    self._note_answer()
                    ends_at = time.monotonic() + _ENDS_S
                if time.monotonic() > ids_at:
                    if self._read_ids() != self._ids:
                        return  # a topic was made anew, or the first gateway has made that of the receipts
                    ids_at = time.monotonic() + _IDS_S
        finally:
            consumer.close()

    def _begin(self, consumer: Consumer) -> None:
        """Find where to read from: where it was, or the newest outcomes that are there."""
        kafka = self._kafka
        ids = self._read_ids()
        depths = {kafka.predictions_topic: self._most, kafka.deadletters_topic: OLDER_DEAD_LETTERS}
        if kafka.receipts_topic in ids.topics:
            depths[kafka.receipts_topic] = MOST_ACCEPTED
        spans = {
            (topic, partition): span for topic in depths for partition, span in read_spans(consumer, topic).items()
        }
        if ids != self._ids or any(self._next.get(one, -1) not in _and_end(span) for one, span in spans.items()):
            self._next = self._choose_begins(spans, depths)
            self._ids = ids
            self._fill = self._make_fill(spans)
        consumer.assign([TopicPartition(*one, offset) for one, offset in self._next.items()])
        self._finish_fill(consumer)

    def _read_ids(self) -> TopicIds:
        kafka = self._kafka
        names = [kafka.images_topic, kafka.predictions_topic, kafka.deadletters_topic]
        if kafka.receipts_topic in describe_cluster(kafka).topics:
            names.append(kafka.receipts_topic)
        return read_topic_ids(kafka, names)

    def _choose_begins(self, spans: Mapping[_Partition, range], depths: Mapping[str, int]) -> dict[_Partition, int]:
        counts = {topic: sum(1 for name, _ in spans if name == topic) for topic in depths}
        return {one: max(span.start, span.stop - depths[one[0]] // counts[one[0]]) for one, span in spans.items()}

    def _make_fill(self, spans: Mapping[_Partition, range]) -> _Fill:
        outcomes = {one: span for one, span in spans.items() if one[0] != self._kafka.receipts_topic}
        return _Fill(
            missing={one for one, span in outcomes.items() if self._next[one] < span.stop},
            ends={one: span.stop for one, span in outcomes.items()},
            # What was before the begin is not known: left out here, or removed by retention.
            begins_late={one for one in outcomes if self._next[one] > 0},
        )

    def _take(self, messages: Iterable[Message]) -> None:
        outcomes: list[Outcome] = []
        try:
            for message in messages:
                self._read_message(message, outcomes)
                # First, so that nobody sees an outcome of a broker that is said to be away.
                self._note_answer()
        finally:  # what was read before a failure is not read again
            self._add(outcomes)

    def _note_answer(self) -> None:
        if not self._state.is_reading:
            self._state = replace(self._state, is_reading=True, why="")

    def _read_message(self, message: Message, outcomes: list[Outcome]) -> None:
        error, one = message.error(), (message.topic(), message.partition())
        if error is not None and error.code() not in _ASIDE:
            msg = f"outcomes cannot be read: {error.str()}"
            raise BrokerError(msg)
        if error is not None:
            return
        self._next[one] = message.offset() + 1
        if one[0] == self._kafka.receipts_topic:
            self._note_receipt(message)
            return
        outcome = (
            read_prediction(message, self._find_band)
            if one[0] == self._kafka.predictions_topic
            else read_dead_letter(message)
        )
        self._note_fill(one, message)
        if outcome is None:
            self._state = replace(self._state, foreign=self._state.foreign + 1)
        else:
            outcomes.append(outcome)

    def _add(self, outcomes: list[Outcome]) -> None:
        if self._fill is not None:
            self._fill.held += outcomes
            return
        self._note_answered(outcomes)
        self.latest.add(outcomes)

    def _note_answered(self, outcomes: Iterable[Outcome]) -> None:
        for one in outcomes:
            if one.topic == self._kafka.images_topic and self._ids.are_of(Origin(one.topic, one.place, one.topic_id)):
                self._answered.note(one.place, one.published_at)

    def _note_fill(self, one: _Partition, message: Message) -> None:
        fill = self._fill
        if fill is None:
            return
        if one in fill.begins_late:
            fill.begins_late.discard(one)
            fill.known_from_ms = max(fill.known_from_ms, message.timestamp()[1])
        if message.offset() + 1 >= fill.ends[one]:
            fill.missing.discard(one)

    def _finish_fill(self, consumer: Consumer) -> None:
        """Read what was there at the start, and put it in order; then it is known from when on nothing is missing."""
        fill = self._fill
        if fill is None:
            return
        fill.until = time.monotonic() + _FILL_S
        while fill.missing and time.monotonic() < fill.until and not self._ended.is_set():
            self._take(consumer.consume(_AT_ONCE, _POLL_S))
        if fill.begins_late or fill.missing:  # nothing left to read of a past that retention has removed; or no time
            fill.known_from_ms = int(time.time() * 1000)
        self._fill = None
        self.latest.add(sorted(fill.held, key=lambda one: (one.published_at, one.record)))
        images = read_spans(consumer, self._kafka.images_topic)
        first = offsets_at(consumer, self._kafka.images_topic, images, fill.known_from_ms)
        self._answered.begin(first)
        self._note_answered(fill.held)
        self._note_answer()
        self._state = replace(self._state, is_filled=True, known_from=fill.known_from_ms / 1000)

    def _note_receipt(self, message: Message) -> None:
        receipt = read_receipt(message.value() or b"")
        if receipt is None or receipt.state is not State.ACCEPTED:
            return
        with self._lock:
            former = self._accepted.pop(receipt.event_id, None)
            if former is not None and former.place is not None:
                self._by_place.pop(former.place, None)
            self._accepted[receipt.event_id] = receipt
            if receipt.place is not None:
                self._by_place[receipt.place] = receipt.event_id
            while len(self._accepted) > MOST_ACCEPTED:
                _, gone = self._accepted.popitem(last=False)
                if gone.place is not None:
                    self._by_place.pop(gone.place, None)


def _and_end(span: range) -> range:
    return range(span.start, span.stop + 1)


def receipt_time(receipt: Receipt) -> float:
    """Give when an image came into its state, Unix time in seconds."""
    return datetime.fromisoformat(receipt.at).timestamp()
