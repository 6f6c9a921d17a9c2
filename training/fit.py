"""Fits a classifier on a pretrained network's features, measures it on held-out patients, and saves both as one model.

Features are computed once and kept: every fit and every figure reads them. The saved model is a plain
``PipelineModel`` of the featurizer and the classifier.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.errors import DatasetError, SettingsError
from schemas.modelcard import ModelCard, hash_model_folder, write_card
from sparkdl.image.limits import RENDERING_VERSION
from sparkdl.network.base import Network
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from training.arrays import Features, Floats, Ints
from training.calibration import Calibrator, calibrate, fit_calibrator
from training.classifier import PAPER, TUNED, ClassifierSettings, Head
from training.dataset import Dataset, Sample, count_by_class
from training.decision import Decision, check_decision, fit_decision, store_decision
from training.duplicates import DuplicatePair, find_duplicates
from training.featurecache import FeatureCache
from training.features import ImageFacts, Report, Session, compute_features, examine, ignore, make_featurizer
from training.folds import OutOfFold, deal_folds, predict_out_of_fold
from training.metrics import confusion_matrix, weighted_metrics, wilson_interval
from training.regression import fit_regression
from training.split import Split, group_samples, split_dataset
from training.statistics import Estimate, OperatingPoint, Outcomes, choose_threshold, gather_outcomes, measure

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` with counts of images, from another thread."""

_log = logging.getLogger(__name__)

_MAX_FAILED_SHARE = 0.5  # beyond it the data is something else than images, and a model of the rest would surprise
_NAMED_IN_ERROR = 3
_TWO_CLASSES = 2
_EVEN = 0.5


@dataclass(frozen=True)
class Candidate:
    """One setting that tuning tried.

    Parameters
    ----------
    name : str
        Network and regularisation, in words.
    auroc : Estimate
        Out of fold, on training patients.
    chosen : bool
        Whether the model was made with it.
    """

    name: str
    auroc: Estimate
    chosen: bool


@dataclass(frozen=True)
class Procedure:
    """What is done beside the paper's procedure; nothing by default.

    Parameters
    ----------
    tune : bool
        Choose regularisation, and network of several, by cross-validation on training patients.
    class_weights : bool
        Let each class count as much as any other.
    calibrate : bool
        Calibrate the probabilities on training patients, out of fold.
    sensitivity : float, optional
        Choose the threshold that reaches it on training patients, out of fold; for two classes.
    abstain : float, optional
        Share of images to abstain on, chosen on training patients, out of fold; for two classes.
    gate : float, optional
        Share of training images that are to count as of their own kind; images less like them are not judged.
    """

    tune: bool = False
    class_weights: bool = False
    calibrate: bool = False
    sensitivity: float | None = None
    abstain: float | None = None
    gate: float | None = None

    @property
    def needs_out_of_fold(self) -> bool:
        """Whether something is chosen from what is said of training patients."""
        return self.calibrate or self.sensitivity is not None or self.abstain is not None

    def describe(self) -> str:
        """Say it in words; ``"paper"`` where nothing is added."""
        parts = [("tuned", self.tune), ("class weights", self.class_weights), ("calibrated", self.calibrate)]
        words = [name for name, asked in parts if asked]
        if self.sensitivity is not None:
            words.append(f"operating point at sensitivity {self.sensitivity:g}")
        if self.abstain is not None:
            words.append(f"abstains on {self.abstain:g}")
        if self.gate is not None:
            words.append(f"gate at {self.gate:g}")
        return ", ".join(words) or "paper"


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


@dataclass(frozen=True, eq=False)
class Material:
    """Everything known of the images that took part, in the order of the data set's samples.

    Parameters
    ----------
    dataset : Dataset
        The samples that decode.
    facts : tuple of ImageFacts
        Of each.
    groups : tuple of str
        Each one's patient, joined with those that have a copy in common.
    pairs : tuple of DuplicatePair
        Copies; ids are paths.
    held_out : numpy.ndarray
        bool, shape (n,).
    """

    dataset: Dataset
    facts: tuple[ImageFacts, ...]
    groups: tuple[str, ...]
    pairs: tuple[DuplicatePair, ...]
    held_out: npt.NDArray[np.bool_]

    @property
    def labels(self) -> Ints:
        """Each sample's class, int64, shape (n,)."""
        return np.array([sample.label for sample in self.dataset.samples], np.int64)

    @property
    def paths(self) -> list[Path]:
        """Each sample's file."""
        return [sample.path for sample in self.dataset.samples]

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each sample's file."""
        return [fact.digest for fact in self.facts]

    @property
    def training_groups(self) -> list[str]:
        """Groups of the samples that are trained on."""
        return [group for group, out in zip(self.groups, self.held_out, strict=True) if not out]

    def gather(self, probabilities: Floats, *, held_out: bool, threshold: float | None) -> Outcomes:
        """Put what a model says of one side beside what is true."""
        mask = self.held_out == held_out
        groups = [group for group, taken in zip(self.groups, mask, strict=True) if taken]
        return gather_outcomes(self.labels[mask], probabilities, groups, threshold=threshold)


