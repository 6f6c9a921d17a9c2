"""The archive's consumer group is for lag tools: whoever keeps it may be away, and the archive ends at once."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Producer

from benchmarks.ports import find_ports
from streaming.archive.outcomereader import OutcomeReader
from streaming.archive.rows import read_row
from streaming.kafka.topics import create_topics
from streaming.settings import StreamSettings
from xray.broker import LocalBroker

pytestmark = [pytest.mark.kafka]

_END_S = 10.0
"""librdkafka's own patience with a group is 45 s, for each table."""


def _stop(broker: LocalBroker) -> None:
    broker.stop()


def _freeze(broker: LocalBroker) -> None:
    pid = broker.pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)


def _leave(_broker: LocalBroker) -> None:
    pass


@pytest.fixture
def own(base_settings: StreamSettings, tmp_path: Path) -> Iterator[tuple[LocalBroker, StreamSettings]]:
    """A broker that the test may harm, with its topics."""
    kafka = base_settings.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{find_ports()}", "partitions": 1})
    settings = base_settings.model_copy(update={"home": tmp_path, "jars": base_settings.jars_folder, "kafka": kafka})
    broker = LocalBroker.of(settings)
    broker.start()
    try:
        create_topics(settings.kafka)
        yield broker, settings
    finally:
        broker.kill()  # a frozen one, too


@pytest.mark.parametrize("fault", [_leave, _stop, _freeze])
def test_a_reader_ends_at_once_however_its_broker_is(
    own: tuple[LocalBroker, StreamSettings], fault: Callable[[LocalBroker], None]
) -> None:
    broker, settings = own
    topic = settings.kafka.predictions_topic
    producer = Producer(settings.kafka.to_librdkafka())
    producer.produce(topic, b"{}")
    producer.flush()
    reader = OutcomeReader(settings.kafka, topic, partial(read_row, "predictions"))
    reader.go_to({0: 0})
    piece = reader.read(1, 20.0, ends={0: 1})
    assert piece.places == {0: 1}
    fault(broker)
    reader.tell_group(piece.places)
    started = time.monotonic()
    reader.close()
    took_s = time.monotonic() - started
    assert took_s < _END_S
