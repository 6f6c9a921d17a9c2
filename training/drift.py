"""Whether what is scored now still looks like what the model was made with: scores, and feature vectors.

The reference is a small file beside the model's report, which training writes: a histogram of scores, each feature's
mean and spread, and a sample of vectors. Where a model has none, the first days of the archive stand for it. Neither
needs an image.

A training set seldom has the share of positive images that a ward has, and another share alone moves scores as much as
a real change does. So scores are compared with those of the model's own first days in service. Before it has so many
days behind it, they are compared with the training set's held-out ones and told, but call for nothing.

Scores are compared by the population stability index and the Kolmogorov-Smirnov distance. Feature vectors are compared
as a whole, by the energy distance of two samples with a permutation test; see `compare_vectors` for why. A shift is no
proof that a model has become worse, only labels are; and where none is found, a new disease may still look like the old
images. Images of one patient are alike, so many images of few patients look like a shift.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from schemas.envelope import DISCLAIMER
from schemas.errors import ModelLoadError
from schemas.modelcard import ModelCard
from training.arrays import Features, Floats, Ints
from training.features import ignore
from training.labels import failing_as, open_features
from training.stored import Featurizer, made_by, read_vectors

REFERENCE_FILE = "reference.npz"
"""Beside a model's report."""

JSON_NAME, MARKDOWN_NAME = "drift.json", "drift.md"

WINDOW_DAYS = 7
"""Days of the archive, the newest, that are compared; and the first, of scores and where there is no reference."""

MIN_IMAGES = 100
"""Below it nothing is said: at 100 images the index of scores that did not shift reaches 0.2 in one of a hundred."""

PSI_LIMIT = 0.25
"""Index of scores from which the shift is called for: the customary line to "a major change"."""

ENERGY_LIMIT = 0.01
"""Share of the distance between images that the two samples account for, from which vectors have shifted."""

P_LIMIT = 0.01
"""Chance of a permutation as large, below which it is taken for a shift."""

_N_BINS = 1000
_N_DECILES = 10
_MAX_SAMPLE = 2000
_N_COMPARED = 1000  # of each side: the distances of 2,000 vectors take half a second
_N_PERMUTATIONS = 199
_N_TOP = 5
_TINY = 1e-6
_STILL_SHARE = 0.01  # of the median deviation: what varies less has no scale that a shift could be measured in
_MAX_NAMED = 10
_NOT_BY_ITSELF = "another share of positive images is enough for that, so it does not call for retraining by itself"


@dataclass(frozen=True, eq=False)
class Reference:
    """What images looked like to a model when it was made.

    Parameters
    ----------
    scores : numpy.ndarray
        int64, shape (1000,): images by score, from 0 to 1 in equal steps.
    means, deviations : numpy.ndarray
        float64, shape (n_features,).
    sample : numpy.ndarray
        float32, shape (at most 2000, n_features).
    n_images : int
        That means and deviations are of.
    """

    scores: Ints
    means: Floats
    deviations: Floats
    sample: Features
    n_images: int


def make_reference(features: Features, scores: npt.ArrayLike, *, seed: int = 0) -> Reference:
    """Boil a training set down to what drift is measured against.

    Parameters
    ----------
    features : numpy.ndarray
        float32, shape (n, n_features): of all its images.
    scores : array_like of float
        Probability of the positive label, of held-out images only: on images that a model was fitted on it is surer
        of itself than it will be of any other.
    seed : int
        Of the sample.

    Returns
    -------
    Reference
        The same arguments give the same.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(features))[:_MAX_SAMPLE])
    # float64 sums without a float64 copy of everything
    means = features.mean(axis=0, dtype=np.float64)
    deviations = np.sqrt(_variances(features, means))
    return Reference(_count_scores(scores), means, deviations, features[chosen], len(features))


def _variances(features: Features, means: Floats) -> Floats:
    total = np.zeros_like(means)
    for start in range(0, len(features), _MAX_SAMPLE):
        total += ((features[start : start + _MAX_SAMPLE] - means) ** 2).sum(axis=0)
    return total / max(len(features), 1)


def _count_scores(scores: npt.ArrayLike) -> Ints:
    values = np.asarray(scores, np.float64)
    return np.histogram(values[np.isfinite(values)], bins=_N_BINS, range=(0.0, 1.0))[0].astype(np.int64)


def save_reference(folder: Path, reference: Reference) -> Path:
    """Write the reference beside a model's report; the folder is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REFERENCE_FILE
    np.savez_compressed(
        path,
        scores=reference.scores,
        means=reference.means,
        deviations=reference.deviations,
        sample=reference.sample,
        n_images=np.array(reference.n_images),
    )
    return path


