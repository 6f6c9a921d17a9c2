"""Reads predictions as they come, from any broker."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from confluent_kafka import Consumer, Message

from schemas import envelope
from streaming.kafka.cluster import describe_cluster
from streaming.kafka.places import header_text, read_headers
from streaming.kafka.reader import assign_all
from streaming.settings import KafkaSettings

_POLL_S = 0.2


@dataclass(frozen=True)
class SeenPrediction:
    """One prediction, as a consumer sees it.

    Parameters
    ----------
    event : dict
        The message's value; its schema is ``prediction``.
    headers : dict of str to str
        The message's headers.
    latency_s : float
        From the image's Kafka timestamp to the prediction's, in seconds.
    published_s : float
        The prediction's Kafka timestamp, Unix time in seconds.
    """

    event: dict[str, Any]
    headers: dict[str, str]
    latency_s: float
    published_s: float


def watch_predictions(
    kafka: KafkaSettings, *, from_beginning: bool = False, timeout_s: float | None = None
) -> Iterator[SeenPrediction | None]:
    """Yield predictions as they come, and None at least every fifth of a second, so that a caller can draw.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topic.
    from_beginning : bool
        Begin with the oldest prediction instead of the next one.
    timeout_s : float, optional
        End when nothing came for so many seconds; never when absent.

    Raises
    ------
    BrokerError
        Nobody answers, or there is no such topic.
    """
    describe_cluster(kafka)
    options = {"group.id": "xray-watch", "enable.auto.commit": False, "log_level": 0, "fetch.wait.max.ms": 10}
    consumer = Consumer(kafka.to_librdkafka() | options)
    try:
        assign_all(consumer, kafka.predictions_topic, at="beginning" if from_beginning else "end")
        yield None  # from here on nothing is missed: a caller that publishes may begin
        last = time.monotonic()
        while timeout_s is None or time.monotonic() - last < timeout_s:
            message = consumer.poll(_POLL_S)
            if message is None or message.error() is not None:
                yield None
                continue
            last = time.monotonic()
            yield read_prediction(message)
    finally:
        consumer.close()


def read_prediction(message: Message) -> SeenPrediction | None:
    """Read one message of the predictions topic; None where it is none of the stream's."""
    raw = read_headers(message)
    if raw.get(envelope.CE_TYPE) != envelope.PREDICTION_TYPE.encode() or envelope.INPUT_TIMESTAMP not in raw:
        return None
    headers = {name: header_text(raw, name) or "" for name in raw}
    published_s = message.timestamp()[1] / 1000
    received_s = datetime.fromisoformat(headers[envelope.INPUT_TIMESTAMP]).timestamp()
    return SeenPrediction(json.loads(message.value()), headers, published_s - received_s, published_s)
