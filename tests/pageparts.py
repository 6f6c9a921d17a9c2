"""Topics as a stream leaves them, for tests of the page: phantoms, and outcomes that SCORE's own code writes."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from confluent_kafka import Producer

from schemas import envelope
from streaming.gateway.offer import Outgoing
from streaming.kafka.places import Place
from streaming.kafka.reader import open_reader, read_spans
from streaming.kafka.topicids import read_topic_ids
from streaming.settings import KafkaSettings
from tests.imageoutcomes import outgoing, score
from xray.phantom import FINDINGS, encode_dicom, encode_jpeg, encode_png, generate_radiograph

DEVICES = ("/hospital/ward-3/dx-1", "/hospital/ward-3/dx-2", "/hospital/emergency/mobile-1")
THRESHOLD = 0.46
_ENCODERS = (encode_png, encode_dicom, encode_jpeg)
_MEDIA_TYPES = ("image/png", "application/dicom", "image/jpeg")
_FLAGGED_FROM, _FLAGGED_TO = 0.38, 0.58


@dataclass(frozen=True)
class Published:
    """An image that is in the topic.

    Parameters
    ----------
    image : Outgoing
        It.
    place : Place
        Where.
    """

    image: Outgoing
    place: Place


def draw_images(count: int, *, seed: int = 1) -> list[Outgoing]:
    """Draw phantoms, and among them what becomes a dead letter."""
    images = []
    for i in range(count):
        radiograph = generate_radiograph(seed + i, finding=FINDINGS[i % len(FINDINGS)])
        value = _ENCODERS[i % len(_ENCODERS)](radiograph)
        if i % 13 == 7:
            value = b"not an image, but a line of text\n" if i % 2 else value[: len(value) // 2]
        image = outgoing(value, source=DEVICES[i % len(DEVICES)], name=f"study-{4700 + i}")
        media_type = _MEDIA_TYPES[i % len(_ENCODERS)]
        headers = [(n, media_type.encode() if n == envelope.CONTENT_TYPE else v) for n, v in image.headers]
        images.append(replace(image, headers=headers))
    return images


def publish(kafka: KafkaSettings, images: Sequence[Outgoing]) -> list[Published]:
    """Publish images, each of them confirmed."""
    producer = Producer(kafka.to_librdkafka() | {"message.max.bytes": kafka.max_message_bytes, "linger.ms": 5})
    places: dict[int, Place] = {}
    for i, image in enumerate(images):

        def note(error: object, message: object, i: int = i) -> None:
            assert error is None, error
            places[i] = Place(message.partition(), message.offset())  # type: ignore[attr-defined]

        producer.produce(
            kafka.images_topic, key=image.key, value=image.value, headers=list(image.headers), on_delivery=note
        )
        producer.poll(0)
    producer.flush(30)
    return [Published(image, places[i]) for i, image in enumerate(images)]


def answer(kafka: KafkaSettings, images: Sequence[Published], *, seed: int = 1) -> None:
    """Write the outcomes of images, some of them flagged."""
    rng = random.Random(seed)
    producer = Producer(kafka.to_librdkafka() | {"message.max.bytes": kafka.max_message_bytes, "linger.ms": 5})
    topic_id = read_topic_ids(kafka, [kafka.images_topic]).topics[kafka.images_topic].encode()
    for i, one in enumerate(images):
        is_ill = i % 2 == 1
        p = round(min(max(rng.gauss(0.78 if is_ill else 0.2, 0.17), 0.004), 0.996), 4)
        flags = ["uncertain"] if _FLAGGED_FROM <= p < _FLAGGED_TO else ["unlike_training"] if i % 17 == 3 else []
        record = score(
            one.image,
            kafka,
            place=str(one.place),
            label="opacities" if p >= THRESHOLD else "normal",
            probabilities={"normal": round(1 - p, 4), "opacities": p},
            threshold=THRESHOLD,
            operating_point="sensitivity at least 0.9 out of fold; undecided from 0.38 to 0.58",
            flags=flags,
        ).with_headers(
            xray_input_timestamp=_write_time(time.time() - rng.uniform(0.2, 1.6)), xray_input_topic_id=topic_id
        )
        producer.produce(record.topic(), key=record.key(), value=record.value(), headers=record.headers())
        producer.poll(0)
    producer.flush(30)


def count_images(kafka: KafkaSettings) -> int:
    """Count what the images topic has."""
    with open_reader(kafka) as reader:
        return sum(map(len, read_spans(reader, kafka.images_topic).values()))


def _write_time(at: float) -> bytes:
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
    return f"{text}.{int(at % 1 * 1000):03d}Z".encode()
