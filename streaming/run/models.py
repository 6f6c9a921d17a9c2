"""The model that SCORE serves: loaded and checked as a whole, and watched for another one being promoted."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from schemas.errors import ModelLoadError, SettingsError
from schemas.modelcard import NOVELTY_FILE, ModelCard, Remark, read_card
from schemas.registry import champion_folder
from sparkdl.engine.novelty import read_detector
from sparkdl.image.limits import RENDERING_VERSIONS, describe_other_rendering
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from sparkdl.transformers.pipelinefiles import is_featurizer_and_regression, load_pipeline
from streaming.score.query import featurizer_of

log = logging.getLogger(__name__)

_TRY_AGAIN_S = 30.0
"""A promoted model that cannot be loaded may be on its way still: a slow copy, a network folder."""


@dataclass(frozen=True)
class ServedModel:
    """A model, ready to score.

    Parameters
    ----------
    folder : Path
        Where it was loaded from.
    card : ModelCard
        Its card.
    pipeline : PipelineModel
        A `DeepImageFeaturizer` first, a classifier last.
    """

    folder: Path
    card: ModelCard
    pipeline: PipelineModel


def serve_model(folder: Path) -> ServedModel:
    """Check a model folder against its card, then load it.

    Raises
    ------
    ModelLoadError
        It is missing, was changed after training, is for images of a rendering version that is not known here, or is no
        pipeline that the stream can serve.
    """
    card = check_card(folder)
    return ServedModel(folder, card, load_model(folder))


def check_card(folder: Path) -> ModelCard:
    """Read a model's card and check what can be checked without Spark.

    Raises
    ------
    ModelLoadError
        See `serve_model`.
    """
    card = read_card(folder)
    if card.rendering_version not in RENDERING_VERSIONS:
        msg = f"model {card.version} cannot be served. {describe_other_rendering(card.rendering_version)}"
        raise ModelLoadError(msg)
    if card.novelty is not None:
        _check_detector(folder / NOVELTY_FILE, card.novelty.threshold)
    return card


def warn_of_rendering(card: ModelCard) -> None:
    """Say of a model that goes into service that the next release will not serve it, where that is so."""
    if told := describe_other_rendering(card.rendering_version):
        log.warning(
            "model %s is of an old rendering. %s Each of its predictions says %s.",
            card.version,
            told,
            Remark.OLD_RENDERING.value,
        )


def _check_detector(path: Path, threshold: float) -> None:
    """Compare: the folder's hash covers the file and not the card."""
    stored = read_detector(path).threshold
    if stored != threshold:
        msg = f"{path} has threshold {stored}, the model's card says {threshold}"
        raise ModelLoadError(msg)


def load_model(folder: Path) -> PipelineModel:
    """Load a saved pipeline, its featurizer with the detector for images unlike its training images, where it has one.

    Raises
    ------
    ModelLoadError
        The folder is no `PipelineModel`, names a class that is none of those a model is made of, its first stage is
        no `DeepImageFeaturizer` on OpenVINO, or its detector cannot be read or is for another network.
    """
    try:
        # Loading imports and runs whatever class the files name, so this looks at them first. What it says yes to,
        # Spark would read with eight jobs of its own.
        quick = is_featurizer_and_regression(folder)
        model = load_pipeline(SparkSession.active(), folder) if quick else PipelineModel.load(str(folder))
    except Exception as exc:  # pyspark raises Java's errors, ours, and plain Python ones here
        if isinstance(exc, ModelLoadError):
            raise
        msg = f"cannot load the model at {folder}: {type(exc).__name__}: {str(exc).strip().splitlines()[0]}"
        raise ModelLoadError(msg) from exc
    featurizer = featurizer_of(model)
    engine = featurizer.getOrDefault("engine")
    if engine != "openvino":
        msg = f"the model at {folder} runs on the reference engine {engine}; the stream serves with OpenVINO"
        raise ModelLoadError(msg)
    if (folder / NOVELTY_FILE).is_file():
        _attach_detector(featurizer, folder / NOVELTY_FILE)
    return model


def _attach_detector(featurizer: DeepImageFeaturizer, path: Path) -> None:
    try:
        featurizer.setNoveltyDetector(read_detector(path))
    except SettingsError as exc:
        msg = f"{path}: {exc}"
        raise ModelLoadError(msg) from exc


class ChampionWatch:
    """Notices that another model was promoted.

    Parameters
    ----------
    models_folder : Path
        Where ``champion`` is.
    serving : Path
        Folder of the model in service.
    """

    def __init__(self, models_folder: Path, serving: Path) -> None:
        self._models_folder = models_folder
        self._serving = serving
        self._refused: Path | None = None
        self._try_again = 0.0

    @property
    def waiting(self) -> bool:
        """Whether a promoted model is not in service because it could not be loaded."""
        return self._refused is not None

    def find_new(self) -> Path | None:
        """Return the promoted model's folder where that is not the one in service, else None.

        Raises
        ------
        ModelLoadError
            The promoted one is not there. Told once; it is looked for again half a minute later.
        """
        if time.monotonic() < self._try_again:
            return None
        try:
            promoted = champion_folder(self._models_folder)
        except ModelLoadError:
            self.refuse(self._models_folder)
            raise
        if promoted == self._serving:
            self._refused = None
            return None
        return promoted

    def accept(self, folder: Path) -> None:
        """Note that a folder is in service now."""
        self._serving, self._refused, self._try_again = folder, None, 0.0

    def refuse(self, folder: Path) -> None:
        """Note that a folder cannot be served; it is tried again in a while."""
        self._refused, self._try_again = folder, time.monotonic() + _TRY_AGAIN_S
