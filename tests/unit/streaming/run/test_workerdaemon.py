"""What the daemon of Python workers has loaded when it forks them."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

_LOADED = "import sys, streaming.run.workerdaemon; print(*sys.modules)"


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    done = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ["openvino", "tensorflow", "deltalake"])
def test_what_must_not_be_forked_is_not_loaded(loaded: set[str], name: str) -> None:
    """Each has threads of its own, which a forked worker would wait for."""
    assert name not in loaded


@pytest.mark.parametrize("name", ["numpy", "pyarrow", "PIL.Image", "pydicom", "streaming.score.scoring"])
def test_what_every_worker_needs_is_loaded(loaded: set[str], name: str) -> None:
    assert name in loaded
