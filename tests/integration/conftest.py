"""Fixtures of tests with real services: a trained model, and topics and folders for each test."""

import uuid
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from schemas.modelcard import ModelCard
from streaming.kafka.topics import create_topics
from streaming.settings import StreamSettings
from training.data.dataset import read_dataset
from training.model.fit import train_model
from xray.broker import LocalBroker
from xray.phantom import write_folder


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


@pytest.fixture
def settings(base_settings: StreamSettings, broker: LocalBroker, tmp_path: Path) -> StreamSettings:
    """Settings with topics, checkpoints and tables of this test's own."""
    own = uuid.uuid4().hex[:8]
    names = ("images", "predictions", "features", "deadletters", "canary", "canary_results")
    topics = {f"{name}_topic": f"{own}.{name}" for name in names}
    kafka = base_settings.kafka.model_copy(update={**topics, "partitions": 2})
    archive = base_settings.archive.model_copy(update={"trigger_s": 1.0})
    settings = base_settings.model_copy(
        update={"home": tmp_path, "jars": base_settings.jars_folder, "kafka": kafka, "archive": archive}
    )
    create_topics(settings.kafka)
    return settings
