"""Predictions and dead letters as a gateway reads them: which image they are about, and the receipt they make."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Message

from schemas import envelope
from streaming.gateway.receipts.receipt import Receipt, Score, State, format_time
from streaming.kafka.places import header_text, read_headers, read_origin


@dataclass(frozen=True, slots=True)
class Outcome:
    """What SCORE says of an image that has a name.

    Parameters
    ----------
    receipt : Receipt
        See there.
    prediction : dict or None
        As published; None of a dead letter.
    """

    receipt: Receipt
    prediction: dict[str, Any] | None = None


def read_prediction(message: Message, *, with_score: bool) -> Outcome | None:
    """Read a record of the predictions topic.

    Parameters
    ----------
    message : Message
        Without an error.
    with_score : bool
        Whether the receipt has what the model said.

    Returns
    -------
    Outcome or None
        None of an image without source and id, and where the record is none of SCORE's.
    """
    headers = read_headers(message)
    origin = read_origin(headers)
    if headers.get(envelope.CE_TYPE) != envelope.PREDICTION_TYPE.encode() or origin is None:
        return None
    try:
        event = json.loads(message.value() or b"")
        image = event["image"]
        named = _identify(image.get("source"), image.get("id"), image["sha256"])
        score = _read_score(event) if with_score else None
        outcome_event_id, model = str(event["event_id"]), str(event["model"]["version"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if named is None:
        return None
    receipt = Receipt(
        *named,
        state=State.PREDICTED,
        at=_time_of(message),
        place=str(origin),
        outcome_event_id=outcome_event_id,
        model=model,
        score=score,
    )
    return Outcome(receipt, event)


def _read_score(event: Mapping[str, Any]) -> Score:
    # A flagged prediction is shown without its label, which reads like an answer.
    if flags := event.get("flags"):
        return Score(undecided=tuple(map(str, flags)))
    label = str(event["label"])
    return Score(label, float(event["probabilities"][label]))


def read_dead_letter(message: Message) -> Outcome | None:
    """Read a record of the dead-letter topic: the image as it came, and headers behind its own.

    Returns
    -------
    Outcome or None
        None of an image without source and id, and where the record is none of SCORE's.
    """
    headers = read_headers(message)
    origin = read_origin(headers)
    if origin is None or envelope.REASON not in headers:
        return None
    # As SCORE reads them: names in any case.
    image = {name.lower(): value for name, value in headers.items()}
    try:
        source, image_id = (image.get(name, b"").decode() for name in (envelope.CE_SOURCE, envelope.CE_ID))
    except UnicodeDecodeError:
        return None
    named = _identify(source, image_id, hashlib.sha256(message.value() or b"").hexdigest())
    if named is None:
        return None
    flags = (header_text(image, envelope.IMAGE_FLAGS) or "").split(",")
    return Outcome(
        Receipt(
            *named,
            state=State.DEAD_LETTERED,
            at=_time_of(message),
            flags=tuple(sorted(filter(None, flags))),
            place=str(origin),
            reason=header_text(headers, envelope.REASON),
            outcome_event_id=header_text(headers, envelope.EVENT_ID),
        )
    )


def _identify(source: str | None, image_id: str | None, sha256: str) -> tuple[str, str, str, str] | None:
    """Give the event id, and what it is of."""
    if not source or not image_id:
        return None
    return envelope.derive_image_event_id(source, image_id, sha256), source, image_id, sha256


def _time_of(message: Message) -> str:
    # Of the record, not of the reading: whoever reads it again writes the same receipt. A year that Python has no
    # number for is nobody's clock.
    seconds = min(max(message.timestamp()[1] / 1000, 0), time.time())
    return format_time(datetime.fromtimestamp(seconds, UTC))
