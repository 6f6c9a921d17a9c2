"""A user's own Keras model as a `Network`. Reading it never runs code that comes with it."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from schemas.errors import ModelLoadError, SettingsError
from sparkdl.network.apart import build_apart
from sparkdl.network.backends import image_layout, import_keras, keras_is_elsewhere
from sparkdl.network.base import Network
from sparkdl.network.conversion import Preprocessing, convert_to_keras, convert_to_openvino
from sparkdl.network.weights import KERAS_SUFFIXES, weights_sha256

_IMAGE_NDIM = 3
_CHANNELS = (1, 3)


def convert_image_model(path: str, *, precision: str = "fp32", engine: str = "openvino") -> Network:
    """Convert a Keras model that takes images, so that it takes image rows.

    Parameters
    ----------
    path : str
        ``.keras`` or ``.h5``, a whole model: one input of shape (height, width, 3), RGB, values from 0 to 255.
    precision, engine
        See `sparkdl.network.catalog.build_network`.

    Returns
    -------
    Network
        Takes uint8 BGR; its ``output_shape`` is the model's.

    Raises
    ------
    SettingsError
        There is no such file, or the model takes something else.
    ModelLoadError
        The file is damaged, or would have to run code to be loaded.
    DependencyError
        The ``train`` extra is missing.
    """
    if keras_is_elsewhere():
        return build_apart(
            "sparkdl.network.kerasmodels:convert_image_model", path=path, precision=precision, engine=engine
        )
    keras = import_keras()
    model = load_keras_model(keras, path)
    if len(model.input_shape) != _IMAGE_NDIM + 1 or model.input_shape[-1] != _CHANNELS[-1]:
        msg = f"{path}: input has shape {model.input_shape[1:]}, wanted (height, width, 3)"
        raise SettingsError(msg)
    preprocessing = Preprocessing(rgb=True)
    if engine == "openvino":
        graph = convert_to_openvino(model, preprocessing=preprocessing, layout="NHWC")
    else:
        graph = dict(convert_to_keras(keras, model, preprocessing=preprocessing))
    return _describe(model, path, engine=engine, precision=precision, graph=graph, input_type="uint8")


def convert_tensor_model(path: str, *, precision: str = "fp32") -> Network:
    """Convert a Keras model that takes any one tensor.

    Parameters
    ----------
    path : str
        ``.keras`` or ``.h5``, a whole model with one input of fixed shape.
    precision : str
        ``"fp32"`` or ``"bf16"``.

    Returns
    -------
    Network
        Takes float32 of the model's shape, and leaves it as it is.

    Raises
    ------
    SettingsError, ModelLoadError, DependencyError
        See `convert_image_model`.
    """
    if keras_is_elsewhere():
        return build_apart("sparkdl.network.kerasmodels:convert_tensor_model", path=path, precision=precision)
    model = load_keras_model(import_keras(), path)
    graph = convert_to_openvino(model, preprocessing=None)
    return _describe(model, path, engine="openvino", precision=precision, graph=graph, input_type="float32")


def _describe(model: Any, path: str, *, input_type: str, **fields: Any) -> Network:
    return Network(
        name=model.name,
        input_shape=tuple(model.input_shape[1:]),
        input_type=input_type,
        output_shape=tuple(model.output_shape[1:]),
        weights=path,
        weights_sha256=weights_sha256(model),
        pooling="",
        **fields,
    )


def load_keras_model(keras: Any, path: str) -> Any:
    """Load a whole Keras model without running code that comes with it.

    Parameters
    ----------
    keras : module
        Keras.
    path : str
        See `convert_image_model`.

    Returns
    -------
    keras.Model
        With one input and one output of fixed shapes; not compiled.

    Raises
    ------
    SettingsError
        There is no such file, or the model has several inputs or outputs, or a dimension that is not fixed.
    ModelLoadError
        The file is damaged, holds a Lambda layer, or a layer that Keras does not know.
    """
    file = Path(path)
    if not file.is_file() and file.name.endswith(KERAS_SUFFIXES):
        msg = f"{path} is not there, wanted a Keras model file"
        raise SettingsError(msg)
    if not file.is_file() or not file.name.endswith(KERAS_SUFFIXES):
        msg = f"{path} is not a Keras model file, wanted a path ending in {' or '.join(KERAS_SUFFIXES)}"
        raise SettingsError(msg)
    try:
        # Channels-last, whatever the caller is in the middle of: a model's layers hold their own layout.
        with image_layout(keras, "channels_last"):
            # safe_mode: a Lambda layer is stored as Python byte code, and is refused.
            model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError, AttributeError, BadZipFile) as exc:
        msg = f"{path}: Keras {keras.__version__} does not load it as a whole model: {exc}"
        raise ModelLoadError(msg) from exc
    shapes = {"input": model.input_shape, "output": model.output_shape}
    for port, shape in shapes.items():
        if not isinstance(shape, tuple) or None in shape[1:]:
            msg = f"{path}: the {port} has shape {shape}, wanted one {port} with all dimensions but the first fixed"
            raise SettingsError(msg)
    return model
