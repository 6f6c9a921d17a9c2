"""A saved pipeline of a featurizer and a logistic regression, written and read as plain files, without a JVM.

The files are those of Spark's own ``PipelineModel``: either may read what the other wrote, and tests hold the two
against each other. A JVM's start and its first small jobs take about ten seconds, which a fit of milliseconds, or a
look at a model's numbers, would wait for. No library writes Spark's files without a JVM, so this is own code.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegressionModel
from pyspark.ml.common import _py2java
from pyspark.ml.linalg import DenseMatrix, DenseVector, MatrixUDT, VectorUDT
from pyspark.ml.util import DefaultParamsReader
from pyspark.sql import SparkSession
from pyspark.sql.types import BooleanType, IntegerType, StructField, StructType

from schemas.errors import ModelLoadError
from schemas.modelcard import BINARY
from schemas.modelstages import check_stages
from sparkdl.network.base import NETWORK_FOLDER, Network
from sparkdl.transformers.featurizer import DeepImageFeaturizer

Floats = npt.NDArray[np.float64]

_PIPELINE = "pyspark.ml.pipeline.PipelineModel"
_FEATURIZER = "sparkdl.DeepImageFeaturizer"
_REGRESSION = "org.apache.spark.ml.classification.LogisticRegressionModel"
_REGRESSION_DEFAULTS = {
    "aggregationDepth": 2,
    "elasticNetParam": 0.0,
    "family": "auto",
    "featuresCol": "features",
    "fitIntercept": True,
    "labelCol": "label",
    "maxBlockSizeInMB": 0.0,
    "maxIter": 100,
    "predictionCol": "prediction",
    "probabilityCol": "probability",
    "rawPredictionCol": "rawPrediction",
    "regParam": 0.0,
    "standardization": True,
    "threshold": 0.5,
    "tol": 1e-06,
}
"""What Spark writes into a model's metadata; its reader takes a parameter's default from there."""

_ROW = StructType(
    [
        StructField("numClasses", IntegerType(), nullable=False),
        StructField("numFeatures", IntegerType(), nullable=False),
        StructField("interceptVector", VectorUDT()),
        StructField("coefficientMatrix", MatrixUDT()),
        StructField("isMultinomial", BooleanType(), nullable=False),
    ]
)
_INTEGERS = pa.list_(pa.field("element", pa.int32(), nullable=False))
_DOUBLES = pa.list_(pa.field("element", pa.float64(), nullable=False))
_VECTOR = {"type": pa.int8(), "size": pa.int32(), "indices": _INTEGERS, "values": _DOUBLES}
_MATRIX = {
    **{"type": pa.int8(), "numRows": pa.int32(), "numCols": pa.int32()},
    **{"colPtrs": _INTEGERS, "rowIndices": _INTEGERS, "values": _DOUBLES, "isTransposed": pa.bool_()},
}
_ALWAYS_THERE = frozenset({"type", "numRows", "numCols", "isTransposed"})
_ROW_METADATA = "org.apache.spark.sql.parquet.row.metadata"


@dataclass(frozen=True, eq=False)
class Regression:
    """A fitted logistic regression.

    Parameters
    ----------
    coefficients : numpy.ndarray
        float64, shape (1, n_features) of two classes, else (n_classes, n_features).
    intercepts : numpy.ndarray
        float64, shape (1,) or (n_classes,).
    params : mapping of str to value
        Parameters of Spark's ``LogisticRegressionModel`` that are set; others have its defaults.
    """

    coefficients: Floats
    intercepts: Floats
    params: Mapping[str, Any]


def write_pipeline(folder: Path, featurizer: DeepImageFeaturizer, regression: Regression) -> None:
    """Write a pipeline as ``PipelineModel.save`` does.

    Parameters
    ----------
    folder : Path
        To be made; on this machine.
    featurizer : DeepImageFeaturizer
        The first stage; its network is built where that was not done yet.
    regression : Regression
        The second stage.

    Raises
    ------
    FileExistsError
        The folder is there already.
    """
    files = featurizer.network.to_files()  # built first: one that cannot be built leaves no half folder
    uids = featurizer.uid, f"LogisticRegression_{uuid4().hex[-12:]}"
    folder.mkdir(parents=True)
    stages = {"stageUids": list(uids), "language": "Python"}
    _write_metadata(folder, _PIPELINE, f"PipelineModel_{uuid4().hex[-12:]}", stages, {})
    first, second = (folder / "stages" / f"{number}_{uid}" for number, uid in enumerate(uids))
    own, defaults = (
        {param.name: value for param, value in values.items()}
        for values in (featurizer._paramMap, featurizer._defaultParamMap)
    )
    _write_metadata(first, _FEATURIZER, uids[0], own, defaults)
    network = first / NETWORK_FOLDER
    network.mkdir()
    for name, content in files.items():
        (network / name).write_bytes(content)
    _write_metadata(second, _REGRESSION, uids[1], regression.params, _REGRESSION_DEFAULTS)
    _write_numbers(second / "data", regression)


def _write_metadata(folder: Path, name: str, uid: str, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    metadata = {
        "class": name,
        "timestamp": int(time.time() * 1000),
        "sparkVersion": pyspark.__version__,
        "uid": uid,
        "paramMap": dict(params),
        "defaultParamMap": dict(defaults),
    }
    _write_part(folder / "metadata", "part-00000", (json.dumps(metadata, separators=(",", ":")) + "\n").encode())


def _write_part(folder: Path, name: str, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    (folder / "_SUCCESS").touch()


def _write_numbers(folder: Path, regression: Regression) -> None:
    rows, columns = regression.coefficients.shape
    matrix = MatrixUDT().serialize(DenseMatrix(rows, columns, regression.coefficients.ravel(), isTransposed=True))
    vector = VectorUDT().serialize(DenseVector(regression.intercepts))
    row = {
        "numClasses": max(BINARY, rows),
        "numFeatures": columns,
        "interceptVector": dict(zip(_VECTOR, vector, strict=True)),
        "coefficientMatrix": dict(zip(_MATRIX, matrix, strict=True)),
        "isMultinomial": rows > 1,
    }
    schema = pa.schema(
        [
            pa.field("numClasses", pa.int32(), nullable=False),
            pa.field("numFeatures", pa.int32(), nullable=False),
            pa.field("interceptVector", _struct(_VECTOR)),
            pa.field("coefficientMatrix", _struct(_MATRIX)),
            pa.field("isMultinomial", pa.bool_(), nullable=False),
        ],
        # Without it Spark's reader would see structs, where it wants a vector and a matrix.
        metadata={_ROW_METADATA: _ROW.json()},
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row], schema), sink)
    _write_part(folder, "part-00000.snappy.parquet", sink.getvalue().to_pybytes())


def _struct(fields: Mapping[str, pa.DataType]) -> pa.DataType:
    return pa.struct([pa.field(name, kind, nullable=name not in _ALWAYS_THERE) for name, kind in fields.items()])


def read_pipeline(folder: Path) -> tuple[DeepImageFeaturizer, Regression]:
    """Read a pipeline, whoever wrote it.

    Parameters
    ----------
    folder : Path
        A saved ``PipelineModel``, on this machine.

    Returns
    -------
    tuple of DeepImageFeaturizer and Regression
        Its stages.

    Raises
    ------
    ModelLoadError
        It names a class that is none of those a model is made of, is another kind of pipeline, or is damaged.
    """
    first, second = _find_stages(folder)
    try:
        metadata = _read_metadata(first)
        featurizer = DeepImageFeaturizer()
        featurizer._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(featurizer, metadata)
        found = (first / NETWORK_FOLDER).iterdir()
        files = {path.name: path.read_bytes() for path in found if path.is_file() and not path.name.startswith(".")}
        featurizer._network = Network.from_files(files)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        msg = f"the featurizer of the model at {folder} cannot be read: {type(exc).__name__}: {exc}"
        raise ModelLoadError(msg) from exc
    return featurizer, _read_regression(folder, second)


def load_pipeline(spark: SparkSession, folder: Path) -> PipelineModel:
    """Load a pipeline of a featurizer and a logistic regression into a session, without a job of Spark's.

    Parameters
    ----------
    spark : SparkSession
        Where it will run.
    folder : Path
        See `read_pipeline`.

    Raises
    ------
    ModelLoadError
        See `read_pipeline`.
    """
    featurizer, regression = read_pipeline(folder)
    return PipelineModel(stages=[featurizer, _to_spark(spark, regression)])


def _to_spark(spark: SparkSession, regression: Regression) -> LogisticRegressionModel:
    context = spark.sparkContext
    rows, columns = regression.coefficients.shape
    java = context._jvm.org.apache.spark.ml.classification.LogisticRegressionModel(
        f"LogisticRegression_{uuid4().hex[-12:]}",
        _py2java(context, DenseMatrix(rows, columns, regression.coefficients.ravel(), isTransposed=True)),
        _py2java(context, DenseVector(regression.intercepts)),
        max(BINARY, rows),
        rows > 1,
    )
    model = LogisticRegressionModel(java)
    model._set(**regression.params)
    model._transfer_params_to_java()
    return model


def is_featurizer_and_regression(folder: Path) -> bool:
    """Tell whether a saved pipeline is one that `read_pipeline` reads.

    Raises
    ------
    ModelLoadError
        It names a class that is none of those a model is made of, or is no saved pipeline.
    """
    return _read_classes(folder) == [_FEATURIZER, _REGRESSION]


def read_regression(folder: Path) -> Regression:
    """Read the second stage of a pipeline alone; see `read_pipeline`."""
    return _read_regression(folder, _find_stages(folder)[1])


def _find_stages(folder: Path) -> tuple[Path, Path]:
    """Give the folders of the two stages."""
    if (names := _read_classes(folder)) != [_FEATURIZER, _REGRESSION]:
        found = ", ".join(names) or "nothing"
        msg = f"the model at {folder} is a pipeline of {found}, expected {_FEATURIZER} and {_REGRESSION}"
        raise ModelLoadError(msg)
    first, second = _list_stages(folder)
    return first, second


def _read_classes(folder: Path) -> list[str]:
    check_stages(folder)
    return [_read_metadata(stage)["class"] for stage in _list_stages(folder)]


def _list_stages(folder: Path) -> list[Path]:
    return sorted((folder / "stages").glob("*"))


def _read_metadata(stage: Path) -> dict[str, Any]:
    """Read metadata that `check_stages` has found to be one line of JSON."""
    [path] = (stage / "metadata").glob("part-*")
    metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return metadata


def _read_regression(folder: Path, stage: Path) -> Regression:
    try:
        row = _only(_only_part(stage).read().to_pylist())
        # L1 leaves few coefficients: Spark stores whichever of dense and sparse is smaller.
        matrix = MatrixUDT().deserialize(tuple(row["coefficientMatrix"][name] for name in _MATRIX))
        vector = VectorUDT().deserialize(tuple(row["interceptVector"][name] for name in _VECTOR))
        params = _read_metadata(stage)["paramMap"]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as exc:
        msg = f"the classifier of the model at {folder} cannot be read: {type(exc).__name__}: {exc}"
        raise ModelLoadError(msg) from exc
    return Regression(matrix.toArray(), vector.toArray(), params)


def _only_part(stage: Path) -> pq.ParquetFile:
    return pq.ParquetFile(_only((stage / "data").glob("part-*.parquet")))


def _only(found: Iterable[Any]) -> Any:
    """Give the one thing there is."""
    [one] = found
    return one
