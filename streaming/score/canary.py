"""A small image that goes through the whole path every few seconds.

It keeps Spark's Python workers, and the network loaded in them, from being ended after a quiet minute, and it measures
the path as a consumer sees it: from publishing to reading the prediction. It has topics of its own, so no count of real
images includes it.
"""

import io
import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from confluent_kafka import Consumer, KafkaException, Message, Producer
from PIL import Image

from schemas import envelope
from schemas.errors import BrokerError
from streaming.kafka.places import header_text, read_headers
from streaming.kafka.reader import assign_all
from streaming.settings import KafkaSettings

log = logging.getLogger(__name__)

_POLL_S = 0.2
_FORGET_AFTER_S = 300.0
_SOURCE = "/xray-stream/canary"


class Canary:
    """Publishes canary images and reads their predictions, in a thread of its own.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    interval_s : float
        Seconds between two rounds.
    n_images : int
        Images of a round, each on another partition: one for every core, so that every worker gets its share.
    on_answer : callable
        Called with the seconds from publishing to reading, for each prediction.
    """

    def __init__(
        self, kafka: KafkaSettings, interval_s: float, n_images: int, on_answer: Callable[[float], None]
    ) -> None:
        self._kafka = kafka
        self._interval_s = interval_s
        self._n_images = n_images
        self._on_answer = on_answer
        self._ended = threading.Event()
        self._answered = threading.Event()
        self._sent: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="canary", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._ended.set()
        self._thread.join(timeout=10)

    def wait_answered(self, timeout_s: float) -> bool:
        """Wait until a first canary came back: the stream is ready then."""
        return self._answered.wait(timeout_s)

    def _run(self) -> None:
        options = self._kafka.to_librdkafka() | {"log_level": 0}
        producer = Producer(options)
        consumer = Consumer(options | {"group.id": f"xray-canary-{uuid.uuid4()}", "enable.auto.commit": False})
        try:
            partitions = assign_all(consumer, self._kafka.canary_results_topic, at="end")
            self._loop(producer, consumer, partitions)
        except (KafkaException, BrokerError) as exc:
            log.warning("the canary ended: %s", exc)
        finally:
            consumer.close()

    def _loop(self, producer: Producer, consumer: Consumer, partitions: int) -> None:
        due = 0.0
        while not self._ended.is_set():
            if time.monotonic() >= due:
                due = time.monotonic() + self._interval_s
                self._publish(producer, partitions)
            producer.poll(0)
            message = consumer.poll(_POLL_S)
            if message is not None and message.error() is None:
                self._receive(message)

    def _publish(self, producer: Producer, partitions: int) -> None:
        oldest = time.monotonic() - _FORGET_AFTER_S
        self._sent = {name: sent for name, sent in self._sent.items() if sent > oldest}
        for number in range(self._n_images):
            name = f"canary-{uuid.uuid4()}"
            self._sent[name] = time.monotonic()
            headers = {
                envelope.CONTENT_TYPE: "image/png",
                envelope.CE_SPECVERSION: envelope.SPECVERSION,
                envelope.CE_ID: name,
                envelope.CE_SOURCE: _SOURCE,
                envelope.CE_TYPE: envelope.IMAGE_TYPE,
            }
            with suppress(BufferError):  # a full queue means the broker is away: a canary less is no loss
                producer.produce(
                    self._kafka.canary_topic, CANARY_PNG, partition=number % partitions, headers=list(headers.items())
                )

    def _receive(self, message: Message) -> None:
        name = header_text(read_headers(message), envelope.CE_SUBJECT)
        sent = self._sent.pop(name or "", None)
        if sent is not None:
            self._on_answer(time.monotonic() - sent)
            self._answered.set()


def _draw_canary() -> bytes:
    """Draw a gray ramp: small, and with something in it for a network to do."""
    ramp = np.add.outer(np.arange(96), np.arange(64)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, format="PNG")
    return stream.getvalue()


CANARY_PNG = _draw_canary()
