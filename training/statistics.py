"""What a classifier's answers on held-out images are worth: figures with intervals, curves, groups, comparisons.

Pure numpy in, dataclasses out. Intervals are 95 % percentiles of a bootstrap that resamples *patients* with all their
images: images of one patient are alike, and resampling images would give intervals that are too narrow. A resample is a
row of weights, how often each patient was drawn, so thousands of them are a few matrix products: measured on one core,
all nine figures of 1,000 images of 500 patients with 2,000 resamples take 0.2 s.

Where a figure cannot be computed (one class only, no image) it is NaN and its ``note`` says why. Nothing warns.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.arrays import Floats, Ints
from training.metrics import confusion_matrix, wilson_interval

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
"""What `measure` computes, in this order; the first four are Spark's names (`training.metrics.weighted_metrics`)."""

PREVALENCES = (0.01, 0.05, 0.2, 0.5)
"""From screening to a ward of suspected cases: a held-out set's own share of disease is an accident of collection."""

_N_RESAMPLES = 2000  # a percentile's own error is then about 0.1 of the interval's half width
_BLOCK_ELEMENTS = 4_000_000  # 32 MB of weights at a time
_PERCENTILES = (0.025, 0.975)
_BINARY = 2
_FEW_PATIENTS = 20  # below it, percentile intervals are known to be too narrow
# Of one class: AUROC's interval holds the true value in 77 of 100 samples with 3 patients, in 90 with 8, in 92 with 10.
_FEW_OF_A_CLASS = 10
_MAX_UNDEFINED_SHARE = 0.05
_NO_INTERVAL_SHARE = 0.2  # a class of one patient is missing in 37 % of the resamples, one of two in 14 %
_OF_BOTH_CLASSES = ("auroc", "auprc")
_PROPORTIONS = ("accuracy", "weightedRecall", "sensitivity", "specificity", "auroc")
_ROUNDING = 1e-12
_UNCHANGED = "the same in every resample: no interval"
_NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval.

    Parameters
    ----------
    value, low, high : float
        NaN where undefined.
    note : str
        Why something is undefined, or computed in another way than usual; empty else.
    """

    value: float
    low: float
    high: float
    note: str = ""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a model said about images, beside what was true; made by `gather_outcomes`.

    Parameters
    ----------
    labels : numpy.ndarray
        int64, shape (n,): the actual class.
    probabilities : numpy.ndarray
        float64, shape (n, n_classes).
    predictions : numpy.ndarray
        int64, shape (n,): the class decided on.
    patients : numpy.ndarray
        int64, shape (n,): 0 to n_patients - 1.
    """

    labels: Ints
    probabilities: Floats
    predictions: Ints
    patients: Ints

    @property
    def n_classes(self) -> int:
        """Number of classes the model knows, whether or not they occur."""
        return int(self.probabilities.shape[1])

    @property
    def n_patients(self) -> int:
        """Number of patients with an image."""
        return int(np.unique(self.patients).size)

    def take(self, mask: npt.NDArray[np.bool_]) -> "Outcomes":
        """Keep the images where ``mask``, shape (n,), is true."""
        patients = np.unique(self.patients[mask], return_inverse=True)[1].astype(np.int64)
        return Outcomes(self.labels[mask], self.probabilities[mask], self.predictions[mask], patients)


def gather_outcomes(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, patients: Sequence[str], *, threshold: float | None = None
) -> Outcomes:
    """Check and decide.

    Parameters
    ----------
    labels : array_like of int
        Actual classes, shape (n,), 0 to n_classes - 1.
    probabilities : array_like of float
        Shape (n, n_classes), or (n,): the probability of class 1 of two.
    patients : sequence of str
        Who is on each image, length n.
    threshold : float, optional
        Probability of class 1 of two from which it is said to be present; by default, and for more classes, the most
        probable class is decided on.

    Returns
    -------
    Outcomes
        In the order given.

    Raises
    ------
    ValueError
        Lengths, classes or probabilities do not fit (a mistake of the program).
    """
    truth, scores = np.asarray(labels, np.int64), np.asarray(probabilities, np.float64)
    if scores.ndim == 1:
        scores = np.stack([1 - scores, scores], axis=1)
    _check(truth, scores, len(patients), threshold)
    positive = scores.argmax(axis=1) if threshold is None else scores[:, 1] >= threshold
    codes = np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1] if truth.size else truth
    return Outcomes(truth, scores, positive.astype(np.int64), codes.astype(np.int64))