def load_reference(folder: Path) -> Reference | None:
    """Read the reference beside a model's report.

    Returns
    -------
    Reference or None
        None where there is none.

    Raises
    ------
    ModelLoadError
        There is one, and it cannot be read.
    """
    path = folder / REFERENCE_FILE
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Reference(
                scores=stored["scores"].astype(np.int64),
                means=stored["means"].astype(np.float64),
                deviations=stored["deviations"].astype(np.float64),
                sample=stored["sample"].astype(np.float32),
                n_images=int(stored["n_images"]),
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, BadZipFile) as exc:
        msg = f"cannot read {path}: {type(exc).__name__}: {exc}"
        raise ModelLoadError(msg) from exc


# --- figures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreShift:
    """How scores differ.

    Parameters
    ----------
    psi : float
        Population stability index over the reference's deciles: 0 for the same shares; customary lines are 0.1 and
        0.25.
    ks : float
        Largest difference between the two shares of images up to a score.
    p_value : float
        Chance of a difference as large among images that are alike (Smirnov's limit).
    n_reference, n_recent : int
        Scores.
    """

    psi: float
    ks: float
    p_value: float
    n_reference: int
    n_recent: int


@dataclass(frozen=True)
class VectorShift:
    """How feature vectors differ.

    Parameters
    ----------
    energy : float
        Energy distance as a share of the mean distance between two images of either sample: 0 for alike, 1 for nothing
        in common. Chance takes it a little below 0.
    p_value : float
        Share of permutations as large.
    largest : tuple of (int, float)
        The features with the largest shifts of their mean, in the reference's standard deviations.
    n_reference, n_recent : int
        Vectors.
    still_moved : tuple of int
        Features that hardly varied in the reference, less than 1 % of the median deviation, and whose mean has moved by
        more than their deviation. Those that hardly varied are in no other figure.
    """

    energy: float
    p_value: float
    largest: tuple[tuple[int, float], ...]
    n_reference: int
    n_recent: int
    still_moved: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drift:
    """What was found out.

    Parameters
    ----------
    reference : str
        What recent images were compared with, in words.
    recent : str
        Which images are recent, in words.
    scores : ScoreShift or None
        None where there are too few.
    vectors : VectorShift or None
        None where there are too few.
    called_for : bool or None
        Whether it calls for retraining; None where nothing could be compared.
    reasons : tuple of str
        Why, or why it cannot be told; and what is to be known besides.
    """

    reference: str
    recent: str
    scores: ScoreShift | None
    vectors: VectorShift | None
    called_for: bool | None
    reasons: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Say it in a sentence without a full stop."""
        if self.called_for is None:
            return "whether retraining is called for cannot be told"
        return "retraining is called for" if self.called_for else "drift does not call for retraining"

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {"disclaimer": DISCLAIMER, "verdict": self.verdict, **asdict(self), "rule": RULE}


RULE = (
    "retraining is called for where scores differ from those of the model's first days in service: index (PSI) "
    f"{PSI_LIMIT:g} or more and a Kolmogorov-Smirnov p below {P_LIMIT:g}; or where feature vectors differ: energy "
    f"{ENERGY_LIMIT:g} or more with a permutation p of {P_LIMIT:g} or less; scores that differ from the training set's "
    f"alone do not call for it; nothing is said of fewer than {MIN_IMAGES} images"
)
"""The rule, in words."""


def compare_scores(reference: Ints, recent: Ints) -> ScoreShift:
    """Compare two histograms of scores.

    Parameters
    ----------
    reference, recent : numpy.ndarray
        int64, shape (n_bins,), of the same bins; neither is empty.
    """
    n_reference, n_recent = int(reference.sum()), int(recent.sum())
    below = np.cumsum(reference) / n_reference
    edges = np.unique(np.searchsorted(below, np.arange(1, _N_DECILES) / _N_DECILES))
    # Half an image in an empty bin: the index is a sum of logarithms.
    old, new = (
        np.maximum(np.add.reduceat(counts, [0, *(edges[edges < counts.size - 1] + 1)]), 0.5) / counts.sum()
        for counts in (reference, recent)
    )
    psi = float(((new - old) * np.log(new / old)).sum())
    ks = float(np.abs(below - np.cumsum(recent) / n_recent).max())
    return ScoreShift(psi, ks, _smirnov(ks, n_reference, n_recent), n_reference, n_recent)


def _smirnov(distance: float, n_first: int, n_second: int) -> float:
    """Give the two-sided chance of a Kolmogorov-Smirnov distance, by Smirnov's limit with Stephens' correction."""
    root = math.sqrt(n_first * n_second / (n_first + n_second))
    scaled = (root + 0.12 + 0.11 / root) * distance
    if scaled < 0.2:  # noqa: PLR2004  the series is 1 here, and converges slowly
        return 1.0
    total = 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, total))


def compare_vectors(reference: Reference, recent: Features, *, seed: int = 0) -> VectorShift:
    """Compare feature vectors with the reference's sample.

    Parameters
    ----------
    reference : Reference
        What was.
    recent : numpy.ndarray
        float32, shape (n, n_features), of 2 vectors or more.
    seed : int
        Of the permutations, and of which vectors are compared beyond 1,000 on a side.

    Returns
    -------
    VectorShift
        The same arguments give the same.

    Notes
    -----
    The energy distance was chosen because it sees shifts of place and of spread in any direction, needs nothing to be
    fitted, and has a permutation test that is right at any number of images. Measured on generated vectors of 1,280
    values that 30 hidden causes and noise make, 200 recent ones against 1,000; the share of samples that the test finds
    at p 0.01:

    ========================================  ======  ===========
    shift                                     found   mean energy
    ========================================  ======  ===========
    none (200 trials; at p 0.05: 0.055)       0.005   0.0000
    none, 1,000 recent ones (60 trials)       0.000   0.0000
    0.1 deviations of every feature           1.00    0.0027
    0.25 deviations of every feature          1.00    0.0153
    half a deviation of one strong cause      0.97    0.0027
    one deviation of one strong cause         1.00    0.0108
    one deviation of one weak cause           0.90    0.0016
    spread of all causes 1.3 times as wide    1.00    0.0140
    ========================================  ======  ===========

    The test finds more than is worth a retraining; so the energy itself has a limit, of 0.01, which none of the samples
    without a shift came near (0.0007 in one of a hundred).
    """
    from threadpoolctl import threadpool_limits  # noqa: PLC0415  comes with scikit-learn, in the train extra

    rng = np.random.default_rng(seed)
    varied = _find_varied(reference.deviations)
    means, scale = reference.means[varied], reference.deviations[varied]
    old, new = (
        ((values[rng.permutation(len(values))[:_N_COMPARED]][:, varied] - means) / scale).astype(np.float32)
        for values in (reference.sample, recent)
    )
    with threadpool_limits(1):
        energies = _energies(_distances(np.concatenate([old, new])), len(old), rng)
    moves = recent.mean(axis=0, dtype=np.float64) - reference.means
    shifts = np.zeros_like(moves)
    shifts[varied] = moves[varied] / scale
    largest = np.argsort(-np.abs(shifts), kind="stable")[:_N_TOP]
    still_moved = ~varied & (np.abs(moves) > np.maximum(reference.deviations, _TINY))
    return VectorShift(
        energy=float(energies[0]),
        p_value=float((energies >= energies[0]).mean()),
        largest=tuple((int(index), float(shifts[index])) for index in largest),
        n_reference=reference.n_images,
        n_recent=len(recent),
        still_moved=tuple(np.flatnonzero(still_moved).tolist()),
    )


def _find_varied(deviations: Floats) -> npt.NDArray[np.bool_]:
    """Tell which features have a scale; one that hardly varied would outweigh all others with its first new value."""
    some = deviations[deviations > _TINY]
    return deviations > max(_TINY, _STILL_SHARE * float(np.median(some)) if some.size else 0.0)


def _distances(values: Features) -> npt.NDArray[np.float32]:
    squares = (values * values).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * values @ values.T, 0))
    np.fill_diagonal(distances, 0)
    return np.asarray(distances)


def _energies(distances: npt.NDArray[np.float32], n_first: int, rng: np.random.Generator) -> Floats:
    """Give the energy coefficient of the two samples, then of random ones of the same sizes.

    Without the bias of V-statistics, so its mean is 0 for samples that are alike.
    """
    n_second = len(distances) - n_first
    sides = np.zeros((1 + _N_PERMUTATIONS, len(distances)), np.float32)
    sides[0, :n_first] = 1
    for row in sides[1:]:
        row[rng.permutation(len(distances))[:n_first]] = 1
    first = np.einsum("ij,ij->i", sides @ distances, sides, dtype=np.float64)  # sums over pairs within the first
    rows = sides.astype(np.float64) @ distances.sum(axis=1, dtype=np.float64)
    across = rows - first
    second = distances.sum(dtype=np.float64) - first - 2 * across
    between = across / (n_first * n_second)
    within = first / (n_first * (n_first - 1)) + second / (n_second * (n_second - 1))
    # Where no feature has varied there is no distance.
    return np.asarray(np.divide(2 * between - within, 2 * between, out=np.zeros_like(between), where=between > 0))


# --- the archive ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Archive:
    """What one model, and others with its featurizer, have left in the tables."""

    folder: str
    card: ModelCard
    featurizer: Featurizer
    features: ds.Dataset
    predictions: ds.Dataset | None
    condition: ds.Expression

    def days(self) -> tuple[date, date] | None:
        """Give the first and the last day."""
        found = self.features.to_table(columns=["date"], filter=self.condition)["date"]
        edges = pc.min_max(found).as_py()
        return None if edges["min"] is None else (edges["min"], edges["max"])

    def sample(self, first: date, last: date) -> Features:
        """Give up to 2,000 vectors of different images: those of the lowest digests, which is as good as by lot."""
        days = (pc.field("date") >= pa.scalar(first)) & (pc.field("date") <= pa.scalar(last))
        rows = self.features.to_table(columns=["sha256", "event_id", "date"], filter=self.condition & days)
        rows = rows.sort_by([("sha256", "ascending"), ("event_id", "ascending")])
        found = rows.group_by("sha256", use_threads=False).aggregate([("event_id", "first"), ("date", "first")])
        chosen = found.rename_columns([name.removesuffix("_first") for name in found.column_names]).slice(
            0, _MAX_SAMPLE
        )
        if not chosen.num_rows:
            return np.zeros((0, self.featurizer.n_features), np.float32)
        vectors, whole = read_vectors(self.features, chosen, self.featurizer.n_features, ignore)
        return vectors[whole]

    def find_first_days(self, before: date) -> tuple[date, date] | None:
        """Give this very model's first days in service; None where they do not end before a day."""
        if self.predictions is None:
            return None
        own = pc.field("model_sha256") == self.card.sha256
        first = pc.min(self.predictions.to_table(columns=["date"], filter=own)["date"]).as_py()
        if first is None:
            return None
        last = first + timedelta(days=WINDOW_DAYS - 1)
        return (first, last) if last < before else None

    def scores(self, first: date, last: date) -> Ints:
        """Count this very model's scores."""
        if self.predictions is None:
            return np.zeros(_N_BINS, np.int64)
        days = (pc.field("date") >= pa.scalar(first)) & (pc.field("date") <= pa.scalar(last))
        own = pc.field("model_sha256") == self.card.sha256
        return _count_scores(self.predictions.to_table(columns=["score"], filter=days & own)["score"].to_numpy())


