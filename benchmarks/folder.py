"""Featurizing a folder: images per second, and whether memory stays flat.

Generates small distinct PNG files in a temporary folder, featurizes them, and samples the resident memory (RSS) of this
process, the JVM below it and their Python workers from /proc. The slope over the second half of the run is what a
longer run would go on growing by; pages that processes share are counted in each.

Run it: ``python -m benchmarks.folder`` (``--help``). Nothing else should run on the machine.
"""

import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from pyspark.sql import SparkSession

from benchmarks.processes import read_processes, with_children
from sparkdl.folders import featurize_folder
from sparkdl.spark.session import start_session
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from streaming.settings import load_settings
from xray.console import err, new_progress, step

_SIDE_PX = 64
_PER_FOLDER = 1000
_SAMPLE_S = 1.0
_MB = 1 << 20
_KINDS = ("driver", "jvm", "workers")


@dataclass
class MemorySamples:
    """RSS in MB of this process, the JVM and the Python workers, once a second."""

    seconds: list[float] = field(default_factory=list)
    megabytes: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in _KINDS})
    ended: threading.Event = field(default_factory=threading.Event)

    def sample(self) -> None:
        """Sample until ``ended``."""
        started = time.perf_counter()
        while not self.ended.wait(_SAMPLE_S):
            now = rss_by_kind(os.getpid())
            self.seconds.append(time.perf_counter() - started)
            for kind in _KINDS:
                self.megabytes[kind].append(now[kind])

    def slopes(self) -> dict[str, float]:
        """Fit a line through the second half of the samples; MB per minute."""
        half = len(self.seconds) // 2
        minutes = np.array(self.seconds[half:]) / 60
        lines = {kind: np.polyfit(minutes, values[half:], 1) for kind, values in self.megabytes.items()}
        return {kind: round(float(line[0]), 1) for kind, line in lines.items()}


def rss_by_kind(root: int) -> dict[str, float]:
    """Add up the RSS of a process and all below it.

    Parameters
    ----------
    root : int
        The driver's process id.

    Returns
    -------
    dict of str to float
        MB of the ``driver``, the ``jvm`` and the ``workers``.
    """
    total = dict.fromkeys(_KINDS, 0.0)
    for process in with_children([root], read_processes()):
        kind = "driver" if process.pid == root else "jvm" if process.is_java else "workers"
        total[kind] += process.rss_bytes / _MB
    return total


def live_heap_mb(spark: SparkSession) -> float:
    """Collect all garbage, and return what is left: RSS alone cannot tell a leak from a heap not yet full."""
    spark._jvm.System.gc()
    runtime = spark._jvm.Runtime.getRuntime()
    return round(float(runtime.totalMemory() - runtime.freeMemory()) / _MB, 1)


def write_images(folder: Path, count: int) -> None:
    """Write distinct gray PNG files, a thousand to a sub-folder."""
    for index in range(count):
        path = folder / f"{index // _PER_FOLDER:03}" / f"{index:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (_SIDE_PX, _SIDE_PX + 16), np.uint8)
        Image.fromarray(pixels).save(path, compress_level=1)


def main(
    images: Annotated[int, typer.Option(min=100, help="How many.")] = 5000,
    images_per_batch: Annotated[int, typer.Option(min=1, help="Files in a batch.")] = 1000,
) -> None:
    """Measure and print one JSON document."""
    settings = load_settings()
    with TemporaryDirectory() as scratch:
        home = Path(scratch)
        with step(f"writing {images} images"):
            write_images(home / "images", images)
        spark = start_session(
            app_name="benchmark-folder",
            log_folder=home / "logs",
            master=settings.spark.master,
            driver_memory=settings.spark.driver_memory,
            conf=settings.spark.to_conf(),
        )
        memory = MemorySamples()
        sampler = threading.Thread(target=memory.sample, daemon=True)
        try:
            featurizer = DeepImageFeaturizer(
                inputCol="image", outputCol="features", modelName="EfficientNetLite0", weights="random"
            )
            err.print(f"network {featurizer.network.name}")
            live_heap: dict[int, float] = {}

            def report(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)
                if done % images_per_batch == 0 and done not in live_heap and done >= total // 2:
                    live_heap[done] = live_heap_mb(spark)

            sampler.start()
            with new_progress() as progress:
                task = progress.add_task("featurizing", total=images)
                result = featurize_folder(
                    spark,
                    home / "images",
                    featurizer,
                    home / "out",
                    images_per_batch=images_per_batch,
                    progress=report,
                )
        finally:
            memory.ended.set()
            sampler.join()
            spark.stop()
    figures = {
        "images": result.n_images,
        "failed": result.n_failed,
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.n_images / result.seconds, 1),
        "rss_mb_at_half": {kind: round(values[len(values) // 2]) for kind, values in memory.megabytes.items()},
        "rss_mb_at_end": {kind: round(values[-1]) for kind, values in memory.megabytes.items()},
        "jvm_live_heap_mb_by_images_done": live_heap,
        "rss_slope_second_half_mb_per_minute": memory.slopes(),
    }
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
