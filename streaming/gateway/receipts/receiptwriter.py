"""Publishes receipts that the broker has not confirmed yet."""

import logging
import time
from collections.abc import Callable

from streaming.gateway.receipts.receipt import Receipt, State
from streaming.gateway.receipts.receiptstore import ReceiptStore, Shown
from streaming.kafka.producer import Delivery, RecordProducer
from streaming.settings import KafkaSettings

log = logging.getLogger(__name__)

_AT_ONCE = 500
_REST_S = 1.0
"""After a failure; the client itself has tried for a minute by then."""
_END_S = 3.0
"""For what is on its way when the gateway ends; the rest is told after the next start."""


class ReceiptWriter:
    """Brings receipts from the store to their topic, some at a time.

    The next ones are taken when these are settled, so those of one image keep their order.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topic.
    store : ReceiptStore
        What there is to tell.
    note_receipt : callable
        Called with the state of each that the broker has confirmed.
    """

    def __init__(self, kafka: KafkaSettings, store: ReceiptStore, note_receipt: Callable[[State], None]) -> None:
        self._kafka = kafka
        self._store = store
        self._note_receipt = note_receipt
        self._producer = RecordProducer(kafka, kafka.receipts_topic)
        self._on_their_way = 0
        self._confirmed: list[Shown] = []
        self._rest_until = 0.0
        self._is_failing = False
        self._is_spent = False

    def turn(self) -> None:
        """Note what was confirmed, and publish what is there; does not wait for the broker.

        Raises
        ------
        StoreError
            See `ReceiptStore`.
        """
        self._producer.poll(0)
        self._note_confirmed()
        if self._on_their_way or time.monotonic() < self._rest_until:
            return
        if self._is_spent:
            self._producer = RecordProducer(self._kafka, self._kafka.receipts_topic)
            self._is_spent = False
        for receipt in self._store.list_untold(_AT_ONCE):
            self._send(receipt)

    def finish(self) -> None:
        """Wait a little for what is on its way.

        Raises
        ------
        StoreError
            See `ReceiptStore`.
        """
        deadline = time.monotonic() + _END_S
        while self._on_their_way and time.monotonic() < deadline:
            self._producer.poll(0.1)
        self._note_confirmed()

    def _send(self, receipt: Receipt) -> None:
        def settle(delivery: Delivery) -> None:
            self._on_their_way -= 1
            self._settle(receipt, delivery)

        self._on_their_way += 1
        key = receipt.event_id.encode()
        self._producer.send(receipt.to_json(), key=key, headers=receipt.to_headers(), on_delivery=settle)

    def _settle(self, receipt: Receipt, delivery: Delivery) -> None:
        if delivery.place is None:
            if not self._is_failing:
                log.warning("receipts cannot be published, and are kept until they can: %s", delivery.error)
            self._is_failing = True
            self._is_spent |= delivery.is_fatal
            self._rest_until = time.monotonic() + _REST_S
            return
        if self._is_failing:
            log.info("receipts are published again")
        self._is_failing = False
        self._confirmed.append(Shown(receipt, int(delivery.place.rpartition("@")[2])))
        self._note_receipt(receipt.state)

    def _note_confirmed(self) -> None:
        if self._confirmed:
            self._store.mark_told(self._confirmed)
            self._confirmed = []
