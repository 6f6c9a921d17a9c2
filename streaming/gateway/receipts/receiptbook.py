"""The gateway's receipts: what it accepts, what becomes of it, and who waits for that."""

import logging
import re
import threading
import time
from collections import deque
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Protocol

from confluent_kafka import KafkaException

from schemas.errors import BrokerError, XrayError
from streaming.gateway.offer import Outgoing
from streaming.gateway.receipts.outcome import Outcome
from streaming.gateway.receipts.receipt import Receipt, format_time
from streaming.gateway.receipts.receiptreader import Layout, ReceiptReader, read_layout
from streaming.gateway.receipts.receiptstore import STORE_FILE, ReceiptStore, StoreError
from streaming.gateway.receipts.receiptwriter import ReceiptWriter
from streaming.gateway.receipts.waiters import Answer, Waiter, Waiters
from streaming.kafka.topics import create_topics, receipt_topics
from streaming.periodic import PeriodicTask, first_line
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

KEPT = timedelta(days=30)
"""As the topic keeps them."""
_WAIT_S = 0.02
"""For an outcome, before what was accepted meanwhile is published."""
_AGAIN_S = 1.0
_LAG_S = 1.0
_UPKEEP_S = 1.0
_REMOVAL_S = 3600.0
_TOPICS_S = 10.0
_JOIN_S = 5.0
_MOST_UNSTORED = 10_000
_EVENT_ID = re.compile(r"[0-9a-f]{32}")


class ReceiptMetrics(Protocol):
    """Where figures about receipts go."""

    def note_receipt(self, state: str) -> None:
        """Count a receipt that the broker has confirmed."""

    def note_receipts_lag(self, records: int) -> None:
        """Note how many outcomes are not read yet."""


