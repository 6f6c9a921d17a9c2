"""Images as a gateway publishes them, and the outcomes that SCORE's own code writes for them, without Spark."""

import hashlib
import itertools
import json
import time
from dataclasses import dataclass, replace
from typing import Any

from confluent_kafka import TIMESTAMP_CREATE_TIME

from schemas import envelope
from sparkdl.image.limits import RENDERING_VERSION, DecodeLimits
from streaming.gateway.offer import Outgoing
from streaming.kafka.places import Headers
from streaming.score.decoding import DecodePlan, decode_record
from streaming.score.outcomes import Outcome, OutcomePlan, Topics, write_dead_letter, write_prediction
from streaming.settings import KafkaSettings
from tests.stored import NO_CARD
from tests.testimages import png

MODEL = "20260131T120000Z"
_DECODING = DecodePlan((20, 30), DecodeLimits(), model_sha256="e" * 64, rendering=RENDERING_VERSION)
_numbers = itertools.count()


def outgoing(value: bytes | None = None, *, source: str = "/dx-1", name: str = "", flags: str = "") -> Outgoing:
    """An image of its own, as the intake hands it to Kafka."""
    image = png() if value is None else value
    image_id = name or f"1.2.3.{next(_numbers)}"
    headers = {
        envelope.CONTENT_TYPE: "image/png",
        envelope.CE_SPECVERSION: envelope.SPECVERSION,
        envelope.CE_TYPE: envelope.IMAGE_TYPE,
        envelope.CE_SOURCE: source,
        envelope.CE_ID: image_id,
    } | ({envelope.IMAGE_FLAGS: flags} if flags else {})
    event_id = envelope.derive_image_event_id(source, image_id, hashlib.sha256(image).hexdigest())
    return Outgoing(event_id, image_id.encode(), [(name, text.encode()) for name, text in headers.items()], image)


def broken(**options: Any) -> Outgoing:
    """An image that becomes a dead letter."""
    return outgoing(png()[:-20], **options)


@dataclass(frozen=True)
class Record:
    """A record as a consumer hands it out."""

    _topic: str
    _key: bytes | None
    _value: bytes | None
    _headers: Headers
    _offset: int = 0
    _ms: int = 1_769_868_239_123

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> Headers:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return TIMESTAMP_CREATE_TIME, self._ms

    def error(self) -> None:
        return None

    def changed(self, **changes: Any) -> "Record":
        return replace(self, **{f"_{name}": one for name, one in changes.items()})

    def with_value(self, **changes: Any) -> "Record":
        """With other fields in its JSON."""
        return self.changed(value=json.dumps(json.loads(self._value or b"") | changes).encode())

    def with_headers(self, **changes: bytes | None) -> "Record":
        """With other headers; None takes one away."""
        kept = [(name, value) for name, value in self._headers if name not in changes]
        return self.changed(headers=kept + [(name, value) for name, value in changes.items() if value is not None])


def score(image: Outgoing, kafka: KafkaSettings, *, place: str = "0@12", model: str = MODEL, **answer: Any) -> Record:
    """Let SCORE's code decode an image and write its outcome: a prediction, or a dead letter where it is broken.

    Parameters
    ----------
    image : Outgoing
        It.
    kafka : KafkaSettings
        Names of the topics.
    place : str
        Where the image is in its topic.
    model : str
        Version of the model.
    **answer
        Fields of the prediction that differ.
    """
    partition, offset = map(int, place.split("@"))
    headers = [{"key": name, "value": value} for name, value in image.headers]
    row = {
        "topic": kafka.images_topic,
        "partition": partition,
        "offset": offset,
        "key": image.key,
        "headers": headers,
        "timestamp_ms": 1_769_868_239_000,
        "predict_seconds": 0.01,
    }
    row |= decode_record(row, image.value, replace(_DECODING, model_sha256=hashlib.sha256(model.encode()).hexdigest()))
    names = (kafka.canary_topic, kafka.canary_results_topic)
    topics = Topics(*names, kafka.predictions_topic, kafka.features_topic, kafka.deadletters_topic)
    plan = OutcomePlan(topics, replace(NO_CARD, version=model, sha256="e" * 64), topic_id="abcdefghijklmnopqrstuv")
    if "reason" in row:
        return _record(write_dead_letter(row, plan))
    outcome = write_prediction(row, plan, int(time.time() * 1000))
    said = {
        "label": "normal",
        "probabilities": {"normal": 0.75, "opacities": 0.25},
        "positive_label": "opacities",
        "operating_point": "most probable",
        "disclaimer": envelope.DISCLAIMER,
    }
    value = json.loads(f"{outcome.head}}}") | said | answer
    return _record(outcome._replace(value=json.dumps(value).encode()))


def _record(outcome: Outcome) -> Record:
    return Record(outcome.topic, outcome.key, outcome.value, outcome.headers)
