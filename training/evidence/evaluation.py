"""What a training run found out about its data and its model: everything the report shows, as one value.

Nothing is computed here. `training.evidence.evaluator` fills it, `training.report` shows it, and ``to_dict`` is its
JSON.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from schemas.envelope import DISCLAIMER
from schemas.modelcard import UNDECIDED
from training.arrays import Ints
from training.evidence.probes import Probe, Verdict
from training.figures.bootstrap import Estimate
from training.figures.calibration import Calibration
from training.figures.compare import Comparison, GroupFigures
from training.figures.curves import Curve, OperatingPoint
from training.figures.prevalence import PredictiveValues
from training.model.abstain import Abstention
from training.model.material import Candidate
from training.model.novelty import NoveltyFigures


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from.

    Parameters
    ----------
    name, version, sha256 : str
        Of the model.
    network, weights, weights_sha256, precision : str
        Of the featurizer.
    rendering_version : int
        Of the decoding rules.
    classifier : str
        In words, with its parameters.
    procedure : str
        ``"paper"`` for the default one; else what was asked for, e.g. ``"tuned, calibrated"``.
    seed : int
        Of split and fit.
    code_version : str
        This package's version.
    data_sha256 : str
        Of the sorted list of (file digest, label, patient, source).
    created_at : str
        ISO 8601, UTC.
    seconds : float
        Wall time of the run.
    """

    name: str
    version: str
    sha256: str
    network: str
    weights: str
    weights_sha256: str
    precision: str
    rendering_version: int
    classifier: str
    procedure: str
    seed: int
    code_version: str
    data_sha256: str
    created_at: str
    seconds: float


@dataclass(frozen=True)
class Side:
    """One side of a split.

    Parameters
    ----------
    n_images, n_patients : int
        How many.
    n_by_label : mapping of str to int
        Images by class name.
    """

    n_images: int
    n_patients: int
    n_by_label: Mapping[str, int]


@dataclass(frozen=True)
class DataSummary:
    """The data and how it was split.

    Parameters
    ----------
    labels : tuple of str
        Class names; the last is the positive one.
    n_images, n_patients : int
        That took part.
    sources : tuple of str
        Names of sources; an unknown one is ``""``.
    label_by_source : tuple of tuple of int
        Images, a row for each source, a column for each label.
    patient_ids_known : bool
        Of every image.
    failed : tuple of (str, str)
        Files left out, and why.
    exact_copies, near_copies : int
        Pairs found in the whole set.
    copies : tuple of (str, str, str)
        The first few pairs: file, file, ``"exact"`` or ``"near"``.
    copies_across : int or None
        Pairs on both sides of the split: 0, or there is no report. None where near copies were not looked for.
    split : str
        How, in words.
    train, test : Side
        See there.
    unknown_patients : str
        Where not all ids are known, who counts as a patient, in words; empty where each file name does.
    left_out : mapping of str to int
        Images left out beside the files that failed, by reason.
    unlike_copies : int
        Pairs of copies whose labels differ.
    positive_known_by : str
        How it is known which class is the positive one, as a part of a sentence; empty where that is not known.
    """

    labels: tuple[str, ...]
    n_images: int
    n_patients: int
    sources: tuple[str, ...]
    label_by_source: tuple[tuple[int, ...], ...]
    patient_ids_known: bool
    failed: tuple[tuple[str, str], ...]
    exact_copies: int
    near_copies: int
    copies: tuple[tuple[str, str, str], ...]
    copies_across: int | None
    split: str
    train: Side
    test: Side
    unknown_patients: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    unlike_copies: int = 0
    positive_known_by: str = ""

    @property
    def positive(self) -> str:
        """The positive class, which is the last one."""
        return self.labels[-1]


@dataclass(frozen=True)
class SetFigures:
    """A model's figures on one set of images.

    Parameters
    ----------
    name : str
        E.g. ``"held-out patients"``, ``"without source ieee8023"``, an external manifest's name.
    kind : str
        ``"internal"``, ``"leave-one-source-out"`` or ``"external"``.
    n_images, n_patients : int
        How many.
    n_by_label : mapping of str to int
        Images by class name.
    figures : mapping of str to Estimate
        As `training.figures.measure.measure` gives them, with intervals.
    note : str
        What must be known to read them; empty where nothing.
    """

    name: str
    kind: str
    n_images: int
    n_patients: int
    n_by_label: Mapping[str, int]
    figures: Mapping[str, Estimate]
    note: str = ""


