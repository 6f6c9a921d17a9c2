"""Has Spark's Python workers load the network while the first micro-batch is being planned."""

import logging
import threading
from collections.abc import Iterator

import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from sparkdl.transformers.sentnetwork import SentNetwork

log = logging.getLogger(__name__)


class WarmUp:
    """A Spark job beside the start of SCORE: a worker for each core, each of which loads the network.

    What goes wrong here goes wrong in SCORE too, which says so.

    Parameters
    ----------
    spark : SparkSession
        Where SCORE runs.
    sent : SentNetwork
        The network that it runs.
    """

    def __init__(self, spark: SparkSession, sent: SentNetwork) -> None:
        self._spark = spark
        self._sent = sent
        self._thread = threading.Thread(target=self._run, name="warm-up", daemon=True)

    def start(self) -> None:
        """Start it."""
        self._thread.start()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def _run(self) -> None:
        try:
            warm_workers(self._spark, self._sent)
        except (PySparkException, Py4JError) as exc:
            log.info("the workers could not be warmed up: %s", exc)


def warm_workers(spark: SparkSession, sent: SentNetwork) -> None:
    """Have as many workers as there are cores load the network; Spark keeps them for the tasks that follow."""
    cores = spark.sparkContext.defaultParallelism

    def load(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        sent.open()
        yield from batches

    rows = spark.range(0, cores, numPartitions=cores).mapInArrow(load, "id bigint")
    rows.write.format("noop").mode("overwrite").save()
