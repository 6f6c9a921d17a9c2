"""The same network in ONNX Runtime: exported by Keras itself, with the same weights and the same preprocessing inside.

Keras exports through TensorFlow and tf2onnx, so the extra ``onnx`` brings all of them.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

ONNX_PACKAGES = ("onnxruntime", "onnx", "tf2onnx", "tensorflow")

_EXPORT = """
import sys, keras, tensorflow
model = keras.saving.load_model(sys.argv[1], compile=False)
for batch, target in zip(sys.argv[2::2], sys.argv[3::2]):
    wanted = keras.InputSpec(shape=(int(batch), *model.input_shape[1:]), dtype="float32")
    model.export(target, format="onnx", verbose=False, input_signature=[wanted])
"""


def name_missing(*packages: str) -> str:
    """Say which packages are not installed, with the line that installs them; nothing where all are."""
    absent = [package for package in packages if find_spec(package) is None]
    names = {"tensorflow": "tensorflow-cpu"}
    return f"not installed: pip install {' '.join(names.get(name, name) for name in absent)}" if absent else ""


def export_onnx(model: Path, targets: Mapping[int, Path]) -> str:
    """Export a Keras file, in a process of its own, which has Keras on TensorFlow.

    Parameters
    ----------
    model : Path
        Of an image network, preprocessing inside: see `sparkdl.network.conversion.convert_to_keras`.
    targets : mapping of int to Path
        What to write, by how many images it takes at a time.

    Returns
    -------
    str
        The reason where it fails, else nothing.
    """
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    words = [text for batch, target in targets.items() for text in (str(batch), str(target))]
    command = [sys.executable, "-c", _EXPORT, str(model), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode == 0:
        return ""
    return f"cannot be exported: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"


def start_onnx(path: str) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    """Start ONNX Runtime with one thread.

    Parameters
    ----------
    path : str
        Of `export_onnx`.

    Returns
    -------
    callable
        Takes pixels (uint8, BGR) of so many images as were exported for, gives their features, a row each.
    """
    import onnxruntime  # noqa: PLC0415 - not always there

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def infer(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        (features,) = session.run(None, {name: pixels.astype(np.float32)})
        return np.asarray(features, np.float32)

    return infer
