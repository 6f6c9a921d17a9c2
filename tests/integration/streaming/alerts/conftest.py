"""Settings of a test of alarms: topics, a group and a state folder of its own."""

import uuid

import pytest

from streaming.kafka.topics import create_topics, receipt_topics
from streaming.settings import StreamSettings


@pytest.fixture
def settings(settings: StreamSettings) -> StreamSettings:
    """With receipts too."""
    own = uuid.uuid4().hex[:8]
    kafka = settings.kafka.model_copy(update={"receipts_topic": f"{own}.receipts"})
    alerts = settings.alerts.model_copy(update={"group": f"{own}.alerts", "metrics_port": 0})
    create_topics(kafka, receipt_topics(kafka))
    return settings.model_copy(update={"kafka": kafka, "alerts": alerts})
