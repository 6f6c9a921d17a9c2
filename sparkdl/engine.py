"""Runs a converted network with OpenVINO: one image in, one feature vector out.

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
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import ModelLoadError, SettingsError
from sparkdl.networks import Network, import_openvino

_log = logging.getLogger(__name__)

_PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16"}

# Two, because a promoted model replaces another one while micro-batches of both are in flight; more would keep
# hundreds of MB of dead networks in a long-lived worker.
_MAX_ENGINES = 2

_GRAY, _BGR, _BGRA = 1, 3, 4


class Engine:
    """A network compiled for this machine, ready to turn pixels into features.

    Calls from several threads are safe; they wait for each other. Throughput comes from several processes (Spark's
    Python workers) of ``n_threads`` each, not from threads in one.

    Parameters
    ----------
    network : Network
        The converted network; it can be let go afterwards, the engine keeps its own copy.
    n_threads : int
        CPU threads one inference uses.
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
        self.name = network.name
        self.input_size = network.input_size
        self.n_features = network.n_features
        self.precision = network.precision
        options = _compile_options(network.precision, n_threads)
        self._request = _compile(network, options, device).create_infer_request()
        self._lock = threading.Lock()

    def infer(self, pixels_bgr: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Compute the features of one image.

        Parameters
        ----------
        pixels_bgr : numpy.ndarray
            uint8, shape (height, width, 3) in BGR order, or gray as (height, width) or (height, width, 1), or BGRA
            as (height, width, 4), whose alpha is dropped. Height and width are ``input_size``.

        Returns
        -------
        numpy.ndarray
            float32, shape (n_features,); the caller's own copy. The same pixels give the same bytes, on one machine
            and OpenVINO version, whatever was inferred before.

        Raises
        ------
        TypeError
            The pixels are not uint8.
        ValueError
            The shape is not one of those above.
        """
        image = to_bgr(pixels_bgr, self.input_size)
        with self._lock:
            # Copied into the request's own buffer: image rows are views of read-only bytes, which it cannot share.
            self._request.get_input_tensor().data[0] = image
            self._request.infer()
            # The request reuses its output buffer for the next image, so a view into it would change under the caller.
            features: npt.NDArray[np.float32] = np.array(self._request.get_output_tensor().data[0], np.float32)
        return features


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
    if image.ndim != len(size) + 1 or image.shape[:2] != size or image.shape[2] not in (_GRAY, _BGR, _BGRA):
        msg = f"pixels: shape is {pixels.shape}, expected {size} with 1, 3 or 4 channels"
        raise ValueError(msg)
    bgr = np.broadcast_to(image, (*size, _BGR)) if image.shape[2] == _GRAY else image[..., :_BGR]
    return np.ascontiguousarray(bgr)


def load_engine(network: Network, *, n_threads: int = 1) -> Engine:
    """Return this process's engine for a network, compiling it on the first call.

    Compiling takes about a second, so the engine stays. The most recent two networks are kept.

    Parameters
    ----------
    network : Network
        Known by its content (``network.sha256``) and precision, not by identity.
    n_threads : int
        CPU threads one inference uses.

    Returns
    -------
    Engine
        The same object for the same arguments, from any thread.

    Raises
    ------
    SettingsError, ModelLoadError
        As :class:`Engine`; also when this process was forked from one that had already loaded an engine.
    """
    return find_engine(network.sha256, network.precision, lambda: network, n_threads=n_threads)


def find_engine(sha256: str, precision: str, load: Callable[[], Network], *, n_threads: int = 1) -> Engine:
    """Return this process's engine for a network, loading the network only where the engine is not there.

    Spark calls this for every task. A network is up to 500 MB: reading it each time, only to find that its engine is
    there already, cost a third of a second of every task with InceptionV3.

    Parameters
    ----------
    sha256, precision : str
        Of the network.
    load : callable
        Gives the network.
    n_threads : int
        CPU threads one inference uses.

    Returns
    -------
    Engine
        See `load_engine`.

    Raises
    ------
    SettingsError, ModelLoadError
        See `load_engine`.
    """
    key = (sha256, precision, n_threads)
    _cache.check_process()
    with _cache.lock:
        engine = _cache.engines.pop(key, None) or Engine(load(), n_threads=n_threads)
        _cache.engines[key] = engine  # last in = most recently used
        while len(_cache.engines) > _MAX_ENGINES:
            _cache.engines.popitem(last=False)
    return engine


class _Cache:
    """The engines of this process, oldest use first, and the lock that makes one thread compile and others wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.engines: OrderedDict[tuple[str, str, int], Engine] = OrderedDict()
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


def _compile_options(precision: str, n_threads: int) -> dict[str, Any]:
    if precision not in _PRECISION_HINTS:
        msg = f"precision: {precision!r}, expected one of {', '.join(_PRECISION_HINTS)}"
        raise SettingsError(msg)
    if n_threads < 1:
        msg = f"n_threads: {n_threads}, expected 1 or more"
        raise SettingsError(msg)
    return {
        "INFERENCE_PRECISION_HINT": _PRECISION_HINTS[precision],
        "INFERENCE_NUM_THREADS": n_threads,
        # One image at a time, so a second stream would only hold a second copy of the buffers.
        "NUM_STREAMS": 1,
        # Every worker process would pin itself to the same first cores.
        "ENABLE_CPU_PINNING": False,
    }


def _compile(network: Network, options: dict[str, Any], device: str) -> Any:
    openvino = import_openvino()
    core = openvino.Core()
    try:
        model = core.read_model(model=network.xml, weights=network.bin)
        _check_shapes(network, model)
        compiled = core.compile_model(model, device, options)
    except RuntimeError as exc:  # the type OpenVINO raises for everything
        msg = f"network {network.name}: OpenVINO {openvino.__version__} cannot load it: {exc}"
        raise ModelLoadError(msg) from exc
    if network.precision == "bf16" and "BF16" not in core.get_property(device, "OPTIMIZATION_CAPABILITIES"):
        _log.warning("network %s asks for bf16, which this %s lacks: it may run in fp32", network.name, device)
    return compiled


def _check_shapes(network: Network, model: Any) -> None:
    found = [tuple(port.get_partial_shape().get_min_shape()) for port in (model.input(), model.output())]
    wanted = [(1, *network.input_size, _BGR), (1, network.n_features)]
    if found != wanted:
        msg = f"network {network.name}: input and output shapes are {found}, expected {wanted}"
        raise ModelLoadError(msg)
