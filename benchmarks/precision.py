"""What bf16 and int8 cost in accuracy: the whole pipeline in each precision, beside fp32, on the same folds.

Cross-validation, stratified by class and grouped by patient. In each fold the classifier is fitted on the training
images' features in that precision, as training does it, and judged on the held-out ones; int8 is calibrated on the
fold's training images alone. One image is worth 1 / images of accuracy; ``--repeats`` deals the patients anew, so that
less hangs on one.

Run it: ``python -m benchmarks.precision FOLDER`` (``--help``). It needs the ``train`` and ``int8`` extras.
"""

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from schemas.errors import DatasetError, RecordError
from sparkdl.engine.cache import start_engine
from sparkdl.engine.quantize import quantize_network
from sparkdl.image.decode import decode_image
from sparkdl.image.row import array_from_row
from sparkdl.network.base import Network
from sparkdl.network.catalog import build_network
from sparkdl.spark.session import start_session
from training.data.dataset import Dataset, Sample, read_dataset
from xray.console import err, new_table, print_json, step

PRECISIONS = ("fp32", "bf16", "int8")
"""The first is what the others are compared with."""

_Floats = npt.NDArray[np.floating]
_Pixels = npt.NDArray[np.uint8]


@dataclass
class Result:
    """One precision's figures; everything is measured on held-out images."""

    precision: str
    accuracy: float
    auroc: float
    accuracy_difference: float
    auroc_difference: float
    other_predictions: float
    """Share of images that fp32 predicts otherwise, for better or worse."""
    cosine_mean: float
    cosine_min: float


