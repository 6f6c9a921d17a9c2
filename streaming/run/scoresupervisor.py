"""Supervises SCORE, and starts it anew between two micro-batches when something about it has to change.

What may change: the model, because another one was promoted; how carefully images are decoded, because a batch keeps
losing its worker. A start of the query costs about a second and loses nothing.
"""

import logging
import time
from collections import Counter
from dataclasses import replace

from pyspark.sql import SparkSession
from pyspark.sql.streaming import StreamingQuery

from schemas.errors import BrokerError, ModelLoadError
from streaming.account.checkpoints import last_committed
from streaming.account.losses import check_losses, find_losses
from streaming.kafka.topicchecks import check_outcome_sizes
from streaming.kafka.topicids import check_topic_ids
from streaming.metrics import StreamMetrics
from streaming.run.models import ChampionWatch, ServedModel, serve_model, warn_of_rendering
from streaming.run.supervisor import FailureKind, QueryFailure, QuerySupervisor
from streaming.score.progress import ProgressListener
from streaming.score.published import find_published
from streaming.score.query import ScorePlan, featurizer_of, start_score
from streaming.settings import StreamSettings

log = logging.getLogger(__name__)

_KEEP_PAYLOADS_S = 600.0
"""Where one image had no features the next may have none: each would cost its batch a second try."""


class ScoreSupervisor:
    """Supervises the SCORE query of a stream.

    Parameters
    ----------
    spark : SparkSession
        With the connectors' jars.
    served : ServedModel
        The model to begin with.
    settings : StreamSettings
        All settings.
    metrics : StreamMetrics
        Where a change of model shows.
    listener : ProgressListener
        Hears of the query's micro-batches.
    watch : ChampionWatch, optional
        Where another model may be promoted; the first one stays when absent.
    skip_lost : bool
        Begin behind records that are gone.
    available_now : bool
        Score what is there, then end.
    """

    def __init__(
        self,
        spark: SparkSession,
        served: ServedModel,
        settings: StreamSettings,
        metrics: StreamMetrics,
        listener: ProgressListener,
        *,
        watch: ChampionWatch | None = None,
        skip_lost: bool = False,
        available_now: bool = False,
    ) -> None:
        self._spark = spark
        self._served = served
        self._settings = settings
        self._metrics = metrics
        self._listener = listener
        self._watch = watch
        self._available_now = available_now
        self._checkpoint = settings.checkpoints_folder / "score"
        self._plan = ScorePlan(settings.score.max_images_per_batch, skip_lost=skip_lost)
        self._lost_workers: Counter[int] = Counter()
        self._committed_at_start = -1
        self._keep_payloads_until = 0.0
        self._supervisor = QuerySupervisor(spark, "score", self._start_query, settings.retry, self._on_failure)

    def start(self) -> None:
        """Start the query."""
        self._supervisor.start()

    def check(self) -> bool:
        """Start the query anew where that is called for; return False once it has done what there was.

        Raises
        ------
        JobError
            It keeps failing, or images are gone that it had not read.
        """
        goes_on = self._supervisor.check()
        if not goes_on:
            _withdraw(self._served)
            return False
        before = self._served
        if self._needs_new_start():
            self._supervisor.restart()
        if self._served is not before:
            _withdraw(before)  # the query that used it has ended
        return True

    def stop(self) -> None:
        """Finish the running micro-batch and end the query."""
        try:
            self._supervisor.stop()
        finally:
            _withdraw(self._served)

    def _start_query(self) -> StreamingQuery:
        self._committed_at_start = last_committed(self._checkpoint)
        ids = check_topic_ids(self._settings)
        plan = replace(self._plan, published=find_published(self._settings, ids), topic_ids=ids.topics)
        served = self._served
        query = start_score(
            self._spark, served.pipeline, served.card, self._settings, plan, available_now=self._available_now
        )
        self._listener.note_start(query, served.card)
        return query

    def _on_failure(self, failure: QueryFailure) -> None:
        if failure.kind is FailureKind.LOSS:
            losses = find_losses(self._settings)
            check_losses(losses, self._settings.kafka, accepted=False)
            self._plan = replace(self._plan, skip_lost=bool(losses))
        if failure.kind is FailureKind.FEATURES:
            log.warning("an image has no features: its batch is done again with each image's bytes at hand")
            self._plan = replace(self._plan, keep_payloads=True)
            self._keep_payloads_until = time.monotonic() + _KEEP_PAYLOADS_S
        if failure.kind is FailureKind.WORKER:
            batch = last_committed(self._checkpoint) + 1
            self._lost_workers[batch] += 1
            if self._lost_workers[batch] >= self._settings.score.decode_tries:
                log.warning("batch %s keeps losing its worker: each image is decoded by itself", batch)
                self._plan = replace(self._plan, isolated_tries=self._settings.score.decode_tries)

    def _needs_new_start(self) -> bool:
        """Change the plan where that is called for; return whether it was."""
        before = (self._plan, self._served)
        if last_committed(self._checkpoint) > self._committed_at_start and self._plan != self._usual_plan():
            # That was for one batch.
            self._plan = self._usual_plan()
            self._lost_workers.clear()
        self._follow_promotion()
        return before != (self._plan, self._served)

    def _usual_plan(self) -> ScorePlan:
        keep = self._plan.keep_payloads and time.monotonic() < self._keep_payloads_until
        return replace(self._plan, isolated_tries=0, skip_lost=False, keep_payloads=keep)

    def _check_sizes(self, served: ServedModel) -> None:
        n_features = featurizer_of(served.pipeline).network.n_features
        try:
            check_outcome_sizes(self._settings.kafka, served.card, n_features)
        except BrokerError as exc:
            raise ModelLoadError(str(exc)) from exc

    def _follow_promotion(self) -> None:
        if self._watch is None:
            return
        folder = None
        try:
            folder = self._watch.find_new()
            if folder is not None:
                served = serve_model(folder)
                self._check_sizes(served)
                self._served = served
                self._watch.accept(folder)
                self._metrics.use_model(self._served.card)
                log.info("serving model %s from now on", self._served.card.version)
                warn_of_rendering(self._served.card)
        except ModelLoadError as exc:
            if folder is not None:
                self._watch.refuse(folder)
            self._metrics.model_reloads.labels("failed").inc()
            log.error("the promoted model cannot be served; %s stays: %s", self._served.card.version, exc)
        self._metrics.model_waiting.set(int(self._watch.waiting))


def _withdraw(served: ServedModel) -> None:
    featurizer_of(served.pipeline).withdraw()
