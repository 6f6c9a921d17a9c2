"""The pretrained networks: what each one is, and how it is built and converted.

Building needs the ``train`` extra (Keras) and happens once, at training time. The result is a `Network` that takes a
Spark image row's pixels as they are (uint8, BGR) and gives features; everything between, Keras's own preprocessing too,
is in the graph. Serving needs nothing else, and importing this module loads neither Keras nor OpenVINO.
"""

import sys
from collections.abc import Collection, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from schemas.errors import DependencyError, SettingsError
from sparkdl.network.apart import build_apart
from sparkdl.network.backends import image_layout, import_keras, keras_is_elsewhere
from sparkdl.network.base import GRAPH_FILES, Network
from sparkdl.network.conversion import Preprocessing, convert_to_keras, convert_to_openvino
from sparkdl.network.lite0 import build_lite0, load_imagenet_weights
from sparkdl.network.weights import fill_random, load_keras_file, weights_sha256

POOLINGS = ("avg", "none")
PRECISIONS = ("fp32", "bf16")
ENGINES = tuple(GRAPH_FILES)

_LITE0 = "EfficientNetLite0"

# From keras.applications.imagenet_utils.preprocess_input; "caffe" networks were trained on BGR.
_TF = Preprocessing(mean=(127.5, 127.5, 127.5), scale=(127.5, 127.5, 127.5))
_CAFFE = Preprocessing(rgb=False, mean=(103.939, 116.779, 123.68))
_LITE = Preprocessing(mean=(127.0, 127.0, 127.0), scale=(128.0, 128.0, 128.0))


@dataclass(frozen=True)
class NetworkSpec:
    """One architecture that can be built.

    Parameters
    ----------
    name : str
        Its name in ``modelName``; for Keras's own also the name in ``keras.applications``.
    input_size : tuple of int
        (height, width) in pixels.
    n_features : int
        Length of the average-pooled features: the channels of the last feature map.
    map_size : tuple of int
        (height, width) of the last feature map.
    preprocessing : Preprocessing
        Keras's own.
    random_gain : float
        Variance gain of random kernels. 2 suits a ReLU after each convolution; networks whose shortcuts add up
        unbounded activations get 1, or their features grow by a factor of 300 (ResNet50) to 180,000 (Xception).
    always_pooled : bool
        Whether ``pooling="none"`` averages too. The ResNet50 of sparkdl's time ended in its average pooling, so that
        sparkdl's features of it were 2,048.
    """

    name: str
    input_size: tuple[int, int]
    n_features: int
    map_size: tuple[int, int]
    preprocessing: Preprocessing
    random_gain: float = 2.0
    always_pooled: bool = False

    def count_features(self, pooling: str) -> int:
        """Return how many features an image gets with a pooling, ``"avg"`` or ``"none"``."""
        if pooling == "avg" or self.always_pooled:
            return self.n_features
        height, width = self.map_size
        return height * width * self.n_features


NETWORKS: Mapping[str, NetworkSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            NetworkSpec(_LITE0, (224, 224), 1280, (7, 7), _LITE),
            NetworkSpec("InceptionV3", (299, 299), 2048, (8, 8), _TF),
            NetworkSpec("ResNet50", (224, 224), 2048, (7, 7), _CAFFE, random_gain=1.0, always_pooled=True),
            NetworkSpec("VGG16", (224, 224), 512, (7, 7), _CAFFE),
            NetworkSpec("VGG19", (224, 224), 512, (7, 7), _CAFFE),
            NetworkSpec("Xception", (299, 299), 2048, (10, 10), _TF, random_gain=1.0),
        )
    }
)


def build_network(
    name: str,
    *,
    weights: str = "imagenet",
    pooling: str = "avg",
    precision: str = "fp32",
    seed: int = 0,
    engine: str = "openvino",
) -> Network:
    """Build a feature extractor with Keras and convert it for an engine.

    Takes one to three seconds, and a download where ``"imagenet"`` is asked for the first time.

    Parameters
    ----------
    name : str
        A key of ``NETWORKS``.
    weights : str
        ``"imagenet"``: Keras downloads and caches them; EfficientNetLite0's come with the ``train`` extra.
        ``"random"``: seeded, for tests. Otherwise the path of a Keras weights or model file of this architecture.
    pooling : str
        ``"avg"`` gives one value per channel; ``"none"`` flattens the last feature map, height by width by channels
        (but see ``NetworkSpec.always_pooled``).
    precision : str
        ``"fp32"``, or ``"bf16"``: twice as fast where the CPU has it; a hint to the engine, the graph is the same.
        For ``"int8"`` see `sparkdl.engine.quantize`.
    seed : int
        For ``"random"``.
    engine : str
        ``"openvino"``, or ``"tensorflow"``: the reference, in fp32 only.

    Returns
    -------
    Network
        With the same versions of Keras and OpenVINO, two builds of the same thing are the same bytes.

    Raises
    ------
    SettingsError
        A name or choice is unknown, or the path is no Keras file.
    DependencyError
        The ``train`` extra is missing, or the ImageNet weights are neither cached nor can be downloaded.
    ModelLoadError
        The weights do not fit, or are damaged.
    """
    _check_choice("pooling", pooling, POOLINGS)
    return _build(name, pooling, weights=weights, precision=precision, seed=seed, engine=engine)


