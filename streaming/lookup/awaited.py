"""Waits for the outcomes of images that are being published."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, TopicPartition

from schemas.errors import BrokerError
from streaming.kafka.reader import open_reader, read_spans
from streaming.lookup.outcome import Outcome, no_band, read_dead_letter, read_prediction
from streaming.settings import KafkaSettings

_AT_ONCE = 100
_POLL_S = 0.2


class AwaitedOutcomes:
    """Outcomes from a moment on; `open_awaited` opens one.

    Parameters
    ----------
    reader : Consumer
        Assigned to the outcome topics.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def read(self, images: Collection[str], timeout_s: float) -> Iterator[Outcome]:
        """Give the first outcome of each image as it comes; end when all have one, or none comes for a while.

        Parameters
        ----------
        images : collection of str
            The images' own event ids (`schemas.envelope.derive_image_event_id`).
        timeout_s : float
            How long to wait for the next outcome of one of them.

        Raises
        ------
        BrokerError
            A topic cannot be read.
        """
        missing = set(images)
        deadline = time.monotonic() + timeout_s
        while missing and time.monotonic() < deadline:
            for message in self._reader.consume(num_messages=_AT_ONCE, timeout=_POLL_S):
                error = message.error()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        continue
                    msg = f"topic {message.topic()}: {error.str()}"
                    raise BrokerError(msg)
                outcome = read_prediction(message, no_band) or read_dead_letter(message)
                if outcome is not None and outcome.image_key in missing:
                    missing.discard(outcome.image_key)
                    deadline = time.monotonic() + timeout_s
                    yield outcome


@contextmanager
def open_awaited(kafka: KafkaSettings) -> Iterator[AwaitedOutcomes]:
    """Begin at the present end of the outcome topics: whoever publishes afterwards misses no outcome.

    Raises
    ------
    BrokerError, SettingsError
        Nobody answers, or there are no such topics.
    """
    with open_reader(kafka) as reader:
        ends = [
            TopicPartition(topic, partition, span.stop)
            for topic in (kafka.predictions_topic, kafka.deadletters_topic)
            for partition, span in read_spans(reader, topic).items()
        ]
        reader.assign(ends)
        yield AwaitedOutcomes(reader)
