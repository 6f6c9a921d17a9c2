"""Int8 networks against the fp32 ones they are made of."""

import dataclasses
import logging
import os
import re
import subprocess
import sys
import textwrap
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import DependencyError, SettingsError
from schemas.extras import install_line
from sparkdl.engine import quantize
from sparkdl.engine.cache import start_engine
from sparkdl.engine.quantize import MIN_IMAGES, quantize_network
from sparkdl.network.backends import import_openvino
from sparkdl.network.base import BIN_FILE, XML_FILE, Network
from sparkdl.network.catalog import build_network
from tests.paths import ROOT

SIZE = (40, 48)

needs_nncf = pytest.mark.skipif(find_spec("nncf") is None, reason="needs the int8 extra (NNCF)")
needs_keras = pytest.mark.skipif(find_spec("keras") is None, reason="needs the train extra (Keras)")


def images_of(size: tuple[int, int], count: int, *, first: int = 0) -> list[np.ndarray]:
    """Pictures with structure, each unlike the others, channels and axes unlike each other."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width] / height
    pictures = []
    for seed in range(first, first + count):
        a, b, c = np.random.default_rng(seed).uniform(2, 30, 3)
        waves = np.stack([np.sin(a * x + 3 * y), np.cos(b * y * x), np.sin(c * y) * x], axis=-1)
        noise = np.random.default_rng(seed).normal(0, 20, (height, width, 3))
        pictures.append(np.clip(waves * 60 + np.array([60, 120, 190]) + noise, 0, 255).astype(np.uint8))
    return pictures


@cache
def small_network() -> Network:
    """Two convolutions and a depthwise one, each with batch normalisation and ReLU6: what Lite0 is made of."""
    openvino = import_openvino()
    ops, rng = openvino.opset13, np.random.default_rng(7)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)

    def normalized(x: object, channels: int) -> object:
        gamma, variance = (rng.uniform(0.5, 2, channels).astype(np.float32) for _ in range(2))
        beta, mean = (rng.normal(0, 0.3, channels).astype(np.float32) for _ in range(2))
        return ops.clamp(ops.batch_norm_inference(x, gamma, beta, mean, variance, 1e-3), 0.0, 6.0)

    image = ops.parameter([1, *SIZE, 3], np.uint8)
    x = ops.transpose(ops.divide(ops.convert(image, "f32"), np.float32(64)), np.array([0, 3, 1, 2]))
    one = {"pads_begin": [1, 1], "pads_end": [1, 1], "dilations": [1, 1]}
    x = normalized(ops.convolution(x, normal(16, 3, 3, 3), strides=[2, 2], **one), 16)
    x = normalized(ops.group_convolution(x, normal(16, 1, 1, 3, 3), strides=[1, 1], **one), 16)
    x = normalized(ops.convolution(x, normal(96, 16, 3, 3), strides=[1, 1], **one), 96)
    graph = openvino.Model([ops.reduce_mean(x, np.array([2, 3]), keep_dims=False)], [image], "Small")
    return network_of(graph, "Small", SIZE, 96)


def network_of(graph: object, name: str, size: tuple[int, int], n_features: int) -> Network:
    openvino = import_openvino()
    return Network(
        name=name,
        engine="openvino",
        graph=quantize._serialize(openvino, graph),
        input_shape=(*size, 3),
        input_type="uint8",
        output_shape=(n_features,),
        weights="random",
        weights_sha256="0" * 64,
        precision="fp32",
        pooling="avg",
    )


@cache
def small_int8() -> Network:
    return quantize_network(small_network(), images_of(SIZE, 20))


@cache
def lite0() -> Network:
    return build_network("EfficientNetLite0")


@cache
def lite0_int8() -> Network:
    return quantize_network(lite0(), images_of((224, 224), 12))


def cosines(one: Network, two: Network, images: list[np.ndarray]) -> np.ndarray:
    engines = [start_engine(network, n_threads=1) for network in (one, two)]
    a, b = (np.stack([engine.infer(image) for image in images]).astype(np.float64) for engine in engines)
    return np.asarray((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


# ---- results ----


@needs_nncf
@pytest.mark.slow
def test_features_stay_close_to_those_in_fp32() -> None:
    found = cosines(small_network(), small_int8(), images_of(SIZE, 10, first=100))
    assert found.min() > 0.998
    assert found.max() < 1, "it must not be the same network"


@pytest.mark.long
@needs_nncf
@needs_keras
@pytest.mark.train
def test_a_real_network_stays_close_and_shrinks() -> None:
    network, int8 = lite0(), lite0_int8()
    # X-rays, on which both look more alike than these pictures, give 0.985 with 10 images and 0.989 with 100.
    assert cosines(network, int8, images_of((224, 224), 8, first=100)).mean() > 0.95
    assert len(int8.graph[BIN_FILE]) < 0.3 * len(network.graph[BIN_FILE])
    assert int8.graph[XML_FILE].count(b'element_type="i8"') == 48, "every convolution but the first"


@needs_nncf
def test_only_graph_and_precision_change() -> None:
    network, int8 = small_network(), small_int8()
    assert int8.precision == "int8"
    assert dataclasses.replace(int8, graph=network.graph, precision="fp32") == network
    assert Network.from_files(int8.to_files()) == int8
    assert b'type="FakeQuantize"' in int8.graph[XML_FILE]
    assert b'element_type="i8"' in int8.graph[XML_FILE]
    assert b"Convolution_" in int8.graph[XML_FILE], "names are those by place"
    assert b"BatchNormInference" in network.graph[XML_FILE]
    assert b"BatchNormInference" not in int8.graph[XML_FILE], "folded, or biases are not corrected"


@needs_nncf
def test_bf16_gives_the_same_as_fp32() -> None:
    bf16 = dataclasses.replace(small_network(), precision="bf16")
    assert quantize_network(bf16, images_of(SIZE, 20)) == small_int8()


@needs_nncf
@pytest.mark.slow
def test_images_may_have_any_size_and_channels() -> None:
    images = images_of((61, 53), 12)
    gray = [image[..., 1] for image in images]
    as_bgr = [np.repeat(image[..., np.newaxis], 3, axis=2) for image in gray]
    with_alpha = [np.dstack([image, np.full((61, 53), 9, np.uint8)]) for image in as_bgr]
    wanted = quantize_network(small_network(), as_bgr)
    for same in (gray, [image[..., np.newaxis] for image in gray], with_alpha):
        assert quantize_network(small_network(), same).sha256 == wanted.sha256
    assert quantize_network(small_network(), images).sha256 != wanted.sha256, "the images must count"


@needs_nncf
def test_only_the_first_images_are_taken() -> None:
    images = iter(images_of(SIZE, 25))
    assert quantize_network(small_network(), images, max_images=20).sha256 == small_int8().sha256
    assert len(list(images)) == 5, "the others are not even asked for"


INFER = """
    import sys
    from pathlib import Path
    from tests.unit.sparkdl.engine.test_quantize import images_of
    from sparkdl.engine.cache import start_engine
    from sparkdl.network.base import Network

    network = Network.from_files({path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()})
    engine = start_engine(network)
    sys.stdout.buffer.write(b"".join(engine.infer(image).tobytes() for image in images_of((224, 224), 3, first=100)))
