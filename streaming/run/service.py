"""The stream as a service: its checks, model, query, archive, canary and metrics page, started and ended in order."""

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from prometheus_client import CollectorRegistry
from pyspark.sql import SparkSession

from schemas.errors import DataLossError, JobError, SettingsError
from schemas.modelcard import ModelCard
from schemas.registry import champion_folder
from streaming.account.auditor import Auditor
from streaming.account.losses import Loss, check_losses, find_losses
from streaming.account.repetition import check_not_scored
from streaming.archive.process import ArchiveProcess
from streaming.archive.service import run_archive
from streaming.folders import check_folders, empty_scratch
from streaming.kafka.topicchecks import check_outcome_sizes, check_topics
from streaming.kafka.topicids import TopicWatch, check_topic_ids, record_ids, recorded_ids, set_checkpoint_aside
from streaming.kafka.topics import create_topics
from streaming.metrics import StreamMetrics, serve_metrics
from streaming.run.models import ChampionWatch, ServedModel, check_card, load_model, warn_of_rendering
from streaming.run.scoresupervisor import ScoreSupervisor
from streaming.run.session import SessionStart, plan_start
from streaming.run.sharedclasses import SharedClasses
from streaming.run.sparkinternals import check_internals
from streaming.run.warmup import WarmUp
from streaming.score.canary import Canary
from streaming.score.progress import ProgressListener
from streaming.score.query import featurizer_of
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

_READY_TIMEOUT_S = 120.0
_ARCHIVE_TIMEOUT_S = 30.0
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


def run_stream(  # noqa: PLR0913  each is a thing of its own, and named in every call
    settings: StreamSettings,
    *,
    model_folder: Path | None = None,
    spark: SparkSession | None = None,
    available_now: bool = False,
    archive: bool = True,
    accept_loss: bool = False,
    from_beginning: bool = False,
    ended: threading.Event | None = None,
    on_ready: Callable[[StreamState], None] = lambda state: None,
    registry: CollectorRegistry | None = None,
    verbose: bool = False,
    ahead: SessionStart | None = None,
) -> None:
    """Run the stream until it is told to end.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    model_folder : Path, optional
        The model to serve, and to stay with. By default the settings' one; where they name none, the promoted one, and
        whichever is promoted while the stream runs from its next micro-batch on.
    spark : SparkSession, optional
        A session of `open_session` that goes on afterwards; one is started and ended when absent.
    available_now : bool
        Score and archive what is there, then return.
    archive : bool
        Write the tables too; without it the next stream that does writes what is missing.
    accept_loss : bool
        Go on behind records that retention removed before they were read, and in a topic that was made anew.
    from_beginning : bool
        Without a checkpoint: score images again that have an outcome already.
    ended : threading.Event, optional
        Set it to end the stream: the running micro-batches are finished and committed first.
    on_ready : callable
        Called once images are answered.
    registry : CollectorRegistry, optional
        What the metrics page shows; series that the caller has put there are shown as well.
    verbose : bool
        Leave Spark's own words on the terminal.
    ahead : SessionStart, optional
        Of `streaming.run.session.launch_ahead`, for the session that is started here; the caller ends its JVM.

    Raises
    ------
    JobError
        Something is missing or wrong before the start, or a query kept failing.
    """
    ended = ended or threading.Event()
    pinned = model_folder or settings.model
    folder = pinned or champion_folder(settings.models_folder)
    log.info("the program is loaded")
    card = check_card(folder)
    check_folders(settings)
    with ExitStack() as stack:
        stack.enter_context(_lock_checkpoints(settings.checkpoints_folder))
        losses = _check_kafka(settings, accept_loss=accept_loss, from_beginning=from_beginning)
        log.info("Kafka is checked")
        registry = CollectorRegistry() if registry is None else registry
        metrics = StreamMetrics(registry, card)
        metrics_url, stop_metrics = serve_metrics(registry, settings.metrics.host, settings.metrics.port)
        stack.callback(stop_metrics)
        classes = None
        if spark is None:
            empty_scratch(settings.scratch_folder)
            start = ahead or plan_start(settings, verbose=verbose)
            spark = start.open()
            stack.callback(spark.stop)
            classes = start.classes
        log.info("the session is up")
        check_internals(spark)
        served = ServedModel(folder, card, load_model(folder))
        check_outcome_sizes(settings.kafka, card, featurizer_of(served.pipeline).network.n_features)
        warn_of_rendering(card)
        log.info("the model is loaded")
        warm_up = WarmUp(spark, featurizer_of(served.pipeline).send(spark))
        warm_up.start()
        stack.callback(warm_up.join)
        listener = ProgressListener(metrics, card)
        spark.streams.addListener(listener)
        stack.callback(spark.streams.removeListener, listener)
        score_query = ScoreSupervisor(
            spark,
            served,
            settings,
            metrics,
            listener,
            watch=None if pinned else ChampionWatch(settings.models_folder, folder),
            skip_lost=bool(losses),
            available_now=available_now,
        )
        state = StreamState(metrics_url, card)
        if available_now:
            on_ready(state)
            _run_to_end(score_query, ended)
            # Afterwards: it reads what SCORE writes.
            if archive and not ended.is_set():
                run_archive(settings, available_now=True, accept_loss=accept_loss, ended=ended)
        else:
            beside = ArchiveProcess(settings, metrics, accept_loss=accept_loss) if archive else None
            parts = _Parts(score_query, beside, classes)
            _run_until_ended(parts, settings, metrics, ended, lambda: on_ready(state))


