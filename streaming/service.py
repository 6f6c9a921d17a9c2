"""The stream as a service: its checks, model, queries, canary and metrics page, started and ended in order."""

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession
from pyspark.sql.streaming import StreamingQuery, StreamingQueryListener

from schemas.errors import JobError, ModelLoadError, SettingsError
from schemas.modelcard import ModelCard, read_card
from sparkdl.decode import RENDERING_VERSION
from sparkdl.session import start_session
from streaming.archive import DELTA_CONF, create_tables, start_archive
from streaming.canary import Canary
from streaming.jars import SPARK_JARS, resolve_jars
from streaming.metrics import StreamMetrics, parse_offsets, serve_metrics
from streaming.score import OBSERVATION, featurizer_of, read_totals, start_score
from streaming.settings import StreamSettings
from streaming.topics import check_topics, create_topics

log = logging.getLogger(__name__)

_READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 120.0
_POLL_S = 0.2


@dataclass(frozen=True)
class StreamState:
    """What the caller may show once the stream is ready.

    Parameters
    ----------
    metrics_url : str
        Address of the Prometheus page.
    card : ModelCard
        The model in service.
    """

    metrics_url: str
    card: ModelCard


def run_stream(
    settings: StreamSettings,
    *,
    model_folder: Path,
    spark: SparkSession | None = None,
    available_now: bool = False,
    ended: threading.Event | None = None,
    on_ready: Callable[[StreamState], None] = lambda state: None,
    verbose: bool = False,
) -> None:
    """Run the stream until it is told to end.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    model_folder : Path
        The model to serve.
    spark : SparkSession, optional
        A session of `open_session` that goes on afterwards; one is started and ended when absent.
    available_now : bool
        Score and archive what is there, then return.
    ended : threading.Event, optional
        Set it to end the stream: the running micro-batches are finished and committed first.
    on_ready : callable
        Called once images are answered.
    verbose : bool
        Leave Spark's own words on the terminal.

    Raises
    ------
    JobError
        Something is missing or wrong before the start, or a query failed.
    """
    ended = ended or threading.Event()
    card = read_card(model_folder)
    _check_rendering(card)
    create_topics(settings.kafka)
    check_topics(settings.kafka)
    registry = CollectorRegistry()
    metrics = StreamMetrics(registry, card)
    with ExitStack() as stack:
        stack.enter_context(_only_stream(settings.checkpoints_folder))
        metrics_url, stop_metrics = serve_metrics(registry, settings.metrics)
        stack.callback(stop_metrics)
        if spark is None:
            spark = open_session(settings, verbose=verbose)
            stack.callback(spark.stop)
        model = load_model(model_folder)
        metrics.model_reloads.labels("ok").inc()
        listener = _ProgressListener(metrics, card)
        spark.streams.addListener(listener)
        stack.callback(spark.streams.removeListener, listener)
        state = StreamState(metrics_url, card)
        if available_now:
            _drain(spark, model, card, settings, ended, on_ready, state)
        else:
            _serve(spark, model, card, settings, metrics, ended, on_ready, state)


def _drain(
    spark: SparkSession,
    model: PipelineModel,
    card: ModelCard,
    settings: StreamSettings,
    ended: threading.Event,
    on_ready: Callable[[StreamState], None],
    state: StreamState,
) -> None:
    """SCORE first, then ARCHIVE: the second reads what the first writes."""
    create_tables(spark, settings.tables_folder)
    on_ready(state)
    _await_end(start_score(spark, model, card, settings, available_now=True), ended)
    _await_end(start_archive(spark, settings, available_now=True), ended)


def _serve(
    spark: SparkSession,
    model: PipelineModel,
    card: ModelCard,
    settings: StreamSettings,
    metrics: StreamMetrics,
    ended: threading.Event,
    on_ready: Callable[[StreamState], None],
    state: StreamState,
) -> None:
    with _pool(spark, "score"):
        score = start_score(spark, model, card, settings)
    canary = _start_canary(settings, metrics)
    try:
        create_tables(spark, settings.tables_folder)
        with _pool(spark, "archive"):
            archive = start_archive(spark, settings)
        queries = [score, archive]
        if canary is not None:
            _await_first_answer(canary, queries, ended)
        on_ready(state)
        while not ended.wait(_POLL_S):
            _raise_failure(queries)
    finally:
        if canary is not None:
            canary.stop()
    for query in queries:
        stop_after_batch(query)
    _raise_failure(queries)


@contextmanager
def _pool(spark: SparkSession, name: str) -> Iterator[None]:
    """Give the queries started here a scheduler pool of their own: no archive write queues ahead of images."""
    spark.sparkContext.setLocalProperty("spark.scheduler.pool", name)
    try:
        yield
    finally:
        spark.sparkContext.setLocalProperty("spark.scheduler.pool", None)


def _start_canary(settings: StreamSettings, metrics: StreamMetrics) -> Canary | None:
    if not settings.score.canary_s:
        return None

    def record(seconds: float) -> None:
        metrics.canary.add_one(seconds)
        metrics.last_canary.set(time.time())

    canary = Canary(settings.kafka, settings.score.canary_s, record)
    canary.start()
    return canary


def _await_first_answer(canary: Canary, queries: list[StreamingQuery], ended: threading.Event) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while not canary.wait_answered(_POLL_S) and not ended.is_set():
        _raise_failure(queries)
        if time.monotonic() > deadline:
            log.warning("no canary came back within %s s; a backlog of images may be ahead of it", _READY_TIMEOUT_S)
            return


