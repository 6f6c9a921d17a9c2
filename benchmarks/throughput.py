"""Images per second of the SCORE query, beside the bare limit and the tutorial way, in one run.

The bare limit is the same decoding and the same network in as many processes as there are cores, one thread each,
without Kafka and without Spark. The tutorial way is what one finds in tutorials: foreachBatch, TensorFlow in a pandas
UDF, the batch cached, a table first and Kafka second. Measurements take turns, since a machine's speed moves while one
looks; the ratio is taken within each turn.

Run it: ``python -m benchmarks.throughput`` (``--help``). Nothing else should run on the machine.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from benchmarks.bare import run_bare
from benchmarks.engines import EngineChoice
from benchmarks.stage import Stage, open_stage, publish_images
from benchmarks.tutorial import save_keras, start_tutorial
from schemas.modelcard import ModelCard
from sparkdl.network.base import Network
from streaming.score.query import featurizer_of, start_score
from streaming.settings import StreamSettings
from xray.console import err, new_table, step

WEIGHTS = {"EfficientNetLite0": "imagenet"}
"""Weights do not change the speed; the others' would be a download."""


WARM_UP_BATCHES = 2


@dataclass
class Result:
    """Medians over the rounds for one network."""

    network: str
    precision: str
    score_img_s: float
    bare_img_s: float
    tutorial_img_s: float | None
    ratio: float


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Parameters
    ----------
    images : int
        Of a micro-batch.
    rounds : int
        Turns for each network.
    bare_s : float
        Length of one run of the bare limit.
    tutorial_images : int
        Of the tutorial way's micro-batch; 0 leaves it out.
    """

    images: int
    rounds: int
    bare_s: float
    tutorial_images: int


def main(
    networks: Annotated[str, typer.Option(help="Name:precision, comma-separated.")] = (
        "InceptionV3:fp32,InceptionV3:bf16,EfficientNetLite0:fp32"
    ),
    images: Annotated[int, typer.Option(min=20, help="Images of the measured micro-batch.")] = 600,
    rounds: Annotated[int, typer.Option(min=1, help="Turns for each network.")] = 3,
    bare_s: Annotated[float, typer.Option(min=0.1, help="Length of one run of the bare limit.")] = 10,
    tutorial: Annotated[bool, typer.Option(help="Measure the tutorial way too (needs TensorFlow).")] = True,
    tutorial_images: Annotated[int, typer.Option(min=4, help="Images of the tutorial way's micro-batch.")] = 60,
    json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Measure SCORE against the bare limit and the tutorial way."""
    results = []
    plan = Plan(images, rounds, bare_s, tutorial_images if tutorial else 0)
    with open_stage() as stage:
        for spec in networks.split(","):
            network, _, precision = spec.partition(":")
            result = measure(stage, network, precision or "fp32", plan)
            results.append(result)
            show([result])
    if json_:
        sys.stdout.write(json.dumps([asdict(result) for result in results]) + "\n")
    else:
        show(results)


def measure(stage: Stage, network: str, precision: str, plan: Plan) -> Result:
    """Measure one network, the parties taking turns."""
    with step(f"{network} {precision}: building"):
        model, card, _ = stage.train(network, WEIGHTS.get(network, "random"), precision)
    converted = featurizer_of(model).network
    scores, bares = [], []
    for turn in range(plan.rounds):
        with step(f"{network} {precision}: turn {turn + 1} of {plan.rounds}"):
            before = measure_bare(converted, stage.images, plan.bare_s)
            scores.append(measure_score(stage, model, card, plan.images))
            after = measure_bare(converted, stage.images, plan.bare_s)
        bares.append((before + after) / 2)
        err.print(f"  score {scores[-1]:.1f}, bare {before:.1f} and {after:.1f}")
    possible = find_spec("tensorflow") is not None
    slow = measure_tutorial(stage, network, plan.tutorial_images) if possible and plan.tutorial_images else None
    ratio = statistics.median(score / bare for score, bare in zip(scores, bares, strict=True))
    return Result(network, precision, statistics.median(scores), statistics.median(bares), slow, ratio)


# -- the bare limit ----------------------------------------------------------------------------------------------------


def measure_bare(network: Network, images: tuple[bytes, ...], seconds: float) -> float:
    """Decode and infer in one process per core, nothing else; images per second in all."""
    return run_bare(EngineChoice(network), images, seconds).img_s


# -- SCORE -------------------------------------------------------------------------------------------------------------


def measure_score(stage: Stage, model: Any, card: ModelCard, images: int) -> float:
    """Run the query over full micro-batches; the rate is the last one's, from commit to commit.

    Those before it warm the JVM up: a stream runs for weeks, not for its first seconds.
    """
    settings = stage.fresh_settings()
    score = settings.score.model_copy(update={"max_images_per_batch": images})
    settings = settings.model_copy(update={"score": score})
    publish_images(settings, stage.images, (WARM_UP_BATCHES + 1) * images)
    query = start_score(stage.spark, model, card, settings)
    try:
        ends = [time_s for _, time_s in zip(range(WARM_UP_BATCHES + 1), _commits(query), strict=False)]
    finally:
        query.stop()
    return images / (ends[-1] - ends[-2])


def _commits(query: Any) -> Iterator[float]:
    """Give the moment at which each micro-batch with rows was seen committed."""
    done = -1
    while True:
        if query.exception() is not None:
            raise query.exception()
        progress = query.lastProgress
        if progress is not None and progress.batchId > done and progress.numInputRows:
            done = progress.batchId
            yield time.perf_counter()
        time.sleep(0.05)


# -- the tutorial way --------------------------------------------------------------------------------------------------


def measure_tutorial(stage: Stage, network: str, images: int) -> float:
    """Score as tutorials do: foreachBatch, TensorFlow in a pandas UDF, cache, a table, then Kafka."""
    settings: StreamSettings = stage.fresh_settings()
    publish_images(settings, stage.images, 2 * images)
    with step(f"{network}: the tutorial way"):
        model, _ = save_keras(network, WEIGHTS.get(network, "random"), settings.home)
        query = start_tutorial(stage.spark, settings, model, images)
        try:
            ends = [time_s for _, time_s in zip(range(2), _commits(query), strict=False)]
        finally:
            query.stop()
    return images / (ends[1] - ends[0])


def show(results: list[Result]) -> None:
    """Print the results as a table."""
    table = new_table("network", "#score img/s", "#bare img/s", "#ratio", "#tutorial img/s")
    for r in results:
        tutorial = f"{r.tutorial_img_s:.1f}" if r.tutorial_img_s else "not measured"
        row = (f"{r.score_img_s:.1f}", f"{r.bare_img_s:.1f}", f"{r.ratio:.2f}", tutorial)
        table.add_row(f"{r.network} {r.precision}", *row)
    err.print(table)


if __name__ == "__main__":
    typer.run(main)
