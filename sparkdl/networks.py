"""The pretrained networks: what each one is, how it is built and converted, and the converted network itself.

Building needs the ``train`` extra (Keras) and happens once, at training time. The result is a :class:`Network`: an
OpenVINO model as bytes that takes a Spark image row's pixels as they are (uint8, BGR) and gives features; everything
between, Keras's own preprocessing too, is in the graph. Serving needs nothing else, and importing this module loads
neither Keras nor OpenVINO.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Literal

from schemas.errors import DependencyError, ModelLoadError, SettingsError
from sparkdl.lite0 import build_lite0, load_imagenet_weights
from sparkdl.weights import fill_random, load_keras_file, weights_sha256

MANIFEST_FILE = "network.json"
XML_FILE = "network.xml"
BIN_FILE = "network.bin"
MANIFEST_FORMAT = 1

POOLINGS = ("avg", "none")
PRECISIONS = ("fp32", "bf16")

_KERAS_BACKEND = "KERAS_BACKEND"

# (mean, scale) of (x - mean) / scale, from keras.applications.imagenet_utils.preprocess_input; "caffe" in BGR order.
_MEAN_SCALE: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = MappingProxyType(
    {
        "tf": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        "caffe": ((103.939, 116.779, 123.68), (1.0, 1.0, 1.0)),
        "lite": ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
    }
)


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
        Length of the average-pooled features.
    preprocessing : str
        ``"tf"`` is RGB to [-1, 1], ``"caffe"`` is BGR minus ImageNet's means, ``"lite"`` is RGB as (x - 127) / 128.
    random_gain : float
        Variance gain of random kernels. 2 suits a ReLU after each convolution; networks whose shortcuts add up
        unbounded activations get 1, or their features grow by a factor of 300 (ResNet50) to 180,000 (Xception).
    """

    name: str
    input_size: tuple[int, int]
    n_features: int
    preprocessing: Literal["tf", "caffe", "lite"]
    random_gain: float = 2.0


NETWORKS: Mapping[str, NetworkSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            NetworkSpec("EfficientNetLite0", (224, 224), 1280, "lite"),
            NetworkSpec("InceptionV3", (299, 299), 2048, "tf"),
            NetworkSpec("ResNet50", (224, 224), 2048, "caffe", random_gain=1.0),
            NetworkSpec("VGG16", (224, 224), 512, "caffe"),
            NetworkSpec("VGG19", (224, 224), 512, "caffe"),
            NetworkSpec("Xception", (299, 299), 2048, "tf", random_gain=1.0),
        )
    }
)


