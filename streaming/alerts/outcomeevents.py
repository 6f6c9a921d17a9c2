"""What a record says that rules are about: a prediction, a dead letter, or a receipt.

Records are read from the topics, or from a file's lines: topic records as JSON, what ``xray watch --json`` prints, or
the short form that tests of rules are written in (docs/alerts.md).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from schemas import envelope
from schemas.modelcard import UNDECIDED
from streaming.kafka.places import header_text, read_origin

_FAULTS = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
"""What reading somebody else's record can raise."""


_HEX_ID = re.compile(r"[0-9a-f]{32}")


class Kind(StrEnum):
    """What a record is. The names are label values of metrics."""

    PREDICTION = "prediction"
    DEAD_LETTER = "dead_letter"
    ACCEPTED = "accepted"
    ANSWERED = "answered"


@dataclass(frozen=True, slots=True)
class Event:
    """One outcome, or a state of an image.

    Parameters
    ----------
    kind : Kind
        See there.
    event_id : str
        Of the prediction or dead letter; of a receipt the image's own.
    image_key : str
        The same for all outcomes of one image: its own event id, or its place where it has no source and id.
    source, image_id, sha256 : str or None
        Of the image, as published.
    at : datetime
        When it was scored, or came into its state. UTC.
    received_at : datetime
        When Kafka received the image. UTC.
    place : str
        ``topic-partition@offset`` of the image.
    input_topic : str
        Topic of the image; empty where nobody says.
    label, probability, score, threshold : optional
        Of a prediction: what the model says, that label's probability, that of the positive label, and the score from
        which it says that one.
    is_positive : bool
        Whether the score has reached the model's operating point.
    flags : tuple of str
        Of a prediction.
    model : Mapping of str to str
        Of a prediction: ``name``, ``version``, ``sha256``.
    reason : str or None
        Of a dead letter.
    is_redriven : bool
        Whether 'xray deadletters redrive' had sent the image.
    """

    kind: Kind
    event_id: str
    image_key: str
    source: str | None
    image_id: str | None
    sha256: str | None
    at: datetime
    received_at: datetime
    place: str = ""
    input_topic: str = ""
    label: str | None = None
    probability: float | None = None
    score: float | None = None
    threshold: float | None = None
    is_positive: bool = False
    flags: tuple[str, ...] = ()
    model: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    is_redriven: bool = False

    @property
    def model_name(self) -> str | None:
        """The model's name and version, as people read them."""
        return f"{self.model['name']}@{self.model['version']}" if self.model else None

    @property
    def shown_label(self) -> str | None:
        """The label; of a flagged prediction a word that reads like no answer."""
        return UNDECIDED if self.flags else self.label


def read_prediction(value: bytes | None, headers: Mapping[str, bytes], recorded_at: datetime) -> Event | None:
    """Read a record of the predictions topic.

    Parameters
    ----------
    value : bytes or None
        As Kafka has it.
    headers : Mapping of str to bytes
        By name.
    recorded_at : datetime
        The record's own time; counts where a header does not say it.

    Returns
    -------
    Event or None
        None where the record is none of SCORE's.
    """
    if headers.get(envelope.CE_TYPE) != envelope.PREDICTION_TYPE.encode():
        return None
    try:
        return _prediction(_load(value), headers, recorded_at)
    except _FAULTS:
        return None


