"""Several images at a time give the features of one at a time."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from benchmarks.bare import run_bare
from benchmarks.engines import EngineChoice
from sparkdl.network.catalog import build_network
from tests.testimages import png

pytestmark = [
    pytest.mark.slow,
    pytest.mark.train,
    pytest.mark.skipif(find_spec("keras") is None, reason="building networks needs the train extra"),
]


@pytest.fixture(scope="module")
def network() -> Any:
    return build_network("EfficientNetLite0", weights="random")


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_batch_gives_each_image_its_own_features(network: Any, count: int) -> None:
    rng = np.random.default_rng(count)
    gray = [rng.integers(0, 256, network.input_size, np.uint8) for _ in range(count)]
    alone = EngineChoice(network).start()(gray)
    together = EngineChoice(network, batch=4).start()(gray)
    assert alone.shape == together.shape == (count, network.n_features)
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_bare_run_has_all_its_figures(network: Any, batch: int) -> None:
    found = run_bare(EngineChoice(network, batch), (png(),), 0.2)
    assert found.img_s > 0
    assert found.cpu_s_per_1000 > 0
    assert found.pss_bytes > 50_000_000, "a process with a network has more"


def test_a_bare_run_that_fails_is_said(network: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="ended with"):
        run_bare(EngineChoice(network), (b"no image",), 0.2)
    assert "UnsupportedImageError" in capfd.readouterr().err
