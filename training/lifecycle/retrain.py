"""Fits a new classifier on stored feature vectors, and compares it with the model in service on patients neither knows.

The featurizer is the champion's, unchanged; only the classifier on top of it is new. So no image is read, and 100,000
vectors take seconds. Which patients are held out follows from their ids alone: the same ones in every retraining, so a
model that was retrained has never learned from those that the next one is compared on.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import DatasetError, SettingsError
from schemas.modelcard import BINARY, ModelCard, hash_model_folder, write_card
from sparkdl.image.limits import RENDERING_VERSION
from sparkdl.network.base import Network
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from training.arrays import Floats, Ints, Mask
from training.data.positive import describe_choice
from training.evidence.evaluation import DataSummary, Evaluation, Mistake, Provenance, SetFigures, Side, Variant
from training.evidence.evaluator import IMAGES_FILE, load_served, name_served
from training.evidence.probes import Probe, Verdict, give_verdict, predict_probe
from training.features.extract import Progress, ignore
from training.features.stored import StoredSet
from training.figures.bootstrap import Estimate, Outcomes, estimate_image_share, gather_outcomes
from training.figures.calibration import Calibration, measure_calibration
from training.figures.compare import Comparison, compare, measure_groups
from training.figures.curves import OperatingPoint, choose_threshold, trace_precision_recall, trace_roc
from training.figures.measure import count_confusion, measure, weighted_metrics
from training.figures.prevalence import predict_values
from training.figures.shift import make_reference, save_reference
from training.lifecycle.promotion import read_report
from training.model.abstain import measure_abstention
from training.model.classifier import PAPER, Head, predict_rows
from training.model.decision import Decision, fit_decision, flag_images, store_decision
from training.model.folds import predict_out_of_fold
from training.model.novelty import NoveltyFigures
from training.model.probability import calibrate, fit_calibrator
from training.model.regression import fit_regression
from training.model.save import reserve_version

HELD_OUT_SHARE = 0.3
"""Of the patients; as `xray train` holds out."""

MIN_LABELS = 100
"""Below it the comparison is about some dozen held-out images, and says nothing."""

_log = logging.getLogger(__name__)

_SPLIT_KEY = b"xray: held-out patients"  # never to be changed: held-out patients would come to be trained on
_FOLDS_KEY = b"xray: folds"
_N_FOLDS = 5
_EVEN = 0.5
_N_RESAMPLES = 2000
# Of 30,000 held-out images so many take 8 s on one core; 2,000 would take longer than all the rest.
_MANY_IMAGES, _FEW_RESAMPLES, _FEW_CALIBRATIONS = 5000, 500, 200
_MAX_PROBED = 20_000
_MIN_PROBED_PATIENTS = 4
_MAX_MISTAKES = 12
_MAX_COMPARED = 20_000  # vectors to choose the detector's limit by: each is compared with 2,000 others
_LEAST_SHARE, _MOST_SHARE = 0.01, 0.5
_INHERITED = "model in service was confounded: "


@dataclass(frozen=True, eq=False)
class Retrained:
    """A new model, compared with the one in service.

    Parameters
    ----------
    folder : Path
        The saved ``PipelineModel``.
    card : ModelCard
        Its card.
    evaluation : Evaluation
        What the report shows.
    by_source : mapping of str to mapping
        `Comparison` by figure, of each source's held-out images; without those that lack a class.
    n_train, n_held_out : mapping of str to int
        Images by label.
    left_out : mapping of str to int
        Labelled images that could not be taken, by reason.
    seconds : float
        Wall time.
    """

    folder: Path
    card: ModelCard
    evaluation: Evaluation
    by_source: Mapping[str, Mapping[str, Comparison]]
    n_train: Mapping[str, int]
    n_held_out: Mapping[str, int]
    left_out: Mapping[str, int]
    seconds: float


def choose_held_out(patients: npt.NDArray[np.str_], *, share: float = HELD_OUT_SHARE) -> Mask:
    """Choose the patients that are held out, by a keyed hash of their ids.

    Parameters
    ----------
    patients : numpy.ndarray
        str, shape (n,).
    share : float
        About so much of them.

    Returns
    -------
    numpy.ndarray
        bool, shape (n,). A patient's side depends on nothing but the id.
    """
    return _hash(patients, _SPLIT_KEY) < share


def _hash(patients: npt.NDArray[np.str_], key: bytes) -> Floats:
    """Give each patient a number from 0 to 1."""
    names, places = np.unique(patients, return_inverse=True)
    digests = (hashlib.blake2b(name.encode(), key=key, digest_size=8).digest() for name in names.tolist())
    return np.array([int.from_bytes(digest) / 2**64 for digest in digests], np.float64)[places]


def retrain_model(
    stored: StoredSet,
    champion: Path,
    card: ModelCard,
    *,
    reports_folder: Path,
    min_labels: int = MIN_LABELS,
    seed: int = 0,
    report: Progress = ignore,
) -> Retrained:
    """Fit, compare and save; the model appears beside the champion, complete or not at all.

    Parameters
    ----------
    stored : StoredSet
        What to learn from.
    champion : Path
        Folder of the model in service.
    card : ModelCard
        Its card.
    reports_folder : Path
        Where the models' reports are: how the champion decides and what it was trained on is read there, and the list
        of images and the reference for drift are written there.
    min_labels : int
        Labelled images that are wanted at least.
    seed : int
        Of resamples and folds. The split does not depend on it.
    report : callable
        See `training.features.extract.Progress`.

    Returns
    -------
    Retrained
        The same rows and seed give the same coefficients.

    Raises
    ------
    DatasetError
        There are too few labels, or a class is missing on one side.
    SettingsError
        The champion was made with other decoding rules than these.
    ModelLoadError
        It cannot be loaded, or is another kind of pipeline.

    Notes
    -----
    The classifier is fitted with the paper's settings. Where the champion's report says that it was calibrated, or
    decides at a threshold that was chosen for a sensitivity, the same is done for the new one, on training patients out
    of fold: a promotion must not move the point at which people are alarmed. For the same reason the positive class
    stays the champion's. Where the champion abstains near its threshold, or does not judge images unlike its training
    images, the new one does so for the same share of images.
    """
    started = time.perf_counter()
    check_labels(stored, card, min_labels=min_labels)
    held_out = choose_held_out(stored.patients)
    featurizer, served = load_served(champion)
    stored, served, card = _put_positive_last(stored, served, card)
    work = _Work(stored, card, held_out, seed, read_report(reports_folder / card.version), report)
    fitted = work.fit(served)
    threshold = fitted.threshold
    outcomes, before = work.ask(fitted.head, threshold), work.ask(served, card.threshold)
    metrics = {**weighted_metrics(count_confusion(outcomes)), "n_train": int((~held_out).sum())}
    metrics["n_test"] = int(held_out.sum())
    new_card = replace(
        card,
        threshold=threshold,
        operating_point=_describe_decision(fitted, card) + fitted.decision.describe(),
        rendering_version=RENDERING_VERSION,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics=metrics,
        abstain=fitted.decision.abstain,
        novelty=fitted.decision.novelty,
    )
    report("saving", 0, 1)
    folder, new_card = _save(featurizer, fitted, champion.parent, new_card)
    report("saving", 1, 1)
    name = name_served(card.version, stored.digests[held_out].tolist(), reports_folder)
    compared = compare(before, outcomes, n_resamples=work.n_resamples, seed=seed)
    by_source = work.compare_sources(before, outcomes)
    report("judging", 2, 3)
    evaluation = work.evaluate(new_card, featurizer.network, fitted, outcomes, compared, name)
    evaluation = replace(
        evaluation, provenance=replace(evaluation.provenance, seconds=round(time.perf_counter() - started, 3))
    )
    own = reports_folder / new_card.version
    scores = outcomes.probabilities[:, card.labels.index(card.positive_label)]
    save_reference(own, make_reference(stored.features, scores, seed=seed))
    (own / IMAGES_FILE).write_text("\n".join(stored.digests[~held_out].tolist()) + "\n", encoding="utf-8")
    report("judging", 3, 3)
    _log.info(
        "retrained %s from %s: %d train, %d held out",
        new_card.version,
        card.version,
        metrics["n_train"],
        held_out.sum(),
    )
    return Retrained(
        folder,
        new_card,
        evaluation,
        by_source,
        work.count(~held_out),
        work.count(held_out),
        stored.left_out,
        time.perf_counter() - started,
    )


def _put_positive_last(stored: StoredSet, served: Head, card: ModelCard) -> tuple[StoredSet, Head, ModelCard]:
    """Order the classes as training does: what is fitted and measured here takes the last one for the positive one."""
    order = sorted(range(len(card.labels)), key=lambda place: card.labels[place] == card.positive_label)
    labels = np.argsort(order)[stored.labels]
    names = tuple(card.labels[place] for place in order)
    return replace(stored, labels=labels), served.reorder(order), replace(card, labels=names)


def describe_inherited(card: ModelCard) -> str:
    """Say how it is known which class of a retrained model is the positive one.

    Parameters
    ----------
    card : ModelCard
        Of the model in service.
    """
    return describe_choice(card.positive_label, f"as in {card.version}, the model in service")


def check_labels(stored: StoredSet, card: ModelCard, *, min_labels: int = MIN_LABELS) -> None:
    """Refuse what nothing can be learned from; to be called before Spark is started.

    Raises
    ------
    DatasetError, SettingsError
        See `retrain_model`.
    """
    held_out = choose_held_out(stored.patients)
    if card.rendering_version != RENDERING_VERSION:
        msg = (
            f"{card.version} was made with decoding rules {card.rendering_version}, these are {RENDERING_VERSION}: "
            "stored vectors are of no use any more, train anew with 'xray train --data FOLDER'"
        )
        raise SettingsError(msg)
    n_images = len(stored.labels)
    if n_images < min_labels:
        msg = (
            f"{n_images} labelled images have a vector, wanted {min_labels}: record more with 'xray label FILE.csv', "
            "or lower --min-labels"
        )
        raise DatasetError(msg)
    for side, mask in (("held-out", held_out), ("training", ~held_out)):
        counts = np.bincount(stored.labels[mask], minlength=len(card.labels))
        if missing := [label for label, count in zip(card.labels, counts, strict=True) if not count]:
            msg = (
                f"no labelled image of {', '.join(missing)} is among the {mask.sum()} images of {side} patients: "
                "record more with 'xray label FILE.csv'"
            )
            raise DatasetError(msg)


def _save(featurizer: DeepImageFeaturizer, fitted: "_Fitted", out: Path, card: ModelCard) -> tuple[Path, ModelCard]:
    """Save beside the final place and rename, as training does."""
    with reserve_version(out) as (version, scratch):
        place = scratch / version
        fitted.head.save(place, featurizer, PAPER, fitted.threshold)
        store_decision(place, fitted.decision)
        card = replace(card, version=version, sha256=hash_model_folder(place))
        write_card(place, card)
        folder = place.rename(out / version)
    return folder, card


def _describe_decision(fitted: "_Fitted", card: ModelCard) -> str:
    if fitted.threshold is None:
        return "the most probable class"
    if fitted.point is None:
        return f"probability of {card.positive_label} at least 0.5, not tuned"
    return (
        f"probability of {card.positive_label} at least {fitted.threshold:.4g}, chosen for sensitivity "
        f"{fitted.point.wanted_sensitivity:g} on training patients, out of fold"
    )


@dataclass(frozen=True, eq=False)
class _Fitted:
    """The new classifier, and how it decides."""

    head: Head
    threshold: float | None
    calibrated: bool
    point: OperatingPoint | None
    decision: Decision
    variants: tuple[tuple[str, Head, float | None, str], ...]

    @property
    def procedure(self) -> str:
        """Say how it was made."""
        words = ["retrained on stored features"]
        if self.calibrated:
            words.append("calibrated")
        if self.point is not None:
            words.append(f"operating point at sensitivity {self.point.wanted_sensitivity:g}")
        return ", ".join(words)


@dataclass(frozen=True, eq=False)
class _Work:
    """One retraining."""

    stored: StoredSet
    card: ModelCard
    held_out: Mask
    seed: int
    served_report: Mapping[str, Any] | None
    report: Progress

    @property
    def n_classes(self) -> int:
        return len(self.card.labels)

    @property
    def n_resamples(self) -> int:
        return _N_RESAMPLES if self.held_out.sum() <= _MANY_IMAGES else _FEW_RESAMPLES

    # -- fitting

    def fit(self, served: Head) -> _Fitted:
        """Fit on the training side; then decide as the champion does."""
        rows = np.flatnonzero(~self.held_out)
        made = self.served_report["provenance"]["procedure"] if self.served_report else ""
        point = self.served_report["operating_point"] if self.served_report else None
        calibrated, two = "calibrated" in made, self.n_classes == BINARY
        share = self.abstained_share(served)
        out_of_fold = calibrated or point or share
        total = 1 + (_N_FOLDS if out_of_fold else 0)
        self.report("fitting", 0, total)
        head = fit_regression(self.stored.features, rows, self.stored.labels[rows], PAPER, self.n_classes)
        self.report("fitting", 1, total)
        threshold = _EVEN if two else None
        variants = [("as fitted", head, threshold, "")]
        chosen, known = None, self.predict_out_of_fold(rows, total) if out_of_fold else None
        if known is not None:
            note = f"chosen on {known.labels.size} training images, out of fold"
            if calibrated:
                calibrator = fit_calibrator(known)
                head = head.calibrate(calibrator)
                variants.append(("calibrated", head, threshold, note))
                known = calibrate(known, calibrator)
            if point and two:
                chosen = choose_threshold(
                    known, sensitivity=point["wanted_sensitivity"], n_resamples=self.n_resamples, seed=self.seed
                )
                threshold = _EVEN if chosen.threshold is None else chosen.threshold
                variants.append((f"at sensitivity {chosen.wanted_sensitivity:g}", head, threshold, note))
        decision = self.decide(known, rows, threshold, share)
        return _Fitted(head, threshold, calibrated, chosen, decision, tuple(variants))

    def abstained_share(self, served: Head) -> float | None:
        """Give the share of images that the champion abstains on, in whole percents; None where on none."""
        if self.card.abstain is None:
            return None
        report = self.served_report and self.served_report.get("abstention")
        if report:
            found = float(report["share"]["value"])
        else:
            rows = np.flatnonzero(~self.held_out)
            scores = predict_rows(served, self.stored.features, rows)[:, 1]
            found = float(((scores >= self.card.abstain.low) & (scores < self.card.abstain.high)).mean())
        return min(max(round(found, 2), _LEAST_SHARE), _MOST_SHARE)

    def decide(self, known: Outcomes | None, rows: Ints, threshold: float | None, share: float | None) -> Decision:
        """Abstain on as many images as the champion, and take as many for unlike the training images."""
        quantile = None if self.card.novelty is None else self.card.novelty.quantile
        if share is None and quantile is None:
            return Decision()
        some = np.sort(np.random.default_rng(self.seed).permutation(rows)[:_MAX_COMPARED])
        return fit_decision(
            known,
            self.stored.features[some],
            self.stored.patients[some].tolist(),
            threshold=threshold,
            abstain_share=share,
            novelty_quantile=quantile,
            seed=self.seed,
        )

    def predict_out_of_fold(self, rows: Ints, total: int) -> Outcomes:
        """Predict the training side by cross-validation over its patients."""
        labels, patients = self.stored.labels[rows], self.stored.patients[rows]
        folds = (_hash(patients, _FOLDS_KEY) * _N_FOLDS).astype(np.int64)
        dealt = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(_N_FOLDS)]
        found = predict_out_of_fold(
            self.stored.features,
            rows,
            labels,
            [(train, test) for train, test in dealt if np.unique(labels[train]).size == self.n_classes],
            PAPER,
            self.n_classes,
            lambda done: self.report("fitting", 1 + done, total),
        )
        self.report("fitting", total, total)
        known = found.known
        if not known.any():
            msg = "cross-validation needs images of each class in several folds: record more with 'xray label FILE.csv'"
            raise DatasetError(msg)
        return gather_outcomes(labels[known], found.probabilities[known], patients[known].tolist())

    def ask(self, head: Head, threshold: float | None) -> Outcomes:
        """Put what a classifier says of the held-out images beside what is true."""
        rows = np.flatnonzero(self.held_out)
        probabilities = predict_rows(head, self.stored.features, rows)
        patients: Sequence[str] = self.stored.patients[rows].tolist()
        return gather_outcomes(self.stored.labels[rows], probabilities, patients, threshold=threshold)

    # -- judging

    def compare_sources(self, before: Outcomes, after: Outcomes) -> dict[str, Mapping[str, Comparison]]:
        """Compare on each source's held-out images, where every class is among them."""
        sources = self.stored.sources[self.held_out]
        names = np.unique(sources)
        found: dict[str, Mapping[str, Comparison]] = {}
        for name in names.tolist() if names.size > 1 else []:
            mask = sources == name
            if np.unique(after.labels[mask]).size == self.n_classes:
                found[name] = compare(before.take(mask), after.take(mask), n_resamples=self.n_resamples, seed=self.seed)
        return found

    def evaluate(
        self,
        card: ModelCard,
        network: Network,
        fitted: _Fitted,
        outcomes: Outcomes,
        compared: Mapping[str, Comparison],
        name: str,
    ) -> Evaluation:
        """Find out what the report shows."""
        figures = measure(outcomes, n_resamples=self.n_resamples, seed=self.seed)
        probes, verdict = self.look_for_shortcuts(figures["auroc"].value)
        two = outcomes.n_classes == BINARY
        sources = self.stored.sources[self.held_out].tolist()
        groups = measure_groups(outcomes, sources, n_resamples=self.n_resamples, seed=self.seed)
        return Evaluation(
            verdict=verdict,
            provenance=self.provenance(card, network, fitted),
            data=self.summarize(),
            metrics={key: card.metrics[key] for key in ("accuracy", "f1", "weightedPrecision", "weightedRecall")},
            internal=SetFigures(
                name="held-out patients",
                kind="internal",
                n_images=outcomes.labels.size,
                n_patients=outcomes.n_patients,
                n_by_label=self.count(self.held_out),
                figures=figures,
                note=self.describe_patients(),
            ),
            confusion=count_confusion(outcomes),
            roc=trace_roc(outcomes) if two else None,
            precision_recall=trace_precision_recall(outcomes) if two else None,
            predictive_values=predict_values(outcomes, n_resamples=self.n_resamples, seed=self.seed) if two else (),
            others=(),
            by_source=groups if len(groups) > 1 else (),
            probes=probes,
            variants=(
                *(self.measure_variant(*variant) for variant in fitted.variants[:-1]),
                Variant(fitted.variants[-1][0], figures, self.calibration_of(outcomes), fitted.variants[-1][-1]),
            ),
            operating_point=fitted.point,
            abstention=None
            if fitted.decision.band is None
            else measure_abstention(outcomes, fitted.decision.band, n_resamples=self.n_resamples, seed=self.seed),
            novelty=self.measure_novelty(fitted.decision, outcomes, figures),
            mistakes=self.mistakes(outcomes, fitted.decision),
            in_service=compared,
            in_service_name=name,
        )

    def measure_variant(self, name: str, head: Head, threshold: float | None, note: str) -> Variant:
        outcomes = self.ask(head, threshold)
        figures = measure(outcomes, n_resamples=self.n_resamples, seed=self.seed)
        return Variant(name, figures, self.calibration_of(outcomes), note)

    def calibration_of(self, outcomes: Outcomes) -> Calibration | None:
        if outcomes.n_classes != BINARY:
            return None
        few = self.n_resamples < _N_RESAMPLES
        return measure_calibration(outcomes, n_resamples=_FEW_CALIBRATIONS if few else _N_RESAMPLES, seed=self.seed)

    def measure_novelty(
        self, decision: Decision, outcomes: Outcomes, figures: Mapping[str, Estimate]
    ) -> NoveltyFigures | None:
        """Count the held-out images that are taken for unlike the training images, and measure with and without."""
        if decision.detector is None:
            return None
        rows = np.flatnonzero(self.held_out)[:_MAX_COMPARED]
        flagged = decision.detector.flags(self.stored.features[rows])
        share = estimate_image_share(flagged, self.stored.patients[rows], n_resamples=self.n_resamples, seed=self.seed)
        looked_at = outcomes.take(np.arange(outcomes.labels.size) < rows.size)
        judged = measure(looked_at.take(~flagged), n_resamples=self.n_resamples, seed=self.seed)
        every = figures
        if rows.size < outcomes.labels.size:
            every = measure(looked_at, n_resamples=self.n_resamples, seed=self.seed)
        return NoveltyFigures(decision.detector.threshold, share, judged, every)

    def look_for_shortcuts(self, auroc: float) -> tuple[tuple[Probe, ...], Verdict]:
        """Ask the one probe that needs no image; it can speak against the model, not for it."""
        notes = [
            "shortcut probes: they look at images, and retraining has none; see the report of the last training",
            "leave-one-source-out: retraining does not do it",
            "copies: the same bytes count once; pictures that are nearly the same were not looked for",
        ]
        if self.served_report and PAPER.describe() != (used := self.served_report["provenance"]["classifier"]):
            notes.append(f"the model in service was fitted as {used}, this one as {PAPER.describe()}")
        if self.served_report is None and self.card.threshold not in (None, _EVEN):
            notes.append(
                f"the model in service decides at {self.card.threshold:g}, and no report says how that was chosen; "
                f"this one decides at {_EVEN:g}"
            )
        if self.n_resamples < _N_RESAMPLES:
            notes.append(
                f"intervals are from {self.n_resamples} resamples, those of calibration from {_FEW_CALIBRATIONS}, as "
                "there are many images"
            )
        notes += [f"left out: {count} labelled images {why}" for why, count in self.stored.left_out.items()]
        inherited = self.inherit_reasons()
        probe = self.probe_source()
        if probe is None:
            return (), Verdict("unknown", inherited, tuple(notes))
        verdict = give_verdict(auroc, [probe])
        if verdict.verdict == "confounded":
            return (probe,), replace(verdict, reasons=(*verdict.reasons, *inherited), notes=(*verdict.notes, *notes))
        notes.append(f"source: its name alone tells the label with an AUROC of {probe.auroc.value:.3f}")
        return (), Verdict("unknown", inherited, tuple(notes))

    def inherit_reasons(self) -> tuple[str, ...]:
        """Say what was found against the model in service: the new one sees the same features of the same places."""
        if self.served_report is None:
            return ()
        reasons = self.served_report["verdict"]["reasons"]
        if own := [reason for reason in reasons if _INHERITED not in reason]:
            return (f"the {_INHERITED}{'; '.join(own)}",)
        return tuple(f"an earlier {reason[reason.index(_INHERITED) :]}" for reason in reasons)

    def probe_source(self) -> Probe | None:
        """Predict the label from the source's name, by cross-validation; None where that says nothing."""
        chosen = np.sort(np.random.default_rng(self.seed).permutation(len(self.stored.labels))[:_MAX_PROBED])
        labels, patients = self.stored.labels[chosen], self.stored.patients[chosen]
        names, codes = np.unique(self.stored.sources[chosen], return_inverse=True)
        fewest = min(np.unique(patients[labels == label]).size for label in range(self.n_classes))
        if names.size < BINARY or fewest < _MIN_PROBED_PATIENTS:
            return None
        values = np.eye(names.size)[codes]
        # Folds by a group of patients each: there may be as many patients as images, and folds are dealt one by one.
        groups = [f"{number:.2f}" for number in _hash(patients, _FOLDS_KEY)] if patients.size > _MANY_IMAGES else None
        probabilities = predict_probe(values, labels, groups or patients.tolist(), seed=self.seed)
        outcomes = gather_outcomes(labels, probabilities, patients.tolist())
        found = measure(outcomes, n_resamples=_FEW_RESAMPLES, seed=self.seed)["auroc"]
        return Probe("source", "label", found, names.size)

    def mistakes(self, outcomes: Outcomes, decision: Decision) -> tuple[Mistake, ...]:
        """Give the worst ones, named by their digests: there are no files."""
        rows = np.flatnonzero(self.held_out)
        surety = outcomes.probabilities[np.arange(rows.size), outcomes.predictions]
        wrong = np.flatnonzero(outcomes.predictions != outcomes.labels)
        worst = wrong[np.argsort(-surety[wrong], kind="stable")][:_MAX_MISTAKES]
        flags = flag_images(decision, outcomes.probabilities[worst, 1], self.stored.features[rows[worst]])
        return tuple(
            Mistake(
                path=Path(str(self.stored.digests[rows[index]])),
                patient=str(self.stored.patients[rows[index]]),
                source=str(self.stored.sources[rows[index]]),
                actual=self.card.labels[outcomes.labels[index]],
                predicted=self.card.labels[outcomes.predictions[index]],
                probability=float(surety[index]),
                flags=own,
            )
            for index, own in zip(worst.tolist(), flags, strict=True)
        )

    # -- describing

    def count(self, mask: Mask) -> dict[str, int]:
        counts = np.bincount(self.stored.labels[mask], minlength=self.n_classes)
        return dict(zip(self.card.labels, counts.tolist(), strict=True))

    def describe_patients(self) -> str:
        if not self.stored.n_unknown_patients:
            return ""
        return (
            f"of {self.stored.n_unknown_patients} of all {len(self.stored.labels)} images the patient is not known; "
            "each counts as a patient of its own, so one person may be on both sides"
        )

    def summarize(self) -> DataSummary:
        stored = self.stored
        names, codes = np.unique(stored.sources, return_inverse=True)
        table = np.zeros((names.size, self.n_classes), np.int64)
        np.add.at(table, (codes, stored.labels), 1)
        return DataSummary(
            labels=self.card.labels,
            n_images=len(stored.labels),
            n_patients=np.unique(stored.patients).size,
            sources=tuple(names.tolist()),
            label_by_source=tuple(tuple(row) for row in table.tolist()),
            patient_ids_known=not stored.n_unknown_patients,
            failed=(),
            exact_copies=0,
            near_copies=0,
            copies=(),
            copies_across=None,
            split="by a keyed hash of the patient's id: the same patients are held out in every retraining",
            train=self.side(~self.held_out),
            test=self.side(self.held_out),
            unknown_patients=self.describe_patients(),
            left_out=stored.left_out,
            positive_known_by=describe_inherited(self.card),
        )

    def side(self, mask: Mask) -> Side:
        return Side(int(mask.sum()), np.unique(self.stored.patients[mask]).size, self.count(mask))

    def provenance(self, card: ModelCard, network: Network, fitted: _Fitted) -> Provenance:
        stored = self.stored
        rows = sorted(
            zip(
                stored.digests.tolist(),
                (self.card.labels[label] for label in stored.labels.tolist()),
                stored.patients.tolist(),
                stored.sources.tolist(),
                strict=True,
            )
        )
        return Provenance(
            name=card.name,
            version=card.version,
            sha256=card.sha256,
            network=network.name,
            weights=network.weights,
            weights_sha256=network.weights_sha256,
            precision=network.precision,
            rendering_version=card.rendering_version,
            classifier=PAPER.describe(),
            procedure=fitted.procedure,
            seed=self.seed,
            code_version=package_version("xray-stream"),
            data_sha256=hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            created_at=card.created_at,
            seconds=0.0,
        )
