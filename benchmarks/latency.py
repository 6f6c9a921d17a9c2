"""Seconds from publishing an image to reading its prediction, as a consumer sees them.

The whole stream runs, ARCHIVE and canary included. Measured at idle (single images, a second apart), at 25 % and 75 %
of the throughput that this process reached before, and for the first image after three quiet minutes; beside them the
baseline, one image through decoding and network in a bare process.

``--one-image N`` measures something else instead: N images, each in a micro-batch of its own, with the parts of its
time from the query's own progress.

Run it: ``python -m benchmarks.latency`` (``--help``). Nothing else should run on the machine.
"""

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import numpy as np
import typer
from pyspark.sql import SparkSession

from benchmarks.oneimage import OneImage, listening, measure_one_image, show_one_image
from benchmarks.stage import Stage, open_stage
from benchmarks.throughput import WEIGHTS
from schemas.envelope import CE_ID, CE_SOURCE
from sparkdl.engine.openvino import OpenVinoEngine
from sparkdl.image.decode import decode_image
from sparkdl.image.row import array_from_row
from sparkdl.network.base import Network
from streaming.devices.publish import ImagePublisher
from streaming.results.watch import watch_predictions
from streaming.run.service import run_stream
from streaming.score.query import featurizer_of
from streaming.settings import KafkaSettings, StreamSettings
from xray.console import err, new_table, step

_READY_TIMEOUT_S = 180
_WARM_UP_IMAGES = 30
"""Before those that count: a stream runs for weeks, not for its first seconds."""


@dataclass
class Result:
    """Latency of one situation, in seconds."""

    situation: str
    images: int
    p50: float
    p95: float
    p99: float