def open_session(settings: StreamSettings, *, verbose: bool = False) -> SparkSession:
    """Start Spark with the Kafka and Delta connectors."""
    return start_session(
        app_name="xray-stream",
        log_folder=settings.logs_folder,
        master=settings.spark.master,
        driver_memory=settings.spark.driver_memory,
        jars=resolve_jars(SPARK_JARS, settings.jars_folder),
        java_options=_java_options(settings.spark.driver_memory),
        conf={**DELTA_CONF, "spark.scheduler.mode": "FAIR"},
        verbose=verbose,
    )


def _java_options(driver_memory: str) -> list[str]:
    """Tune the JVM for what it does here: it carries images past, while Python does the work on the same cores.

    Measured with EfficientNetLite0 on 2 cores, 600 images: 65 images a second without these options; 75 with one
    compiler and this collector, for the second compiler took a tenth of the machine for code that waits for Python; 84
    with the large young generation too: almost every byte is dead before it is full, and a small one copies what is
    still on its way.
    """
    size, unit = int(driver_memory[:-1]), driver_memory[-1]
    young_mb = size * (1024 if unit == "g" else 1) * 6 // 10
    # One compiler alone gets 48 MB of code cache, which Spark's generated code fills within a minute; the JVM then
    # stops compiling. 240 MB is what both together get.
    compiler = ["-XX:TieredStopAtLevel=1", "-XX:ReservedCodeCacheSize=240m"]
    return [*compiler, "-XX:+UseParallelGC", f"-Xmn{young_mb}m"]


def load_model(folder: Path) -> PipelineModel:
    """Load a saved pipeline.

    Raises
    ------
    ModelLoadError
        The folder is no `PipelineModel`, or its first stage is no `DeepImageFeaturizer`.
    """
    try:
        model = PipelineModel.load(str(folder))
    except Exception as exc:  # pyspark raises Java's errors, ours, and plain Python ones here
        if isinstance(exc, ModelLoadError):
            raise
        msg = f"cannot load the model at {folder}: {type(exc).__name__}: {str(exc).strip().splitlines()[0]}"
        raise ModelLoadError(msg) from exc
    featurizer_of(model)
    return model


def _check_rendering(card: ModelCard) -> None:
    if card.rendering_version != RENDERING_VERSION:
        msg = (
            f"model {card.version} was trained on images of rendering version {card.rendering_version}; "
            f"this installation decodes with version {RENDERING_VERSION}. Train it anew."
        )
        raise ModelLoadError(msg)


@contextmanager
def _only_stream(checkpoints: Path) -> Iterator[None]:
    """Refuse a second stream on the same checkpoints; the lock ends with the process, however it ends."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    with (checkpoints / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            msg = f"another stream runs on {checkpoints}; end it first, or give this one its own XRAY_HOME"
            raise SettingsError(msg) from exc
        yield


def stop_after_batch(query: StreamingQuery) -> None:
    """End a query once its running micro-batch is committed.

    `StreamingQuery.stop` cancels the running batch; what it has published by then would be published again after a
    restart. Spark's loop asks before each batch whether the query is still active, so saying that it is not, without
    the interrupt, ends it in order.
    """
    if not query.isActive:
        return
    execution = query._jsq.streamingQuery()
    jvm = execution.getClass().getClassLoader()
    terminated = jvm.loadClass("org.apache.spark.sql.execution.streaming.runtime.TERMINATED$")
    execution.state().set(terminated.getField("MODULE$").get(None))
    execution.awaitTermination(int(_STOP_TIMEOUT_S * 1000))
    query.stop()


def _await_end(query: StreamingQuery, ended: threading.Event) -> None:
    while query.isActive:
        if ended.wait(_POLL_S):
            stop_after_batch(query)
    _raise_failure([query])


def _raise_failure(queries: list[StreamingQuery]) -> None:
    for query in queries:
        if not query.isActive and (error := query.exception()) is not None:
            raise _failure(query, error) from error


def _failure(query: StreamingQuery, error: Any) -> JobError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = next((line for line in lines if "Caused by" in line or "Error" in line), lines[0] if lines else "unknown")
    return JobError(f"the {query.name} query ended in error: {cause[:500]}. Details are in spark.log.")


class _ProgressListener(StreamingQueryListener):
    """Feeds the metrics from the queries' progress."""

    def __init__(self, metrics: StreamMetrics, card: ModelCard) -> None:
        self._metrics = metrics
        self._card = card
        self._names: dict[Any, str] = {}

    def onQueryStarted(self, event: Any) -> None:
        self._names[event.id] = event.name
        self._metrics.query_up.labels(event.name).set(1)

    def onQueryIdle(self, event: Any) -> None:
        """Nothing was read: nothing to count."""

    def onQueryProgress(self, event: Any) -> None:
        progress = event.progress
        source = progress.sources[0]
        if progress.name == "score":
            self._metrics.record_lag(parse_offsets(source.endOffset), parse_offsets(source.latestOffset))
        if not progress.numInputRows:
            return
        self._metrics.record_batch(progress.name, progress.batchDuration / 1000)
        if progress.name == "archive":
            self._metrics.archived_rows.inc(progress.numInputRows)
        observed = progress.observedMetrics.get(OBSERVATION)
        if observed is not None:
            totals = read_totals(observed, self._card)
            self._metrics.record_totals(totals)
            log.info(
                "batch %s: %s images, %s dead letters, %.2f s",
                progress.batchId,
                totals.consumed,
                sum(totals.dead_letters.values()),
                progress.batchDuration / 1000,
            )

    def onQueryTerminated(self, event: Any) -> None:
        name = self._names.get(event.id)
        if name is not None:
            self._metrics.query_up.labels(name).set(0)
            if event.exception is not None:
                self._metrics.query_failures.labels(name).inc()
