"""Fixtures of the tests that kill: a broker of their own, and streams on it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.scene import Scene, Site
from benchmarks.ports import find_ports
from streaming.settings import load_settings
from tests.conftest import Trained
from tests.savedmodels import copy_model
from xray.broker import LocalBroker

SEED = int(os.environ.get("CHAOS_SEED", "7"))


@pytest.fixture(scope="session")
def seed() -> int:
    """Of traffic and faults; shown where a test fails."""
    print(f"CHAOS_SEED={SEED}")  # noqa: T201
    return SEED


@pytest.fixture(scope="package")
def site(jars: Path, trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A running broker, and the model of this run twice: by its hash and version the second one is another."""
    if not Path("/proc/self/stat").is_file():
        pytest.skip("processes are found through /proc, which this system does not have")
    folder = tmp_path_factory.mktemp("chaos")
    settings = load_settings(home=folder / "site", jars=jars, kafka={"bootstrap_servers": f"127.0.0.1:{find_ports()}"})
    models = (
        copy_model(folder / "models", trained.folder, "first"),
        copy_model(folder / "models", trained.folder, "second"),
    )
    broker = LocalBroker.of(settings)
    broker.start()
    yield Site(folder, jars, broker, models)
    broker.stop()


@pytest.fixture(scope="package")
def short_scene(site: Site, seed: int) -> Iterator[Scene]:
    """One stream for what every change is tested with."""
    scene = Scene(site, "short", seed=seed, images_per_batch=15)
    yield scene
    scene.close()
