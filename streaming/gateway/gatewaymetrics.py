"""The gateway's Prometheus series: what was taken and refused, how fast, what waits, and whether Kafka takes it."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from streaming.gateway.keeping.spool import Spool, SpoolState
from streaming.gateway.refusals import Cause

ANSWER_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
DOORS = ("dicom", "http")
PUBLISHED, SPOOLED = "published", "spooled"
RECEIPTS = ("accepted", "predicted", "dead_lettered")


class GatewayMetrics:
    """All series of the gateway.

    Parameters
    ----------
    registry : CollectorRegistry
        Where they appear.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.objects = Counter(
            "xray_gateway_objects",
            "Objects that devices sent, by door and by what became of them: published, spooled, or why not taken.",
            ["door", "result"],
            registry=registry,
        )
        self.bytes = Counter("xray_gateway_bytes", "Bytes of these objects.", ["door"], registry=registry)
        self.answers = Histogram(
            "xray_gateway_answer_seconds",
            "From the last byte of an object to its answer.",
            ["door"],
            buckets=ANSWER_BUCKETS_S,
            registry=registry,
        )
        self.flagged = Counter(
            "xray_gateway_flagged_objects", "Objects taken with a flag.", ["flag"], registry=registry
        )
        self.connections = Gauge(
            "xray_gateway_connections", "Associations and HTTP requests now.", ["door"], registry=registry
        )
        self.rejected = Counter(
            "xray_gateway_rejected_associations", "Associations that were not accepted.", ["why"], registry=registry
        )
        self.pending = Gauge("xray_gateway_pending_bytes", "Memory of objects that wait for Kafka.", registry=registry)
        self.kafka_up = Gauge("xray_gateway_kafka_up", "1 while Kafka takes what is published.", registry=registry)
        self.last_taken = Gauge(
            "xray_gateway_last_taken_timestamp_seconds",
            "When an object of this source was last taken; of devices that no file names all together, as 'other'.",
            ["source"],
            registry=registry,
        )
        self.spool_objects = Gauge("xray_gateway_spool_objects", "Objects that wait on disk.", registry=registry)
        self.spool_bytes = Gauge("xray_gateway_spool_bytes", "Bytes of these objects.", registry=registry)
        self.spool_age = Gauge(
            "xray_gateway_spool_oldest_seconds", "Age of the oldest one; 0 where none waits.", registry=registry
        )
        self.spool_aside = Gauge(
            "xray_gateway_spool_set_aside_objects",
            "Objects of the spool that cannot be published: somebody has to look at them.",
            registry=registry,
        )
        self.receipts = Counter("xray_gateway_receipts", "Receipts written.", ["state"], registry=registry)
        self.receipt_lag = Gauge(
            "xray_gateway_receipt_lag_records", "Outcomes published and without their receipt.", registry=registry
        )
        for door in DOORS:
            self.answers.labels(door)
            self.bytes.labels(door)
            self.connections.labels(door)
            for result in (PUBLISHED, SPOOLED, *(cause.label for cause in Cause)):
                self.objects.labels(door, result)
        for state in RECEIPTS:
            self.receipts.labels(state)

    def record_object(self, door: str, result: str, size: int, seconds: float) -> None:
        """Note an object that was answered."""
        self.objects.labels(door, result).inc()
        self.bytes.labels(door).inc(size)
        self.answers.labels(door).observe(seconds)

    def record_taken(self, source: str, flags: tuple[str, ...]) -> None:
        """Note an object that is safe."""
        self.last_taken.labels(source).set(time.time())
        for flag in flags:
            self.flagged.labels(flag).inc()

    def note_receipt(self, state: str) -> None:
        """Count a receipt that the broker has confirmed."""
        self.receipts.labels(state).inc()

    def note_receipts_lag(self, records: int) -> None:
        """Note how many outcomes are not read yet."""
        self.receipt_lag.set(records)

    def watch_spool(self, spool: Spool) -> None:
        """Ask the spool at each scrape."""
        self.spool_objects.set_function(lambda: spool.state.count)
        self.spool_bytes.set_function(lambda: spool.state.size)
        self.spool_age.set_function(lambda: _age(spool.state))
        self.spool_aside.set_function(lambda: spool.state.refused + spool.state.damaged)


def _age(state: SpoolState) -> float:
    return 0.0 if state.oldest_at is None else max(0.0, time.time() - state.oldest_at)
