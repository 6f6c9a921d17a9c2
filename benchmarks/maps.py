"""The class activation map: whether it adds up to the published logit, and where its peak lies.

On phantoms it is known where opacities were planted: a chest with them and the same chest without differ there alone.
The classifier is fitted on other chests, as training fits it, in each precision on that precision's own features. The
map of the chest without opacities is the control: whatever its peak hits is anatomy and chance. On a folder of X-rays
nobody knows where a finding is; there it is told in which part of the image the peak lies, of images whose patient the
classifier has not learned from (folds by patient).

Run it: ``python -m benchmarks.maps [--xrays FOLDER] [--json]``. It needs the extras ``train`` and ``int8``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from benchmarks.precision import PRECISIONS, decode
from sparkdl.engine.activation import Activation, ActivationEngine
from sparkdl.engine.openvino import OpenVinoEngine
from sparkdl.engine.quantize import quantize_network
from sparkdl.image.pixels import resize_pixels
from sparkdl.network.base import Network
from sparkdl.network.catalog import build_network
from training.data.dataset import Dataset, read_dataset
from training.figures.bootstrap import gather_outcomes
from training.figures.measure import measure
from training.model.classifier import PAPER, Head
from training.model.folds import deal_folds
from training.model.regression import fit_regression
from xray.console import err, new_table, print_json, step
from xray.phantom import generate_radiograph, generate_set
from xray.phantom.chest import Chest
from xray.phantom.geometry import Plane
from xray.phantom.patient import draw_anatomy

_TOP_CELLS = 5
_TRAIN_SEED, _TEST_SEED = 1, 100_000
_HEIGHT, _WIDTH = 640, 544

_Pixels = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.floating]
_Labels = npt.NDArray[np.int64]


@dataclass
class Sum:
    """How far the logit from the map is from the logit of the features that the stream computes."""

    images: str
    precision: str
    n_images: int
    max_error: float
    mean_error: float
    logit_deviation: float
    """Of the published logits: what an error is small or large against."""


@dataclass
class Hit:
    """Where peaks lie on chests with planted opacities."""

    precision: str
    map: str
    n_images: int
    in_lungs: float
    times_mean_cell: float
    """Planted gray under the peak's cell, over that under the mean cell; chance gives 1."""
    in_top_cells: float
    """Share of peaks in one of the five cells with the most planted gray."""
    correlation: float
    """Between map and planted gray over the cells, mean over images."""


@dataclass
class Zone:
    """In which part of an X-ray peaks lie; with equal cells and no preference 0.33 in each third."""

    precision: str
    label: str
    n_images: int
    auroc: float
    upper: float
    middle: float
    lower: float
    border: float
    """Share of peaks in the outermost ring of cells."""


@dataclass
class Found:
    """All figures."""

    network: str
    map_size: tuple[int, int] = (0, 0)
    sums: list[Sum] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    zones: list[Zone] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Chests:
    """Phantoms: the first half of ``pixels`` has opacities, the second half the same chests without them."""

    pixels: list[_Pixels]
    planted: list[_Floats]
    lungs: list[npt.NDArray[np.bool_]]


