"""Converted networks against Keras's own results, and the files they are kept in."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest

from schemas.errors import DependencyError, ModelLoadError, SettingsError
from schemas.extras import install_line
from sparkdl.engine.openvino import OpenVinoEngine
from sparkdl.network import backends, lite0
from sparkdl.network.base import BIN_FILE, XML_FILE, Network
from sparkdl.network.catalog import NETWORKS, build_network
from sparkdl.network.weights import fill_random
from tests.paths import ROOT

MODULES = {
    "InceptionV3": "inception_v3",
    "ResNet50": "resnet50",
    "Xception": "xception",
    "VGG16": "vgg16",
    "VGG19": "vgg19",
}
# What sparkdl 1.x gave; EfficientNetLite0 is new here.
SPARKDL_FEATURES = {
    "EfficientNetLite0": 7 * 7 * 1280,
    "InceptionV3": 131_072,
    "ResNet50": 2048,
    "Xception": 204_800,
    "VGG16": 25_088,
    "VGG19": 25_088,
}
# Gains that keep these networks' features near 1, as trained ones are: an absolute difference says little of hundreds.
REFERENCE_GAIN = {"ResNet50": 0.5, "VGG16": 1.2, "VGG19": 1.2}

# Keras's own, under NumPy 2.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def small_only(*names: str) -> list[Any]:
    """Networks as cases; only EfficientNetLite0, the smallest, is quick to build."""
    return [name if name == "EfficientNetLite0" else pytest.param(name, marks=pytest.mark.long) for name in names]


@cache
def built(name: str, weights: str = "random", pooling: str = "avg") -> Network:
    return build_network(name, weights=weights, pooling=pooling)


def image_of(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A picture with structure, channels unlike each other and the two axes unlike each other."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width] / height
    waves = [np.sin(20 * x + 3 * y), np.cos(7 * y * x), np.sin(30 * y) * x]
    noise = np.random.default_rng(seed).normal(0, 20, (height, width, 3))
    offsets = np.array([60, 120, 190])
    return np.clip(np.stack(waves, axis=-1) * 60 + offsets + noise, 0, 255).astype(np.uint8)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# ---- files ----


@pytest.fixture
def network() -> Network:
    return Network(
        name="InceptionV3",
        engine="openvino",
        graph={XML_FILE: b"<net/>", BIN_FILE: bytes(range(256))},
        input_shape=(299, 298, 3),
        input_type="uint8",
        output_shape=(2048,),
        weights="imagenet",
        weights_sha256="ab" * 32,
        precision="bf16",
        pooling="avg",
    )


def test_files_round_trip(network: Network) -> None:
    files = network.to_files()
    assert set(files) == {"network.json", "network.xml", "network.bin"}
    assert Network.from_files(files) == network
    assert Network.from_files(files).sha256 == network.sha256
    assert "graph" not in repr(network), "a log line must not carry 90 MB"


@pytest.mark.parametrize("name", ["network.xml", "network.bin"])
def test_a_changed_file_is_refused(network: Network, name: str) -> None:
    files = network.to_files()
    wanted = json.loads(files["network.json"])["files"][name]
    files[name] = files[name][:-1] + b"\x00"
    with pytest.raises(ModelLoadError, match=rf"{name} has SHA-256 [0-9a-f]{{64}}, expected {wanted}"):
        Network.from_files(files)


@pytest.mark.parametrize("name", ["network.json", "network.xml", "network.bin"])
def test_a_missing_file_is_named(network: Network, name: str) -> None:
    files = network.to_files()
    del files[name]
    with pytest.raises(ModelLoadError, match=f"{name} is missing, found network"):
        Network.from_files(files)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (b"\xff\xfe{", "is not JSON"),
        (b"[1]", "has format None, expected 1 or 2"),
        (b'{"format": 3}', "has format 3, expected 1 or 2"),
        (b'{"format": 1, "name": "x"}', "lacks files, input_shape, output_shape, pooling"),
        (b'{"format": 2, "name": "x"}', "lacks engine, files, input_shape, input_type, output_shape, pooling"),
    ],
)
def test_a_bad_manifest_is_refused(network: Network, manifest: bytes, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        Network.from_files(network.to_files() | {"network.json": manifest})


# ---- choices ----


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "inceptionv3"}, "modelName: 'inceptionv3', expected one of EfficientNetLite0, InceptionV3, ResNet50"),
        ({"pooling": "max"}, "pooling: 'max', expected one of avg, none"),
        ({"precision": "int8"}, "precision: 'int8', expected one of fp32, bf16"),
    ],
)
def test_an_unknown_choice_names_the_known_ones(choice: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build_network(**({"name": "InceptionV3", "weights": "random"} | choice))


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(DependencyError, match=re.escape(install_line("train"))):
        build_network("ResNet50", weights="random")


@pytest.mark.long
@pytest.mark.train
def test_keras_on_another_backend_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = built("EfficientNetLite0")
    monkeypatch.setattr(backends.import_keras().backend, "backend", lambda: "tensorflow")
    with pytest.raises(SettingsError, match="backend 'tensorflow', expected 'openvino'"):
        backends.import_keras()
    # Built in a process of its own instead: the very same bytes, and the very same errors.
    assert build_network("EfficientNetLite0", weights="random") == wanted
    with pytest.raises(SettingsError, match=r"none\.h5 is not a file"):
        build_network("EfficientNetLite0", weights="none.h5")


# ---- weights ----


@pytest.mark.train
@pytest.mark.parametrize(("name", "found"), [("none.weights.h5", "is not a file"), ("a.pth", "is not a Keras file")])
def test_a_path_that_is_no_keras_file(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "a.pth").write_bytes(b"x")
    with pytest.raises(
        SettingsError, match=f"{name} {found}, expected 'imagenet', 'random' or a path ending in .keras"
    ):
        build_network("VGG16", weights=str(tmp_path / name))


@pytest.mark.train
@pytest.mark.parametrize("name", ["damaged.weights.h5", "damaged.h5", "damaged.keras"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ModelLoadError, match=f"{name}: does not fit"):
        build_network("EfficientNetLite0", weights=str(tmp_path / name))


@pytest.mark.train
@pytest.mark.parametrize(
    ("suffix", "include_top"),
    [
        pytest.param(".keras", True, marks=pytest.mark.slow),
        *[
            pytest.param(*other, marks=pytest.mark.long)
            for other in ((".keras", False), (".weights.h5", True), (".h5", False), (".h5", True))
        ],
    ],
)
def test_every_keras_format_gives_the_same_network(tmp_path: Path, suffix: str, include_top: bool) -> None:
    keras = backends.import_keras()
    model = lite0.build_lite0(keras, include_top=include_top)
    lite0.load_imagenet_weights(model)
    path = tmp_path / f"lite{suffix}"
    model.save_weights(path) if suffix == ".weights.h5" else model.save(path)
    found = build_network("EfficientNetLite0", weights=str(path))
    assert found.weights == str(path)
    assert found.weights_sha256 == built("EfficientNetLite0", "imagenet").weights_sha256
    assert found.sha256 == built("EfficientNetLite0", "imagenet").sha256


@pytest.mark.train
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_another_architectures_file_is_refused(tmp_path: Path, suffix: str) -> None:
    keras = backends.import_keras()
    path = tmp_path / f"other{suffix}"
    # It begins as EfficientNetLite0 does; Keras alone would load that much and warn.
    inputs = keras.layers.Input((224, 224, 3))
    other = keras.Model(inputs, keras.layers.Conv2D(32, 3, use_bias=False)(inputs))
    other.save_weights(path) if suffix == ".weights.h5" else other.save(path)
    with pytest.raises(ModelLoadError, match=r"(?s)does not fit EfficientNetLite0: .*; nor with its 1000-class head: "):
        build_network("EfficientNetLite0", weights=str(path))


@pytest.mark.train
def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = lite0.build_lite0(backends.import_keras())
    lite0.load_imagenet_weights(model)
    model.get_layer("_conv_stem").set_weights([np.full((3, 3, 3, 32), np.inf, np.float32)])
    model.save_weights(tmp_path / "inf.weights.h5")
    with pytest.raises(ModelLoadError, match="_conv_stem/kernel is not in the file, or holds values that are not fin"):
        build_network("EfficientNetLite0", weights=str(tmp_path / "inf.weights.h5"))


@pytest.mark.train
def test_imagenet_without_a_network_names_the_ways_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backends.import_keras()
    from keras.src.utils import file_utils  # noqa: PLC0415

    def no_network(*_: Any) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(file_utils, "urlretrieve", no_network)
    monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))
    with pytest.raises(DependencyError, match=r"path of a Keras file, or use EfficientNetLite0.*weights='random'"):
        build_network("ResNet50", weights="imagenet")


@pytest.mark.train
def test_random_weights_follow_their_seed() -> None:
    first, same, other = (build_network("EfficientNetLite0", weights="random", seed=seed) for seed in (3, 3, 4))
    assert first.graph == same.graph
    assert first.weights_sha256 == same.weights_sha256 != other.weights_sha256
    assert first.sha256 != other.sha256


BUILD = """
from sparkdl.network.catalog import build_network
build_network("VGG16", weights="random")  # moves the counters that Keras and OpenVINO name things by
print(build_network("EfficientNetLite0").sha256)
"""


@pytest.mark.long
@pytest.mark.train
def test_another_process_builds_the_same_bytes_in_silence() -> None:
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [built("EfficientNetLite0", "imagenet").sha256]
    assert done.stderr == ""


@pytest.mark.train
def test_building_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    keras = backends.import_keras()
    before = keras.config.image_data_format()
    build_network("EfficientNetLite0")
    assert keras.config.image_data_format() == before
    assert "KERAS_BACKEND" not in os.environ


# ---- results ----


@pytest.mark.train
@pytest.mark.parametrize("name", small_only(*NETWORKS))
def test_every_network_gives_its_features(name: str) -> None:
    network = built(name)
    spec = NETWORKS[name]
    assert (network.name, network.input_size, network.n_features) == (name, spec.input_size, spec.n_features)
    one, two = (OpenVinoEngine(network, n_threads=2).infer(image_of(network.input_size, seed)) for seed in (1, 2))
    assert one.shape == (network.n_features,)
    # Random weights still have to tell images apart: alive, finite and of a sane size.
    assert 0.01 < one.std() < 1000
    assert (one > 0).mean() > 0.5
    assert not np.allclose(one, two)


@pytest.mark.train
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_folding_before_it_is_stored_changes_no_bit(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    folded = build_network("EfficientNetLite0", precision=precision)
    monkeypatch.setattr("sparkdl.network.conversion.fold_normalisations", lambda graph: None)
    plain = build_network("EfficientNetLite0", precision=precision)
    assert plain.sha256 != folded.sha256
    image = image_of(folded.input_size)
    assert OpenVinoEngine(folded).infer(image).tobytes() == OpenVinoEngine(plain).infer(image).tobytes()


@pytest.fixture
def keras_fp32(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keras whose `predict` computes in fp32: left alone, OpenVINO takes bf16 where the CPU has it."""
    keras, openvino = backends.import_keras(), backends.import_openvino()
    compile_model = openvino.compile_model

    def compile_fp32(model: Any, device: str) -> Any:
        return compile_model(model, device, {"INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino, "compile_model", compile_fp32)
    return keras


def reference_model(keras: Any, name: str) -> tuple[Any, Any]:
    """Keras's own network, channels last, and its own preprocessing of RGB."""
    if name == "EfficientNetLite0":
        model = lite0.build_lite0(keras)
        lite0.load_imagenet_weights(model)
        return model, lambda rgb: (rgb - 127) / 128
    module = getattr(keras.applications, MODULES[name])
    size = NETWORKS[name].input_size
    model = getattr(module, name)(weights=None, include_top=False, input_shape=(*size, 3))
    fill_random(model, seed=5, gain=REFERENCE_GAIN.get(name, NETWORKS[name].random_gain))
    rng = np.random.default_rng(6)
    for layer in model.layers:
        # Batch normalisation that does something, so that the order of its parts and its epsilon count.
        noise = [0.0 if value.ndim > 1 else rng.uniform(-0.1, 0.1, value.shape) for value in layer.get_weights()]
        layer.set_weights([value + step for value, step in zip(layer.get_weights(), noise, strict=True)])
    return model, module.preprocess_input


@pytest.mark.train
@pytest.mark.parametrize("name", small_only(*NETWORKS))
def test_features_are_what_keras_computes(name: str, keras_fp32: Any, tmp_path: Path) -> None:
    image = image_of(NETWORKS[name].input_size)
    model, preprocess = reference_model(keras_fp32, name)
    path = tmp_path / "reference.weights.h5"
    model.save_weights(path)
    maps = model.predict(preprocess(image[np.newaxis, ..., ::-1].astype(np.float32)), verbose=0)
    wanted = maps.mean(axis=(1, 2))[0]

    network = build_network(name, weights=str(path))
    found = OpenVinoEngine(network, n_threads=2).infer(image)
    assert np.abs(found - wanted).max() < 1e-3
    assert cosine(found, wanted) > 0.99999
    swapped = OpenVinoEngine(network, n_threads=2).infer(image[..., ::-1])
    assert np.abs(swapped - wanted).max() > 1e-2, "the order of channels must count"
    halved = OpenVinoEngine(dataclasses.replace(network, precision="bf16"), n_threads=2).infer(image)
    assert cosine(halved, wanted) > 0.999

    unpooled = build_network(name, weights=str(path), pooling="none")
    assert unpooled.n_features == NETWORKS[name].count_features("none") == SPARKDL_FEATURES[name]
    found = OpenVinoEngine(unpooled, n_threads=2).infer(image)
    # Height x width x channels, as Keras flattens; sparkdl's ResNet50 ended in its average pooling.
    flat = wanted if name == "ResNet50" else maps.ravel()
    assert np.abs(found - flat).max() < 1e-3


@pytest.mark.train
def test_imagenet_features_of_a_known_picture() -> None:
    # Recorded when the weights were checked with a photograph: the 1000-class head called a portrait in uniform
    # "military uniform", first of all classes. A slip in padding or normalisation moves these numbers.
    features = OpenVinoEngine(built("EfficientNetLite0", "imagenet")).infer(image_of((224, 224)))
    found = [features.mean(), features.std(), *features[[113, 824, 778]]]
    np.testing.assert_allclose(found, [0.07505, 0.35627, 4.7600, 3.7613, 3.6863], rtol=1e-2)
    assert features.argmax() == 113


@pytest.mark.train
def test_gray_equals_three_equal_channels() -> None:
    engine = OpenVinoEngine(built("EfficientNetLite0", "imagenet"))
    gray = image_of((224, 224))[..., :1]
    assert engine.infer(gray).tobytes() == engine.infer(np.repeat(gray, 3, axis=2)).tobytes()
