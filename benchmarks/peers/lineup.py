"""Who takes part in a run, and how each is measured once."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from pyspark.ml import PipelineModel

from benchmarks.bare import run_bare
from benchmarks.engines import EngineChoice
from benchmarks.onnx import ONNX_PACKAGES, export_onnx, name_missing
from benchmarks.peers.candidates import ConsumerGroup, run_score, run_tutorial
from benchmarks.peers.consumer import Classifier
from benchmarks.peers.figures import Peer
from benchmarks.peers.host import Start, open_host
from benchmarks.peers.measure import Candidate, Plan, Turn, measure_turn, turn_of
from benchmarks.precision import cosines
from benchmarks.stage import Stage
from schemas.modelcard import ModelCard
from sparkdl.network.base import Network
from streaming.score.query import featurizer_of
from training.model.classifier import Head
from xray.console import err, step

_BATCHES = (1, 8)
_TRIAL_ROUNDS = 3
_WORTH = 1.1
"""How much faster a larger batch must be than one image at a time."""
_LOADS = (0.25, 0.5)
"""Rates of the loads, as shares of the bare limit."""
_LEAST_COSINE = 0.99
"""Between both engines' features of an image; int8 differs most from the fp32 that ONNX Runtime computes."""

BARE = "bare"
_OPENVINO, _ONNX, _TENSORFLOW = "OpenVINO", "ONNX Runtime", "TensorFlow"


@dataclass(frozen=True)
class Trained:
    """What SCORE serves."""

    model: PipelineModel
    card: ModelCard
    folder: Path

    @property
    def network(self) -> Network:
        """The network, as its featurizer has it."""
        return featurizer_of(self.model).network


@dataclass(frozen=True)
class Reference:
    """The same network as one Keras file, in fp32."""

    path: Path
    network: Network


@dataclass
class Run:
    """Who takes part, and how each is measured once.

    Parameters
    ----------
    plan : Plan
        Of a turn; its rates follow from the bare limit.
    peers : list of Peer
        In the table's order.
    batches : dict
        Images a second of the bare limit, by engine and size of the batch.
    """

    plan: Plan
    peers: list[Peer] = field(default_factory=list)
    batches: dict[str, dict[int, list[float]]] = field(default_factory=dict)

    def measure(self, candidate: Candidate, stage: Stage, images: int | None = None) -> Turn:
        """Give a candidate its turn, by the plan as it is then."""
        plan = self.plan if images is None else replace(self.plan, images=images)
        return measure_turn(candidate, stage, plan)


def add_score(run: Run, stage: Stage, stack: ExitStack, trained: Trained, *, archive: bool) -> None:
    """Add the stream itself, in a process and a session of its own."""
    start = partial(run_score, model=trained.folder, images=run.plan.images, archive=archive)
    peer = Peer("score", f"{_OPENVINO} {trained.network.precision}", 1)
    _add_hosted(run, stage, stack, peer, start)


def add_tutorial(run: Run, stage: Stage, stack: ExitStack, reference: Reference, images: int) -> None:
    """Add the tutorial way, likewise; it is slow, so it gets fewer images."""
    peer = Peer("tutorial", f"{_TENSORFLOW} fp32", note=name_missing("tensorflow"))
    if peer.note:
        run.peers.append(peer)
        return
    start = partial(run_tutorial, model=reference.path, images=images)
    _add_hosted(run, stage, stack, peer, start, images)


def _add_hosted(run: Run, stage: Stage, stack: ExitStack, peer: Peer, start: Start, images: int | None = None) -> None:
    # A session keeps its logs in its home.
    settings = stage.settings.model_copy(update={"home": stage.settings.home / peer.name})
    with step(f"starting a session for {peer.name}"):
        host = stack.enter_context(open_host(settings, start))
    peer.measure = lambda: run.measure(host, stage, images)
    run.peers.append(peer)


