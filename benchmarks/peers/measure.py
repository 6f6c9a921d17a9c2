"""One turn of a candidate: how fast it empties a topic, what it uses for that, and how long single images take."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from typing import Protocol

from confluent_kafka import Consumer

from benchmarks.bare import BareRun
from benchmarks.latency import Probe
from benchmarks.processes import cpu_seconds, pss_bytes
from benchmarks.stage import Stage, publish_images
from streaming.kafka.reader import assign_all
from streaming.settings import KafkaSettings, StreamSettings

IDLE_RATE = 1.0
"""Images a second that leave every candidate idle between two; the tutorial way alone has more to do."""

_CHANCE = 0.1
_SLACK = 8
"""How many images a micro-batch may lack: Spark rounds down for each partition, and the canary takes a place."""
_PAUSE_S = 0.02
_SUSTAINED = 0.9
"""Of what a candidate can do: at more than that it never empties its queue, and waiting has no end."""
_ANSWER_TIMEOUT_S = 180
_POLL_S = 0.2


class Candidate(Protocol):
    """Something that answers images of a topic."""

    in_batches: bool
    """Whether results come a micro-batch at a time, of so many images as the plan says."""

    def running(self, settings: StreamSettings) -> AbstractContextManager[tuple[int, ...]]:
        """Start it, and end it behind the body; give the ids of its processes, those below them left out."""


@dataclass(frozen=True)
class Plan:
    """How much is measured in a turn.

    Parameters
    ----------
    images : int
        Whose throughput is measured; as many are answered before them, to warm up.
    load_s : float
        Length of each load, in seconds.
    rates : tuple of float
        Images a second of the loads, after `IDLE_RATE`.
    """

    images: int
    load_s: float
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Turn:
    """What one turn gave.

    Parameters
    ----------
    img_s : float
        Images a second while more are waiting.
    cpu_s_per_1000 : float
        Processor seconds for each thousand of them.
    pss_bytes : int
        Memory then.
    latencies : tuple
        For `IDLE_RATE` and each rate of the plan the seconds from publishing to reading the result, None where the
        candidate cannot keep up.
    """

    img_s: float
    cpu_s_per_1000: float
    pss_bytes: int
    latencies: tuple[list[float] | None, ...] = ()


def measure_turn(candidate: Candidate, stage: Stage, plan: Plan) -> Turn:
    """Publish, start a candidate, measure how it catches up and then how long images take, and end it."""
    settings = stage.fresh_settings()
    results = watch_keys(settings.kafka, poll_s=_PAUSE_S)
    next(results)
    # Before it starts, so that publishing takes nothing from it, and micro-batches are full from the first one on.
    publish_images(settings, stage.images, count_published(plan.images))
    with candidate.running(settings) as pids:
        with closing(results):
            caught_up = measure_rate(results, plan.images, lambda: cpu_seconds(pids), in_batches=candidate.in_batches)
        memory = pss_bytes(pids)
        probe = Probe(settings, stage.images, watch_keys)
        latencies = tuple(
            probe.load(rate, plan.load_s) if rate == IDLE_RATE or rate < _SUSTAINED * caught_up.img_s else None
            for rate in (IDLE_RATE, *plan.rates)
        )
    return Turn(caught_up.img_s, caught_up.cpu_s_per_1000, memory, latencies)


def turn_of(run: BareRun) -> Turn:
    """Take a bare run as a turn: nothing is published to it, so nothing waits."""
    return Turn(run.img_s, run.cpu_s_per_1000, run.pss_bytes)


@dataclass(frozen=True)
class Rate:
    """Images a second, and processor seconds for each thousand."""

    img_s: float
    cpu_s_per_1000: float


@dataclass
class _Mark:
    """Where a candidate stood at a result, and how long the next one took to come."""

    done: int
    time_s: float
    used_s: float
    pause_s: float = 0.0


def count_published(images: int) -> int:
    """Give how many images `measure_rate` wants: two micro-batches, and some behind them."""
    return 2 * images + _slack(images)


def _slack(images: int) -> int:
    return min(_SLACK, images // 4)


def measure_rate(results: Iterator[str | None], images: int, usage: Callable[[], float], *, in_batches: bool) -> Rate:
    """Read the results of `count_published` images, and measure between those of the first half and of the second.

    Parameters
    ----------
    results : iterator of str or None
        Of `watch_keys`: None where none came for a moment.
    images : int
        Of each half.
    usage : callable
        Gives the candidate's processor seconds so far.
    in_batches : bool
        Whether they come in micro-batches of ``images``, or a few less: then the second one is measured, from end to
        end. An end is before the longest pause. Otherwise the last tenth is left out, when one process may have done
        its partitions while another has not, which is chance.

    Raises
    ------
    RuntimeError
        Some do not come.
    """
    slack, total = _slack(images) if in_batches else 0, count_published(images)
    last = 2 * images if in_batches else 2 * images - round(_CHANCE * images)
    spans = (range(images - slack, images + 1), range(last - 2 * slack, last + 1))
    marks: list[_Mark] = []
    done, came_s = 0, time.perf_counter()
    for key in results:
        now = time.perf_counter()
        is_marked = bool(marks) and marks[-1].done == done
        if key is None:
            if not is_marked and any(done in span for span in spans):
                marks.append(_Mark(done, came_s, usage()))
            continue
        if is_marked:
            marks[-1].pause_s = now - came_s
        done, came_s = done + 1, now
        if any(done == span[-1] for span in spans):
            marks.append(_Mark(done, came_s, usage()))
        if done == total:
            first, final = (max((m for m in marks if m.done in span), key=lambda m: m.pause_s) for span in spans)
            count = final.done - first.done
            return Rate(count / (final.time_s - first.time_s), 1000 * (final.used_s - first.used_s) / count)
    msg = f"{total - done} of {total} results did not come in time"
    raise RuntimeError(msg)


def watch_keys(kafka: KafkaSettings, *, poll_s: float = _POLL_S) -> Generator[str | None, None, None]:
    """Read the keys of results, whoever made them: every candidate gives a result its image's key."""
    options = {"group.id": "xray-peers", "enable.auto.commit": False, "log_level": 0, "fetch.wait.max.ms": 10}
    consumer = Consumer(kafka.to_librdkafka() | options)
    try:
        assign_all(consumer, kafka.predictions_topic, at="end")
        yield None
        last = time.monotonic()
        while time.monotonic() - last < _ANSWER_TIMEOUT_S:
            message = consumer.poll(poll_s)
            if message is None or message.error() is not None:
                yield None
                continue
            last = time.monotonic()
            yield message.key().decode()
    finally:
        consumer.close()