def measure_drift(
    tables_folder: str,
    card: ModelCard,
    featurizer: Featurizer,
    hashes: list[str],
    reference: Reference | None,
    *,
    seed: int = 0,
) -> Drift:
    """Compare what was scored in the archive's last days with what was before.

    Vectors are compared with those that the model was made with, scores with those of its first days in service. Where
    the archive has no such days, apart from the last ones and with 100 scores or more, scores are compared with the
    reference's; that is told, and calls for nothing.

    Parameters
    ----------
    tables_folder : str
        Path or URI of the tables.
    card : ModelCard
        The model in service; scores are its own.
    featurizer : Featurizer
        Its featurizer.
    hashes : list of str
        The models that have it, see `training.stored.find_models_with`; vectors are theirs.
    reference : Reference, optional
        What the model was made with; by default the archive's first days stand for it.
    seed : int
        Of permutations.

    Raises
    ------
    DatasetError
        There is no archive yet.
    JobError
        It cannot be read.
    """
    with failing_as(f"the tables in {tables_folder} cannot be read"):
        features = open_features(tables_folder).to_pyarrow_dataset()
        archive = _Archive(
            tables_folder, card, featurizer, features, _open_predictions(tables_folder), made_by(featurizer, hashes)
        )
        days = archive.days()
        if days is None:
            return _untold("none", "none", "the archive has no vector of this featurizer")
        first, last = days
        start = max(first, last - timedelta(days=WINDOW_DAYS - 1))
        recent = f"{start} to {last}"
        served = archive.find_first_days(start)
        first_scores = np.zeros(_N_BINS, np.int64) if served is None else archive.scores(*served)
        in_service = int(first_scores.sum()) >= MIN_IMAGES
        if reference is None:
            end = first + timedelta(days=WINDOW_DAYS - 1)
            told = f"the archive's first days, {first} to {end}, as the model has no {REFERENCE_FILE}"
            if end >= start:
                return _untold(told, recent, f"the archive has less than {2 * WINDOW_DAYS} days")
            reference = _describe_days(archive, first, end, first_scores)
        else:
            told = f"the {reference.n_images} images of the model's training set"
            reference = replace(reference, scores=first_scores) if in_service else reference
        if served is not None and in_service:
            told = f"{told}; scores with the model's first days in service, {served[0]} to {served[1]}"
        vectors, scores = archive.sample(start, last), archive.scores(start, last)
        return _judge(reference, told, vectors, scores, recent, in_service=in_service, seed=seed)


