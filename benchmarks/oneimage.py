"""What a micro-batch of a single image takes, and each of its parts, as the query itself tells it.

Most of an idle stream's latency is this, and little of it is the image: Spark plans and commits each micro-batch anew.
"""

import statistics
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyspark.sql import SparkSession
from pyspark.sql.streaming import StreamingQueryListener

from streaming.metrics import parse_offsets
from xray.console import err, new_table

PARTS = {
    "triggerExecution": "whole",
    "queryPlanning": "planning",
    "addBatch": "job: fetch, Python, classifier, sending",
    "walCommit": "log before the batch",
    "commitOffsets": "log behind it",
}
"""What is measured, by Spark's name in ``durationMs``."""

_PROGRESS_TIMEOUT_S = 60


@dataclass(frozen=True)
class Part:
    """One part of a micro-batch's time, in milliseconds."""

    median: float
    p95: float


@dataclass(frozen=True)
class Batch:
    """A micro-batch that had images.

    Parameters
    ----------
    images, records : int
        Images of devices; and all that it read, canaries too.
    parts : Mapping of str to int
        Spark's ``durationMs``.
    """

    images: int
    records: int
    parts: Mapping[str, int]

    @property
    def is_of_one_image(self) -> bool:
        """Whether a single image was all that it read."""
        return self.images == self.records == 1


class Batches(StreamingQueryListener):
    """Keeps the micro-batches that had images.

    Parameters
    ----------
    topic : str
        The topic of the images.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._found: list[Batch] = []
        self._changed = threading.Condition()

    def onQueryStarted(self, event: Any) -> None:
        """Nothing to keep."""

    def onQueryIdle(self, event: Any) -> None:
        """Nothing to keep."""

    def onQueryTerminated(self, event: Any) -> None:
        """Nothing to keep."""

    def onQueryProgress(self, event: Any) -> None:
        """Keep a micro-batch, where it had images."""
        progress = event.progress
        source = progress.sources[0]
        images = self._count(source.endOffset) - self._count(source.startOffset)
        if not images:
            return
        with self._changed:
            self._found.append(Batch(images, progress.numInputRows, dict(progress.durationMs)))
            self._changed.notify_all()

    def _count(self, offsets: str | None) -> int:
        return sum(parse_offsets(offsets).get(self._topic, {}).values())

    def take(self, images: int) -> list[Batch]:
        """Wait until so many images were in micro-batches since the last call, and give these.

        Raises
        ------
        RuntimeError
            They were not in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._images() >= images, _PROGRESS_TIMEOUT_S):
                msg = f"the query told of {self._images()} images, wanted {images}"
                raise RuntimeError(msg)
            found, self._found = self._found, []
            return found

    def _images(self) -> int:
        return sum(batch.images for batch in self._found)


@contextmanager
def listening(spark: SparkSession, topic: str) -> Iterator[Batches]:
    """Keep the micro-batches of a session's queries while the body runs."""
    batches = Batches(topic)
    spark.streams.addListener(batches)
    try:
        yield batches
    finally:
        spark.streams.removeListener(batches)


def measure_one_image(load: Callable[[int], list[float]], batches: Batches, count: int, warm_up: int) -> "OneImage":
    """Publish single images, some to warm the stream up and then those that count.

    Parameters
    ----------
    load : callable
        Publishes so many images, each when the one before has long been answered; gives their latencies in seconds.
    batches : Batches
        Hears of the query's micro-batches.
    count, warm_up : int
        Images that count, and images before them.
    """
    load(warm_up)
    batches.take(warm_up)
    return OneImage.of(load(count), batches.take(count))


@dataclass(frozen=True)
class OneImage:
    """What single images took.

    Parameters
    ----------
    images, batches : int
        Images published, and micro-batches that had one of them and nothing else: a canary may come along.
    parts_ms : Mapping of str to Part
        Of these micro-batches, by Spark's names.
    latency_seconds : Mapping of str to float
        Median and 95th percentile from publishing to prediction, of all images.
    """

    images: int
    batches: int
    parts_ms: Mapping[str, Part]
    latency_seconds: Mapping[str, float]

    @classmethod
    def of(cls, latencies: list[float], batches: list[Batch]) -> "OneImage":
        """Reduce what was measured.

        Raises
        ------
        RuntimeError
            No micro-batch had a single image alone.
        """
        alone = [batch.parts for batch in batches if batch.is_of_one_image]
        if not alone:
            msg = f"none of {len(batches)} micro-batches had one image alone"
            raise RuntimeError(msg)
        parts = {}
        for name in PARTS:
            values = [each.get(name, 0) for each in alone]  # Spark leaves out what a micro-batch did not do
            parts[name] = Part(statistics.median(values), float(np.percentile(values, 95)))
        p50, p95 = (float(value) for value in np.percentile(latencies, [50, 95]))
        return cls(len(latencies), len(alone), parts, {"p50": p50, "p95": p95})


def show_one_image(found: OneImage) -> None:
    """Print what was found as a table."""
    table = new_table(f"one image, ms, {found.batches} micro-batches", "#median", "#p95")
    for name, part in found.parts_ms.items():
        table.add_row(f"{PARTS[name]} ({name})", f"{part.median:.0f}", f"{part.p95:.0f}")
    p50, p95 = (1000 * value for value in found.latency_seconds.values())
    table.add_row(f"publishing to prediction, {found.images} images", f"{p50:.0f}", f"{p95:.0f}")
    err.print(table)
