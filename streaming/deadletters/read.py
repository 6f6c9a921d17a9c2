"""Dead letters: listing them, and showing one."""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Message

from schemas import envelope
from schemas.errors import JobError, Reason
from sparkdl.image.decode import sniff_media_type
from streaming.kafka.places import Headers, Origin, Place, header_text, headers_by_name, place_of, read_origin
from streaming.kafka.reader import find_offsets, open_reader, read_spans, scan_offsets
from streaming.settings import KafkaSettings

FAR = 1000
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
    input : Origin
        The record that failed.
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
    input: Origin
    received_at: str
    payload_bytes: int | None

    @property
    def origin(self) -> str:
        """The record that failed, as topic-partition@offset."""
        return str(self.input)

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
            "input_topic": self.input.topic,
            "input_partition": self.input.place.partition,
            "input_offset": self.input.place.offset,
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


def split_headers(headers: Headers) -> tuple[Headers, dict[str, bytes]]:
    """Part a dead letter's headers into the original ones and those that the stream added.

    The stream appends its own as one block, of which ``xray_input_topic`` is the first (`score.routing`). Going by
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
    return headers[:begin], headers_by_name(headers[begin:])


def read_dead_letter(message: Message) -> DeadLetter | None:
    """Read one message of the dead-letter topic; None where this stream did not write it."""
    _, added = split_headers(message.headers() or [])
    origin = read_origin(added)
    if origin is None:
        return None
    value = message.value()
    try:
        return DeadLetter(
            place=place_of(message),
            time=datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC),
            event_id=added[envelope.EVENT_ID].decode(),
            reason=added[envelope.REASON].decode(),
            stage=header_text(added, envelope.ERROR_STAGE) or "",
            error_class=header_text(added, envelope.ERROR_EXCEPTION_CLASS) or "",
            message=header_text(added, envelope.ERROR_EXCEPTION_MESSAGE) or "",
            input=origin,
            received_at=header_text(added, envelope.INPUT_TIMESTAMP) or "",
            payload_bytes=None if value is None else len(value),
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
    for message in scan_letters(kafka, selection):
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
    for message in scan_letters(kafka, selection):
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


def scan_letters(kafka: KafkaSettings, selection: Selection) -> Iterator[Message]:
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
    for runs in cut_runs(named):
        for message in scan_offsets(kafka, topic, runs):
            if place_of(message) in named:
                yield message


def cut_runs(places: Iterable[Place]) -> Iterator[dict[int, range]]:
    """Cover places with one run of offsets per partition at a time; a run has no gap of `FAR` offsets."""
    runs: dict[int, list[range]] = {}
    for partition, offset in sorted(places):
        own = runs.setdefault(partition, [])
        if own and offset - own[-1].stop < FAR:
            own[-1] = range(own[-1].start, offset + 1)
        else:
            own.append(range(offset, offset + 1))
    for i in range(max(map(len, runs.values()), default=0)):
        yield {partition: own[i] for partition, own in runs.items() if i < len(own)}
