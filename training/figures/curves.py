"""Curves over all thresholds, and the choice of one."""

import math
from dataclasses import dataclass

import numpy as np

from schemas.modelcard import BINARY
from training.arrays import Floats, Ints
from training.figures.bootstrap import N_RESAMPLES, Estimate, Outcomes
from training.figures.measure import measure, why_undefined

_NAN = float("nan")


# --- curves and thresholds --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Curve:
    """Points of a curve, one for each threshold.

    Parameters
    ----------
    x, y, thresholds : numpy.ndarray
        float64, shape (n_points,); thresholds fall. Empty where the curve is undefined.
    note : str
        Why it is.
    """

    x: Floats
    y: Floats
    thresholds: Floats
    note: str = ""


_EMPTY: Floats = np.zeros(0)


def trace_roc(outcomes: Outcomes, *, max_points: int = 500) -> Curve:
    """Trace sensitivity (y) over 1 - specificity (x).

    Parameters
    ----------
    outcomes : Outcomes
        Of two classes.
    max_points : int
        More are thinned evenly; both ends stay.

    Returns
    -------
    Curve
        From (0, 0), whose threshold is infinite, to (1, 1).

    Raises
    ------
    ValueError
        There are more than two classes.
    """
    from sklearn.metrics import roc_curve  # noqa: PLC0415  heavy, and part of the train extra only

    labels, scores = labels_and_scores(outcomes)
    if np.unique(labels).size < BINARY:
        return Curve(_EMPTY, _EMPTY, _EMPTY, why_undefined(outcomes))
    x, y, thresholds = roc_curve(labels, scores)
    return _thinned(x, y, thresholds, max_points)


def trace_precision_recall(outcomes: Outcomes, *, max_points: int = 500) -> Curve:
    """Trace precision (y) over sensitivity (x); the arguments, result and errors are those of `trace_roc`.

    The curve begins at sensitivity 0 and precision 1 with an infinite threshold, and is to be drawn in steps.
    """
    from sklearn.metrics import precision_recall_curve  # noqa: PLC0415

    labels, scores = labels_and_scores(outcomes)
    if np.unique(labels).size < BINARY:
        return Curve(_EMPTY, _EMPTY, _EMPTY, why_undefined(outcomes))
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    return _thinned(recall[::-1], precision[::-1], np.r_[np.inf, thresholds[::-1]], max_points)


def labels_and_scores(outcomes: Outcomes) -> tuple[Ints, Floats]:
    """Return what a curve is drawn from; ValueError where there are not two classes."""
    if outcomes.n_classes != BINARY:
        msg = f"{outcomes.n_classes} classes, expected 2"
        raise ValueError(msg)
    return outcomes.labels, outcomes.probabilities[:, 1]


def _thinned(x: Floats, y: Floats, thresholds: Floats, max_points: int) -> Curve:
    kept = np.unique(np.linspace(0, x.size - 1, min(max_points, x.size)).round().astype(np.int64))
    return Curve(x[kept], y[kept], thresholds[kept])


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold and what it does on the images it was chosen on.

    Parameters
    ----------
    threshold : float or None
        A probability of class 1 at or above it is positive; None where there was nothing to choose by.
    wanted_sensitivity : float
        What was asked for.
    sensitivity, specificity : Estimate
        On the same images, so a little too good: measure again on others.
    """

    threshold: float | None
    wanted_sensitivity: float
    sensitivity: Estimate
    specificity: Estimate


def choose_threshold(
    outcomes: Outcomes, *, sensitivity: float, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> OperatingPoint:
    """Choose the highest threshold that reaches a stated sensitivity, which is that of the best specificity.

    Parameters
    ----------
    outcomes : Outcomes
        Validation images, of two classes; never those that the model is then measured on.
    sensitivity : float
        More than 0, at most 1.
    n_resamples, seed : int
        Of the intervals.

    Returns
    -------
    OperatingPoint
        The threshold lies midway between two probabilities that occur, so that rounding decides nothing.

    Raises
    ------
    ValueError
        The sensitivity is out of range, or there are more than two classes.
    """
    if not 0 < sensitivity <= 1:
        msg = f"sensitivity is {sensitivity}, expected more than 0 and at most 1"
        raise ValueError(msg)
    labels, scores = labels_and_scores(outcomes)
    positive = np.sort(scores[labels == 1])[::-1]
    if not positive.size:
        nothing = Estimate(_NAN, _NAN, _NAN, "no image of class 1 to choose a threshold by")
        return OperatingPoint(None, sensitivity, nothing, nothing)
    # 0.95 * 20 is 19.000000000000004 for a computer, and would ask for the 20th.
    last = positive[math.ceil(sensitivity * positive.size - 1e-9) - 1]
    threshold = float((last + scores[scores < last].max(initial=0.0)) / 2)
    decided = Outcomes(labels, outcomes.probabilities, (scores >= threshold).astype(np.int64), outcomes.patients)
    figures = measure(decided, n_resamples=n_resamples, seed=seed)
    return OperatingPoint(threshold, sensitivity, figures["sensitivity"], figures["specificity"])
