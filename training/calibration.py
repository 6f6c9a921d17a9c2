"""Makes probabilities mean what they say, and tells when not to answer.

Three small models that are fitted beside the classifier and stored with it as plain numbers:

- `Calibrator`: fitted on *validation* images, turns the classifier's probabilities into calibrated ones;
- `AbstainBand`: probabilities too close to the threshold to decide on;
- `NoveltyGate`: fitted on *training* features, tells images unlike all of those, such as a photo of a cat.

Nothing here changes the order of two-class probabilities, hence neither AUROC nor AUPRC.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from sparkdl.engine.novelty import N_NEIGHBOURS, measure_nearest, to_units
from training.arrays import Features, Floats, Ints
from training.statistics import (
    Estimate,
    Outcomes,
    describe_few,
    estimate_image_share,
    estimate_resampled,
    estimate_share,
    measure,
    resample_patients,
)

Method = Literal["platt", "temperature"]

_TINY = 1e-7  # keeps a probability of exactly 0 or 1, which no classifier should give, from ending the fit
_BINARY = 2
_NAN = float("nan")

_MAX_REFERENCES = 2000  # 10 MB of 1,280 float32; 0.3 ms an image
_GATE_QUANTILE = 0.99
_MIN_TRAINING = 20
_GATE_BLOCK = 512

_N_RESAMPLES = 500
_SAME = 1e-9  # logits that differ by less are the same probability
_OF_IMAGES = "intervals are Wilson's, which take images for independent: for several images of a patient, too narrow"
_NEWTON_STEPS = 30
_MAX_STEP = 2.0
_MAX_SLOPE = 50.0  # beyond it the fit runs to infinity: the classes are separated


# --- probabilities ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calibrator:
    """A change of probabilities, of few numbers so that few validation images are enough.

    Parameters
    ----------
    method : str
        ``"platt"``, for two classes: ``sigmoid(slope * logit(p) + intercept)``. ``"temperature"``, for any number:
        ``softmax(slope * log(p))``, with slope 1 / temperature.
    slope, intercept : float
        1 and 0 change nothing. The slope is more than 0; the intercept of ``"temperature"`` is 0.
    """

    method: Method
    slope: float
    intercept: float = 0.0

    def apply(self, probabilities: npt.ArrayLike) -> Floats:
        """Calibrate.

        Parameters
        ----------
        probabilities : array_like of float
            Shape (n, n_classes), each row adding up to 1.

        Returns
        -------
        numpy.ndarray
            float64, the same shape.
        """
        logits = self.slope * np.log(_inside(probabilities))
        if self.method == "platt":
            logits[:, 1] += self.intercept
        return _softmax(logits)


def _inside(probabilities: npt.ArrayLike) -> Floats:
    return np.clip(np.asarray(probabilities, np.float64), _TINY, 1 - _TINY)


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _logit(probabilities: npt.ArrayLike) -> Floats:
    inside = _inside(probabilities)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def fit_calibrator(outcomes: Outcomes, method: Method | None = None) -> Calibrator:
    """Fit on validation images, by the least log-loss.

    Parameters
    ----------
    outcomes : Outcomes
        Images that neither the classifier was fitted on nor the result is measured on.
    method : str, optional
        See `Calibrator`; by default Platt's for two classes and temperature for more.

    Returns
    -------
    Calibrator
        Never one that turns the order round: where that would fit best, or where a class is missing, the one that
        changes nothing. The labels are smoothed as Platt does, so that separated classes give no infinite slope.

    Raises
    ------
    ValueError
        Platt's method is asked for with more than two classes.

    References
    ----------
    J. Platt, "Probabilistic outputs for support vector machines" (1999); C. Guo et al., "On calibration of modern
    neural networks", ICML (2017).
    """
    from scipy.optimize import minimize  # noqa: PLC0415  part of the train extra only

    chosen: Method = method or ("platt" if outcomes.n_classes == _BINARY else "temperature")
    if chosen == "platt" and outcomes.n_classes != _BINARY:
        msg = f"Platt's method is for two classes, found {outcomes.n_classes}"
        raise ValueError(msg)
    if np.unique(outcomes.labels).size < _BINARY:
        return Calibrator(chosen, 1.0)
    targets, logs = _smoothed(outcomes), np.log(_inside(outcomes.probabilities))
    with_intercept = chosen == "platt"

    def loss(values: Floats) -> tuple[float, Floats]:
        logits = values[0] * logs
        if with_intercept:
            logits[:, 1] += values[1]
        probabilities = _softmax(logits)
        excess = (probabilities - targets) / len(targets)
        slope, intercept = float((excess * logs).sum()), float(excess[:, 1].sum()) * with_intercept
        value = -float((targets * np.log(np.maximum(probabilities, 1e-300))).sum()) / len(targets)
        return value, np.array([slope, intercept])

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x.tolist()
    return Calibrator(chosen, slope, intercept) if slope > 0 else Calibrator(chosen, 1.0)


def _smoothed(outcomes: Outcomes) -> Floats:
    """Give each actual class (count + 1) / (count + n_classes), the others the rest in equal parts."""
    k = outcomes.n_classes
    counts = np.bincount(outcomes.labels, minlength=k)[outcomes.labels].astype(np.float64)
    targets = np.repeat((1 / (counts + k))[:, None], k, axis=1)
    targets[np.arange(counts.size), outcomes.labels] = (counts + 1) / (counts + k)
    return targets


def calibrate(outcomes: Outcomes, calibrator: Calibrator, *, threshold: float | None = None) -> Outcomes:
    """Give the same images calibrated probabilities, decided anew as in `gather_outcomes`.

    Parameters
    ----------
    outcomes : Outcomes
        Of as many classes as the calibrator was fitted on.
    calibrator : Calibrator
        Fitted on other images.
    threshold : float, optional
        In calibrated probability; by default the most probable class.
    """
    probabilities = calibrator.apply(outcomes.probabilities)
    positive = probabilities.argmax(axis=1) if threshold is None else probabilities[:, 1] >= threshold
    return Outcomes(outcomes.labels, probabilities, positive.astype(np.int64), outcomes.patients)


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
    outcomes: Outcomes, *, n_bins: int = 10, n_resamples: int = _N_RESAMPLES, seed: int = 0
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
    if outcomes.n_classes != _BINARY:
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

    labels, logits = outcomes.labels.astype(np.float64), _logit(outcomes.probabilities[:, 1])
    if np.unique(outcomes.labels).size < _BINARY:
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
        expected = _sigmoid(a[:, None] * logits + b[:, None])
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
        expected = _sigmoid(logits + b[:, None])
        bend = np.maximum((weights * expected * (1 - expected)).sum(axis=1), _TINY)
        step = (weights * (labels - expected)).sum(axis=1) / bend
        b += np.clip(step, -_MAX_STEP, _MAX_STEP)
        if np.abs(step).max() < _TINY:
            break
    n_positive = weights @ labels
    return np.where((n_positive > 0) & (n_positive < weights.sum(axis=1)), b, _NAN)


# --- not to decide ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AbstainBand:
    """Probabilities of class 1 that are too close to the threshold: a person decides.

    Parameters
    ----------
    low, high : float
        ``low <= p < high`` is not decided on.
    """

    low: float
    high: float

    def covers(self, probabilities: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Tell which probabilities of class 1, shape (n,), are in the band."""
        values = np.asarray(probabilities, np.float64)
        return np.asarray((values >= self.low) & (values < self.high))


