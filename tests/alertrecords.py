"""Records of the topics that alarms are made of, and the rules that tests are about."""

import hashlib
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Producer

from schemas import envelope
from streaming.gateway.receipts.receipt import Receipt, State
from streaming.settings import KafkaSettings

MODEL: dict[str, Any] = {"name": "cxr", "version": "20260131T120000Z", "sha256": "4e" * 32, "rendering_version": 2}
SECRET = "whsec_" + "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU="


@dataclass(frozen=True)
class Record:
    """One record, to be published or read."""

    topic: str
    value: bytes | None
    headers: dict[str, bytes]
    event_id: str


def image_of(number: int | str, source: str = "/dx-1") -> dict[str, Any]:
    """What an outcome says of an image."""
    sha256 = hashlib.sha256(str(number).encode()).hexdigest()
    named = {"source": source, "id": f"1.2.{number}"}
    return {**named, "sha256": sha256, "media_type": "image/png", "height": 20, "width": 30, "payload_bytes": 99}


def origin_headers(kafka: KafkaSettings, offset: int, received: float, **more: str) -> dict[str, bytes]:
    """Headers that say which image an outcome is about."""
    texts = {
        envelope.INPUT_TOPIC: kafka.images_topic,
        envelope.INPUT_PARTITION: "0",
        envelope.INPUT_OFFSET: str(offset),
        envelope.INPUT_TIMESTAMP: write_time(received),
    }
    return {name: text.encode() for name, text in (texts | more).items()}


def prediction(
    kafka: KafkaSettings,
    number: int = 0,
    *,
    age_s: float = 0.0,
    headers: dict[str, str] | None = None,
    source: str = "/dx-1",
    model: dict[str, Any] | None = None,
    **said: Any,
) -> Record:
    """A prediction of an image that Kafka received so many seconds ago; by default a finding."""
    now = time.time()
    image, used = image_of(number, source), {**MODEL, **(model or {})}
    parts = (str(image.get("source")), str(image.get("id")), image["sha256"], used["sha256"])
    event_id = envelope.derive_event_id(*parts)
    value = {
        "event_id": event_id,
        "image": image,
        "model": used,
        "label": "opacities",
        "probabilities": {"normal": 0.0625, "opacities": 0.9375},
        "positive_label": "opacities",
        "threshold": 0.5,
        "operating_point": "not tuned",
        "disclaimer": envelope.DISCLAIMER,
    } | said
    own = {envelope.CE_TYPE: envelope.PREDICTION_TYPE, envelope.CE_TIME: write_time(now), envelope.CE_ID: event_id}
    all_headers = origin_headers(kafka, number, now - age_s, **(own | (headers or {})))
    return Record(kafka.predictions_topic, json.dumps(value).encode(), all_headers, event_id)


def dead_letter(kafka: KafkaSettings, number: int = 0, *, reason: str = "corrupt_image", **headers: str) -> Record:
    """A dead letter of an image of ``/dx-1``."""
    event_id = envelope.derive_event_id("/dx-1", str(number), "dead-letter")
    own = {
        envelope.CE_SOURCE: "/dx-1",
        envelope.CE_ID: f"1.2.{number}",
        envelope.EVENT_ID: event_id,
        envelope.REASON: reason,
    }
    all_headers = origin_headers(kafka, number, time.time(), **(own | headers))
    return Record(kafka.deadletters_topic, b"no image", all_headers, event_id)


def receipt(
    kafka: KafkaSettings,
    number: int = 0,
    *,
    state: State = State.ACCEPTED,
    age_s: float = 0.0,
    source: str = "/dx-1",
) -> Record:
    """A state of an image."""
    image = image_of(number, source)
    event_id = envelope.derive_image_event_id(image["source"], image["id"], image["sha256"])
    final: dict[str, Any] = {"outcome_event_id": "ab" * 16, "model": "1"} if state is State.PREDICTED else {}
    one = Receipt(
        event_id,
        image["source"],
        image["id"],
        image["sha256"],
        state,
        write_time(time.time() - age_s),
        place=f"{kafka.images_topic}-0@{number}",
        **final,
    )
    return Record(kafka.receipts_topic, one.to_json(), {n: v or b"" for n, v in one.to_headers()}, event_id)


def publish(kafka: KafkaSettings, *records: Record) -> None:
    """Publish, and wait for the broker."""
    producer = Producer(kafka.to_librdkafka() | {"linger.ms": 0})
    for one in records:
        producer.produce(one.topic, one.value, key=one.event_id, headers=list(one.headers.items()))
        producer.poll(0)
    assert producer.flush(60) == 0


def write_time(seconds: float) -> str:
    """As events have times."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
