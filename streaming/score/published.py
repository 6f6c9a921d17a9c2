"""Which outcomes behind SCORE's last committed micro-batch are on the topics already.

After a kill Spark does them again; what had been published before would be published a second time. How far SCORE had
committed is in Spark's log and its outcomes are at the end of the topics, each with the place of its image in its
headers: so they can be read, and left out when the images are scored again. Where its batches began and ended does not
matter for that: Spark writes its log while a batch runs, and after a kill it may cut them in other places.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streaming.account.checkpoints import Uncommitted, find_uncommitted
from streaming.kafka.places import read_headers, read_origin
from streaming.kafka.reader import offsets_at, open_reader, read_spans, scan_offsets
from streaming.kafka.topicids import TopicIds
from streaming.settings import KafkaSettings, StreamSettings

log = logging.getLogger(__name__)

ImageOffsets = Mapping[tuple[str, int], frozenset[int]]
"""Offsets of images by their topic and partition."""

_CLOCK_SLACK_MS = 60_000
"""How far the clocks of the driver and of the machines that publish outcomes may differ."""


@dataclass(frozen=True)
class Published:
    """What the topics hold already.

    Parameters
    ----------
    answered : mapping
        Images with a prediction or a dead letter. Either is an image's one outcome, whichever model made it.
    featured : mapping
        Images with a feature record.
    """

    answered: ImageOffsets = field(default_factory=dict)
    featured: ImageOffsets = field(default_factory=dict)

    def has_answer(self, row: Mapping[str, Any]) -> bool:
        """Tell whether the image of a Kafka row has its prediction or dead letter."""
        return _holds(self.answered, row)

    def has_features(self, row: Mapping[str, Any]) -> bool:
        """Tell whether it has its feature record."""
        return _holds(self.featured, row)


def _holds(images: ImageOffsets, row: Mapping[str, Any]) -> bool:
    return row["offset"] in images.get((row["topic"], row["partition"]), ())


NOTHING = Published()


def find_published(settings: StreamSettings, ids: TopicIds) -> Published:
    """Find what SCORE has published behind its last committed micro-batch.

    Parameters
    ----------
    settings : StreamSettings
        Topics and checkpoints. SCORE must not run, nor any producer of it.
    ids : TopicIds
        Of the topics that SCORE reads.

    Returns
    -------
    Published
        Empty where SCORE has never begun, or has committed all that it did.

    Raises
    ------
    BrokerError
        The topics cannot be read.
    """
    uncommitted = find_uncommitted(settings.checkpoints_folder / "score")
    if uncommitted is None:
        return NOTHING
    kafka = settings.kafka
    answered = _find_images(kafka, (kafka.predictions_topic, kafka.deadletters_topic), uncommitted, ids)
    featured = _find_images(kafka, (kafka.features_topic,), uncommitted, ids)
    if answered or featured:
        count = sum(map(len, answered.values()))
        log.info("%s images behind the last committed batch have their outcome already", count)
    return Published(answered, featured)


def _find_images(
    kafka: KafkaSettings, topics: tuple[str, ...], uncommitted: Uncommitted, ids: TopicIds
) -> ImageOffsets:
    found: dict[tuple[str, int], set[int]] = defaultdict(set)
    for topic in topics:
        with open_reader(kafka) as reader:
            spans = read_spans(reader, topic)
            firsts = offsets_at(reader, topic, spans, max(0, uncommitted.since_ms - _CLOCK_SLACK_MS))
        unread = {partition: range(firsts[partition], span.stop) for partition, span in spans.items()}
        for message in scan_offsets(kafka, topic, unread):
            origin = read_origin(read_headers(message))
            if origin is None or not ids.are_of(origin):
                continue  # no outcome of these topics
            if uncommitted.holds(origin.topic, *origin.place):
                found[origin.topic, origin.place.partition].add(origin.place.offset)
    return {partition: frozenset(offsets) for partition, offsets in found.items()}
