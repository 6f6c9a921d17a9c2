"""What a training begins with, and what it hands on."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.modelcard import ModelCard
from sparkdl.image.limits import FILE_LIMITS, DecodeLimits
from sparkdl.network.base import Network
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from training.arrays import Features, Floats, Ints
from training.data.dataset import Dataset, Sample
from training.data.duplicates import DuplicatePair
from training.features.extract import ImageFacts
from training.figures.bootstrap import Estimate, Outcomes, gather_outcomes
from training.figures.curves import OperatingPoint
from training.model.classifier import ClassifierSettings, Head
from training.model.decision import Decision
from training.model.probability import Calibrator


@dataclass(frozen=True)
class Candidate:
    """One setting that tuning tried.

    Parameters
    ----------
    name : str
        Network and regularisation, in words.
    auroc : Estimate
        Out of fold, on training patients.
    chosen : bool
        Whether the model was made with it.
    """

    name: str
    auroc: Estimate
    chosen: bool


@dataclass(frozen=True)
class Procedure:
    """What is done beside the paper's procedure; nothing by default.

    Parameters
    ----------
    tune : bool
        Choose regularisation, and network of several, by cross-validation on training patients.
    class_weights : bool
        Let each class count as much as any other.
    calibrate : bool
        Calibrate the probabilities on training patients, out of fold.
    sensitivity : float, optional
        Choose the threshold that reaches it on training patients, out of fold; for two classes.
    abstain : float, optional
        Share of images to abstain on, chosen on training patients, out of fold; for two classes.
    novelty_quantile : float, optional
        Share of training images that are to count as of their own kind; images less like them are not judged.
    """

    tune: bool = False
    class_weights: bool = False
    calibrate: bool = False
    sensitivity: float | None = None
    abstain: float | None = None
    novelty_quantile: float | None = None

    @property
    def needs_out_of_fold(self) -> bool:
        """Whether something is chosen from what is said of training patients."""
        return self.calibrate or self.sensitivity is not None or self.abstain is not None

    def describe(self) -> str:
        """Say it in words; ``"paper"`` where nothing is added."""
        parts = [("tuned", self.tune), ("class weights", self.class_weights), ("calibrated", self.calibrate)]
        words = [name for name, asked in parts if asked]
        if self.sensitivity is not None:
            words.append(f"operating point at sensitivity {self.sensitivity:g}")
        if self.abstain is not None:
            words.append(f"abstains on {self.abstain:g}")
        if self.novelty_quantile is not None:
            words.append(f"flags unlike images at {self.novelty_quantile:g}")
        return ", ".join(words) or "paper"


@dataclass(frozen=True)
class FailedFile:
    """A file that could not be decoded and took no part.

    Parameters
    ----------
    path : Path
        Which.
    error : str
        Why.
    """

    path: Path
    error: str


@dataclass(frozen=True)
class HeldOut:
    """What the model says about one held-out image.

    Parameters
    ----------
    sample : Sample
        The image and its label.
    prediction : int
        Position in the card's ``labels``.
    probabilities : tuple of float
        One per label.
    """

    sample: Sample
    prediction: int
    probabilities: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Material:
    """Everything known of the images that took part, in the order of the data set's samples.

    Parameters
    ----------
    dataset : Dataset
        The samples that decode.
    facts : tuple of ImageFacts
        Of each.
    groups : tuple of str
        Each one's patient, joined with those that have a copy in common.
    pairs : tuple of DuplicatePair
        Copies; ids are paths.
    held_out : numpy.ndarray
        bool, shape (n,).
    limits : DecodeLimits
        What a file may cost.
    """

    dataset: Dataset
    facts: tuple[ImageFacts, ...]
    groups: tuple[str, ...]
    pairs: tuple[DuplicatePair, ...]
    held_out: npt.NDArray[np.bool_]
    limits: DecodeLimits = FILE_LIMITS

    @property
    def labels(self) -> Ints:
        """Each sample's class, int64, shape (n,)."""
        return np.array([sample.label for sample in self.dataset.samples], np.int64)

    @property
    def paths(self) -> list[Path]:
        """Each sample's file."""
        return [sample.path for sample in self.dataset.samples]

    @property
    def digests(self) -> list[str]:
        """SHA-256 of each sample's file."""
        return [fact.digest for fact in self.facts]

    @property
    def training_groups(self) -> list[str]:
        """Groups of the samples that are trained on."""
        return [group for group, out in zip(self.groups, self.held_out, strict=True) if not out]

    def gather(self, probabilities: Floats, *, held_out: bool, threshold: float | None) -> Outcomes:
        """Put what a model says of one side beside what is true."""
        mask = self.held_out == held_out
        groups = [group for group, taken in zip(self.groups, mask, strict=True) if taken]
        return gather_outcomes(self.labels[mask], probabilities, groups, threshold=threshold)


