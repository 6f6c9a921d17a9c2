"""Runs a converted network: one image in, one feature vector out.

This is the serving side. It reads only the converted network that a saved model carries; it never downloads, never
imports Keras and never talks on the terminal.

Batch size is always 1. Measured on CPU, two processes of one thread each and runs interleaved, a batch of 1 is as fast
as or faster than 4 to 16 for each image (InceptionV3 equal in fp32 and bf16; EfficientNetLite0 in fp32 180 against 160
images a second and core), because the layers' activations then stay in the cache. It also makes a result independent of
an image's neighbours in the batch, so the same image always gives the same bytes, however Spark cuts its batches.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from schemas.errors import ModelLoadError, SettingsError
from sparkdl.backends import import_openvino
from sparkdl.network import BIN_FILE, XML_FILE, Network

_log = logging.getLogger(__name__)

# What the operations compute in that are not int8 already.
_PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}

# Two, because a promoted model replaces another one while micro-batches of both are in flight; more would keep
# hundreds of MB of dead networks in a long-lived worker.
_MAX_ENGINES = 2

_GRAY, _BGR, _BGRA = 1, 3, 4
_IMAGE_NDIM = 3


class Engine(Protocol):
    """What runs a network: `OpenVinoEngine`, or `sparkdl.reference.TensorFlowEngine`."""

    network: Network

    def infer(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Compute one input's output; see `OpenVinoEngine.infer`."""