"""


@pytest.mark.long
@needs_nncf
@needs_keras
@pytest.mark.train
def test_features_are_the_same_on_a_cpu_without_vnni(tmp_path: Path) -> None:
    for name, content in lite0_int8().to_files().items():
        (tmp_path / name).write_bytes(content)
    found = {}
    for isa in ("ALL", "AVX2"):  # on a machine that lacks VNNI itself both are the same anyway
        command = [sys.executable, "-c", textwrap.dedent(INFER), str(tmp_path)]
        environment = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=True)
        found[isa] = np.frombuffer(done.stdout, np.float32).reshape(3, 1280)
    np.testing.assert_allclose(found["AVX2"], found["ALL"], rtol=0, atol=0.01 * found["ALL"].max())


# ---- determinism and quietness ----

QUANTIZE = """
    import logging, sys
    from tests.unit.sparkdl.engine.test_quantize import SIZE, images_of, small_network
    from sparkdl.engine.quantize import quantize_network

    int8 = quantize_network(small_network(), images_of(SIZE, 20))
    reporting = {"openvino_telemetry", "openvino_telemetry.main"} & sys.modules.keys()
    assert not reporting, reporting
    assert logging.getLoggerClass() is logging.Logger
    with open(sys.argv[1], "w") as file:
        file.write(int8.sha256)
"""


@needs_nncf
@pytest.mark.slow
def test_another_process_gives_the_same_bytes_and_leaves_no_trace(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(QUANTIZE), str(tmp_path / "sha256")],
        cwd=ROOT,
        env=os.environ | {"HOME": str(home), "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "sha256").read_text() == small_int8().sha256
    assert list(home.rglob("*")) == [], "telemetry writes its client id there"


@needs_nncf
def test_it_is_quiet_and_leaves_nncf_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    from nncf.common.logging import track_progress  # noqa: PLC0415

    before = track_progress.Progress, logging.getLogger("nncf").level
    quantize_network(small_network(), images_of(SIZE, 20))
    assert capfd.readouterr() == ("", "")
    assert (track_progress.Progress, logging.getLogger("nncf").level) == before


# ---- errors ----


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(DependencyError, match=re.escape(install_line("int8"))):
        quantize_network(small_network(), images_of(SIZE, MIN_IMAGES))


@pytest.mark.parametrize("count", [0, MIN_IMAGES - 1])
def test_too_few_images_are_refused(count: int) -> None:
    with pytest.raises(SettingsError, match=f"int8: {count} images to calibrate on, wanted at least 10"):
        quantize_network(small_network(), images_of(SIZE, count))


def test_too_small_a_limit_is_refused() -> None:
    with pytest.raises(SettingsError, match="int8: 5 images to calibrate on, wanted at least 10"):
        quantize_network(small_network(), images_of(SIZE, 20), max_images=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int8"}, "network Small is in int8, wanted fp32 or bf16"),
        ({"engine": "tensorflow"}, "is for tensorflow with uint8 input, wanted openvino with uint8 input"),
        ({"input_type": "float32"}, "is for openvino with float32 input, wanted openvino with uint8 input"),
    ],
)
def test_another_kind_of_network_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        quantize_network(dataclasses.replace(small_network(), **change), images_of(SIZE, 20))


@pytest.mark.parametrize(("shape", "dtype", "error"), [((9, 9, 2), "u1", ValueError), ((9, 9), "f4", TypeError)])
def test_images_that_no_engine_takes_are_refused(shape: tuple[int, ...], dtype: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="pixels: "):
        quantize_network(small_network(), [np.zeros(shape, dtype)] * 20)


def test_importing_the_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, sparkdl.engine.quantize; assert not {'nncf', 'openvino', 'keras', 'sklearn'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
