"""How far scores and vectors have moved from those of the training.

The energy distance with its permutation test is own code: libraries that have one (alibi-detect, evidently) bring a
deep learning framework or a reporting product along, and none has a better test. It is sixty lines of numpy.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from schemas.errors import ModelLoadError
from training.arrays import Features, Floats, Ints

REFERENCE_FILE = "reference.npz"
"""Beside a model's report."""

N_BINS = 1000

_N_DECILES = 10

MAX_SAMPLE = 2000

_N_COMPARED = 1000  # of each side: the distances of 2,000 vectors take half a second

_N_PERMUTATIONS = 199

_N_TOP = 5

_TINY = 1e-6

_STILL_SHARE = 0.01  # of the median deviation: what varies less has no scale that a shift could be measured in


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
    chosen = np.sort(np.random.default_rng(seed).permutation(len(features))[:MAX_SAMPLE])
    # float64 sums without a float64 copy of everything
    means = features.mean(axis=0, dtype=np.float64)
    deviations = np.sqrt(variances_of(features, means))
    return Reference(count_scores(scores), means, deviations, features[chosen], len(features))


def variances_of(features: Features, means: Floats) -> Floats:
    """Return each feature's variance, in blocks: float64 of all at once would be large."""
    total = np.zeros_like(means)
    for start in range(0, len(features), MAX_SAMPLE):
        total += ((features[start : start + MAX_SAMPLE] - means) ** 2).sum(axis=0)
    return total / max(len(features), 1)


def count_scores(scores: npt.ArrayLike) -> Ints:
    """Count scores from 0 to 1 in `N_BINS` bins."""
    values = np.asarray(scores, np.float64)
    return np.histogram(values[np.isfinite(values)], bins=N_BINS, range=(0.0, 1.0))[0].astype(np.int64)


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
    return ScoreShift(psi, ks, chance_of_distance(ks, n_reference, n_recent), n_reference, n_recent)


def chance_of_distance(distance: float, n_first: int, n_second: int) -> float:
    """Give the two-sided chance of a Kolmogorov-Smirnov distance, by Smirnov's limit with Stephens' correction."""
    from scipy.special import kolmogorov  # noqa: PLC0415  heavy, and part of the train extra only

    root = math.sqrt(n_first * n_second / (n_first + n_second))
    return float(kolmogorov((root + 0.12 + 0.11 / root) * distance))


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
