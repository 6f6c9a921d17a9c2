"""The figures of a set of predictions, each with its interval."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from schemas.modelcard import BINARY
from training.arrays import Floats, Ints
from training.figures.bootstrap import (
    N_RESAMPLES,
    NO_INTERVAL_SHARE,
    ROUNDING,
    Estimate,
    Outcomes,
    bootstrap,
    describe_few,
    divide,
    estimate_resampled,
    interval_of,
    n_counted,
    without_width,
)

FIGURES = (
    "accuracy",
    "f1",
    "weightedPrecision",
    "weightedRecall",
    "sensitivity",
    "specificity",
    "auroc",
    "auprc",
    "brier",
)
"""What `measure` computes, in this order; the first four are Spark's names (`weighted_metrics`)."""


_PROPORTIONS = ("accuracy", "weightedRecall", "sensitivity", "specificity", "auroc")

_NAN = float("nan")


def count_confusion(outcomes: Outcomes) -> Ints:
    """Count images by actual (row) and predicted (column) class, int64, shape (n_classes, n_classes)."""
    from sklearn.metrics import confusion_matrix  # noqa: PLC0415  heavy, and part of the train extra only

    counts = confusion_matrix(outcomes.labels, outcomes.predictions, labels=range(outcomes.n_classes))
    return np.asarray(counts, np.int64)


def weighted_metrics(matrix: Ints) -> dict[str, float]:
    """Compute the figures of Spark's ``MulticlassClassificationEvaluator``, under its names.

    Parameters
    ----------
    matrix : numpy.ndarray
        See `count_confusion`; at least one count.

    Returns
    -------
    dict
        ``accuracy``, ``f1``, ``weightedPrecision``, ``weightedRecall``: each class counts by its share of the actual
        classes. A class that is never predicted has precision 0.
    """
    from sklearn.metrics import precision_recall_fscore_support  # noqa: PLC0415

    actual, predicted = np.indices(matrix.shape).reshape(2, -1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        actual, predicted, sample_weight=matrix.ravel(), average="weighted", zero_division=0
    )
    return {
        "accuracy": float(matrix.trace() / matrix.sum()),
        "f1": float(f1),
        "weightedPrecision": float(precision),
        "weightedRecall": float(recall),
    }


# --- figures of many weightings at once -------------------------------------------------------------------------------
# Every function below takes weights of shape (b, n): how often each of n images counts in each of b resamples.


def weighted_confusion(outcomes: Outcomes, weights: Floats) -> Floats:
    """Shape (b, n_classes, n_classes)."""
    k = outcomes.n_classes
    cells = np.zeros((outcomes.labels.size, k * k))
    cells[np.arange(outcomes.labels.size), outcomes.labels * k + outcomes.predictions] = 1
    return (weights @ cells).reshape(-1, k, k)


def from_confusion(confusion: Floats) -> dict[str, Floats]:
    """Figures of decisions, each of shape (b,), from shape (b, k, k)."""
    hits, actual = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)
    predicted, total = confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    weights = divide(actual, total[:, None])
    precision, recall = divide(hits, predicted, 0.0), divide(hits, actual, 0.0)
    f1 = divide(2 * precision * recall, precision + recall, 0.0)
    accuracy = divide(hits.sum(axis=1), total)
    others = total[:, None] - actual
    per_class = divide(hits, actual), divide(others - (predicted - hits), others)
    # Two classes: class 1 is the finding. More: each class in turn, averaged.
    shown = slice(1, None) if confusion.shape[1] == BINARY else slice(None)
    return {
        "accuracy": accuracy,
        "f1": (weights * f1).sum(axis=1),
        "weightedPrecision": (weights * precision).sum(axis=1),
        "weightedRecall": accuracy.copy(),
        "sensitivity": per_class[0][:, shown].mean(axis=1),
        "specificity": per_class[1][:, shown].mean(axis=1),
    }


def _ranked(scores: Floats, labels: npt.NDArray[np.bool_]) -> Callable[[Floats], tuple[Floats, Floats]]:
    """Give a function from weights to (positives, negatives) at each distinct score, highest first: (b, n_scores)."""
    order = np.argsort(-scores, kind="stable")
    positive = labels[order].astype(np.float64)
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])

    def count(weights: Floats) -> tuple[Floats, Floats]:
        ordered = weights[:, order]
        at = np.add.reduceat(ordered * positive, starts, axis=1)
        return at, np.add.reduceat(ordered, starts, axis=1) - at

    return count


