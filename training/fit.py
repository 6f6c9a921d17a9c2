"""Fits a classifier on a pretrained network's features, measures it on held-out patients, and saves both as one model.

Features are computed once and kept: the classifier's iterations and the evaluation read them. The saved model is a
plain ``PipelineModel`` of the featurizer and the classifier.
"""

import logging
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

import pyarrow as pa
from pyspark.accumulators import Accumulator
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegression, LogisticRegressionModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import broadcast, col

from schemas.errors import DatasetError
from schemas.modelcard import ModelCard, hash_model_folder, write_card
from sparkdl.decode import RENDERING_VERSION
from sparkdl.featurizer import DeepImageFeaturizer
from training.dataset import Dataset, Sample, count_by_class
from training.decoding import DECODED_DDL, decode_files
from training.metrics import Matrix, confusion_matrix, weighted_metrics, wilson_interval
from training.split import Split, split_by_patient

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` with counts of images, from another thread."""

_log = logging.getLogger(__name__)

_IMAGES_PER_TASK = 32  # about half a second: progress moves, the last tasks end together, and starting one is 5 % of it
_MIN_TASKS_PER_CORE = 4  # a small set still keeps every core busy to the end
_MAX_FAILED_SHARE = 0.5  # beyond it the data is something else than images, and a model of the rest would surprise
_POLL_S = 0.1
_MAX_CALIBRATION_IMAGES = 300
_NAMED_IN_ERROR = 3
_TWO_CLASSES = 2


@dataclass(frozen=True)
class FailedFile:
    """A file that could not be decoded and took no part.

    Parameters
    ----------
    path : Path
        Which.
    error : str
        Why.
    """

    path: Path
    error: str


@dataclass(frozen=True)
class HeldOut:
    """What the model says about one held-out image.

    Parameters
    ----------
    sample : Sample
        The image and its label.
    prediction : int
        Position in the card's ``labels``.
    probabilities : tuple of float
        One per label.
    """

    sample: Sample
    prediction: int
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class TrainingResult:
    """A saved model, and how it was made and measured.

    Parameters
    ----------
    folder : Path
        The saved ``PipelineModel``, its card inside.
    card : ModelCard
        The card.
    metrics : dict
        The card's figures: ``accuracy``, ``f1``, ``weightedPrecision``, ``weightedRecall`` on held-out images, and
        ``n_train`` and ``n_test``, counts of images.
    accuracy_interval : tuple of float
        Wilson's 95 % interval. It takes images for independent, so it is too narrow where patients have several.
    confusion : numpy.ndarray
        Held-out images, shape (n_labels, n_labels): row is the actual class, column the predicted one.
    n_train, n_test : dict
        Images by class name.
    held_out : tuple of HeldOut
        Every held-out prediction, in the order of paths.
    failed : tuple of FailedFile
        Files left out.
    patient_ids_known : bool
        See `Dataset`.
    seconds : float
        Wall time.
    """

    folder: Path
    card: ModelCard
    metrics: dict[str, float]
    accuracy_interval: tuple[float, float]
    confusion: Matrix
    n_train: dict[str, int]
    n_test: dict[str, int]
    held_out: tuple[HeldOut, ...]
    failed: tuple[FailedFile, ...]
    patient_ids_known: bool
    seconds: float


def train_model(  # noqa: PLR0913
    spark: SparkSession,
    dataset: Dataset,
    *,
    out: Path,
    network: str = "EfficientNetLite0",
    weights: str = "imagenet",
    precision: str = "fp32",
    test_fraction: float = 0.3,
    seed: int = 0,
    name: str = "cxr",
    progress: Progress | None = None,
) -> TrainingResult:
    """Train, measure and save a model.

    Parameters
    ----------
    spark : SparkSession
        Its workers must be able to read the files of ``dataset``.
    dataset : Dataset
        Labelled files. Those that do not decode are left out and reported.
    out : Path
        Folder of models on the driver's file system; the new one becomes a folder in it, named by its version.
    network, weights, precision : str
        See `DeepImageFeaturizer`. ``"int8"`` is calibrated on up to 300 of the images that the classifier trains on.
    test_fraction, seed
        See `split_by_patient`. The held-out patients are never trained on, not in the saved model either. The seed is
        also that of ``weights="random"``.
    name : str
        The model's name on its card.
    progress : callable, optional
        See `Progress`; its last call is ``(total, total)``.

    Returns
    -------
    TrainingResult
        The saved model and its figures.

    Raises
    ------
    SettingsError, DependencyError
        The network cannot be built as asked.
    DatasetError
        More than half of the files do not decode, or a class has too few patients.

    Notes
    -----
    The model appears in ``out`` complete or not at all. A two-class model's ``threshold`` is 0.5, not tuned.
    """
    started = time.perf_counter()
    featurizer = DeepImageFeaturizer(
        inputCol="image",
        outputCol="features",
        modelName=network,
        weights=weights,
        precision="fp32" if precision == "int8" else precision,
        seed=seed,
    )
    if precision == "int8":
        featurizer = _calibrate(spark, dataset, featurizer, test_fraction=test_fraction, seed=seed)
    frame = featurize_files(spark, [str(sample.path) for sample in dataset.samples], featurizer, progress)
    try:
        failed = _failed_files(frame)
        readable = _without(dataset, failed)
        split = split_by_patient(readable, test_fraction=test_fraction, seed=seed)
        classifier = _fit_classifier(_labelled(spark, frame, split.train))
        held_out = _predict(classifier, _labelled(spark, frame, split.test), split.test)
    finally:
        frame.unpersist()
    confusion = _confusion(held_out, len(dataset.labels))
    metrics = _measure(confusion, split)
    model = PipelineModel(stages=[featurizer, classifier])
    folder, card = _save(model, out, lambda version, sha256: _write_up(name, version, sha256, dataset, model, metrics))
    result = TrainingResult(
        folder=folder,
        card=card,
        metrics=metrics,
        accuracy_interval=wilson_interval(int(confusion.trace()), int(confusion.sum())),
        confusion=confusion,
        n_train=count_by_class(split.train, dataset.labels),
        n_test=count_by_class(split.test, dataset.labels),
        held_out=held_out,
        failed=failed,
        patient_ids_known=dataset.patient_ids_known,
        seconds=time.perf_counter() - started,
    )
    _log.info("trained model %s: %s, %d files left out, %.1f s", card.version, metrics, len(failed), result.seconds)
    return result


# --- features ---------------------------------------------------------------------------------------------------------


def featurize_files(
    spark: SparkSession, paths: Sequence[str], featurizer: DeepImageFeaturizer, progress: Progress | None = None
) -> DataFrame:
    """Decode and featurize files, and keep the result.

    Parameters
    ----------
    spark : SparkSession
        Its workers must be able to read the files.
    paths : sequence of str
        Image files.
    featurizer : DeepImageFeaturizer
        From ``image`` to ``features``.
    progress : callable, optional
        See `Progress`.

    Returns
    -------
    DataFrame
        ``path``, ``error``, ``features``: one of the last two is null. Computed and persisted; the caller lets it go.
    """
    done = spark.sparkContext.accumulator(0)
    featurized = featurizer.transform(_decode_files(spark, paths, featurizer.network.input_size, done))
    kept = featurized.select("path", "error", "features").persist()
    with _reporting(progress, done, len(paths)):
        kept.count()
    return kept


def _decode_files(
    spark: SparkSession, paths: Sequence[str], size: tuple[int, int], done: Accumulator[int]
) -> DataFrame:
    """Decode files into `DECODED_DDL`, counting them."""

    def decode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield decode_files([paths[index] for index in batch.column("id").to_pylist()], size)
            done.add(batch.num_rows)

    # A range, unlike a shuffled frame, has the same rows in the same tasks each time: the fit repeats exactly.
    return spark.range(0, len(paths), 1, _count_tasks(spark, len(paths))).mapInArrow(decode, DECODED_DDL)


def _calibrate(
    spark: SparkSession, dataset: Dataset, featurizer: DeepImageFeaturizer, *, test_fraction: float, seed: int
) -> DeepImageFeaturizer:
    """Make the featurizer int8, calibrated on training images only.

    What fails to decode decides the split, so every file is decoded here once more: a few milliseconds an image.
    """
    paths, size = [str(sample.path) for sample in dataset.samples], featurizer.network.input_size
    count = spark.sparkContext.accumulator(0)
    readable = _without(dataset, _failed_files(_decode_files(spark, paths, size, count)))
    train = [str(sample.path) for sample in split_by_patient(readable, test_fraction=test_fraction, seed=seed).train]
    chosen = sorted(random.Random(seed).sample(train, min(len(train), _MAX_CALIBRATION_IMAGES)))
    return featurizer.calibrate(_decode_files(spark, chosen, size, count), _MAX_CALIBRATION_IMAGES)


def _count_tasks(spark: SparkSession, n_images: int) -> int:
    n_cores: int = spark.sparkContext.defaultParallelism
    return min(max(math.ceil(n_images / _IMAGES_PER_TASK), n_cores * _MIN_TASKS_PER_CORE), n_images)


@contextmanager
def _reporting(progress: Progress | None, done: Accumulator[int], total: int) -> Iterator[None]:
    """Tell how far Spark is: it adds up an accumulator as tasks end, but calls nobody."""
    if progress is None:
        yield
        return
    ended = Event()

    def poll() -> None:
        while not ended.wait(_POLL_S):
            progress(min(done.value, total), total)  # a repeated task counts again

    poller = Thread(target=poll, name="training-progress", daemon=True)
    progress(0, total)
    poller.start()
    try:
        yield
    finally:
        ended.set()
        poller.join()
    progress(total, total)


def _failed_files(frame: DataFrame) -> tuple[FailedFile, ...]:
    rows = frame.where(col("error").isNotNull()).select("path", "error").orderBy("path").collect()
    return tuple(FailedFile(Path(row["path"]), row["error"]) for row in rows)


def _without(dataset: Dataset, failed: Sequence[FailedFile]) -> Dataset:
    total = len(dataset.samples)
    if len(failed) > _MAX_FAILED_SHARE * total:
        first = "; ".join(f"{file.path}: {file.error}" for file in failed[:_NAMED_IN_ERROR])
        msg = f"{len(failed)} of {total} files do not decode, wanted at most half: {first}"
        raise DatasetError(msg)
    gone = {file.path for file in failed}
    return replace(dataset, samples=tuple(sample for sample in dataset.samples if sample.path not in gone))


# --- classifier -------------------------------------------------------------------------------------------------------


def _labelled(spark: SparkSession, frame: DataFrame, samples: Sequence[Sample]) -> DataFrame:
    """Keep the rows of some samples, with their labels as Spark's classifiers want them."""
    labels = [(str(sample.path), float(sample.label)) for sample in samples]
    return frame.join(broadcast(spark.createDataFrame(labels, "path string, label double")), "path")


def _fit_classifier(train: DataFrame) -> LogisticRegressionModel:
    # Each iteration is a job over all partitions, which were cut for the network's sake: one per core costs least here.
    train = train.coalesce(train.sparkSession.sparkContext.defaultParallelism)
    return LogisticRegression(maxIter=10, regParam=0.05, elasticNetParam=0.3, labelCol="label").fit(train)


def _predict(classifier: LogisticRegressionModel, test: DataFrame, samples: Sequence[Sample]) -> tuple[HeldOut, ...]:
    rows = {
        row["path"]: row for row in classifier.transform(test).select("path", "prediction", "probability").collect()
    }
    found = [(sample, rows[str(sample.path)]) for sample in samples]
    return tuple(HeldOut(sample, int(row["prediction"]), tuple(row["probability"].tolist())) for sample, row in found)


def _confusion(held_out: Sequence[HeldOut], n_classes: int) -> Matrix:
    actual = [item.sample.label for item in held_out]
    return confusion_matrix(actual, [item.prediction for item in held_out], n_classes=n_classes)


def _measure(confusion: Matrix, split: Split) -> dict[str, float]:
    return {**weighted_metrics(confusion), "n_train": len(split.train), "n_test": len(split.test)}


# --- saved model ------------------------------------------------------------------------------------------------------


def _save(model: PipelineModel, out: Path, write_up: Callable[[str, str], ModelCard]) -> tuple[Path, ModelCard]:
    """Save beside the final place and rename, so that a killed run leaves no half model."""
    with _reserved_version(out.absolute()) as (version, scratch):
        # A path as Hadoop reads it: with a scheme, whatever the default file system is, and not percent-encoded.
        model.write().save(f"file://{scratch / version}")
        card = write_up(version, hash_model_folder(scratch / version))
        write_card(scratch / version, card)
        folder = (scratch / version).rename(out.absolute() / version)
    return folder, card


@contextmanager
def _reserved_version(out: Path) -> Iterator[tuple[str, Path]]:
    """Give a free version and a hidden folder to work in; making that folder is what reserves the version."""
    out.mkdir(parents=True, exist_ok=True)
    for version in _versions(datetime.now(UTC)):
        scratch = out / f".{version}"
        if not (out / version).exists() and _made(scratch):
            break
    try:
        yield version, scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _versions(moment: datetime) -> Iterator[str]:
    version = f"{moment:%Y%m%dT%H%M%SZ}"
    yield version
    suffix = 2
    while True:
        yield f"{version}-{suffix}"
        suffix += 1


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _write_up(
    name: str, version: str, sha256: str, dataset: Dataset, model: PipelineModel, metrics: dict[str, float]
) -> ModelCard:
    featurizer = model.stages[0]
    positive, two = dataset.labels[-1], len(dataset.labels) == _TWO_CLASSES
    return ModelCard(
        name=name,
        version=version,
        labels=dataset.labels,
        positive_label=positive,
        threshold=0.5 if two else None,
        operating_point=f"probability of {positive} at least 0.5, not tuned" if two else "the most probable class",
        network=featurizer.network.name,
        precision=featurizer.network.precision,
        rendering_version=RENDERING_VERSION,
        sha256=sha256,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics=metrics,
    )
