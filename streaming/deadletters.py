"""Dead letters: lists them, shows one, and sends originals back to the images topic.

It needs no Spark. What was consumed stays accounted for: nothing is removed or changed. A re-driven record is a new
record of the images topic, and has an outcome of its own, as each record there has; the dead letter stays the outcome
of the first attempt.

Identity
    A record with ``ce_source`` and ``ce_id`` keeps them, so its prediction has the event id that it would have had the
    first time: scored twice by whatever mishap, it is one event and one row. That id is never the dead letter's own,
    which derives from the word ``dead-letter`` in the model's place. Plain bytes are named by topic, partition and
    offset, and get the name of their new place. That is right as well: under the old name there is a dead letter and no
    prediction, and inventing a source and an id for the record would show consumers a device that does not exist. But
    two re-drives of it are two predictions; hence the marker.

Once
    A re-driven record carries the header `REDRIVEN_FROM`:
    the place of the record in the images topic whose attempt failed.
    Re-driving looks for these marks first and skips what has one. The mark and the record are one write, so no crash
    can come between them; there is no state elsewhere to lose. A mark is of the attempt, not of the image or of the
    dead letter: a re-driven record that fails again is a new attempt and may be re-driven again, while dead letters
    that a kill made twice are one attempt. A re-driven record goes to the partition it came from, where it keeps its
    place among the images of its key; so only that partition, behind the first attempt, has to be read for marks.
    Not covered: two re-drives that run at the same moment, and marks that retention removed (after a week) before the
    dead letter (a month).
"""

import hashlib
import heapq
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from schemas import envelope
from schemas.errors import JobError, Reason
from sparkdl.image.decode import sniff_media_type
from streaming.messages import find_offsets, header_text, open_reader, read_spans, scan_offsets
from streaming.settings import KafkaSettings

Headers = list[tuple[str, bytes | None]]

_DELIVERY_TIMEOUT_MS = 60_000
_QUEUE_KIB = 64 * 1024
_POLL_S = 0.1
_FAR = 1000
"""Offsets between two dead letters from which on what lies between them is jumped over and not read."""

# Only values whose form leaves no room for a name, a number or a date of a patient. Everything else, the publisher's id
# and subject above all, shows as its size.
_SHOWN_VALUES = {
    envelope.CONTENT_TYPE: re.compile(r"(image|application)/[a-z]{3,12}(-[a-z]{3,12})?"),
    envelope.CE_SPECVERSION: re.compile(r"\d\.\d"),
    envelope.CE_TYPE: re.compile(re.escape(envelope.IMAGE_TYPE)),
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
    envelope.REDRIVEN_FROM: re.compile(r"[\w.-]{1,249}-\d{1,9}@\d{1,19}"),
}


class Place(NamedTuple):
    """Where a record is in a topic that is known; as text ``partition@offset``."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}@{self.offset}"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What a dead letter says, without its payload and the publisher's headers.

    Parameters
    ----------
    place : Place
        In the dead-letter topic.
    time : datetime
        When it was written there, UTC.
    event_id : str
        Its identity; the key of the table ``dead_letters``.
    reason : str
        A `Reason`; text, for an older stream's could be one that is not known any more.
    stage, error_class, message : str
        What failed; what was found and what was wanted. Empty where the record had such a header already.
    input_topic : str
        Where the record was read.
    input_place : Place
        And where in it.
    input_topic_id : str
        Kafka's own id of that topic; empty where it is not known.
    received_at : str
        The record's own Kafka timestamp, UTC.
    payload_bytes : int or None
        Size of its value; None for a tombstone.
    """

    place: Place
    time: datetime
    event_id: str
    reason: str
    stage: str
    error_class: str
    message: str
    input_topic: str
    input_place: Place
    received_at: str
    payload_bytes: int | None
    input_topic_id: str = ""

    @property
    def origin(self) -> str:
        """The record that failed, as topic-partition@offset."""
        return f"{self.input_topic}-{self.input_place}"

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {
            "dead_letter": str(self.place),
            "time": self.time.isoformat(timespec="milliseconds"),
            "event_id": self.event_id,
            "reason": self.reason,
            "stage": self.stage,
            "error_class": self.error_class,
            "message": self.message,
            "input_topic": self.input_topic,
            "input_partition": self.input_place.partition,
            "input_offset": self.input_place.offset,
            "received_at": self.received_at,
            "payload_bytes": self.payload_bytes,
        }


