"""What an outcome topic says about a range of images: how many outcomes each has, and which events there are.

Of an outcome only the headers are looked at: they say which image it is about.
"""

import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from confluent_kafka import Message

from schemas import envelope
from streaming.kafka.places import Place, read_headers, read_origin
from streaming.kafka.reader import offsets_at, open_reader, read_spans, scan_offsets
from streaming.kafka.topicids import TopicIds
from streaming.settings import KafkaSettings


@dataclass
class Outcomes:
    """What one outcome topic says.

    Parameters
    ----------
    counts : dict of int to array
        How many outcomes each image has, by partition; one place for each offset of the range.
    first_ids : dict of int to array
        The first 64 bits of the first event id of each image.
    other_ids : dict of int to array
        How many outcomes of each image have another id than the first.
    archived_ids, pending_ids : set of bytes
        Events that ARCHIVE has committed, and those that it has still to read.
    reasons : Counter of bytes
        Dead letters by reason.
    read : int
        Messages that were read for it.
    """

    counts: dict[int, npt.NDArray[np.int32]]
    first_ids: dict[int, npt.NDArray[np.uint64]]
    other_ids: dict[int, npt.NDArray[np.int32]]
    archived_ids: set[bytes] = field(default_factory=set)
    pending_ids: set[bytes] = field(default_factory=set)
    reasons: Counter[bytes] = field(default_factory=Counter)
    read: int = 0


def read_outcomes(
    kafka: KafkaSettings,
    topic: str,
    ids: TopicIds,
    images: Mapping[int, range],
    *,
    archived: Mapping[int, int] | None = None,
    since_ms: int = 0,
    whole: bool = False,
) -> Outcomes:
    """Read what an outcome topic says about a range of images.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    topic : str
        The outcome topic.
    ids : TopicIds
        Of the topics that SCORE reads.
    images : Mapping of int to range
        Offsets of the images topic, by partition.
    archived : Mapping of int to int, optional
        Next offset of the outcome topic that ARCHIVE has not committed, by partition.
    since_ms : int
        Outcomes before this time are not read.
    whole : bool
        Count events about images outside the range as well.

    Returns
    -------
    Outcomes
        See there.

    Raises
    ------
    BrokerError
        The topic cannot be read.
    """
    outcomes = Outcomes(
        counts={p: np.zeros(len(span), np.int32) for p, span in images.items()},
        first_ids={p: np.zeros(len(span), np.uint64) for p, span in images.items()},
        other_ids={p: np.zeros(len(span), np.int32) for p, span in images.items()},
    )
    archived = archived or {}
    if not any(images.values()) and not whole:
        return outcomes
    with _garbage_collector_off():
        for message in scan_offsets(kafka, topic, _spans_since(kafka, topic, since_ms)):
            headers = read_headers(message)
            origin = read_origin(headers)
            outcomes.read += 1
            # Outside: another topic's, or not in the scope, or retention removed the image after it was scored.
            in_scope = (
                origin is not None
                and origin.topic == kafka.images_topic
                and ids.are_of(origin)
                and _count_outcome(headers, origin.place, images, outcomes)
            )
            if in_scope or whole:
                _note_event(message, headers, archived, outcomes)
    return outcomes


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    """Switch the garbage collector off: nothing made in a scan has cycles, and looking for some takes a third of it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _spans_since(kafka: KafkaSettings, topic: str, since_ms: int) -> dict[int, range]:
    with open_reader(kafka) as reader:
        spans = read_spans(reader, topic)
        firsts = offsets_at(reader, topic, spans, since_ms) if since_ms else {}
    return {partition: range(firsts.get(partition, span.start), span.stop) for partition, span in spans.items()}


def _count_outcome(headers: Mapping[str, bytes], image: Place, images: Mapping[int, range], outcomes: Outcomes) -> bool:
    """Count an outcome at its image's offset; False where that is outside."""
    partition, offset = image
    span = images.get(partition)
    if span is None or offset not in span:
        return False
    i = offset - span.start
    short = _shorten(headers)
    outcomes.counts[partition][i] += 1
    if outcomes.counts[partition][i] == 1:
        outcomes.first_ids[partition][i] = short
    elif outcomes.first_ids[partition][i] != short:
        outcomes.other_ids[partition][i] += 1
    return True


def _shorten(headers: Mapping[str, bytes]) -> int:
    """Give the first 64 bits of an event id: eight bytes an image, and never alike by chance."""
    try:
        return int(_event_id(headers)[:16], 16)
    except ValueError:
        return 0


def _event_id(headers: Mapping[str, bytes]) -> bytes:
    return headers.get(envelope.EVENT_ID) or headers.get(envelope.CE_ID) or b""


def _note_event(
    message: Message, headers: Mapping[str, bytes], archived: Mapping[int, int], outcomes: Outcomes
) -> None:
    event_id = _event_id(headers)
    if not event_id or envelope.INPUT_TOPIC not in headers:
        return  # nobody's outcome; ARCHIVE leaves it out, too
    is_archived = message.offset() < archived.get(message.partition(), 0)
    (outcomes.archived_ids if is_archived else outcomes.pending_ids).add(event_id)
    reason = headers.get(envelope.REASON)
    if reason:
        outcomes.reasons[reason] += 1
