"""SCORE beside its peers: the bare limit, two plain consumers and the tutorial way, on the same images and network.

Everybody takes a turn in each round, since a machine's speed moves while one looks: throughput while images wait,
processor time and memory meanwhile, and the time from publishing to reading the result at fixed rates. What each of
them is, and what it leaves out: docs/performance.md.

Run it: ``python -m benchmarks.peers`` (``--help``). It needs the ``train`` extra; ONNX Runtime and the tutorial way
also the ``onnx`` one. Nothing else should run on the machine.
"""

import os
from contextlib import ExitStack
from typing import Annotated

import typer

from benchmarks.peers.figures import show, summarize
from benchmarks.peers.lineup import BARE, Reference, Run, Trained, add_engines, add_score, add_tutorial
from benchmarks.peers.measure import Plan
from benchmarks.stage import open_stage
from benchmarks.throughput import WEIGHTS
from benchmarks.tutorial import save_keras
from sparkdl.network.catalog import NETWORKS
from xray.console import err, print_json, step


def main(
    network: Annotated[str, typer.Option(help="Network of the model.")] = "EfficientNetLite0",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or int8; ONNX Runtime has fp32.")] = "fp32",
    images: Annotated[int, typer.Option(min=40, help="Images of the measured micro-batch.")] = 400,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 3,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each load, and of a run of the bare limit.")] = 6,
    archive: Annotated[bool, typer.Option(help="Run the archive beside SCORE.")] = False,
    tutorial_images: Annotated[int, typer.Option(min=0, help="As images, of the tutorial way; 0 leaves it out.")] = 40,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Measure SCORE and its peers side by side."""
    if network not in NETWORKS:
        msg = f"{network!r}, expected one of {', '.join(NETWORKS)}"
        raise typer.BadParameter(msg, param_hint="--network")
    run = Run(Plan(images, seconds, ()))
    weights = WEIGHTS.get(network, "random")
    with open_stage() as stage, ExitStack() as stack:
        with step(f"{network} {precision}: building"):
            trained = Trained(*stage.train(network, weights, precision))
            reference = Reference(*save_keras(network, weights, stage.settings.home / "keras"))
        add_score(run, stage, stack, trained, archive=archive)
        add_engines(run, stage, trained, reference, seconds)
        if tutorial_images:
            add_tutorial(run, stage, stack, reference, tutorial_images)
        take_turns(run, rounds)
    title = f"{network} {precision}, {os.cpu_count()} cores, {rounds} rounds of {images} images"
    (bare,) = (peer for peer in run.peers if peer.name == BARE)
    rows = [summarize(peer, bare, run.plan.rates) for peer in run.peers]
    if not json_:
        show(rows, run.plan.rates, title)
        return
    parts = {"network": network, "precision": precision, "cores": os.cpu_count(), "images": images, "rounds": rounds}
    print_json({**parts, "archive": archive, "batches_bare_img_s": run.batches, "peers": rows})


def take_turns(run: Run, rounds: int) -> None:
    """Measure everybody once a round, in one order and then in the other."""
    for number in range(rounds):
        for peer in run.peers if number % 2 == 0 else reversed(run.peers):
            if peer.measure is None:
                continue
            with step(f"round {number + 1} of {rounds}: {peer.name}"):
                turn = peer.measure()
            peer.turns.append(turn)
            memory = turn.pss_bytes / 1_000_000
            err.print(f"  {turn.img_s:.1f} images/s, {turn.cpu_s_per_1000:.1f} CPU s per 1,000, {memory:.0f} MB")


if __name__ == "__main__":
    typer.run(main)
