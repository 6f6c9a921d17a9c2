"""Do predicted probabilities come true? Reliability, Brier score, slope and offset.

Cox's slope and offset are fitted here, by a few Newton steps for many resamples at once: statsmodels and scikit-learn
fit one sample at a time, which for hundreds of resamples takes far longer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from schemas.modelcard import BINARY
from training.arrays import Floats
from training.figures.bootstrap import (
    Estimate,
    Outcomes,
    describe_few,
    estimate_resampled,
    estimate_share,
    resample_patients,
)
from training.figures.measure import measure

_TINY = 1e-7  # keeps a probability of exactly 0 or 1, which no classifier should give, from ending the fit


_NAN = float("nan")

N_RESAMPLES = 500

_SAME = 1e-9  # logits that differ by less are the same probability

_OF_IMAGES = "intervals are Wilson's, which take images for independent: for several images of a patient, too narrow"

_NEWTON_STEPS = 30

_MAX_STEP = 2.0

_MAX_SLOPE = 50.0  # beyond it the fit runs to infinity: the classes are separated


def clip_probabilities(probabilities: npt.ArrayLike) -> Floats:
    """Keep probabilities away from exactly 0 and 1, whose logits are infinite."""
    return np.clip(np.asarray(probabilities, np.float64), _TINY, 1 - _TINY)


def logit(probabilities: npt.ArrayLike) -> Floats:
    """Return log(p / (1 - p))."""
    inner = clip_probabilities(probabilities)
    return np.asarray(np.log(inner) - np.log1p(-inner))


def sigmoid(logits: Floats) -> Floats:
    """Return 1 / (1 + exp(-x))."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


