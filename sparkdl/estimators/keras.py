"""sparkdl 1.x's estimator: trains a user's own Keras model on image files, and gives a stage that applies it."""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyspark import keyword_only
from pyspark.ml import Estimator, Model
from pyspark.ml.base import _FitMultipleIterator
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasLabelCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import DataFrame
from pyspark.sql.functions import col

from schemas.errors import SettingsError
from schemas.extras import check_extra
from sparkdl.estimators.fit import MODEL_FILE, FitArguments, History, check_names, fit_apart
from sparkdl.estimators.loading import LoadedImages, SharedImages, label_column, load_images
from sparkdl.network.backends import import_keras
from sparkdl.network.base import Network
from sparkdl.network.kerasmodels import convert_tensor_model
from sparkdl.transformers.keras import ImageLoader, KerasImageFileTransformer
from sparkdl.transformers.params import HasModelFile, HasOutputMode, HasReasonCol

log = logging.getLogger(__name__)

_FIT_PARAMS = frozenset(
    {
        "batch_size",
        "class_weight",
        "epochs",
        "initial_epoch",
        "shuffle",
        "steps_per_epoch",
        "validation_batch_size",
        "validation_freq",
        "validation_split",
        "validation_steps",
        "verbose",
    }
)

_LOADING_PARAMS = frozenset({"inputCol", "labelCol", "modelFile"})
"""Parameters that the loaded images follow from: the same for all parameter maps of a fit."""


