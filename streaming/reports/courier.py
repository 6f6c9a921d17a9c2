"""Brings reports to one target: reads, writes down, sends, closes, commits; again and again, whatever fails.

Each target has a courier, a consumer group, a ledger and a thread of its own, so that a dead target stops nothing else.
"""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

from schemas.envelope import derive_event_id
from schemas.errors import XrayError
from streaming.periodic import first_line
from streaming.reports.inbox import Inbox
from streaming.reports.ledger import Delivery, Ledger
from streaming.reports.report import LeftOut, NotReportedError, read_prediction
from streaming.reports.reporter import Reporter
from streaming.reports.reportmetrics import ReportMetrics
from streaming.reports.target import Address, AwayError, RefusedError, Target
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

_IDLE_S = 0.2
_BUSY_S = 0.01
_AT_ONCE = 50
_TURN_S = 10.0
"""For how long reports are sent before the broker is heard again."""
_FIRST_WAIT_S = 1.0
_MAX_WAIT_S = 60.0
_UPKEEP_S = 600.0
_DAY_S = 86_400


def name_group(address: Address) -> str:
    """Give the consumer group of a target; always the same."""
    return f"xray-reports-{derive_event_id('target', str(address))[:12]}"


@dataclass
class _Wait:
    """Until when nothing is tried."""

    until: float = 0.0
    seconds: float = 0.0

    def lengthen(self) -> None:
        self.seconds = min(max(2 * self.seconds, _FIRST_WAIT_S), _MAX_WAIT_S)
        self.until = time.monotonic() + self.seconds

    def end(self) -> None:
        self.until = self.seconds = 0.0

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.until


class Courier:
    """Delivers reports to one target.

    Parameters
    ----------
    name : str
        Of the target, in metrics, health and logs.
    address : Address
        Of the target.
    settings : StreamSettings
        Broker, topics, and how refusals are met.
    parts : tuple of (Target, Ledger, Reporter, ReportMetrics)
        What sends, what is kept, what makes reports, where it is counted.
    ended : threading.Event
        Ends it behind the report that is under way.
    from_beginning : bool
        See `Inbox`.
    """

    def __init__(
        self,
        name: str,
        address: Address,
        settings: StreamSettings,
        parts: tuple[Target, Ledger, Reporter, ReportMetrics],
        ended: threading.Event,
        *,
        from_beginning: bool,
    ) -> None:
        self.name = name
        self._address = address
        self._settings = settings
        self._target, self._ledger, self._reporter, self._metrics = parts
        self._ended = ended
        self._from_beginning = from_beginning
        self._inbox: Inbox | None = None
        self._away = _Wait()
        self._failing = _Wait()
        self._counts = self._ledger.count()
        self._tidied_at = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether it has its share of the topics."""
        return self._inbox is not None and self._inbox.is_assigned

    def describe(self) -> dict[str, Any]:
        """Give what ``/health`` says of it."""
        is_alone = self._inbox is None or self._inbox.is_alone
        ok = self.is_ready and is_alone and not self._away.seconds and not self._failing.seconds
        return {"ok": ok, "alone": is_alone, "open": self._counts["open"], "given_up": self._counts["given_up"]}

    def run(self) -> None:
        """Deliver until told to end."""
        try:
            while not self._ended.is_set():
                if not self._failing.is_over:
                    self._ended.wait(min(_IDLE_S, self._failing.seconds))
                    continue
                try:
                    self._turn()
                    self._failing.end()
                except XrayError as exc:  # the broker, the ledger or the crosswalk
                    self._note_failure(self._failing, first_line(exc))
                    self._leave()
        finally:
            self._leave()
            self._target.close()

    def _turn(self) -> None:
        if self._inbox is None:
            group = name_group(self._address)
            self._inbox = Inbox(self._settings.kafka, group, self._ledger, from_beginning=self._from_beginning)
        is_full = self._counts["open"] >= self._settings.reports.max_open
        due = self._ledger.list_due(_AT_ONCE) if self._away.is_over else []
        if arrivals := self._inbox.read(_BUSY_S if due else _IDLE_S, is_full=is_full):
            self._ledger.absorb(arrivals)
            due = self._ledger.list_due(_AT_ONCE) if self._away.is_over else []
        self._count_strange(self._inbox)
        self._send_all(due)
        self._inbox.commit(self._ledger.first_open())
        self._tidy()
        self._counts = self._ledger.count()
        self._metrics.open.labels(self.name).set(self._counts["open"])
        self._metrics.given_up.labels(self.name).set(self._counts["given_up"])

    def _send_all(self, due: list[Delivery]) -> None:
        began = time.monotonic()
        for delivery in due:
            if self._ended.is_set() or time.monotonic() - began > _TURN_S:
                return
            try:
                self._send(delivery)
            except AwayError as exc:
                self._metrics.up.labels(self.name).set(0)
                self._note_failure(self._away, f"the target takes no reports: {exc}")
                return
        if not due and not self._away.seconds:
            self._metrics.up.labels(self.name).set(1)

    def _send(self, delivery: Delivery) -> None:
        try:
            said = read_prediction(delivery.value, received_at=delivery.received_at, scored_at=delivery.scored_at)
            self._target.send(self._reporter.make(said, delivery.correction))
        except NotReportedError as exc:
            self._ledger.close_left_out(delivery, exc.reason.value)
            self._metrics.record_left_out(self.name, exc.reason)
            return
        except RefusedError as exc:
            self._note_refusal(delivery, exc.code)
        except (XrayError, AwayError):
            raise
        except Exception as exc:  # whatever one report's texts do to a library, the next report goes on
            # No trace: it may quote the patient's data.
            log.error("%s: a report could not be made: %s", self.name, type(exc).__name__)
            self._ledger.note_refusal(delivery, "unexpected", again_in_s=None)
            self._metrics.record_refusal(self.name, given_up=True)
            return
        else:
            self._ledger.close_done(delivery)
            self._metrics.record_delivery(self.name, delivery.since_s)
        self._away.end()
        self._metrics.up.labels(self.name).set(1)

    def _note_refusal(self, delivery: Delivery, code: str) -> None:
        reports = self._settings.reports
        is_last = delivery.tries + 1 >= reports.refusal_tries
        # 2**16 minutes are 45 days; a float has no room for 2**5000.
        again_in_s = None if is_last else reports.refusal_wait_s * 2 ** min(delivery.tries, 16)
        self._ledger.note_refusal(delivery, code, again_in_s=again_in_s)
        self._metrics.record_refusal(self.name, given_up=is_last)
        log.warning("%s: a report was refused (%s)%s", self.name, code, ", and is given up" if is_last else "")

    def _note_failure(self, wait: _Wait, why: str) -> None:
        wait.lengthen()
        self._metrics.failures.labels(self.name).inc()
        log.warning("%s: %s; tried again in %.0f s", self.name, why, wait.seconds)

    def _count_strange(self, inbox: Inbox) -> None:
        for _ in range(inbox.n_strange):
            self._metrics.record_left_out(self.name, LeftOut.NOT_A_PREDICTION)
        inbox.n_strange = 0

    def _tidy(self) -> None:
        if time.monotonic() - self._tidied_at > _UPKEEP_S:
            self._tidied_at = time.monotonic()
            self._ledger.remove_before(time.time() - self._settings.reports.keep_days * _DAY_S)

    def _leave(self) -> None:
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None
