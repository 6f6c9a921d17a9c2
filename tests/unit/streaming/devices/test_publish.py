"""What is published of files, with a double of the producer that confirms all."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from schemas import envelope
from streaming.devices import publish
from streaming.devices.publish import publish_files
from streaming.kafka.places import Headers, headers_by_name
from streaming.settings import KafkaSettings
from tests.testimages import gray_pixels, png

KAFKA = KafkaSettings()


class Producer:
    """Stands in for Kafka's client."""

    sent: list[tuple[bytes, Headers]]

    def __init__(self, _kafka: KafkaSettings, _topic: str) -> None:
        type(self).sent = []

    def send(self, value: bytes, *, key: bytes, headers: Headers, on_delivery: Callable[[Any], None]) -> None:
        self.sent.append((value, headers))
        on_delivery(SimpleNamespace(error=None))

    def flush(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "RecordProducer", Producer)
    monkeypatch.setattr(publish, "describe_cluster", lambda kafka: None)


@pytest.mark.parametrize("hide_names", [False, True])
def test_the_event_id_is_the_one_that_the_stream_derives(tmp_path: Path, *, hide_names: bool) -> None:
    file = tmp_path / "scan.png"
    file.write_bytes(png())
    report = publish_files([file], KAFKA, source="/ward", hide_names=hide_names)
    [(value, headers)] = Producer.sent
    image_id = headers_by_name(headers)[envelope.CE_ID].decode()
    wanted = envelope.derive_image_event_id("/ward", image_id, hashlib.sha256(value).hexdigest())
    assert report.event_ids == {file: wanted}
    assert report.no_images == []


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>"])
def test_a_named_file_that_is_no_image_is_sent_and_told(tmp_path: Path, content: bytes) -> None:
    good, bad = tmp_path / "a.png", tmp_path / "notes.png"
    good.write_bytes(png(gray_pixels(30, 40)))
    bad.write_bytes(content)
    report = publish_files([good, bad], KAFKA)
    assert report.no_images == [bad]
    assert report.delivered == [good, bad]
    assert set(report.event_ids) == {good, bad}


def test_a_file_that_cannot_be_read_has_no_event_id(tmp_path: Path) -> None:
    report = publish_files([tmp_path / "gone.png"], KAFKA)
    assert report.event_ids == {}
    assert list(report.failed) == [tmp_path / "gone.png"]
