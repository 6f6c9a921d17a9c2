"""A new version of a model: its place, its files and its card."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from schemas.modelcard import ModelCard, hash_model_folder, write_card
from training.model.decision import store_decision
from training.model.material import Fitted

# --- saved model ------------------------------------------------------------------------------------------------------


def save_model(fitted: Fitted, out: Path, write_up: Callable[[str, str], ModelCard]) -> tuple[Path, ModelCard]:
    """Save beside the final place and rename, so that a killed run leaves no half model."""
    with reserve_version(out.absolute()) as (version, scratch):
        final = fitted.final
        final.head.save(scratch / version, fitted.featurizer, fitted.settings, final.threshold)
        store_decision(scratch / version, fitted.decision)
        card = write_up(version, hash_model_folder(scratch / version))
        write_card(scratch / version, card)
        folder = (scratch / version).rename(out.absolute() / version)
    return folder, card


@contextmanager
def reserve_version(out: Path) -> Iterator[tuple[str, Path]]:
    """Give a free version and a hidden folder to work in; making that folder is what reserves the version.

    Parameters
    ----------
    out : Path
        Folder of models.

    Yields
    ------
    tuple of str and Path
        The version, named by the time, and the folder, which is removed afterwards with what is left in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    for version in _versions(datetime.now(UTC)):
        scratch = out / f".{version}"
        if not (out / version).exists() and _made(scratch):
            break
    try:
        yield version, scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _versions(moment: datetime) -> Iterator[str]:
    version = f"{moment:%Y%m%dT%H%M%SZ}"
    yield version
    suffix = 2
    while True:
        yield f"{version}-{suffix}"
        suffix += 1


def _made(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True
