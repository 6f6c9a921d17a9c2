"""Fixtures: one Spark session and one broker for a whole run, each started on first use."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from xdist.scheduler import LoadScopeScheduling

from benchmarks.ports import find_ports
from schemas.errors import DependencyError
from schemas.modelcard import ModelCard
from sparkdl.spark.java import find_java
from streaming.kafka.topics import create_topics
from streaming.run.session import open_session
from streaming.settings import StreamSettings, load_settings
from tests.objectstore import ObjectStore
from tests.story import pytest_runtest_makereport, pytest_runtest_setup  # noqa: F401  hooks of pytest
from training.data.dataset import read_dataset
from training.model.fit import train_model
from xray.broker import LocalBroker
from xray.phantom import write_folder

_GROUPS = {
    # The first that fits counts. Of make test three groups take about as long as each other, of make test-long the two
    # pairs that two processes come to.
    "tests/integration/streaming/archive/": "models and tables",
    "tests/integration/streaming/results/": "models and tables",
    "tests/integration/streaming/gateway/": "senders and receivers",
    "tests/integration/streaming/alerts/": "senders and receivers",
    "tests/integration/streaming/reports/": "senders and receivers",
    "tests/integration/streaming/page/": "senders and receivers",
    "tests/integration/streaming/": "stream",
    "tests/integration/benchmarks/": "stream",
    "tests/integration/deploy/": "alerts made to fire",
    "tests/integration/examples/": "senders and receivers",
    "tests/integration/xray/": "senders and receivers",
    "tests/integration/": "models and tables",
    "tests/e2e/": "models and tables",
    "tests/chaos/": "stream",
}


class SharedRun(LoadScopeScheduling):
    """Three processes share a run, on two cores too: most of what they do is to wait for a broker, a stream or a peer.

    Each of the groups stays in one process, in order, so that its services start once; unit tests fill the gaps. The
    cases of one unit test stay together: xdist's cost of a group grows with their number.
    """

    def _split_scope(self, nodeid: str) -> str:
        return next((group for folder, group in _GROUPS.items() if nodeid.startswith(folder)), nodeid.partition("[")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedRun:
    config.option.loadscopereorder = False  # the groups come first, however many cases a unit test has
    return SharedRun(config, log)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State folder of this run."""
    return tmp_path_factory.mktemp("xray-home")


@pytest.fixture(scope="session")
def jars() -> Path:
    """Folder of jars; shared between runs, since its content never changes."""
    try:
        find_java()
    except DependencyError as exc:
        pytest.skip(str(exc))
    return load_settings().jars_folder


@pytest.fixture(scope="session")
def base_settings(home: Path, jars: Path) -> StreamSettings:
    """Settings of this run: a state folder and ports of its own."""
    return load_settings(
        home=home,
        jars=jars,
        kafka={"bootstrap_servers": f"127.0.0.1:{find_ports()}"},
        metrics={"port": 0},
        archive={"metrics_port": 0},
        spark={"master": "local[2]"},
    )


@pytest.fixture(scope="session")
def broker(base_settings: StreamSettings) -> Iterator[LocalBroker]:
    """A running broker, and its topics."""
    broker = LocalBroker.of(base_settings)
    broker.start()
    create_topics(base_settings.kafka)
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def spark(base_settings: StreamSettings) -> Iterator[SparkSession]:
    """The session of this run: local[2], UTC, with the Kafka connector."""
    session = open_session(base_settings)
    yield session
    session.stop()


@pytest.fixture(scope="session")
def store_server() -> Iterator[ObjectStore]:
    """An object store of this run."""
    server = ObjectStore()
    yield server
    server.stop()


@pytest.fixture
def store(store_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The object store, without faults, and the environment that names it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in store_server.environment.items():
        monkeypatch.setenv(name, value)
    store_server.seen()
    yield store_server
    store_server.heal()


@dataclass(frozen=True)
class Trained:
    """A small model and the images it was trained on."""

    folder: Path
    card: ModelCard
    manifest: Path


@pytest.fixture(scope="session")
def trained(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """EfficientNetLite0 and logistic regression on two dozen phantoms."""
    if find_spec("keras") is None:  # found, not imported: importing it alone would choose another backend
        pytest.skip("training needs the train extra: make install")
    folder = tmp_path_factory.mktemp("trained")
    manifest = write_folder(folder / "images", 24, seed=11)
    result = train_model(lambda: spark, read_dataset(manifest), out=folder / "models")
    return Trained(result.folder, result.card, manifest)