def _check_kafka(settings: StreamSettings, *, accept_loss: bool, from_beginning: bool) -> list[Loss]:
    create_topics(settings.kafka)
    check_topics(settings.kafka)
    checkpoint = settings.checkpoints_folder / "score"
    renewed = accept_loss and _set_aside_replaced(settings, checkpoint)
    ids = check_topic_ids(settings)
    ids = replace(ids, renewed=True) if renewed else ids
    losses = find_losses(settings)
    check_losses(losses, settings.kafka, accepted=accept_loss)
    for loss in losses:
        log.warning("SCORE goes on behind records that are gone: %s", loss)
    if not from_beginning:
        check_not_scored(settings, ids)
    # Not before all is checked: a checkpoint of a release that noted no ids is believed to be of these topics.
    record_ids(checkpoint, ids)
    return losses


def _set_aside_replaced(settings: StreamSettings, checkpoint: Path) -> bool:
    """Put SCORE's checkpoint aside where its topic is another one now, or ends before it: all in that is read.

    Returns
    -------
    bool
        Whether an outcome that does not name its topic's id is about a former topic.
    """
    shrunk = any(loss.renewed and loss.topic != settings.kafka.canary_topic for loss in find_losses(settings))
    renewed = _is_renewed(settings)
    unknown = shrunk and recorded_ids(checkpoint) is None
    if shrunk or renewed:
        log.warning(
            "SCORE reads its topic from the beginning; its checkpoint is now %s", set_checkpoint_aside(checkpoint)
        )
    return renewed or unknown


def _is_renewed(settings: StreamSettings) -> bool:
    try:
        check_topic_ids(settings)
    except DataLossError:
        return True
    return False


def _run_to_end(query: ScoreSupervisor, ended: threading.Event) -> None:
    """Let SCORE do what there is, or what it can until it is told to end."""
    query.start()
    while query.check():
        if ended.wait(_POLL_S):
            query.stop()
            return


@dataclass(frozen=True)
class _Parts:
    """What runs until the stream is told to end: SCORE; ARCHIVE, and Java's classes made ready, where they shall."""

    score: ScoreSupervisor
    archive: ArchiveProcess | None
    classes: SharedClasses | None


def _run_until_ended(
    parts: _Parts,
    settings: StreamSettings,
    metrics: StreamMetrics,
    ended: threading.Event,
    on_ready: Callable[[], None],
) -> None:
    with ExitStack() as stack:  # ended in the order against this one: no new canary, then SCORE, then ARCHIVE
        if parts.archive:
            stack.callback(parts.archive.stop)
        stack.push(_stop_at_exit(parts.score.stop))
        parts.score.start()
        log.info("the query is started")
        watch = TopicWatch(settings)
        stack.callback(watch.stop)
        watch.start()
        canary = _start_canary(settings, metrics)
        if canary is not None:
            stack.callback(canary.stop)
        readiness = _Readiness(canary, on_ready)
        # Alerts wait for the first predictions, tables do not: a start would take the cores from SCORE.
        archive_at = time.monotonic() + _ARCHIVE_TIMEOUT_S
        while not (readiness.check() or time.monotonic() > archive_at):
            watch.check()
            parts.score.check()
            if ended.wait(_POLL_S):
                return
        if parts.archive:
            parts.archive.start()
        auditor = Auditor(settings, metrics)
        stack.callback(auditor.stop)
        auditor.start()
        if parts.classes is not None:
            stack.callback(parts.classes.stop)
            parts.classes.start_making()
        while not ended.wait(_POLL_S):
            watch.check()
            parts.score.check()
            if parts.archive:
                parts.archive.check()
            readiness.check()


def _stop_at_exit(stop: Callable[[], None]) -> Callable[..., None]:
    """Make the end of a query a part of an exit stack: why the stream ends counts more than what its end meets."""

    def end(kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        try:
            stop()
        except JobError as exc:
            if kind is None:
                raise
            log.warning("%s", exc)

    return end


def _start_canary(settings: StreamSettings, metrics: StreamMetrics) -> Canary | None:
    if not settings.score.canary_s:
        return None

    def record(seconds: float) -> None:
        metrics.canary.observe(seconds)
        metrics.last_canary.set(time.time())

    n_cores = SparkSession.active().sparkContext.defaultParallelism
    canary = Canary(settings.kafka, settings.score.canary_s, n_cores, record)
    canary.start()
    return canary


class _Readiness:
    """Tells once that images are answered: when the first canary has come back, or should long have."""

    def __init__(self, canary: Canary | None, on_ready: Callable[[], None]) -> None:
        self._canary = canary
        self._on_ready = on_ready
        self._deadline = time.monotonic() + _READY_TIMEOUT_S
        self._told = False

    def check(self) -> bool:
        """Tell once it is time to; return whether it was told."""
        if self._told:
            return True
        answered = self._canary is None or self._canary.wait_answered(0)
        late = time.monotonic() > self._deadline
        if late and not answered:
            log.warning("no canary came back within %s s; a backlog of images may be ahead of it", _READY_TIMEOUT_S)
        if answered or late:
            self._told = True
            self._on_ready()
        return self._told


@contextmanager
def _lock_checkpoints(checkpoints: Path) -> Iterator[None]:
    """Refuse a second stream on the same checkpoints; the lock ends with the process, however it ends."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    with (checkpoints / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            msg = f"another stream runs on {checkpoints}; end it first, or give this one its own XRAY_HOME"
            raise SettingsError(msg) from exc
        yield
