"""Figures of a classifier from its confusion matrix, without Spark."""

import math

import numpy as np
import numpy.typing as npt

from training.arrays import Ints

_Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile: 2.5 % on either side


def confusion_matrix(actual: npt.ArrayLike, predicted: npt.ArrayLike, *, n_classes: int) -> Ints:
    """Count the pairs of actual and predicted class.

    Parameters
    ----------
    actual, predicted : array_like of int
        Class indices, shape (n,).
    n_classes : int
        Number of classes.

    Returns
    -------
    numpy.ndarray
        int64, shape (n_classes, n_classes): row is the actual class, column the predicted one.
    """
    matrix = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(matrix, (np.asarray(actual, np.int64), np.asarray(predicted, np.int64)), 1)
    return matrix


def weighted_metrics(matrix: Ints) -> dict[str, float]:
    """Compute the figures of Spark's ``MulticlassClassificationEvaluator``, under its names.

    Parameters
    ----------
    matrix : numpy.ndarray
        See `confusion_matrix`; at least one count.

    Returns
    -------
    dict
        ``accuracy``, ``f1``, ``weightedPrecision``, ``weightedRecall``: each class counts by its share of the actual
        classes. A class that is never predicted has precision 0.
    """
    hits, actual, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    weights = actual / actual.sum()
    precision, recall = _ratio(hits, predicted), _ratio(hits, actual)
    return {
        "accuracy": float(hits.sum() / actual.sum()),
        "f1": float(weights @ _ratio(2 * precision * recall, precision + recall)),
        "weightedPrecision": float(weights @ precision),
        "weightedRecall": float(weights @ recall),
    }


def _ratio(part: npt.NDArray[np.generic], whole: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    ratio = np.zeros(part.shape, np.float64)
    np.divide(part, whole, out=ratio, where=whole != 0)
    return ratio


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Compute Wilson's 95 % score interval of a proportion.

    Unlike the normal approximation it stays within 0 and 1 and has a width for 0 and for all successes.

    Parameters
    ----------
    successes, trials : int
        ``0 <= successes <= trials``, at least one trial.

    Returns
    -------
    tuple of float
        (low, high).

    References
    ----------
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    share, z2 = successes / trials, _Z_95**2
    centre = share + z2 / (2 * trials)
    spread = _Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    low, high = ((centre + sign * spread) / (1 + z2 / trials) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)