@dataclass(frozen=True)
class Selection:
    """Which dead letters are meant; by default all of them.

    Parameters
    ----------
    reasons : frozenset of Reason
        Any where empty.
    since, until : datetime, optional
        By the time at which they were written to the dead-letter topic, with a time zone; ``until`` is not included.
    places : sequence of Place
        These only; any where empty.
    """

    reasons: frozenset[Reason] = frozenset()
    since: datetime | None = None
    until: datetime | None = None
    places: Sequence[Place] = ()

    def takes(self, letter: DeadLetter) -> bool:
        """Whether a dead letter is meant."""
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (self.since is None or letter.time >= self.since)
            and (self.until is None or letter.time < self.until)
        )


@dataclass
class Listing:
    """Dead letters, and how many there are.

    Parameters
    ----------
    shown : list of DeadLetter
        The newest ones, newest first.
    by_reason : Counter of str
        All that are meant.
    foreign : int
        Records of the topic that this stream did not write; they are in no other figure.
    """

    shown: list[DeadLetter]
    by_reason: Counter[str]
    foreign: int

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {
            "total": self.by_reason.total(),
            "by_reason": dict(self.by_reason.most_common()),
            "foreign": self.foreign,
            "dead_letters": [letter.to_dict() for letter in self.shown],
        }


@dataclass(frozen=True)
class HeaderView:
    """One header of the original record.

    Parameters
    ----------
    name : str
        Its name.
    size_bytes : int
        Of its value.
    text : str or None
        The value, where its form rules out that it is about a patient.
    """

    name: str
    size_bytes: int
    text: str | None