class ReceiptBook:
    """Keeps the last state of each image, publishes it, and answers who asks or waits for it.

    What it does with Kafka is done in a thread of its own, which goes on by itself after every failure. Nothing that
    the intake calls waits for Kafka or fails.

    Parameters
    ----------
    settings : StreamSettings
        Broker, topics, state folder.
    metrics : ReceiptMetrics
        Where figures go.
    """

    def __init__(self, settings: StreamSettings, metrics: ReceiptMetrics) -> None:
        self._kafka = settings.kafka
        self._with_scores = settings.gateway.receipt_scores
        self._metrics = metrics
        self._store = ReceiptStore(settings.gateway_folder / STORE_FILE)
        self._waiters = Waiters()
        # What the disk does not take now; the oldest is given up where it goes on for long.
        self._unstored: deque[tuple[Receipt, bool]] = deque(maxlen=_MOST_UNSTORED)
        self._layout: Layout | None = None
        self._is_failing = False
        self._next_removal = 0.0
        self._ended = threading.Event()
        self._renewed = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._follower = PeriodicTask(
            "receipts", self._follow, _AGAIN_S, failure="receipts are not brought up to date", first_wait_s=0
        )
        # Of the broker and of the disk the other thread tells.
        self._watch = PeriodicTask(
            "receipt-topics", self._compare, _TOPICS_S, failure="topics could not be compared", level=logging.DEBUG
        )
        self._upkeep = PeriodicTask(
            "receipt-store",
            self._keep_up,
            _UPKEEP_S,
            failure="the receipts' store could not be kept up",
            expected=(StoreError,),
            level=logging.DEBUG,
        )

    def start(self) -> None:
        """Begin to follow the topics; does not wait for the broker."""
        self._follower.start()
        self._watch.start()
        self._upkeep.start()

    def stop(self) -> None:
        """End, and wait for that; what could not be published is told after the next start."""
        self._ended.set()
        self._follower.stop()
        self._watch.stop()
        self._upkeep.stop()
        if not self._idle.wait(_JOIN_S):
            log.info("receipts: the broker does not answer; what is not told yet is told after the next start")
        self._store.close()

    # --- for the intake and the doors -------------------------------------------------------------------------------

    def note_accepted(self, outgoing: Outgoing, place: str | None, *, sha256: str | None = None) -> None:
        """Note that an image is safe: in the store at once, on the topic soon. Never fails.

        Parameters
        ----------
        outgoing : Outgoing
            The record.
        place : str or None
            ``topic-partition@offset``. None where it waits in the spool: it is told when it is noted again, with its
            place.
        sha256 : str, optional
            Of the record's value, where it is known already.
        """
        receipt = Receipt.of_accepted(outgoing, place, datetime.now(UTC), sha256=sha256)
        held = (receipt, place is None)
        if self._unstored:  # the disk takes nothing now: one device has waited for it, and that is enough
            self._unstored.append(held)
            return
        try:
            self._store.note(receipt, is_held=place is None)
        except StoreError:
            self._unstored.append(held)

    def other_bytes(self, source: str, image_id: str, sha256: str) -> bool:
        """Tell whether a sender has used an id before for other bytes; False where that cannot be found out now."""
        try:
            return self._store.has_other_bytes(source, image_id, sha256)
        except StoreError:
            return False

    def find(self, event_id: str) -> Receipt | None:
        """Give the last state of an image; None where there is none, or where the store cannot be read now.

        Parameters
        ----------
        event_id : str
            Any text.
        """
        if not _EVENT_ID.fullmatch(event_id):
            return None
        try:
            return self._store.find(event_id)
        except StoreError:
            return None

    def expect(self, event_id: str) -> AbstractContextManager[Waiter]:
        """Begin to wait for an image's outcome; do so before it is published. Whoever calls bounds their number."""
        return self._waiters.expect(event_id)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Follow the topics until something fails or they are others."""
        self._idle.clear()  # before the question whether it is the end, so that `stop` sees it in any case
        try:
            if self._ended.is_set():
                return
            create_topics(self._kafka, receipt_topics(self._kafka))
            self._renewed.clear()
            reader = ReceiptReader(self._kafka, self._store, with_scores=self._with_scores)
            try:
                self._layout = reader.layout
                self._bring_up_to_date(reader)
            finally:
                reader.close()
        except (XrayError, KafkaException, StoreError) as exc:
            if not self._is_failing:
                log.warning("receipts are not brought up to date: %s", first_line(exc))
            self._is_failing = True
        finally:
            self._idle.set()

    def _bring_up_to_date(self, reader: ReceiptReader) -> None:
        writer = ReceiptWriter(self._kafka, self._store, lambda state: self._metrics.note_receipt(state.value))
        next_lag = 0.0
        while not self._ended.is_set() and not self._renewed.is_set():
            self._take(reader)
            if reader.knows_receipts:
                writer.turn()
            if time.monotonic() >= next_lag:
                self._metrics.note_receipts_lag(reader.count_unread())
                next_lag = time.monotonic() + _LAG_S
        writer.finish()

    def _take(self, reader: ReceiptReader) -> None:
        piece = reader.read(_WAIT_S)
        for one in piece.found:
            if isinstance(one, Outcome):
                self._waiters.answer(one.receipt.event_id, Answer(one.prediction, one.receipt.reason))
        receipts = [one.receipt if isinstance(one, Outcome) else one for one in piece.found]
        if piece.places:
            self._store.absorb(receipts, piece.places, generation=reader.generation)
        if self._is_failing and piece.is_answer:
            log.info("receipts are brought up to date again")
            self._is_failing = False

    # --- beside it --------------------------------------------------------------------------------------------------

    def _keep_up(self) -> None:
        """Store what the disk did not take, and keep its file in order, whether or not there is a broker."""
        while self._unstored:
            receipt, is_held = self._unstored.popleft()
            try:
                self._store.note(receipt, is_held=is_held)
            except StoreError:
                self._unstored.appendleft((receipt, is_held))
                raise
        self._store.tidy()
        if time.monotonic() >= self._next_removal:
            self._store.remove_before(format_time(datetime.now(UTC) - KEPT))
            self._next_removal = time.monotonic() + _REMOVAL_S

    def _compare(self) -> None:
        """Have the topics begun anew where they are others than those that are read, or where nobody answers.

        A consumer does not tell that its broker is away.
        """
        layout = self._layout
        try:
            if layout is None or read_layout(self._kafka) == layout:
                return
        except BrokerError as exc:
            log.debug("topics cannot be compared: %s", first_line(exc))
        self._renewed.set()
