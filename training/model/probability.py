"""Probabilities that mean what they say: Platt scaling and temperature, folded into a classifier.

scikit-learn's calibration wraps a classifier in another one. Here the two numbers are folded into the coefficients, so
that the saved model is still Spark's own; that is why they are found here, with scipy's minimiser.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from schemas.modelcard import BINARY
from training.arrays import Floats
from training.figures.bootstrap import Outcomes
from training.figures.calibration import clip_probabilities

Method = Literal["platt", "temperature"]


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
        logits = self.slope * np.log(clip_probabilities(probabilities))
        if self.method == "platt":
            logits[:, 1] += self.intercept
        return _softmax(logits)


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


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

    chosen: Method = method or ("platt" if outcomes.n_classes == BINARY else "temperature")
    if chosen == "platt" and outcomes.n_classes != BINARY:
        msg = f"Platt's method is for two classes, found {outcomes.n_classes}"
        raise ValueError(msg)
    if np.unique(outcomes.labels).size < BINARY:
        return Calibrator(chosen, 1.0)
    targets, logs = _smoothed(outcomes), np.log(clip_probabilities(outcomes.probabilities))
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
