"""How OpenVINO and Keras are imported: without telemetry, quietly, and each only where it is needed."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from schemas.errors import DependencyError, SettingsError
from schemas.extras import install_line

KERAS_BACKEND = "KERAS_BACKEND"


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry.

    ``import openvino`` reports itself to an analytics service and writes a client id to the home folder, unless
    ``openvino_telemetry`` cannot be imported. A hospital's stream must not, and it starts sooner without.

    Returns
    -------
    module
        ``openvino``.
    """
    # Restored afterwards: what else runs in this process decides for itself.
    blocked = not {"openvino", "openvino_telemetry"} & sys.modules.keys()
    if blocked:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino  # noqa: PLC0415 - only those who build or run a network pay for it
    finally:
        if blocked:
            sys.modules.pop("openvino_telemetry", None)
    return openvino


def keras_is_elsewhere() -> bool:
    """Tell whether this process has loaded Keras on another backend than OpenVINO; that cannot be undone."""
    keras = sys.modules.get("keras")
    return keras is not None and hasattr(keras, "backend") and keras.backend.backend() != "openvino"


def import_keras(backend: str = "openvino") -> ModuleType:
    """Import Keras on one backend, whatever the user's ``~/.keras/keras.json`` says.

    Parameters
    ----------
    backend : str
        ``"openvino"``, which builds and converts without TensorFlow, or ``"tensorflow"``.

    Returns
    -------
    module
        ``keras``.

    Raises
    ------
    DependencyError
        Keras, or the backend, is not installed.
    SettingsError
        This process has loaded Keras on another backend.
    """
    if backend == "openvino":
        import_openvino()  # first, because Keras would import it with its telemetry
    # Keras looks for TensorFlow on any backend, and where it is installed it tells of the CPU on the terminal.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _environment(KERAS_BACKEND, backend):  # Keras reads it once, when it is imported
        try:
            import keras  # noqa: PLC0415 - the optional extra, and only for building
        except ImportError as exc:
            line = install_line("train" if backend == "openvino" else "tensorflow")
            msg = f"Keras with {backend} is missing ({exc}): {line}"
            raise DependencyError(msg) from exc
    if keras.backend.backend() != backend:
        found = keras.backend.backend()
        msg = f"Keras is already loaded with backend {found!r}, expected {backend!r}: use a new process"
        raise SettingsError(msg)
    return keras


@contextmanager
def image_layout(keras: Any, data_format: str) -> Iterator[None]:
    """Build in one layout, ``"channels_first"`` or ``"channels_last"``; weights and results are the same in both.

    OpenVINO computes in channels-first. Keras puts a transposition around every convolution and batch normalisation of
    a channels-last model, and OpenVINO then cannot fuse them: measured on one core, EfficientNetLite0 takes 13.4 ms an
    image instead of 6.8, InceptionV3 67 instead of 58.
    """
    before = keras.config.image_data_format()
    keras.config.set_image_data_format(data_format)
    try:
        yield
    finally:
        keras.config.set_image_data_format(before)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
