"""The training images that are nearest to another image, by the feature vectors that training stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from schemas.errors import ModelLoadError
from sparkdl.engine.novelty import to_units

VECTORS_FILE = "training_vectors.npz"
"""Beside a model's report, so that the model's folder and its hash are as they were."""

MAX_VECTORS = 5000
"""Of 1,280 values: 13 MB."""


@dataclass(frozen=True, eq=False)
class TrainingVectors:
    """Feature vectors of images that a model was trained on.

    Parameters
    ----------
    units : numpy.ndarray
        float16, shape (n, n_features), each of length 1: a cosine of two is off by 3e-4 at most.
    files : tuple of str
        Each image's path; its SHA-256 where there is no file, for it came by the stream.
    labels : tuple of str
        What each is known to show.
    """

    units: npt.NDArray[np.float16]
    files: tuple[str, ...]
    labels: tuple[str, ...]

    def find_nearest(self, features: npt.NDArray[np.float32], k: int) -> list[tuple[int, float]]:
        """Find the images most like another one.

        Parameters
        ----------
        features : numpy.ndarray
            float32, shape (n_features,).
        k : int
            How many at most.

        Returns
        -------
        list of tuple of int and float
            Place and distance, one minus the cosine; nearest first.
        """
        unit = to_units(features[np.newaxis])[0]
        distances = 1 - self.units.astype(np.float32) @ unit
        nearest = np.argsort(distances, kind="stable")[:k]
        return [(int(place), max(0.0, float(distances[place]))) for place in nearest]


def choose_vectors(
    features: npt.NDArray[np.float32], files: Sequence[str], labels: Sequence[str], *, seed: int = 0
) -> TrainingVectors:
    """Keep at most `MAX_VECTORS` images, chosen by chance.

    Parameters
    ----------
    features : numpy.ndarray
        float32, shape (n, n_features).
    files, labels : sequence of str
        Length n.
    seed : int
        The same arguments give the same images.
    """
    kept = np.sort(np.random.default_rng(seed).permutation(len(features))[:MAX_VECTORS])
    units = to_units(features[kept]).astype(np.float16)
    return TrainingVectors(units, tuple(files[place] for place in kept), tuple(labels[place] for place in kept))


def write_vectors(folder: Path, vectors: TrainingVectors) -> Path:
    """Write vectors beside a model's report; the folder is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / VECTORS_FILE
    np.savez_compressed(
        path, allow_pickle=False, units=vectors.units, files=np.array(vectors.files), labels=np.array(vectors.labels)
    )
    return path


def read_vectors(folder: Path) -> TrainingVectors | None:
    """Read the vectors beside a model's report; nothing in the file is executed.

    Returns
    -------
    TrainingVectors or None
        None where there are none, as of models that were trained before they were stored.

    Raises
    ------
    ModelLoadError
        There are some, and they cannot be read.
    """
    path = folder / VECTORS_FILE
    try:
        with np.load(path, allow_pickle=False) as stored:
            units, files, labels = stored["units"], stored["files"].tolist(), stored["labels"].tolist()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as exc:
        msg = f"cannot read {path}: {type(exc).__name__}: {exc}"
        raise ModelLoadError(msg) from exc
    if units.ndim != 2 or not len(units) == len(files) == len(labels):  # noqa: PLR2004
        msg = (
            f"{path} has vectors of shape {units.shape}, {len(files)} files and {len(labels)} labels; expected one each"
        )
        raise ModelLoadError(msg)
    return TrainingVectors(units, tuple(files), tuple(labels))
