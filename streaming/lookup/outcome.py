"""One outcome as people see it: a prediction or a dead letter, which image it is about, and when it came there."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from confluent_kafka import Message

from schemas import envelope
from schemas.modelcard import UNDECIDED, AbstainBand
from streaming.alerts.outcomeevents import Event, Kind
from streaming.alerts.outcomeevents import read_dead_letter as read_letter_event
from streaming.alerts.outcomeevents import read_prediction as read_prediction_event
from streaming.kafka.places import Place, header_text, place_of, read_headers, read_origin

__all__ = ["NO_PLACE", "FindBand", "Kind", "Outcome", "ScoredBy", "no_band", "read_dead_letter", "read_prediction"]

NO_PLACE = Place(-1, -1)
"""Record of a prediction that was read from its table, which does not note it."""

_FAULTS = (ValueError, KeyError, TypeError, AttributeError, OverflowError)

FindBand = Callable[[str, str], AbstainBand | None]
"""Gives what a model abstains on, by its version and hash; None where it decides on everything or is not here."""


def no_band(_version: str, _sha256: str) -> AbstainBand | None:
    """Give none, for who does not need it: the flags say whether a prediction was decided."""
    return None


_OTHER_TEXTS = 4096
_MODELS = 256


@dataclass(frozen=True, slots=True)
class ScoredBy:
    """What a model decides with, as its predictions say; one object is shared by all of them.

    Parameters
    ----------
    name, version, sha256 : str
        The model.
    labels : tuple of str
        Its classes, in the order of the prediction.
    positive_label : str
        The finding whose probability is the score.
    threshold : float or None
        Score from which ``positive_label`` is said; None means the most probable class.
    operating_point : str
        How it was chosen, in words.
    abstain : AbstainBand or None
        Of the model's card, where that is on this machine.
    """

    name: str
    version: str
    sha256: str
    labels: tuple[str, ...]
    positive_label: str
    threshold: float | None
    operating_point: str
    abstain: AbstainBand | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A prediction or a dead letter. Times are Unix time in seconds.

    Parameters
    ----------
    kind : Kind
        ``PREDICTION`` or ``DEAD_LETTER``.
    event_id : str
        Of the outcome.
    image_key : str
        Of the image: the event id that its receipts have; of its place where it has no source and id.
    topic : str
        Of the image.
    topic_id : str
        Kafka's own id of that topic; empty where the outcome does not tell.
    place : Place
        Where the image is, or was, in its topic.
    record : Place
        Where the outcome is in its own topic; `NO_PLACE` of a prediction that was read from
        its table.
    received_at : float
        Kafka's clock, when it took the image.
    scored_at : float
        The stream's clock; of a dead letter the same as the next.
    published_at : float
        Timestamp of the outcome's record.
    source, image_id, sha256 : str or None
        As published; ``source`` is the device.
    captured_at : str or None
        The device's clock, as the device wrote it.
    payload_bytes, height, width : int or None
        Of the image; rows and columns in pixels, of a prediction.
    media_type : str or None
        Of a prediction.
    decode_s, predict_s : float or None
        Seconds that decoding and the network took.
    model : ScoredBy or None
        None of a dead letter.
    label : str or None
        What the model says.
    probabilities : tuple of float
        In the order of ``model.labels``.
    flags, remarks : tuple of str
        Of a prediction; flagged ones are not to be acted on.
    reason, error, error_class : str or None
        Of a dead letter: the code, what was found and wanted, the error's class.
    redriven_from : str or None
        Where the record was that had failed before.
    number : int
        Counted by the page's own memory from 1; 0 where it is not in there.
    """

    kind: Kind
    event_id: str
    image_key: str
    topic: str
    topic_id: str
    place: Place
    record: Place
    received_at: float
    scored_at: float
    published_at: float
    source: str | None = None
    image_id: str | None = None
    sha256: str | None = None
    captured_at: str | None = None
    payload_bytes: int | None = None
    height: int | None = None
    width: int | None = None
    media_type: str | None = None
    decode_s: float | None = None
    predict_s: float | None = None
    model: ScoredBy | None = None
    label: str | None = None
    probabilities: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    reason: str | None = None
    error: str | None = None
    error_class: str | None = None
    redriven_from: str | None = None
    number: int = 0

    @property
    def is_prediction(self) -> bool:
        """Whether the image was scored."""
        return self.kind is Kind.PREDICTION

    @property
    def score(self) -> float | None:
        """Probability of the positive label; None of a dead letter."""
        if self.model is None:
            return None
        return self.probabilities[self.model.labels.index(self.model.positive_label)]

    @property
    def shown_label(self) -> str | None:
        """What people are shown: of a flagged prediction a word that reads like no answer; None of a dead letter."""
        return UNDECIDED if self.flags else self.label

    @property
    def latency_s(self) -> float:
        """Seconds from Kafka taking the image to the outcome's record."""
        return max(self.published_at - self.received_at, 0.0)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory: what all have, and its own texts."""
        own = (self.event_id, self.image_key, self.image_id, self.sha256, self.captured_at, self.error)
        # One text for all images of a device, but of a hostile one another text in each.
        shared = (self.source, self.redriven_from)
        return _SIZE_BYTES + sum(len(text) for text in own + shared if text)

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        model = self.model
        band = None if model is None else model.abstain
        return {
            "number": self.number,
            "kind": self.kind.value,
            "event_id": self.event_id,
            "place": str(self.place),
            "topic": self.topic,
            "record": str(self.record),
            "received_at": self.received_at,
            "scored_at": self.scored_at,
            "published_at": self.published_at,
            "latency_s": self.latency_s,
            "source": self.source,
            "image_id": self.image_id,
            "sha256": self.sha256,
            "captured_at": self.captured_at,
            "height": self.height,
            "width": self.width,
            "payload_bytes": self.payload_bytes,
            "media_type": self.media_type,
            "model": None if model is None else {"name": model.name, "version": model.version},
            "label": self.label,
            "shown_label": self.shown_label,
            "score": self.score,
            "positive_label": None if model is None else model.positive_label,
            "probabilities": {} if model is None else dict(zip(model.labels, self.probabilities, strict=True)),
            "threshold": None if model is None else model.threshold,
            "abstain": None if band is None else [band.low, band.high],
            "flags": list(self.flags),
            "remarks": list(self.remarks),
            "reason": self.reason,
            "error": self.error,
            "redriven_from": self.redriven_from,
        }


_SIZE_BYTES = 1000
"""The object, its numbers and the heads of its texts, as measured, and its entries in the memory's tables."""


