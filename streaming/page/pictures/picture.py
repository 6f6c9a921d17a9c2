"""What the page shows of an image, and why there is nothing to show."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from schemas.errors import XrayError


class PictureError(XrayError):
    """There is no picture; the message says why in words for people."""


class PictureGone(PictureError):
    """The bytes are not in Kafka any more: their retention has passed, or the topic was made anew."""


class PictureUnreadable(PictureError):
    """The bytes are there, and no picture can be made of them, or nobody could ask for them."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One file for a browser.

    Parameters
    ----------
    content : bytes
        The file.
    media_type : str
        ``"image/png"`` or ``"image/webp"``.
    etag : str
        Changes with the content, and with nothing else; without quotes.
    width, height : int
        In pixels.
    bits : int
        8, or 16 of a full view whose source has more than 8. A canvas gives 8 bits of any picture, so a page that moves
        the window over 16 decodes the PNG itself.
    low, high : int
        What is shown black and white until somebody moves the window, in the picture's own values: as the stream shows
        it, where that is a straight line between the two.
    """

    content: bytes = field(repr=False)
    media_type: str
    etag: str
    width: int
    height: int
    bits: int = 8
    low: int = 0
    high: int = 255


@dataclass(frozen=True, slots=True)
class Step:
    """One step from a file's stored values to what the network sees.

    Parameters
    ----------
    name, detail : str
        What was done, see `sparkdl.image.steps.Step`.
    picture : Picture
        How the image looks after it.
    """

    name: str
    detail: str
    picture: Picture


class ScoredOutcome(Protocol):
    """What `Gallery.explain` must know of a prediction."""

    @property
    def model(self) -> str:
        """Version of the model, the name of its folder."""

    @property
    def probability(self) -> float | None:
        """Published probability of the positive label."""


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What every part of an image adds to the published logit, or why that cannot be told.

    Parameters
    ----------
    map : numpy.ndarray or None
        float32, shape (height, width) of the network's last map: the classifier's weights on it. Its mean plus
        ``intercept`` is ``logit_from_map``.
    intercept : float
        What the classifier adds for every image.
    logit_from_map, logit_published, difference : float
        The logit of the positive label, calibration included, for it is folded into the classifier: recomputed from the
        map, that of the published probability, and the first less the second. Not a number without a map.
    peak : tuple of float
        (row, column) of the middle of the map's largest cell, each a fraction of the image, 0 to 1.
    strongest : float
        The largest of ``map + intercept`` either way: the logit at which the picture is as opaque as it gets.
    precision : str
        What the network computes in: ``"fp32"``, ``"bf16"`` or ``"int8"``.
    picture : Picture or None
        Transparent PNG to lay over the image, stretched to its size: ``map + intercept``, whose mean is the logit.
        Orange speaks for the finding, blue against it.
    why_none : str
        Why there is no map; empty where there is one.
    """

    map: npt.NDArray[np.float32] | None = None
    intercept: float = float("nan")
    logit_from_map: float = float("nan")
    logit_published: float = float("nan")
    difference: float = float("nan")
    peak: tuple[float, float] = (float("nan"), float("nan"))
    strongest: float = float("nan")
    precision: str = ""
    picture: Picture | None = None
    why_none: str = ""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training image that is like another image to the network.

    Parameters
    ----------
    file : str
        Its name in the training data; of a retrained model, whose images came by the stream, its SHA-256.
    label : str
        What it is known to show.
    distance : float
        One minus the cosine of the two feature vectors, 0 to 2.
    """

    file: str
    label: str
    distance: float


@dataclass(frozen=True, slots=True)
class NoveltyDistance:
    """How unlike the training images an image is.

    Parameters
    ----------
    distance : float
        See `sparkdl.engine.novelty`.
    limit : float
        Above it the model does not judge.
    """

    distance: float
    limit: float
