"""The Prometheus page: what the queries' progress says, as series with fixed names.

Everything is counted on the driver from the progress of each micro-batch: Spark reports a batch once, when it is
committed, and with it what was observed of its rows (`Dataset.observe`). No Python worker serves HTTP.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from schemas.errors import Reason, SettingsError
from schemas.modelcard import Flag, ModelCard

# A _created series beside each counter doubles the page, and no dashboard here reads one.
disable_created_metrics()  # type: ignore[no-untyped-call]

DECODE_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
PREDICT_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
END_TO_END_BUCKETS_S = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
SCORE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BATCH_BUCKETS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)

DEAD_LETTER_STAGE = "decode"

_END_WITHIN_S = 0.05  # the page's end is waited for whenever a stream ends


@dataclass
class BatchTotals:
    """What is counted of the images of one SCORE micro-batch, canaries left out.

    Parameters
    ----------
    consumed, input_bytes : int
        Images and their bytes.
    predictions : Mapping of str to int
        Count by label.
    flags : Mapping of str to int
        Count of predictions by flag.
    dead_letters : Mapping of str to int
        Count by reason.
    decode_seconds : sequence of float
        Of every image.
    predict_seconds, waited_seconds, scores : sequence of float
        Of every image with a prediction: time of the network, from the image's Kafka timestamp to its score, and
        probability of the positive finding.
    """

    consumed: int = 0
    input_bytes: int = 0
    predictions: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, int] = field(default_factory=dict)
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    decode_seconds: Sequence[float] = ()
    predict_seconds: Sequence[float] = ()
    waited_seconds: Sequence[float] = ()
    scores: Sequence[float] = ()


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
        self._add_counters(registry)
        self._add_histograms(registry)
        self._add_gauges(registry)
        self.use_model(card)

    def use_model(self, card: ModelCard) -> None:
        """Note that a model was loaded and is in service now."""
        self.model_reloads.labels("ok").inc()
        self._info.clear()
        self._info.labels(card.name, card.version, card.sha256).set(1)
        # Series that exist from the start let a rate see their first event.
        for label in card.answers:
            self.predictions.labels(card.name, label)
        for flag in Flag:
            self.flagged.labels(card.name, flag.value)
        for histogram in (self.predict, self.scores):
            histogram.labels(card.name)

    def _add_counters(self, registry: CollectorRegistry) -> None:
        # The client library appends _total to a counter's name.
        self.images_consumed = Counter("xray_images_consumed", "Images read from the topic.", registry=registry)
        self.predictions = Counter(
            "xray_predictions", "Predictions, by model and label.", ["model", "label"], registry=registry
        )
        self.flagged = Counter(
            "xray_flagged_predictions",
            "Predictions that are not to be acted on, by model and flag.",
            ["model", "flag"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "xray_dead_letters", "Images that could not be scored.", ["stage", "reason"], registry=registry
        )
        self.input_bytes = Counter("xray_input_bytes", "Bytes of the images read.", registry=registry)
        self.model_reloads = Counter("xray_model_reloads", "Models loaded, by result.", ["result"], registry=registry)
        self.query_failures = Counter(
            "xray_query_failures", "Queries that ended in error.", ["query"], registry=registry
        )
        for reason in Reason:
            self.dead_letters.labels(DEAD_LETTER_STAGE, reason.value)
        for result in ("ok", "failed"):
            self.model_reloads.labels(result)
        self.query_failures.labels("score")

    def _add_histograms(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, bounds: Sequence[float], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=bounds, registry=registry)

        self.decode = histogram("xray_decode_seconds", "Time to decode one image.", DECODE_BUCKETS_S)
        self.predict = histogram(
            "xray_predict_seconds", "Time of the network for one image.", PREDICT_BUCKETS_S, "model"
        )
        self.end_to_end = histogram(
            "xray_end_to_end_seconds", "From the image's Kafka timestamp to its score.", END_TO_END_BUCKETS_S
        )
        self.scores = histogram("xray_score", "Probability of the positive finding.", SCORE_BUCKETS, "model")
        self.canary = histogram(
            "xray_canary_seconds", "From publishing the canary image to reading its prediction.", END_TO_END_BUCKETS_S
        )
        self.batches = histogram("xray_score_batch_seconds", "Duration of a micro-batch of SCORE.", BATCH_BUCKETS_S)

    def _add_gauges(self, registry: CollectorRegistry) -> None:
        self.lag = Gauge(
            "xray_lag_images", "Images published and not yet read.", ["topic", "partition"], registry=registry
        )
        self.last_batch = Gauge(
            "xray_last_batch_timestamp_seconds", "When a query last committed rows.", ["query"], registry=registry
        )
        self.query_up = Gauge("xray_query_up", "1 while the query runs.", ["query"], registry=registry)
        self.unaccounted = Gauge(
            "xray_unaccounted_records",
            "Images of the last account without exactly one of prediction and dead letter.",
            registry=registry,
        )
        self.table_faults = Gauge(
            "xray_table_fault_rows", "Rows that the tables lack or have twice, by the last account.", registry=registry
        )
        self.last_audit = Gauge(
            "xray_last_audit_timestamp_seconds", "When an account was last drawn up.", registry=registry
        )
        self.model_waiting = Gauge(
            "xray_model_waiting", "1 while the promoted model cannot be served and another one is.", registry=registry
        )
        self.last_canary = Gauge(
            "xray_last_canary_timestamp_seconds", "When a canary's prediction was last read.", registry=registry
        )
        self._info = Gauge("xray_model_info", "The model in service.", ["name", "version", "sha256"], registry=registry)
        self.query_up.labels("score").set(0)

    def record_totals(self, totals: BatchTotals, model: str) -> None:
        """Add the rows of one SCORE micro-batch, scored by the named model."""
        self.images_consumed.inc(totals.consumed)
        self.input_bytes.inc(totals.input_bytes)
        for label, count in totals.predictions.items():
            self.predictions.labels(model, label).inc(count)
        for flag, count in totals.flags.items():
            self.flagged.labels(model, flag).inc(count)
        for reason, count in totals.dead_letters.items():
            self.dead_letters.labels(DEAD_LETTER_STAGE, reason).inc(count)
        for histogram, values in (
            (self.decode, totals.decode_seconds),
            (self.predict.labels(model), totals.predict_seconds),
            (self.end_to_end, totals.waited_seconds),
            (self.scores.labels(model), totals.scores),
        ):
            for value in values:
                histogram.observe(value)

    def record_batch(self, duration_s: float) -> None:
        """Note that SCORE committed a micro-batch with rows."""
        self.batches.observe(duration_s)
        self.last_batch.labels("score").set(time.time())

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


def parse_offsets(text: str | None) -> dict[str, dict[str, int]]:
    """Read Spark's offsets of a Kafka source, as its progress has them; empty where it names none.

    A micro-batch that is done again after a restart has no latest offset.
    """
    offsets: dict[str, dict[str, int]] = json.loads(text) if text and text.startswith("{") else {}
    return offsets


def serve_metrics(
    registry: CollectorRegistry,
    host: str,
    port: int,
    *,
    setting: str = "XRAY_METRICS__PORT",
    health: Callable[[], dict[str, Any]] | None = None,
) -> tuple[str, Any]:
    """Start the page.

    Parameters
    ----------
    registry : CollectorRegistry
        What it shows.
    host : str
        Address to listen on.
    port : int
        0 takes a free one.
    setting : str
        What to change where the port is taken.
    health : callable, optional
        Gives what ``/health`` answers, as JSON; its ``ok`` says whether with 200 or 503. It is asked in another thread.

    Returns
    -------
    tuple of str and callable
        Its address, and a function that ends it.

    Raises
    ------
    SettingsError
        The port is taken or the address is not this machine's.
    """
    page = make_wsgi_app(registry)

    def answer(environ: Any, start_response: Any) -> Any:
        if health is None or environ["PATH_INFO"] != "/health":
            return page(environ, start_response)
        state = health()
        start_response("200 OK" if state["ok"] else "503 Service Unavailable", [("Content-Type", "application/json")])
        return [json.dumps(state).encode()]

    try:
        kind = _ServerOnIPv6 if ":" in host else ThreadingWSGIServer
        server = make_server(host, port, answer, kind, handler_class=_QuietHandler)
    except OSError as exc:
        msg = f"{setting}: cannot listen on {host}:{port}: {exc.strerror}; choose another"
        raise SettingsError(msg) from exc
    thread = threading.Thread(target=server.serve_forever, args=(_END_WITHIN_S,), name="metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{server.server_port}/metrics", stop


class _ServerOnIPv6(ThreadingWSGIServer):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: each scrape would be a line."""