class OpenVinoEngine:
    """A network compiled for this machine, ready to turn pixels into features.

    Calls from several threads are safe; they wait for each other. Throughput comes from several processes (Spark's
    Python workers) of ``n_threads`` each, not from threads in one.

    Parameters
    ----------
    network : Network
        The converted network. The engine keeps its own copy of the weights, and of ``network`` all but the files.
    n_threads : int
        CPU threads one inference uses; no other device heeds it.
    device : str
        OpenVINO's device name.

    Raises
    ------
    SettingsError
        ``n_threads`` is below 1, or the network's precision is not one the engine knows.
    ModelLoadError
        OpenVINO cannot read or compile the network, or its shapes are not what it says of itself.
    """

    def __init__(self, network: Network, *, n_threads: int = 1, device: str = "CPU") -> None:
        options = _compile_options(network.precision, n_threads, device)
        self._request = _compile(network, options, device).create_infer_request()
        self.network = replace(network, graph={})
        self._lock = threading.Lock()

    def infer(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Compute the output of one image or one tensor.

        Parameters
        ----------
        values : numpy.ndarray
            For an image network see `to_bgr`: uint8, with the network's ``input_size``. For any other network float,
            shape ``input_shape``.

        Returns
        -------
        numpy.ndarray
            float32, shape (n_features,); the caller's own copy. The same input gives the same bytes, on one machine
            and OpenVINO version, whatever was inferred before.

        Raises
        ------
        TypeError
            The values are of another type.
        ValueError
            The shape is another one.
        """
        prepared = prepare_input(self.network, values)
        with self._lock:
            # Copied into the request's own buffer: image rows are views of read-only bytes, which it cannot share.
            self._request.get_input_tensor().data[0] = prepared
            self._request.infer()
            # The request reuses its output buffer for the next image, so a view into it would change under the caller.
            output: npt.NDArray[np.float32] = np.array(self._request.get_output_tensor().data[0], np.float32)
        return output.ravel()


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


def start_engine(network: Network, *, n_threads: int = 1, device: str = "CPU") -> Engine:
    """Start what runs a network.

    Parameters
    ----------
    network, n_threads, device
        See `OpenVinoEngine`; TensorFlow, the reference, runs on the CPU only.

    Returns
    -------
    Engine
        A new one.

    Raises
    ------
    SettingsError, ModelLoadError
        See `OpenVinoEngine`.
    DependencyError
        The network is TensorFlow's, which is not installed.
    """
    if network.engine == "openvino":
        return OpenVinoEngine(network, n_threads=n_threads, device=device)
    from sparkdl.reference import TensorFlowEngine  # noqa: PLC0415 - only the reference needs it

    return TensorFlowEngine(network, n_threads=n_threads)


def find_engine(
    sha256: str, precision: str, load: Callable[[], Network], *, n_threads: int = 1, device: str = "CPU"
) -> Engine:
    """Return this process's engine for a network, starting one only where there is none yet.

    Spark calls this for every task. A network is up to 500 MB: reading it each time, only to find that its engine is
    there already, cost a third of a second of every task with InceptionV3. The most recently used two engines stay.

    Parameters
    ----------
    sha256, precision : str
        Of the network.
    load : callable
        Gives the network; called only where there is no engine yet.
    n_threads, device
        See `OpenVinoEngine`.

    Returns
    -------
    Engine
        The same object for the same arguments, from any thread.

    Raises
    ------
    SettingsError, ModelLoadError, DependencyError
        See `start_engine`; also when this process was forked from one that had already started an engine.
    """
    key = (sha256, precision, n_threads, device)
    _cache.check_process()
    with _cache.lock:
        engine = _cache.engines.pop(key, None) or start_engine(load(), n_threads=n_threads, device=device)
        _cache.engines[key] = engine  # last in = most recently used
        while len(_cache.engines) > _MAX_ENGINES:
            _cache.engines.popitem(last=False)
    return engine


class _Cache:
    """The engines of this process, oldest use first, and the lock that makes one thread compile and others wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.engines: OrderedDict[tuple[str, str, int, str], Engine] = OrderedDict()
        self.pid = os.getpid()

    def check_process(self) -> None:
        """Refuse to run in a child forked after an engine was loaded: OpenVINO's threads are not there, it would hang.

        Spark's workers are safe, they are forked from a daemon that loads nothing.
        """
        if self.engines and self.pid != os.getpid():
            msg = f"process {os.getpid()} was forked from {self.pid} after it loaded a network: start it by spawn"
            raise ModelLoadError(msg)
        self.pid = os.getpid()


_cache = _Cache()


def _compile_options(precision: str, n_threads: int, device: str) -> dict[str, Any]:
    if precision not in _PRECISION_HINTS:
        msg = f"precision: {precision!r}, expected one of {', '.join(_PRECISION_HINTS)}"
        raise SettingsError(msg)
    if n_threads < 1:
        msg = f"n_threads: {n_threads}, expected 1 or more"
        raise SettingsError(msg)
    options = {
        "INFERENCE_PRECISION_HINT": _PRECISION_HINTS[precision],
        # One image at a time, so a second stream would only hold a second copy of the buffers.
        "NUM_STREAMS": 1,
    }
    if device != "CPU":
        return options
    # Every worker process would pin itself to the same first cores.
    return {**options, "INFERENCE_NUM_THREADS": n_threads, "ENABLE_CPU_PINNING": False}


def _compile(network: Network, options: dict[str, Any], device: str) -> Any:
    openvino = import_openvino()
    core = openvino.Core()
    _check_device(core, device)
    try:
        model = core.read_model(model=network.graph[XML_FILE], weights=network.graph[BIN_FILE])
        _check_shapes(network, model)
        compiled = core.compile_model(model, device, options)
    except RuntimeError as exc:  # the type OpenVINO raises for everything
        msg = f"network {network.name}: OpenVINO {openvino.__version__} cannot load it: {exc}"
        raise ModelLoadError(msg) from exc
    if network.precision == "bf16" and "BF16" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
        _log.warning("network %s asks for bf16, which this %s lacks: it may run in fp32", network.name, device)
    return compiled


def _check_device(core: Any, device: str) -> None:
    # "GPU.1" is one of several GPUs, "AUTO:GPU,CPU" a choice: only plain names are checked, the rest is OpenVINO's.
    if device.isalpha() and device != "AUTO" and device not in core.available_devices:
        msg = f"device: {device!r} is not on this machine, which has {', '.join(core.available_devices)}"
        raise SettingsError(msg)


def _check_shapes(network: Network, model: Any) -> None:
    found = [tuple(port.get_partial_shape().get_min_shape()) for port in (model.input(), model.output())]
    wanted = [(1, *network.input_shape), (1, *network.output_shape)]
    if found != wanted:
        msg = f"network {network.name}: input and output shapes are {found}, expected {wanted}"
        raise ModelLoadError(msg)
