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

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from confluent_kafka import Message

from schemas import envelope
from schemas.errors import JobError, Reason
from streaming.deadletters.read import DeadLetter, Selection, read_dead_letter, scan_letters, split_headers
from streaming.kafka.places import Origin, Place, header_text, read_headers
from streaming.kafka.producer import RecordProducer
from streaming.kafka.reader import open_reader, read_spans, scan_offsets
from streaming.settings import KafkaSettings


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
    attempts: dict[_Key, _Attempt] = {}
    named = set(selection.places)
    for message in scan_letters(kafka, selection):
        letter = read_dead_letter(message)
        if letter is None:
            plan.foreign += 1
            continue
        named.discard(letter.place)
        if selection.takes(letter):
            _add_attempt(letter, _find_reason_to_skip(letter, kafka, max_payload_bytes), attempts, plan)
    if named:
        msg = f"no dead letter at {', '.join(map(str, sorted(named)))} in {kafka.deadletters_topic}"
        raise JobError(msg)
    done = set() if again else _read_marks(kafka, [origin.place for _, origin in attempts])
    for (_, origin), attempt in attempts.items():
        if origin in done:
            plan.skipped[Skip.ALREADY_REDRIVEN] += 1
        else:
            plan.chosen[attempt.place] = attempt.reason
    return plan


_Key = tuple[str, Origin]
"""Event id and place of a record that failed; the former tells topics apart whose id is not known."""


class _Attempt(NamedTuple):
    """The newest dead letter of one attempt; small, for there may be many."""

    time: datetime
    place: Place
    reason: str


_OVER_BOUND = frozenset(
    {Reason.RECORD_TOO_LARGE, Reason.KEY_TOO_LARGE, Reason.HEADER_TOO_LARGE, Reason.HEADERS_TOO_LARGE}
)
"""Bounds of the contract that no setting moves: such a record would come back, if it is there as a whole at all."""


def _find_reason_to_skip(letter: DeadLetter, kafka: KafkaSettings, max_payload_bytes: int) -> Skip | None:
    if letter.reason in _OVER_BOUND:
        return Skip.OVER_BOUND
    if letter.payload_bytes is None:
        return Skip.TOMBSTONE
    if letter.payload_bytes == 0:
        return Skip.EMPTY_PAYLOAD
    if letter.payload_bytes > min(max_payload_bytes, kafka.max_message_bytes):
        return Skip.TOO_LARGE
    return Skip.OTHER_TOPIC if letter.input.topic != kafka.images_topic else None


def _add_attempt(letter: DeadLetter, skip: Skip | None, attempts: dict[_Key, _Attempt], plan: RedrivePlan) -> None:
    if skip is not None:
        plan.skipped[skip] += 1
        return
    topic, place, topic_id = letter.input
    key = letter.event_id, Origin(sys.intern(topic), place, sys.intern(topic_id))
    attempt = _Attempt(letter.time, letter.place, sys.intern(letter.reason))
    if key in attempts:
        plan.skipped[Skip.REPEATED] += 1
        attempt = max(attempt, attempts[key])
    attempts[key] = attempt


def _read_marks(kafka: KafkaSettings, attempts: Iterable[Place]) -> set[Origin]:
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
        _read_mark(read_headers(message), kafka.images_topic)
        for message in scan_offsets(kafka, kafka.images_topic, wanted)
    )
    return {mark for mark in marks if mark is not None}


def _read_mark(headers: Mapping[str, bytes], topic: str) -> Origin | None:
    """Read which record a re-drive is of; None for a record that is none, or is one of another topic."""
    mark = header_text(headers, envelope.REDRIVEN_FROM) or ""
    match = re.fullmatch(re.escape(topic) + r"-(\d+)@(\d+)", mark)
    topic_id = header_text(headers, envelope.REDRIVEN_TOPIC_ID) or ""
    return None if match is None else Origin(topic, Place(int(match[1]), int(match[2])), topic_id)


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
        Called with the number of dead letters that were confirmed or have failed so far.

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

    def note_delivery(place: Place, error: str | None) -> None:
        if error is None:
            report.delivered.append(place)
        else:
            report.failed[place] = error
        on_progress(len(report.delivered) + len(report.failed))

    producer = RecordProducer(kafka, kafka.images_topic)
    try:
        for message in scan_letters(kafka, Selection(places=list(plan.chosen))) if plan.chosen else ():
            _send(producer, message, partitions, note_delivery)
    finally:
        producer.flush()
    for place in plan.chosen.keys() - {*report.delivered, *report.failed}:
        note_delivery(place, "is no longer in the topic")
    report.seconds = time.monotonic() - started
    return report


def _send(
    producer: RecordProducer, message: Message, partitions: Sized, on_delivery: Callable[[Place, str | None], None]
) -> None:
    letter = read_dead_letter(message)
    if letter is None:
        return
    original, _ = split_headers(message.headers() or [])
    # An older mark is of the attempt before; this one tells where it came from in turn.
    marks = {envelope.REDRIVEN_FROM: letter.origin, envelope.REDRIVEN_TOPIC_ID: letter.input.topic_id}
    headers = [(name, value) for name, value in original if name not in marks]
    headers += [(name, text.encode()) for name, text in marks.items() if text]
    producer.send(
        message.value(),
        key=message.key(),
        headers=headers,
        on_delivery=lambda delivery: on_delivery(letter.place, delivery.error),
        partition=_target_partition(letter.input.place.partition, partitions),
    )