def _check(truth: Ints, scores: Floats, n_patients: int, threshold: float | None) -> None:
    if not (truth.ndim == 1 and scores.shape[:1] == truth.shape == (n_patients,) and scores.shape[1] >= _BINARY):
        msg = f"shapes are {truth.shape}, {scores.shape} and {n_patients} patients, expected (n,), (n, 2 or more) and n"
        raise ValueError(msg)
    if truth.size and not (truth.min() >= 0 and truth.max() < scores.shape[1]):
        msg = f"labels go from {truth.min()} to {truth.max()}, expected 0 to {scores.shape[1] - 1}"
        raise ValueError(msg)
    if not np.all((scores >= 0) & (scores <= 1)):
        msg = "a probability is not a number from 0 to 1"
        raise ValueError(msg)
    if threshold is not None and scores.shape[1] != _BINARY:
        msg = f"a threshold decides between two classes, found {scores.shape[1]}"
        raise ValueError(msg)


def count_confusion(outcomes: Outcomes) -> Ints:
    """Count images by actual (row) and predicted (column) class, int64, shape (n_classes, n_classes)."""
    return confusion_matrix(outcomes.labels, outcomes.predictions, n_classes=outcomes.n_classes)


def estimate_share(successes: int, trials: int) -> Estimate:
    """Estimate a proportion with Wilson's 95 % interval; NaN for no trial.

    Parameters
    ----------
    successes, trials : int
        ``0 <= successes <= trials``; trials are independent: patients, not their images.
    """
    if not trials:
        return Estimate(_NAN, _NAN, _NAN, "nothing to count")
    return Estimate(successes / trials, *wilson_interval(successes, trials))


def estimate_image_share(
    chosen: npt.ArrayLike, patients: npt.ArrayLike, *, n_resamples: int = _N_RESAMPLES, seed: int = 0
) -> Estimate:
    """Estimate a share of images, with an interval from resampled patients: images of one patient are alike.

    Parameters
    ----------
    chosen : array_like of bool
        Whether an image is one of those that are counted, shape (n,).
    patients : array_like
        Who is on each image, shape (n,): names or codes.
    n_resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    Estimate
        NaN for no image. Where no image is chosen, or all are, the interval is Wilson's over the patients.
    """
    hits = np.asarray(chosen, np.float64)
    if not hits.size:
        return Estimate(_NAN, _NAN, _NAN, "nothing to count")
    codes = np.unique(np.asarray(patients), return_inverse=True)[1]
    n_images, n_hits = np.bincount(codes).astype(np.float64), np.bincount(codes, weights=hits)
    # A row of weights of patients here, not of images: there may be very many of those.
    blocks = resample_patients(np.arange(n_images.size), n_resamples=n_resamples, seed=seed)
    resampled = np.concatenate([weights @ n_hits / (weights @ n_images) for weights in blocks])
    value, few = float(hits.mean()), _few_patients(n_images.size)
    low, high, _ = interval_of(resampled)
    return _without_width(value, n_images.size) if high - low < _ROUNDING else Estimate(value, low, high, few)


# --- figures of many weightings at once -------------------------------------------------------------------------------
# Every function below takes weights of shape (b, n): how often each of n images counts in each of b resamples.


def _weighted_confusion(outcomes: Outcomes, weights: Floats) -> Floats:
    """Shape (b, n_classes, n_classes)."""
    k = outcomes.n_classes
    cells = np.zeros((outcomes.labels.size, k * k))
    cells[np.arange(outcomes.labels.size), outcomes.labels * k + outcomes.predictions] = 1
    return (weights @ cells).reshape(-1, k, k)


def _divide(part: Floats, whole: Floats, empty: float = _NAN) -> Floats:
    ratio = np.full(np.broadcast_shapes(part.shape, whole.shape), empty)
    np.divide(part, whole, out=ratio, where=whole != 0)
    return ratio


def _from_confusion(confusion: Floats) -> dict[str, Floats]:
    """Figures of decisions, each of shape (b,), from shape (b, k, k)."""
    hits, actual = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)
    predicted, total = confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    weights = _divide(actual, total[:, None])
    precision, recall = _divide(hits, predicted, 0.0), _divide(hits, actual, 0.0)
    f1 = _divide(2 * precision * recall, precision + recall, 0.0)
    accuracy = _divide(hits.sum(axis=1), total)
    others = total[:, None] - actual
    per_class = _divide(hits, actual), _divide(others - (predicted - hits), others)
    # Two classes: class 1 is the finding. More: each class in turn, averaged.
    shown = slice(1, None) if confusion.shape[1] == _BINARY else slice(None)
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
    return _divide(won, positives.sum(axis=1) * negatives.sum(axis=1))