def choose_abstain_band(outcomes: Outcomes, *, threshold: float, share: float) -> AbstainBand:
    """Choose the band around a threshold that holds a stated share of validation images.

    Parameters
    ----------
    outcomes : Outcomes
        Validation images, of two classes, with the probabilities (calibrated or not) that the band is to be used on.
    threshold : float
        Of the decision, between 0 and 1, both excluded.
    share : float
        Of the images not to decide on, 0 to 0.5; 0 gives an empty band.

    Returns
    -------
    AbstainBand
        As wide on both sides, in logits. Ties may make it hold fewer.

    Raises
    ------
    ValueError
        An argument is out of range, there are more than two classes, or no images.
    """
    if not (0 <= share <= 0.5 and 0 < threshold < 1):  # noqa: PLR2004
        msg = f"share is {share} and threshold {threshold}, expected 0 to 0.5, and between 0 and 1"
        raise ValueError(msg)
    if outcomes.n_classes != _BINARY or not outcomes.labels.size:
        msg = f"{outcomes.labels.size} images of {outcomes.n_classes} classes, expected some of 2"
        raise ValueError(msg)
    centre = float(_logit(threshold))
    distances = np.sort(np.abs(_logit(outcomes.probabilities[:, 1]) - centre))
    wide = distances[min(int(share * distances.size), distances.size - 1)] if share else 0.0
    # The image at exactly this distance is decided on: the band holds those that are closer.
    low, high = _sigmoid(np.array([centre - wide, centre + wide])).tolist()
    return AbstainBand(math.nextafter(low, 1.0), high) if share else AbstainBand(threshold, threshold)


@dataclass(frozen=True)
class Abstention:
    """What an abstain band costs and gives.

    Parameters
    ----------
    share : Estimate
        Of images in the band, with an interval from resampled patients.
    decided, all_images : mapping of str to Estimate
        As `measure` gives them: of the images outside the band, and of all.
    """

    share: Estimate
    decided: Mapping[str, Estimate]
    all_images: Mapping[str, Estimate]


def measure_abstention(
    outcomes: Outcomes, band: AbstainBand, *, n_resamples: int = _N_RESAMPLES, seed: int = 0
) -> Abstention:
    """Measure with and without the band, on images it was not chosen on; two classes."""
    inside = band.covers(outcomes.probabilities[:, 1])
    return Abstention(
        share=estimate_image_share(inside, outcomes.patients, n_resamples=n_resamples, seed=seed),
        decided=measure(outcomes.take(~inside), n_resamples=n_resamples, seed=seed),
        all_images=measure(outcomes, n_resamples=n_resamples, seed=seed),
    )


