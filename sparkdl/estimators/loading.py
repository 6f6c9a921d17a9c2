"""Images and labels of a frame as two arrays on the driver's disk, for a Keras model to be trained on.

Workers load and decode; the driver receives a partition at a time, so that a training set may be larger than memory.
"""

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame
from pyspark.sql.functions import array, col, count, count_if, exists, isnan, lit, size, when
from pyspark.sql.functions import max as highest
from pyspark.sql.functions import min as lowest
from pyspark.sql.types import ArrayType, DataType, NumericType

from schemas.errors import DatasetError, Reason, RecordError, SettingsError
from sparkdl.network.base import Network
from sparkdl.transformers.batches import NULL_INPUT, ReadInput

_log = logging.getLogger(__name__)

_LOADED_DDL = "pixels binary, label array<float>, reason string"
_LOADED_SCHEMA = pa.schema([("pixels", pa.binary()), ("label", pa.list_(pa.float32())), ("reason", pa.string())])

# Of one Arrow batch, and of one partition: the driver receives a whole partition at a time.
_CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class LoadedImages:
    """Loaded images on the driver's disk.

    Parameters
    ----------
    pixels, labels : Path
        ``.npy`` files, float32.
    n_failed : int
        How many images are not among them.
    """

    pixels: Path
    labels: Path
    n_failed: int


class SharedImages:
    """Images that are loaded when the first thread asks, and removed when nobody can ask any more."""

    def __init__(self, load: Callable[[Path], LoadedImages]) -> None:
        self._load = load
        self._lock = Lock()
        self._images: LoadedImages | None = None

    def load(self) -> LoadedImages:
        """Give the images; the first call loads them."""
        with self._lock:
            if self._images is None:
                folder = tempfile.mkdtemp(prefix="xray-images-")
                weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                self._images = self._load(Path(folder))
        return self._images


def label_column(name: str, found: DataType) -> tuple[Column, bool]:
    """Bring labels to arrays of floats, and tell whether they were several numbers.

    Raises
    ------
    SettingsError
        The column holds something else than numbers.
    """
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


def load_images(
    rows: DataFrame, network: Network, read: ReadInput, *, folder: Path, label_shape: tuple[int, ...]
) -> LoadedImages:
    """Load images in the workers, and write them to the driver's disk.

    Parameters
    ----------
    rows : DataFrame
        ``uri`` and ``label``, see `label_column`.
    network : Network
        The shapes that are wanted.
    read : callable
        Makes pixels of a URI, in a worker.
    folder : Path
        Where the files are to be.
    label_shape : tuple of int
        Of one label.

    Raises
    ------
    DatasetError
        There are no rows, a label does not fit, no image can be loaded, or two readings differ.
    """
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
        images = LoadedImages(folder / "images.npy", folder / "labels.npy", n_failed)
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
    _log.warning("%d of %d images cannot be loaded and are left out; one of the reasons: %s", n_failed, n_rows, reason)


def _write_arrays(
    loaded: DataFrame, n_images: int, images: LoadedImages, input_shape: tuple[int, ...], label_shape: tuple[int, ...]
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
