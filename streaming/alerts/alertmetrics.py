"""The Prometheus page of alarms: what was read, what it led to, and how deliveries go."""

import time
from collections import Counter as Counts
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from streaming.alerts.ledger import UNDELIVERED, Delivery, Status
from streaming.alerts.matching import NEVER
from streaming.alerts.outcomeevents import Kind
from streaming.alerts.rules import Rules

_DELAY_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0, 300.0)
_RESULTS = ("delivered", "retried", "held_back", "refused", "given_up", "disabled")


class AlertMetrics:
    """All series of alarms.

    Parameters
    ----------
    registry : CollectorRegistry
        Where they appear.
    rules : Rules
        Names of rules and sinks are label values.
    """

    def __init__(self, registry: CollectorRegistry, rules: Rules) -> None:
        self.events = Counter("xray_alerts_events", "Records read, by kind.", ["kind"], registry=registry)
        self.alarms = Counter("xray_alerts_alarms", "Alarms of images that were opened.", ["rule"], registry=registry)
        self.open_conditions = Gauge(
            "xray_alerts_open_conditions", "Conditions that are open now.", ["rule"], registry=registry
        )
        self.barred = Counter(
            "xray_alerts_barred", "Outcomes that make no alarm, whatever the rules say.", ["why"], registry=registry
        )
        self.attempts = Counter(
            "xray_alerts_attempts",
            "Attempts to deliver, by what became of them.",
            ["sink", "result"],
            registry=registry,
        )
        self.delay = Histogram(
            "xray_alerts_delivery_seconds",
            "From an outcome's time to the first delivery of its alarm.",
            ["sink"],
            buckets=_DELAY_BUCKETS_S,
            registry=registry,
        )
        self.waiting = Gauge("xray_alerts_waiting", "Deliveries not made yet.", ["sink"], registry=registry)
        self.oldest = Gauge(
            "xray_alerts_oldest_waiting_seconds",
            "Age of the oldest alarm that waits for its delivery.",
            ["sink"],
            registry=registry,
        )
        self.undelivered = Gauge(
            "xray_alerts_undelivered", "Deliveries that were given up or refused.", ["sink"], registry=registry
        )
        self.without_sink = Gauge(
            "xray_alerts_without_sink", "Deliveries to sinks that the rules do not name any more.", registry=registry
        )
        self.lag = Gauge("xray_alerts_lag_records", "Records not read yet.", ["topic"], registry=registry)
        self.is_current = Gauge(
            "xray_alerts_conditions_judged", "1 while all is read, so that an absence can be told.", registry=registry
        )
        self.last_turn = Gauge(
            "xray_alerts_last_turn_timestamp_seconds", "When the loop last had a turn.", registry=registry
        )
        self._conditions = [rule.name for rule in rules.rules if not rule.is_of_images]
        self._add_series(rules)

    def _add_series(self, rules: Rules) -> None:
        """Make series from the start: a rate sees their first event then."""
        for kind in (*Kind, "foreign"):
            self.events.labels(kind)
        for rule in rules.rules:
            if rule.is_of_images:
                self.alarms.labels(rule.name)
            else:
                self.open_conditions.labels(rule.name).set(0)
        for why in NEVER:
            self.barred.labels(why.value)
        for sink in rules.sinks:
            for result in _RESULTS:
                self.attempts.labels(sink, result)
            for series in (self.waiting, self.oldest, self.undelivered):
                series.labels(sink).set(0)

    def note_attempt(self, sink: str, result: str, alarms: Sequence[Delivery], seconds: float) -> None:
        """Note an attempt and what became of it; see `streaming.alerts.dispatcher.Meter`."""
        self.attempts.labels(sink, result).inc()
        if result == Status.DELIVERED:
            now = time.time()
            for one in alarms:
                if one.delivered_at is None:
                    self.delay.labels(sink).observe(max(0.0, now - one.alarm.starts_at.timestamp()))

    def note_conditions(self, rules: Iterable[str]) -> None:
        """Set how many conditions of each rule are open, from their rules' names."""
        counts = Counts(rules)
        for rule in self._conditions:
            self.open_conditions.labels(rule).set(counts[rule])

    def note_deliveries(
        self, sinks: Iterable[str], counts: dict[tuple[str, str], int], oldest: dict[str, float]
    ) -> None:
        """Set how many deliveries wait, and for how long, and how many nobody got."""
        self.without_sink.set(sum(n for (_, status), n in counts.items() if status == Status.NO_SINK))
        for sink in sinks:
            self.waiting.labels(sink).set(counts.get((sink, Status.WAITING), 0))
            self.undelivered.labels(sink).set(sum(counts.get((sink, one), 0) for one in UNDELIVERED))
            self.oldest.labels(sink).set(max(0.0, time.time() - oldest[sink]) if sink in oldest else 0.0)
