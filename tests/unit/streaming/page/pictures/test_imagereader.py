"""Reading from a broker that is away; with a real one: the integration tests."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.ports import find_ports
from streaming.kafka.places import Place
from streaming.page.pictures.imagereader import ImageReader
from streaming.page.pictures.picture import PictureUnreadable
from streaming.settings import KafkaSettings


def test_a_broker_that_is_away_is_told_and_not_waited_for_again() -> None:
    reader = ImageReader(KafkaSettings(bootstrap_servers=f"127.0.0.1:{find_ports()}"))
    started = time.monotonic()
    with pytest.raises(PictureUnreadable, match=r"image xray\.images-0@7 cannot be read"):
        reader.read(Place(0, 7))
    assert time.monotonic() - started < 8
    started = time.monotonic()
    for _ in range(50):
        with pytest.raises(PictureUnreadable, match="has not answered a moment ago"):
            reader.read(Place(0, 7))
    assert time.monotonic() - started < 1
    reader.close()


def test_the_end_waits_for_no_broker_that_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(2) as pool:
        reader = ImageReader(KafkaSettings(bootstrap_servers=f"127.0.0.1:{silent.getsockname()[1]}"))
        begun = [pool.submit(reader.read, Place(0, offset)) for offset in (7, 8)]
        time.sleep(0.3)
        started = time.monotonic()
        reader.close()
        for one in begun:
            with pytest.raises(PictureUnreadable, match="the page is ending"):
                one.result()
        assert time.monotonic() - started < 2
