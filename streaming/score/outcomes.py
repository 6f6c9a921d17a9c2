"""What becomes of a scored row on the results topics: the records of its outcome, built in a Spark Python worker.

An image gives a prediction and a feature record; a row that failed gives a dead letter; a canary gives a prediction on
its own topic. A prediction lacks what the classifier says, for that is Spark's to add (`streaming.score.decision`).

It imports no Spark, so that a worker starts fast and the tests need no JVM.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from schemas import envelope
from schemas.errors import Reason
from schemas.modelcard import ModelCard
from streaming.kafka.places import Headers
from streaming.score.published import NOTHING, Published


class Outcome(NamedTuple):
    """A record of a results topic.

    Parameters
    ----------
    topic : str
        Where it goes.
    key, value : bytes or None
        As Kafka has them. A prediction's value is not there yet.
    headers : list of (str, bytes or None)
        In their order.
    head : str or None
        A prediction's JSON up to what the classifier says, without an end; None for all others.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    head: str | None = None


@dataclass(frozen=True)
class Topics:
    """Names of the topics that outcomes and canaries are on; see `streaming.settings.KafkaSettings`.

    Parameters
    ----------
    canary, canary_results, predictions, features, deadletters : str
        See there.
    """

    canary: str
    canary_results: str
    predictions: str
    features: str
    deadletters: str


