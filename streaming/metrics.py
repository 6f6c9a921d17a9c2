"""The Prometheus page: what the queries' progress says, as series with fixed names.

Everything is counted on the driver from the progress of each micro-batch: Spark reports a batch once, when it is
committed, and the aggregates of its rows with it (`Dataset.observe`). No Python worker serves HTTP.
"""

import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, start_http_server
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas.errors import Reason, SettingsError
from schemas.modelcard import ModelCard
from streaming.settings import MetricsSettings

# A _created series beside each counter doubles the page, and no dashboard here reads one.
disable_created_metrics()  # type: ignore[no-untyped-call]

DECODE_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
PREDICT_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
END_TO_END_BUCKETS_S = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
SCORE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BATCH_BUCKETS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)

DEAD_LETTER_STAGE = "decode"


class BucketHistogram(Collector):
    """A histogram that is fed counts per bucket; the client library's own takes single values only.

    Parameters
    ----------
    name, documentation : str
        As Prometheus shows them.
    bounds : sequence of float
        Upper bounds of the buckets, ascending; the last one, infinity, is added.
    labels : Mapping of str to str
        Fixed labels.
    registry : CollectorRegistry
        Where it appears.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        *,
        bounds: Sequence[float],
        registry: CollectorRegistry,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._family = (name, documentation)
        self._labels = dict(labels or {})
        self._bounds = [*map(str, bounds), "+Inf"]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add observations.

        Parameters
        ----------
        counts : sequence of int
            Observations per bucket, not accumulated, the last one above every bound.
        total : float
            Sum of the observed values.
        """
        with self._lock:
            self._counts = [old + new for old, new in zip(self._counts, counts, strict=True)]
            self._sum += total

    def add_one(self, value: float) -> None:
        """Add one observation."""
        place = next((i for i, bound in enumerate(self._bounds[:-1]) if value <= float(bound)), len(self._bounds) - 1)
        self.add([int(i == place) for i in range(len(self._bounds))], value)

    def collect(self) -> Iterable[Metric]:
        """Give the family to Prometheus; its buckets are accumulated there."""
        family = HistogramMetricFamily(*self._family, labels=list(self._labels))
        with self._lock:
            sums = [sum(self._counts[: i + 1]) for i in range(len(self._counts))]
            buckets = list(zip(self._bounds, sums, strict=True))
            family.add_metric(list(self._labels.values()), buckets=buckets, sum_value=self._sum)
        yield family


@dataclass
class BatchTotals:
    """Aggregates of the rows of one SCORE micro-batch, canaries left out.

    Parameters
    ----------
    consumed, input_bytes : int
        Images and their bytes.
    predictions : dict
        Count by label.
    dead_letters : dict
        Count by reason.
    histograms : dict
        By name (``decode``, ``predict``, ``end_to_end``, ``score``): (counts per bucket, sum).
    """

    consumed: int = 0
    input_bytes: int = 0
    predictions: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, tuple[list[int], float]] = field(default_factory=dict)


