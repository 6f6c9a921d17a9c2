"""The band of scores around the threshold in which a model says that it does not know."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from schemas.modelcard import BINARY, AbstainBand
from training.figures.bootstrap import Estimate, Outcomes, estimate_image_share
from training.figures.calibration import N_RESAMPLES, logit, sigmoid
from training.figures.measure import measure


def choose_abstain_band(outcomes: Outcomes, *, threshold: float, share: float) -> AbstainBand:
    """Choose the band around a threshold that holds a stated share of validation images.

    Parameters
    ----------
    outcomes : Outcomes
        Validation images, of two classes, with the probabilities (calibrated or not) that the band is to be used on.
    threshold : float
        Of the decision, between 0 and 1, both excluded.
    share : float
        Of the images not to decide on, 0 to 0.5; 0 gives an empty band.

    Returns
    -------
    AbstainBand
        As wide on both sides, in logits. Ties may make it hold fewer.

    Raises
    ------
    ValueError
        An argument is out of range, there are more than two classes, or no images.
    """
    if not (0 <= share <= 0.5 and 0 < threshold < 1):  # noqa: PLR2004
        msg = f"share is {share} and threshold {threshold}, expected 0 to 0.5, and between 0 and 1"
        raise ValueError(msg)
    if outcomes.n_classes != BINARY or not outcomes.labels.size:
        msg = f"{outcomes.labels.size} images of {outcomes.n_classes} classes, expected some of 2"
        raise ValueError(msg)
    centre = float(logit(threshold))
    distances = np.sort(np.abs(logit(outcomes.probabilities[:, 1]) - centre))
    wide = distances[min(int(share * distances.size), distances.size - 1)] if share else 0.0
    # The image at exactly this distance is decided on: the band holds those that are closer.
    low, high = sigmoid(np.array([centre - wide, centre + wide])).tolist()
    return AbstainBand(math.nextafter(low, 1.0), high) if share else AbstainBand(threshold, threshold)


@dataclass(frozen=True)
class Abstention:
    """What an abstain band costs and gives.

    Parameters
    ----------
    share : Estimate
        Of images in the band, with an interval from resampled patients.
    decided, all_images : mapping of str to Estimate
        As `measure` gives them: of the images outside the band, and of all.
    """

    share: Estimate
    decided: Mapping[str, Estimate]
    all_images: Mapping[str, Estimate]


def measure_abstention(
    outcomes: Outcomes, band: AbstainBand, *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Abstention:
    """Measure with and without the band, on images it was not chosen on; two classes."""
    inside = band.covers(outcomes.probabilities[:, 1])
    return Abstention(
        share=estimate_image_share(inside, outcomes.patients, n_resamples=n_resamples, seed=seed),
        decided=measure(outcomes.take(~inside), n_resamples=n_resamples, seed=seed),
        all_images=measure(outcomes, n_resamples=n_resamples, seed=seed),
    )
