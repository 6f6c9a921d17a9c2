"""What the archive takes from the stream beside it: images per second and latency with and without, in one run.

The whole stream runs each time, with canary and account; the runs take turns, since a machine's speed moves while one
looks, and the ratio is taken within each turn. Beside them the bare limit of `benchmarks.throughput`. What the
archive's process itself uses is read from the system: processor seconds for each thousand images.

Run it: ``python -m benchmarks.archiving`` (``--help``). Nothing else should run on the machine.
"""

import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from deltalake import DeltaTable

from benchmarks.latency import Probe, streaming, summarise
from benchmarks.processes import read_processes
from benchmarks.stage import Stage, open_stage
from benchmarks.throughput import WEIGHTS, measure_bare
from streaming.score.query import featurizer_of
from streaming.settings import StreamSettings
from xray.console import err, new_table, print_json, step
from xray.tabular import print_table

_TIMEOUT_S = 180
_CHILD = "streaming.archive"


@dataclass
class Turn:
    """One run of the stream.

    Parameters
    ----------
    archive : bool
        Whether the archive ran beside it.
    img_s : float
        Images a second of a burst.
    p50_s, p95_s : float
        Latency at the load, from publishing to reading the prediction.
    cpu_s_per_1000 : float or None
        Processor seconds of the archive's process for each thousand images, its start not counted.
    """

    archive: bool
    img_s: float
    p50_s: float
    p95_s: float
    cpu_s_per_1000: float | None


def main(
    network: Annotated[str, typer.Option(help="Network of the model.")] = "EfficientNetLite0",
    burst: Annotated[int, typer.Option(min=20, help="Images of the burst.")] = 1200,
    rate: Annotated[float, typer.Option(min=0.1, help="Images a second of the load.")] = 20,
    seconds: Annotated[float, typer.Option(min=1, help="Length of the load.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 3,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Measure the stream with the archive and without."""
    turns: list[Turn] = []
    bares = []
    with open_stage() as stage:
        model, _, folder = stage.train(network, WEIGHTS.get(network, "random"), "fp32")
        converted = featurizer_of(model).network
        for number in range(rounds):
            for archive in (False, True) if number % 2 else (True, False):
                with step(f"turn {number + 1} of {rounds}, {'with' if archive else 'without'} the archive"):
                    turns.append(_measure(stage, folder, archive=archive, burst=burst, rate=rate, seconds=seconds))
                err.print(f"  {turns[-1]}")
            bares.append(measure_bare(converted, stage.images, 10))
    summary = _summarise(turns, statistics.median(bares))
    if json_:
        print_json({"turns": [asdict(turn) for turn in turns], "bare_img_s": bares, "summary": summary})
        return
    table = new_table("", "#without", "#with", "#with / without")
    for name in ("img_s", "p50_s", "p95_s"):
        without, beside = (_median(turns, name, archive=archive) for archive in (False, True))
        table.add_row(name.removesuffix("_s"), f"{without:.2f}", f"{beside:.2f}", f"{summary[name]:.2f}")
    print_table(table)
    used = summary["cpu_s_per_1000"]
    err.print(f"bare {summary['bare_img_s']:.1f} images/s; the archive uses {used} CPU s per 1,000 images")


def _measure(stage: Stage, model: Path, *, archive: bool, burst: int, rate: float, seconds: float) -> Turn:
    settings = stage.fresh_settings()
    with streaming(stage.spark, settings, model, archive=archive):
        probe = Probe(settings, stage.images)
        probe.load(10, 2)
        if archive:
            _await_rows(settings, 20)
        before = _cpu_seconds()
        img_s = probe.burst(burst)
        load = summarise("load", probe.load(rate, seconds))
        used = None
        if archive:
            images = 2 * burst + load.images
            _await_rows(settings, 20 + images)
            after = _cpu_seconds()
            used = None if before is None or after is None else 1000 * (after - before) / images
    return Turn(archive, img_s, load.p50, load.p95, used)


def _await_rows(settings: StreamSettings, count: int) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        places = [f"{settings.tables_folder}/{name}" for name in ("predictions", "features")]
        if all(DeltaTable.is_deltatable(place) and DeltaTable(place).count() >= count for place in places):
            return
        time.sleep(0.5)
    msg = f"the archive did not write {count} rows within {_TIMEOUT_S} s"
    raise RuntimeError(msg)


def _cpu_seconds() -> float | None:
    """Processor time of the archive beside this process; None where there is none."""
    return next((p.cpu_s for p in read_processes() if p.parent == os.getpid() and _CHILD in p.command), None)


def _median(turns: list[Turn], name: str, *, archive: bool) -> float:
    return float(statistics.median(getattr(turn, name) for turn in turns if turn.archive == archive))


def _summarise(turns: list[Turn], bare_img_s: float) -> dict[str, float | None]:
    """Give the medians of the ratios within each turn, with the archive to without."""
    pairs = [sorted(turns[i : i + 2], key=lambda turn: turn.archive) for i in range(0, len(turns), 2)]
    summary: dict[str, float | None] = {
        name: statistics.median(getattr(beside, name) / getattr(without, name) for without, beside in pairs)
        for name in ("img_s", "p50_s", "p95_s")
    }
    used = [turn.cpu_s_per_1000 for turn in turns if turn.cpu_s_per_1000 is not None]
    return summary | {"bare_img_s": bare_img_s, "cpu_s_per_1000": statistics.median(used) if used else None}


if __name__ == "__main__":
    typer.run(main)