def _auprc(positives: Floats, negatives: Floats) -> Floats:
    """Average precision: the step-wise area, which unlike the trapezoidal one is not too good."""
    found = np.cumsum(positives, axis=1)
    precision = _divide(found, found + np.cumsum(negatives, axis=1), 0.0)
    area = _divide((positives * precision).sum(axis=1), positives.sum(axis=1))
    area[negatives.sum(axis=1) == 0] = _NAN  # 1 whatever the model says
    return area


class _Figures:
    """All of `FIGURES` of one model, ready for any weights."""

    def __init__(self, outcomes: Outcomes) -> None:
        self._outcomes = outcomes
        k = outcomes.n_classes
        classes = (1,) if k == _BINARY else tuple(range(k))
        self._rankings = [_ranked(outcomes.probabilities[:, c], outcomes.labels == c) for c in classes]
        wrong = (outcomes.probabilities - np.eye(k)[outcomes.labels]) ** 2
        self._loss = wrong[:, 1] if k == _BINARY else wrong.sum(axis=1)

    def __call__(self, weights: Floats) -> Floats:
        """Compute shape (b, len(FIGURES))."""
        found = _from_confusion(_weighted_confusion(self._outcomes, weights))
        counted = [count(weights) for count in self._rankings]
        found["auroc"] = np.mean([_auroc(*pair) for pair in counted], axis=0)
        found["auprc"] = np.mean([_auprc(*pair) for pair in counted], axis=0)
        found["brier"] = _divide(weights @ self._loss, weights.sum(axis=1))
        return np.stack([found[name] for name in FIGURES], axis=1)


# --- bootstrap --------------------------------------------------------------------------------------------------------


def resample_patients(patients: Ints, *, n_resamples: int, seed: int) -> Iterator[Floats]:
    """Draw as many patients as there are, with replacement, again and again.

    Parameters
    ----------
    patients : numpy.ndarray
        int64, shape (n,): any codes from 0.
    n_resamples, seed : int
        How many and which; the same patients and seed give the same draws.

    Yields
    ------
    numpy.ndarray
        float64, shape (b, n): how often each image counts, ``n_resamples`` rows in all, in blocks.
    """
    rng = np.random.default_rng(seed)
    codes = np.unique(patients, return_inverse=True)[1]
    n_patients = int(codes.max(initial=-1)) + 1
    rows = max(1, _BLOCK_ELEMENTS // max(1, patients.size))
    for start in range(0, n_resamples if n_patients else 0, rows):
        size = min(rows, n_resamples - start)
        drawn = rng.integers(0, n_patients, (size, n_patients)) + n_patients * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_patients).reshape(size, n_patients)
        yield counts[:, codes].astype(np.float64)


def _bootstrap(outcomes: Outcomes, compute: Callable[[Floats], Floats], n_resamples: int, seed: int) -> Floats:
    """Shape (n_resamples, columns); without any image one row, of whatever no weight gives."""
    blocks = resample_patients(outcomes.patients, n_resamples=n_resamples, seed=seed)
    return np.concatenate([compute(weights) for weights in blocks] or [compute(np.ones((1, outcomes.labels.size)))])


def interval_of(values: Floats) -> tuple[float, float, float]:
    """Take the 95 % percentiles of resampled figures.

    Parameters
    ----------
    values : numpy.ndarray
        float64, shape (b,); NaN where a resample left the figure undefined.

    Returns
    -------
    tuple of float
        (low, high, share of resamples that were undefined); NaN, NaN where none was defined.
    """
    defined = values[np.isfinite(values)]
    if not defined.size:
        return _NAN, _NAN, 1.0
    low, high = np.quantile(defined, _PERCENTILES)
    return float(low), float(high), 1 - defined.size / values.size


