"""What every stage with a network shares: how it runs in Spark, and how it is saved, loaded and copied."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pyarrow as pa
from pyspark.ml import Transformer
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.functions import arrow_udf, col
from pyspark.sql.types import DataType, StringType, StructField, StructType

from schemas.errors import ModelLoadError, SettingsError
from sparkdl.engine.cache import find_engine
from sparkdl.engine.novelty import StoredDetector, find_detector
from sparkdl.network.base import NETWORK_FOLDER, Network
from sparkdl.spark.hadoop import read_files, write_files
from sparkdl.spark.worker import prepare_worker
from sparkdl.transformers.batches import RESULT_DDL, ReadInput, run_batches
from sparkdl.transformers.params import HasDevice, HasReasonCol


class NetworkTransformer(Transformer, HasInputCol, HasOutputCol, HasDevice, HasReasonCol, MLReadable, MLWritable):
    """A stage that applies a network to a column.

    The network is built and converted once, when it is first needed (`transform` or `save`), and travels inside the
    saved stage: loading needs no network connection, no Keras and no TensorFlow. It reaches executors as a broadcast;
    each Python worker compiles it once and keeps it.
    """

    _build_params: ClassVar[frozenset[str]] = frozenset()
    """Parameters that the network follows from: a copy that changes one of them builds anew."""

    def __init__(self) -> None:
        super().__init__()
        self._network: Network | None = None
        self._broadcast: Any = None
        self._detector: StoredDetector | None = None
        self._setDefault(device="CPU", reasonCol="")

    @abstractmethod
    def _build(self) -> Network:
        """Build the network that the parameters ask for."""

    @abstractmethod
    def _read_input(self) -> ReadInput:
        """Return what turns a row's value into the network's input; it is sent to the workers."""

    @abstractmethod
    def _check_input(self, found: DataType) -> None:
        """Raise SettingsError where the input column is of another type than the stage reads."""

    @abstractmethod
    def _output_type(self) -> DataType:
        """Return the output column's type."""

    @abstractmethod
    def _output(self, values: Column) -> Column:
        """Turn the network's array of floats, null where there is none, into the output column."""

    @property
    def network(self) -> Network:
        """The converted network; built on first use."""
        if self._network is None:
            self._network = self._build()
        return self._network

    def setParams(self, **params: Any) -> Any:
        """Set parameters by name; None leaves one as it is."""
        return self._set(**{name: value for name, value in params.items() if value is not None})

    def _set(self, **params: Any) -> Any:
        """Set parameters, and let go of a network that they no longer describe."""
        before = {name: self._value(name) for name in self._build_params & params.keys()}
        stage = super()._set(**params)
        if any(self._value(name) != value for name, value in before.items()):
            self._network = self._broadcast = None
        return stage

    def _value(self, name: str) -> Any:
        return self.getOrDefault(name) if self.isDefined(name) else None

    def setInputCol(self, value: str) -> Any:
        """Name the input column."""
        return self._set(inputCol=value)

    def setOutputCol(self, value: str) -> Any:
        """Name the output column."""
        return self._set(outputCol=value)

    def transformSchema(self, schema: StructType) -> StructType:
        """Add the output columns to a schema.

        Raises
        ------
        SettingsError
            A column to be added is there already, or the input column is not, or is of another type.
        """
        if self.getInputCol() not in schema.names:
            msg = f"inputCol {self.getInputCol()!r} is not among the columns: {', '.join(schema.names)}"
            raise SettingsError(msg)
        self._check_input(schema[self.getInputCol()].dataType)
        added = self._added_fields()
        names = [*schema.names, *(field.name for field in added)]
        taken = [field.name for field in added if names.count(field.name) > 1]
        if taken:
            msg = f"column {taken[0]!r} is there already; name another outputCol"
            raise SettingsError(msg)
        return StructType([*schema.fields, *added])

    def _added_fields(self) -> list[StructField]:
        fields = [StructField(self.getOutputCol(), self._output_type(), nullable=True)]
        if self.getReasonCol():
            fields.append(StructField(self.getReasonCol(), StringType(), nullable=True))
        return fields

    def _added_columns(self, result: Callable[[str], Column]) -> dict[str, Column]:
        """Make the columns of `_added_fields` from the fields of `RESULT_DDL`."""
        columns = {self.getOutputCol(): self._output(result("output"))}
        if self.getReasonCol():
            columns[self.getReasonCol()] = result("reason")
        return columns

    def _transform(self, dataset: DataFrame) -> DataFrame:
        wanted = self.transformSchema(dataset.schema)
        name = f"{self.uid}_result"
        # One column first, its fields after: named twice in one select, Spark would run the network twice.
        frame = dataset.withColumn(name, self._run_network(dataset))
        columns = self._added_columns(lambda field: col(f"{name}.{field}"))
        return frame.withColumns(columns).select(*[f"`{column}`" for column in wanted.names])

    def _prepare_input(self, dataset: DataFrame) -> Column:
        """Return the column that crosses to Python."""
        return col(f"`{self.getInputCol()}`")

    def _run_network(self, dataset: DataFrame) -> Column:
        if self._broadcast is None:
            self._broadcast = dataset.sparkSession.sparkContext.broadcast(self.network)
        function = network_udf(
            dataset.sparkSession,
            self.network,
            self._read_input(),
            broadcast=self._broadcast,
            device=self.getDevice(),
            detector=self._detector,
        )
        return function(self._prepare_input(dataset))

    def copy(self, extra: Any = None) -> Any:
        """Copy the stage; the copy shares the converted network where the settings that make it are the same."""
        that = super().copy(extra)
        same = not any(param.name in self._build_params for param in extra or {})
        that._network, that._broadcast = (self._network, self._broadcast) if same else (None, None)
        return that

    def write(self) -> MLWriter:
        """Return the writer; the saved folder holds the parameters and the converted network."""
        return _StageWriter(self)

    @classmethod
    def read(cls) -> MLReader:
        """Return the reader."""
        return _StageReader(cls)


