"""Groups beside each other, and two models on the same images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from training.arrays import Floats, Ints
from training.figures.bootstrap import N_RESAMPLES, Estimate, Outcomes, bootstrap
from training.figures.measure import FIGURES, FigureSet, count_confusion, estimate_with_classes, measure, why_undefined

_NAN = float("nan")


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
    outcomes: Outcomes, groups: Sequence[str], *, n_resamples: int = N_RESAMPLES, seed: int = 0
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
    first: Outcomes, second: Outcomes, *, n_resamples: int = N_RESAMPLES, seed: int = 0
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
    models = [FigureSet(first), FigureSet(second)]
    one, two = (model(np.ones((1, first.labels.size)))[0] for model in models)
    resampled = bootstrap(first, lambda weights: models[1](weights) - models[0](weights), n_resamples, seed)
    return {
        name: _compare(name, float(one[column]), float(two[column]), resampled[:, column], first)
        for column, name in enumerate(FIGURES)
    }


def _compare(name: str, one: float, two: float, resampled: Floats, outcomes: Outcomes) -> Comparison:
    if not math.isfinite(one + two):
        return Comparison(one, two, Estimate(_NAN, _NAN, _NAN, why_undefined(outcomes)), _NAN)
    difference = estimate_with_classes(name, two - one, resampled, outcomes)
    defined = resampled[np.isfinite(resampled)]
    # One more on either side: no number of resamples makes it 0.
    tails = (int((defined <= 0).sum()) + 1, int((defined >= 0).sum()) + 1)
    p_like = min(1.0, 2 * min(tails) / (defined.size + 1))
    return Comparison(one, two, difference, p_like if math.isfinite(difference.low) else _NAN)