def read_prediction(message: Message, find_band: FindBand) -> Outcome | None:
    """Read a record of the predictions topic.

    Parameters
    ----------
    message : Message
        Without an error.
    find_band : callable
        Asked once for each model.

    Returns
    -------
    Outcome or None
        None where the record is none of SCORE's.
    """
    headers = read_headers(message)
    published_at = _seconds(message)
    event = read_prediction_event(message.value(), headers, datetime.fromtimestamp(published_at, UTC))
    if event is None:
        return None
    try:
        value = json.loads(message.value() or b"")
        image, probabilities = value["image"], value["probabilities"]
        model = _model_of(value, event, find_band)
        return Outcome(
            Kind.PREDICTION,
            **_common(event, message, headers),
            scored_at=event.at.timestamp(),
            published_at=published_at,
            payload_bytes=int(image["payload_bytes"]),
            height=int(image["height"]),
            width=int(image["width"]),
            media_type=_share(str(image["media_type"])),
            decode_s=_number(headers, envelope.DECODE_SECONDS),
            predict_s=_number(headers, envelope.PREDICT_SECONDS),
            model=model,
            label=_share(str(event.label)),
            probabilities=tuple(float(probabilities[label]) for label in model.labels),
            flags=_share_all(event.flags),
            remarks=_share_all(tuple(map(str, value.get("remarks") or ()))),
        )
    except _FAULTS:
        return None


def read_dead_letter(message: Message) -> Outcome | None:
    """Read a record of the dead-letter topic; of the image in it only the hash and the size stay.

    Returns
    -------
    Outcome or None
        None where the record is none of SCORE's.
    """
    headers = read_headers(message)
    published_at = _seconds(message)
    value = message.value()
    event = read_letter_event(value, headers, datetime.fromtimestamp(published_at, UTC))
    if event is None:
        return None
    try:
        return Outcome(
            Kind.DEAD_LETTER,
            **_common(event, message, headers),
            scored_at=published_at,
            published_at=published_at,
            payload_bytes=None if value is None else len(value),
            reason=_share(event.reason or ""),
            error=header_text(headers, envelope.ERROR_EXCEPTION_MESSAGE),
            error_class=_share((header_text(headers, envelope.ERROR_EXCEPTION_CLASS) or "").rpartition(".")[2]),
        )
    except _FAULTS:
        return None


def _common(event: Event, message: Message, headers: Mapping[str, bytes]) -> dict[str, Any]:
    """Give what both kinds have."""
    origin = read_origin(headers)
    if origin is None:
        msg = "no place of an image"
        raise ValueError(msg)
    captured = envelope.CAPTURED_AT if event.kind is Kind.PREDICTION else envelope.CE_TIME
    return {
        "event_id": event.event_id,
        "image_key": event.image_key,
        "topic": _share(origin.topic),
        "topic_id": _share(origin.topic_id),
        "place": origin.place,
        "record": place_of(message),
        "received_at": event.received_at.timestamp(),
        "source": None if event.source is None else _share(event.source),
        "image_id": event.image_id,
        "sha256": event.sha256,
        "captured_at": header_text(headers, captured),
        "redriven_from": header_text(headers, envelope.REDRIVEN_FROM),
    }


def _model_of(value: Mapping[str, Any], event: Event, find_band: FindBand) -> ScoredBy:
    labels = tuple(map(str, value["probabilities"]))
    said = str(value["positive_label"]), event.threshold, str(value["operating_point"])
    return _share_model(event.model["name"], event.model["version"], event.model["sha256"], labels, *said, find_band)


@lru_cache(_MODELS)
def _share_model(
    name: str,
    version: str,
    sha256: str,
    labels: tuple[str, ...],
    positive_label: str,
    threshold: float | None,
    operating_point: str,
    find_band: FindBand,
) -> ScoredBy:
    band = find_band(version, sha256)
    return ScoredBy(name, version, sha256, labels, positive_label, threshold, operating_point, band)


@lru_cache(_OTHER_TEXTS)
def _share(text: str) -> str:
    """Give one object for all equal texts: a device's name is in each of its outcomes."""
    return text


@lru_cache(_OTHER_TEXTS)
def _share_all(texts: tuple[str, ...]) -> tuple[str, ...]:
    return texts


def _number(headers: Mapping[str, bytes], name: str) -> float | None:
    text = header_text(headers, name)
    return None if text is None else float(text)


def _seconds(message: Message) -> float:
    # A topic that was made by hand may have a sender's clock, and a year that Python has no number for.
    return float(min(max(message.timestamp()[1] / 1000, 0.0), 253_402_300_799.0))
