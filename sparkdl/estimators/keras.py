"""sparkdl 1.x's estimator: trains a user's own Keras model on image files, and gives a stage that applies it."""

import json
import logging
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel, keyword_only
from pyspark.ml import Estimator, Model
from pyspark.ml.base import _FitMultipleIterator
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasLabelCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import Column, DataFrame
from pyspark.sql.functions import array, col, count, count_if, exists, isnan, lit, size, when
from pyspark.sql.functions import max as highest
from pyspark.sql.functions import min as lowest
from pyspark.sql.types import ArrayType, DataType, NumericType

from schemas.errors import DatasetError, Reason, RecordError, SettingsError
from schemas.extras import check_extra
from sparkdl.estimators.fit import MODEL_FILE, FitArguments, History, check_names, fit_apart
from sparkdl.network.backends import import_keras
from sparkdl.network.base import Network
from sparkdl.network.kerasmodels import convert_tensor_model
from sparkdl.transformers.batches import NULL_INPUT, ReadInput
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

_LOADED_DDL = "pixels binary, label array<float>, reason string"
_LOADED_SCHEMA = pa.schema([("pixels", pa.binary()), ("label", pa.list_(pa.float32())), ("reason", pa.string())])

# Of one Arrow batch, and of one partition: the driver receives a whole partition at a time.
_CHUNK_BYTES = 32 * 2**20


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
        images = _SharedImages(self.copy()._plan_loading(dataset))
        return _FitMultipleIterator(lambda index: estimators[index]._train(images), len(estimators))

    def _fit(self, dataset: DataFrame) -> KerasImageFileModel:
        self._check()
        return self._train(_SharedImages(self._plan_loading(dataset)))

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

    def _plan_loading(self, dataset: DataFrame) -> Callable[[Path], "_Images"]:
        network = convert_tensor_model(self.getModelFile())
        stage = self._new_stage(network)
        stage.transformSchema(dataset.schema)
        if self.getLabelCol() not in dataset.columns:
            msg = f"labelCol {self.getLabelCol()!r} is not among the columns: {', '.join(dataset.columns)}"
            raise SettingsError(msg)
        label, is_vector = _label_column(self.getLabelCol(), dataset.schema[self.getLabelCol()].dataType)
        rows = dataset.select(col(f"`{self.getInputCol()}`").alias("uri"), label.alias("label"))
        label_shape = network.output_shape if is_vector else ()
        # Without the graph, since only the shapes are needed in the workers.
        described = replace(network, graph={})
        read = stage._read_input()
        return lambda folder: _load_images(rows, described, read, folder=folder, label_shape=label_shape)

    def _train(self, shared: "_SharedImages") -> KerasImageFileModel:
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


@dataclass(frozen=True)
class _Images:
    """Loaded images on the driver's disk: paths of ``.npy`` files, and how many images are not among them."""

    pixels: Path
    labels: Path
    n_failed: int


class _SharedImages:
    """Images that are loaded when the first thread asks, and removed when nobody can ask any more."""

    def __init__(self, load: Callable[[Path], _Images]) -> None:
        self._load = load
        self._lock = Lock()
        self._images: _Images | None = None

    def load(self) -> _Images:
        with self._lock:
            if self._images is None:
                folder = tempfile.mkdtemp(prefix="xray-images-")
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                self._images = self._load(Path(folder))
        return self._images


def _label_column(name: str, found: DataType) -> tuple[Column, bool]:
    """Bring labels to arrays of floats, and tell whether they were several numbers."""
    column = col(f"`{name}`")
    if isinstance(found, VectorUDT):
        # Asked for the array of no vector, Spark fails the job.
        return when(column.isNotNull(), vector_to_array(column, "float32")), True
    if isinstance(found, ArrayType) and isinstance(found.elementType, NumericType):
        return column.cast("array<float>"), True
    if isinstance(found, NumericType):
        return array(column.cast("float")), False
    msg = f"labelCol {name!r} is {found.simpleString()}, wanted a vector, an array of numbers or a number"
    raise SettingsError(msg)


