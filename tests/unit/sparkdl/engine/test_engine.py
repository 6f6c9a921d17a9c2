"""The engine, on a tiny graph whose features are known: no Keras, no weights."""

import dataclasses
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import ModelLoadError, SettingsError
from sparkdl.engine import cache
from sparkdl.engine.base import Engine, to_bgr
from sparkdl.engine.cache import find_engine
from sparkdl.engine.openvino import OpenVinoEngine
from sparkdl.network.backends import import_openvino
from sparkdl.network.base import BIN_FILE, XML_FILE, Network
from tests.paths import ROOT

HEIGHT, WIDTH = 4, 6


def mean_network(folder: Path, *, scale: float = 1.0, precision: str = "fp32") -> Network:
    """A network whose three features are the means of blue, green and red, times `scale`."""
    openvino = import_openvino()
    ops = openvino.opset13
    image = ops.parameter([1, HEIGHT, WIDTH, 3], np.uint8)
    means = ops.reduce_mean(ops.convert(image, "f32"), ops.constant([1, 2]), keep_dims=False)
    graph = openvino.Model([ops.multiply(means, ops.constant(np.float32(scale)))], [image])
    openvino.serialize(graph, str(folder / "g.xml"), str(folder / "g.bin"))
    return Network(
        name="Mean",
        engine="openvino",
        graph={XML_FILE: (folder / "g.xml").read_bytes(), BIN_FILE: (folder / "g.bin").read_bytes()},
        input_shape=(HEIGHT, WIDTH, 3),
        input_type="uint8",
        output_shape=(3,),
        weights="random",
        weights_sha256="0" * 64,
        precision=precision,
        pooling="avg",
    )


def load_engine(network: Network, *, n_threads: int = 1) -> Engine:
    return find_engine(network.sha256, network.precision, lambda: network, n_threads=n_threads)


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return mean_network(tmp_path)


@pytest.fixture
def bgr() -> np.ndarray:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:] = (10, 20, 30)
    image[0, 0] = (34, 44, 54)  # one pixel unlike the rest: each mean rises by 1
    return image


def test_features_are_those_of_the_pixels(network: Network, bgr: np.ndarray) -> None:
    features = OpenVinoEngine(network).infer(bgr)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, [11, 21, 31])


def test_a_view_that_is_not_contiguous_is_read_right(network: Network, bgr: np.ndarray) -> None:
    np.testing.assert_allclose(OpenVinoEngine(network).infer(bgr[::-1, ::-1, ::-1]), [31, 21, 11])


def test_pixels_that_lie_in_read_only_bytes_are_read(network: Network, bgr: np.ndarray) -> None:
    frozen = np.frombuffer(bgr.tobytes(), np.uint8).reshape(bgr.shape)  # as they come out of a Spark row
    np.testing.assert_allclose(OpenVinoEngine(network).infer(frozen), [11, 21, 31])


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 1)])
def test_gray_is_repeated(network: Network, bgr: np.ndarray, shape: tuple[int, ...]) -> None:
    gray = bgr[..., 1].reshape(shape)
    features = OpenVinoEngine(network).infer(gray)
    assert features.tobytes() == OpenVinoEngine(network).infer(np.repeat(bgr[..., 1:2], 3, axis=2)).tobytes()


def test_alpha_is_dropped(network: Network, bgr: np.ndarray) -> None:
    bgra = np.dstack([bgr, np.full((HEIGHT, WIDTH), 200, np.uint8)])
    np.testing.assert_allclose(OpenVinoEngine(network).infer(bgra), [11, 21, 31])