@dataclass(frozen=True)
class OutcomePlan:
    """Where outcomes go and what they say of the model.

    Parameters
    ----------
    topics : Topics
        Names of the topics.
    card : ModelCard
        The model that scores.
    topic_id : str or None
        Kafka's id of the topic that images come from; a canary is in no account and needs none.
    published : Published
        Outcomes that are on the topics already and are left out.
    """

    topics: Topics
    card: ModelCard
    topic_id: str | None = None
    published: Published = field(default=NOTHING)

    @cached_property
    def model(self) -> dict[str, Any]:
        """What a prediction says of the model."""
        card = self.card
        return {
            "name": card.name,
            "version": card.version,
            "sha256": card.sha256,
            "rendering_version": card.rendering_version,
        }

    @cached_property
    def featurizer(self) -> dict[str, Any]:
        """What a feature record says of the network."""
        card = self.card
        return {
            "network": card.network,
            "precision": card.precision,
            "rendering_version": card.rendering_version,
            "model_sha256": card.sha256,
        }

    def is_canary(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row is the stream's own test image."""
        return bool(row["topic"] == self.topics.canary)


def write_prediction(row: Mapping[str, Any], plan: OutcomePlan, scored_ms: int) -> Outcome:
    """Write the prediction of an image or a canary.

    Parameters
    ----------
    row : Mapping
        Of `streaming.score.decoding.decode_rows`, and ``predict_seconds``.
    plan : OutcomePlan
        See there.
    scored_ms : int
        When it was scored, in milliseconds since 1970.
    """
    described = ("source", "id", "sha256", "media_type", "height", "width", "payload_bytes")
    # Only what follows from the image and the model: a replay writes the same bytes.
    value = {"event_id": row["event_id"], "image": _pick(row, described), "model": plan.model}
    timings: Headers = [
        _header(envelope.DECODE_SECONDS, f"{row['decode_seconds']:.6f}"),
        _header(envelope.PREDICT_SECONDS, f"{row['predict_seconds']:.6f}"),
    ]
    topic = plan.topics.canary_results if plan.is_canary(row) else plan.topics.predictions
    headers = _cloud_event(envelope.PREDICTION_TYPE, row, plan, scored_ms, timings)
    return Outcome(topic, row["key"], None, headers, _to_json(value)[:-1])


def write_features(row: Mapping[str, Any], features: npt.NDArray[np.float32], plan: OutcomePlan, ms: int) -> Outcome:
    """Write the feature record of an image.

    Parameters
    ----------
    row, plan
        See `write_prediction`.
    features : numpy.ndarray
        float32, shape (n_features,), finite.
    ms : int
        When it was scored, in milliseconds since 1970.
    """
    value = {
        "event_id": row["event_id"],
        "image": _pick(row, ("source", "id", "sha256")),
        "featurizer": plan.featurizer,
    }
    text = f'{_to_json(value)[:-1]},"features":[{",".join(_format_numbers(features))}]}}'
    headers = _cloud_event(envelope.FEATURES_TYPE, row, plan, ms, [])
    return Outcome(plan.topics.features, row["key"], text.encode(), headers)


def write_dead_letter(row: Mapping[str, Any], plan: OutcomePlan) -> Outcome:
    """Write the dead letter of a row: the original record, and Kafka Connect's headers that say what was wrong with it.

    Spark's sink cannot set a record's timestamp, so the original one travels in a header.

    Parameters
    ----------
    row : Mapping
        Of `streaming.score.decoding.decode_rows`, with a reason.
    plan : OutcomePlan
        See there.
    """
    # Names that consumers have seen since the first release; no paths of modules, though they were once.
    in_model = row["reason"] == Reason.NO_FEATURES
    failed_in = "streaming.score.apply_model" if in_model else "streaming.decoding.decode_record"
    added = [
        *_position(row, plan),
        _header(envelope.EVENT_ID, row["event_id"]),
        _header(envelope.REASON, row["reason"]),
        _header(envelope.ERROR_TOPIC, row["topic"]),
        _header(envelope.ERROR_PARTITION, row["partition"]),
        _header(envelope.ERROR_OFFSET, row["offset"]),
        _header(envelope.ERROR_CONNECTOR, "xray-score"),
        _header(envelope.ERROR_TASK, row["partition"]),
        _header(envelope.ERROR_STAGE, "VALUE_CONVERTER"),
        _header(envelope.ERROR_CLASS, failed_in),
        _header(envelope.ERROR_EXCEPTION_CLASS, row["error_class"]),
        _header(envelope.ERROR_EXCEPTION_MESSAGE, row["error_message"]),
        _header(envelope.ERROR_EXCEPTION_STACKTRACE, row["error_trace"]),
    ]
    original = _original_headers(row)
    taken = {name for name, _ in original}
    # A record that failed elsewhere before tells so under Kafka Connect's names; that is kept. Our own names say where
    # it failed now: they go behind whatever the record brought, and the last one counts.
    new = [(name, value) for name, value in added if not (name.startswith(envelope.ERROR_PREFIX) and name in taken)]
    return Outcome(plan.topics.deadletters, row["key"], row["payload"], original + new)


def _cloud_event(event_type: str, row: Mapping[str, Any], plan: OutcomePlan, scored_ms: int, more: Headers) -> Headers:
    headers = [
        _header(envelope.CONTENT_TYPE, "application/json"),
        _header(envelope.CE_SPECVERSION, envelope.SPECVERSION),
        _header(envelope.CE_ID, row["event_id"]),
        _header(envelope.CE_SOURCE, envelope.SCORE_SOURCE),
        _header(envelope.CE_TYPE, event_type),
        _header(envelope.CE_TIME, _iso_utc(scored_ms)),
        *_position(row, plan),
        *more,
    ]
    if row.get("id") is not None:
        headers.append(_header(envelope.CE_SUBJECT, row["id"]))
    if row.get("captured_at") is not None:
        headers.append(_header(envelope.CAPTURED_AT, row["captured_at"]))
    return headers + [one for one in _original_headers(row) if one[0].lower() in _CARRIED_HEADERS]


_CARRIED_HEADERS = (*envelope.TRACE_HEADERS, envelope.REDRIVEN_FROM)
"""Of the image, on its prediction too: what traces it, and that it was sent again by hand, which is nobody's alarm."""


def _position(row: Mapping[str, Any], plan: OutcomePlan) -> Headers:
    noted = [] if plan.topic_id is None or plan.is_canary(row) else [_header(envelope.INPUT_TOPIC_ID, plan.topic_id)]
    return [
        _header(envelope.INPUT_TOPIC, row["topic"]),
        _header(envelope.INPUT_PARTITION, row["partition"]),
        _header(envelope.INPUT_OFFSET, row["offset"]),
        _header(envelope.INPUT_TIMESTAMP, _iso_utc(row["timestamp_ms"])),
        *noted,
    ]


def _format_numbers(values: npt.NDArray[np.float32]) -> list[str]:
    # By way of Arrow: the shortest text that is the same float32 again, at a tenth of the time that json takes.
    texts: list[str] = pc.cast(pa.array(values), pa.string()).to_pylist()
    # With a point, so that no reader takes one for an integer, which has no -0.
    return [text if "." in text or "e" in text else f"{text}.0" for text in texts]


def _original_headers(row: Mapping[str, Any]) -> Headers:
    return [(header["key"], header["value"]) for header in row["headers"] or ()]


def _header(name: str, value: object) -> tuple[str, bytes]:
    return name, str(value).encode()


def _iso_utc(ms: int) -> str:
    # numpy's: a sender's clock may stand in a year that Python's own has no number for.
    return f"{np.datetime64(ms, 'ms')}Z"


def _pick(row: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row[name] for name in names if row.get(name) is not None}


def _to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