def _load_images(
    rows: DataFrame, network: Network, read: ReadInput, *, folder: Path, label_shape: tuple[int, ...]
) -> _Images:
    n_rows = _check_labels(rows, int(np.prod(label_shape)))
    image_bytes = 4 * int(np.prod(network.input_shape))
    rows_per_chunk = max(1, _CHUNK_BYTES // image_bytes)
    n_parts = max(rows.sparkSession.sparkContext.defaultParallelism, ceil(n_rows / rows_per_chunk))
    load = _make_load(network, read, rows_per_chunk)
    # Kept on the workers' disks: first loaded by all of them at once, then fetched part by part.
    loaded = rows.repartition(n_parts).mapInArrow(load, _LOADED_DDL).persist(StorageLevel.DISK_ONLY)
    try:
        n_failed = loaded.where(col("reason").isNotNull()).count()
        _report_failures(loaded, n_rows, n_failed)
        images = _Images(folder / "images.npy", folder / "labels.npy", n_failed)
        _write_arrays(loaded, n_rows - n_failed, images, network.input_shape, label_shape)
    finally:
        loaded.unpersist()
    return images


def _check_labels(rows: DataFrame, n_values: int) -> int:
    bad = col("label").isNull() | exists("label", lambda value: value.isNull() | isnan(value))
    length = size("label")
    facts = rows.agg(count(lit(1)), count_if(bad), lowest(length), highest(length)).first()
    n_rows, n_bad, *lengths = facts
    if not n_rows:
        msg = "there are no rows to train on"
        raise DatasetError(msg)
    if n_bad:
        msg = f"{n_bad} of {n_rows} labels are null or not a number, wanted a label for every image"
        raise DatasetError(msg)
    if set(lengths) != {n_values}:
        msg = f"labels have {lengths[0]} to {lengths[1]} values, wanted {n_values}, as the model gives"
        raise DatasetError(msg)
    return int(n_rows)


def _report_failures(loaded: DataFrame, n_rows: int, n_failed: int) -> None:
    if not n_failed:
        return
    reason = loaded.where(col("reason").isNotNull()).select("reason").first()[0]
    if n_failed == n_rows:
        msg = f"none of {n_rows} images can be loaded; one of the reasons: {reason}"
        raise DatasetError(msg)
    log.warning("%d of %d images cannot be loaded and are left out; one of the reasons: %s", n_failed, n_rows, reason)


def _write_arrays(
    loaded: DataFrame, n_images: int, images: _Images, input_shape: tuple[int, ...], label_shape: tuple[int, ...]
) -> None:
    pixels = np.lib.format.open_memmap(images.pixels, "w+", np.float32, (n_images, *input_shape))
    labels = np.empty((n_images, *label_shape), np.float32)
    n_written = 0
    for row in loaded.where(col("reason").isNull()).toLocalIterator(prefetchPartitions=True):
        if n_written < n_images:
            pixels[n_written] = np.frombuffer(row["pixels"], np.float32).reshape(input_shape)
            labels[n_written] = np.reshape(row["label"], label_shape)
        n_written += 1
    if n_written != n_images:  # a worker was lost, and what it held was loaded again
        msg = f"loading gave {n_images} images first, {n_written} then: the input or the loader changes between reads"
        raise DatasetError(msg)
    pixels.flush()
    np.save(images.labels, labels, allow_pickle=False)


def _make_load(
    network: Network, read: ReadInput, rows_per_chunk: int
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def load(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for start in range(0, batch.num_rows, rows_per_chunk):
                rows = batch.slice(start, rows_per_chunk).to_pylist()
                loaded = [{"label": row["label"], **_load_image(row["uri"], network, read)} for row in rows]
                yield pa.RecordBatch.from_pylist(loaded, _LOADED_SCHEMA)

    return load


def _load_image(uri: str | None, network: Network, read: ReadInput) -> dict[str, Any]:
    if uri is None:
        return {"reason": f"{NULL_INPUT}: the row's value is null"}
    try:
        return {"pixels": read(uri, network).tobytes()}
    except (MemoryError, ImportError):
        raise  # the machine's fault, not the row's
    except RecordError as exc:
        return {"reason": f"{exc.reason}: {exc.detail}"}
    except Exception as exc:  # the record boundary: a user's own loader raises what it likes
        return {"reason": f"{Reason.UNEXPECTED}: {type(exc).__name__}: {exc}"}


for _stage in (KerasImageFileEstimator, KerasImageFileModel):
    _stage.__module__ = "sparkdl"  # part of the file format, like the featurizer's