def _prediction(value: Mapping[str, Any], headers: Mapping[str, bytes], recorded_at: datetime) -> Event:
    origin = read_origin(headers)
    image, model = value["image"], value["model"]
    label = str(value["label"])
    probabilities = {str(name): _probability(one) for name, one in value["probabilities"].items()}
    score = probabilities[value["positive_label"]]
    threshold = value.get("threshold")
    source, image_id, sha256 = image.get("source"), image.get("id"), str(image["sha256"])
    place = "" if origin is None else str(origin)
    return Event(
        Kind.PREDICTION,
        event_id=_hex_id(value["event_id"]),
        image_key=_image_key(source, image_id, sha256, place),
        source=_text(source),
        image_id=_text(image_id),
        sha256=sha256,
        at=_time(header_text(headers, envelope.CE_TIME)) or recorded_at,
        received_at=_time(header_text(headers, envelope.INPUT_TIMESTAMP)) or recorded_at,
        place=place,
        input_topic="" if origin is None else origin.topic,
        label=label,
        probability=probabilities.get(label),
        score=score,
        threshold=None if threshold is None else _probability(threshold),
        is_positive=label == value["positive_label"] if threshold is None else score >= threshold,
        flags=tuple(map(str, value.get("flags") or ())),
        model={name: str(model[name]) for name in ("name", "version", "sha256")},
        is_redriven=envelope.REDRIVEN_FROM in headers,
    )


def read_dead_letter(value: bytes | None, headers: Mapping[str, bytes], recorded_at: datetime) -> Event | None:
    """Read a record of the dead-letter topic; see `read_prediction`."""
    origin = read_origin(headers)
    if origin is None or envelope.REASON not in headers:
        return None
    # As SCORE reads them: names in any case.
    image = {name.lower(): one for name, one in headers.items()}
    try:
        source, image_id = (image.get(name, b"").decode() for name in (envelope.CE_SOURCE, envelope.CE_ID))
        sha256 = None if value is None else hashlib.sha256(value).hexdigest()
        return Event(
            Kind.DEAD_LETTER,
            event_id=_hex_id(header_text(headers, envelope.EVENT_ID)),
            image_key=_image_key(source, image_id, sha256 or hashlib.sha256().hexdigest(), str(origin)),
            source=source or None,
            image_id=image_id or None,
            sha256=sha256,
            at=recorded_at,
            received_at=_time(header_text(headers, envelope.INPUT_TIMESTAMP)) or recorded_at,
            place=str(origin),
            input_topic=origin.topic,
            reason=header_text(headers, envelope.REASON),
            is_redriven=envelope.REDRIVEN_FROM in image,
        )
    except _FAULTS:
        return None


def read_receipt(value: bytes | None) -> Event | None:
    """Read a record of the receipts topic; see `read_prediction`."""
    try:
        receipt = _load(value)
        image = receipt["image"]
        source, image_id, sha256 = str(image["source"]), str(image["id"]), str(image["sha256"])
        at = datetime.fromisoformat(receipt["at"]).astimezone(UTC)
        return Event(
            Kind.ACCEPTED if receipt["state"] == Kind.ACCEPTED else Kind.ANSWERED,
            event_id=_hex_id(receipt["event_id"]),
            image_key=envelope.derive_image_event_id(source, image_id, sha256),
            source=source,
            image_id=image_id,
            sha256=sha256,
            at=at,
            received_at=at,
            place=str(receipt["place"] or ""),
        )
    except _FAULTS:
        return None


def read_line(line: Any, previous_at: datetime | None) -> Event | None:
    """Read one event of a file, or of a test of rules.

    Parameters
    ----------
    line : object
        JSON: a topic's record (``topic``, ``headers``, ``value``, ``timestamp``), a prediction as ``xray watch --json``
        prints it, or the short form.
    previous_at : datetime or None
        Time of the event before it, for one that has none of its own.

    Returns
    -------
    Event or None
        None where it is none of these.
    """
    default_at = previous_at or datetime.now(UTC)
    try:
        if "headers" in line and "topic" in line:
            return _from_topic_record(line, default_at)
        if "probabilities" in line:
            received_at = default_at - timedelta(seconds=float(line.get("latency_seconds", 0)))
            times = {envelope.CE_TIME: default_at.isoformat(), envelope.INPUT_TIMESTAMP: received_at.isoformat()}
            return _prediction(line, {name: text.encode() for name, text in times.items()}, default_at)
        return _from_short_form(line, default_at)
    except _FAULTS:
        return None