@dataclass(frozen=True)
class Details:
    """One dead letter with everything that may be shown, and its original bytes.

    Parameters
    ----------
    letter : DeadLetter
        See there.
    headers : list of HeaderView
        Of the original record, in order.
    key_bytes : int or None
        Size of its key; None where it had none.
    media_type : str or None
        What the bytes are, None where they are nothing that is known.
    sha256 : str
        Of the bytes, as in the tables.
    trace : str
        The error's stack.
    payload : bytes or None
        The original value. Never shown.
    """

    letter: DeadLetter
    headers: list[HeaderView]
    key_bytes: int | None
    media_type: str | None
    sha256: str
    trace: str
    payload: bytes | None

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON, without the payload."""
        views = [{"name": h.name, "bytes": h.size_bytes, "value": h.text} for h in self.headers]
        return {
            **self.letter.to_dict(),
            "key_bytes": self.key_bytes,
            "media_type": self.media_type,
            "sha256": self.sha256,
            "headers": views,
            "trace": self.trace,
        }


class Skip(StrEnum):
    """Why a dead letter that is meant is not re-driven."""

    TOMBSTONE = "tombstone"
    EMPTY_PAYLOAD = "empty_payload"
    TOO_LARGE = "too_large"
    OVER_BOUND = "over_bound"
    OTHER_TOPIC = "other_topic"
    REPEATED = "repeated"
    ALREADY_REDRIVEN = "already_redriven"


@dataclass
class RedrivePlan:
    """What a re-drive will do.

    Parameters
    ----------
    chosen : dict of Place to str
        Dead letters that will be sent, and the reason each has.
    skipped : Counter of Skip
        The others, by why.
    foreign : int
        Records of the topic that this stream did not write; they are in no other figure.
    """

    chosen: dict[Place, str] = field(default_factory=dict)
    skipped: Counter[Skip] = field(default_factory=Counter)
    foreign: int = 0

    @property
    def by_reason(self) -> Counter[str]:
        """The chosen ones by their reason."""
        return Counter(self.chosen.values())

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {
            "selected": len(self.chosen) + self.skipped.total(),
            "chosen": len(self.chosen),
            "by_reason": dict(self.by_reason.most_common()),
            "skipped": {skip.value: count for skip, count in self.skipped.most_common()},
            "foreign": self.foreign,
        }


@dataclass
class RedriveReport:
    """What became of the chosen dead letters.

    Parameters
    ----------
    delivered : list of Place
        Confirmed by the broker.
    failed : dict of Place to str
        Not confirmed, with the reason. Re-driving them again is safe.
    seconds : float
        How long it took.
    """

    delivered: list[Place] = field(default_factory=list)
    failed: dict[Place, str] = field(default_factory=dict)
    seconds: float = 0.0


def split_headers(headers: Headers) -> tuple[Headers, dict[str, bytes]]:
    """Part a dead letter's headers into the original ones and those that the stream added.

    The stream appends its own as one block, of which ``xray_input_topic`` is the first (`streaming.routing`). Going by
    names alone would take from a record what it brought: ``__connect.errors`` headers of a failure elsewhere are kept.

    Returns
    -------
    tuple of list and dict
        Original headers in order, and the added ones by name; the latter is empty where the stream wrote none.
    """
    names = [name for name, _ in headers]
    if envelope.INPUT_TOPIC not in names:
        return headers, {}
    begin = len(names) - 1 - names[::-1].index(envelope.INPUT_TOPIC)
    return headers[:begin], {name: value or b"" for name, value in headers[begin:]}


def read_dead_letter(message: Message) -> DeadLetter | None:
    """Read one message of the dead-letter topic; None where this stream did not write it."""
    _, added = split_headers(message.headers() or [])
    value = message.value()
    try:
        return DeadLetter(
            place=Place(message.partition(), message.offset()),
            time=datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC),
            event_id=added[envelope.EVENT_ID].decode(),
            reason=added[envelope.REASON].decode(),
            stage=header_text(added, envelope.ERROR_STAGE) or "",
            error_class=header_text(added, envelope.ERROR_EXCEPTION_CLASS) or "",
            message=header_text(added, envelope.ERROR_EXCEPTION_MESSAGE) or "",
            input_topic=added[envelope.INPUT_TOPIC].decode(),
            input_place=Place(int(added[envelope.INPUT_PARTITION]), int(added[envelope.INPUT_OFFSET])),
            received_at=header_text(added, envelope.INPUT_TIMESTAMP) or "",
            payload_bytes=None if value is None else len(value),
            input_topic_id=header_text(added, envelope.INPUT_TOPIC_ID) or "",
        )
    except (KeyError, ValueError):
        return None


def list_dead_letters(kafka: KafkaSettings, selection: Selection, *, limit: int = 50) -> Listing:
    """List the newest dead letters, and count all.

    Memory holds ``limit`` of them without their payloads, however long the topic is.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topic.
    selection : Selection
        Which ones.
    limit : int
        How many at most; 0 only counts.

    Returns
    -------
    Listing
        See there.

    Raises
    ------
    BrokerError
        Nobody answers, or there is no such topic.
    """
    newest: list[tuple[datetime, Place, DeadLetter]] = []
    listing = Listing([], Counter(), 0)
    for message in _scan(kafka, selection):
        letter = read_dead_letter(message)
        if letter is None:
            listing.foreign += 1
        elif selection.takes(letter):
            listing.by_reason[letter.reason] += 1
            heapq.heappush(newest, (letter.time, letter.place, letter))
            if len(newest) > limit:
                heapq.heappop(newest)
    listing.shown = [letter for _, _, letter in sorted(newest, reverse=True)]
    return listing


def show_dead_letter(kafka: KafkaSettings, which: Place | str) -> Details:
    """Find one dead letter.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topic.
    which : Place or str
        Its place, or its event id; of several with one id the newest is taken.

    Returns
    -------
    Details
        See there.

    Raises
    ------
    JobError
        There is none such; says what there is.
    BrokerError
        Nobody answers, or there is no such topic.
    """
    selection = Selection(places=[which]) if isinstance(which, Place) else Selection()
    found: tuple[datetime, Message, DeadLetter] | None = None
    for message in _scan(kafka, selection):
        letter = read_dead_letter(message)
        if letter is None or (isinstance(which, str) and letter.event_id != which):
            continue
        if found is None or letter.time >= found[0]:
            found = (letter.time, message, letter)
    if found is None:
        msg = f"no dead letter {which} in {kafka.deadletters_topic}. 'xray deadletters list' shows which there are."
        raise JobError(msg)
    return _describe(found[1], found[2])


def _describe(message: Message, letter: DeadLetter) -> Details:
    original, added = split_headers(message.headers() or [])
    payload, key = message.value(), message.key()
    return Details(
        letter=letter,
        headers=[_view(name, value or b"") for name, value in original],
        key_bytes=None if key is None else len(key),
        media_type=sniff_media_type(payload) if payload else None,
        sha256=hashlib.sha256(payload or b"").hexdigest(),
        trace=header_text(added, envelope.ERROR_EXCEPTION_STACKTRACE) or "",
        payload=payload,
    )


def _view(name: str, value: bytes) -> HeaderView:
    form = _SHOWN_VALUES.get(name.lower())
    text = value.decode(errors="replace")
    return HeaderView(name, len(value), text if form is not None and form.fullmatch(text) else None)


def plan_redrive(
    kafka: KafkaSettings, selection: Selection, *, max_payload_bytes: int, again: bool = False
) -> RedrivePlan:
    """Find out which dead letters to re-drive; nothing is written.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    selection : Selection
        Which ones are meant.
    max_payload_bytes : int
        What the stream takes: larger ones would only come back.
    again : bool
        Also those that were re-driven before. A record without ``ce_source`` and ``ce_id`` can then get a second
        prediction.

    Returns
    -------
    RedrivePlan
        See there. Every dead letter that is meant is chosen, or counted with why it is not.

    Raises
    ------
    JobError
        A place that is named holds no dead letter.
    BrokerError
        Nobody answers, or a topic is missing.
    """
    plan = RedrivePlan()
    attempts: dict[_Input, _Attempt] = {}
    named = set(selection.places)
    for message in _scan(kafka, selection):
        letter = read_dead_letter(message)
        if letter is None:
            plan.foreign += 1
            continue
        named.discard(letter.place)
        if selection.takes(letter):
            _sort_in(letter, _find_obstacle(letter, kafka, max_payload_bytes), attempts, plan)
    if named:
        msg = f"no dead letter at {', '.join(map(str, sorted(named)))} in {kafka.deadletters_topic}"
        raise JobError(msg)
    done = set() if again else _read_marks(kafka, [record.place for record in attempts])
    for record, attempt in attempts.items():
        if record.mark in done:
            plan.skipped[Skip.ALREADY_REDRIVEN] += 1
        else:
            plan.chosen[attempt.place] = attempt.reason
    return plan


_Mark = tuple[Place, str]
"""Which record a re-drive is of: its place, and the id of its topic; empty where that was not known."""


class _Input(NamedTuple):
    """The record that failed; the event id as well, for topics whose id is not known."""

    event_id: str
    place: Place
    topic_id: str

    @property
    def mark(self) -> _Mark:
        return self.place, self.topic_id


class _Attempt(NamedTuple):
    """The newest dead letter of one attempt; small, for there may be many."""

    time: datetime
    place: Place
    reason: str


_OVER_BOUND = frozenset(
    {Reason.RECORD_TOO_LARGE, Reason.KEY_TOO_LARGE, Reason.HEADER_TOO_LARGE, Reason.HEADERS_TOO_LARGE}
)
"""Bounds of the contract that no setting moves: such a record would come back, if it is there as a whole at all."""


def _find_obstacle(letter: DeadLetter, kafka: KafkaSettings, max_payload_bytes: int) -> Skip | None:
    if letter.reason in _OVER_BOUND:
        return Skip.OVER_BOUND
    if letter.payload_bytes is None:
        return Skip.TOMBSTONE
    if letter.payload_bytes == 0:
        return Skip.EMPTY_PAYLOAD
    if letter.payload_bytes > min(max_payload_bytes, kafka.max_message_bytes):
        return Skip.TOO_LARGE
    return Skip.OTHER_TOPIC if letter.input_topic != kafka.images_topic else None


def _sort_in(letter: DeadLetter, obstacle: Skip | None, attempts: dict[_Input, _Attempt], plan: RedrivePlan) -> None:
    if obstacle is not None:
        plan.skipped[obstacle] += 1
        return
    key = _Input(letter.event_id, letter.input_place, sys.intern(letter.input_topic_id))
    attempt = _Attempt(letter.time, letter.place, sys.intern(letter.reason))
    if key in attempts:
        plan.skipped[Skip.REPEATED] += 1
        attempt = max(attempt, attempts[key])
    attempts[key] = attempt


def _read_marks(kafka: KafkaSettings, attempts: Iterable[Place]) -> set[_Mark]:
    """Find which attempts were re-driven, from the records behind the first of them in their partitions."""
    with open_reader(kafka) as reader:
        spans = read_spans(reader, kafka.images_topic)
    firsts: dict[int, int] = {}
    for attempt in attempts:
        partition = _target_partition(attempt.partition, spans)
        known = attempt.partition == partition and attempt.offset in spans[partition]
        first = attempt.offset + 1 if known else spans[partition].start
        firsts[partition] = min(first, firsts.get(partition, first))
    wanted = {partition: range(first, spans[partition].stop) for partition, first in firsts.items()}
    marks = (
        _read_mark(dict(message.headers() or ()), kafka.images_topic)
        for message in scan_offsets(kafka, kafka.images_topic, wanted)
    )
    return {mark for mark in marks if mark is not None}


def _read_mark(headers: Mapping[str, bytes | None], topic: str) -> _Mark | None:
    mark = (headers.get(envelope.REDRIVEN_FROM) or b"").decode(errors="replace")
    match = re.fullmatch(re.escape(topic) + r"-(\d+)@(\d+)", mark)
    topic_id = (headers.get(envelope.REDRIVEN_TOPIC_ID) or b"").decode(errors="replace")
    return None if match is None else (Place(int(match[1]), int(match[2])), topic_id)


def _target_partition(partition: int, present: Sized) -> int:
    """Give the partition that the record came from; another where the topic was made anew with fewer."""
    return partition % len(present)


def redrive(
    kafka: KafkaSettings, plan: RedrivePlan, *, on_progress: Callable[[int], None] = lambda done: None
) -> RedriveReport:
    """Send the chosen dead letters' originals to the images topic, and wait until each is confirmed or has failed.

    Key, value and headers are the original ones, in their order, with `REDRIVEN_FROM` behind them; partition as the
    original.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    plan : RedrivePlan
        Of `plan_redrive`.
    on_progress : callable
        Called with the number of dead letters settled so far.

    Returns
    -------
    RedriveReport
        Every chosen dead letter is in exactly one of its lists.

    Raises
    ------
    BrokerError
        Nobody answers, or reading fails. What was sent by then is marked: doing it again sends the rest.
    """
    report = RedriveReport()
    started = time.monotonic()
    with open_reader(kafka) as reader:
        partitions = read_spans(reader, kafka.images_topic)

    def settle(place: Place, error: str | None) -> None:
        if error is None:
            report.delivered.append(place)
        else:
            report.failed[place] = error
        on_progress(len(report.delivered) + len(report.failed))

    producer = Producer(kafka.to_librdkafka() | _producer_options(kafka))
    try:
        for message in _scan(kafka, Selection(places=list(plan.chosen))) if plan.chosen else ():
            _send(producer, kafka.images_topic, message, partitions, settle)
    finally:
        while producer.flush(_POLL_S):
            pass  # the client gives up on each message after a minute
    for place in plan.chosen.keys() - {*report.delivered, *report.failed}:
        settle(place, "is no longer in the topic")
    report.seconds = time.monotonic() - started
    return report


def _producer_options(kafka: KafkaSettings) -> dict[str, Any]:
    return {
        "log_level": 0,
        "acks": "all",
        "enable.idempotence": True,
        "message.max.bytes": kafka.max_message_bytes,
        "delivery.timeout.ms": _DELIVERY_TIMEOUT_MS,
        "queue.buffering.max.kbytes": _QUEUE_KIB,
        "linger.ms": 5,
    }


def _send(
    producer: Producer,
    topic: str,
    message: Message,
    partitions: Sized,
    settle: Callable[[Place, str | None], None],
) -> None:
    letter = read_dead_letter(message)
    place = Place(message.partition(), message.offset())
    if letter is None:
        return
    original, _ = split_headers(message.headers() or [])
    # An older mark is of the attempt before; this one tells where it came from in turn.
    marks = {envelope.REDRIVEN_FROM: letter.origin, envelope.REDRIVEN_TOPIC_ID: letter.input_topic_id}
    headers = [(name, value) for name, value in original if name not in marks]
    headers += [(name, text.encode()) for name, text in marks.items() if text]
    partition = _target_partition(letter.input_place.partition, partitions)

    def report(error: KafkaError | None, _message: Message) -> None:
        settle(place, None if error is None else error.str())

    while True:
        try:
            producer.produce(
                topic, message.value(), key=message.key(), partition=partition, headers=headers, on_delivery=report
            )
            break
        except BufferError:
            producer.poll(_POLL_S)  # the queue is full: wait for the broker to take some
        except KafkaException as exc:
            settle(place, exc.args[0].str())
            break
    producer.poll(0)


def _scan(kafka: KafkaSettings, selection: Selection) -> Iterator[Message]:
    """Read the dead-letter topic's records that may be meant."""
    topic = kafka.deadletters_topic
    with open_reader(kafka) as reader:
        spans = read_spans(reader, topic)
        if selection.since is not None:
            firsts = find_offsets(reader, topic, spans, selection.since)
            spans = {partition: range(firsts[partition], span.stop) for partition, span in spans.items()}
    if not selection.places:
        yield from scan_offsets(kafka, topic, spans)
        return
    named = {place for place in selection.places if place.offset in spans.get(place.partition, ())}
    for runs in _cut_runs(named):
        for message in scan_offsets(kafka, topic, runs):
            if (message.partition(), message.offset()) in named:
                yield message


def _cut_runs(places: Iterable[Place]) -> Iterator[dict[int, range]]:
    """Cover places with one run of offsets per partition at a time; a run has no gap of `_FAR` offsets."""
    runs: dict[int, list[range]] = {}
    for partition, offset in sorted(places):
        own = runs.setdefault(partition, [])
        if own and offset - own[-1].stop < _FAR:
            own[-1] = range(own[-1].start, offset + 1)
        else:
            own.append(range(offset, offset + 1))
    for i in range(max(map(len, runs.values()), default=0)):
        yield {partition: own[i] for partition, own in runs.items() if i < len(own)}
