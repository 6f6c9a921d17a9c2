"""The bare limit: decoding and network in as many processes as there are cores, one thread each, and nothing else."""

import multiprocessing as mp
import os
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.engines import EngineChoice, Infer
from benchmarks.processes import pss_bytes

_TIMEOUT_S = 180


@dataclass(frozen=True)
class BareRun:
    """What all processes did and used together.

    Parameters
    ----------
    img_s : float
        Images a second.
    cpu_s_per_1000 : float
        Processor seconds for each thousand images.
    pss_bytes : int
        Memory at the end.
    """

    img_s: float
    cpu_s_per_1000: float
    pss_bytes: int


def run_bare(choice: EngineChoice, images: tuple[bytes, ...], seconds: float) -> BareRun:
    """Decode and infer for some seconds.

    Raises
    ------
    RuntimeError
        A process has failed; its own words are on standard error.
    """
    context = mp.get_context("spawn")
    cores = os.cpu_count() or 1
    together, answers = context.Barrier(cores), context.SimpleQueue()
    processes = [context.Process(target=_work, args=(choice, images, seconds, together, answers)) for _ in range(cores)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        msg = f"the bare run's processes ended with {[process.exitcode for process in processes]}"
        raise RuntimeError(msg)
    rates, used, memory = zip(*(answers.get() for _ in processes), strict=True)
    return BareRun(sum(rates), 1000 * sum(used) / (sum(rates) * seconds), sum(memory))


def _work(choice: EngineChoice, images: tuple[bytes, ...], seconds: float, together: Any, answers: Any) -> None:
    infer = choice.start()
    for start in range(3):
        _score(choice, infer, images, start)
    together.wait(_TIMEOUT_S)
    started, used, count = time.perf_counter(), time.process_time(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        _score(choice, infer, images, count)
        count += choice.batch
    used = time.process_time() - used
    together.wait(_TIMEOUT_S)  # all are there still: what they share is shared
    memory = pss_bytes([os.getpid()])
    together.wait(_TIMEOUT_S)
    answers.put((count / elapsed, used * seconds / elapsed, memory))


def _score(choice: EngineChoice, infer: Infer, images: tuple[bytes, ...], start: int) -> None:
    infer([choice.decode(images[(start + place) % len(images)]) for place in range(choice.batch)])
