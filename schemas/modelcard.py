"""What a saved model says about itself: one JSON file inside the ``PipelineModel`` folder, and the folder's hash."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from schemas.errors import ModelLoadError

CARD_FILE = "xray_model.json"


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
        Version of the decoding rules that made the training pixels; serving with another is refused.
    sha256 : str
        Hash of the folder, see `hash_model_folder`.
    created_at : str
        ISO 8601, UTC.
    metrics : dict
        Held-out figures from training, by name.
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

    def to_json(self) -> str:
        """Render as indented JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


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
    return card


def _parse_card(path: Path) -> ModelCard:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        wanted = {field.name for field in fields(ModelCard)}
        return ModelCard(**{**{k: values[k] for k in wanted}, "labels": tuple(values["labels"])})
    except (OSError, ValueError, KeyError, TypeError) as exc:
        msg = f"cannot read the model card {path}: {type(exc).__name__}: {exc}"
        raise ModelLoadError(msg) from exc
