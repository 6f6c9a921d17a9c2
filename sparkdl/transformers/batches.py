"""The work inside a Spark Python worker: Arrow batches of images or tensors to Arrow batches of a network's outputs.

It imports no ``pyspark.ml``, so that a worker starts fast.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.errors import ContractError, Reason, RecordError
from sparkdl.engine.base import Engine
from sparkdl.image.pixels import resize_pixels
from sparkdl.image.row import ImageRow, array_from_row
from sparkdl.network.base import Network

RESULT_DDL = "output array<float>, seconds double, reason string, novel boolean"
"""What a network gives for every row: either ``output`` or ``reason`` is null. ``novel`` is null where nobody asked."""

NULL_INPUT = "null_input"

ReadInput = Callable[[Any, Network], npt.NDArray[Any]]
"""Turns one row's value into the network's input; what it raises is the row's fault."""

TellNovel = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.bool_]]
"""Tells from outputs, shape (n, n_features), which inputs are unlike what the network's user knows."""

_RESULT_TYPE = pa.struct(
    [("output", pa.list_(pa.float32())), ("seconds", pa.float64()), ("reason", pa.string()), ("novel", pa.bool_())]
)


@dataclass(frozen=True)
class _Result:
    output: npt.NDArray[np.float32] | None = None
    seconds: float | None = None
    reason: str | None = None


def run_batches(
    batches: Iterator[pa.Array], engine: Engine, read: ReadInput, tell_novel: TellNovel | None = None
) -> Iterator[pa.StructArray]:
    """Run a network over batches of rows.

    Parameters
    ----------
    batches : iterator of pyarrow.Array
        Values that ``read`` understands, or null.
    engine : Engine
        What to run.
    read : callable
        See `ReadInput`.
    tell_novel : callable, optional
        Asked of the outputs of each batch, see `TellNovel`.

    Yields
    ------
    pyarrow.StructArray
        `RESULT_DDL`, as many rows as came in: ``output`` (float32, shape (n_features,)), ``seconds`` that reading and
        inference took, ``reason`` as ``"code: detail"`` where a row has no output, ``novel``.
    """
    for batch in batches:
        yield _to_arrow([_run(value, engine, read) for value in batch.to_pylist()], tell_novel)


def _run(value: Any, engine: Engine, read: ReadInput) -> _Result:
    if value is None:
        return _Result(reason=f"{NULL_INPUT}: the row's value is null")
    started = time.perf_counter()
    try:
        prepared = read(value, engine.network)
    except (MemoryError, ImportError):
        raise  # the machine's fault, not the row's
    except RecordError as exc:
        return _Result(reason=f"{exc.reason}: {exc.detail}")
    except Exception as exc:  # the record boundary: a user's own loader raises what it likes
        return _Result(reason=f"{Reason.UNEXPECTED}: {type(exc).__name__}: {exc}")
    output = engine.infer(prepared)
    return _Result(output, time.perf_counter() - started)


def read_image(image: dict[str, Any], network: Network) -> npt.NDArray[np.uint8]:
    """Read an image row's pixels at the size the network wants.

    Parameters
    ----------
    image : dict
        The image struct's fields.
    network : Network
        One that takes images.

    Returns
    -------
    numpy.ndarray
        uint8, shape (*input_size, nChannels).

    Raises
    ------
    UnsupportedImageError, CorruptImageError
        See `array_from_row`.
    """
    return read_row(ImageRow(**image), network)


def read_row(row: ImageRow, network: Network) -> npt.NDArray[np.uint8]:
    """Read an image row's pixels, see `read_image`."""
    return resize_pixels(array_from_row(row), network.input_size)


def fit_shape(loaded: npt.NDArray[Any], network: Network, origin: str) -> npt.NDArray[np.float32]:
    """Bring what a user's own function made of an image to the network's input.

    Parameters
    ----------
    loaded : numpy.ndarray
        Of the network's ``input_shape``, or that behind a 1, as Keras's examples make it.
    network : Network
        One that takes float32.
    origin : str
        The image, for the error.

    Returns
    -------
    numpy.ndarray
        float32, shape ``input_shape``.

    Raises
    ------
    ContractError
        The shape is another one.
    """
    if loaded.shape not in (network.input_shape, (1, *network.input_shape)):
        detail = f"the image was loaded with shape {loaded.shape}, expected {network.input_shape}"
        raise ContractError(Reason.UNSUPPORTED_FORMAT, origin, detail)
    return loaded.astype(np.float32).reshape(network.input_shape)


def _to_arrow(results: list[_Result], tell_novel: TellNovel | None) -> pa.StructArray:
    """Build the struct from whole buffers: a list of Python floats would cost more than some networks."""
    lengths = [0 if result.output is None else result.output.size for result in results]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    present = [result.output for result in results if result.output is not None]
    values = pa.array(np.concatenate(present) if present else np.empty(0, np.float32))
    missing = pa.array([result.output is None for result in results])
    outputs = pa.ListArray.from_arrays(offsets, values, mask=missing)
    seconds = pa.array([result.seconds for result in results], pa.float64())
    reasons = pa.array([result.reason for result in results], pa.string())
    answers = iter(tell_novel(np.stack(present)).tolist() if tell_novel and present else ())
    novel = pa.array([None if result.output is None else next(answers, None) for result in results], pa.bool_())
    return pa.StructArray.from_arrays([outputs, seconds, reasons, novel], fields=list(_RESULT_TYPE))