def add_engines(run: Run, stage: Stage, trained: Trained, reference: Reference, seconds: float) -> None:
    """Find each engine's best batch, and with it the rates of the loads; add the bare limit and both consumers."""
    choices = {_OPENVINO: {batch: EngineChoice(trained.network, batch) for batch in _BATCHES}}
    exported, note = _export(stage, reference, trained.network)
    if exported:
        check_weights(trained.network, reference.network)
        choices[_ONNX] = exported
        check_alike(choices[_OPENVINO][1], exported[1], stage.images[:3])
    run.batches = try_batches(choices, lambda choice: run_bare(choice, stage.images, seconds / 2).img_s)
    best = {engine: choices[engine][choose_batch(rates)] for engine, rates in run.batches.items()}
    limit = max(map(statistics.mean, run.batches[_OPENVINO].values()))
    run.plan = replace(run.plan, rates=tuple(float(max(2, round(share * limit))) for share in _LOADS))
    bare, precision = best[_OPENVINO], trained.network.precision
    limit_peer = Peer(BARE, f"{_OPENVINO} {precision}", bare.batch)
    limit_peer.measure = lambda: turn_of(run_bare(bare, stage.images, seconds))
    run.peers.append(limit_peer)
    for name, engine, label in (("consumer", _OPENVINO, precision), ("consumer_onnx", _ONNX, "fp32")):
        peer = Peer(name, f"{engine} {label}", note=note if engine == _ONNX else "")
        if engine in best:
            peer.batch = best[engine].batch
            peer.measure = partial(run.measure, _group(trained, best[engine]), stage)
        run.peers.append(peer)


def _group(trained: Trained, engine: EngineChoice) -> ConsumerGroup:
    head = Head.of(trained.model.stages[-1])
    return ConsumerGroup(engine, Classifier(trained.card.labels, head.coefficients, head.intercepts))


def _export(stage: Stage, reference: Reference, network: Network) -> tuple[dict[int, EngineChoice], str]:
    """Export the network for ONNX Runtime, for each size of a batch; without it, the reason."""
    if missing := name_missing(*ONNX_PACKAGES):
        return {}, missing
    paths = {batch: stage.settings.home / f"network-{batch}.onnx" for batch in _BATCHES}
    with step("exporting to ONNX"):
        failed = export_onnx(reference.path, paths)
    if failed:
        return {}, failed
    return {batch: EngineChoice(network, batch, str(path)) for batch, path in paths.items()}, ""


def check_weights(one: Network, other: Network) -> None:
    """Refuse to compare networks that do not hold the same weights.

    Raises
    ------
    RuntimeError
        They do not.
    """
    if one.weights_sha256 != other.weights_sha256:
        msg = f"weights have SHA-256 {other.weights_sha256}, expected {one.weights_sha256} as SCORE's"
        raise RuntimeError(msg)


def check_alike(one: EngineChoice, other: EngineChoice, images: Sequence[bytes]) -> None:
    """Refuse to compare two engines that do not compute the same.

    Raises
    ------
    RuntimeError
        An image's features differ in their direction by more than int8 makes them.
    """
    pixels = [one.decode(image) for image in images]
    first, second = (np.concatenate([infer([each]) for each in pixels]) for infer in (one.start(), other.start()))
    cosine = float(min(cosines(first, second)))
    if cosine < _LEAST_COSINE:
        msg = f"the engines' features have a cosine of {cosine:.4f}, expected {_LEAST_COSINE} or more"
        raise RuntimeError(msg)
    err.print(f"  both engines' features of an image have a cosine of {cosine:.6f} or more")


def try_batches(
    choices: Mapping[str, Mapping[int, EngineChoice]], measure: Callable[[EngineChoice], float]
) -> dict[str, dict[int, list[float]]]:
    """Measure each engine with each size of a batch, in turns.

    Returns
    -------
    dict
        Images a second, one value a turn, by engine and size.
    """
    found: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in sizes} for name, sizes in choices.items()}
    for _ in range(_TRIAL_ROUNDS):
        for engine, sizes in choices.items():
            for batch, choice in sizes.items():
                found[engine][batch].append(measure(choice))
                err.print(f"  bare, {engine}, {batch} at a time: {found[engine][batch][-1]:.1f} images/s")
    return found


def choose_batch(rates: Mapping[int, Sequence[float]]) -> int:
    """Choose the size of a batch: the smallest, unless another one is clearly faster; ratios are taken within a turn.

    A batch costs latency, so it must be worth it, and a machine's speed moves by more than what most of them gain.
    """
    least = min(rates)
    gains = {
        batch: statistics.median(rate / base for rate, base in zip(found, rates[least], strict=True))
        for batch, found in rates.items()
    }
    best = max(sorted(gains), key=gains.__getitem__)
    return best if gains[best] > _WORTH else least
