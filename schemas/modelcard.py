"""What a saved model says about itself: one JSON file inside the ``PipelineModel`` folder, and the folder's hash."""

import hashlib
import json
from dataclasses import MISSING, Field, asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from schemas.errors import ModelLoadError

CARD_FILE = "xray_model.json"

NOVELTY_FILE = "novelty.npz"
"""In a model's folder, where the card has `Novelty`; the folder's hash covers it."""

BINARY = 2
"""How many labels a model with a threshold has; of more, the most probable one is the answer."""


class Flag(StrEnum):
    """Why a prediction is not to be acted on: every value of a message's ``flags``."""

    UNCERTAIN = "uncertain"
    UNLIKE_TRAINING = "unlike_training"


class Remark(StrEnum):
    """What else is to be known of a prediction, which may be acted on: every value of a message's ``remarks``."""

    OLD_RENDERING = "old_rendering"


DEMONSTRATION = "demo"
"""Name of a model that has learned from generated images alone: nobody is called for what it says."""

UNDECIDED = "undecided"
"""What people are shown instead of the label of a flagged prediction: a label reads like an answer to act on."""


@dataclass(frozen=True, slots=True)
class AbstainBand:
    """Probabilities of the positive label that are too close to the threshold: a person decides.

    Parameters
    ----------
    low, high : float
        ``low <= p < high`` is not decided on.
    """

    low: float
    high: float

    def covers(self, probabilities: Any) -> Any:
        """Tell whether a probability of the positive label, or which of an array, is in the band."""
        return (probabilities >= self.low) & (probabilities < self.high)


@dataclass(frozen=True, slots=True)
class Novelty:
    """How images unlike the training images are told; what they are compared with is in `NOVELTY_FILE`.

    Parameters
    ----------
    threshold : float
        A distance above it is novel.
    quantile : float
        Share of training images that are not above it.
    """

    threshold: float
    quantile: float


@dataclass(frozen=True)
class ModelCard:
    """What the stream must know to serve a model, and a reader to trust it.

    Parameters
    ----------
    name, version : str
        The model's name and the version's, e.g. ``"cxr"`` and ``"20260131T120000Z"``.
    labels : tuple of str
        Class names; position is the index that the classifier predicts.
    positive_label : str
        The finding whose probability is the score (histograms, drift).
    threshold : float or None
        Probability of ``positive_label`` from which a two-class model says so; None means the most probable class.
    operating_point : str
        How the threshold was chosen, in words.
    network, precision : str
        The featurizer's network and the precision that it runs in.
    rendering_version : int
        Version of the decoding rules that made the training pixels; what is scored is decoded by the same.
    sha256 : str
        Hash of the folder, see `hash_model_folder`.
    created_at : str
        ISO 8601, UTC.
    metrics : dict
        Held-out figures from training, by name.
    abstain : AbstainBand or None
        What a two-class model does not decide on; None decides on everything.
    novelty : Novelty or None
        None takes every image for one of the kind that the model was trained on.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    positive_label: str
    threshold: float | None
    operating_point: str
    network: str
    precision: str
    rendering_version: int
    sha256: str
    created_at: str
    metrics: dict[str, float]
    abstain: AbstainBand | None = None
    novelty: Novelty | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be decided with."""
        if self.abstain is not None:
            low, high = self.abstain.low, self.abstain.high
            if len(self.labels) != BINARY or not 0 <= low <= high <= 1:
                msg = f"abstain is {low} to {high} of {len(self.labels)} classes, expected a part of 0 to 1, of 2"
                raise ValueError(msg)
        if self.novelty is not None and Flag.UNLIKE_TRAINING in self.labels:
            msg = f"a label is {Flag.UNLIKE_TRAINING}, which is what is said of images that are not judged"
            raise ValueError(msg)

    @property
    def answers(self) -> tuple[str, ...]:
        """Everything that the label of a prediction can be.

        The classes and, of a model that tells images unlike its training images, `Flag.UNLIKE_TRAINING`.
        """
        return self.labels if self.novelty is None else (*self.labels, Flag.UNLIKE_TRAINING.value)

    @property
    def flags(self) -> tuple[Flag, ...]:
        """What the model's predictions can be flagged with; empty where it checks nothing."""
        checks = {Flag.UNCERTAIN: self.abstain, Flag.UNLIKE_TRAINING: self.novelty}
        return tuple(flag for flag, check in checks.items() if check is not None)

    def to_json(self) -> str:
        """Render as indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def is_demonstration(name: str) -> bool:
    """Tell whether a model of this name is for a demonstration: ``demo``, or ``demo-`` and more."""
    return name == DEMONSTRATION or name.startswith(f"{DEMONSTRATION}-")


def hash_model_folder(folder: Path) -> str:
    """Hash every file of a model folder but its card and checksum side files.

    Returns
    -------
    str
        SHA-256 over the sorted relative paths and contents, 64 hexadecimal characters.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        # Hadoop writes a ".name.crc" beside each file, and no copy tool is sure to keep those.
        if not path.is_file() or path.name == CARD_FILE or path.suffix == ".crc":
            continue
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def write_card(folder: Path, card: ModelCard) -> None:
    """Write the card into the model's folder."""
    (folder / CARD_FILE).write_text(card.to_json(), encoding="utf-8")


def read_card(folder: Path) -> ModelCard:
    """Read the card of a model folder and check the folder against its hash.

    Raises
    ------
    ModelLoadError
        There is no model, its card cannot be read, or a file was changed after training.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        msg = (
            f"no model at {folder}: {CARD_FILE} is missing. Train one with 'xray train --data FOLDER', or name another."
        )
        raise ModelLoadError(msg)
    card = _parse_card(path)
    found = hash_model_folder(folder)
    if found != card.sha256:
        msg = (
            f"the model at {folder} was changed after training: its files hash to {found}, the card says {card.sha256}"
        )
        raise ModelLoadError(msg)
    if (folder / NOVELTY_FILE).is_file() != (card.novelty is not None):
        there = "has no" if card.novelty else "has a"
        msg = f"the model at {folder} {there} file {NOVELTY_FILE}, its card says otherwise"
        raise ModelLoadError(msg)
    return card


def _parse_card(path: Path) -> ModelCard:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        # Cards of earlier versions have no field that has a default.
        known = {
            field.name: values[field.name] for field in fields(ModelCard) if field.name in values or _needed(field)
        }
        band, novelty = known.pop("abstain", None), known.pop("novelty", None)
        return ModelCard(
            **{**known, "labels": tuple(values["labels"])},
            abstain=None if band is None else AbstainBand(float(band["low"]), float(band["high"])),
            novelty=None if novelty is None else Novelty(float(novelty["threshold"]), float(novelty["quantile"])),
        )
    except (OSError, ValueError, KeyError, TypeError) as exc:
        msg = f"cannot read the model card {path}: {type(exc).__name__}: {exc}"
        raise ModelLoadError(msg) from exc


def _needed(field: Field[Any]) -> bool:
    return field.default is MISSING
