"""Fixtures: one Spark session and one broker for a whole run, each started on first use."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from schemas.errors import DependencyError
from sparkdl.spark.java import find_java
from streaming.kafka.topics import create_topics
from streaming.run.service import open_session
from streaming.settings import StreamSettings, load_settings
from xray.broker import LocalBroker


def free_ports() -> int:
    """Find a port whose successor is free too: the broker's controller takes that one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


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
        kafka={"bootstrap_servers": f"127.0.0.1:{free_ports()}"},
        metrics={"port": 0},
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
    """The session of this run: local[2], UTC, with the Kafka and Delta connectors."""
    session = open_session(base_settings)
    yield session
    session.stop()
