"""Publishes the gateway's records and waits for the broker's word on each; knows whether the broker takes them."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from confluent_kafka import KafkaException

from schemas.errors import BrokerError
from streaming.gateway.offer import Outgoing
from streaming.kafka.cluster import connect_admin
from streaming.kafka.producer import QUEUE_BYTES, Delivery, RecordProducer
from streaming.periodic import PeriodicTask
from streaming.settings import KafkaSettings

log = logging.getLogger(__name__)

_CHECK_S = 2.0
_POLL_S = 0.05
GRACE_S = 2.0
"""The client tells of a record that it gave up a little after its time."""


class Publisher:
    """One producer for all doors and the spool, served by a thread of its own.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topic.
    timeout_s : float
        How long a record is tried. What is told as failed is not sent later.
    queue_bytes : int, optional
        How much may wait for the broker; what comes beyond waits before its time begins.
    on_change : callable
        Called with whether the broker takes records, at the start and when that changes.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        timeout_s: float,
        queue_bytes: int = QUEUE_BYTES,
        on_change: Callable[[bool], None] = lambda is_up: None,
    ) -> None:
        self._kafka = kafka
        self._timeout_s = timeout_s
        self._queue_bytes = queue_bytes
        self._on_change = on_change
        self._producer = self._make_producer()
        self._former: list[RecordProducer] = []
        self._admin = connect_admin(kafka)
        self._is_up: bool | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="gateway-publisher", daemon=True)
        self._check = PeriodicTask(
            "gateway-kafka-check", self.check, _CHECK_S, failure="the check of Kafka failed", first_wait_s=_CHECK_S
        )

    def start(self) -> None:
        """Look whether the broker is there, and begin to serve deliveries."""
        self._poller.start()
        self.check()
        self._check.start()

    def stop(self) -> None:
        """Wait for what is on its way, then end."""
        self._check.stop()
        try:
            self._producer.flush()
        except BrokerError as exc:
            log.warning("%s", exc)  # each device has been told already that its object is not taken
        self._ended.set()
        self._poller.join()

    @property
    def is_up(self) -> bool:
        """Whether the broker took the last record, or answered the last question."""
        return bool(self._is_up)

    def publish(self, outgoing: Outgoing) -> Delivery:
        """Publish a record and wait until the broker has it, or the client has given it up.

        Returns
        -------
        Delivery
            Of all replicas that are in sync.
        """
        told: Future[Delivery] = Future()
        producer = self._producer
        producer.send(outgoing.value, key=outgoing.key, headers=outgoing.headers, on_delivery=told.set_result)
        try:
            delivery = told.result(self._timeout_s + GRACE_S)
        except TimeoutError:
            delivery = Delivery("no word of the record from the client")
        if delivery.is_fatal:
            self._replace(producer)
        if not delivery.is_too_large:
            self._note(delivery.error is None, delivery.error)
        return delivery

    def check(self) -> None:
        """Ask the broker for the topic: it may be back, or away though nobody sends."""
        producer = self._producer
        if producer.is_spent:
            self._replace(producer)
            self._note(False, "the client has given up")
            return
        try:
            found = self._admin.list_topics(self._kafka.images_topic, timeout=_CHECK_S)
        except KafkaException as exc:
            self._note(False, exc.args[0].str())
            return
        error = found.topics[self._kafka.images_topic].error
        if error is not None:
            self._note(False, error.str())
        elif not self.is_up:
            self._note(True, None)

    def _make_producer(self) -> RecordProducer:
        return RecordProducer(
            self._kafka, self._kafka.images_topic, timeout_s=self._timeout_s, queue_bytes=self._queue_bytes
        )

    def _replace(self, former: RecordProducer) -> None:
        with self._lock:
            if self._producer is former:
                log.error("the Kafka client will deliver nothing more; it is replaced")
                self._producer = self._make_producer()
                self._former = [*self._former, former]

    def _note(self, is_up: bool, why: str | None) -> None:
        with self._lock:
            if self._is_up is is_up:
                return
            before, self._is_up = self._is_up, is_up
        if not is_up:
            log.warning("Kafka takes no images: %s", why)
        elif before is not None:
            log.warning("Kafka takes images again")
        self._on_change(is_up)

    def _poll(self) -> None:
        while not self._ended.is_set():
            self._producer.poll(_POLL_S)
            for former in self._former:
                former.poll(0)  # devices wait for word of the records that it had
            with self._lock:
                self._former = [one for one in self._former if one.waiting]
