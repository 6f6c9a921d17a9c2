"""The Prometheus page of ``xray results run``: what each target has, and what waits for it."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from streaming.reports.report import LeftOut

RESULTS = ("delivered", "refused", "given_up", "left_out")
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600, 21600, 86400)


class ReportMetrics:
    """All series of reports.

    Parameters
    ----------
    registry : CollectorRegistry
        Where they appear.
    targets : iterable of str
        Names of the targets: their kinds, with a number behind the second one of a kind.
    """

    def __init__(self, registry: CollectorRegistry, targets: Iterable[str]) -> None:
        self.registry = registry
        self.reports = Counter(
            "xray_reports",
            "Reports by what became of them: delivered, refused (sent again later), given_up, left_out.",
            ["target", "result"],
            registry=registry,
        )
        self.left_out = Counter(
            "xray_reports_left_out", "Predictions without a report, by reason.", ["target", "reason"], registry=registry
        )
        self.open = Gauge("xray_reports_open", "Reports that wait for their target.", ["target"], registry=registry)
        self.given_up = Gauge(
            "xray_reports_given_up",
            "Reports that their target refused for good, and nobody has sent again.",
            ["target"],
            registry=registry,
        )
        self.without_target = Gauge(
            "xray_reports_without_target",
            "Reports that were open at the start for targets that are not delivered to.",
            registry=registry,
        )
        self.up = Gauge("xray_report_target_up", "1 while the target takes reports.", ["target"], registry=registry)
        self.failures = Counter(
            "xray_report_failures",
            "Times that a target, the broker, the crosswalk or the ledger could not be used; each is tried again.",
            ["target"],
            registry=registry,
        )
        self.last_delivery = Gauge(
            "xray_report_last_delivery_timestamp_seconds",
            "When a report was last taken.",
            ["target"],
            registry=registry,
        )
        self.seconds = Histogram(
            "xray_report_seconds",
            "From the prediction on its topic, or the finding, to the report taken by its target.",
            ["target"],
            buckets=SECONDS,
            registry=registry,
        )
        for target in targets:
            for result in RESULTS:
                self.reports.labels(target, result)
            for reason in LeftOut:
                self.left_out.labels(target, reason.value)
            for series in (self.open, self.given_up, self.up, self.failures, self.last_delivery, self.seconds):
                series.labels(target)

    def record_delivery(self, target: str, since_s: float) -> None:
        """Note a report that was taken; ``since_s`` is the Unix time of its event."""
        now = time.time()
        self.reports.labels(target, "delivered").inc()
        self.last_delivery.labels(target).set(now)
        self.seconds.labels(target).observe(max(now - since_s, 0.0))

    def record_left_out(self, target: str, reason: LeftOut) -> None:
        """Note a prediction without a report."""
        self.reports.labels(target, "left_out").inc()
        self.left_out.labels(target, reason.value).inc()

    def record_refusal(self, target: str, *, given_up: bool) -> None:
        """Note a report that was refused."""
        self.reports.labels(target, "given_up" if given_up else "refused").inc()