def main(
    network: Annotated[str, typer.Option(help="Network of the model.")] = "EfficientNetLite0",
    seconds: Annotated[float, typer.Option(min=1, help="Length of each load.")] = 40,
    burst: Annotated[int, typer.Option(min=10, help="Images of the burst that measures the throughput.")] = 400,
    quiet_s: Annotated[float, typer.Option(min=0, help="Length of the quiet time.")] = 185,
    quiet_rounds: Annotated[int, typer.Option(min=0, help="How often to wait for it.")] = 2,
    one_image: Annotated[int, typer.Option(min=0, help="Only this: so many single images, and the parts of each.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Measure the latency of each situation in one run of the stream."""
    with open_stage() as stage:
        model, _, folder = stage.train(network, WEIGHTS.get(network, "random"), "fp32")
        if one_image:
            report_one_image(measure_alone(stage, folder, one_image), as_json=json_)
            return
        bare = measure_bare(featurizer_of(model).network, stage.images)
        settings = stage.fresh_settings()
        with streaming(stage.spark, settings, folder):
            probe = Probe(settings, stage.images)
            throughput = probe.burst(burst)
            err.print(f"throughput of a burst of {burst}: {throughput:.1f} images a second")
            results = [bare, summarise("idle, one a second", probe.load(1.0, seconds))]
            for share in (0.25, 0.75):
                rate = share * throughput
                results.append(summarise(f"{share:.0%}, {rate:.0f} a second", probe.load(rate, seconds)))
            first = []
            for _ in range(quiet_rounds):
                with step(f"{quiet_s:.0f} quiet seconds"):
                    time.sleep(quiet_s)
                first += probe.load(1.0, 1.0)
            if first:
                results.append(summarise(f"first after {quiet_s:.0f} quiet s", first))
    if json_:
        document = {"throughput_img_s": throughput, "latency_seconds": [asdict(result) for result in results]}
        sys.stdout.write(json.dumps(document) + "\n")
    show(results)


def measure_alone(stage: Stage, model: Path, count: int) -> OneImage:
    """Let the whole stream score single images, a second apart."""
    settings = stage.fresh_settings()
    with (
        streaming(stage.spark, settings, model),
        listening(stage.spark, settings.kafka.images_topic) as batches,
        step(f"{_WARM_UP_IMAGES + count} single images"),
    ):
        probe = Probe(settings, stage.images)
        return measure_one_image(lambda images: probe.load(1.0, images), batches, count, _WARM_UP_IMAGES)


def report_one_image(found: OneImage, *, as_json: bool) -> None:
    """Print what single images took."""
    if as_json:
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
    show_one_image(found)


Watch = Callable[[KafkaSettings], Iterator[str | None]]


def watch_ids(kafka: KafkaSettings) -> Iterator[str | None]:
    """Read the stream's predictions: the id of each one's image."""
    for prediction in watch_predictions(kafka, timeout_s=60):
        yield None if prediction is None else prediction.event["image"]["id"]


class Probe:
    """Publishes images and times their predictions.

    Parameters
    ----------
    settings : StreamSettings
        Broker and topics.
    images : tuple of bytes
        Published in turn.
    watch : callable
        Gives None once it has begun to read the predictions, then the id of each one's image, and None now and then.
    """

    def __init__(self, settings: StreamSettings, images: tuple[bytes, ...], watch: Watch = watch_ids) -> None:
        self._settings = settings
        self._watch = watch
        self._images = images
        self._publisher = ImagePublisher(settings.kafka, self._refuse_failure)
        self._sent: dict[str, float] = {}

    def load(self, rate: float, seconds: float) -> list[float]:
        """Publish at a rate for some seconds; give every latency."""
        return self._publish(max(1, round(rate * seconds)), rate)

    def _publish(self, count: int, rate: float) -> list[float]:
        watched = self._watch(self._settings.kafka)
        next(watched)
        sender = threading.Thread(target=self._send, args=(count, rate))
        sender.start()
        latencies: list[float] = []
        for name in watched:
            if name is not None:
                latencies.append(time.monotonic() - self._sent.pop(name))
            if len(latencies) == count:
                break
        sender.join()
        if len(latencies) < count:
            msg = f"{count - len(latencies)} of {count} predictions did not come in time"
            raise RuntimeError(msg)
        return latencies

    def burst(self, count: int) -> float:
        """Publish twice as many at once, the first time to warm up; give images per second of the second."""
        self._publish(count, math.inf)
        started = time.monotonic()
        self._publish(count, math.inf)
        return count / (time.monotonic() - started)

    def _send(self, count: int, rate: float) -> None:
        started = time.monotonic()
        for i in range(count):
            while (early_s := started + i / rate - time.monotonic()) > 0:
                self._publisher.poll(early_s)
            name = str(uuid4())
            self._sent[name] = time.monotonic()
            headers = [(CE_ID, name.encode()), (CE_SOURCE, b"/benchmark")]
            self._publisher.publish(self._images[i % len(self._images)], headers, key=name.encode(), token=name)
        self._publisher.flush()

    @staticmethod
    def _refuse_failure(token: object, error: str | None) -> None:
        if error is not None:
            err.print(f"not published: {token}: {error}")


@contextmanager
def streaming(spark: SparkSession, settings: StreamSettings, model: Path, *, archive: bool = True) -> Iterator[None]:
    """Run the whole stream while the body runs, which begins once images are answered."""
    ready = threading.Event()
    with stream_beside(spark, settings, model, archive=archive, on_ready=ready.set):
        with step("starting the stream"):
            if not ready.wait(_READY_TIMEOUT_S):
                msg = "the stream did not become ready"
                raise RuntimeError(msg)
        yield


@contextmanager
def stream_beside(
    spark: SparkSession,
    settings: StreamSettings,
    model: Path,
    *,
    archive: bool,
    on_ready: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Start the whole stream, with the archive beside it or without, and end it behind the body."""
    ended = threading.Event()
    thread = threading.Thread(
        target=run_stream,
        args=(settings,),
        kwargs={
            "model_folder": model,
            "spark": spark,
            "archive": archive,
            "ended": ended,
            "on_ready": lambda _: on_ready(),
        },
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def measure_bare(network: Network, images: tuple[bytes, ...]) -> Result:
    """Decode and infer one image at a time in this process, one thread."""
    engine = OpenVinoEngine(network, n_threads=1)
    latencies = []
    for payload in images * 4:
        started = time.perf_counter()
        engine.infer(array_from_row(decode_image(payload, origin="bare", size=engine.network.input_size).image))
        latencies.append(time.perf_counter() - started)
    return summarise("bare decode and network", latencies)


def summarise(situation: str, latencies: list[float]) -> Result:
    """Reduce latencies to three quantiles."""
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    return Result(situation, len(latencies), float(p50), float(p95), float(p99))


def show(results: list[Result]) -> None:
    """Print the results as a table."""
    table = new_table("situation", "#images", "#p50 s", "#p95 s", "#p99 s")
    for r in results:
        table.add_row(r.situation, str(r.images), *[f"{value:.3f}" for value in (r.p50, r.p95, r.p99)])
    err.print(table)


if __name__ == "__main__":
    typer.run(main)