@dataclass
class Found:
    """What the folds gave for one precision."""

    correct: list[bool] = field(default_factory=list)
    predictions: list[int] = field(default_factory=list)
    aurocs: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of classes, or manifest.")],
    model: Annotated[str, typer.Option(help="Network.")] = "EfficientNetLite0",
    weights: Annotated[str, typer.Option(help="'imagenet', 'random' or a Keras file.")] = "imagenet",
    classes: Annotated[str, typer.Option(help="Classes to keep, comma-separated; all if empty.")] = "",
    positive: Annotated[str, typer.Option(help="Positive class, where no name tells it.")] = "",
    folds: Annotated[int, typer.Option(min=2, help="Folds.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="How often patients are dealt into folds.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Compare the pipeline's accuracy in fp32, bf16 and int8."""
    kept = classes.split(",") if classes else None
    dataset = read_dataset(folder, classes=kept, positive=positive or None)
    with step(f"building {model}, weights {weights}"):
        network = build_network(model, weights=weights)
    with step(f"decoding {len(dataset.samples)} images"):
        dataset, images = decode(dataset, network.input_size)
    err.print(f"images: {', '.join(f'{name} {count}' for name, count in dataset.count_by_class().items())}")
    results = compare(dataset, images, network, folds, repeats)
    if json_:
        print_json([asdict(result) for result in results])
    else:
        show(results, f"{model} ({weights}), {folds} folds x {repeats}, {len(images)} images")


def decode(dataset: Dataset, size: tuple[int, int]) -> tuple[Dataset, list[_Pixels]]:
    """Decode every file to the network's size; those that fail are named and left out."""
    images, kept = [], []
    for sample in dataset.samples:
        try:
            decoded = decode_image(sample.path.read_bytes(), origin=str(sample.path), size=size)
        except RecordError as exc:
            err.print(f"left out: {exc}", markup=False)
            continue
        images.append(array_from_row(decoded.image))
        kept.append(sample)
    return replace(dataset, samples=tuple(kept)), images


def compare(dataset: Dataset, images: Sequence[_Pixels], network: Network, folds: int, repeats: int) -> list[Result]:
    """Cross-validate each precision on the same folds."""
    labels = np.array([sample.label for sample in dataset.samples])
    found = {precision: Found() for precision in PRECISIONS}
    with step("computing features in fp32 and bf16"):
        whole = {name: featurize(replace(network, precision=name), images) for name in PRECISIONS[:2]}
    with open_spark() as spark:
        for place, test in enumerate(deal_folds(dataset, folds, repeats)):
            with step(f"fold {place + 1} of {folds * repeats}"):
                calibration = [image for image, held_out in zip(images, test, strict=True) if not held_out]
                features = whole | {"int8": featurize(quantize_network(network, calibration), images)}
                for precision, values in features.items():
                    probabilities = fit_and_predict(spark, values, labels, test, len(dataset.labels))
                    judge(found[precision], probabilities, labels[test])
                    found[precision].cosines += cosines(values[test], whole["fp32"][test]).tolist()
    return [summarize(precision, found) for precision in PRECISIONS]


# -- folds -------------------------------------------------------------------------------------------------------------


def deal_folds(dataset: Dataset, folds: int, repeats: int) -> Iterator[npt.NDArray[np.bool_]]:
    """Give each fold's held-out images as a mask over the samples; a patient is in one fold of each repeat."""
    for seed in range(repeats):
        fold_of = _deal(dataset.samples, folds, random.Random(seed))
        place = np.array([fold_of[sample.patient_id] for sample in dataset.samples])
        for fold in range(folds):
            for held_out, side in ((True, "held-out"), (False, "training")):
                _check_side(dataset, (place == fold) == held_out, side)
            yield place == fold


def _deal(samples: Sequence[Sample], folds: int, rng: random.Random) -> dict[str, int]:
    """Deal the patients of one class after the other, like cards; one with several classes counts for the last."""
    label_of = {sample.patient_id: sample.label for sample in sorted(samples, key=lambda sample: sample.label)}
    patients = sorted(label_of)
    rng.shuffle(patients)
    patients.sort(key=label_of.__getitem__)
    return {patient: place % folds for place, patient in enumerate(patients)}


def _check_side(dataset: Dataset, mask: npt.NDArray[np.bool_], side: str) -> None:
    there = {sample.label for sample, inside in zip(dataset.samples, mask, strict=True) if inside}
    if len(there) < len(dataset.labels):
        missing = [name for label, name in enumerate(dataset.labels) if label not in there]
        msg = f"a fold has no {side} image of {', '.join(missing)}: wanted more patients or fewer folds"
        raise DatasetError(msg)


# -- pipeline ----------------------------------------------------------------------------------------------------------


def featurize(network: Network, images: Sequence[_Pixels]) -> _Floats:
    """Compute features, shape (images, n_features)."""
    engine = start_engine(network, n_threads=os.cpu_count() or 1)
    return np.stack([engine.infer(image) for image in images])


@contextmanager
def open_spark() -> Iterator[SparkSession]:
    """Start Spark without connectors; end it."""
    with TemporaryDirectory(prefix="xray-benchmark-") as logs:
        spark = start_session(app_name="precision", log_folder=Path(logs))
        try:
            yield spark
        finally:
            spark.stop()


def fit_and_predict(
    spark: SparkSession, features: _Floats, labels: npt.NDArray[np.int_], test: npt.NDArray[np.bool_], n_classes: int
) -> _Floats:
    """Fit the classifier of `training.model.fit` on the training side; give the held-out side's probabilities."""
    classifier = LogisticRegression(maxIter=10, regParam=0.05, elasticNetParam=0.3)
    model = classifier.fit(_frame(spark, features[~test], labels[~test]))
    rows = model.transform(_frame(spark, features[test], labels[test])).select("id", "probability").collect()
    by_place = {row["id"]: row["probability"].toArray() for row in rows}
    return np.stack([by_place[place] for place in range(len(rows))]).reshape(-1, n_classes)


def _frame(spark: SparkSession, features: _Floats, labels: npt.NDArray[np.int_]) -> DataFrame:
    pairs = zip(labels, features, strict=True)
    rows = [(place, float(label), Vectors.dense(values)) for place, (label, values) in enumerate(pairs)]
    return spark.createDataFrame(rows, ["id", "label", "features"])


# -- figures -----------------------------------------------------------------------------------------------------------


def judge(found: Found, probabilities: _Floats, labels: npt.NDArray[np.int_]) -> None:
    """Add one fold's held-out images."""
    predictions = probabilities.argmax(axis=1)
    found.predictions += predictions.tolist()
    found.correct += (predictions == labels).tolist()
    found.aurocs.append(auroc(probabilities, labels))


def auroc(probabilities: _Floats, labels: npt.NDArray[np.int_]) -> float:
    """Compute the area under the ROC curve: the mean over each class against the others, which are equal for two."""
    return mean(_area(probabilities[:, label], labels == label) for label in range(probabilities.shape[1]))


def _area(scores: _Floats, positive: npt.NDArray[np.bool_]) -> float:
    """Compute the share of pairs in which the positive one scores higher; a tie is half (Mann-Whitney U)."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    n_positive = int(positive.sum())
    above = ranks[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * (len(scores) - n_positive)))


def cosines(one: _Floats, two: _Floats) -> _Floats:
    """Compute each pair of rows' cosine."""
    a, b = one.astype(np.float64), two.astype(np.float64)
    return np.asarray((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))


def summarize(precision: str, found: dict[str, Found]) -> Result:
    """Average over all held-out images, and compare with fp32."""
    own, base = found[precision], found[PRECISIONS[0]]
    accuracy, area = mean(own.correct), mean(own.aurocs)
    return Result(
        precision=precision,
        accuracy=accuracy,
        auroc=area,
        accuracy_difference=accuracy - mean(base.correct),
        auroc_difference=area - mean(base.aurocs),
        other_predictions=mean(a != b for a, b in zip(own.predictions, base.predictions, strict=True)),
        cosine_mean=mean(own.cosines),
        cosine_min=min(own.cosines),
    )


def show(results: list[Result], title: str) -> None:
    """Print the results as a table."""
    # Short names: the whole is 79 columns wide.
    columns = ("#accuracy", "#to fp32", "#AUROC", "#to fp32", "#changed", "#cosine", "#least")
    table = new_table("runs in", *columns, title=title)
    for r in results:
        accuracy, area = f"{r.accuracy:.4f}", f"{r.auroc:.4f}"
        changes = (f"{r.accuracy_difference:+.4f}", f"{r.auroc_difference:+.4f}", f"{r.other_predictions:.4f}")
        row = (accuracy, changes[0], area, *changes[1:], f"{r.cosine_mean:.4f}", f"{r.cosine_min:.4f}")
        table.add_row(r.precision, *row)
    err.print(table)


if __name__ == "__main__":
    typer.run(main)