@dataclass(frozen=True)
class Network:
    """A converted network, self-contained: what a saved model carries and an engine runs.

    The graph's input is uint8 [1, height, width, 3] in BGR order, its output float32 [1, n_features].

    Parameters
    ----------
    name : str
        The architecture, a key of ``NETWORKS``.
    xml, bin : bytes
        OpenVINO's graph and its fp32 weights.
    input_size : tuple of int
        (height, width) in pixels.
    n_features : int
        Length of the feature vector.
    weights : str
        How the weights were asked for: ``"imagenet"``, ``"random"`` or a path.
    weights_sha256 : str
        SHA-256 over the values of the weights, the same for the same values in whatever file format.
    precision : str
        ``"fp32"`` or ``"bf16"``: what the engine computes in. The stored weights are fp32 either way.
    pooling : str
        ``"avg"`` or ``"none"``.
    """

    name: str
    xml: bytes = field(repr=False)
    bin: bytes = field(repr=False)
    input_size: tuple[int, int]
    n_features: int
    weights: str
    weights_sha256: str
    precision: str
    pooling: str

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over ``xml`` and ``bin``: the same for two builds of the same thing with the same versions."""
        digest = hashlib.sha256(self.xml)
        digest.update(self.bin)
        return digest.hexdigest()

    def to_files(self) -> dict[str, bytes]:
        """Give the files that hold this network.

        Returns
        -------
        dict
            File name to content: the graph, its weights, and ``network.json`` with every other field and the
            SHA-256 of both.
        """
        content = {XML_FILE: self.xml, BIN_FILE: self.bin}
        manifest = {
            "format": MANIFEST_FORMAT,
            **{name: getattr(self, name) for name in _MANIFEST_FIELDS},
            "files": {name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
        }
        return {MANIFEST_FILE: (json.dumps(manifest, indent=2) + "\n").encode(), **content}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> "Network":
        """Read a network back from the files of :meth:`to_files`.

        Parameters
        ----------
        files : mapping
            File name to content.

        Returns
        -------
        Network
            Equal to the one that was written.

        Raises
        ------
        ModelLoadError
            A file is missing, the manifest is unreadable or of another format, or a file is not what its hash says.
        """
        manifest = _read_manifest(files)
        for name in (XML_FILE, BIN_FILE):
            _check_sha256(name, _file(files, name), manifest["files"].get(name))
        kept = {name: manifest[name] for name in _MANIFEST_FIELDS} | {"input_size": tuple(manifest["input_size"])}
        return cls(xml=files[XML_FILE], bin=files[BIN_FILE], **kept)


_MANIFEST_FIELDS = tuple(item.name for item in fields(Network) if item.name not in ("xml", "bin"))


def _file(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        msg = f"saved network: {name} is missing, found {', '.join(sorted(files)) or 'no files'}"
        raise ModelLoadError(msg)
    return files[name]


def _read_manifest(files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        manifest = json.loads(_file(files, MANIFEST_FILE))
    except ValueError as exc:  # also covers bytes that are not UTF-8
        msg = f"saved network: {MANIFEST_FILE} is not JSON: {exc}"
        raise ModelLoadError(msg) from exc
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != MANIFEST_FORMAT:
        msg = f"saved network: {MANIFEST_FILE} has format {found!r}, expected {MANIFEST_FORMAT}"
        raise ModelLoadError(msg)
    missing = {*_MANIFEST_FIELDS, "files"} - manifest.keys()
    if missing or not isinstance(manifest["files"], dict):
        msg = f"saved network: {MANIFEST_FILE} lacks {', '.join(sorted(missing)) or 'hashes'}"
        raise ModelLoadError(msg)
    return dict(manifest)


def _check_sha256(name: str, data: bytes, wanted: object) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != wanted:
        msg = f"saved network: {name} has SHA-256 {found}, expected {wanted}: damaged or changed after it was saved"
        raise ModelLoadError(msg)


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
    return openvino  # type: ignore[no-any-return]


def build_network(
    name: str, *, weights: str = "default", pooling: str = "avg", precision: str = "fp32", seed: int = 0
) -> Network:
    """Build a feature extractor with Keras and convert it to OpenVINO.

    Takes one to three seconds, and a download where ``"imagenet"`` is asked for the first time.

    Parameters
    ----------
    name : str
        A key of ``NETWORKS``.
    weights : str
        ``"imagenet"``: Keras downloads and caches them; EfficientNetLite0's come with the ``train`` extra.
        ``"random"``: seeded, for tests. Otherwise the path of a Keras weights or model file of this architecture.
        ``"default"`` is ``"imagenet"``.
    pooling : str
        ``"avg"`` gives one value per channel; ``"none"`` flattens the last feature map, height by width by channels.
    precision : str
        ``"fp32"``, or ``"bf16"``: twice as fast where the CPU has it; a hint to the engine, the graph is the same.
    seed : int
        For ``"random"``.

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
    _check_choice("modelName", name, NETWORKS)
    _check_choice("pooling", pooling, POOLINGS)
    _check_choice("precision", precision, PRECISIONS)
    spec = NETWORKS[name]
    weights = "imagenet" if weights == "default" else weights
    keras = _import_keras()
    with _channels_first(keras):
        model = _build_model(keras, spec, weights, seed)
        features = _pool(keras, model, pooling)
    xml, data = _convert(spec, features)
    return Network(
        name=name,
        xml=xml,
        bin=data,
        input_size=spec.input_size,
        n_features=features.output_shape[-1],
        weights=weights,
        weights_sha256=weights_sha256(model),
        precision=precision,
        pooling=pooling,
    )


def _check_choice(setting: str, found: str, choices: Collection[str]) -> None:
    if found not in choices:
        msg = f"{setting}: {found!r}, expected one of {', '.join(choices)}"
        raise SettingsError(msg)


def _import_keras() -> ModuleType:
    """Import Keras on its OpenVINO backend, which needs no TensorFlow."""
    import_openvino()  # first, because Keras would import it with its telemetry
    # Keras reads this once, when it is imported, and prefers it to the user's ~/.keras/keras.json.
    before = os.environ.get(_KERAS_BACKEND)
    os.environ[_KERAS_BACKEND] = "openvino"
    try:
        import keras  # noqa: PLC0415 - the optional extra, and only for building
    except ImportError as exc:
        msg = f'building a network needs Keras ({exc}): pip install "xray-stream[train]"'
        raise DependencyError(msg) from exc
    finally:
        _set_environment(_KERAS_BACKEND, before)
    if keras.backend.backend() != "openvino":
        msg = (
            f"Keras is already loaded with backend {keras.backend.backend()!r}, expected 'openvino': use a new process"
        )
        raise SettingsError(msg)
    return keras  # type: ignore[no-any-return]