def _open_predictions(folder: str) -> ds.Dataset | None:
    try:
        return DeltaTable(f"{folder}/predictions").to_pyarrow_dataset()
    except TableNotFoundError:
        return None


def _describe_days(archive: _Archive, first: date, last: date, scores: Ints) -> Reference:
    sample = archive.sample(first, last)
    means = sample.mean(axis=0, dtype=np.float64) if len(sample) else np.zeros(sample.shape[1])
    return Reference(scores, means, np.sqrt(_variances(sample, means)), sample, len(sample))


def _untold(reference: str, recent: str, why: str) -> Drift:
    return Drift(reference, recent, None, None, None, (why,))


def _judge(
    reference: Reference, told: str, vectors: Features, scores: Ints, recent: str, *, in_service: bool, seed: int
) -> Drift:
    """Compare, and apply the rule; ``in_service``: the reference's scores are of the model's work, not of training."""
    score_shift, vector_shift = None, None
    reasons, notes = [], []
    if min(reference.scores.sum(), scores.sum()) >= MIN_IMAGES:
        score_shift = compare_scores(reference.scores, scores)
        if score_shift.psi >= PSI_LIMIT and score_shift.p_value < P_LIMIT:
            figures = f"PSI {score_shift.psi:.2f}, Kolmogorov-Smirnov distance {score_shift.ks:.2f}"
            if in_service:
                reasons.append(f"scores have shifted: {figures}")
            else:
                notes.append(f"scores differ from the training set's: {figures}; {_NOT_BY_ITSELF}")
    else:
        notes.append(f"{reference.scores.sum()} and {scores.sum()} scores, fewer than {MIN_IMAGES}: not compared")
    if min(len(reference.sample), len(vectors)) >= MIN_IMAGES:
        vector_shift = compare_vectors(reference, vectors, seed=seed)
        if vector_shift.energy >= ENERGY_LIMIT and vector_shift.p_value <= P_LIMIT:
            reasons.append(
                f"feature vectors have shifted: energy {vector_shift.energy:.3f}, p {vector_shift.p_value:.3f}"
            )
    else:
        notes.append(f"{len(reference.sample)} and {len(vectors)} vectors, fewer than {MIN_IMAGES}: not compared")
    if vector_shift is not None and vector_shift.still_moved:
        notes.append(f"{_name_features(vector_shift.still_moved)}: hardly varied before and moved; not in the energy")
    nothing = vector_shift is None and not (score_shift is not None and in_service)
    called_for = None if nothing else bool(reasons)
    return Drift(told, recent, score_shift, vector_shift, called_for, tuple(reasons + notes))


