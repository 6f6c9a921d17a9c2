"""The stages of a saved pipeline as numbers: its network, and one linear classifier on its features; without Spark.

A ``StandardScalerModel`` between them is folded into the classifier: scaling and weighing are one weighing. A
calibration is in the classifier's numbers already, for training folds it in.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import ModelLoadError
from schemas.modelstages import check_stages
from sparkdl.engine.activation import NoMapError
from sparkdl.network.base import NETWORK_FOLDER, Network

_FEATURIZER = "sparkdl.DeepImageFeaturizer"
_SCALER = "org.apache.spark.ml.feature.StandardScalerModel"
_REGRESSION = "org.apache.spark.ml.classification.LogisticRegressionModel"
_DENSE = 1  # how Spark tags a vector or matrix that has all its values; others are sparse

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A linear classifier on a network's features.

    Parameters
    ----------
    weights : numpy.ndarray
        float64, shape (1, n_features) of two classes, for the second one; else (n_classes, n_features).
    intercepts : numpy.ndarray
        float64, shape (1,) or (n_classes,).
    """

    weights: Floats
    intercepts: Floats

    def scale(self, factors: Floats, offsets: Floats) -> "LinearHead":
        """Give the head on features that are to be scaled: one that does ``(x - offset) * factor`` itself.

        Parameters
        ----------
        factors, offsets : numpy.ndarray
            float64, shape (n_features,).
        """
        weights = self.weights * factors
        return LinearHead(weights, self.intercepts - weights @ offsets)

    def logit_of(self, label: int) -> tuple[Floats, float]:
        """Give the weights, shape (n_features,), and the intercept of one of two classes' logit.

        Raises
        ------
        NoMapError
            There are more than two classes.
        """
        if len(self.intercepts) != 1:
            msg = f"the model tells {len(self.intercepts)} classes apart: its probability comes from as many sums, and "
            msg += "no one of them is its logit"
            raise NoMapError(msg)
        sign = 1.0 if label == 1 else -1.0
        return sign * self.weights[0], sign * float(self.intercepts[0])


def read_network(folder: Path) -> Network:
    """Read the network of a saved pipeline's first stage.

    Parameters
    ----------
    folder : Path
        A saved ``PipelineModel``, on this machine.

    Raises
    ------
    ModelLoadError
        It names a class that is none of those a model is made of, or is damaged.
    NoMapError
        The first stage is no featurizer.
    """
    stage = _list_stages(folder)[0]
    if (found := _read_metadata(stage)["class"]) != _FEATURIZER:
        msg = f"the model begins with {found.rpartition('.')[2]}, and not with a network"
        raise NoMapError(msg)
    with_files = [path for path in (stage / NETWORK_FOLDER).glob("[!.]*") if path.is_file()]
    return Network.from_files({path.name: path.read_bytes() for path in with_files})


def read_head(folder: Path) -> LinearHead:
    """Read everything behind the network of a saved pipeline as one linear classifier on the network's features.

    Parameters
    ----------
    folder : Path
        See `read_network`.

    Raises
    ------
    ModelLoadError
        See `read_network`.
    NoMapError
        Something between network and probability is not linear, or is not known here.
    """
    _, *between, last = _list_stages(folder)
    try:
        head = _read_regression(last)
        for stage in reversed(between):
            head = head.scale(*_read_scaler(stage))
        _check_columns(folder)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as exc:
        msg = f"the stages of the model at {folder} cannot be read: {type(exc).__name__}: {exc}"
        raise ModelLoadError(msg) from exc
    return head


def _list_stages(folder: Path) -> list[Path]:
    check_stages(folder)
    stages = sorted((folder / "stages").glob("[!.]*"))
    if len(stages) < 2:  # noqa: PLR2004
        msg = f"the model at {folder} has {len(stages)} stages, and a map wants a network and a classifier"
        raise NoMapError(msg)
    return stages


def _read_regression(stage: Path) -> LinearHead:
    _check_class(stage, _REGRESSION, "ends in")
    row = _read_row(stage)
    return LinearHead(_read_matrix(row["coefficientMatrix"]), _read_vector(row["interceptVector"]))


def _read_scaler(stage: Path) -> tuple[Floats, Floats]:
    """Give what a scaler multiplies by and takes away before; by 0 where a feature never varied, as Spark does."""
    _check_class(stage, _SCALER, "has")
    row, params = _read_row(stage), _read_params(stage)
    deviations, means = _read_vector(row["std"]), _read_vector(row["mean"])
    varying = deviations != 0
    factors = np.where(varying, 1 / np.where(varying, deviations, 1.0), 0.0)
    return (
        factors if params["withStd"] else np.ones_like(factors),
        means if params["withMean"] else np.zeros_like(means),
    )


def _check_class(stage: Path, wanted: str, place: str) -> None:
    found = str(_read_metadata(stage)["class"])
    if found != wanted:
        msg = (
            f"the model {place} {found.rpartition('.')[2]} where {wanted.rpartition('.')[2]} is the only linear stage "
        )
        msg += "that is known here"
        raise NoMapError(msg)


def _check_columns(folder: Path) -> None:
    """Refuse stages that are in one line but do not read each other's columns."""
    first, *rest = _list_stages(folder)
    before = _read_params(first)["outputCol"]
    for stage in rest:
        params = _read_params(stage)
        reads = params["inputCol"] if "inputCol" in params else params["featuresCol"]
        if reads != before:
            msg = f"a stage of the model reads the column {reads!r}, and the one before it writes {before!r}"
            raise NoMapError(msg)
        before = params.get("outputCol", before)


def _read_metadata(stage: Path) -> dict[str, Any]:
    """Read metadata that `check_stages` has found to be one line of JSON."""
    path = _only((stage / "metadata").glob("part-*"))
    metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return metadata


def _read_params(stage: Path) -> dict[str, Any]:
    metadata = _read_metadata(stage)
    return {**metadata.get("defaultParamMap", {}), **metadata["paramMap"]}


def _read_row(stage: Path) -> Mapping[str, Any]:
    path = _only((stage / "data").glob("part-*.parquet"))
    row: Mapping[str, Any] = _only(pq.ParquetFile(path).read().to_pylist())
    return row


def _only(found: Iterable[Any]) -> Any:
    """Give the one thing there is."""
    [one] = found
    return one


def _read_vector(stored: Mapping[str, Any]) -> Floats:
    values = np.array(stored["values"], np.float64)
    if stored["type"] == _DENSE:
        return values
    vector = np.zeros(stored["size"])
    vector[stored["indices"]] = values
    return vector


def _read_matrix(stored: Mapping[str, Any]) -> Floats:
    """Read a matrix as Spark stores it: by columns, unless it says that it is transposed."""
    rows, columns = stored["numRows"], stored["numCols"]
    values = np.array(stored["values"], np.float64)
    if stored["type"] == _DENSE:
        return values.reshape(rows, columns) if stored["isTransposed"] else values.reshape(columns, rows).T
    lines = rows if stored["isTransposed"] else columns
    matrix = np.zeros((lines, columns if stored["isTransposed"] else rows))
    starts = stored["colPtrs"]
    for line in range(lines):
        own = slice(starts[line], starts[line + 1])
        matrix[line, stored["rowIndices"][own]] = values[own]
    return matrix if stored["isTransposed"] else matrix.T
