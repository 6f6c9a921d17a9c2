"""What is measured: the plain consumer's processes, and what a Spark session runs."""

import multiprocessing as mp
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import SparkSession

from benchmarks.engines import EngineChoice
from benchmarks.latency import stream_beside
from benchmarks.peers.consumer import Classifier, ConsumerPlan, consume
from benchmarks.tutorial import start_tutorial
from streaming.settings import StreamSettings

_END_TIMEOUT_S = 60


@dataclass(frozen=True)
class ConsumerGroup:
    """The plain consumer, a process a core.

    Parameters
    ----------
    engine : EngineChoice
        Of every process.
    classifier : Classifier
        The one that SCORE serves.
    """

    engine: EngineChoice
    classifier: Classifier

    in_batches = False

    @contextmanager
    def running(self, settings: StreamSettings) -> Iterator[tuple[int, ...]]:
        """See `benchmarks.peers.measure.Candidate`.

        Raises
        ------
        RuntimeError
            A process has failed.
        """
        kafka = settings.kafka
        plan = ConsumerPlan(
            kafka.to_librdkafka(), kafka.images_topic, kafka.predictions_topic, self.engine, self.classifier
        )
        context = mp.get_context("spawn")
        ended = context.Event()
        processes = [context.Process(target=consume, args=(plan, ended)) for _ in range(os.cpu_count() or 1)]
        for process in processes:
            process.start()
        try:
            yield tuple(process.pid or 0 for process in processes)
        finally:
            ended.set()
            for process in processes:
                process.join(_END_TIMEOUT_S)
                if process.is_alive():
                    process.kill()
                    process.join()
        if failed := [process.exitcode for process in processes if process.exitcode]:
            msg = f"consumers ended with {failed}; their own words are above"
            raise RuntimeError(msg)


@contextmanager
def run_score(
    spark: SparkSession, settings: StreamSettings, *, model: Path, images: int, archive: bool
) -> Iterator[None]:
    """Run the whole stream, canary and account included, in micro-batches of so many; for `benchmarks.peers.host`."""
    score = settings.score.model_copy(update={"max_images_per_batch": images})
    with stream_beside(spark, settings.model_copy(update={"score": score}), model, archive=archive):
        yield


@contextmanager
def run_tutorial(spark: SparkSession, settings: StreamSettings, *, model: Path, images: int) -> Iterator[None]:
    """Run the tutorial way on a Keras file; for `benchmarks.peers.host`."""
    query = start_tutorial(spark, settings, model, images)
    try:
        yield
    finally:
        query.stop()