@pytest.mark.parametrize("shape", [(WIDTH, HEIGHT, 3), (HEIGHT, WIDTH, 2), (1, HEIGHT, WIDTH, 3), (HEIGHT,)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape is \(.*\), expected \(4, 6\) with 1, 3 or 4 channels"):
        to_bgr(np.zeros(shape, np.uint8), (HEIGHT, WIDTH))


def test_another_dtype_is_refused(network: Network, bgr: np.ndarray) -> None:
    with pytest.raises(TypeError, match="dtype is float32, expected uint8"):
        OpenVinoEngine(network).infer(bgr.astype(np.float32))


def test_features_do_not_change_with_later_images(network: Network, bgr: np.ndarray) -> None:
    engine = OpenVinoEngine(network)
    first = engine.infer(bgr)
    kept = first.tobytes()
    for value in (0, 255):
        engine.infer(np.full_like(bgr, value))
    assert first.tobytes() == kept == engine.infer(bgr).tobytes()


def test_threads_share_one_engine(network: Network, bgr: np.ndarray) -> None:
    images = [np.clip(bgr + np.uint8(step), 0, 255) for step in range(8)]
    wanted = [OpenVinoEngine(network).infer(image).tobytes() for image in images]
    found: dict[int, set[bytes]] = {step: set() for step in range(8)}
    seen = set()

    def work(step: int) -> None:
        engine = load_engine(network)
        seen.add(id(engine))
        found[step].update(engine.infer(images[step]).tobytes() for _ in range(50))

    threads = [threading.Thread(target=work, args=(step,)) for step in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[step] for step in range(8)] == [{value} for value in wanted]
    assert len(seen) == 1


def test_the_cache_knows_a_network_by_its_content(network: Network) -> None:
    same = Network.from_files(network.to_files())
    assert same is not network
    assert load_engine(same) is load_engine(network)
    assert load_engine(network, n_threads=2) is not load_engine(network)
    assert load_engine(dataclasses.replace(network, precision="bf16")) is not load_engine(network)


def test_the_cache_keeps_the_two_last_used(tmp_path: Path) -> None:
    first, second, third = (mean_network(tmp_path, scale=scale) for scale in (1, 2, 3))
    kept, dropped = load_engine(first), load_engine(second)
    assert load_engine(first) is kept
    load_engine(third)
    assert load_engine(first) is kept
    assert load_engine(second) is not dropped
    assert len(cache._cache.engines) == 2


def test_settings_are_checked(network: Network) -> None:
    with pytest.raises(SettingsError, match="n_threads: 0, expected 1 or more"):
        OpenVinoEngine(network, n_threads=0)
    with pytest.raises(SettingsError, match="precision: 'int4', expected one of fp32, bf16, int8"):
        OpenVinoEngine(dataclasses.replace(network, precision="int4"))


def test_a_damaged_graph_is_named(network: Network) -> None:
    with pytest.raises(ModelLoadError, match=r"network Mean: OpenVINO .* cannot load it"):
        OpenVinoEngine(dataclasses.replace(network, graph=network.graph | {XML_FILE: network.graph[XML_FILE][:200]}))


def test_a_graph_of_other_shapes_is_refused(network: Network) -> None:
    with pytest.raises(ModelLoadError, match=r"shapes are .*\(1, 3\).*, expected .*\(1, 7\)"):
        OpenVinoEngine(dataclasses.replace(network, output_shape=(7,)))


SERVE = """
    import os, sys
    import numpy as np
    from pathlib import Path
    from schemas.errors import ModelLoadError
    from sparkdl.engine.cache import find_engine
    from sparkdl.network.base import Network

    assert "openvino" not in sys.modules, "importing the modules alone must stay cheap"
    network = Network.from_files({path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()})
    image = np.full((4, 6, 3), 7, np.uint8)

    def infer():
        return find_engine(network.sha256, "fp32", lambda: network).infer(image).tolist()

    assert infer() == [7, 7, 7]
    unwanted = {"keras", "tensorflow", "pyspark", "h5py", "scipy", "openvino_telemetry.main"} & sys.modules.keys()
    assert not unwanted, unwanted
    if os.fork() == 0:
        try:
            infer()
        except ModelLoadError as exc:
            os._exit(0 if "was forked from" in str(exc) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""


def test_serving_needs_no_keras_is_silent_and_knows_a_fork(network: Network, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    for name, content in network.to_files().items():
        (folder / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SERVE), str(folder)],
        cwd=ROOT,
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "intel").exists(), "OpenVINO's telemetry wrote its client id"