@dataclass(frozen=True, eq=False)
class Step:
    """The model after one part of the procedure, for comparison on the held-out patients.

    Parameters
    ----------
    name : str
        In a few words.
    head : Head
        The classifier.
    threshold : float or None
        From which probability a two-class model says its positive class; None for the most probable class.
    note : str
        On what it was chosen.
    """

    name: str
    head: Head
    threshold: float | None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A classifier and how it came about.

    Parameters
    ----------
    featurizer : DeepImageFeaturizer
        Whose features it is fitted on.
    features : numpy.ndarray
        float32, shape (n, n_features): of all samples, held out or not.
    settings : ClassifierSettings
        How it is fitted.
    steps : tuple of Step
        The first is as fitted without anything added, by the same network; the last is what is saved.
    calibrator : Calibrator or None
        What is folded in.
    operating_point : OperatingPoint or None
        Where one was asked for.
    candidates : tuple of Candidate
        What tuning tried.
    decision : Decision
        What is not decided on.
    """

    featurizer: DeepImageFeaturizer
    features: Features
    settings: ClassifierSettings
    steps: tuple[Step, ...]
    calibrator: Calibrator | None = None
    operating_point: OperatingPoint | None = None
    candidates: tuple[Candidate, ...] = ()
    decision: Decision = field(default_factory=Decision)

    @property
    def network(self) -> Network:
        """The featurizer's."""
        network: Network = self.featurizer.network
        return network

    @property
    def final(self) -> Step:
        """What is saved."""
        return self.steps[-1]


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
    procedure : Procedure
        What was asked for.
    material : Material
        What is known of the images.
    fitted : Fitted
        The classifier and its features.
    """

    folder: Path
    card: ModelCard
    metrics: dict[str, float]
    accuracy_interval: tuple[float, float]
    confusion: Ints
    n_train: dict[str, int]
    n_test: dict[str, int]
    held_out: tuple[HeldOut, ...]
    failed: tuple[FailedFile, ...]
    patient_ids_known: bool
    seconds: float
    procedure: Procedure = field(repr=False)
    material: Material = field(repr=False)
    fitted: Fitted = field(repr=False)


def train_model(  # noqa: PLR0913
    spark: Session,
    dataset: Dataset,
    *,
    out: Path,
    network: str | Sequence[str] = "EfficientNetLite0",
    weights: str = "imagenet",
    precision: str = "fp32",
    test_fraction: float = 0.3,
    seed: int = 0,
    name: str = "cxr",
    progress: Progress | None = None,
    report: Report = ignore,
    cache: FeatureCache | None = None,
    procedure: Procedure = Procedure(),
) -> TrainingResult:
    """Train, measure and save a model.

    Parameters
    ----------
    spark : callable
        See `Session`; its workers must be able to read the files of ``dataset``. What is in the cache needs none.
    dataset : Dataset
        Labelled files. Those that do not decode are left out and reported.
    out : Path
        Folder of models on the driver's file system; the new one becomes a folder in it, named by its version.
    network : str or sequence of str
        See `DeepImageFeaturizer`; several are for tuning to choose from.
    weights, precision : str
        See `DeepImageFeaturizer`. ``"int8"`` is calibrated on up to 300 of the images that the classifier trains on.
    test_fraction, seed
        See `split_dataset`. The held-out patients are never trained on, not in the saved model either. The seed is
        also that of ``weights="random"``.
    name : str
        The model's name on its card.
    progress : callable, optional
        See `Progress`; told of the features alone, its last call is ``(total, total)``.
    report : callable
        Told of every part of the work, see `Report`.
    cache : FeatureCache, optional
        What is there is not computed.
    procedure : Procedure
        What is done beside the paper's.

    Returns
    -------
    TrainingResult
        The saved model and its figures.

    Raises
    ------
    SettingsError, DependencyError
        The network cannot be built as asked, or the procedure does not suit the data.
    DatasetError
        More than half of the files do not decode, or a class has too few patients.
    LeakError
        The data put a patient, or copies of an image, on both sides.

    Notes
    -----
    The model appears in ``out`` complete or not at all. A two-class model's ``threshold`` is 0.5 unless an operating
    point is asked for.
    """
    started = time.perf_counter()
    networks = (network,) if isinstance(network, str) else tuple(dict.fromkeys(network))
    _check_procedure(procedure, networks, dataset)
    material, split, failed = prepare(
        spark, dataset, test_fraction=test_fraction, seed=seed, cache=cache, report=report
    )
    build = _Builder(spark, material, weights, precision, seed, cache, _told(report, progress, len(failed)))
    featurizer, features, settings, candidates, out_of_fold = _choose(build, networks, procedure, report)
    fitter = _Fitter(material, features, seed)
    fitted = fitter.fit(featurizer, settings, procedure, candidates, out_of_fold)
    final = fitted.final
    held_out = _predict(material, features, final)
    confusion = _confusion(held_out, len(dataset.labels))
    metrics = _measure(confusion, split)
    folder, card = _save(
        fitted,
        out,
        lambda version, sha256: _write_up(name, version, sha256, dataset, fitted, metrics),
    )
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
        procedure=procedure,
        material=material,
        fitted=fitted,
    )
    _log.info(
        "trained %s %s: %d train, %d test, %d failed, accuracy %.3f, %.1f s",
        name, card.version, len(split.train), len(split.test), len(failed), metrics["accuracy"], result.seconds,
    )  # fmt: skip
    return result


def _check_procedure(procedure: Procedure, networks: Sequence[str], dataset: Dataset) -> None:
    if len(networks) > 1 and not procedure.tune:
        msg = f"{len(networks)} networks to choose from ({', '.join(networks)}), which only tuning does: add --tune"
        raise SettingsError(msg)
    check_decision(len(dataset.labels), abstain_share=procedure.abstain, gate_quantile=procedure.gate)
    if procedure.sensitivity is None:
        return
    if len(dataset.labels) != _TWO_CLASSES:
        msg = f"an operating point is for two classes, found {len(dataset.labels)}: {', '.join(dataset.labels)}"
        raise SettingsError(msg)
    if not 0 < procedure.sensitivity <= 1:
        msg = f"sensitivity is {procedure.sensitivity}, wanted more than 0 and at most 1"
        raise SettingsError(msg)


def _told(report: Report, progress: Progress | None, n_failed: int) -> Report:
    """Pass what is said of features on to a progress that counts all files, failed ones too."""
    if progress is None:
        return report

    def tell(what: str, done: int, total: int) -> None:
        report(what, done, total)
        progress(done + n_failed if done else 0, total + n_failed)

    return tell


# --- data -------------------------------------------------------------------------------------------------------------


def prepare(
    spark: Session,
    dataset: Dataset,
    *,
    test_fraction: float = 0.3,
    seed: int = 0,
    cache: FeatureCache | None = None,
    report: Report = ignore,
) -> tuple[Material, Split, tuple[FailedFile, ...]]:
    """Look at every file, find copies, and split.

    Parameters
    ----------
    spark, dataset, test_fraction, seed, cache, report
        See `train_model`.

    Returns
    -------
    tuple
        What is known of the files that decode, the split, and those that do not.
    """
    facts = examine(spark, [sample.path for sample in dataset.samples], cache, report)
    failed = tuple(
        FailedFile(sample.path, fact.error) for sample, fact in zip(dataset.samples, facts, strict=True) if fact.error
    )
    readable = _without(dataset, failed)
    known = tuple(fact for fact in facts if not fact.error)
    paths = [str(sample.path) for sample in readable.samples]
    pairs = find_duplicates([fact.picture for fact in known], paths, digests=[fact.digest for fact in known])
    split = split_dataset(readable, pairs, test_fraction=test_fraction, seed=seed)
    groups = group_samples(readable.samples, pairs)
    test = {sample.path for sample in split.test}
    held_out = np.array([sample.path in test for sample in readable.samples], bool)
    return Material(readable, known, tuple(groups[path] for path in paths), pairs, held_out), split, failed


def _without(dataset: Dataset, failed: Sequence[FailedFile]) -> Dataset:
    total = len(dataset.samples)
    if len(failed) > _MAX_FAILED_SHARE * total:
        first = "; ".join(f"{file.path}: {file.error}" for file in failed[:_NAMED_IN_ERROR])
        msg = f"{len(failed)} of {total} files do not decode, wanted at most half: {first}"
        raise DatasetError(msg)
    gone = {file.path for file in failed}
    return replace(dataset, samples=tuple(sample for sample in dataset.samples if sample.path not in gone))


# --- classifier -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Builder:
    """Makes featurizers and features of one data set."""

    spark: Session
    material: Material
    weights: str
    precision: str
    seed: int
    cache: FeatureCache | None
    report: Report

    def build(self, network: str) -> tuple[DeepImageFeaturizer, Features]:
        material = self.material
        files = list(zip(material.paths, material.digests, strict=True))
        featurizer = make_featurizer(
            network,
            weights=self.weights,
            precision=self.precision,
            seed=self.seed,
            calibration=[file for file, out in zip(files, material.held_out, strict=True) if not out],
            cache=self.cache,
        )
        features, errors = compute_features(
            self.spark, material.paths, material.digests, featurizer, self.cache, self.report
        )
        if wrong := [f"{path}: {error}" for path, error in zip(material.paths, errors, strict=True) if error]:
            msg = f"{len(wrong)} files decoded when they were examined, but not for their features: {wrong[0]}"
            raise DatasetError(msg)
        return featurizer, features


def _choose(
    builder: _Builder, networks: Sequence[str], procedure: Procedure, report: Report
) -> tuple[DeepImageFeaturizer, Features, ClassifierSettings, tuple[Candidate, ...], OutOfFold | None]:
    """Build the network; of several, and of several settings, choose by cross-validation on training patients."""
    base = replace(PAPER, class_weights=procedure.class_weights)
    if not procedure.tune:
        return (*builder.build(networks[0]), base, (), None)
    tried = [base, *(replace(settings, class_weights=base.class_weights) for settings in TUNED)]
    best: tuple[DeepImageFeaturizer, Features, ClassifierSettings, OutOfFold] | None = None
    found: list[Candidate] = []
    best_index, best_auroc = 0, -1.0
    total, done = len(networks) * len(tried), 0
    report("tuning", 0, total)
    for network in networks:
        featurizer, features = builder.build(network)
        fitter = _Fitter(builder.material, features, builder.seed)
        for settings in tried:
            predicted = fitter.predict_out_of_fold(settings)
            auroc = measure(fitter.gather(predicted))["auroc"]
            found.append(Candidate(f"{network}, {settings.describe()}", auroc, chosen=False))
            if auroc.value > best_auroc:  # a tie goes to the one before, and so to the paper's
                best, best_index, best_auroc = (featurizer, features, settings, predicted), len(found) - 1, auroc.value
            done += 1
            report("tuning", done, total)
    if best is None:
        msg = "tuning needs at least two patients of each class among the training patients"
        raise DatasetError(msg)
    found[best_index] = replace(found[best_index], chosen=True)
    featurizer, features, settings, predicted = best
    return featurizer, features, settings, tuple(found), predicted


@dataclass(frozen=True, eq=False)
class _Fitter:
    """Fits on the training side of one data set."""

    material: Material
    features: Features
    seed: int

    def fit(
        self,
        featurizer: DeepImageFeaturizer,
        settings: ClassifierSettings,
        procedure: Procedure,
        candidates: tuple[Candidate, ...],
        out_of_fold: OutOfFold | None,
    ) -> Fitted:
        """Follow a procedure."""
        threshold = _EVEN if len(self.material.dataset.labels) == _TWO_CLASSES else None
        head, steps = self._fit(settings), []
        if settings != PAPER:
            steps.append(Step("as the paper fits it", self._fit(PAPER), threshold))
        weighted = replace(PAPER, class_weights=True)
        if procedure.tune and procedure.class_weights and settings != weighted:
            steps.append(Step("with class weights", self._fit(weighted), threshold))
        steps.append(Step("as fitted" if not steps else settings.describe(), head, threshold))
        calibrator, point, known = None, None, None
        if procedure.needs_out_of_fold:
            known = self.gather(out_of_fold or self.predict_out_of_fold(settings))
            if procedure.calibrate:
                calibrator = fit_calibrator(known)
                head = head.calibrate(calibrator)
                note = f"fitted on {known.labels.size} training images, out of fold"
                steps.append(Step("calibrated", head, threshold, note))
                known = calibrate(known, calibrator)
            if procedure.sensitivity is not None:
                point = choose_threshold(known, sensitivity=procedure.sensitivity)
                threshold = point.threshold
                note = f"chosen on {known.labels.size} training images, out of fold"
                steps.append(Step(f"at sensitivity {procedure.sensitivity:g}", head, threshold, note))
        decision = fit_decision(
            known,
            self.features[~self.material.held_out],
            self.material.training_groups,
            threshold=threshold,
            abstain_share=procedure.abstain,
            gate_quantile=procedure.gate,
            seed=self.seed,
        )
        return Fitted(featurizer, self.features, settings, tuple(steps), calibrator, point, candidates, decision)

    def _fit(self, settings: ClassifierSettings) -> Head:
        rows = np.flatnonzero(~self.material.held_out)
        n_classes = len(self.material.dataset.labels)
        return fit_regression(self.features, rows, self.material.labels[rows], settings, n_classes)

    def predict_out_of_fold(self, settings: ClassifierSettings) -> OutOfFold:
        """Predict the training side by cross-validation."""
        rows = np.flatnonzero(~self.material.held_out)
        labels = self.material.labels[rows]
        folds = deal_folds(labels, self.material.training_groups, self.seed)
        if not folds:
            msg = "cross-validation needs at least two patients of each class among the training patients"
            raise DatasetError(msg)
        n_classes = len(self.material.dataset.labels)
        return predict_out_of_fold(self.features, rows, labels, folds, settings, n_classes)

    def gather(self, predicted: OutOfFold) -> Outcomes:
        """Put out-of-fold predictions beside what is true."""
        outcomes = self.material.gather(predicted.probabilities, held_out=False, threshold=None)
        return outcomes.take(predicted.known)


def _predict(material: Material, features: Features, step: Step) -> tuple[HeldOut, ...]:
    probabilities = step.head.predict(features[material.held_out])
    outcomes = material.gather(probabilities, held_out=True, threshold=step.threshold)
    samples = [sample for sample, out in zip(material.dataset.samples, material.held_out, strict=True) if out]
    return tuple(
        HeldOut(sample, int(prediction), tuple(row.tolist()))
        for sample, prediction, row in zip(samples, outcomes.predictions, probabilities, strict=True)
    )


def _confusion(held_out: Sequence[HeldOut], n_classes: int) -> Ints:
    actual = [item.sample.label for item in held_out]
    return confusion_matrix(actual, [item.prediction for item in held_out], n_classes=n_classes)


def _measure(confusion: Ints, split: Split) -> dict[str, float]:
    return {**weighted_metrics(confusion), "n_train": len(split.train), "n_test": len(split.test)}


# --- saved model ------------------------------------------------------------------------------------------------------


def _save(fitted: Fitted, out: Path, write_up: Callable[[str, str], ModelCard]) -> tuple[Path, ModelCard]:
    """Save beside the final place and rename, so that a killed run leaves no half model."""
    with reserve_version(out.absolute()) as (version, scratch):
        final = fitted.final
        final.head.save(scratch / version, fitted.featurizer, fitted.settings, final.threshold)
        store_decision(scratch / version, fitted.decision)
        card = write_up(version, hash_model_folder(scratch / version))
        write_card(scratch / version, card)
        folder = (scratch / version).rename(out.absolute() / version)
    return folder, card


@contextmanager
def reserve_version(out: Path) -> Iterator[tuple[str, Path]]:
    """Give a free version and a hidden folder to work in; making that folder is what reserves the version.

    Parameters
    ----------
    out : Path
        Folder of models.

    Yields
    ------
    tuple of str and Path
        The version, named by the time, and the folder, which is removed afterwards with what is left in it.
    """
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
    name: str, version: str, sha256: str, dataset: Dataset, fitted: Fitted, metrics: dict[str, float]
) -> ModelCard:
    return ModelCard(
        name=name,
        version=version,
        labels=dataset.labels,
        positive_label=dataset.positive,
        threshold=fitted.final.threshold,
        operating_point=_describe_decision(fitted, dataset.positive) + fitted.decision.describe(),
        network=fitted.network.name,
        precision=fitted.network.precision,
        rendering_version=RENDERING_VERSION,
        sha256=sha256,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics=metrics,
        abstain=fitted.decision.abstain,
        novelty=fitted.decision.novelty,
    )


def _describe_decision(fitted: Fitted, positive: str) -> str:
    if fitted.final.threshold is None:
        return "the most probable class"
    if (point := fitted.operating_point) is None:
        return f"probability of {positive} at least 0.5, not tuned"
    return (
        f"probability of {positive} at least {fitted.final.threshold:.4g}, chosen for sensitivity "
        f"{point.wanted_sensitivity:g} on training patients, out of fold"
    )