def _name_features(indices: tuple[int, ...]) -> str:
    more = [f"{len(indices) - _MAX_NAMED} more"] if len(indices) > _MAX_NAMED else []
    return ", ".join([*(f"feature {index}" for index in indices[:_MAX_NAMED]), *more])


# --- the page ---------------------------------------------------------------------------------------------------------


def list_figures(drift: Drift) -> list[tuple[str, str, str]]:
    """Give rows to show: what, how much, and what to read it by."""
    rows = []
    if (scores := drift.scores) is not None:
        counts = f"{scores.n_recent} images, {scores.n_reference} before"
        rows += [
            ("scores, PSI", f"{scores.psi:.3f}", f"0.1 some, {PSI_LIMIT:g} a major change; {counts}"),
            ("scores, Kolmogorov-Smirnov", f"{scores.ks:.3f}", f"p {scores.p_value:.3g}"),
        ]
    if (vectors := drift.vectors) is not None:
        counts = f"{vectors.n_recent} images, {vectors.n_reference} before"
        rows.append(("vectors, energy", f"{vectors.energy:.4f}", f"p {vectors.p_value:.3f}; {counts}"))
        rows += [
            (f"feature {index}", f"{shift:+.2f}", "mean, in standard deviations") for index, shift in vectors.largest
        ]
    return rows


def write_drift(folder: Path, drift: Drift) -> None:
    """Write ``drift.json`` and ``drift.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = json.dumps(_finite(drift.to_dict()), indent=2, allow_nan=False)
    (folder / JSON_NAME).write_text(stored + "\n", encoding="utf-8")
    lines = [
        "# Drift",
        f"**{DISCLAIMER}**",
        f"**{drift.verdict[0].upper()}{drift.verdict[1:]}.**",
        *(f"- {reason}" for reason in drift.reasons),
        f"Compared: {drift.recent} with {drift.reference}.",
        "\n".join(["| what | how much | read it by |", "|:--|--:|:--|", *map(_row, list_figures(drift))]),
        f"The rule: {RULE}.",
    ]
    (folder / MARKDOWN_NAME).write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _finite(value: Any) -> Any:
    """Turn what is no number into null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
