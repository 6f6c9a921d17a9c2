"""The 1000 classes of ImageNet (ILSVRC 2012), in the order of every network trained on it.

References
----------
``imagenet_classes.json`` holds WordNet ids in ascending order, each with the first lemma of its synset, underscores for
spaces: Keras's table. Made from timm 1.0.31 (``imagenet_synsets.txt``, ``imagenet_synset_to_lemma.txt``) and equal to
keras-hub 0.32.0's ``IMAGENET_NAMES``, the ids also to robustbench 1.1.1's.
"""

import json
import operator
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

N_CLASSES = 1000


class ImageNetClass(NamedTuple):
    """One class.

    Parameters
    ----------
    wnid : str
        WordNet id, e.g. ``"n01440764"``; unique.
    description : str
        E.g. ``"great_white_shark"``. Not unique: two classes are ``"crane"``, two ``"maillot"``.
    """

    wnid: str
    description: str


@cache
def load_classes() -> tuple[ImageNetClass, ...]:
    """Load the classes.

    Returns
    -------
    tuple of ImageNetClass
        1000; a class's index is its place in a network's output.
    """
    text = (files("sparkdl.network") / "imagenet_classes.json").read_text(encoding="utf-8")
    return tuple(ImageNetClass(*entry) for entry in json.loads(text))


def decode_predictions(probabilities: npt.ArrayLike, top_k: int) -> list[tuple[str, str, float]]:
    """Name the most probable classes of one image.

    Parameters
    ----------
    probabilities : numpy.ndarray
        A network's output, of shape (1000,).
    top_k : int
        How many classes, 1 to 1000.

    Returns
    -------
    list of tuple
        (class, description, probability), ``top_k`` of them, the most probable first; of equals the one with the
        smaller index. ``class`` is the WordNet id.

    Raises
    ------
    ValueError
        Another shape or ``top_k``.
    """
    values = np.asarray(probabilities, np.float64)
    if values.shape != (N_CLASSES,):
        msg = f"probabilities have shape {values.shape}, expected ({N_CLASSES},)"
        raise ValueError(msg)
    if not 1 <= operator.index(top_k) <= N_CLASSES:
        msg = f"top_k is {top_k}, expected 1 to {N_CLASSES}"
        raise ValueError(msg)
    classes = load_classes()
    order = np.argsort(-values, kind="stable")[:top_k]
    return [(*classes[index], float(values[index])) for index in order]
