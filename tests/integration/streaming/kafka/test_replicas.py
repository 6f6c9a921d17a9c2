"""What "confirmed" is worth on three brokers: a record is on two disks, or it is not confirmed."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka import Producer

from benchmarks.ports import find_ports
from streaming.kafka.cluster import describe_cluster
from streaming.kafka.topicchecks import check_topics
from streaming.kafka.topics import create_topics
from streaming.settings import KafkaSettings, StreamSettings
from xray.broker import LocalBroker

pytestmark = [pytest.mark.kafka, pytest.mark.long]

_NODES = 3


class Node(LocalBroker):
    """One of three brokers; the first is the controller as well."""

    def __init__(self, folder: Path, jars: Path, port: int, number: int, controller: int) -> None:
        super().__init__(folder, jars, port)
        self.number, self.controller = number, controller

    def _write_configuration(self) -> None:
        super()._write_configuration()
        text = self._properties.read_text()
        own = {f"1@127.0.0.1:{self.port + 1}": f"1@127.0.0.1:{self.controller}", "node.id=1": f"node.id={self.number}"}
        if self.number > 1:
            own |= {
                "process.roles=broker,controller": "process.roles=broker",
                f",CONTROLLER://127.0.0.1:{self.port + 1}": "",
            }
        for found, wanted in own.items():
            assert found in text
            text = text.replace(found, wanted)
        self._properties.write_text(text)


@pytest.fixture(scope="module")
def nodes(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    folder = tmp_path_factory.mktemp("cluster")
    ports = [find_ports() for _ in range(_NODES)]
    nodes = [Node(folder / str(i), jars, port, i, ports[0] + 1) for i, port in enumerate(ports, 1)]
    with ExitStack() as stack:
        for node in nodes:
            stack.callback(node.kill)
            node.start()
        yield nodes


def publish(kafka: KafkaSettings, name: str, timeout_s: float) -> str | None:
    """Publish one record as devices are told to; give the error, None where it was confirmed."""
    answers: list[str | None] = []
    options = {"enable.idempotence": True, "delivery.timeout.ms": int(timeout_s * 1000), "log_level": 0}
    producer = Producer(kafka.to_librdkafka() | options)
    producer.produce(
        kafka.images_topic, b"image", name, on_delivery=lambda error, _: answers.append(error and error.str())
    )
    producer.flush()
    [answer] = answers
    return answer


def test_a_record_is_confirmed_when_two_of_three_disks_have_it(
    base_settings: StreamSettings, nodes: list[Node], caplog: pytest.LogCaptureFixture
) -> None:
    servers = ",".join(node.bootstrap_servers for node in nodes)
    changes = {"bootstrap_servers": servers, "replication_factor": _NODES, "partitions": 1}
    kafka = base_settings.kafka.model_copy(update=changes)
    assert len(describe_cluster(kafka).brokers) == _NODES
    create_topics(kafka)
    check_topics(kafka)
    assert caplog.messages == []

    assert publish(kafka, "all there", 60) is None
    nodes[2].kill()
    assert publish(kafka, "one away", 60) is None
    nodes[1].kill()
    # The last one has it on its own disk, and does not say that it is safe.
    assert publish(kafka, "two away", 15) is not None
    nodes[1].start()
    assert publish(kafka, "one is back", 60) is None