# --- how well calibrated ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Images whose probabilities are alike.

    Parameters
    ----------
    low, high : float
        Range of probability, ``high`` excluded but for the last bin.
    n_images : int
        How many.
    mean_probability : float
        Of these images.
    observed : Estimate
        Share of them with the finding, and Wilson's interval, which takes images for independent; its note says so.
    """

    low: float
    high: float
    n_images: int
    mean_probability: float
    observed: Estimate


@dataclass(frozen=True)
class Calibration:
    """How well probabilities of class 1 fit what happens.

    Parameters
    ----------
    brier : Estimate
        Mean squared error; 0 is best.
    slope : Estimate
        Cox's calibration slope: 1 is right, below 1 the probabilities are too extreme. NaN with a note where the
        probabilities separate the classes, as none is then too extreme, and where all are the same. Where many
        resamples have no slope a note says so; where more than 20 % have none, there is no interval.
    intercept : Estimate
        Calibration in the large, in logits at slope 1: 0 is right, below 0 the probabilities are too high on the whole.
    expected_error : float
        Mean distance of the table's two shares, weighted by images (ECE).
    table : tuple of ReliabilityBin
        Bins with images, from low to high.

    References
    ----------
    B. Van Calster et al., "Calibration: the Achilles heel of predictive analytics", BMC Medicine 17 (2019).
    """

    brier: Estimate
    slope: Estimate
    intercept: Estimate
    expected_error: float
    table: tuple[ReliabilityBin, ...]


def measure_calibration(
    outcomes: Outcomes, *, n_bins: int = 10, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Calibration:
    """Measure calibration, with intervals from resampled patients.

    Parameters
    ----------
    outcomes : Outcomes
        Of two classes; not the images the calibrator was fitted on.
    n_bins : int
        Bins of equal width in the table.
    n_resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    Calibration
        Figures that cannot be computed are NaN with a note.

    Raises
    ------
    ValueError
        There are more than two classes.
    """
    if outcomes.n_classes != BINARY:
        msg = f"{outcomes.n_classes} classes, expected 2"
        raise ValueError(msg)
    slope, intercept = _cox(outcomes, n_resamples, seed)
    table = _reliability(outcomes, n_bins)
    errors = [item.n_images * abs(item.observed.value - item.mean_probability) for item in table]
    return Calibration(
        brier=measure(outcomes, n_resamples=n_resamples, seed=seed)["brier"],
        slope=slope,
        intercept=intercept,
        expected_error=sum(errors) / len(outcomes.labels) if table else _NAN,
        table=table,
    )


def _reliability(outcomes: Outcomes, n_bins: int) -> tuple[ReliabilityBin, ...]:
    scores = outcomes.probabilities[:, 1]
    places = np.minimum((scores * n_bins).astype(np.int64), n_bins - 1)
    return tuple(
        ReliabilityBin(
            low=place / n_bins,
            high=(place + 1) / n_bins,
            n_images=int((places == place).sum()),
            mean_probability=float(scores[places == place].mean()),
            observed=replace(
                estimate_share(int(outcomes.labels[places == place].sum()), int((places == place).sum())),
                note=_OF_IMAGES,
            ),
        )
        for place in np.unique(places).tolist()
    )


def _cox(outcomes: Outcomes, n_resamples: int, seed: int) -> tuple[Estimate, Estimate]:
    """Fit slope and intercept to all images and to every resample."""
    from threadpoolctl import threadpool_limits  # noqa: PLC0415  comes with scikit-learn, in the train extra

    labels, logits = outcomes.labels.astype(np.float64), logit(outcomes.probabilities[:, 1])
    if np.unique(outcomes.labels).size < BINARY:
        nothing = Estimate(_NAN, _NAN, _NAN, "images of both classes are needed")
        return nothing, nothing
    all_once = np.ones((1, labels.size))
    resamples = list(resample_patients(outcomes.patients, n_resamples=n_resamples, seed=seed))
    few = describe_few("auroc", outcomes)  # as AUROC, both rest on the patients of either class

    def estimate(fit: Callable[[Floats, Floats, Floats], Floats], undefined: str) -> Estimate:
        value = float(fit(all_once, labels, logits)[0])
        if not math.isfinite(value):
            return Estimate(_NAN, _NAN, _NAN, "the probabilities separate the classes: the best slope is infinite")
        found = np.concatenate([fit(weights, labels, logits) for weights in resamples])
        return estimate_resampled(value, found, undefined, few)

    same = Estimate(_NAN, _NAN, _NAN, "all probabilities are the same: there is no slope")
    with threadpool_limits(1):  # the matrices are small: a second thread of BLAS makes this five times slower
        constant = float(np.ptp(logits)) < _SAME
        slope = same if constant else estimate(_fit_slopes, "a class was missing, or the classes were separated,")
        return slope, estimate(_fit_offsets, "a class was missing")


def _fit_slopes(weights: Floats, labels: Floats, logits: Floats) -> Floats:
    """Fit ``labels ~ sigmoid(a * logits + b)`` by Newton's method for each row of weights; the slopes, shape (b,)."""
    a, b = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_NEWTON_STEPS):
        expected = sigmoid(a[:, None] * logits + b[:, None])
        rest, bend = weights * (labels - expected), weights * expected * (1 - expected)
        one, two, three = bend.sum(axis=1), bend @ logits, bend @ logits**2
        scale = np.maximum(one * three - two**2, _TINY)
        up_b, up_a = rest.sum(axis=1), rest @ logits
        # A step is bounded, so that a fit that runs to infinity gets there slowly and is told by its size.
        step_a, step_b = (one * up_a - two * up_b) / scale, (three * up_b - two * up_a) / scale
        a, b = a + np.clip(step_a, -_MAX_STEP, _MAX_STEP), b + np.clip(step_b, -_MAX_STEP, _MAX_STEP)
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < _TINY:
            break
    return np.where(_separated(weights, labels, logits) | (np.abs(a) > _MAX_SLOPE), _NAN, a)


def _separated(weights: Floats, labels: Floats, logits: Floats) -> npt.NDArray[np.bool_]:
    """Tell the rows in which some logit parts the classes, or one is missing: their best slope is infinite."""
    shown = [np.where((weights > 0) & (labels == label), 1.0, _NAN) * logits for label in (0.0, 1.0)]
    (low_0, high_0), (low_1, high_1) = ((np.fmin.reduce(part, axis=1), np.fmax.reduce(part, axis=1)) for part in shown)
    return np.asarray(~((low_1 < high_0) & (low_0 < high_1)))


def _fit_offsets(weights: Floats, labels: Floats, logits: Floats) -> Floats:
    """Fit ``labels ~ sigmoid(logits + b)`` for each row of weights; shape (b,)."""
    b = np.zeros(len(weights))
    for _ in range(_NEWTON_STEPS):
        expected = sigmoid(logits + b[:, None])
        bend = np.maximum((weights * expected * (1 - expected)).sum(axis=1), _TINY)
        step = (weights * (labels - expected)).sum(axis=1) / bend
        b += np.clip(step, -_MAX_STEP, _MAX_STEP)
        if np.abs(step).max() < _TINY:
            break
    n_positive = weights @ labels
    return np.where((n_positive > 0) & (n_positive < weights.sum(axis=1)), b, _NAN)
