"""`DeepImageFeaturizer`: a pretrained network as a Spark ML stage that turns image rows into feature vectors."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyspark import keyword_only
from pyspark.ml import Transformer
from pyspark.ml.functions import array_to_vector
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.functions import arrow_udf, col, when
from pyspark.sql.types import DoubleType, StructField, StructType

from schemas.errors import ModelLoadError, SettingsError
from sparkdl.batches import FEATURIZED_DDL, featurize_batches
from sparkdl.engine import find_engine
from sparkdl.hadoop import read_files, write_files
from sparkdl.networks import NETWORKS, Network, build_network
from sparkdl.worker import settle_worker

_NETWORK_FOLDER = "network"


class DeepImageFeaturizer(Transformer, HasInputCol, HasOutputCol, MLReadable, MLWritable):
    """Turns an image column into feature vectors with a pretrained network.

    The network is built and converted once, when it is first needed (`transform` or `save`), and travels inside the
    saved stage: loading needs no network connection, no Keras and no TensorFlow.

    Parameters
    ----------
    inputCol : str
        Column of image rows, as Spark's image source and `sparkdl.decode` make them. Any size; a size unlike the
        network's is resized, antialiased, without keeping the aspect ratio. A null row gives null features.
    outputCol : str
        Column to add: a dense vector of the network's ``n_features`` values.
    modelName : str
        One of `sparkdl.networks.NETWORKS`.
    scaleHint : str
        Accepted for the sake of code written for sparkdl 1.x; resizing is always antialiased bilinear.
    weights : str
        ``"imagenet"``, ``"random"`` or the path of a Keras file.
    pooling : str
        ``"avg"`` for one value per channel, ``"none"`` for the flattened last feature map.
    precision : str
        ``"fp32"`` or ``"bf16"``.
    seed : int
        For ``weights="random"``.
    timingCol : str
        Where not empty, a column with this name is added: seconds that resizing and inference took.

    Notes
    -----
    The class's import path, ``sparkdl.DeepImageFeaturizer``, is part of the file format of saved models.
    """

    modelName = Param(Params._dummy(), "modelName", "name of the network", TypeConverters.toString)
    scaleHint = Param(Params._dummy(), "scaleHint", "kept for sparkdl 1.x; has no effect", TypeConverters.toString)
    weights = Param(Params._dummy(), "weights", "imagenet, random or a Keras file", TypeConverters.toString)
    pooling = Param(Params._dummy(), "pooling", "avg or none", TypeConverters.toString)
    precision = Param(Params._dummy(), "precision", "fp32 or bf16", TypeConverters.toString)
    seed = Param(Params._dummy(), "seed", "seed of random weights", TypeConverters.toInt)
    timingCol = Param(Params._dummy(), "timingCol", "column for the seconds an image took", TypeConverters.toString)

    @keyword_only
    def __init__(  # noqa: PLR0913  one argument for each Param, as in pyspark.ml
        self,
        *,
        inputCol: str | None = None,
        outputCol: str | None = None,
        modelName: str | None = None,
        scaleHint: str = "BILINEAR",
        weights: str = "imagenet",
        pooling: str = "avg",
        precision: str = "fp32",
        seed: int = 0,
        timingCol: str = "",
    ) -> None:
        super().__init__()
        self._network: Network | None = None
        self._broadcast: Any = None
        self._setDefault(
            scaleHint="BILINEAR", weights="imagenet", pooling="avg", precision="fp32", seed=0, timingCol=""
        )
        self._set(**{name: value for name, value in self._input_kwargs.items() if value is not None})
        if modelName is not None and modelName not in NETWORKS:
            msg = f"modelName is {modelName!r}, wanted one of {', '.join(NETWORKS)}"
            raise SettingsError(msg)

    def setTimingCol(self, value: str) -> "DeepImageFeaturizer":
        """Name the column for the seconds an image took; empty for none."""
        return self._set(timingCol=value)

    @property
    def network(self) -> Network:
        """The converted network; built on first use."""
        if self._network is None:
            asked = {param: self.getOrDefault(param) for param in ("weights", "pooling", "precision", "seed")}
            self._network = build_network(self.getOrDefault("modelName"), **asked)
        return self._network

    def transformSchema(self, schema: StructType) -> StructType:
        """Add the output column to a schema.

        Raises
        ------
        SettingsError
            A column to be added is there already, or the input column is not.
        """
        added = [StructField(self.getOutputCol(), VectorUDT(), nullable=True)]
        if self.getOrDefault("timingCol"):
            added.append(StructField(self.getOrDefault("timingCol"), DoubleType(), nullable=True))
        if self.getInputCol() not in schema.names:
            msg = f"inputCol {self.getInputCol()!r} is not among the columns: {', '.join(schema.names)}"
            raise SettingsError(msg)
        taken = [field.name for field in added if field.name in schema.names]
        if taken:
            msg = f"column {taken[0]!r} is there already; name another outputCol"
            raise SettingsError(msg)
        return StructType([*schema.fields, *added])

    def _transform(self, dataset: DataFrame) -> DataFrame:
        wanted = self.transformSchema(dataset.schema)
        featurized = f"{self.uid}_featurized"
        # One column first, its fields after: named twice in one select, Spark would run the network twice.
        frame = dataset.withColumn(featurized, self._udf(dataset.sparkSession)(col(self.getInputCol())))
        columns: dict[str, Column] = {
            self.getOutputCol(): when(
                col(f"{featurized}.features").isNotNull(), array_to_vector(col(f"{featurized}.features"))
            )
        }
        if self.getOrDefault("timingCol"):
            columns[self.getOrDefault("timingCol")] = col(f"{featurized}.seconds")
        return frame.withColumns(columns).select(*wanted.names)

    def _udf(self, spark: SparkSession) -> Any:
        if self._broadcast is None:
            self._broadcast = spark.sparkContext.broadcast(self.network)
        broadcast, sha256, precision = self._broadcast, self.network.sha256, self.network.precision
        # As many threads as Spark counts cores for a task: more would have workers fight over the cores.
        n_threads = int(spark.conf.get("spark.task.cpus", "1"))

        def featurize(images: Iterator[pa.Array]) -> Iterator[pa.Array]:
            engine = find_engine(sha256, precision, lambda: broadcast.value, n_threads=n_threads)
            settle_worker(sha256)
            return featurize_batches(images, engine)

        return arrow_udf(featurize, returnType=FEATURIZED_DDL)

    def copy(self, extra: Any = None) -> "DeepImageFeaturizer":
        """Copy the stage; the copy shares the converted network where the settings that make it are the same."""
        that = super().copy(extra)
        if any(param.name in _BUILD_PARAMS for param in extra or {}):
            that._network = that._broadcast = None
        return that

    def write(self) -> MLWriter:
        """Return the writer; the saved folder holds the parameters and the converted network."""
        return _FeaturizerWriter(self)

    @classmethod
    def read(cls) -> MLReader:
        """Return the reader."""
        return _FeaturizerReader(cls)


_BUILD_PARAMS = frozenset({"modelName", "weights", "pooling", "precision", "seed"})

# A saved stage names its class by module; this is the path that saved models have, whatever file the class lives in.
DeepImageFeaturizer.__module__ = "sparkdl"


class _FeaturizerWriter(MLWriter):
    def __init__(self, instance: DeepImageFeaturizer) -> None:
        super().__init__()
        self.instance = instance

    def saveImpl(self, path: str) -> None:
        DefaultParamsWriter.saveMetadata(self.instance, path, self.sparkSession)
        write_files(self.sparkSession, f"{path}/{_NETWORK_FOLDER}", self.instance.network.to_files())


class _FeaturizerReader(MLReader):
    def __init__(self, cls: type[DeepImageFeaturizer]) -> None:
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> DeepImageFeaturizer:
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        stage = self.cls()
        stage._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(stage, metadata)
        try:
            stage._network = Network.from_files(read_files(self.sparkSession, f"{path}/{_NETWORK_FOLDER}"))
        except FileNotFoundError as exc:
            msg = f"the saved stage at {path} has no folder {_NETWORK_FOLDER}/"
            raise ModelLoadError(msg) from exc
        return stage
