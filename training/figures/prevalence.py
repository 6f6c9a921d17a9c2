"""What a positive and a negative answer are worth where the disease is as common as elsewhere."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from training.arrays import Floats
from training.figures.bootstrap import N_RESAMPLES, Estimate, Outcomes, bootstrap, divide, estimate_resampled
from training.figures.curves import labels_and_scores
from training.figures.measure import from_confusion, measure, weighted_confusion

PREVALENCES = (0.01, 0.05, 0.2, 0.5)
"""From screening to a ward of suspected cases: a held-out set's own share of disease is an accident of collection."""

_NAN = float("nan")


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
    n_resamples: int = N_RESAMPLES,
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
    labels_and_scores(outcomes)
    if wrong := [share for share in prevalences if not 0 < share < 1]:
        msg = f"prevalence is {wrong[0]}, expected more than 0 and less than 1"
        raise ValueError(msg)
    rates = [measure(outcomes, n_resamples=n_resamples, seed=seed)[name] for name in ("sensitivity", "specificity")]
    resampled = bootstrap(outcomes, lambda weights: _rates(weighted_confusion(outcomes, weights)), n_resamples, seed)
    return tuple(
        PredictiveValues(share, *(_carried(bayes, share, rates, resampled) for bayes in (_ppv, _npv)))
        for share in prevalences
    )


def _rates(confusion: Floats) -> Floats:
    found = from_confusion(confusion)
    return np.stack([found["sensitivity"], found["specificity"]], axis=1)


def _ppv(sensitivity: Floats, specificity: Floats, prevalence: float) -> Floats:
    right = np.asarray(sensitivity * prevalence)
    return divide(right, np.asarray(right + (1 - specificity) * (1 - prevalence)))


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
