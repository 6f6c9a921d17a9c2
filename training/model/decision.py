"""What a model decides on: how near to its threshold it abstains, and which images it does not judge.

Chosen beside the classifier, on training patients only, and stored with the model, so that the stream applies what was
measured: the band in the card, what images are compared with in a file of the model's folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas import modelcard
from schemas.errors import DatasetError, SettingsError
from schemas.modelcard import BINARY, NOVELTY_FILE, AbstainBand, Flag
from sparkdl.engine.novelty import write_detector
from training.arrays import Features
from training.figures.bootstrap import Outcomes, estimate_image_share
from training.figures.measure import measure
from training.model.abstain import Abstention, choose_abstain_band, measure_abstention
from training.model.novelty import NoveltyDetector, NoveltyFigures, fit_detector

NOVELTY_QUANTILE = 0.99
"""Share of training images that the detector accepts, unless asked otherwise."""

# A stream pays for each image: with EfficientNetLite0 it scores 0.99 as many per CPU second with 500, 0.95 with 2,000.
# On the sets of `NoveltyDetector`'s table 12 references do what all 141 do: 0.02 of the held-out X-rays are flagged,
# and every one of the other images. More than a few are for data of many sources.
_MAX_REFERENCES = 500
_MAX_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Decision:
    """What a model does not decide on; nothing by default.

    Parameters
    ----------
    band : AbstainBand or None
        Probabilities of the positive label too near to the threshold.
    detector : NoveltyDetector or None
        Tells images unlike the training images.
    """

    band: AbstainBand | None = None
    detector: NoveltyDetector | None = None

    @property
    def abstain(self) -> AbstainBand | None:
        """What the card says of the band."""
        return self.band

    @property
    def novelty(self) -> modelcard.Novelty | None:
        """What the card says of the detector."""
        return None if self.detector is None else modelcard.Novelty(self.detector.threshold, self.detector.quantile)

    def describe(self) -> str:
        """Say it in words, to be put behind the operating point's; empty where everything is decided on."""
        parts = []
        if self.band is not None:
            parts.append(f"; undecided from {self.band.low:.4g} to {self.band.high:.4g}")
        if self.detector is not None:
            parts.append(f"; not judged where less like the training images than {self.detector.quantile:.4g} of them")
        return "".join(parts)


def check_decision(n_classes: int, *, abstain_share: float | None, novelty_quantile: float | None) -> None:
    """Refuse what `fit_decision` cannot do, before anything is computed.

    Parameters
    ----------
    n_classes : int
        Of the model.
    abstain_share, novelty_quantile
        See `fit_decision`.

    Raises
    ------
    SettingsError
        A value is out of range, or there is to be a band and there are more than two classes.
    """
    if abstain_share is not None and not 0 < abstain_share <= _MAX_SHARE:
        msg = f"share to abstain on is {abstain_share}, wanted more than 0 and at most {_MAX_SHARE}"
        raise SettingsError(msg)
    if abstain_share is not None and n_classes != BINARY:
        msg = f"an abstain band is for two classes and their threshold, found {n_classes} classes"
        raise SettingsError(msg)
    if novelty_quantile is not None and not 0 < novelty_quantile < 1:
        msg = f"the detector's quantile is {novelty_quantile}, wanted more than 0 and less than 1"
        raise SettingsError(msg)


def fit_decision(
    known: Outcomes | None,
    features: Features,
    patients: Sequence[str],
    *,
    threshold: float | None,
    abstain_share: float | None = None,
    novelty_quantile: float | None = None,
    seed: int = 0,
) -> Decision:
    """Choose on training patients what a model does not decide on.

    Parameters
    ----------
    known : Outcomes or None
        Training images with probabilities that the classifier gave without having seen their patients, calibrated
        where the model is. None where there is to be no band.
    features : numpy.ndarray
        float32, shape (n, n_features): of the images that the classifier is fitted on, by the featurizer that serves.
        Only the detector needs them.
    patients : sequence of str
        Who is on each, length n.
    threshold : float or None
        Of the decision; None for more than two classes.
    abstain_share : float, optional
        Of the images not to decide on; by default there is no band.
    novelty_quantile : float, optional
        Share of training images to accept; by default there is no detector.
    seed : int
        Of the choice of images to compare with.

    Returns
    -------
    Decision
        The same arguments give the same one.

    Raises
    ------
    SettingsError
        See `check_decision`.
    DatasetError
        There are too few images or patients.
    """
    n_classes = 0 if known is None or threshold is None else known.n_classes
    check_decision(n_classes, abstain_share=abstain_share, novelty_quantile=novelty_quantile)
    band, detector = None, None
    try:
        if known is not None and threshold is not None and abstain_share is not None:
            band = choose_abstain_band(known, threshold=threshold, share=abstain_share)
        if novelty_quantile is not None:
            detector = fit_detector(
                features, patients, quantile=novelty_quantile, max_references=_MAX_REFERENCES, seed=seed
            )
    except ValueError as exc:
        msg = f"what not to decide on cannot be chosen: {exc}"
        raise DatasetError(msg) from exc
    return Decision(band, detector)


def store_decision(folder: Path, decision: Decision) -> None:
    """Write what the card does not hold into a saved model's folder, before the folder is hashed.

    The same decision gives the same bytes. Without a detector nothing is written.
    """
    if decision.detector is not None:
        write_detector(folder / NOVELTY_FILE, decision.detector.to_arrays())


def flag_images(
    decision: Decision, scores: npt.NDArray[np.floating], features: Features
) -> tuple[tuple[Flag, ...], ...]:
    """Give the flags that predictions of these images would carry, by the rules of the stream.

    Parameters
    ----------
    decision : Decision
        Of the model.
    scores : numpy.ndarray
        Float, shape (n,): probabilities of the positive label.
    features : numpy.ndarray
        float32, shape (n, n_features), of the same images.

    Returns
    -------
    tuple of tuple of Flag
        At most one for each image: one that is not judged is not uncertain as well.
    """
    none = np.zeros(scores.shape, bool)
    unlike = none if decision.detector is None else decision.detector.flags(features)
    near = none if decision.band is None else decision.band.covers(np.asarray(scores, np.float64))
    flags = np.where(unlike, Flag.UNLIKE_TRAINING, np.where(near, Flag.UNCERTAIN, ""))
    return tuple((Flag(flag),) if flag else () for flag in flags.tolist())


def measure_decision(
    decision: Decision, outcomes: Outcomes, features: Features, *, seed: int = 0
) -> tuple[Abstention | None, NoveltyFigures | None]:
    """Measure on held-out patients what a decision costs and gives.

    Parameters
    ----------
    decision : Decision
        Chosen on other patients.
    outcomes : Outcomes
        Held-out images, with the model's probabilities.
    features : numpy.ndarray
        float32, shape (n, n_features), of the same images.
    seed : int
        Of the bootstrap.

    Returns
    -------
    tuple
        What an `Evaluation` has as ``abstention`` and ``novelty``; None where there is no band, or no detector.
    """
    abstention = None if decision.band is None else measure_abstention(outcomes, decision.band, seed=seed)
    if decision.detector is None:
        return abstention, None
    flagged = decision.detector.flags(features)
    share = estimate_image_share(flagged, outcomes.patients, seed=seed)
    judged, every = measure(outcomes.take(~flagged), seed=seed), measure(outcomes, seed=seed)
    return abstention, NoveltyFigures(decision.detector.threshold, share, judged, every)
