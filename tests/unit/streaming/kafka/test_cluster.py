"""What is advised where Kafka does not answer."""

import pytest
from confluent_kafka import KafkaError

from streaming.kafka.cluster import _explain
from streaming.settings import KafkaSettings


@pytest.mark.parametrize(
    ("servers", "own"), [("127.0.0.1:19092", True), ("kafka.invalid:9092,other.invalid:9092", False)]
)
def test_the_local_broker_is_started_and_another_looked_at(servers: str, own: bool) -> None:
    said = _explain(KafkaSettings(bootstrap_servers=servers), [KafkaError(KafkaError._TRANSPORT, "refused")])
    assert said.startswith("refused. ")
    assert ("xray up" in said) == own
    assert "XRAY_KAFKA__BOOTSTRAP_SERVERS" in said
