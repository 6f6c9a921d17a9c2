"""What a comparison in shadow found, as one value: counts, shares, and what is said of them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np

from schemas.envelope import DISCLAIMER
from schemas.modelcard import BINARY
from training.figures.bootstrap import Estimate
from training.figures.compare import Comparison
from training.lifecycle.drift import MIN_IMAGES

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the score's difference."""


@dataclass(frozen=True)
class Pair:
    """One number of each model.

    Parameters
    ----------
    champion, challenger : int
        E.g. images.
    """

    champion: int
    challenger: int


@dataclass(frozen=True)
class ScoreDifference:
    """By how much the challenger's score, of the positive finding, is above the champion's.

    Parameters
    ----------
    mean : float
        Challenger's less champion's.
    quantiles : tuple of float
        At `QUANTILES`.
    """

    mean: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class SourceShadow:
    """The images of one source.

    Parameters
    ----------
    name : str
        Who published them; "" where that is not known.
    n_images : int
        That both models judge.
    agreement : Estimate
        Share of them with the same answer.
    mean_difference : float
        Of the scores, challenger's less champion's.
    """

    name: str
    n_images: int
    agreement: Estimate
    mean_difference: float


@dataclass(frozen=True)
class Disagreement:
    """An image of which the two models say something different.

    Parameters
    ----------
    event_id : str
        Of the champion's prediction.
    source, id : str or None
        As it was published.
    champion, challenger : str
        The labels.
    champion_score, challenger_score : float
        Probabilities of the positive finding.
    champion_undecided, challenger_undecided : bool
        Whether the score is in the model's abstain band, so that its label is not to be acted on.
    """

    event_id: str
    source: str | None
    id: str | None
    champion: str
    challenger: str
    champion_score: float
    challenger_score: float
    champion_undecided: bool
    challenger_undecided: bool


@dataclass(frozen=True)
class LabelledShadow:
    """The images with a confirmed finding that neither model has learned from.

    Parameters
    ----------
    n_images, n_patients : int
        That both models judge. An image whose patient is not known counts as a patient of its own.
    by_label : mapping of str to int
        Images by confirmed finding.
    n_learned : int
        Further labelled images that are left out: one of the models has learned from them or from their patient.
    figures : mapping of str to Comparison, or None
        First is the champion, second the challenger; None where no image of a class is left.
    """

    n_images: int
    n_patients: int
    by_label: Mapping[str, int]
    n_learned: int
    figures: Mapping[str, Comparison] | None


@dataclass(frozen=True)
class Shadow:
    """What the challenger would have said, beside what the champion said.

    Parameters
    ----------
    champion, challenger : str
        Versions.
    positive_label : str
        The finding whose probability is the score.
    first, last : date or None
        Days of the oldest and the newest image.
    n_images : int
        That were compared, each picture once.
    n_without_vector : int
        That could not be, as the archive has no whole vector of them.
    n_unlike : Pair
        Images that a model takes for unlike its training images, and so does not judge. They are in ``answers`` and
        in nothing else.
    n_judged : int
        Images that both judge; all figures below are of these.
    n_undecided : Pair
        Of these, scores in the model's abstain band; they count as what the threshold makes of them.
    answers : mapping of str to mapping of str to int
        Images by the champion's answer, then by the challenger's.
    agreement : Estimate or None
        Share of the same answer; None, as the following, of fewer than 100 images.
    positive_shares : tuple of (Estimate, Estimate), or None
        Share of images of which champion, and challenger, say ``positive_label``.
    difference : ScoreDifference or None
        Of the scores.
    by_source : tuple of SourceShadow
        Those with the most images first, at most 20.
    disagreements : tuple of Disagreement
        Those with the largest difference of scores first, at most 12.
    labelled : LabelledShadow or None
        None where labels were not looked at, or none of these images has one.
    notes : tuple of str
        What to know about all this; sentences without a full stop.
    """

    champion: str
    challenger: str
    positive_label: str
    first: date | None
    last: date | None
    n_images: int
    n_without_vector: int
    n_unlike: Pair
    n_judged: int
    n_undecided: Pair
    answers: Mapping[str, Mapping[str, int]]
    agreement: Estimate | None
    positive_shares: tuple[Estimate, Estimate] | None
    difference: ScoreDifference | None
    by_source: tuple[SourceShadow, ...]
    disagreements: tuple[Disagreement, ...]
    labelled: LabelledShadow | None
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Say it in a sentence without a full stop."""
        if not self.n_images:
            return f"the archive has no vector of an image that {self.champion} scored: nothing to compare"
        if self.agreement is None:
            return f"{self.n_judged} images that both models judge, fewer than {MIN_IMAGES}: nothing is said of so few"
        share = self.agreement
        said = (
            f"{self.challenger} would have given the same answer as {self.champion} on {share.value:.1%} of "
            f"{self.n_judged:,} images of {self.first} to {self.last}, 95 % interval {share.low:.1%} to "
            f"{share.high:.1%}"
        )
        return f"{said}; {self._say_who_is_right()}"

    def _say_who_is_right(self) -> str:
        if self.labelled is None or self.labelled.figures is None:
            return "who is right where they differ is not known, for want of labels"
        two = len(self.labelled.by_label) == BINARY
        name, found = ("AUROC", "auroc") if two else ("accuracy", "accuracy")
        figure = self.labelled.figures[found]
        return (
            f"on {self.labelled.n_images:,} labelled images {name} {figure.second:.3f} against {figure.first:.3f}, "
            f"difference {show_signed(figure.difference)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON; what is not a number becomes null."""
        stored = {"disclaimer": DISCLAIMER, "verdict": self.verdict, **asdict(self), "quantiles": QUANTILES}
        found: dict[str, Any] = json.loads(json.dumps(stored, default=str), parse_constant=lambda _: None)
        return found


def show_signed(estimate: Estimate) -> str:
    """Write a difference with its sign and its interval."""
    interval = "" if np.isnan(estimate.low) else f" ({estimate.low:+.3f} to {estimate.high:+.3f})"
    return f"{estimate.value:+.3f}{interval}"
