"""Cross-validation over groups of images: what is said of each by a classifier that was fitted without its group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.arrays import Features, Floats, Ints
from training.model.classifier import ClassifierSettings, predict_rows
from training.model.regression import fit_regression

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
    rows: Ints,
    labels: Ints,
    folds: Sequence[tuple[Ints, Ints]],
    settings: ClassifierSettings,
    n_classes: int,
    tell: Callable[[int], None] = lambda done: None,
) -> OutOfFold:
    """Predict each training image by a classifier fitted on the other folds.

    Parameters
    ----------
    features : numpy.ndarray
        float32, shape (n_images, n_features); not copied.
    rows : numpy.ndarray
        int64, shape (n,): which of them are the training images, rising.
    labels : numpy.ndarray
        int64, shape (n,): the rows' classes.
    folds : sequence of (numpy.ndarray, numpy.ndarray)
        Places in ``rows``, rising, see `deal_folds`.
    settings, n_classes
        See `fit_regression`.
    tell : callable
        Called with the number of folds that are done.
    """
    probabilities = np.full((len(labels), n_classes), 1 / n_classes)
    known = np.zeros(len(labels), bool)
    for done, (train, test) in enumerate(folds, start=1):
        head = fit_regression(features, rows[train], labels[train], settings, n_classes)
        probabilities[test], known[test] = predict_rows(head, features, rows[test]), True
        tell(done)
    return OutOfFold(probabilities, known)
