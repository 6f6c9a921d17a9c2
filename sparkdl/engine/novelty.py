"""Tells images whose features are unlike those that a model was trained on.

This is the serving side: it reads what training stored beside a model. It runs where the features come into being,
inside a Spark Python worker, so that they need not cross to Python a second time.

An Arrow batch at a time: reading the references takes longer than reckoning with them, and drives the network's weights
out of the cache. Measured with EfficientNetLite0 and 2,000 references, images per CPU second against those without a
detector: 0.91 one image at a time, 0.95 in batches of 8; with 500 references 0.95 and 0.99.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from schemas.errors import ModelLoadError

N_NEIGHBOURS = 5
"""An image's distance is one minus its mean cosine to so many of the nearest references."""

_TINY = np.float32(1e-12)
# Twice what rounding can add up to in a product of two unit vectors of 1,280 float32, and more than it ever did: 5e-7.
_ROUNDING = 2e-4
# As for engines: a promoted model replaces another one while micro-batches of both are in flight.
_MAX_DETECTORS = 2


@dataclass(frozen=True, eq=False)
class StoredDetector:
    """What images are compared with.

    Parameters
    ----------
    references : numpy.ndarray
        float32, shape (n_references, n_features): training features, each of length 1.
    threshold : float
        A distance above it is novel.
    sha256 : str
        Of the file that it was read from.
    """

    references: npt.NDArray[np.float32]
    threshold: float
    sha256: str

    def measure_distances(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Compute each image's distance.

        Parameters
        ----------
        features : numpy.ndarray
            float32, shape (n, n_features).

        Returns
        -------
        numpy.ndarray
            Shape (n,), 0 to 2; not a number where a feature is none.
        """
        return measure_nearest((self.references @ to_units(features).T).T)

    def flags(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Tell which images are novel; those whose features are not numbers are.

        An image gets the same answer whatever its neighbours are. The last digits of a product of several images may
        differ with their number, so one that is too close to the threshold for them to matter is asked again, alone.

        Parameters
        ----------
        features : numpy.ndarray
            float32, shape (n, n_features).

        Returns
        -------
        numpy.ndarray
            bool, shape (n,).
        """
        distances = self.measure_distances(features)
        for place in np.flatnonzero(np.abs(distances - self.threshold) < _ROUNDING):
            distances[place] = self.measure_distances(features[place : place + 1])[0]
        return np.asarray(~(distances <= self.threshold))


def to_units(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Give each vector, shape (n, n_features), the length 1."""
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), _TINY))


def measure_nearest(cosines: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Compute each image's distance from its cosines, shape (n, n_references): one minus the mean of the largest."""
    k = min(N_NEIGHBOURS, cosines.shape[1])
    return np.asarray(1 - np.partition(cosines, -k, axis=1)[:, -k:].mean(axis=1, dtype=np.float64))


def write_detector(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write what `read_detector` reads; the same arrays give the same bytes.

    Parameters
    ----------
    path : Path
        File to write, ending in ``.npz``.
    arrays : mapping of str to numpy.ndarray
        ``references``, ``threshold`` and ``quantile``, see `StoredDetector`.
    """
    np.savez(path, allow_pickle=False, **dict(arrays))


def read_detector(path: Path) -> StoredDetector:
    """Read a detector; nothing in the file is executed.

    Parameters
    ----------
    path : Path
        What `write_detector` wrote.

    Raises
    ------
    ModelLoadError
        The file cannot be read or is not what it should be.
    """
    try:
        content = path.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            references, threshold = stored["references"], float(stored["threshold"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as exc:
        msg = f"cannot read {path}: {type(exc).__name__}: {exc}"
        raise ModelLoadError(msg) from exc
    if references.dtype != np.float32 or references.ndim != 2 or not references.size:  # noqa: PLR2004
        msg = f"{path}: references are {references.dtype} of shape {references.shape}, expected float32 vectors"
        raise ModelLoadError(msg)
    if not (np.isfinite(references).all() and np.isfinite(threshold)):
        msg = f"{path} has values that are not numbers"
        raise ModelLoadError(msg)
    return StoredDetector(references, threshold, hashlib.sha256(content).hexdigest())


def find_detector(sha256: str, load: Callable[[], StoredDetector]) -> StoredDetector:
    """Return this process's detector, loading one only where there is none yet: Spark asks for every task.

    Parameters
    ----------
    sha256 : str
        Of the detector.
    load : callable
        Gives it.
    """
    detector = _detectors.pop(sha256, None) or load()
    _detectors[sha256] = detector  # last in = most recently used
    while len(_detectors) > _MAX_DETECTORS:
        del _detectors[next(iter(_detectors))]
    return detector


_detectors: dict[str, StoredDetector] = {}