# --- unlike the training images ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NoveltyGate:
    """Tells images that are unlike the training images: its distance is the mean to the nearest ones.

    Parameters
    ----------
    references : numpy.ndarray
        float32, shape (n_references, n_features): training features, each of length 1.
    threshold : float
        A distance above it is novel.
    quantile : float
        Share of training images that are not above it, each measured without its own patient.

    Notes
    -----
    Cosine distance to the 5 nearest was chosen by test: EfficientNetLite0's features, two thirds of the patients as
    training, the threshold at their quantile 0.99; share of images called novel among the other third of the patients,
    and among 60 of each of nine kinds of other images (random and smooth noise, gradients, drawn scenes, crops of two
    photos, in gray and in colour), the kind that is found worst:

    ====================================  ==========  ================  ========  ================
    distance                              X-rays      others, worst     phantoms  others, worst
    ====================================  ==========  ================  ========  ================
    5 nearest, unit length (this one)     0.02        1.00              0.01      1.00
    5 nearest, standardised               0.04        0.55 (gradients)  0.01      1.00
    Mahalanobis, Ledoit-Wolf              0.05        0.60 (gradients)  0.01      1.00
    Mahalanobis, 64 components            0.01        0.47 (gradients)  0.01      1.00
    ====================================  ==========  ================  ========  ================

    It is no quality control: of X-rays turned by 90 degrees 65 % are called novel, of those upside down 73 %, of
    inverted ones 10 %, of mirrored ones none.
    """

    references: Features
    threshold: float
    quantile: float

    def measure_distances(self, features: npt.NDArray[np.floating]) -> Floats:
        """Compute each image's distance.

        Parameters
        ----------
        features : numpy.ndarray
            float, shape (n, n_features).

        Returns
        -------
        numpy.ndarray
            float64, shape (n,), 0 to 2: one minus the mean cosine to the nearest references.
        """
        return _distances(_unit(features), self.references)

    def flags(self, features: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """Tell which images, shape (n, n_features), are novel; features that are not numbers are."""
        return ~(self.measure_distances(features) <= self.threshold)

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Give what `sparkdl.engine.novelty.write_gate` stores."""
        return {
            "references": self.references,
            "threshold": np.array(self.threshold),
            "quantile": np.array(self.quantile),
        }


def _unit(features: npt.NDArray[np.floating]) -> Features:
    return to_units(np.asarray(features, np.float32))


def _distances(units: Features, references: Features, own: tuple[Ints, Ints] | None = None) -> Floats:
    """Shape (n,); ``own`` is each image's and each reference's patient: a patient's own references do not count."""
    found = np.zeros(len(units))
    for start in range(0, len(units), _GATE_BLOCK):
        rows = slice(start, start + _GATE_BLOCK)
        cosines = units[rows] @ references.T
        if own is not None:
            cosines[own[0][rows, None] == own[1]] = -1
        found[rows] = measure_nearest(cosines)
    return found


def fit_gate(
    features: npt.NDArray[np.floating],
    patients: Sequence[str],
    *,
    quantile: float = _GATE_QUANTILE,
    max_references: int = _MAX_REFERENCES,
    seed: int = 0,
) -> NoveltyGate:
    """Fit a gate to training features.

    Parameters
    ----------
    features : numpy.ndarray
        float, shape (n, n_features), from 20 images on.
    patients : sequence of str
        Who is on each image, length n: an image's distance is taken to other patients' images, as a new patient's
        will be.
    quantile : float
        Share of training images to accept, more than 0 and less than 1. About ``1 - quantile`` of new patients' images
        from the same place will be called novel.
    max_references, seed : int
        Images to keep, and which.

    Returns
    -------
    NoveltyGate
        The same arguments give the same gate.

    Raises
    ------
    ValueError
        There are too few images or patients, a feature is not a number, or the quantile is out of range.
    """
    names, codes = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    if len(features) != codes.size or len(features) < _MIN_TRAINING or names.size <= N_NEIGHBOURS:
        msg = f"{len(features)} images of {names.size} patients, expected {_MIN_TRAINING} of {N_NEIGHBOURS + 1} or more"
        raise ValueError(msg)
    if not 0 < quantile < 1 or not np.isfinite(features).all():
        msg = f"quantile is {quantile}, expected between 0 and 1, and features that are numbers"
        raise ValueError(msg)
    units = _unit(features)
    kept = np.sort(np.random.default_rng(seed).permutation(len(units))[:max_references])
    distances = _distances(units, units[kept], (codes, codes[kept]))
    return NoveltyGate(units[kept], float(np.quantile(distances, quantile)), quantile)


@dataclass(frozen=True)
class Novelty:
    """The gate for images unlike the training images.

    Parameters
    ----------
    threshold : float
        Distance above which an image is flagged.
    flagged : Estimate
        Share of the held-out images that are flagged.
    judged, all_images : mapping of str to Estimate
        As `training.statistics.measure` gives them: of the images that are not flagged, and of all.
    """

    threshold: float
    flagged: Estimate
    judged: Mapping[str, Estimate]
    all_images: Mapping[str, Estimate]
