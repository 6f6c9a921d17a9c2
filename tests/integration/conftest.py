"""Fixtures of tests with real services: a trained model, and topics and folders for each test."""

import uuid
from pathlib import Path

import pytest

from streaming.kafka.topics import create_topics
from streaming.settings import StreamSettings
from xray.broker import LocalBroker


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