@contextmanager
def _channels_first(keras: Any) -> Iterator[None]:
    """Build in the layout OpenVINO computes in; weights and results are the same in both.

    Keras puts a transposition around every convolution and batch normalisation of a channels-last model, and OpenVINO
    then cannot fuse them: measured on one core, EfficientNetLite0 takes 13.4 ms an image instead of 6.8,
    InceptionV3 67 instead of 58.
    """
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        yield
    finally:
        keras.config.set_image_data_format(before)


def _set_environment(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _build_model(keras: Any, spec: NetworkSpec, weights: str, seed: int) -> Any:
    """Build the network without its head, the weights filled in."""
    if weights == "imagenet":
        return _build_imagenet(keras, spec)
    model = _architecture(keras, spec)
    if weights == "random":
        fill_random(model, seed=seed, gain=spec.random_gain)
    else:
        load_keras_file(model, Path(weights), with_top=lambda: _architecture(keras, spec, include_top=True))
    return model


def _architecture(keras: Any, spec: NetworkSpec, *, include_top: bool = False, weights: str | None = None) -> Any:
    if spec.preprocessing == "lite":
        return build_lite0(keras, include_top=include_top)
    build = getattr(keras.applications, spec.name)
    return build(include_top=include_top, weights=weights, input_shape=(3, *spec.input_size))


def _build_imagenet(keras: Any, spec: NetworkSpec) -> Any:
    if spec.preprocessing == "lite":
        model = _architecture(keras, spec)
        load_imagenet_weights(model)
        return model
    try:
        with redirect_stdout(sys.stderr):  # the download's progress bar must not mix with a command's --json output
            return _architecture(keras, spec, weights="imagenet")
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


def _pool(keras: Any, model: Any, pooling: str) -> Any:
    # Flatten gives height x width x channels in either layout.
    layer = keras.layers.GlobalAveragePooling2D() if pooling == "avg" else keras.layers.Flatten()
    return keras.Model(model.input, layer(model.output))


def _convert(spec: NetworkSpec, model: Any) -> tuple[bytes, bytes]:
    """Convert a Keras model to OpenVINO's two files, with preprocessing in the graph."""
    openvino = import_openvino()
    with tempfile.TemporaryDirectory(prefix="xray-network-") as folder:
        exported, xml, data = (Path(folder) / name for name in ("keras.xml", XML_FILE, BIN_FILE))
        model.export(str(exported), format="openvino", verbose=False)
        graph = openvino.Core().read_model(exported)
        graph.reshape([1, 3, *spec.input_size])  # batch 1: see sparkdl.engine
        graph = _add_preprocessing(openvino, spec, graph)
        _normalize_names(spec, graph)
        # serialize() writes weights as they are; save_model() would make them fp16.
        openvino.serialize(graph, str(xml), str(data))
        return xml.read_bytes(), data.read_bytes()


def _add_preprocessing(openvino: ModuleType, spec: NetworkSpec, graph: Any) -> Any:
    """Make the graph take a Spark image row's pixels: uint8, height x width x BGR."""
    preprocess = openvino.preprocess
    steps = preprocess.PrePostProcessor(graph)
    tensor = steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    tensor.set_color_format(preprocess.ColorFormat.BGR)
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    order = steps.input().preprocess().convert_element_type(openvino.Type.f32)
    if spec.preprocessing != "caffe":  # those networks were trained on BGR
        order = order.convert_color(preprocess.ColorFormat.RGB)
    mean, scale = _MEAN_SCALE[spec.preprocessing]
    order.mean(list(mean)).scale(list(scale))
    return steps.build()


def _normalize_names(spec: NetworkSpec, graph: Any) -> None:
    """Name nodes by type and place: Keras and OpenVINO count names up per process, so two builds would differ."""
    for place, node in enumerate(graph.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{place}")
        info = node.get_rt_info()
        for key in [key for key in info.keys() if key.startswith("fused_names")]:
            del info[key]
    graph.set_friendly_name(spec.name)
    graph.input().tensor.set_names({"image"})
    graph.output().tensor.set_names({"features"})
