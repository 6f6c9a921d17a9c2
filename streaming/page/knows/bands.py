"""What the models on this machine abstain on: a prediction has the threshold, the band is in the model's card."""

import logging
from pathlib import Path

from schemas.errors import ModelLoadError
from schemas.modelcard import AbstainBand, read_card
from schemas.registry import find_model

log = logging.getLogger(__name__)


class Bands:
    """Finds the abstain band of a model that has scored.

    Parameters
    ----------
    models_folder : Path
        Where the models are.
    served : Path, optional
        Folder of a model that is served from elsewhere.
    """

    def __init__(self, models_folder: Path, served: Path | None = None) -> None:
        self._models_folder = models_folder
        self._served = served

    def find(self, version: str, sha256: str) -> AbstainBand | None:
        """Find the band by the model's version and hash.

        Returns
        -------
        AbstainBand or None
            None where the model decides on everything, or is not on this machine, or is another of that version.
        """
        try:
            card = read_card(self._served or find_model(self._models_folder, version))
        except ModelLoadError as exc:
            log.info("the page shows no abstain band of model %s: %s", version, exc)
            return None
        return card.abstain if card.sha256 == sha256 else None
