"""Probes for shortcuts: how well the label can be told from what shows no disease.

A probe is a small regularised logistic regression on something poor: 64 pixels, the image's rim, its corners, its size
in pixels and bytes, its source. It is measured by cross-validation over all images, grouped by patient and stratified,
so it needs no held-out set. If such a thing comes close to the model, the model's figure is no evidence that it sees
disease (DeGrave et al. 2021). See `give_verdict` for the rule.

Measured, AUROC over 5 folds, the model being the same regression on EfficientNetLite0's features:

==========================================  =====  =========  =======  =======  ========  ======  ==========
images                                      model  thumbnail  borders  corners  metadata  source  verdict
==========================================  =====  =========  =======  =======  ========  ======  ==========
public, normal against covid                0.975  0.945      0.803    0.792    0.796     1.000   confounded
public, normal against pneumonia            0.802  0.811      0.756    0.799    0.933     (one)   confounded
160 phantoms, foci in the lungs             0.975  0.677      0.438    0.550    0.517     (one)   ok
the same, a letter in one corner of half    0.964  0.680      0.446    0.903    0.519     (one)   confounded
160 phantoms, smooth hazes in the lungs     0.921  0.903      0.430    0.556    0.523     (one)   confounded
206 public, labels shuffled                 0.504  0.574      0.569    0.477    0.518             ok
==========================================  =====  =========  =======  =======  ========  ======  ==========
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from training.arrays import Floats, Ints
from training.data.summary import ImageSummary
from training.figures.bootstrap import Estimate, gather_outcomes
from training.figures.measure import measure

Target = Literal["label", "source"]

WELL_ABOVE_CHANCE = 0.6
"""The lower end of a probe's interval from which it counts at all."""

BLIND_SHARE = 0.5
"""Share of the model's advantage over chance that a probe which cannot see the lungs may reach."""

SOURCE_IS_CLASS = 0.95
"""AUROC of one class against the rest from which the source is taken for another name of that class."""

THUMBNAIL_SHARE = 0.8
"""Share of the model's advantage over chance that 64 pixels of the whole chest may reach."""

LABEL_BLIND_PROBES = ("borders", "corners", "metadata", "source")

SOURCE_PROBES = ("source_from_thumbnail", "source_from_features")

_INVERSE_PENALTY = 0.1  # a tenth of scikit-learn's: of 0.001 to 1, within 0.02 of the best for each probe

_MAX_ITERATIONS = 2000

_N_FOLDS = 5

_MIN_PATIENTS = 4  # of each class: below it, folds say nothing

_MAX_IMAGES = 20_000

_N_RESAMPLES = 1000

_CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class Probe:
    """How well a probe did.

    Parameters
    ----------
    name : str
        ``"thumbnail"``, one of `LABEL_BLIND_PROBES`, or one of `SOURCE_PROBES`.
    target : str
        What it predicted: ``"label"`` or ``"source"``.
    auroc : Estimate
        With a bootstrap interval over patients; of more than two classes, the mean of each against the rest. NaN with
        a note where it could not be measured.
    n_values : int
        Numbers it knew of each image.
    class_aurocs : tuple of float
        Each class against the rest, in the order of classes; NaN where undefined. Of two classes, both are ``auroc``.
    """

    name: str
    target: Target
    auroc: Estimate
    n_values: int
    class_aurocs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the model's figure may count as evidence.

    Parameters
    ----------
    verdict : str
        ``"ok"``, ``"confounded"``, or ``"unknown"`` where no probe of the label could be measured.
    reasons : tuple of str
        Why it is confounded, one sentence for each probe; empty for ok. Of unknown, what is known against the model.
    notes : tuple of str
        What could not be looked at. A verdict of ok says only that these probes found nothing.
    """

    verdict: Literal["ok", "confounded", "unknown"]
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())


def run_probes(
    summaries: Sequence[ImageSummary],
    labels: Sequence[int],
    patients: Sequence[str],
    *,
    sources: Sequence[str] = (),
    features: npt.NDArray[np.floating] | None = None,
    seed: int = 0,
) -> tuple[Probe, ...]:
    """Measure every probe that the data allow.

    Parameters
    ----------
    summaries : sequence of ImageSummary
        One for each image.
    labels : sequence of int
        Classes.
    patients : sequence of str
        Who is on each image, or the groups that copies and patients make (`training.data.duplicates.union_groups`).
    sources : sequence of str, optional
        Where each image is from; without, or with one source only, there are no source probes.
    features : numpy.ndarray, optional
        float, shape (n, n_features): the network's, for a probe of the source.
    seed : int
        Of folds, resamples, and of the choice of images beyond 20,000, which are as many as the probes look at.

    Returns
    -------
    tuple of Probe
        ``thumbnail``, ``borders``, ``corners``, ``metadata``, then with two or more sources ``source`` and
        `SOURCE_PROBES`.

    Raises
    ------
    ValueError
        The lengths differ (a mistake of the program).
    """
    n_images = len(labels)
    lengths = (len(summaries), len(patients), len(sources) or n_images, n_images if features is None else len(features))
    if set(lengths) != {n_images}:
        msg = f"{lengths} summaries, patients, sources and features, expected {n_images} as there are labels"
        raise ValueError(msg)
    kept = _choose_images(patients, seed)
    groups = np.asarray(patients, dtype=str)[kept]
    truth = np.asarray(labels, np.int64)[kept]
    known = {name: np.array([getattr(summaries[i], name) for i in kept]) for name in _FROM_PIXELS}
    probes = [_probe(name, "label", values, truth, groups, seed) for name, values in known.items()]
    places = np.asarray(sources, dtype=str)[kept] if len(sources) else groups[:0]
    names = np.unique(places)
    if names.size > 1:
        one_hot = (places[:, None] == names).astype(np.float64)
        codes = np.searchsorted(names, places).astype(np.int64)
        probes.append(_probe("source", "label", one_hot, truth, groups, seed))
        probes.append(_probe("source_from_thumbnail", "source", known["thumbnail"], codes, groups, seed))
        if features is not None:
            probes.append(_probe("source_from_features", "source", np.asarray(features)[kept], codes, groups, seed))
    return tuple(probes)


_FROM_PIXELS = ("thumbnail", "borders", "corners", "metadata")


def _choose_images(patients: Sequence[str], seed: int) -> Ints:
    """Give the indices of at most `_MAX_IMAGES` images, all of a patient's or none."""
    codes = np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1] if len(patients) else np.zeros(0, int)
    order = np.random.default_rng(seed).permutation(int(codes.max(initial=-1)) + 1)
    images_before = np.cumsum(np.bincount(codes, minlength=order.size)[order])
    chosen = np.zeros(order.size, bool)
    chosen[order[images_before <= _MAX_IMAGES]] = True
    return np.flatnonzero(chosen[codes])


def _probe(name: str, target: Target, values: Floats, truth: Ints, groups: npt.NDArray[np.str_], seed: int) -> Probe:
    classes, codes = np.unique(truth, return_inverse=True)
    n_values = values.shape[1] if values.ndim > 1 else 0
    n_patients = min((np.unique(groups[codes == c]).size for c in range(classes.size)), default=0)
    if classes.size < 2 or n_patients < _MIN_PATIENTS:  # noqa: PLR2004
        note = f"a {target} has {n_patients} patients, wanted {_MIN_PATIENTS}" if classes.size > 1 else f"one {target}"
        return Probe(name, target, Estimate(math.nan, math.nan, math.nan, f"not measured: {note}"), n_values)
    probabilities = predict_probe(values, codes, groups.tolist(), seed=seed)
    outcomes = gather_outcomes(codes, probabilities, groups.tolist())
    found = measure(outcomes, n_resamples=_N_RESAMPLES, seed=seed)["auroc"]
    return Probe(name, target, found, n_values, _class_aurocs(codes, probabilities))


def _class_aurocs(codes: Ints, probabilities: Floats) -> tuple[float, ...]:
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415

    return tuple(float(roc_auc_score(codes == c, probabilities[:, c])) for c in range(probabilities.shape[1]))


def predict_probe(values: Floats, labels: npt.ArrayLike, patients: Sequence[str], *, seed: int = 0) -> Floats:
    """Predict each image by a logistic regression fitted on other patients.

    Parameters
    ----------
    values : numpy.ndarray
        float, shape (n, n_values).
    labels : array_like of int
        Classes 0 to n_classes - 1, each of at least 2 patients, shape (n,).
    patients : sequence of str
        Length n.
    seed : int
        Of the folds.

    Returns
    -------
    numpy.ndarray
        float64, shape (n, n_classes): probabilities; equal ones where the other patients were of one class only.
    """
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  part of the train extra only
    from sklearn.model_selection import StratifiedGroupKFold  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415  comes with scikit-learn

    codes, groups = np.asarray(labels, np.int64), np.asarray(patients, dtype=str)
    n_classes = int(codes.max()) + 1
    fewest = min(np.unique(groups[codes == c]).size for c in range(n_classes))
    folds = StratifiedGroupKFold(min(_N_FOLDS, fewest), shuffle=True, random_state=seed)
    probabilities = np.full((codes.size, n_classes), 1 / n_classes)
    with threadpool_limits(1):  # the matrices are small: a second thread of BLAS makes this five times slower
        for train, test in folds.split(values, codes, groups):
            seen = np.unique(codes[train])
            if seen.size < 2:  # noqa: PLR2004
                continue
            model = make_pipeline(StandardScaler(), LogisticRegression(C=_INVERSE_PENALTY, max_iter=_MAX_ITERATIONS))
            model.fit(values[train], codes[train])
            probabilities[test] = 0
            probabilities[np.ix_(test, seen)] = model.predict_proba(values[test])
    return probabilities