def build_classifier(
    name: str, *, weights: str = "imagenet", precision: str = "fp32", seed: int = 0, engine: str = "openvino"
) -> Network:
    """Build a network with its head: the probabilities of ImageNet's 1000 classes.

    Parameters
    ----------
    name, weights, precision, seed, engine
        See `build_network`; a weights file must have the head.

    Returns
    -------
    Network
        Its output has shape (1000,), in the order of `sparkdl.network.imagenet.load_classes`.

    Raises
    ------
    SettingsError, DependencyError, ModelLoadError
        See `build_network`.
    """
    return _build(name, "classes", weights=weights, precision=precision, seed=seed, engine=engine)


def _build(name: str, pooling: str, *, weights: str, precision: str, seed: int, engine: str) -> Network:
    _check_choice("modelName", name, NETWORKS)
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("engine", engine, ENGINES)
    if (engine, precision) == ("tensorflow", "bf16"):
        msg = "engine 'tensorflow' is the fp32 reference; precision is 'bf16', expected 'fp32'"
        raise SettingsError(msg)
    if keras_is_elsewhere():
        arguments = {"weights": weights, "precision": precision, "seed": seed, "engine": engine}
        if pooling == "classes":
            return build_apart("sparkdl.network.catalog:build_classifier", name=name, **arguments)
        return build_apart("sparkdl.network.catalog:build_network", name=name, pooling=pooling, **arguments)
    spec = NETWORKS[name]
    keras = import_keras()
    with image_layout(keras, "channels_first" if engine == "openvino" else "channels_last"):
        model = _build_model(keras, spec, weights, seed, include_top=pooling == "classes")
        whole = _pool(keras, model, spec, pooling)
        graph = _convert(keras, whole, spec, engine)
    return Network(
        name=name,
        engine=engine,
        graph=graph,
        input_shape=(*spec.input_size, 3),
        input_type="uint8",
        output_shape=tuple(whole.output_shape[1:]),
        weights=weights,
        weights_sha256=weights_sha256(model),
        precision=precision,
        pooling=pooling,
    )


def _check_choice(setting: str, found: str, choices: Collection[str]) -> None:
    if found not in choices:
        msg = f"{setting}: {found!r}, expected one of {', '.join(choices)}"
        raise SettingsError(msg)


def _build_model(keras: Any, spec: NetworkSpec, weights: str, seed: int, *, include_top: bool) -> Any:
    """Build the network, the weights filled in."""
    if weights == "imagenet":
        return _build_imagenet(keras, spec, include_top=include_top)
    model = _architecture(keras, spec, include_top=include_top)
    if weights == "random":
        fill_random(model, seed=seed, gain=spec.random_gain)
    else:
        with_top = None if include_top else lambda: _architecture(keras, spec, include_top=True)
        load_keras_file(model, Path(weights), with_top=with_top)
    return model


def _architecture(keras: Any, spec: NetworkSpec, *, include_top: bool, weights: str | None = None) -> Any:
    if spec.name == _LITE0:
        return build_lite0(keras, include_top=include_top)
    first = keras.config.image_data_format() == "channels_first"
    shape = (3, *spec.input_size) if first else (*spec.input_size, 3)
    build = getattr(keras.applications, spec.name)
    return build(include_top=include_top, weights=weights, input_shape=shape)


def _build_imagenet(keras: Any, spec: NetworkSpec, *, include_top: bool) -> Any:
    if spec.name == _LITE0:
        model = _architecture(keras, spec, include_top=include_top)
        load_imagenet_weights(model)
        return model
    try:
        with redirect_stdout(sys.stderr):  # the download's progress bar must not mix with a command's --json output
            return _architecture(keras, spec, include_top=include_top, weights="imagenet")
    except Exception as exc:
        # Keras's downloader raises bare Exception; its text is the only mark of a failed download.
        if "URL fetch failure" not in str(exc):
            raise
        msg = (
            f"{spec.name}: the ImageNet weights are not in Keras's cache and cannot be downloaded ({exc}). "
            "Set weights to the path of a Keras file, or use EfficientNetLite0, whose ImageNet weights need no "
            "download, or weights='random' for a test"
        )
        raise DependencyError(msg) from exc


def _pool(keras: Any, model: Any, spec: NetworkSpec, pooling: str) -> Any:
    if pooling == "classes":
        return model
    average = pooling == "avg" or spec.always_pooled
    # Flatten gives height x width x channels in either layout.
    layer = keras.layers.GlobalAveragePooling2D() if average else keras.layers.Flatten()
    return keras.Model(model.input, layer(model.output), name=spec.name)


def _convert(keras: Any, model: Any, spec: NetworkSpec, engine: str) -> Mapping[str, bytes]:
    if engine == "openvino":
        return convert_to_openvino(model, preprocessing=spec.preprocessing)
    return convert_to_keras(keras, model, preprocessing=spec.preprocessing)
