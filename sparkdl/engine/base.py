"""What every engine takes and gives."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sparkdl.network.base import Network

_GRAY, _BGR, _BGRA = 1, 3, 4

_IMAGE_NDIM = 3


class Engine(Protocol):
    """What runs a network: `OpenVinoEngine`, or `sparkdl.engine.tensorflow.TensorFlowEngine`."""

    network: Network

    def infer(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Compute one input's output; see `OpenVinoEngine.infer`."""


def prepare_input(network: Network, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Check one input, and bring an image to three BGR channels.

    Parameters
    ----------
    network : Network
        What will take it.
    values : numpy.ndarray
        See `OpenVinoEngine.infer`.

    Returns
    -------
    numpy.ndarray
        Of the network's ``input_shape`` and ``input_type``.

    Raises
    ------
    TypeError, ValueError
        See `OpenVinoEngine.infer`.
    """
    if network.input_type == "uint8":
        return to_bgr(values, network.input_size)
    if values.dtype.kind not in "fiu":
        msg = f"input: dtype is {values.dtype}, expected numbers"
        raise TypeError(msg)
    if values.shape != network.input_shape:
        msg = f"input: shape is {values.shape}, expected {network.input_shape}"
        raise ValueError(msg)
    return values.astype(np.float32, copy=False)


def to_bgr(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Bring one image to three BGR channels: gray is repeated, alpha is dropped.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8, shape (height, width) or (height, width, 1, 3 or 4).
    size : tuple of int
        The wanted (height, width); nothing is resized here.

    Returns
    -------
    numpy.ndarray
        uint8, shape (height, width, 3), C-contiguous; the input itself where it already is that.

    Raises
    ------
    TypeError
        The pixels are not uint8.
    ValueError
        The shape is another one.
    """
    if pixels.dtype != np.uint8:
        msg = f"pixels: dtype is {pixels.dtype}, expected uint8"
        raise TypeError(msg)
    image = pixels[..., np.newaxis] if pixels.ndim == len(size) else pixels
    if image.ndim != _IMAGE_NDIM or image.shape[:2] != size or image.shape[2] not in (_GRAY, _BGR, _BGRA):
        msg = f"pixels: shape is {pixels.shape}, expected {size} with 1, 3 or 4 channels"
        raise ValueError(msg)
    bgr = np.broadcast_to(image, (*size, _BGR)) if image.shape[2] == _GRAY else image[..., :_BGR]
    return np.ascontiguousarray(bgr)