# --- verdict ----------------------------------------------------------------------------------------------------------


def give_verdict(model_auroc: float, probes: Sequence[Probe]) -> Verdict:
    """Say whether a model's figure may count as evidence that it sees disease.

    Parameters
    ----------
    model_auroc : float
        On held-out images; of more than two classes the mean of each against the rest, as the probes'.
    probes : sequence of Probe
        From `run_probes`, on images of the same collection.

    Returns
    -------
    Verdict
        Confounded where any probe of the label is a shortcut, unknown where none has a figure.

    Notes
    -----
    The rule. A probe is a shortcut when both hold:

    1. It is well above chance: the lower end of its 95 % interval is above 0.6. With half a dozen probes one in ten
       sets would have a probe whose interval lies above 0.5 by luck; hardly any has one above 0.6.
    2. It has a large share of what the model has over chance, ``(probe - 0.5) / (model - 0.5)``. AUROC less a half is
       the natural scale (twice it is Somers' D): 0.75 beside a model of 0.98 is half of it, beside one of 0.80 nearly
       all.

       - Half, for probes that cannot see the lungs: ``borders``, ``corners``, ``metadata``, ``source``. No disease is
         there. Whatever they know, the collection put in, and a network that sees the whole image knows at least that;
         once half of its advantage can be had so, the rest is not to be trusted either.
       - 0.8, for ``thumbnail``. It sees the chest, so a large finding rightly shows in it a little. But a model that is
         hardly better than 64 pixels has not shown that it looks at anything finer than the overall brightness, on
         which exposure, habitus and processing have more influence than disease has.

    A label that goes with the source is a shortcut only if the image betrays the source, so ``source`` counts unless
    the probes of the source from the image were run and all failed the first condition. One source for each class
    cannot be told from disease by any measurement on the set, and is confounded.

    Of more than two classes one may be the name of a source while the mean over the classes hides it: a class that the
    source alone tells with an AUROC of 0.95 is confounded, whatever the model's figure.

    The share of a model that is itself at chance is taken as infinite: if anything tells the label then, it is no
    model.
    """
    notes = [f"{probe.name}: {probe.auroc.note}" for probe in probes if math.isnan(probe.auroc.value)]
    betrayed = _source_shows(probes)
    if any(probe.name == "source" for probe in probes) and not betrayed:
        notes.append("source: the images do not betray it, so what it says about the label cannot be used")
    suspects = [probe for probe in probes if probe.target == "label" and (probe.name != "source" or betrayed)]
    reasons = tuple(reason for probe in suspects if (reason := _suspect(probe, model_auroc)))
    measured = any(probe.target == "label" and math.isfinite(probe.auroc.value) for probe in probes)
    return Verdict("confounded" if reasons else "ok" if measured else "unknown", reasons, tuple(notes))


def _source_shows(probes: Sequence[Probe]) -> bool:
    seen = [probe.auroc for probe in probes if probe.target == "source"]
    return not seen or any(math.isnan(auroc.value) or auroc.low > WELL_ABOVE_CHANCE for auroc in seen)


def _suspect(probe: Probe, model_auroc: float) -> str:
    """Give the reason for which a probe is a shortcut; empty if it is none."""
    value, low = probe.auroc.value, probe.auroc.low
    if not low > WELL_ABOVE_CHANCE:  # also where it is not a number
        return ""
    advantage = model_auroc - _CHANCE
    share = (value - _CHANCE) / advantage if advantage > 0 else math.inf
    named = probe.name == "source" and max(probe.class_aurocs, default=0.0) >= SOURCE_IS_CLASS
    if share < (BLIND_SHARE if probe.name in LABEL_BLIND_PROBES else THUMBNAIL_SHARE) and not named:
        return ""
    return (
        f"{_DESCRIPTIONS[probe.name]} tells the label with an AUROC of {value:.3f} ({low:.3f}-{probe.auroc.high:.3f}), "
        f"the model with {model_auroc:.3f}"
    )


_DESCRIPTIONS: Mapping[str, str] = {
    "thumbnail": "a thumbnail of 8x8 pixels",
    "borders": "the border of the image, where no lung is,",
    "corners": "what is in the corners, where only markers and text are,",
    "metadata": "the file's size in pixels and bytes",
    "source": "the name of the source alone",
}
