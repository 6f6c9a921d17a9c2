"""Small parts of the service: model cards, checkpoints, histograms, files to publish."""

import json
from pathlib import Path

import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
from prometheus_client import CollectorRegistry, generate_latest

from schemas.errors import DatasetError, ModelLoadError
from schemas.modelcard import CARD_FILE, ModelCard, hash_model_folder, read_card, write_card
from streaming.checkpoints import committed_offsets
from streaming.metrics import BucketHistogram
from streaming.publish import find_files, image_message
from tests.specimens import png


def card(sha256: str) -> ModelCard:
    return ModelCard(
        "cxr", "v1", ("normal", "covid"), "covid", 0.5, "untuned", "Lite0", "fp32", 1, sha256, "2026", {"accuracy": 0.9}
    )


def test_card_round_trip_and_tampering(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "part-0").write_text("{}")
    write_card(tmp_path, card(hash_model_folder(tmp_path)))
    (tmp_path / "metadata" / ".part-0.crc").write_bytes(b"side file")
    assert read_card(tmp_path) == card(hash_model_folder(tmp_path))
    (tmp_path / "metadata" / "part-0").write_text("{ }")
    with pytest.raises(ModelLoadError, match="was changed after training"):
        read_card(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"labels": 3}'])
def test_unreadable_card(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD_FILE).write_text(text)
    with pytest.raises(ModelLoadError, match="cannot read the model card"):
        read_card(tmp_path)


def test_committed_offsets(tmp_path: Path) -> None:
    assert committed_offsets(tmp_path) is None
    for folder in ("offsets", "commits"):
        (tmp_path / folder).mkdir()
    for batch, end in ((9, 5), (10, 8), (11, 12)):
        offsets = json.dumps({"images": {"0": end, "1": 2}})
        (tmp_path / "offsets" / str(batch)).write_text(f'v1\n{{"batchWatermarkMs":0}}\n{offsets}')
    for batch in (9, 10):  # 11 was begun and not committed; 9 sorts behind 10 as text
        (tmp_path / "commits" / str(batch)).write_text("v1\n{}")
    (tmp_path / "commits" / ".10.crc").write_text("")
    assert committed_offsets(tmp_path) == {"images": {0: 8, 1: 2}}


def test_histogram_accumulates_buckets() -> None:
    registry = CollectorRegistry()
    histogram = BucketHistogram("xray_x_seconds", "Text.", bounds=(0.1, 1.0), registry=registry, labels={"model": "m"})
    histogram.add([1, 2, 3], 9.5)
    histogram.add_one(1.0)
    page = generate_latest(registry).decode()
    assert 'xray_x_seconds_bucket{le="0.1",model="m"} 1.0' in page
    assert 'xray_x_seconds_bucket{le="1.0",model="m"} 4.0' in page
    assert 'xray_x_seconds_bucket{le="+Inf",model="m"} 7.0' in page
    assert 'xray_x_seconds_sum{model="m"} 10.5' in page


def test_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "deep/c.dcm"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    names = [path.name for path in find_files([str(tmp_path)])]
    assert sorted(names) == ["a.JPG", "b.png", "c.dcm"]
    assert [path.name for path in find_files([str(tmp_path / "*.txt"), str(tmp_path / "notes.txt")])] == ["notes.txt"]
    with pytest.raises(DatasetError, match="nowhere"):
        find_files([str(tmp_path / "nowhere")])


def test_published_message_is_a_cloud_event_for_another_library() -> None:
    payload, headers = image_message(png(), image_id="a.png-1", source="/dx-1")
    event = from_binary_event(KafkaMessage(headers=dict(headers), key=None, value=payload))
    assert (event.get_id(), event.get_source(), event.get_type()) == ("a.png-1", "/dx-1", "xray.image.v1")
    assert event.get_datacontenttype() == "image/png"
    assert event.get_data() == png()
