"""The featurizer's work inside a Spark Python worker: Arrow batches of image rows to Arrow batches of features.

It imports no ``pyspark.ml``, so that a worker starts fast.
"""

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkdl.decode import resize_pixels
from sparkdl.engine import Engine
from sparkdl.imagerow import ImageRow, array_from_row

FEATURIZED_DDL = "features array<float>, seconds double"
_FEATURIZED_TYPE = pa.struct([("features", pa.list_(pa.float32())), ("seconds", pa.float64())])


def featurize_batches(batches: Iterator[pa.Array], engine: Engine) -> Iterator[pa.Array]:
    """Compute features for batches of image rows.

    Parameters
    ----------
    batches : iterator of pyarrow.StructArray
        Image rows, null where there is no image.
    engine : Engine
        What to run.

    Yields
    ------
    pyarrow.StructArray
        ``features`` (float32, shape (n_features,)) and ``seconds``, the time that resizing and inference took; null
        where the image is null. As many rows as came in.
    """
    for batch in batches:
        rows = [None if image is None else ImageRow(**image) for image in batch.to_pylist()]
        yield _to_arrow([None if row is None else _featurize(row, engine) for row in rows])


def _featurize(row: ImageRow, engine: Engine) -> tuple[npt.NDArray[np.float32], float]:
    started = time.perf_counter()
    pixels = array_from_row(row)
    if pixels.shape[:2] != engine.input_size:
        pixels = resize_pixels(pixels, engine.input_size)
    features = engine.infer(pixels)
    return features, time.perf_counter() - started


def _to_arrow(results: list[tuple[npt.NDArray[np.float32], float] | None]) -> pa.StructArray:
    """Build the struct from whole buffers: a list of Python floats would cost more than some networks."""
    lengths = [0 if result is None else result[0].size for result in results]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    present = [result[0] for result in results if result is not None]
    values = pa.array(np.concatenate(present) if present else np.empty(0, np.float32))
    features = pa.ListArray.from_arrays(offsets, values)
    seconds = pa.array([None if result is None else result[1] for result in results], pa.float64())
    missing = pa.array([result is None for result in results])
    return pa.StructArray.from_arrays([features, seconds], fields=list(_FEATURIZED_TYPE), mask=missing)
