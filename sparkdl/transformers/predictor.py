"""`DeepImagePredictor`: a pretrained network with its head, naming what an image shows among ImageNet's classes."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
from pyspark import keyword_only
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.sql import Column
from pyspark.sql.functions import arrow_udf, when
from pyspark.sql.types import ArrayType, DataType, FloatType, StringType, StructField, StructType

from sparkdl.network.base import Network
from sparkdl.network.catalog import ENGINES, NETWORKS, PRECISIONS, build_classifier
from sparkdl.network.imagenet import N_CLASSES, decode_predictions
from sparkdl.transformers.base import NetworkTransformer, check_image_column
from sparkdl.transformers.batches import ReadInput, read_image
from sparkdl.transformers.params import one_of, within

_DECODED_TYPE = ArrayType(
    StructType(
        [
            StructField("class", StringType(), nullable=False),
            StructField("description", StringType(), nullable=False),
            StructField("probability", FloatType(), nullable=False),
        ]
    ),
    containsNull=False,
)
_DECODED_NAMES = ("class", "description", "probability")
_ARROW_TYPE = pa.list_(pa.struct([("class", pa.string()), ("description", pa.string()), ("probability", pa.float32())]))


class DeepImagePredictor(NetworkTransformer):
    """Applies a pretrained network, its head included, to an image column.

    Parameters
    ----------
    inputCol : str
        Column of image rows; see `DeepImageFeaturizer`.
    outputCol : str
        Column to add: the probabilities of ImageNet's 1000 classes as a dense vector, or, decoded, the most probable
        ones, as an array of (``class``, ``description``, ``probability``), the most probable first.
    modelName : str
        One of `sparkdl.network.catalog.NETWORKS`.
    decodePredictions : bool
        Whether to give names instead of a vector.
    topK : int
        How many names, 1 to 1000.
    weights : str
        ``"imagenet"``, ``"random"`` or the path of a Keras file that was saved with its head.
    precision : str
        ``"fp32"`` or ``"bf16"``.
    seed : int
        For ``weights="random"``.
    engine : str
        ``"openvino"``, or ``"tensorflow"`` for comparison.
    device : str
        OpenVINO's device.
    reasonCol : str
        Where not empty, a column with this name is added: ``"code: detail"`` where a row has no prediction.

    Raises
    ------
    SettingsError
        A parameter has a value that is not among those above.
    """

    modelName = Param(Params._dummy(), "modelName", "name of the network", one_of("modelName", NETWORKS))
    decodePredictions = Param(
        Params._dummy(), "decodePredictions", "give names, not a vector", TypeConverters.toBoolean
    )
    topK = Param(Params._dummy(), "topK", "how many names to give", within("topK", 1, N_CLASSES))
    weights = Param(Params._dummy(), "weights", "imagenet, random or a Keras file", TypeConverters.toString)
    precision = Param(Params._dummy(), "precision", "fp32 or bf16", one_of("precision", PRECISIONS))
    seed = Param(Params._dummy(), "seed", "seed of random weights", TypeConverters.toInt)
    engine = Param(Params._dummy(), "engine", "openvino or tensorflow", one_of("engine", ENGINES))

    _build_params = frozenset({"modelName", "weights", "precision", "seed", "engine"})

    @keyword_only
    def __init__(  # noqa: PLR0913  one argument for each Param, as in pyspark.ml
        self,
        *,
        inputCol: str | None = None,
        outputCol: str | None = None,
        modelName: str | None = None,
        decodePredictions: bool | None = None,
        topK: int | None = None,
        weights: str | None = None,
        precision: str | None = None,
        seed: int | None = None,
        engine: str | None = None,
        device: str | None = None,
        reasonCol: str | None = None,
    ) -> None:
        super().__init__()
        self._setDefault(decodePredictions=False, topK=5, weights="imagenet", precision="fp32", seed=0)
        self._setDefault(engine="openvino")
        self.setParams(**self._input_kwargs)

    def setModelName(self, value: str) -> "DeepImagePredictor":
        """Name the network."""
        return self._set(modelName=value)

    def getModelName(self) -> str:
        """Return the network's name."""
        return self.getOrDefault(self.modelName)

    def _build(self) -> Network:
        asked = {param: self.getOrDefault(param) for param in ("weights", "precision", "seed", "engine")}
        return build_classifier(self.getModelName(), **asked)

    def _read_input(self) -> ReadInput:
        return read_image

    def _check_input(self, found: DataType) -> None:
        check_image_column(self.getInputCol(), found)

    def _output_type(self) -> DataType:
        return _DECODED_TYPE if self.getOrDefault(self.decodePredictions) else VectorUDT()

    def _output(self, values: Column) -> Column:
        if not self.getOrDefault(self.decodePredictions):
            return when(values.isNotNull(), array_to_vector(values))
        return _decode_udf(self.getOrDefault(self.topK))(values)


def _decode_udf(top_k: int) -> Callable[[Column], Column]:
    @arrow_udf(returnType=_DECODED_TYPE)
    def decode(probabilities: pa.Array) -> pa.Array:
        rows = [None if row is None else decode_predictions(row, top_k) for row in probabilities.to_pylist()]
        return pa.array([_to_dicts(row) for row in rows], _ARROW_TYPE)

    return decode


def _to_dicts(row: list[tuple[str, str, float]] | None) -> list[dict[str, Any]] | None:
    return None if row is None else [dict(zip(_DECODED_NAMES, item, strict=True)) for item in row]


DeepImagePredictor.__module__ = "sparkdl"  # part of the file format, like the featurizer's
