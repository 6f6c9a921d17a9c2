"""What every stage with a network shares: how it runs in Spark, and how it is saved, loaded and copied."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from uuid import uuid4

import pyarrow as pa
from pyspark.ml import Transformer
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReadable, MLReader, MLWritable, MLWriter
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.functions import arrow_udf, col
from pyspark.sql.types import DataType, StringType, StructField, StructType

from schemas.errors import ModelLoadError, SettingsError
from sparkdl.engine.novelty import StoredDetector
from sparkdl.network.base import NETWORK_FOLDER, Network
from sparkdl.spark.hadoop import read_files, write_files
from sparkdl.spark.sentfiles import withdraw_files
from sparkdl.transformers.batches import RESULT_DDL, ReadInput, run_batches
from sparkdl.transformers.params import HasDevice, HasReasonCol
from sparkdl.transformers.sentnetwork import SentNetwork, send_network


class NetworkTransformer(Transformer, HasInputCol, HasOutputCol, HasDevice, HasReasonCol, MLReadable, MLWritable):
    """A stage that applies a network to a column.

    The network is built and converted once, when it is first needed (`transform` or `save`), and travels inside the
    saved stage: loading needs no network connection, no Keras and no TensorFlow. Its files are written once on each
    machine, see `sparkdl.spark.sentfiles`; each Python worker compiles it once and keeps it.
    """

    _build_params: ClassVar[frozenset[str]] = frozenset()
    """Parameters that the network follows from: a copy that changes one of them builds anew."""

    def __init__(self) -> None:
        super().__init__()
        self._network: Network | None = None
        self._holder = uuid4().hex
        """Of the files that were sent; copies with the same network have the same."""
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
            self._network, self._holder = None, uuid4().hex
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

    def send(self, spark: SparkSession) -> SentNetwork:
        """Send the network to a session's workers: once, however often this is called, and for all copies together.

        Parameters
        ----------
        spark : SparkSession
            Whose workers will open it.

        Returns
        -------
        SentNetwork
            Can be pickled; `SentNetwork.open` is for the workers.

        Raises
        ------
        OSError
            The files cannot be written.
        """
        return send_network(spark, self.network, self._holder, device=self.getDevice(), detector=self._detector)

    def withdraw(self) -> None:
        """Remove the files that `send` and `transform` wrote for this stage and its copies, before the session ends.

        Frames that were made with it can no longer be computed; the next `transform` sends the network again.
        """
        withdraw_files(self._holder)

    def _run_network(self, dataset: DataFrame) -> Column:
        function = network_udf(self.send(dataset.sparkSession), self._read_input())
        return function(self._prepare_input(dataset))

    def copy(self, extra: Any = None) -> Any:
        """Copy the stage; the copy shares the converted network where the settings that make it are the same."""
        that = super().copy(extra)
        same = not any(param.name in self._build_params for param in extra or {})
        that._network, that._holder = (self._network, self._holder) if same else (None, uuid4().hex)
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


def network_udf(sent: SentNetwork, read: ReadInput, *, output_only: bool = False) -> Any:
    """Make a network a Spark function.

    Parameters
    ----------
    sent : SentNetwork
        What to run.
    read : callable
        Turns a value of the input column into the network's input; sent to the workers.
    output_only : bool
        Give the output alone, an array of floats, instead of `RESULT_DDL`.

    Returns
    -------
    callable
        From a column to a column; also for ``spark.udf.register``.
    """

    # Only these three cross to the workers: a stage holds a session.
    def run_network(values: Iterator[pa.Array]) -> Iterator[pa.Array]:
        engine, tell_novel = sent.open()
        for result in run_batches(values, engine, read, tell_novel):
            yield result.field("output") if output_only else result

    return arrow_udf(run_network, returnType="array<float>" if output_only else RESULT_DDL)


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
