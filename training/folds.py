"""Cross-validation over groups of images: what is said of each by a classifier that was fitted without its group."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.classifier import ClassifierSettings, Floats, Ints
from training.features import Features
from training.regression import fit_regression

N_FOLDS = 5
_FEWEST = 2


def deal_folds(labels: Ints, groups: Sequence[str], seed: int) -> list[tuple[Ints, Ints]]:
    """Deal images into folds, a group's into one, classes alike.

    Returns
    -------
    list of (numpy.ndarray, numpy.ndarray)
        Indices of the images to fit on, and of those to predict. Fewer than `N_FOLDS` where a class has fewer groups;
        a fold without some class to fit on is left out.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # noqa: PLC0415  part of the train extra only

    names = np.asarray(groups, dtype=str)
    classes = np.unique(labels)
    fewest = min(np.unique(names[labels == label]).size for label in classes)
    if fewest < _FEWEST:
        return []
    folds = StratifiedGroupKFold(min(N_FOLDS, fewest), shuffle=True, random_state=seed)
    dealt = [(train, test) for train, test in folds.split(labels, labels, names)]
    return [(train, test) for train, test in dealt if np.unique(labels[train]).size == classes.size]


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What classifiers say about training images that they were not fitted on.

    Parameters
    ----------
    probabilities : numpy.ndarray
        float64, shape (n, n_classes).
    known : numpy.ndarray
        bool, shape (n,): which images have any.
    """

    probabilities: Floats
    known: npt.NDArray[np.bool_]


def predict_out_of_fold(
    features: Features,
    labels: Ints,
    folds: Sequence[tuple[Ints, Ints]],
    settings: ClassifierSettings,
    n_classes: int,
) -> OutOfFold:
    """Predict each training image by a classifier fitted on the other folds.

    Parameters
    ----------
    features : numpy.ndarray
        float32, shape (n, n_features).
    labels : numpy.ndarray
        int64, shape (n,).
    folds : sequence of (numpy.ndarray, numpy.ndarray)
        See `deal_folds`.
    settings, n_classes
        See `fit_regression`.
    """
    probabilities = np.full((len(labels), n_classes), 1 / n_classes)
    known = np.zeros(len(labels), bool)
    for train, test in folds:
        head = fit_regression(features, np.sort(train), labels[np.sort(train)], settings, n_classes)
        probabilities[test], known[test] = head.predict(features[test]), True
    return OutOfFold(probabilities, known)
