"""The archive's Prometheus page and its health: how far it is, how long the topics still wait, and what fails."""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from streaming.metrics import BATCH_BUCKETS_S

_ARCHIVE = "archive"


class ArchiveMetrics:
    """All series of the archive.

    Parameters
    ----------
    registry : CollectorRegistry
        Where they appear.
    tables : iterable of str
        Names of the tables.
    """

    def __init__(self, registry: CollectorRegistry, tables: Iterable[str]) -> None:
        self.tables = list(tables)
        self.archived = Counter("xray_archived_rows", "Outcomes read by the archive.", registry=registry)
        self.records = Counter(
            "xray_archive_records",
            "Outcomes read by the archive, by what became of them: written, known (the table has the row) or nameless.",
            ["table", "result"],
            registry=registry,
        )
        self.batches = Histogram(
            "xray_archive_batch_seconds",
            "Duration of one write into a table.",
            buckets=BATCH_BUCKETS_S,
            registry=registry,
        )
        self.lag = Gauge(
            "xray_archive_lag_records",
            "Outcomes published and not yet in their table.",
            ["table", "topic", "partition"],
            registry=registry,
        )
        self.retention_left = Gauge(
            "xray_archive_retention_left_seconds",
            "Until the topic's retention removes an outcome that its table does not have; all of it when none waits.",
            ["table"],
            registry=registry,
        )
        self.oldest_waiting = Gauge(
            "xray_archive_oldest_waiting_seconds",
            "Age of the oldest outcome that its table does not have; 0 where none waits.",
            ["table"],
            registry=registry,
        )
        self.conflicts = Counter(
            "xray_archive_conflicts",
            "Writes begun again, as somebody else changed the table.",
            ["table"],
            registry=registry,
        )
        self.joined_files = Counter("xray_archive_joined_files", "Small files joined.", ["table"], registry=registry)
        self.upkeep_failures = Counter(
            "xray_archive_upkeep_failures",
            "Upkeep of a table that failed; appends go on.",
            ["table"],
            registry=registry,
        )
        self.failures = Counter("xray_query_failures", "Failures, each tried again.", ["query"], registry=registry)
        self.up = Gauge("xray_query_up", "1 while every table can be written.", ["query"], registry=registry)
        self.last_batch = Gauge(
            "xray_last_batch_timestamp_seconds", "When rows were last committed.", ["query"], registry=registry
        )
        self.last_turn = Gauge(
            "xray_archive_last_turn_timestamp_seconds", "When the archive last looked at its topics.", registry=registry
        )
        self.up.labels(_ARCHIVE).set(0)
        self.failures.labels(_ARCHIVE)
        for table in self.tables:
            for counter in (self.conflicts, self.joined_files, self.upkeep_failures):
                counter.labels(table)
            for result in ("written", "known", "nameless"):
                self.records.labels(table, result)

    def record_batch(self, table: str, *, read: int, written: int, nameless: int, seconds: float) -> None:
        """Note one write into a table."""
        self.archived.inc(read)
        self.records.labels(table, "written").inc(written)
        self.records.labels(table, "nameless").inc(nameless)
        self.records.labels(table, "known").inc(read - nameless - written)
        self.batches.observe(seconds)
        self.last_batch.labels(_ARCHIVE).set(time.time())

    def record_failure(self) -> None:
        """Note a failure that is tried again."""
        self.failures.labels(_ARCHIVE).inc()

    def record_turn(self, *, ok: bool) -> None:
        """Note that every table had its turn, and whether all could be written."""
        self.up.labels(_ARCHIVE).set(int(ok))
        self.last_turn.set(time.time())
