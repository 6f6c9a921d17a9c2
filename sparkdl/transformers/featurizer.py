"""`DeepImageFeaturizer`: a pretrained network as a Spark ML stage that turns image rows into feature vectors."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark import keyword_only
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql.functions import col, when
from pyspark.sql.types import BooleanType, DataType, DoubleType, StructField

from schemas.errors import RecordError, SettingsError
from sparkdl.engine.novelty import StoredDetector
from sparkdl.engine.quantize import quantize_network
from sparkdl.image.row import ImageRow, array_from_row
from sparkdl.network.base import Network
from sparkdl.network.catalog import ENGINES, NETWORKS, POOLINGS, build_network
from sparkdl.network.kerasmodels import convert_image_model
from sparkdl.transformers.base import NetworkTransformer, check_image_column
from sparkdl.transformers.batches import ReadInput, read_image
from sparkdl.transformers.params import one_of

CUSTOM = "custom"

NOVEL_COLUMN = "novel"
"""Boolean column that a featurizer with a detector adds: whether an image is unlike those that the detector knows."""
_MODEL_NAMES = (*NETWORKS, CUSTOM)
_PRECISIONS = ("fp32", "bf16", "int8")

# sparkdl 1.x named java.awt.Image's ways of scaling.
_SCALE_HINTS = (
    "BILINEAR",
    "SCALE_AREA_AVERAGING",
    "SCALE_DEFAULT",
    "SCALE_FAST",
    "SCALE_REPLICATE",
    "SCALE_SMOOTH",
)


class DeepImageFeaturizer(NetworkTransformer):
    """Turns an image column into feature vectors with a pretrained network.

    Parameters
    ----------
    inputCol : str
        Column of image rows, as Spark's image source and `decode_image` make them: uint8, 1, 3 or 4 channels. Any
        size; a size unlike the network's is resized, antialiased, without keeping the aspect ratio. A null or broken
        row gives null features.
    outputCol : str
        Column to add: a dense vector of the network's ``n_features`` values.
    modelName : str
        One of `sparkdl.network.catalog.NETWORKS`, or ``"custom"`` for the Keras model that ``weights`` names.
    scaleHint : str
        Accepted for the sake of code written for sparkdl 1.x; resizing is always antialiased bilinear.
    weights : str
        ``"imagenet"``, ``"random"`` or the path of a Keras file. With ``modelName="custom"`` a whole Keras model that
        takes RGB from 0 to 255 and holds its own preprocessing.
    pooling : str
        ``"avg"`` for one value per channel, ``"none"`` for the flattened last feature map, as sparkdl 1.x gave it. A
        custom model's output is flattened.
    precision : str
        ``"fp32"``, ``"bf16"``, or ``"int8"``, which `quantize` makes.
    seed : int
        For ``weights="random"``.
    engine : str
        ``"openvino"``, or ``"tensorflow"`` for comparison.
    device : str
        OpenVINO's device.
    reasonCol : str
        Where not empty, a column with this name is added: ``"code: detail"`` where a row has no features.
    timingCol : str
        Where not empty, a column with this name is added: seconds that resizing and inference took.

    Raises
    ------
    SettingsError
        A parameter has a value that is not among those above.

    Notes
    -----
    The class's import path, ``sparkdl.DeepImageFeaturizer``, is part of the file format of saved models.
    """

    modelName = Param(Params._dummy(), "modelName", "name of the network", one_of("modelName", _MODEL_NAMES))
    scaleHint = Param(
        Params._dummy(), "scaleHint", "kept for sparkdl 1.x; has no effect", one_of("scaleHint", _SCALE_HINTS)
    )
    weights = Param(Params._dummy(), "weights", "imagenet, random or a Keras file", TypeConverters.toString)
    pooling = Param(Params._dummy(), "pooling", "avg or none", one_of("pooling", POOLINGS))
    precision = Param(Params._dummy(), "precision", "fp32, bf16 or int8", one_of("precision", _PRECISIONS))
    seed = Param(Params._dummy(), "seed", "seed of random weights", TypeConverters.toInt)
    engine = Param(Params._dummy(), "engine", "openvino or tensorflow", one_of("engine", ENGINES))
    timingCol = Param(Params._dummy(), "timingCol", "column for the seconds an image took", TypeConverters.toString)

    _build_params = frozenset({"modelName", "weights", "pooling", "precision", "seed", "engine"})

    @keyword_only
    def __init__(  # noqa: PLR0913  one argument for each Param, as in pyspark.ml
        self,
        *,
        inputCol: str | None = None,
        outputCol: str | None = None,
        modelName: str | None = None,
        scaleHint: str | None = None,
        weights: str | None = None,
        pooling: str | None = None,
        precision: str | None = None,
        seed: int | None = None,
        engine: str | None = None,
        device: str | None = None,
        reasonCol: str | None = None,
        timingCol: str | None = None,
    ) -> None:
        super().__init__()
        self._setDefault(scaleHint="BILINEAR", weights="imagenet", pooling="avg", precision="fp32", seed=0)
        self._setDefault(engine="openvino", timingCol="")
        self.setParams(**self._input_kwargs)

    def setModelName(self, value: str) -> "DeepImageFeaturizer":
        """Name the network."""
        return self._set(modelName=value)

    def getModelName(self) -> str:
        """Return the network's name."""
        return self.getOrDefault(self.modelName)

    def setScaleHint(self, value: str) -> "DeepImageFeaturizer":
        """Take sparkdl 1.x's hint; it has no effect."""
        return self._set(scaleHint=value)

    def getScaleHint(self) -> str:
        """Return the hint."""
        return self.getOrDefault(self.scaleHint)

    def setTimingCol(self, value: str) -> "DeepImageFeaturizer":
        """Name the column for the seconds an image took; empty for none."""
        return self._set(timingCol=value)

    @property
    def noveltyDetector(self) -> StoredDetector | None:
        """What tells images unlike the training images; None where nothing does."""
        return self._detector

    def setNoveltyDetector(self, detector: StoredDetector) -> "DeepImageFeaturizer":
        """Add `NOVEL_COLUMN` from now on. The detector is no part of the saved stage.

        Raises
        ------
        SettingsError
            The detector is for features of another length.
        """
        if (n_features := detector.references.shape[1]) != self.network.n_features:
            msg = f"the detector is for {n_features} features, the network has {self.network.n_features}"
            raise SettingsError(msg)
        self._detector = detector
        return self

    def calibrate(self, dataset: DataFrame, n_images: int = 300) -> "DeepImageFeaturizer":
        """Do what `quantize` does; the name of the first release, kept for one more."""
        return self.quantize(dataset, n_images)

    def quantize(self, dataset: DataFrame, n_images: int = 300) -> "DeepImageFeaturizer":
        """Make an int8 copy of this stage, calibrated on images like those it will see.

        Parameters
        ----------
        dataset : DataFrame
            With ``inputCol``. Give training images only: calibration looks at them.
        n_images : int
            How many to take at most; null and broken rows do not count.

        Returns
        -------
        DeepImageFeaturizer
            A copy with ``precision="int8"``. Train the classifier on its features, not on fp32 ones.

        Raises
        ------
        DependencyError
            The ``int8`` extra is missing.
        SettingsError
            There are too few images, or the engine is not OpenVINO.
        """
        check_image_column(self.getInputCol(), dataset.schema[self.getInputCol()].dataType)
        full = self.copy({self.precision: "fp32"}) if self.getOrDefault("precision") == "int8" else self
        name = f"`{self.getInputCol()}`"
        rows = dataset.select(col(name).alias("image")).where(col("image").isNotNull()).toLocalIterator()
        that = self.copy({self.precision: "int8"})
        that._network = quantize_network(full.network, _readable(rows), max_images=n_images)
        return that

    def _build(self) -> Network:
        asked = {param: self.getOrDefault(param) for param in ("weights", "precision", "engine")}
        if asked["precision"] == "int8":
            msg = "precision 'int8' needs images to calibrate on: call quantize(images), and use what it returns"
            raise SettingsError(msg)
        if not self.isDefined("modelName"):
            msg = f"modelName is not set, wanted {CUSTOM!r} or one of {', '.join(sorted(NETWORKS))}"
            raise SettingsError(msg)
        if self.getModelName() == CUSTOM and asked["weights"] in ("imagenet", "random"):
            msg = f"modelName is {CUSTOM!r} and weights {asked['weights']!r}, wanted the path of the model's Keras file"
            raise SettingsError(msg)
        if self.getModelName() == CUSTOM:
            return convert_image_model(asked["weights"], precision=asked["precision"], engine=asked["engine"])
        pooling, seed = self.getOrDefault("pooling"), self.getOrDefault("seed")
        return build_network(self.getModelName(), pooling=pooling, seed=seed, **asked)

    def _read_input(self) -> ReadInput:
        return read_image

    def _check_input(self, found: DataType) -> None:
        check_image_column(self.getInputCol(), found)

    def _output_type(self) -> DataType:
        return VectorUDT()

    def _output(self, values: Column) -> Column:
        return when(values.isNotNull(), array_to_vector(values))

    def _added_fields(self) -> list[StructField]:
        fields = super()._added_fields()
        if self.getOrDefault("timingCol"):
            fields.append(StructField(self.getOrDefault("timingCol"), DoubleType(), nullable=True))
        if self._detector is not None:
            fields.append(StructField(NOVEL_COLUMN, BooleanType(), nullable=True))
        return fields

    def _added_columns(self, result: Callable[[str], Column]) -> dict[str, Column]:
        columns: dict[str, Any] = super()._added_columns(result)
        if self.getOrDefault("timingCol"):
            columns[self.getOrDefault("timingCol")] = result("seconds")
        if self._detector is not None:
            columns[NOVEL_COLUMN] = result("novel")
        return columns


def _readable(rows: Iterator[Row]) -> Iterator[npt.NDArray[np.uint8]]:
    for row in rows:
        try:
            yield array_from_row(ImageRow(**row["image"].asDict()))
        except RecordError:
            continue  # its reason is `transform`'s to tell


# A saved stage names its class by module; this is the path that saved models have, whatever file the class lives in.
DeepImageFeaturizer.__module__ = "sparkdl"
