"""The class activation map, on a small convolutional network of each precision."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparkdl.engine.activation import ActivationEngine, NoMapError
from sparkdl.engine.openvino import OpenVinoEngine
from sparkdl.engine.quantize import quantize_network
from sparkdl.network.base import Network
from tests.convmodel import CHANNELS, HEIGHT, MAP, WIDTH, conv_network


def images(n: int, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (HEIGHT, WIDTH), np.uint8) for _ in range(n)]


def errors(network: Network, n: int = 12) -> np.ndarray:
    """How far the logit of the map is from that of the features that the stream computes, for one random head."""
    rng = np.random.default_rng(7)
    weights, intercept = rng.normal(size=CHANNELS), -0.4
    served, maps = OpenVinoEngine(network), ActivationEngine(network)
    found = []
    for image in images(n):
        published = float(served.infer(image).astype(np.float64) @ weights) + intercept
        found.append(maps.infer(image).weigh(weights).mean() + intercept - published)
    return np.array(found)


@pytest.mark.parametrize("ending", ["mean", "kept", "nhwc"])
def test_the_map_is_the_logit_in_fp32(tmp_path: Path, ending: str) -> None:
    network = conv_network(tmp_path, ending=ending)
    activation = ActivationEngine(network).infer(images(1)[0])
    assert activation.maps.shape == (CHANNELS, *MAP)
    np.testing.assert_allclose(activation.maps.mean(axis=(1, 2)), activation.features, atol=1e-5)
    assert np.abs(errors(network)).max() < 1e-4


def test_in_bf16_the_error_is_that_of_8_bits_of_mantissa(tmp_path: Path) -> None:
    # Features of about 0.3 to 1, weights of about 1: each of the 24 products is off by up to 2**-9 of it.
    assert np.abs(errors(conv_network(tmp_path, precision="bf16"))).max() < 0.05


def test_in_int8_the_error_is_small(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    network = quantize_network(conv_network(tmp_path), images(20, seed=3))
    assert np.abs(errors(network)).max() < 0.05


def test_a_bright_spot_is_where_the_map_says(tmp_path: Path) -> None:
    """A head that wants brightness, on a network whose map has the image's own layout."""
    network = conv_network(tmp_path)
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    image[20:26, 36:42] = 255
    engine = ActivationEngine(network)
    changed = np.abs(engine.infer(image).maps - engine.infer(np.zeros_like(image)).maps).sum(axis=0)
    row, column = np.unravel_index(changed.argmax(), MAP)
    assert (row, column) in {(r, c) for r in (5, 6) for c in (9, 10)}


@pytest.mark.parametrize(("ending", "made_by"), [("flat", "Relu"), ("max", "ReduceMax"), ("rows", "ReduceMean")])
def test_features_that_are_no_means_have_no_map(tmp_path: Path, ending: str, made_by: str) -> None:
    with pytest.raises(NoMapError, match=f"what {made_by} makes, and not the means of its last map"):
        ActivationEngine(conv_network(tmp_path, ending=ending))


def test_a_network_of_another_engine_has_no_map(tmp_path: Path) -> None:
    with pytest.raises(NoMapError, match="runs on tensorflow"):
        ActivationEngine(replace(conv_network(tmp_path), engine="tensorflow"))