def estimate_resampled(
    value: float, resampled: Floats, undefined: str, *remarks: str, most_undefined: float = _NO_INTERVAL_SHARE
) -> Estimate:
    """Give a figure the interval of its resamples, and say where those are not to be relied on.

    Parameters
    ----------
    value : float
        The figure.
    resampled : numpy.ndarray
        float64, shape (b,); NaN where a resample left it undefined.
    undefined : str
        What is said before "in 12% of the resamples" of those, e.g. ``"a class was missing"``.
    *remarks : str
        Further notes; empty ones are left out.
    most_undefined : float
        Share of undefined resamples above which there is no interval: the others are a choice of samples, those in
        which all went well.

    Returns
    -------
    Estimate
        With a note where more than 5 % of the resamples are undefined. There is no interval either where no resample
        changes the figure, unless it is 0: each is then the sample itself, as with one patient of a class.
    """
    low, high, share = interval_of(resampled)
    notes = [f"{undefined} in {share:.0%} of the resamples"] if share > _MAX_UNDEFINED_SHARE else []
    if high - low < _ROUNDING < abs(value):
        low, high, notes = _NAN, _NAN, [_UNCHANGED]
    elif share > most_undefined:
        low, high, notes = _NAN, _NAN, [f"{notes[0]}: no interval"]
    return Estimate(value, low, high, "; ".join([*notes, *filter(None, remarks)]))


