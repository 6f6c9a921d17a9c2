"""Fits a new classifier on stored feature vectors: which patients are held out, and how the new one comes to decide.

The held-out patients follow from their ids alone. The new classifier decides as the champion does: calibrated where
that is, at a threshold for the same sensitivity, undecided on as many images.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import DatasetError
from schemas.modelcard import BINARY, ModelCard
from training.arrays import Floats, Ints, Mask
from training.features.extract import Progress
from training.features.stored import StoredSet
from training.figures.bootstrap import Outcomes, gather_outcomes
from training.figures.curves import OperatingPoint, choose_threshold
from training.model.classifier import PAPER, Head, predict_rows
from training.model.decision import Decision, fit_decision
from training.model.folds import predict_out_of_fold
from training.model.probability import calibrate, fit_calibrator
from training.model.regression import fit_regression

HELD_OUT_SHARE = 0.3
"""Of the patients; as `xray train` holds out."""

EVEN = 0.5
"""Threshold of two classes where none was chosen."""

N_RESAMPLES = 2000

# Of 30,000 held-out images so many take 8 s on one core; 2,000 would take longer than all the rest.
MANY_IMAGES, FEW_RESAMPLES = 5000, 500

MAX_COMPARED = 20_000
"""Vectors to choose the detector's limit by: each is compared with 2,000 others."""

FOLDS_KEY = b"xray: folds"

_SPLIT_KEY = b"xray: held-out patients"  # never to be changed: held-out patients would come to be trained on

_N_FOLDS = 5

_LEAST_SHARE, _MOST_SHARE = 0.01, 0.5


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
    return hash_patients(patients, _SPLIT_KEY) < share


def hash_patients(patients: npt.NDArray[np.str_], key: bytes) -> Floats:
    """Give each patient a number from 0 to 1."""
    names, places = np.unique(patients, return_inverse=True)
    digests = (hashlib.blake2b(name.encode(), key=key, digest_size=8).digest() for name in names.tolist())
    return np.array([int.from_bytes(digest) / 2**64 for digest in digests], np.float64)[places]


@dataclass(frozen=True, eq=False)
class Refitted:
    """The new classifier, and how it decides.

    Parameters
    ----------
    head : Head
        The classifier.
    threshold : float or None
        Of two classes.
    calibrated : bool
        Whether a calibrator is folded in.
    point : OperatingPoint or None
        Where the threshold was chosen for a sensitivity.
    decision : Decision
        What it does not decide on.
    variants : tuple
        The classifier after each part of the procedure: name, head, threshold, and on what it was chosen.
    """

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
class Refit:
    """One retraining: what it learns from, and how it comes to a new classifier.

    Parameters
    ----------
    stored : StoredSet
        What to learn from; the positive class is the last one.
    card : ModelCard
        Of the champion.
    held_out : numpy.ndarray
        bool, shape (n,): see `choose_held_out`.
    seed : int
        Of resamples and samples.
    served_report : mapping or None
        The champion's report, see `training.lifecycle.promotion.read_report`.
    report : callable
        See `training.features.extract.Progress`.
    """

    stored: StoredSet
    card: ModelCard
    held_out: Mask
    seed: int
    served_report: Mapping[str, Any] | None
    report: Progress

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.card.labels)

    @property
    def n_resamples(self) -> int:
        """Of every bootstrap: fewer where there are many images."""
        return N_RESAMPLES if self.held_out.sum() <= MANY_IMAGES else FEW_RESAMPLES

    def fit(self, served: Head) -> Refitted:
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
        threshold = EVEN if two else None
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
                threshold = EVEN if chosen.threshold is None else chosen.threshold
                variants.append((f"at sensitivity {chosen.wanted_sensitivity:g}", head, threshold, note))
        decision = self.decide(known, rows, threshold, share)
        return Refitted(head, threshold, calibrated, chosen, decision, tuple(variants))

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
            found = float(self.card.abstain.covers(scores).mean())
        return min(max(round(found, 2), _LEAST_SHARE), _MOST_SHARE)

    def decide(self, known: Outcomes | None, rows: Ints, threshold: float | None, share: float | None) -> Decision:
        """Abstain on as many images as the champion, and take as many for unlike the training images."""
        quantile = None if self.card.novelty is None else self.card.novelty.quantile
        if share is None and quantile is None:
            return Decision()
        some = np.sort(np.random.default_rng(self.seed).permutation(rows)[:MAX_COMPARED])
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
        folds = (hash_patients(patients, FOLDS_KEY) * _N_FOLDS).astype(np.int64)
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
