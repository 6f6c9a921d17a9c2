"""The gallery against a real broker: images by their place, what is gone, and what was never an image."""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from pyspark.sql import SparkSession

from schemas import envelope
from streaming.kafka.places import Place
from streaming.kafka.topics import create_topics
from streaming.page.pictures.gallery import Gallery
from streaming.page.pictures.picture import PictureGone, PictureUnreadable
from streaming.settings import StreamSettings
from tests.conftest import Trained
from tests.convmodel import MAP, add_conv_model
from tests.integration.streams import outcomes, score
from tests.testimages import dicom, gray_pixels, jpeg, png, twelve_bit_pixels
from xray.phantom import FINDINGS, encode_png, generate_radiograph

pytestmark = pytest.mark.kafka

_Record = tuple[bytes | None, list[tuple[str, bytes]]]


@dataclass(frozen=True)
class Scored:
    model: str
    probability: float | None


def produce(settings: StreamSettings, records: Sequence[_Record]) -> list[Place]:
    """Publish to partition 1 and say where the records are."""
    kafka, places = settings.kafka, {}
    producer = Producer({**kafka.to_librdkafka(), "message.max.bytes": kafka.max_message_bytes})
    for i, (value, headers) in enumerate(records):

        def note(error: object, message: Message, i: int = i) -> None:
            assert error is None
            places[i] = Place(message.partition(), message.offset())

        producer.produce(kafka.images_topic, value, headers=headers, partition=1, on_delivery=note)
    producer.flush()
    return [places[i] for i in range(len(records))]


def sha(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


@pytest.fixture
def gallery(settings: StreamSettings, tmp_path: Path) -> Iterator[Gallery]:
    gallery = Gallery(settings, thumbnails=tmp_path / "thumbnails")
    gallery.prepare()
    yield gallery
    gallery.close()


@pytest.fixture
def files() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 4096, (4200, 3900), np.uint16)
    plate = dicom(noise, WindowCenter=2048, WindowWidth=4096)
    return [png(gray_pixels(500, 400)), jpeg(gray_pixels(200, 150)), plate, dicom(twelve_bit_pixels())]


@pytest.fixture
def places(settings: StreamSettings, files: list[bytes]) -> list[Place]:
    """The files, of which the second has text burned in, then a tombstone and something else."""
    flagged = [(envelope.IMAGE_FLAGS, envelope.BURNED_IN.encode())]
    records: list[_Record] = [(file, flagged if n == 1 else []) for n, file in enumerate(files)]
    return produce(settings, [*records, (None, []), (b"no image at all", [])])


def test_images_are_shown_by_their_place(
    settings: StreamSettings, gallery: Gallery, tmp_path: Path, files: list[bytes], places: list[Place]
) -> None:
    card = add_conv_model(tmp_path)
    shapes = [(256, 205), (200, 150), (256, 238), twelve_bit_pixels().shape]
    for n in (3, 0, 2, 1):  # in any order, each the image that is at its place
        shown = gallery.thumbnail(places[n], sha256=sha(files[n]))
        assert (shown.height, shown.width) == shapes[n]
    view = gallery.full(places[2])
    assert (view.bits, view.height) == (16, 2048)
    with pytest.raises(PictureUnreadable, match="tombstone"):
        gallery.thumbnail(places[4])
    with pytest.raises(PictureUnreadable, match="unsupported_format"):
        gallery.thumbnail(places[5])
    with pytest.raises(PictureGone, match="another image now"):
        gallery.full(places[0], sha256="0" * 64)
    for nowhere in (Place(1, places[-1].offset + 5), Place(77, 0)):
        started = time.monotonic()
        with pytest.raises(PictureGone, match="not in Kafka any more"):
            gallery.thumbnail(nowhere)
        assert time.monotonic() - started < 5

    # The map adds up, whatever was published; here an even chance.
    found = gallery.explain(places[0], Scored(card.version, 0.5), sha256=sha(files[0]))
    assert found.map is not None
    assert found.map.shape == MAP
    assert found.logit_published == 0
    assert math.isclose(found.difference, found.logit_from_map)

    # Nobody has joined a group or committed anything.
    admin = AdminClient(settings.kafka.to_librdkafka())
    groups = admin.list_consumer_groups(request_timeout=20).result().valid
    assert "xray-reader" not in {group.group_id for group in groups}


def test_a_picture_that_is_gone_is_told_and_thumbnails_stay(
    settings: StreamSettings, gallery: Gallery, tmp_path: Path, files: list[bytes], places: list[Place]
) -> None:
    for n in (0, 1):
        gallery.thumbnail(places[n])
    admin = AdminClient(settings.kafka.to_librdkafka())
    end = TopicPartition(settings.kafka.images_topic, 1, places[-1].offset + 1)
    admin.delete_records([end])[end].result()
    with pytest.raises(PictureGone, match="its retention has passed"):
        gallery.full(places[3])
    later = Gallery(settings, thumbnails=tmp_path / "thumbnails")
    assert later.thumbnail(places[0], sha256=sha(files[0])).height == 256
    with pytest.raises(PictureGone):  # text is burned into it
        later.thumbnail(places[1], sha256=sha(files[1]))
    later.close()


def test_a_topic_that_was_made_anew_shows_no_other_image(
    settings: StreamSettings, gallery: Gallery, files: list[bytes], places: list[Place]
) -> None:
    assert gallery.full(places[3]).bits == 16
    admin = AdminClient(settings.kafka.to_librdkafka())
    for future in admin.delete_topics([settings.kafka.images_topic], operation_timeout=20).values():
        future.result()
    with pytest.raises(PictureGone):
        gallery.full(places[0])
    deadline = time.monotonic() + 20
    while settings.kafka.images_topic in admin.list_topics(timeout=10).topics:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    create_topics(settings.kafka)
    [place] = produce(settings, [(png(gray_pixels(64, 100)), [])])
    assert place == places[0]
    with pytest.raises(PictureGone, match="the topic was made anew"):
        gallery.full(place, sha256=sha(files[0]))
    assert gallery.full(place).height == 64


@pytest.mark.spark
@pytest.mark.train
def test_the_map_adds_up_to_what_the_real_stream_published(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    files = [encode_png(generate_radiograph(seed, finding=FINDINGS[seed % 2])) for seed in range(4)]
    places = produce(settings, [(file, []) for file in files])
    score(spark, settings, trained)
    published, dead = outcomes(settings)
    assert not dead
    gallery = Gallery(settings.model_copy(update={"model": trained.folder}))
    for record in published:
        value = json.loads(record.value or b"")
        place = Place(int(record.text(envelope.INPUT_PARTITION)), int(record.text(envelope.INPUT_OFFSET)))
        positive = value["probabilities"][value["positive_label"]]
        scored = Scored(value["model"]["version"], positive)
        found = gallery.explain(place, scored, sha256=value["image"]["sha256"])
        assert found.why_none == ""
        assert found.map is not None
        assert found.map.shape == (7, 7)
        assert math.isclose(found.logit_published, math.log(positive / (1 - positive)))
        assert abs(found.difference) < 1e-4
    assert len(published) == len(places)
    gallery.close()