def main(
    network: Annotated[str, typer.Option(help="Network whose features are the means of its last map.")] = (
        "EfficientNetLite0"
    ),
    weights: Annotated[str, typer.Option(help="'imagenet', 'random' or a Keras file.")] = "imagenet",
    train: Annotated[int, typer.Option(min=20, help="Phantoms to fit on.")] = 160,
    test: Annotated[int, typer.Option(min=2, help="Chests to measure on, each with opacities and without.")] = 60,
    xrays: Annotated[Path | None, typer.Option(help="Folder of classes, or manifest, of X-rays.")] = None,
    positive: Annotated[str, typer.Option(help="Positive class of the X-rays, where no name tells it.")] = "",
    json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Measure the class activation map."""
    with step(f"building {network}, weights {weights}"):
        built = build_network(network, weights=weights)
    found = Found(network)
    with step(f"drawing {train + 2 * test} phantoms"):
        fitted_on = list(generate_set(train, seed=_TRAIN_SEED))
        known = [resize_pixels(one.pixels, built.input_size) for one in fitted_on]
        labels = np.array([int(one.finding == "opacities") for one in fitted_on])
        chests = draw_chests(test, built.input_size)
    for precision in PRECISIONS:
        with step(f"phantoms in {precision}"):
            measure_phantoms(found, _in_precision(built, precision, known), known, labels, chests)
    if xrays is not None:
        dataset, images = decode(read_dataset(xrays, positive=positive or None), built.input_size)
        for precision in PRECISIONS:
            with step(f"{len(images)} X-rays in {precision}"):
                measure_xrays(found, built, precision, dataset, images)
    if json_:
        print_json(asdict(found))
    else:
        show(found)


def _in_precision(network: Network, precision: str, images: Sequence[_Pixels]) -> Network:
    return quantize_network(network, images) if precision == "int8" else replace(network, precision=precision)


# -- phantoms ----------------------------------------------------------------------------------------------------------


def draw_chests(n: int, size: tuple[int, int]) -> Chests:
    """Draw chests with opacities and without, and where they differ, at the network's size."""
    with_opacities, without, planted, lungs = [], [], [], []
    for seed in range(_TEST_SEED, _TEST_SEED + n):
        ill, well = (
            generate_radiograph(seed, finding=finding, height=_HEIGHT, width=_WIDTH).pixels
            for finding in ("opacities", "normal")
        )
        anatomy = draw_anatomy(seed)
        own = Chest(Plane.over(anatomy, _HEIGHT, _WIDTH), anatomy, seed).lungs
        with_opacities.append(resize_pixels(ill, size))
        without.append(resize_pixels(well, size))
        planted.append(np.abs(ill.astype(np.float32) - well))
        lungs.append(own > 0)
    return Chests([*with_opacities, *without], planted, lungs)


def measure_phantoms(found: Found, network: Network, known: Sequence[_Pixels], labels: _Labels, chests: Chests) -> None:
    """Fit on some phantoms, and look where the maps of others peak."""
    features, activations = _ask(network, known, maps=False)[0], _ask(network, chests.pixels)
    head = fit_regression(features, np.arange(len(known)), labels, PAPER, 2)
    weighed = _weigh(activations[1], head)
    _add_sum(found, "phantoms", network.precision, _logits(activations[0], head), weighed, head)
    n = len(chests.planted)
    ill, well = weighed[:n], weighed[n:]
    found.map_size = ill[0].shape[0], ill[0].shape[1]
    kinds: dict[str, list[_Floats]] = {
        "with opacities": ill,
        "same chest without": well,
        "the one less the other": [one - other for one, other in zip(ill, well, strict=True)],
    }
    for name, maps in kinds.items():
        found.hits.append(_hit(network.precision, name, maps, chests))


def _hit(precision: str, name: str, maps: Sequence[_Floats], chests: Chests) -> Hit:
    in_lungs, times, top, correlations = [], [], [], []
    for one, planted, lungs in zip(maps, chests.planted, chests.lungs, strict=True):
        cells = resize_pixels(planted, (one.shape[0], one.shape[1]))
        peak = int(one.argmax())
        row, column = np.unravel_index(peak, one.shape)
        middle = tuple(
            int((float(place) + 0.5) * whole / side)
            for place, side, whole in zip((row, column), one.shape, lungs.shape, strict=True)
        )
        in_lungs.append(bool(lungs[middle]))
        times.append(float(cells.ravel()[peak] / cells.mean()))
        top.append(peak in np.argsort(cells.ravel())[-_TOP_CELLS:])
        correlations.append(float(np.corrcoef(one.ravel(), cells.ravel())[0, 1]))
    means = (float(np.mean(values)) for values in (in_lungs, times, top, correlations))
    return Hit(precision, name, len(maps), *means)


# -- X-rays ------------------------------------------------------------------------------------------------------------


def measure_xrays(found: Found, network: Network, precision: str, dataset: Dataset, images: Sequence[_Pixels]) -> None:
    """Cross-validate by patient, and look in which part of each held-out image the map peaks.

    The classifier tells the first class from all others together: of more than two classes there is no one logit.
    """
    actual = np.array([sample.label for sample in dataset.samples])
    labels = (actual > 0).astype(np.int64)
    in_precision = _in_precision(network, precision, images)
    features, activations = _ask(in_precision, images)
    weighed: dict[int, _Floats] = {}
    scores, sums = np.zeros(len(images)), Found(found.network)
    for train, test in deal_folds(labels, [sample.patient_id for sample in dataset.samples], 0):
        head = fit_regression(features[train], np.arange(len(train)), labels[train], PAPER, 2)
        maps = _weigh([activations[place] for place in test], head)
        weighed |= dict(zip(test.tolist(), maps, strict=True))
        scores[test] = head.predict(features[test])[:, 1]
        _add_sum(sums, "X-rays", precision, _logits(features[test], head), maps, head)
    found.sums.append(_join(sums.sums))
    outcomes = gather_outcomes(labels, scores, [sample.patient_id for sample in dataset.samples], threshold=0.5)
    auroc = measure(outcomes, n_resamples=1)["auroc"].value
    for label, name in enumerate(dataset.labels):
        own = [weighed[place] for place in np.flatnonzero(actual == label).tolist()]
        found.zones.append(_zone(precision, name, own, auroc))


def _zone(precision: str, label: str, maps: Sequence[_Floats], auroc: float) -> Zone:
    peaks = [np.unravel_index(int(one.argmax()), one.shape) for one in maps]
    height, width = maps[0].shape
    thirds = np.bincount([int((int(row) + 0.5) * 3 / height) for row, _ in peaks], minlength=3) / len(peaks)
    border = np.mean([row in (0, height - 1) or column in (0, width - 1) for row, column in peaks])
    upper, middle, lower = (float(share) for share in thirds)
    return Zone(precision, label, len(maps), auroc, upper, middle, lower, float(border))


# -- both --------------------------------------------------------------------------------------------------------------


def _ask(
    network: Network, images: Sequence[_Pixels], *, maps: bool = True
) -> tuple[npt.NDArray[np.float32], list[Activation]]:
    """Give the features that the stream computes, shape (n, n_features), and what the map's own engine does."""
    served = OpenVinoEngine(network, n_threads=2)
    features = np.stack([served.infer(image) for image in images])
    if not maps:
        return features, []
    engine = ActivationEngine(network, n_threads=2)
    return features, [engine.infer(image) for image in images]


def _weigh(activations: Sequence[Activation], head: Head) -> list[_Floats]:
    return [one.weigh(head.coefficients[0]) for one in activations]


def _logits(features: npt.NDArray[np.float32], head: Head) -> _Floats:
    return np.asarray(features.astype(np.float64) @ head.coefficients[0] + head.intercepts[0])


def _add_sum(
    found: Found, images: str, precision: str, published: _Floats, weighed: Sequence[_Floats], head: Head
) -> None:
    errors = np.abs(np.array([one.mean() for one in weighed]) + head.intercepts[0] - published)
    figures = float(errors.max()), float(errors.mean()), float(published.std())
    found.sums.append(Sum(images, precision, len(errors), *figures))


def _join(sums: Sequence[Sum]) -> Sum:
    """Join the folds'."""
    counts = [one.n_images for one in sums]
    return replace(
        sums[0],
        n_images=sum(counts),
        max_error=max(one.max_error for one in sums),
        mean_error=float(np.average([one.mean_error for one in sums], weights=counts)),
        logit_deviation=float(np.average([one.logit_deviation for one in sums], weights=counts)),
    )


def show(found: Found) -> None:
    """Print the tables."""
    size = "x".join(map(str, found.map_size))
    table = new_table("images", "precision", "n", "largest error", "mean error", "deviation of logits")
    for one in found.sums:
        errors = f"{one.max_error:.2g}", f"{one.mean_error:.2g}", f"{one.logit_deviation:.2f}"
        table.add_row(one.images, one.precision, str(one.n_images), *errors)
    err.print(f"{found.network}, map {size}: the logit from the map against the published one")
    err.print(table)
    table = new_table("precision", "map of", "n", "peak in lungs", "planted under it", "in top 5 cells", "correlation")
    for hit in found.hits:
        shares = f"{hit.in_lungs:.2f}", f"{hit.times_mean_cell:.1f}x", f"{hit.in_top_cells:.2f}"
        table.add_row(hit.precision, hit.map, str(hit.n_images), *shares, f"{hit.correlation:.2f}")
    err.print(table)
    if not found.zones:
        return
    table = new_table("precision", "label", "n", "AUROC", "upper third", "middle", "lower", "outermost cells")
    for zone in found.zones:
        shares_by_zone = (zone.auroc, zone.upper, zone.middle, zone.lower, zone.border)
        table.add_row(zone.precision, zone.label, str(zone.n_images), *(f"{share:.2f}" for share in shares_by_zone))
    err.print(table)


if __name__ == "__main__":
    typer.run(main)