def _fit_params(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not set(value) <= _FIT_PARAMS:
        found = sorted(map(str, set(value) - _FIT_PARAMS)) if isinstance(value, dict) else type(value).__name__
        msg = f"kerasFitParams has {found}, wanted a dict with {', '.join(sorted(_FIT_PARAMS))}"
        raise SettingsError(msg)
    try:
        checked: dict[str, Any] = json.loads(json.dumps(value))
    except (TypeError, ValueError) as exc:
        msg = f"kerasFitParams must hold what JSON can carry, as training runs in another process: {exc}"
        raise SettingsError(msg) from exc
    if not 0 <= checked.get("validation_split", 0) < 1:
        msg = f"kerasFitParams: validation_split is {checked['validation_split']}, wanted 0 or more and below 1"
        raise SettingsError(msg)
    return checked


class KerasImageFileModel(KerasImageFileTransformer, Model):
    """A trained Keras model that is applied to image files; `KerasImageFileEstimator` makes it.

    Its network is converted already: saving and loading need neither the model file nor Keras. What was said of the
    loader in `KerasImageFileTransformer` holds here too.
    """

    trainingHistory = Param(Params._dummy(), "trainingHistory", "values for each epoch, by name")
    nFailedImages = Param(Params._dummy(), "nFailedImages", "images that training left out", TypeConverters.toInt)

    _build_params = frozenset()  # the network is the trained one, whatever is set

    @property
    def history(self) -> History:
        """Values for each epoch, by name: ``loss``, and ``val_loss`` with a ``validation_split``."""
        return dict(self.getOrDefault("trainingHistory"))

    @property
    def nFailed(self) -> int:
        """How many images could not be loaded, and were left out of the training."""
        return int(self.getOrDefault("nFailedImages"))

    def _build(self) -> Network:
        msg = "a KerasImageFileModel is made by KerasImageFileEstimator.fit, or loaded"
        raise SettingsError(msg)


class KerasImageFileEstimator(
    Estimator,
    HasInputCol,
    HasOutputCol,
    HasLabelCol,
    HasModelFile,
    HasOutputMode,
    HasReasonCol,
    DefaultParamsReadable,
    DefaultParamsWritable,
):
    """Trains a Keras model on image files that a column names.

    Spark's workers load the images, once for a fit with however many parameter maps; they are gathered in a file on the
    driver's disk (in ``TMPDIR``; 4 bytes a value), and TensorFlow trains on it in a process of its own on the driver.

    Parameters
    ----------
    inputCol : str
        Column of URIs or paths, as ``imageLoader`` understands them.
    outputCol : str
        Column that the trained stage adds.
    outputMode : str
        ``"vector"`` or ``"image"``; see `KerasImageFileTransformer`.
    labelCol : str
        Column of vectors or arrays with as many numbers as the model gives (one-hot, for classes), or of one number.
    modelFile : str
        ``.keras`` or ``.h5``, a whole model with one input and one output of fixed shapes; where training starts. The
        file is not changed.
    imageLoader : callable, optional
        See `KerasImageFileTransformer`, as for the default. It runs in the workers.
    kerasOptimizer : str
        Keras's name of an optimizer, e.g. ``"adam"``.
    kerasLoss : str
        Keras's name of a loss, e.g. ``"categorical_crossentropy"``; ``"sparse_categorical_crossentropy"`` where the
        label is a class's number.
    kerasFitParams : dict
        Arguments of ``keras.Model.fit``, e.g. ``{"epochs": 5, "batch_size": 32}``: what JSON can carry.
    reasonCol : str
        See `KerasImageFileTransformer`.
    seed : int
        Of everything random in training. Without one, every fit is another.

    Raises
    ------
    SettingsError
        A parameter has a value that is not among those above.

    Notes
    -----
    Inside a `Pipeline` that is tuned as a whole, each parameter map loads the images anew; tune the estimator itself to
    load them once for a fold. A saved estimator does not hold the loader: see `KerasImageFileTransformer`.
    """

    kerasOptimizer = Param(Params._dummy(), "kerasOptimizer", "Keras's name of an optimizer", TypeConverters.toString)
    kerasLoss = Param(Params._dummy(), "kerasLoss", "Keras's name of a loss", TypeConverters.toString)
    kerasFitParams = Param(Params._dummy(), "kerasFitParams", "arguments of keras.Model.fit", _fit_params)
    seed = Param(Params._dummy(), "seed", "seed of training", TypeConverters.toInt)
    hasImageLoader = Param(Params._dummy(), "hasImageLoader", "whether it was saved with a loader of the user's own")

    @keyword_only
    def __init__(  # noqa: PLR0913  one argument for each Param, as in pyspark.ml
        self,
        *,
        inputCol: str | None = None,
        outputCol: str | None = None,
        outputMode: str | None = None,
        labelCol: str | None = None,
        modelFile: str | None = None,
        imageLoader: ImageLoader | None = None,
        kerasOptimizer: str | None = None,
        kerasLoss: str | None = None,
        kerasFitParams: dict[str, Any] | None = None,
        reasonCol: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self._image_loader: ImageLoader | None = None
        self._setDefault(outputMode="vector", kerasFitParams={}, reasonCol="", hasImageLoader=False)
        self.setParams(**self._input_kwargs)

    def setParams(self, **params: Any) -> "KerasImageFileEstimator":
        """Set parameters by name, the loader too; None leaves one as it is."""
        loader = params.pop("imageLoader", None)
        if loader is not None:
            self.setImageLoader(loader)
        return self._set(**{name: value for name, value in params.items() if value is not None})

    def setInputCol(self, value: str) -> "KerasImageFileEstimator":
        """Name the column of URIs."""
        return self._set(inputCol=value)

    def setOutputCol(self, value: str) -> "KerasImageFileEstimator":
        """Name the column that the trained stage adds."""
        return self._set(outputCol=value)

    def setLabelCol(self, value: str) -> "KerasImageFileEstimator":
        """Name the column of labels."""
        return self._set(labelCol=value)

    def setImageLoader(self, value: ImageLoader) -> "KerasImageFileEstimator":
        """Give the function that loads an image file."""
        self._image_loader = value
        return self._set(hasImageLoader=True)

    def getImageLoader(self) -> ImageLoader | None:
        """Return the function that loads an image file; None for the default.

        Raises
        ------
        SettingsError
            The stage was saved with a loader of the user's own, which has not been given again.
        """
        if self._image_loader is None and self.getOrDefault("hasImageLoader"):
            msg = "imageLoader is not saved with the stage: give it again with setImageLoader(...)"
            raise SettingsError(msg)
        return self._image_loader

    def setKerasOptimizer(self, value: str) -> "KerasImageFileEstimator":
        """Name the optimizer."""
        return self._set(kerasOptimizer=value)

    def getKerasOptimizer(self) -> str:
        """Return the optimizer's name."""
        return self.getOrDefault(self.kerasOptimizer)

    def setKerasLoss(self, value: str) -> "KerasImageFileEstimator":
        """Name the loss."""
        return self._set(kerasLoss=value)

    def getKerasLoss(self) -> str:
        """Return the loss's name."""
        return self.getOrDefault(self.kerasLoss)

    def setKerasFitParams(self, value: dict[str, Any]) -> "KerasImageFileEstimator":
        """Give arguments of ``keras.Model.fit``."""
        return self._set(kerasFitParams=value)

    def getKerasFitParams(self) -> dict[str, Any]:
        """Return the arguments of ``keras.Model.fit``."""
        return dict(self.getOrDefault(self.kerasFitParams))

    def setSeed(self, value: int) -> "KerasImageFileEstimator":
        """Give the seed of training."""
        return self._set(seed=value)

    def getSeed(self) -> int | None:
        """Return the seed of training; None where every fit is another."""
        return self.getOrDefault(self.seed) if self.isDefined(self.seed) else None

    def fitMultiple(
        self, dataset: DataFrame, paramMaps: Sequence[dict[Any, Any]]
    ) -> Iterator[tuple[int, KerasImageFileModel]]:
        """Train once for each parameter map, on images that are loaded once.

        Parameters
        ----------
        dataset : DataFrame
            With ``inputCol`` and ``labelCol``.
        paramMaps : sequence of dict
            Values by `Param`; not of ``inputCol``, ``labelCol`` and ``modelFile``.

        Returns
        -------
        iterator
            Of (index, model), for any number of threads; the first to ask loads the images.

        Raises
        ------
        SettingsError
            A parameter is missing, or one may not be in a map.
        DatasetError
            Images or labels cannot be used.
        DependencyError
            TensorFlow is missing.
        """
        own = [param.name for params in paramMaps for param in params if param.parent == self.uid]
        fixed = sorted(_LOADING_PARAMS.intersection(own))
        if fixed:
            msg = f"{fixed[0]} is in a parameter map, wanted one value for all: images are loaded once for a fit"
            raise SettingsError(msg)
        # Copies now: what is set later is for later fits.
        estimators = [self.copy(params) for params in paramMaps]
        for estimator in estimators:
            estimator._check()
        images = SharedImages(self.copy()._plan_loading(dataset))
        return _FitMultipleIterator(lambda index: estimators[index]._train(images), len(estimators))

    def _fit(self, dataset: DataFrame) -> KerasImageFileModel:
        self._check()
        return self._train(SharedImages(self._plan_loading(dataset)))

    def _check(self) -> None:
        """Find what is wrong before any image is loaded."""
        for param in (self.inputCol, self.modelFile, self.kerasOptimizer, self.kerasLoss):
            if not self.isDefined(param):
                msg = f"{param.name} is not set"
                raise SettingsError(msg)
        check_extra("tensorflow", "training")
        # Any backend will do for names.
        check_names(sys.modules.get("keras") or import_keras(), self.getKerasOptimizer(), self.getKerasLoss())

    def _new_stage(self, network: Network) -> KerasImageFileModel:
        stage = KerasImageFileModel(imageLoader=self.getImageLoader())
        stage._resetUid(self.uid)  # as pyspark's models do: a parameter map of the estimator is one of the model too
        names = ("inputCol", "outputCol", "outputMode", "reasonCol", "modelFile")
        stage._set(**{name: self.getOrDefault(name) for name in names})
        stage._network = network
        return stage

    def _plan_loading(self, dataset: DataFrame) -> Callable[[Path], LoadedImages]:
        network = convert_tensor_model(self.getModelFile())
        stage = self._new_stage(network)
        stage.transformSchema(dataset.schema)
        if self.getLabelCol() not in dataset.columns:
            msg = f"labelCol {self.getLabelCol()!r} is not among the columns: {', '.join(dataset.columns)}"
            raise SettingsError(msg)
        label, is_vector = label_column(self.getLabelCol(), dataset.schema[self.getLabelCol()].dataType)
        rows = dataset.select(col(f"`{self.getInputCol()}`").alias("uri"), label.alias("label"))
        label_shape = network.output_shape if is_vector else ()
        # Without the graph, since only the shapes are needed in the workers.
        described = replace(network, graph={})
        read = stage._read_input()
        return lambda folder: load_images(rows, described, read, folder=folder, label_shape=label_shape)

    def _train(self, shared: SharedImages) -> KerasImageFileModel:
        images = shared.load()
        with tempfile.TemporaryDirectory(prefix="xray-fit-") as folder:
            arguments = FitArguments(
                model_file=self.getModelFile(),
                images=str(images.pixels),
                labels=str(images.labels),
                optimizer=self.getKerasOptimizer(),
                loss=self.getKerasLoss(),
                fit_params={"verbose": 0, **self.getKerasFitParams()},
                seed=self.getSeed(),
            )
            history = fit_apart(arguments, Path(folder))
            trained = convert_tensor_model(str(Path(folder) / MODEL_FILE))
        # The path that means something to the user: the folder is gone.
        stage = self._new_stage(replace(trained, weights=self.getModelFile()))
        return stage._set(trainingHistory=history, nFailedImages=images.n_failed)


for _stage in (KerasImageFileEstimator, KerasImageFileModel):
    _stage.__module__ = "sparkdl"  # part of the file format, like the featurizer's