def measure(outcomes: Outcomes, *, n_resamples: int = _N_RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
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
    compute = _Figures(outcomes)
    values = compute(np.ones((1, outcomes.labels.size)))[0]
    resampled = _bootstrap(outcomes, compute, n_resamples, seed)
    return {
        name: _estimate(name, float(values[column]), resampled[:, column], outcomes)
        for column, name in enumerate(FIGURES)
    }


def _estimate(name: str, value: float, resampled: Floats, outcomes: Outcomes) -> Estimate:
    if not math.isfinite(value):
        return Estimate(_NAN, _NAN, _NAN, _why_undefined(outcomes))
    low, high, _ = interval_of(resampled)
    if high - low < _ROUNDING:
        return _without_width(value, _n_counted(name, outcomes)[0] if name in _PROPORTIONS else 0)
    return _estimate_with_classes(name, value, resampled, outcomes)


def _estimate_with_classes(name: str, value: float, resampled: Floats, outcomes: Outcomes) -> Estimate:
    # Of many classes one is soon missing somewhere, though each has patients enough.
    most = _NO_INTERVAL_SHARE if outcomes.n_classes == _BINARY else 1.0
    few = describe_few(name, outcomes)
    return estimate_resampled(value, resampled, "a class was missing", few, most_undefined=most)


def _why_undefined(outcomes: Outcomes) -> str:
    missing = sorted(set(range(outcomes.n_classes)) - set(outcomes.labels.tolist()))
    return f"no image of class {', '.join(map(str, missing))}"


def _without_width(value: float, trials: int) -> Estimate:
    """Give an interval to what no resample changes; see the notes of `measure`."""
    if value not in (0.0, 1.0) or not trials:
        return Estimate(value, _NAN, _NAN, _UNCHANGED)
    low, high = wilson_interval(round(value) * trials, trials)
    over = f"{trials} patient{'' if trials == 1 else 's'}"
    return Estimate(value, low, high, f"the same in every resample: Wilson's interval over {over}")


def _n_counted(name: str, outcomes: Outcomes) -> tuple[int, int | None]:
    """Give how many patients a figure rests on, and of which class they are: None for all of them."""
    by_class = [int(np.unique(outcomes.patients[outcomes.labels == c]).size) for c in range(outcomes.n_classes)]
    rarest = int(np.argmin(by_class))
    if name in _OF_BOTH_CLASSES:
        return by_class[rarest], rarest
    if name in ("sensitivity", "specificity"):
        chosen = int(name == "sensitivity") if outcomes.n_classes == _BINARY else rarest
        return by_class[chosen], chosen
    return outcomes.n_patients, None


def describe_few(name: str, outcomes: Outcomes) -> str:
    """Say where a figure of `FIGURES` rests on too few patients; empty where it does not.

    Those of the rarer class count for AUROC and AUPRC, those of its own class for sensitivity and specificity.
    """
    n_patients, of_class = _n_counted(name, outcomes)
    if of_class is None or n_patients >= _FEW_OF_A_CLASS:
        return _few_patients(outcomes.n_patients)
    return _too_few(n_patients, f" of class {of_class}")


def _few_patients(n_patients: int) -> str:
    return _too_few(n_patients) if n_patients < _FEW_PATIENTS else ""


def _too_few(n_patients: int, of_class: str = "") -> str:
    noun, verb = ("patient", "is") if n_patients == 1 else ("patients", "are")
    return f"{n_patients} {noun}{of_class} {verb} too few for a trustworthy interval"


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

    labels, scores = _labels_and_scores(outcomes)
    if np.unique(labels).size < _BINARY:
        return Curve(_EMPTY, _EMPTY, _EMPTY, _why_undefined(outcomes))
    x, y, thresholds = roc_curve(labels, scores)
    return _thinned(x, y, thresholds, max_points)


def trace_precision_recall(outcomes: Outcomes, *, max_points: int = 500) -> Curve:
    """Trace precision (y) over sensitivity (x); the arguments, result and errors are those of `trace_roc`.

    The curve begins at sensitivity 0 and precision 1 with an infinite threshold, and is to be drawn in steps.
    """
    from sklearn.metrics import precision_recall_curve  # noqa: PLC0415

    labels, scores = _labels_and_scores(outcomes)
    if np.unique(labels).size < _BINARY:
        return Curve(_EMPTY, _EMPTY, _EMPTY, _why_undefined(outcomes))
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    return _thinned(recall[::-1], precision[::-1], np.r_[np.inf, thresholds[::-1]], max_points)


def _labels_and_scores(outcomes: Outcomes) -> tuple[Ints, Floats]:
    if outcomes.n_classes != _BINARY:
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
    outcomes: Outcomes, *, sensitivity: float, n_resamples: int = _N_RESAMPLES, seed: int = 0
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
    labels, scores = _labels_and_scores(outcomes)
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


# --- predictive values ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PredictiveValues:
    """What an answer means where a stated share of the patients has the finding.

    Parameters
    ----------
    prevalence : float
        That share.
    ppv, npv : Estimate
        Share of positive answers that are right, and of negative ones.
    """

    prevalence: float
    ppv: Estimate
    npv: Estimate


def predict_values(
    outcomes: Outcomes,
    *,
    prevalences: Sequence[float] = PREVALENCES,
    n_resamples: int = _N_RESAMPLES,
    seed: int = 0,
) -> tuple[PredictiveValues, ...]:
    """Carry sensitivity and specificity to other prevalences by Bayes' rule.

    Parameters
    ----------
    outcomes : Outcomes
        Of two classes.
    prevalences : sequence of float
        Each more than 0 and less than 1.
    n_resamples, seed : int
        As in `measure`.

    Returns
    -------
    tuple of PredictiveValues
        In the order of ``prevalences``. Where sensitivity or specificity is the same in every resample, the interval
        goes from both of their lower ends to both of their upper ends, which is wide: both values rise with both.

    Raises
    ------
    ValueError
        A prevalence is out of range, or there are more than two classes.
    """
    _labels_and_scores(outcomes)
    if wrong := [share for share in prevalences if not 0 < share < 1]:
        msg = f"prevalence is {wrong[0]}, expected more than 0 and less than 1"
        raise ValueError(msg)
    rates = [measure(outcomes, n_resamples=n_resamples, seed=seed)[name] for name in ("sensitivity", "specificity")]
    resampled = _bootstrap(outcomes, lambda weights: _rates(_weighted_confusion(outcomes, weights)), n_resamples, seed)
    return tuple(
        PredictiveValues(share, *(_carried(bayes, share, rates, resampled) for bayes in (_ppv, _npv)))
        for share in prevalences
    )


def _rates(confusion: Floats) -> Floats:
    found = _from_confusion(confusion)
    return np.stack([found["sensitivity"], found["specificity"]], axis=1)


def _ppv(sensitivity: Floats, specificity: Floats, prevalence: float) -> Floats:
    right = np.asarray(sensitivity * prevalence)
    return _divide(right, np.asarray(right + (1 - specificity) * (1 - prevalence)))


def _npv(sensitivity: Floats, specificity: Floats, prevalence: float) -> Floats:
    return _ppv(specificity, sensitivity, 1 - prevalence)


def _carried(
    bayes: Callable[[Floats, Floats, float], Floats], share: float, rates: Sequence[Estimate], resampled: Floats
) -> Estimate:
    sensitivity, specificity = ([rate.value, rate.low, rate.high] for rate in rates)
    value, low, high = bayes(np.array(sensitivity), np.array(specificity), share).tolist()
    note = "; ".join(dict.fromkeys(rate.note for rate in rates if rate.note))
    if not math.isfinite(value):
        return Estimate(_NAN, _NAN, _NAN, note or "no positive or no negative answer")
    if any("same in every resample" in rate.note for rate in rates):
        return Estimate(value, low, high, note)
    carried = bayes(resampled[:, 0], resampled[:, 1], share)
    return estimate_resampled(value, carried, "a class, or every such answer, was missing", note)


# --- groups and comparisons -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupFigures:
    """The figures of one part of the images, e.g. of one source.

    Parameters
    ----------
    name : str
        The part's name.
    n_images, n_patients : int
        How many.
    n_by_class : tuple of int
        Images of each class.
    confusion : numpy.ndarray
        As `count_confusion` gives it.
    figures : mapping
        As `measure` gives it: NaN with a note where the part has one class only.
    """

    name: str
    n_images: int
    n_patients: int
    n_by_class: tuple[int, ...]
    confusion: Ints
    figures: Mapping[str, Estimate]


def measure_groups(
    outcomes: Outcomes, groups: Sequence[str], *, n_resamples: int = _N_RESAMPLES, seed: int = 0
) -> tuple[GroupFigures, ...]:
    """Measure each group by itself.

    Parameters
    ----------
    outcomes : Outcomes
        Of any number of classes.
    groups : sequence of str
        Each image's group, e.g. its source; length n.
    n_resamples, seed : int
        As in `measure`.

    Returns
    -------
    tuple of GroupFigures
        By name.
    """
    names = np.asarray(groups, dtype=str)
    return tuple(
        _measure_group(str(name), outcomes.take(names == name), n_resamples, seed) for name in np.unique(names)
    )


def _measure_group(name: str, part: Outcomes, n_resamples: int, seed: int) -> GroupFigures:
    return GroupFigures(
        name=name,
        n_images=part.labels.size,
        n_patients=part.n_patients,
        n_by_class=tuple(np.bincount(part.labels, minlength=part.n_classes).tolist()),
        confusion=count_confusion(part),
        figures=measure(part, n_resamples=n_resamples, seed=seed),
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of two models on the same images.

    Parameters
    ----------
    first, second : float
        The two models' figures.
    difference : Estimate
        Second less first, over the same resamples. Of ``brier`` less is better, of the others more. Its notes are those
        of `measure`; where no resample changes a difference, that has no interval.
    p_like : float
        Twice the share of resamples on the other side of no difference, at most 1: small where the sign is sure. Like
        a p value, but not one. NaN where there is no interval.
    """

    first: float
    second: float
    difference: Estimate
    p_like: float


def compare(
    first: Outcomes, second: Outcomes, *, n_resamples: int = _N_RESAMPLES, seed: int = 0
) -> dict[str, Comparison]:
    """Compare two models on the same images of the same patients, pair by pair.

    Parameters
    ----------
    first, second : Outcomes
        The same labels and patients in the same order.
    n_resamples, seed : int
        As in `measure`.

    Returns
    -------
    dict
        `Comparison` by the names of `FIGURES`.

    Raises
    ------
    ValueError
        The images are not the same.
    """
    same = (np.array_equal(getattr(first, part), getattr(second, part)) for part in ("labels", "patients"))
    if not all(same) or first.n_classes != second.n_classes:
        msg = "the two models were asked about different images"
        raise ValueError(msg)
    if not first.labels.size:
        nothing = Comparison(_NAN, _NAN, Estimate(_NAN, _NAN, _NAN, "no image"), _NAN)
        return dict.fromkeys(FIGURES, nothing)
    models = [_Figures(first), _Figures(second)]
    one, two = (model(np.ones((1, first.labels.size)))[0] for model in models)
    resampled = _bootstrap(first, lambda weights: models[1](weights) - models[0](weights), n_resamples, seed)
    return {
        name: _compare(name, float(one[column]), float(two[column]), resampled[:, column], first)
        for column, name in enumerate(FIGURES)
    }


def _compare(name: str, one: float, two: float, resampled: Floats, outcomes: Outcomes) -> Comparison:
    if not math.isfinite(one + two):
        return Comparison(one, two, Estimate(_NAN, _NAN, _NAN, _why_undefined(outcomes)), _NAN)
    difference = _estimate_with_classes(name, two - one, resampled, outcomes)
    defined = resampled[np.isfinite(resampled)]
    # One more on either side: no number of resamples makes it 0.
    tails = (int((defined <= 0).sum()) + 1, int((defined >= 0).sum()) + 1)
    p_like = min(1.0, 2 * min(tails) / (defined.size + 1))
    return Comparison(one, two, difference, p_like if math.isfinite(difference.low) else _NAN)