class StreamMetrics:
    """All series of the stream.

    Parameters
    ----------
    registry : CollectorRegistry
        Where they appear.
    card : ModelCard
        Names the model; its labels are the label values.
    """

    def __init__(self, registry: CollectorRegistry, card: ModelCard) -> None:
        self._model = card.name
        self._add_counters(registry, card)
        self._add_histograms(registry)
        self._add_gauges(registry, card)

    def _add_counters(self, registry: CollectorRegistry, card: ModelCard) -> None:
        # The client library appends _total to a counter's name.
        self.images_consumed = Counter("xray_images_consumed", "Images read from the topic.", registry=registry)
        self.predictions = Counter(
            "xray_predictions", "Predictions, by model and label.", ["model", "label"], registry=registry
        )
        self.dead_letters = Counter(
            "xray_dead_letters", "Images that could not be scored.", ["stage", "reason"], registry=registry
        )
        self.input_bytes = Counter("xray_input_bytes", "Bytes of the images read.", registry=registry)
        self.model_reloads = Counter("xray_model_reloads", "Models loaded, by result.", ["result"], registry=registry)
        self.archived_rows = Counter("xray_archived_rows", "Rows read by ARCHIVE.", registry=registry)
        self.query_failures = Counter(
            "xray_query_failures", "Queries that ended in error.", ["query"], registry=registry
        )
        # Series that exist from the start let a rate see their first event.
        for label in card.labels:
            self.predictions.labels(card.name, label)
        for reason in Reason:
            self.dead_letters.labels(DEAD_LETTER_STAGE, reason.value)
        for result in ("ok", "failed"):
            self.model_reloads.labels(result)
        for query in ("score", "archive"):
            self.query_failures.labels(query)

    def _add_histograms(self, registry: CollectorRegistry) -> None:
        def histogram(
            name: str, text: str, bounds: Sequence[float], labels: Mapping[str, str] | None = None
        ) -> BucketHistogram:
            return BucketHistogram(name, text, bounds=bounds, registry=registry, labels=labels)

        model = {"model": self._model}
        self.histograms = {
            "decode": histogram("xray_decode_seconds", "Time to decode one image.", DECODE_BUCKETS_S),
            "predict": histogram(
                "xray_predict_seconds", "Time of the network for one image.", PREDICT_BUCKETS_S, model
            ),
            "end_to_end": histogram(
                "xray_end_to_end_seconds", "From the image's Kafka timestamp to its score.", END_TO_END_BUCKETS_S
            ),
            "score": histogram("xray_score", "Probability of the positive finding.", SCORE_BUCKETS, model),
        }
        self.canary = histogram(
            "xray_canary_seconds", "From publishing the canary image to reading its prediction.", END_TO_END_BUCKETS_S
        )
        self.batches = {
            query: histogram(
                f"xray_{query}_batch_seconds", f"Duration of a micro-batch of {query.upper()}.", BATCH_BUCKETS_S
            )
            for query in ("score", "archive")
        }

    def _add_gauges(self, registry: CollectorRegistry, card: ModelCard) -> None:
        self.lag = Gauge(
            "xray_lag_images", "Images published and not yet read.", ["topic", "partition"], registry=registry
        )
        self.last_batch = Gauge(
            "xray_last_batch_timestamp_seconds", "When a query last committed rows.", ["query"], registry=registry
        )
        self.query_up = Gauge("xray_query_up", "1 while the query runs.", ["query"], registry=registry)
        self.unaccounted = Gauge(
            "xray_unaccounted_records",
            "Images read since the start that became neither prediction nor dead letter.",
            registry=registry,
        )
        self.last_canary = Gauge(
            "xray_last_canary_timestamp_seconds", "When a canary's prediction was last read.", registry=registry
        )
        info = Gauge("xray_model_info", "The model in service.", ["name", "version", "sha256"], registry=registry)
        info.labels(card.name, card.version, card.sha256).set(1)
        for query in ("score", "archive"):
            self.query_up.labels(query).set(0)

    def record_totals(self, totals: BatchTotals) -> None:
        """Add the rows of one SCORE micro-batch."""
        self.images_consumed.inc(totals.consumed)
        self.input_bytes.inc(totals.input_bytes)
        for label, count in totals.predictions.items():
            self.predictions.labels(self._model, label).inc(count)
        for reason, count in totals.dead_letters.items():
            self.dead_letters.labels(DEAD_LETTER_STAGE, reason).inc(count)
        self.unaccounted.inc(totals.consumed - sum(totals.predictions.values()) - sum(totals.dead_letters.values()))
        for name, (counts, total) in totals.histograms.items():
            self.histograms[name].add(counts, total)

    def record_batch(self, query: str, duration_s: float) -> None:
        """Note that a query committed a micro-batch with rows."""
        self.batches[query].add_one(duration_s)
        self.last_batch.labels(query).set(time.time())

    def record_lag(self, end: Mapping[str, Mapping[str, int]], latest: Mapping[str, Mapping[str, int]]) -> None:
        """Set the lag of each partition.

        Parameters
        ----------
        end, latest : Mapping
            Offsets by topic and partition: read, and published.
        """
        for topic, partitions in latest.items():
            for partition, offset in partitions.items():
                read = end.get(topic, {}).get(partition, 0)
                self.lag.labels(topic, partition).set(max(0, offset - read))


def parse_offsets(text: Any) -> dict[str, dict[str, int]]:
    """Read Spark's offsets of a Kafka source; absent ones are empty."""
    value = json.loads(text) if isinstance(text, str) else text
    return value if isinstance(value, dict) else {}


def serve_metrics(registry: CollectorRegistry, settings: MetricsSettings) -> tuple[str, Any]:
    """Start the page.

    Returns
    -------
    tuple of str and callable
        Its address, and a function that ends it.

    Raises
    ------
    SettingsError
        The port is taken or the address is not this machine's.
    """
    try:
        server, thread = start_http_server(settings.port, settings.host, registry)
    except OSError as exc:
        msg = f"XRAY_METRICS__PORT: cannot listen on {settings.host}:{settings.port}: {exc.strerror}; choose another"
        raise SettingsError(msg) from exc

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return f"http://{settings.host}:{server.server_port}/metrics", stop
