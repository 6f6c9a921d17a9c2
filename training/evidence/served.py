"""A model that was saved before: its numbers, and which images it was trained on."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from sparkdl.engine.neighbours import choose_vectors, write_vectors
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from sparkdl.transformers.pipelinefiles import read_pipeline
from training.arrays import Features
from training.model.classifier import Head
from training.model.material import Material

IMAGES_FILE = "training_images.txt"
"""Beside a model's report: SHA-256 of the images it was trained on, one in each line."""


def write_images(folder: Path, material: Material) -> None:
    """Write down which images a model was trained on, for later comparisons."""
    digests = sorted({digest for digest, out in zip(material.digests, material.held_out, strict=True) if not out})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / IMAGES_FILE).write_text("\n".join(digests) + "\n", encoding="utf-8")


def write_training_vectors(folder: Path, material: Material, features: Features, *, seed: int = 0) -> None:
    """Keep the vectors of images that a model was trained on, so that the nearest of them can be shown beside another.

    Parameters
    ----------
    folder : Path
        Of the model's report. The model's own folder stays as its hash says.
    material : Material
        The images.
    features : numpy.ndarray
        float32, shape (n, n_features): of all of them, held out or not.
    seed : int
        Of the choice, where there are many.
    """
    taken = np.flatnonzero(~material.held_out)
    paths, names = material.paths, material.dataset.labels
    labels = [names[label] for label in material.labels[taken]]
    write_vectors(folder, choose_vectors(features[taken], [str(paths[place]) for place in taken], labels, seed=seed))


def load_served(folder: Path) -> tuple[DeepImageFeaturizer, Head]:
    """Read a model's featurizer, and its classifier's numbers.

    Parameters
    ----------
    folder : Path
        A saved ``PipelineModel``.

    Raises
    ------
    ModelLoadError
        It names a class that is none of those a model is made of, cannot be read, or is another kind of pipeline.
    """
    featurizer, regression = read_pipeline(folder)
    return featurizer, Head(regression.coefficients, regression.intercepts)


def name_served(version: str, digests: Collection[str], reports_folder: Path | None) -> str:
    """Name the model in service, and say how many of the images that it is asked about it was trained on.

    Parameters
    ----------
    version : str
        Of the model; the name begins with it.
    digests : collection of str
        SHA-256 of the images.
    reports_folder : Path, optional
        Where the lists of images are that models were trained on. They name no patients, so other images of the same
        patients are not found.
    """
    path = (reports_folder or Path()) / version / IMAGES_FILE
    if reports_folder is None or not path.is_file():
        return f"{version} (it is not known whether it was trained on some of these images)"
    seen = len(set(path.read_text(encoding="utf-8").split()) & set(digests))
    return f"{version} (trained on {seen or 'none'} of these {len(digests)} images; patients were not compared)"