@dataclass(frozen=True, eq=False)
class Step:
    """The model after one part of the procedure, for comparison on the held-out patients.

    Parameters
    ----------
    name : str
        In a few words.
    head : Head
        The classifier.
    threshold : float or None
        From which probability a two-class model says its positive class; None for the most probable class.
    note : str
        On what it was chosen.
    """

    name: str
    head: Head
    threshold: float | None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A classifier and how it came about.

    Parameters
    ----------
    featurizer : DeepImageFeaturizer
        Whose features it is fitted on.
    features : numpy.ndarray
        float32, shape (n, n_features): of all samples, held out or not.
    settings : ClassifierSettings
        How it is fitted.
    steps : tuple of Step
        The first is as fitted without anything added, by the same network; the last is what is saved.
    calibrator : Calibrator or None
        What is folded in.
    operating_point : OperatingPoint or None
        Where one was asked for.
    candidates : tuple of Candidate
        What tuning tried.
    decision : Decision
        What is not decided on.
    """

    featurizer: DeepImageFeaturizer
    features: Features
    settings: ClassifierSettings
    steps: tuple[Step, ...]
    calibrator: Calibrator | None = None
    operating_point: OperatingPoint | None = None
    candidates: tuple[Candidate, ...] = ()
    decision: Decision = field(default_factory=Decision)

    @property
    def network(self) -> Network:
        """The featurizer's."""
        network: Network = self.featurizer.network
        return network

    @property
    def final(self) -> Step:
        """What is saved."""
        return self.steps[-1]


@dataclass(frozen=True)
class TrainingResult:
    """A saved model, and how it was made and measured.

    Parameters
    ----------
    folder : Path
        The saved ``PipelineModel``, its card inside.
    card : ModelCard
        The card.
    metrics : dict
        The card's figures: ``accuracy``, ``f1``, ``weightedPrecision``, ``weightedRecall`` on held-out images, and
        ``n_train`` and ``n_test``, counts of images.
    accuracy_interval : tuple of float
        Wilson's 95 % interval. It takes images for independent, so it is too narrow where patients have several.
    confusion : numpy.ndarray
        Held-out images, shape (n_labels, n_labels): row is the actual class, column the predicted one.
    n_train, n_test : dict
        Images by class name.
    held_out : tuple of HeldOut
        Every held-out prediction, in the order of paths.
    failed : tuple of FailedFile
        Files left out.
    patient_ids_known : bool
        See `Dataset`.
    seconds : float
        Wall time.
    procedure : Procedure
        What was asked for.
    material : Material
        What is known of the images.
    fitted : Fitted
        The classifier and its features.
    """

    folder: Path
    card: ModelCard
    metrics: dict[str, float]
    accuracy_interval: tuple[float, float]
    confusion: Ints
    n_train: dict[str, int]
    n_test: dict[str, int]
    held_out: tuple[HeldOut, ...]
    failed: tuple[FailedFile, ...]
    patient_ids_known: bool
    seconds: float
    procedure: Procedure = field(repr=False)
    material: Material = field(repr=False)
    fitted: Fitted = field(repr=False)
