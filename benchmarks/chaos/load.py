"""Long loads: a soak under steady traffic with a fault each minute, and a backlog of images of all sizes."""

import hashlib
import io
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import Image

from benchmarks.chaos.faults import Fault, Round, run_fault
from benchmarks.chaos.report import Report, measure_growth
from benchmarks.chaos.scene import Scene
from benchmarks.chaos.stream import Memory
from benchmarks.chaos.traffic import SOURCE, Message, radiographs, vary
from schemas.errors import JobError

_SAMPLE_S = 10.0
_FAULT_S = 60.0
_RECORDS_OF_A_FAULT = 60
_CHUNK_S = 2.0
_BACKLOG_BYTES = 2_500_000_000
_SHARES = ((0.0002, 4400), (0.001, 3200), (0.01, 1000), (0.2, 340))
"""Shares of a backlog, and the side in pixels of their images, each pixel a byte of noise: 19 MB, 10 MB, 1 MB, 116 kB.
The others are radiographs of 10 to 20 kB."""


@contextmanager
def sampling(scene: Scene, every_s: float = _SAMPLE_S) -> Iterator[list[Memory]]:
    """Sample the memory of the scene's stream beside the body."""
    samples: list[Memory] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(every_s):
            stream = scene.stream
            memory = None if stream is None else stream.memory()
            if memory is not None:
                samples.append(memory)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def soak(
    scene: Scene, faults: list[Fault], rng: random.Random, minutes: float, rate: float, say: Callable[[str], None]
) -> Report:
    """Publish at a steady rate, inflict a random fault each minute, drain, and draw up the account.

    Parameters
    ----------
    scene : Scene
        Fresh.
    faults : list of Fault
        To draw from.
    rng : random.Random
        Draws them.
    minutes, rate : float
        How long, and records per second; what a fault publishes comes on top.
    say : callable
        Told what goes on.
    """
    report = Report(seed=0)
    scene.ensure_running()
    ended = threading.Event()
    deadline = time.monotonic() + minutes * 60

    def publish_steadily() -> None:
        while not ended.is_set():
            scene.publish_aside(round(rate * _CHUNK_S), _CHUNK_S)

    thread = threading.Thread(target=publish_steadily)
    with sampling(scene) as samples:
        thread.start()
        try:
            while time.monotonic() < deadline:
                fault = rng.choice(faults)
                begun = time.monotonic()
                say(f"{max(0, deadline - begun) / 60:.0f} minutes left: {fault.name}")
                report.rounds.append(_one_round(scene, fault, rng))
                ended.wait(max(0.0, min(begun + _FAULT_S, deadline) - time.monotonic()))
        finally:
            ended.set()
            thread.join()
    say("draining")
    drained = scene.drain()
    verdict = scene.check(scene.everything.records)
    report.whole.append(verdict)
    report.growth = measure_growth(samples)
    report.figures = {"caught up at the end": float(drained), "records per second": rate}
    return report


def _one_round(scene: Scene, fault: Fault, rng: random.Random) -> Round:
    """Inflict once: in a soak a missed moment is as good as any other."""
    return run_fault(scene, fault, rng, _RECORDS_OF_A_FAULT, attempts=1)


# -- a backlog ---------------------------------------------------------------------------------------------------------


def drain_backlog(scene: Scene, count: int, seed: int, say: Callable[[str], None]) -> Report:
    """Publish a backlog of images of 10 kB to 19 MB, let the stream drain it, and measure its speed and memory.

    Raises
    ------
    JobError
        The disk has too little room: topics, dead letters and tables need twice the backlog.
    """
    free = shutil.disk_usage(scene.home).free
    if free < 2 * _BACKLOG_BYTES:
        msg = f"{scene.home}: {free / 1e9:.1f} GB are free, wanted {2 * _BACKLOG_BYTES / 1e9:.0f} GB"
        raise JobError(msg)
    say(f"publishing {count} images")
    scene.publish_messages(backlog_messages(count, seed))
    say("draining")
    started = time.monotonic()
    with sampling(scene, every_s=2.0) as samples:
        first_s = scene.time_new_prediction(timeout_s=300) or 0.0
        drained = scene.drain(timeout_s=600 + count / 5)
        seconds = time.monotonic() - started
    report = Report(seed=seed, whole=[scene.check(scene.everything.records)], growth=measure_growth(samples))
    report.figures = {
        "caught up": float(drained),
        "images per second": count / max(0.1, seconds - first_s),
        "seconds to the first prediction": first_s,
        "largest JVM MB": max((s.jvm_bytes for s in samples), default=0) / 1e6,
        "largest workers MB": max((s.workers_bytes for s in samples), default=0) / 1e6,
        "stream ended by itself": float(len(scene.deaths)),
    }
    return report


def backlog_messages(count: int, seed: int) -> Iterator[Message]:
    """Give images of mixed sizes, in random order, of at most `_BACKLOG_BYTES` together."""
    rng = random.Random(seed)
    left = _BACKLOG_BYTES
    for i in range(count):
        payload = vary(_draw_payload(rng), f"backlog-{i}")
        if len(payload) > left - (count - i) * 25_000:
            payload = vary(rng.choice(radiographs()[:2]).payload or b"", f"backlog-{i}")
        left -= len(payload)
        name = f"backlog-{i}-{hashlib.sha256(payload).hexdigest()[:8]}"
        headers = [("ce_id", name.encode()), ("ce_source", SOURCE)]
        yield Message(name, "backlog", None, payload, headers)


def _draw_payload(rng: random.Random) -> bytes:
    draw = rng.random()
    for share, side_px in _SHARES:
        if draw < share:
            return _noise_png(side_px)
        draw -= share
    return rng.choice(radiographs()[:2]).payload or b""


@cache
def _noise_png(side_px: int) -> bytes:
    """Encode noise: it does not compress, so a pixel is a byte."""
    pixels = np.random.default_rng(side_px).integers(0, 256, (side_px, side_px), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
