"""Runs a converted network: one image in, one feature vector out.

This is the serving side. It reads only the converted network that a saved model carries; it never downloads, never
imports Keras and never talks on the terminal.

Batch size is always 1. Measured on CPU, two processes of one thread each and runs interleaved, a batch of 1 is as fast
as or faster than 4 to 16 for each image (InceptionV3 equal in fp32 and bf16; EfficientNetLite0 in fp32 180 against 160
images a second and core), because the layers' activations then stay in the cache. It also makes a result independent of
an image's neighbours in the batch, so the same image always gives the same bytes, however Spark cuts its batches.
"""

import logging
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import ModelLoadError, SettingsError
from sparkdl.engine.base import prepare_input
from sparkdl.network.backends import import_openvino
from sparkdl.network.base import BIN_FILE, XML_FILE, Network

_log = logging.getLogger(__name__)

# What the operations compute in that are not int8 already.
_PRECISION_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVinoEngine:
    """A network compiled for this machine, ready to turn pixels into features.

    Calls from several threads are safe; they wait for each other. Throughput comes from several processes (Spark's
    Python workers) of ``n_threads`` each, not from threads in one.

    Parameters
    ----------
    network : Network
        The converted network. The engine maps its files where they lie in a folder, and else keeps its own copy of the
        weights; of ``network`` it keeps all but the files.
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
        options = compile_options(network.precision, n_threads, device)
        self._request = _compile(network, options, device).create_infer_request()
        self.network = replace(network, graph={}, folder=None)
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


def compile_options(precision: str, n_threads: int, device: str) -> dict[str, Any]:
    """Choose OpenVINO's options for a precision; they never change a result between two runs."""
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
        model = core.read_model(model=network.find_file(XML_FILE), weights=network.find_file(BIN_FILE))
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