def _from_topic_record(line: Mapping[str, Any], default_at: datetime) -> Event | None:
    headers = {str(name): str(text).encode() for name, text in line["headers"].items()}
    recorded_at = _time(line.get("timestamp")) or default_at
    given = line.get("value")
    value = given.encode() if isinstance(given, str) else None if given is None else json.dumps(given).encode()
    if headers.get(envelope.CE_TYPE) == envelope.RECEIPT_TYPE.encode():
        return read_receipt(value)
    return read_prediction(value, headers, recorded_at) or read_dead_letter(value, headers, recorded_at)


def _from_short_form(line: Mapping[str, Any], default_at: datetime) -> Event | None:
    found = [kind for kind in Kind if kind.value in line]
    if len(found) != 1 or set(line) - {found[0].value, "at", "age_s"}:
        return None
    kind, said = found[0], dict(line[found[0].value] or {})
    at = _time(line.get("at")) or default_at
    source, image_id = str(said.pop("source", "/dx-1")), str(said.pop("id", "1"))
    sha256 = hashlib.sha256(image_id.encode()).hexdigest()
    image_key = envelope.derive_image_event_id(source, image_id, sha256)
    name, version = (str(said.pop("model", "cxr@1")) + "@1").split("@")[:2]
    score = float(said.pop("score", 1.0 if kind is Kind.PREDICTION else 0.0))
    threshold = float(said.pop("threshold", 0.5))
    label, is_redriven = str(said.pop("label", "opacities")), bool(said.pop("redriven", False))
    flags, reason = tuple(map(str, said.pop("flags", ()))), str(said.pop("reason", "corrupt_image"))
    if said:
        return None
    common: dict[str, Any] = {
        "image_key": image_key,
        "source": source,
        "image_id": image_id,
        "sha256": sha256,
        "at": at,
        "received_at": at - timedelta(seconds=float(line.get("age_s", 0))),
        "is_redriven": is_redriven,
    }
    if kind is Kind.PREDICTION:
        return Event(
            kind,
            event_id=envelope.derive_event_id(source, image_id, sha256, f"{name}@{version}"),
            label=label,
            probability=score,
            score=score,
            threshold=threshold,
            is_positive=score >= threshold,
            flags=flags,
            model={"name": name, "version": version, "sha256": hashlib.sha256(version.encode()).hexdigest()},
            **common,
        )
    if kind is Kind.DEAD_LETTER:
        return Event(kind, event_id=envelope.derive_event_id(image_key, "dead-letter"), reason=reason, **common)
    return Event(kind, event_id=image_key, **common)


def _load(value: bytes | None) -> Any:
    """Read JSON; half of a surrogate pair in it is no text, and the ledger takes none."""
    found = json.loads(value or b"")
    json.dumps(found, ensure_ascii=False).encode()
    return found


def _image_key(source: object, image_id: object, sha256: str, place: str) -> str:
    """Give the image's own event id; of plain bytes, which have none, one of the record's place."""
    if source and image_id:
        return envelope.derive_image_event_id(str(source), str(image_id), sha256)
    return envelope.derive_event_id(place or sha256, "image")


def _hex_id(value: object) -> str:
    """Check an event id: it becomes part of other ids, and goes out in headers."""
    text = str(value)
    if not _HEX_ID.fullmatch(text):
        msg = "no event id"
        raise ValueError(msg)
    return text


def _probability(value: object) -> float:
    """Check a number: JSON as Python reads it may hold ones that no receiver takes."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    msg = "no probability"
    raise ValueError(msg)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _time(text: object) -> datetime | None:
    """Read an RFC 3339 time; None where there is none, or one of a clock that nobody has."""
    if isinstance(text, datetime):
        return text.astimezone(UTC) if text.tzinfo else None
    try:
        found = datetime.fromisoformat(str(text))
        return found.astimezone(UTC) if found.tzinfo else None
    except (ValueError, OverflowError):
        return None