def _auroc(positives: Floats, negatives: Floats) -> Floats:
    below = negatives.sum(axis=1, keepdims=True) - np.cumsum(negatives, axis=1)
    won = (positives * (below + negatives / 2)).sum(axis=1)
    return divide(won, positives.sum(axis=1) * negatives.sum(axis=1))


def _auprc(positives: Floats, negatives: Floats) -> Floats:
    """Average precision: the step-wise area, which unlike the trapezoidal one is not too good."""
    found = np.cumsum(positives, axis=1)
    precision = divide(found, found + np.cumsum(negatives, axis=1), 0.0)
    area = divide((positives * precision).sum(axis=1), positives.sum(axis=1))
    area[negatives.sum(axis=1) == 0] = _NAN  # 1 whatever the model says
    return area


class FigureSet:
    """All of `FIGURES` of one model, ready for any weights."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        k = outcomes.n_classes
        classes = (1,) if k == BINARY else tuple(range(k))
        self._rankings = [_ranked(outcomes.probabilities[:, c], outcomes.labels == c) for c in classes]
        wrong = (outcomes.probabilities - np.eye(k)[outcomes.labels]) ** 2
        self._loss = wrong[:, 1] if k == BINARY else wrong.sum(axis=1)

    def __call__(self, weights: Floats) -> Floats:
        """Compute shape (b, len(FIGURES))."""
        found = from_confusion(weighted_confusion(self._outcomes, weights))
        counted = [count(weights) for count in self._rankings]
        found["auroc"] = np.mean([_auroc(*pair) for pair in counted], axis=0)
        found["auprc"] = np.mean([_auprc(*pair) for pair in counted], axis=0)
        found["brier"] = divide(weights @ self._loss, weights.sum(axis=1))
        return np.stack([found[name] for name in FIGURES], axis=1)


def measure(outcomes: Outcomes, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
    """Compute every figure with its interval.

    Parameters
    ----------
    outcomes : Outcomes
        Of any size; no image gives NaN throughout.
    n_resamples, seed : int
        Of the bootstrap; the same arguments give the same intervals.

    Returns
    -------
    dict
        `Estimate` by the names of `FIGURES`. ``sensitivity``, ``specificity``, ``auroc`` and ``auprc`` are of class 1
        of two; of more classes, the mean of each against the rest. ``auprc`` is average precision. ``brier`` is the
        mean squared error of class 1's probability; of more classes, summed over the classes (0 to 2), as
        scikit-learn's.

    Notes
    -----
    An interval that is not to be relied on has a note: on few patients, or where a class is missing in many resamples;
    where one of two is missing in more than 20 %, there is none.

    Where a model makes no mistake, every resample is perfect and the percentiles have no width. Accuracy, sensitivity
    and specificity then take Wilson's interval over the patients; AUROC takes it over the smaller class's patients,
    since that many pairs of a positive and a negative patient have nobody in common. The other figures then have no
    interval.
    """
    if not outcomes.labels.size:
        return {name: Estimate(_NAN, _NAN, _NAN, "no image") for name in FIGURES}
    compute = FigureSet(outcomes)
    values = compute(np.ones((1, outcomes.labels.size)))[0]
    resampled = bootstrap(outcomes, compute, n_resamples, seed)
    return {
        name: _estimate(name, float(values[column]), resampled[:, column], outcomes)
        for column, name in enumerate(FIGURES)
    }


def _estimate(name: str, value: float, resampled: Floats, outcomes: Outcomes) -> Estimate:
    if not math.isfinite(value):
        return Estimate(_NAN, _NAN, _NAN, why_undefined(outcomes))
    low, high, _ = interval_of(resampled)
    if high - low < ROUNDING:
        return without_width(value, n_counted(name, outcomes)[0] if name in _PROPORTIONS else 0)
    return estimate_with_classes(name, value, resampled, outcomes)


def estimate_with_classes(name: str, value: float, resampled: Floats, outcomes: Outcomes) -> Estimate:
    """Give a figure that needs every class its interval, or say which class is missing."""
    # Of many classes one is soon missing somewhere, though each has patients enough.
    most = NO_INTERVAL_SHARE if outcomes.n_classes == BINARY else 1.0
    few = describe_few(name, outcomes)
    return estimate_resampled(value, resampled, "a class was missing", few, most_undefined=most)


def why_undefined(outcomes: Outcomes) -> str:
    """Say which classes no image has."""
    missing = sorted(set(range(outcomes.n_classes)) - set(outcomes.labels.tolist()))
    return f"no image of class {', '.join(map(str, missing))}"
