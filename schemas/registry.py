"""Which trained models there are, and which of them the stream serves.

A folder of models: ``<version>/`` is a saved ``PipelineModel`` with its card, ``champion`` is a text file that holds
one version. Only cards are read here; no Spark is needed.
"""

import logging
import os
import tempfile
from pathlib import Path

from schemas.errors import ModelLoadError
from schemas.modelcard import ModelCard, read_card

CHAMPION_FILE = "champion"

_log = logging.getLogger(__name__)


def promote(models_folder: Path, version: str) -> ModelCard:
    """Make a version the one to serve; promoting an older one is the way back.

    The change is atomic: a reader sees the old version or the new one.

    Parameters
    ----------
    models_folder : Path
        Where the models are.
    version : str
        Name of a folder in it.

    Returns
    -------
    ModelCard
        The version's card.

    Raises
    ------
    ModelLoadError
        There is no such version, or it is damaged; the alias stays as it was.
    """
    card = read_card(_folder_of(models_folder, version))
    descriptor, scratch = tempfile.mkstemp(dir=models_folder, prefix=f".{CHAMPION_FILE}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"{version}\n")
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp lets only its owner read; the stream may run as another user.
        Path(scratch).chmod(0o644)
        Path(scratch).replace(models_folder / CHAMPION_FILE)
    finally:
        Path(scratch).unlink(missing_ok=True)
    _log.info("promoted model %s", version)
    return card


def champion_folder(models_folder: Path) -> Path:
    """Give the folder of the version to serve.

    Raises
    ------
    ModelLoadError
        None was promoted yet, or the promoted one is gone.
    """
    try:
        version = (models_folder / CHAMPION_FILE).read_text(encoding="utf-8").strip()
    except FileNotFoundError as exc:
        msg = f"no model was promoted in {models_folder}. Train one with 'xray train --data FOLDER'."
        raise ModelLoadError(msg) from exc
    except (OSError, UnicodeDecodeError) as exc:
        msg = f"cannot read {models_folder / CHAMPION_FILE}: {exc}"
        raise ModelLoadError(msg) from exc
    folder = _folder_of(models_folder, version)
    if not folder.is_dir():
        msg = f"the promoted model {version} is not in {models_folder}. Promote another one; 'xray models' lists them."
        raise ModelLoadError(msg)
    return folder


def list_models(models_folder: Path) -> list[ModelCard]:
    """Read the cards of all models, oldest first; a damaged model is left out and logged.

    Returns
    -------
    list of ModelCard
        Empty where there is no such folder.
    """
    folders = [path for path in models_folder.glob("[!.]*") if path.is_dir()]
    cards = [card for card in map(_read_or_log, folders) if card is not None]
    return sorted(cards, key=lambda card: (card.created_at, card.version))


def _read_or_log(folder: Path) -> ModelCard | None:
    try:
        return read_card(folder)
    except ModelLoadError as exc:
        _log.warning("left out of the list: %s", exc)
        return None


def _folder_of(models_folder: Path, version: str) -> Path:
    # A version is a name, never a way out of the folder.
    if not version or version.startswith(".") or Path(version).name != version:
        msg = f"{version!r} is no version of a model; 'xray models' lists them."
        raise ModelLoadError(msg)
    return models_folder / version
