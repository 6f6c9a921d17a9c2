"""Fits a classifier on a pretrained network's features, measures it on held-out patients, and saves both as one model.

Features are computed once and kept: every fit and every figure reads them. The saved model is a plain
``PipelineModel`` of the featurizer and the classifier. A training run is in one module, from its files to its model, as
each part passes on what the next one needs. The parts of a model are modules of their own.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from schemas.errors import DatasetError, SettingsError
from schemas.modelcard import BINARY, ModelCard
from sparkdl.image.limits import FILE_LIMITS, RENDERING_VERSION, DecodeLimits
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from training.arrays import Features
from training.data.dataset import Dataset, count_by_class
from training.data.duplicates import find_duplicates
from training.data.split import Split, group_samples, split_dataset
from training.features.cache import FeatureCache
from training.features.extract import Progress, Session, compute_features, examine, ignore
from training.features.featurizer import make_featurizer
from training.figures.bootstrap import Outcomes, wilson_interval
from training.figures.curves import choose_threshold
from training.figures.measure import count_confusion, measure, weighted_metrics
from training.model.classifier import PAPER, TUNED, ClassifierSettings, Head
from training.model.decision import check_decision, fit_decision
from training.model.folds import OutOfFold, deal_folds, predict_out_of_fold
from training.model.material import Candidate, FailedFile, Fitted, HeldOut, Material, Procedure, Step, TrainingResult
from training.model.probability import calibrate, fit_calibrator
from training.model.regression import fit_regression
from training.model.save import save_model

FeatureProgress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` with counts of images, from another thread."""

_log = logging.getLogger(__name__)

_MAX_FAILED_SHARE = 0.5  # beyond it the data is something else than images, and a model of the rest would surprise

_NAMED_IN_ERROR = 3


_EVEN = 0.5


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
    progress: FeatureProgress | None = None,
    report: Progress = ignore,
    cache: FeatureCache | None = None,
    procedure: Procedure = Procedure(),
    limits: DecodeLimits = FILE_LIMITS,
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
        See `FeatureProgress`; told of the features alone, its last call is ``(total, total)``.
    report : callable
        Told of every part of the work, see `Progress`.
    cache : FeatureCache, optional
        What is there is not computed.
    procedure : Procedure
        What is done beside the paper's.
    limits : DecodeLimits
        What one file may cost; a file beyond them does not decode.

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
        spark, dataset, test_fraction=test_fraction, seed=seed, cache=cache, report=report, limits=limits
    )
    build = _Builder(spark, material, weights, precision, seed, cache, _told(report, progress, len(failed)))
    featurizer, features, settings, candidates, out_of_fold = _choose(build, networks, procedure, report)
    fitter = _Fitter(material, features, seed)
    fitted = fitter.fit(featurizer, settings, procedure, candidates, out_of_fold)
    final = fitted.final
    probabilities = final.head.predict(features[material.held_out])
    outcomes = material.gather(probabilities, held_out=True, threshold=final.threshold)
    confusion = count_confusion(outcomes)
    metrics = {**weighted_metrics(confusion), "n_train": len(split.train), "n_test": len(split.test)}
    folder, card = save_model(
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
        held_out=_list_held_out(material, outcomes),
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
    check_decision(len(dataset.labels), abstain_share=procedure.abstain, novelty_quantile=procedure.novelty_quantile)
    if procedure.sensitivity is None:
        return
    if len(dataset.labels) != BINARY:
        found = dataset.labels
        msg = (
            f"a sensitivity to reach (--sensitivity) is for two classes, found {len(found)}: {', '.join(found)}; name "
            f"two of them with --classes {found[0]},{found[-1]}, or leave it out"
        )
        raise SettingsError(msg)
    if not 0 < procedure.sensitivity <= 1:
        msg = f"sensitivity is {procedure.sensitivity}, wanted more than 0 and at most 1"
        raise SettingsError(msg)


def _told(report: Progress, progress: FeatureProgress | None, n_failed: int) -> Progress:
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
    report: Progress = ignore,
    limits: DecodeLimits = FILE_LIMITS,
) -> tuple[Material, Split, tuple[FailedFile, ...]]:
    """Look at every file, find copies, and split.

    Parameters
    ----------
    spark, dataset, test_fraction, seed, cache, report, limits
        See `train_model`.

    Returns
    -------
    tuple
        What is known of the files that decode, the split, and those that do not.
    """
    facts = examine(spark, [sample.path for sample in dataset.samples], cache, report, limits=limits)
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
    material = Material(readable, known, tuple(groups[path] for path in paths), pairs, held_out, limits)
    return material, split, failed


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
    report: Progress

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
            limits=material.limits,
        )
        features, errors = compute_features(
            self.spark,
            material.paths,
            material.digests,
            featurizer,
            self.cache,
            self.report,
            limits=material.limits,
        )
        if wrong := [f"{path}: {error}" for path, error in zip(material.paths, errors, strict=True) if error]:
            msg = f"{len(wrong)} files decoded when they were examined, but not for their features: {wrong[0]}"
            raise DatasetError(msg)
        return featurizer, features


def _choose(
    builder: _Builder, networks: Sequence[str], procedure: Procedure, report: Progress
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
        threshold = _EVEN if len(self.material.dataset.labels) == BINARY else None
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
            novelty_quantile=procedure.novelty_quantile,
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


def _list_held_out(material: Material, outcomes: Outcomes) -> tuple[HeldOut, ...]:
    samples = [sample for sample, out in zip(material.dataset.samples, material.held_out, strict=True) if out]
    return tuple(
        HeldOut(sample, int(prediction), tuple(row.tolist()))
        for sample, prediction, row in zip(samples, outcomes.predictions, outcomes.probabilities, strict=True)
    )


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