class _StageWriter(MLWriter):
    def __init__(self, instance: NetworkTransformer) -> None:
        super().__init__()
        self.instance = instance

    def saveImpl(self, path: str) -> None:
        network = self.instance.network  # built first: a stage that cannot be built leaves no half folder
        DefaultParamsWriter.saveMetadata(self.instance, path, self.sparkSession)
        write_files(self.sparkSession, f"{path}/{NETWORK_FOLDER}", network.to_files())


class _StageReader(MLReader):
    def __init__(self, cls: type[NetworkTransformer]) -> None:
        super().__init__()
        self.cls = cls

    def load(self, path: str) -> NetworkTransformer:
        metadata = DefaultParamsReader.loadMetadata(path, self.sparkSession)
        stage = self.cls()
        stage._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(stage, metadata)
        try:
            stage._network = Network.from_files(read_files(self.sparkSession, f"{path}/{NETWORK_FOLDER}"))
        except FileNotFoundError as exc:
            msg = f"the saved stage at {path} has no folder {NETWORK_FOLDER}/"
            raise ModelLoadError(msg) from exc
        return stage


def network_udf(
    spark: SparkSession,
    network: Network,
    read: ReadInput,
    *,
    broadcast: Any = None,
    device: str = "CPU",
    output_only: bool = False,
    detector: StoredDetector | None = None,
) -> Any:
    """Make a network a Spark function.

    Parameters
    ----------
    spark : SparkSession
        Where it will run.
    network : Network
        What to run.
    read : callable
        Turns a value of the input column into the network's input; sent to the workers.
    broadcast : Broadcast, optional
        Of ``network``, where there is one already.
    device : str
        OpenVINO's device.
    output_only : bool
        Give the output alone, an array of floats, instead of `RESULT_DDL`.
    detector : StoredDetector, optional
        What tells ``novel`` of each output.

    Returns
    -------
    callable
        From a column to a column; also for ``spark.udf.register``.
    """
    sent = broadcast or spark.sparkContext.broadcast(network)
    # Only these cross to the workers: a stage holds a session.
    sha256, precision = network.sha256, network.precision
    # As many threads as Spark counts cores for a task: more would have workers fight over the cores.
    n_threads = int(spark.conf.get("spark.task.cpus", "1"))
    find_sent = None if detector is None else _send_detector(spark, detector)

    def run_network(values: Iterator[pa.Array]) -> Iterator[pa.Array]:
        engine = find_engine(sha256, precision, lambda: sent.value, n_threads=n_threads, device=device)
        tell_novel = None if find_sent is None else find_sent().flags
        prepare_worker(sha256)
        for result in run_batches(values, engine, read, tell_novel):
            yield result.field("output") if output_only else result

    return arrow_udf(run_network, returnType="array<float>" if output_only else RESULT_DDL)


def _send_detector(spark: SparkSession, detector: StoredDetector) -> Callable[[], StoredDetector]:
    sent, sha256 = spark.sparkContext.broadcast(detector), detector.sha256
    return lambda: find_detector(sha256, lambda: sent.value)


_IMAGE_FIELDS = frozenset({"origin", "height", "width", "nChannels", "mode", "data"})


def check_image_column(name: str, found: DataType) -> None:
    """Refuse a column that does not hold image rows.

    Parameters
    ----------
    name : str
        The column's.
    found : DataType
        Its type.

    Raises
    ------
    SettingsError
        It is no struct with the fields of Spark's ``ImageSchema``.
    """
    if not isinstance(found, StructType) or set(found.names) != _IMAGE_FIELDS:
        wanted = "an image struct (origin, height, width, nChannels, mode, data)"
        msg = f"inputCol {name!r} is {found.simpleString()[:200]}, wanted {wanted}"
        raise SettingsError(msg)
