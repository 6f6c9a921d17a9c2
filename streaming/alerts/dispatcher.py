"""Brings alarms to one sink, in a thread of its own: a sink that is slow or dead stops no other.

An attempt is noted before it is made, and settled after it. Whatever happens between the two, it is made again, with
the id that the alarm had: delivered at least once, and once to a receiver that drops known ids.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from streaming.alerts.alarm import Delivered, Disabled, Outcome, Refused, Retry, Sink, State
from streaming.alerts.ledger import Delivery, Ledger, Status

log = logging.getLogger(__name__)

_LOOK_S = 1.0
"""Between two looks for deliveries that another process has queued again."""
_HALVINGS = 2
"""What failed goes in parts that are halved so often; what goes well then, in parts that are doubled so often."""
_END_WITHIN_S = 40.0
"""A sink's own time-out is at most 30 s."""


class Meter(Protocol):
    """What counts deliveries."""

    def note_attempt(self, sink: str, result: str, alarms: Sequence[Delivery], seconds: float) -> None:
        """Note an attempt and what became of it."""


class Dispatcher:
    """Delivers what is due to one sink, until told to end.

    Parameters
    ----------
    sink : Sink
        Where to.
    ledger : Ledger
        What is due, and what became of it.
    meter : Meter
        Counts.
    clock : callable
        Unix time in seconds.
    """

    def __init__(self, sink: Sink, ledger: Ledger, meter: Meter, clock: Callable[[], float] = time.time) -> None:
        self._sink = sink
        self._ledger = ledger
        self._meter = meter
        self._clock = clock
        self._ended = threading.Event()
        self._wanted = threading.Event()
        self._proven: dict[int, int] = {}
        self._thread = threading.Thread(target=self._run, name=f"sink-{sink.name}", daemon=True)
        self.attempting_since: float | None = None
        self.last_failure: str | None = None

    @property
    def name(self) -> str:
        """The sink's."""
        return self._sink.name

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Have it look for what is due."""
        self._wanted.set()

    def stop(self) -> None:
        """Tell it to end after the attempt that is under way."""
        self._ended.set()
        self._wanted.set()

    def join(self) -> None:
        """Wait for its end; what an attempt that goes on does not settle is made again at the next start."""
        self._thread.join(_END_WITHIN_S)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wanted.clear()
            try:
                is_done = not self.deliver_due()
            except Exception:  # a fault here, of the disk or of a sink, must not end deliveries for good, unseen
                log.exception("deliveries to %s failed for an unexpected reason", self.name)
                self.last_failure, is_done = "unexpected", True
            if is_done:
                self._wanted.wait(self._wait_s())

    def _wait_s(self) -> float:
        try:
            due = self._ledger.find_next_due(self.name)
        except sqlite3.Error:  # of the disk: the next turn tells of it
            return _LOOK_S
        return _LOOK_S if due is None else min(max(due - self._clock(), 0.05), _LOOK_S)

    def deliver_due(self) -> bool:
        """Make one attempt with what is due; tell whether there was anything."""
        due = self._ledger.list_due(self.name, self._clock(), self._sink.at_once)
        if not due:
            return False
        over = [one for one in due if self._is_over(one)]
        if over:
            self._ledger.stop_resending(over, self._clock())
            due = [one for one in due if one not in over]
        if due:
            attempt = due[0].attempts
            self._attempt([one for one in due if one.attempts == attempt][: self._find_size(attempt)], attempt)
        return True

    def _find_size(self, attempt: int) -> int:
        """Give how many go at once that failed so often.

        What failed before goes in ever smaller parts, so that one alarm that a receiver cannot take does not hold up
        the others. Where it was the receiver that was away, the parts grow again with each that arrives: else thousands
        of open alarms came one by one after an outage, more slowly than they are to be repeated. They stay small in a
        last attempt, in which an alarm is given up together with the one that is at fault.
        """
        is_last = self._sink.next_try_s(attempt) is None
        return max(1, self._sink.at_once >> (_HALVINGS * attempt), 0 if is_last else self._proven.get(attempt, 0))

    def _is_over(self, delivery: Delivery) -> bool:
        """Tell whether an alarm that was delivered need not be so again."""
        if delivery.delivered_at is None:
            return False
        ends_at = delivery.alarm.ends_at
        kept_s = self._sink.resolved_for_s if delivery.alarm.state is State.RESOLVED else 0.0
        return ends_at is not None and self._clock() > ends_at.timestamp() + kept_s

    def _attempt(self, deliveries: Sequence[Delivery], attempt: int) -> None:
        self._ledger.begin_attempt(deliveries, self._clock())
        began = time.monotonic()
        self.attempting_since = began
        try:
            # What is delivered again while it is open tells how things are; what is delivered once has one text for its
            # id.
            is_repeated = self._sink.resend_s is not None
            outcome = self._sink.deliver([one.alarm if is_repeated else one.told for one in deliveries], attempt)
        except Exception:  # a fault of one sink, whatever it is, stops no other and loses nothing: it is tried again
            log.exception("the sink %s failed for an unexpected reason", self.name)
            outcome = Retry(None, "unexpected")
        finally:
            self.attempting_since = None
        self._settle(deliveries, attempt, outcome, time.monotonic() - began)

    def _settle(self, deliveries: Sequence[Delivery], attempt: int, outcome: Outcome, seconds: float) -> None:
        now, n, before = self._clock(), len(deliveries), self.last_failure
        self.last_failure = None if isinstance(outcome, Delivered) else outcome.why
        self._note_size(attempt, n, outcome)
        if isinstance(outcome, Refused) and n > 1:
            for one in deliveries:  # which of them it is that is refused, only an attempt of its own tells
                self._attempt([one], attempt)
            return
        match outcome:
            case Delivered():
                result = Status.DELIVERED.value
                self._note_delivered(deliveries, now)
            case Retry(after_s, why, False):
                result = "held_back"
                self._hold_back(deliveries, after_s, why, now)
            case Retry(after_s, why):
                result = self._note_retry(deliveries, attempt, after_s, why, now)
                if why != before:  # one line of an outage, not one of each alarm that is open
                    log.warning("%d alarm(s) not delivered to %s, attempt %d: %s", n, self.name, attempt, why)
            case Refused(why):
                result = Status.REFUSED.value
                self._ledger.note_failed(deliveries, Status.REFUSED, now, next_at=None, why=why)
                log.error("alarm %s was refused by %s: %s", deliveries[0].alarm.id, self.name, why)
            case Disabled(why):
                result = Status.DISABLED.value
                self._ledger.disable(self.name, why, now)
                log.error("%s wants no alarms any more: %s. 'xray alerts replay --sink' enables it.", self.name, why)
        self._meter.note_attempt(self.name, result, deliveries, seconds)

    def _note_size(self, attempt: int, n: int, outcome: Outcome) -> None:
        """Note how many that failed so often may go at once next; a failure makes all parts small again."""
        if isinstance(outcome, Delivered):
            self._proven[attempt] = min(self._sink.at_once, max(self._proven.get(attempt, 0), n << _HALVINGS))
        else:
            self._proven.clear()

    def _note_delivered(self, deliveries: Sequence[Delivery], now: float) -> None:
        again = [one for one in deliveries if self._is_repeated(one, now)]
        if again and self._sink.resend_s is not None:
            self._ledger.note_delivered(again, now, next_at=now + self._sink.resend_s)
        self._ledger.note_delivered([one for one in deliveries if one not in again], now, next_at=None)

    def _hold_back(self, deliveries: Sequence[Delivery], after_s: float | None, why: str, now: float) -> None:
        """Note that nothing was sent: the receiver has asked to be left alone for a while."""
        next_at = now + (_LOOK_S if after_s is None else after_s)
        self._ledger.note_failed(deliveries, Status.WAITING, now, next_at=next_at, why=why)
        self._ledger.take_back_attempt(deliveries, now)

    def _note_retry(
        self, deliveries: Sequence[Delivery], attempt: int, after_s: float | None, why: str, now: float
    ) -> str:
        wait_s = self._sink.next_try_s(attempt)
        if wait_s is not None:
            next_at = now + (wait_s if after_s is None else after_s)
            self._ledger.note_failed(deliveries, Status.WAITING, now, next_at=next_at, why=why)
            return "retried"
        # What had arrived before and is only repeated goes on at its usual pace; the others are given up.
        known = [one for one in deliveries if one.delivered_at is not None]
        self._note_delivered(known, now)
        others = [one for one in deliveries if one.delivered_at is None]
        self._ledger.note_failed(others, Status.GIVEN_UP, now, next_at=None, why=why)
        return Status.GIVEN_UP.value

    def _is_repeated(self, delivery: Delivery, now: float) -> bool:
        """Tell whether what was delivered now is to be delivered again later."""
        if self._sink.resend_s is None:
            return False
        ends_at = delivery.alarm.ends_at
        if delivery.alarm.state is State.RESOLVED:
            return ends_at is not None and now < ends_at.timestamp() + self._sink.resolved_for_s
        return ends_at is None or now < ends_at.timestamp()
