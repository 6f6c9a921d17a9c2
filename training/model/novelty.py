"""The detector of images unlike those of the training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparkdl.engine.novelty import N_NEIGHBOURS, measure_nearest, to_units
from training.arrays import Features, Floats, Ints
from training.figures.bootstrap import Estimate

_MAX_REFERENCES = 2000  # 10 MB of 1,280 float32; 0.3 ms an image

_NOVELTY_QUANTILE = 0.99

_MIN_TRAINING = 20

_BLOCK_ROWS = 512


# --- unlike the training images ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NoveltyDetector:
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
        """Give what `sparkdl.engine.novelty.write_detector` stores."""
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
    for start in range(0, len(units), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        cosines = units[rows] @ references.T
        if own is not None:
            cosines[own[0][rows, None] == own[1]] = -1
        found[rows] = measure_nearest(cosines)
    return found


def fit_detector(
    features: npt.NDArray[np.floating],
    patients: Sequence[str],
    *,
    quantile: float = _NOVELTY_QUANTILE,
    max_references: int = _MAX_REFERENCES,
    seed: int = 0,
) -> NoveltyDetector:
    """Fit a detector to training features.

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
    NoveltyDetector
        The same arguments give the same detector.

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
    return NoveltyDetector(units[kept], float(np.quantile(distances, quantile)), quantile)


@dataclass(frozen=True)
class NoveltyFigures:
    """What the detector costs and gives, on images that it was not fitted on.

    Parameters
    ----------
    threshold : float
        Distance above which an image is flagged.
    flagged : Estimate
        Share of the held-out images that are flagged.
    judged, all_images : mapping of str to Estimate
        As `training.figures.measure.measure` gives them: of the images that are not flagged, and of all.
    """

    threshold: float
    flagged: Estimate
    judged: Mapping[str, Estimate]
    all_images: Mapping[str, Estimate]