@dataclass(frozen=True)
class Mistake:
    """A held-out image that was judged wrongly, the most certain ones first.

    Parameters
    ----------
    path : Path
        The file.
    patient, source : str
        Of the image.
    actual, predicted : str
        Class names.
    probability : float
        That the model gave the predicted class.
    flags : tuple of str
        Those of the prediction; where there are any, it is not to be acted on.
    """

    path: Path
    patient: str
    source: str
    actual: str
    predicted: str
    probability: float
    flags: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """What to show: no class where the prediction is flagged."""
        return UNDECIDED if self.flags else self.predicted


@dataclass(frozen=True)
class Variant:
    """One way to decide, measured on the held-out patients: e.g. as fitted, calibrated, at the operating point.

    Parameters
    ----------
    name : str
        In a few words.
    figures : mapping of str to Estimate
        As `training.figures.measure.measure` gives them.
    calibration : Calibration or None
        Of two-class models.
    note : str
        E.g. on what it was chosen.
    """

    name: str
    figures: Mapping[str, Estimate]
    calibration: Calibration | None = None
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All of it; see the parts.

    Parameters
    ----------
    verdict : Verdict
        Whether the figures may count as evidence.
    provenance : Provenance
        Of the model.
    data : DataSummary
        Counts and split.
    metrics : mapping of str to float
        The paper's four figures on held-out images, from one pass over them.
    internal : SetFigures
        The held-out patients.
    confusion : numpy.ndarray
        Held-out images: row is the actual class, column the predicted one.
    roc, precision_recall : Curve or None
        Of two-class models.
    predictive_values : tuple of PredictiveValues
        At stated prevalences; empty for more than two classes.
    others : tuple of SetFigures
        Leave-one-source-out and external sets.
    by_source : tuple of GroupFigures
        Held-out images of each source.
    probes : tuple of Probe
        Shortcut probes.
    variants : tuple of Variant
        With and without calibration, operating point, class weights; the first is as fitted.
    operating_point : OperatingPoint or None
        What the stream decides with, where one was asked for.
    abstention : Abstention or None
        Where an abstain band was asked for.
    novelty : NoveltyFigures or None
        Where a detector was asked for.
    candidates : tuple of Candidate
        What tuning tried.
    mistakes : tuple of Mistake
        The worst ones.
    in_service : mapping of str to Comparison
        Against the model in service, on the same held-out images; empty where there is none.
    in_service_name : str
        That model's version, with a remark on how many of these images it was trained on.
    in_service_on : Side or None
        The images that the two were compared on, where that model has no features of some that are held out.
    """

    verdict: Verdict
    provenance: Provenance
    data: DataSummary
    metrics: Mapping[str, float]
    internal: SetFigures
    confusion: Ints
    roc: Curve | None
    precision_recall: Curve | None
    predictive_values: tuple[PredictiveValues, ...]
    others: tuple[SetFigures, ...]
    by_source: tuple[GroupFigures, ...]
    probes: tuple[Probe, ...]
    variants: tuple[Variant, ...]
    operating_point: OperatingPoint | None = None
    abstention: Abstention | None = None
    novelty: NoveltyFigures | None = None
    candidates: tuple[Candidate, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    in_service: Mapping[str, Comparison] | None = None
    in_service_name: str = ""
    in_service_on: Side | None = None

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON: dataclasses become objects, arrays lists, what is not a number null.

        Files are told by their names and patients not at all: the document goes where the images may not.
        """
        positive = {"positive_label": self.data.positive, "positive_known_by": self.data.positive_known_by}
        document = {"disclaimer": DISCLAIMER, **positive, **_plain(self)}
        document["mistakes"] = [
            {k: v for k, v in mistake.items() if k != "patient"} for mistake in document["mistakes"]
        ]
        data = document["data"]
        data["failed"] = [[Path(file).name, why] for file, why in data["failed"]]
        data["copies"] = [[Path(first).name, Path(second).name, kind] for first, second, kind in data["copies"]]
        return document


def _plain(value: Any) -> Any:  # noqa: PLR0911 - one line for each kind of value
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.name
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
