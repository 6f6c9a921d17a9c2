"""The spool and a real broker that is away: all arrive, in order for each key, and the folder is empty."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from benchmarks.ports import find_ports
from schemas.envelope import derive_image_event_id
from streaming.gateway.keeping.spool import Spool, SpoolDrain, read_spool
from streaming.gateway.offer import Outgoing
from streaming.gateway.publisher import Publisher
from streaming.kafka.topics import create_topics
from streaming.settings import KafkaSettings, StreamSettings, load_settings
from xray.broker import LocalBroker

pytestmark = pytest.mark.kafka

_KEYS = 5
_TRY_S = 2.0


def wait_until(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def own(jars: Path, tmp_path: Path) -> Iterator[tuple[LocalBroker, StreamSettings]]:
    """A broker of this test's own, which it may stop."""
    kafka = {"bootstrap_servers": f"127.0.0.1:{find_ports()}", "partitions": 3}
    settings = load_settings(home=tmp_path / "home", jars=jars, kafka=kafka)
    broker = LocalBroker.of(settings)
    broker.start()
    create_topics(settings.kafka)
    yield broker, settings
    broker.stop()


def record(number: int, size: int = 20_000) -> Outgoing:
    value = number.to_bytes(4, "big") * (size // 4)
    event_id = derive_image_event_id("/test", str(number), hashlib.sha256(value).hexdigest())
    return Outgoing(event_id, f"key-{number % _KEYS}".encode(), (("ce_id", str(number).encode()),), value)


def read_topic(kafka: KafkaSettings) -> list[tuple[bytes, int, bytes]]:
    """Give key, number and value of all that was published, in each partition's order."""
    consumer = Consumer(kafka.to_librdkafka() | {"group.id": "test", "auto.offset.reset": "earliest"})
    try:
        found = []
        for partition in range(kafka.partitions):
            place = TopicPartition(kafka.images_topic, partition, 0)
            _, end = consumer.get_watermark_offsets(place, timeout=20)
            consumer.assign([place])
            left = end
            while left:
                message = consumer.poll(20)
                assert message is not None
                assert message.error() is None
                found.append((message.key(), int(dict(message.headers())["ce_id"]), message.value()))
                left = end - message.offset() - 1
        return found
    finally:
        consumer.close()


def firsts(found: list[tuple[bytes, int, bytes]], key: bytes) -> list[int]:
    """Give the numbers of a key in order, repetitions left out."""
    return list(dict.fromkeys(number for own, number, _ in found if own == key))


def check_all_there(kafka: KafkaSettings, count: int) -> None:
    found = read_topic(kafka)
    assert {number for _, number, _ in found} == set(range(count))
    for key in range(_KEYS):
        assert firsts(found, f"key-{key}".encode()) == list(range(key, count, _KEYS))
    assert all(value == record(number).value for _, number, value in found)


@pytest.mark.parametrize("end", ["stop", pytest.param("kill", marks=pytest.mark.long)])
def test_broker_is_away_in_the_middle(own: tuple[LocalBroker, StreamSettings], tmp_path: Path, end: str) -> None:
    broker, settings = own
    spool = Spool(tmp_path / "spool", max_bytes=10**9, min_free_bytes=0)
    publisher = Publisher(settings.kafka, timeout_s=_TRY_S)
    publisher.start()
    drain = SpoolDrain(spool, publisher.publish)
    try:
        for number in range(200):
            spool.put(record(number))
        drain.start()
        wait_until(lambda: spool.state.count < 190)
        getattr(broker, end)()
        for number in range(200, 300):
            spool.put(record(number))
        wait_until(lambda: not publisher.is_up)
        assert spool.state.count >= 100
        broker.start()
        for number in range(300, 320):
            spool.put(record(number))
        wait_until(lambda: not spool.holds_anything)
    finally:
        drain.stop()
        publisher.stop()
    assert list((tmp_path / "spool").glob("*.record")) == []
    check_all_there(settings.kafka, 320)


def test_record_above_the_topics_limit_bars_nobodys_way(
    own: tuple[LocalBroker, StreamSettings], tmp_path: Path
) -> None:
    _, settings = own
    spool = Spool(tmp_path / "spool", max_bytes=10**9, min_free_bytes=0)
    large = settings.kafka.max_message_bytes + 1000
    for number in range(12):
        spool.put(record(number, size=large if number in (0, 5, 11) else 20_000))
    publisher = Publisher(settings.kafka, timeout_s=30)
    publisher.start()
    drain = SpoolDrain(spool, publisher.publish)
    try:
        drain.start()
        wait_until(lambda: not spool.holds_anything)
    finally:
        drain.stop()
        publisher.stop()
    assert spool.state.refused == 3
    assert sorted(number for _, number, _ in read_topic(settings.kafka)) == [1, 2, 3, 4, 6, 7, 8, 9, 10]


def test_gateway_killed_again_and_again_while_it_drains(
    own: tuple[LocalBroker, StreamSettings], tmp_path: Path
) -> None:
    _, settings = own
    folder = tmp_path / "spool"
    spool = Spool(folder, max_bytes=10**9, min_free_bytes=0)
    for number in range(400):
        spool.put(record(number))
    spool.close()
    kills = 0
    while left := read_spool(folder).count:
        process = subprocess.Popen(
            [sys.executable, __file__, str(folder), settings.kafka.bootstrap_servers],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        goal = max(0, left - 150)
        try:
            wait_until(lambda goal=goal: read_spool(folder).count <= goal)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        kills += 1
    assert kills >= 2
    check_all_there(settings.kafka, 400)


if __name__ == "__main__":
    own_spool = Spool(Path(sys.argv[1]), max_bytes=10**9, min_free_bytes=0)
    own_publisher = Publisher(KafkaSettings(bootstrap_servers=sys.argv[2]), timeout_s=_TRY_S)
    own_publisher.start()
    SpoolDrain(own_spool, own_publisher.publish).start()
    signal.pause()
