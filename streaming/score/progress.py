"""Turns the queries' progress, as Spark tells it, into metrics."""

import logging
import threading
from typing import Any

from pyspark.sql.streaming import StreamingQuery, StreamingQueryListener

from schemas.modelcard import ModelCard
from streaming.metrics import StreamMetrics, parse_offsets
from streaming.score.query import OBSERVATION, read_totals

log = logging.getLogger(__name__)


class ProgressListener(StreamingQueryListener):
    """Hears of every committed micro-batch.

    Parameters
    ----------
    metrics : StreamMetrics
        What it feeds.
    card : ModelCard
        Of the first model.
    """

    def __init__(self, metrics: StreamMetrics, card: ModelCard) -> None:
        self._metrics = metrics
        self._card = card
        self._names: dict[str, str] = {}
        self._cards: dict[str, ModelCard] = {}
        self._lock = threading.Lock()

    def note_start(self, query: StreamingQuery, card: ModelCard) -> None:
        """Note which model a run of SCORE scores with: progress of the run before it may still be on its way."""
        with self._lock:
            self._cards[str(query.runId)] = self._card = card

    def onQueryStarted(self, event: Any) -> None:
        """Note that a run began."""
        self._names[str(event.runId)] = event.name
        self._metrics.query_up.labels(event.name).set(1)

    def onQueryIdle(self, event: Any) -> None:
        """Nothing was read: nothing to count."""

    def onQueryProgress(self, event: Any) -> None:
        """Count a committed micro-batch."""
        progress = event.progress
        source = progress.sources[0]
        self._metrics.record_lag(parse_offsets(source.endOffset), parse_offsets(source.latestOffset))
        if not progress.numInputRows:
            return
        self._metrics.record_batch(progress.batchDuration / 1000)
        observed = progress.observedMetrics.get(OBSERVATION)
        if observed is not None:
            self._record(observed, progress)

    def _record(self, observed: Any, progress: Any) -> None:
        with self._lock:
            card = self._cards.get(str(progress.runId), self._card)
        totals = read_totals(observed)
        self._metrics.record_totals(totals, card.name)
        log.info(
            "batch %s: %s images, %s dead letters, %.2f s",
            progress.batchId,
            totals.consumed,
            sum(totals.dead_letters.values()),
            progress.batchDuration / 1000,
        )

    def onQueryTerminated(self, event: Any) -> None:
        """Note that a run ended."""
        name = self._names.pop(str(event.runId), None)
        with self._lock:
            self._cards.pop(str(event.runId), None)
        if name is None:
            return
        if event.exception is not None:
            self._metrics.query_failures.labels(name).inc()
        if name not in self._names.values():  # its next run may have begun
            self._metrics.query_up.labels(name).set(0)
