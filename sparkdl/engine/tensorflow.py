"""Runs a network with TensorFlow: the reference to compare the fast engine with, and too slow to serve with."""

import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import DependencyError, ModelLoadError, SettingsError
from sparkdl.engine.base import prepare_input
from sparkdl.network.backends import import_keras
from sparkdl.network.base import KERAS_FILE, Network


class TensorFlowEngine:
    """A Keras file on TensorFlow.

    Parameters
    ----------
    network : Network
        Built with ``engine="tensorflow"``.
    n_threads : int
        CPU threads; TensorFlow takes the first engine's number for the whole process.

    Raises
    ------
    DependencyError
        TensorFlow is not installed, or this process has Keras loaded on another backend.
    ModelLoadError
        The file is not a model of the shapes that the network states.
    """

    def __init__(self, network: Network, *, n_threads: int = 1) -> None:
        keras, tensorflow = _import_tensorflow(n_threads)
        model = _read_model(keras, network)
        # Traced once: called as it is, Keras would go through every layer in Python for every image.
        self._call = tensorflow.function(lambda batch: model(batch, training=False))
        self._lock = threading.Lock()
        self.network = replace(network, graph={}, folder=None)

    def infer(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Compute the output of one image or one tensor; see `sparkdl.engine.openvino.OpenVinoEngine.infer`."""
        batch = prepare_input(self.network, values)[np.newaxis].astype(np.float32)
        with self._lock:
            output: npt.NDArray[np.float32] = np.array(self._call(batch), np.float32)
        return output.ravel()


def _import_tensorflow(n_threads: int) -> tuple[Any, Any]:
    try:
        keras = import_keras("tensorflow")
        import tensorflow  # noqa: PLC0415 - optional, and heavy
    except (ImportError, SettingsError) as exc:
        msg = f'engine "tensorflow": {exc}'
        raise DependencyError(msg) from exc
    try:
        tensorflow.config.threading.set_intra_op_parallelism_threads(n_threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        pass  # it has started, with the first engine's threads
    return keras, tensorflow


def _read_model(keras: Any, network: Network) -> Any:
    with tempfile.TemporaryDirectory(prefix="xray-network-") as folder:
        file = network.find_file(KERAS_FILE)
        path = file if isinstance(file, Path) else Path(folder) / KERAS_FILE
        if isinstance(file, bytes):
            path.write_bytes(file)
        try:
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        except (ValueError, TypeError, OSError) as exc:
            msg = f"network {network.name}: Keras {keras.__version__} cannot load it: {exc}"
            raise ModelLoadError(msg) from exc
    found = (tuple(model.input_shape[1:]), tuple(model.output_shape[1:]))
    if found != (network.input_shape, network.output_shape):
        wanted = (network.input_shape, network.output_shape)
        msg = f"network {network.name}: input and output shapes are {found}, expected {wanted}"
        raise ModelLoadError(msg)
    return model
