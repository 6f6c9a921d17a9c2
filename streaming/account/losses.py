"""Finds records that are gone from a topic before they were read, without Spark.

Spark notices too, in the middle of a batch and in many lines. This says it before anything starts, in one line, with
the offsets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from schemas.errors import DataLossError
from streaming.account.checkpoints import Offsets, committed_offsets
from streaming.kafka.reader import open_reader, read_spans
from streaming.kafka.topicids import describe_shrinking
from streaming.settings import KafkaSettings, StreamSettings

_SHOWN = 8


@dataclass(frozen=True)
class Loss:
    """Records of one partition that whoever reads it will never read.

    Parameters
    ----------
    topic : str
        Its name.
    partition : int
        Its number.
    offsets : range
        The offsets that are gone. Where the topic now ends before the reader's place, so that it is not the
        topic it was, those from its new end to that place.
    renewed : bool
        Whether that is so.
    """

    topic: str
    partition: int
    offsets: range
    renewed: bool

    def __str__(self) -> str:
        return f"{self.topic} partition {self.partition} offsets {self.offsets.start}-{self.offsets.stop - 1}"


def find_losses(settings: StreamSettings) -> list[Loss]:
    """Compare SCORE's checkpoint with what its topics hold.

    Returns
    -------
    list of Loss
        Empty where every record that was not read is still there.

    Raises
    ------
    BrokerError
        The topics cannot be read.
    """
    committed = committed_offsets(settings.checkpoints_folder / "score")
    if not committed:
        return []
    with open_reader(settings.kafka) as reader:
        spans = {topic: read_spans(reader, topic) for topic in sorted(committed)}
    return list(compare_places(committed, spans))


def compare_places(committed: Offsets, spans: Mapping[str, Mapping[int, range]]) -> Iterable[Loss]:
    """Compare places with what their topics hold.

    Parameters
    ----------
    committed : Mapping
        Next offset by topic and partition.
    spans : Mapping of str to Mapping of int to range
        Offsets that each partition has, by topic.

    Yields
    ------
    Loss
        Of each partition whose place is before what it has, or behind it.
    """
    for topic, places in committed.items():
        for partition, place in sorted(places.items()):
            span = spans[topic].get(partition, range(0))
            if place < span.start:
                yield Loss(topic, partition, range(place, span.start), renewed=False)
            elif place > span.stop:
                yield Loss(topic, partition, range(span.stop, place), renewed=True)


def check_losses(losses: Iterable[Loss], kafka: KafkaSettings, *, accepted: bool) -> None:
    """Refuse to go on over a gap that nobody has agreed to.

    Parameters
    ----------
    losses : iterable of Loss
        Of `find_losses`. Canaries are kept for an hour and are nobody's images: a stream that stood still for longer
        has lost some, and may.
    kafka : KafkaSettings
        Names of the topics.
    accepted : bool
        Whether the user has said to go on behind what retention removed.

    Raises
    ------
    DataLossError
        One message that names the offsets and what to do.
    """
    losses = [loss for loss in losses if loss.topic != kafka.canary_topic]
    if renewed := [loss for loss in losses if loss.renewed]:
        raise DataLossError(describe_shrinking(name_losses(renewed)))
    if losses and not accepted:
        count = sum(len(loss.offsets) for loss in losses)
        msg = (
            f"{count} records were removed by the topic's retention before SCORE had read them: "
            f"{name_losses(losses)}. Have the images published again where they still are, raise the topic's "
            "retention, then start once with 'xray stream --accept-loss' to go on behind the gap."
        )
        raise DataLossError(msg)


def name_losses(losses: Sequence[Loss]) -> str:
    """Name the offsets of the first few, and how many more there are."""
    more = f" and {len(losses) - _SHOWN} more" if len(losses) > _SHOWN else ""
    return "; ".join(map(str, losses[:_SHOWN])) + more
