"""Records of the outcome topics as rows of the tables.

Anybody may write to the topics. A record without an event id is not this stream's, and no row. A field that is not what
it should be becomes null; the topic keeps what it was.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from schemas import envelope
from schemas.deltatable import arrow_schema
from schemas.documents import Table
from streaming.account.archived import DEAD_LETTERS, FEATURES, PREDICTIONS

_FIRST_TIME, _END_TIME = datetime(1678, 1, 1, tzinfo=UTC), datetime(2262, 1, 1, tzinfo=UTC)
"""What 64 bits of nanoseconds hold: a row with another year, from a device whose clock is wrong, would make the table
unreadable for whoever counts in those."""

_EPOCH = date(1970, 1, 1)
_INTEGER = re.compile(r"[+-]?[0-9]+")
_INT_BITS, _BIGINT_BITS = 32, 64
_ROW_BYTES = 1024
"""About what a row takes beside the texts and numbers of its record."""
_OBJECT_BYTES = 16

Event = Mapping[str, Any]
Headers = Mapping[str, bytes]


@dataclass(frozen=True)
class Row:
    """A row of a table, still as Python's values.

    Parameters
    ----------
    event_id : str
        Its key.
    day : int or None
        Days since 1970-01-01 of its ``date``; None where it has none.
    near : int
        The same of ``date``, or, where that is missing, of the outcome record's own time: when it may be there already.
    values : Mapping of str to object
        By column.
    n_bytes : int
        About how much memory it takes.
    """

    event_id: str
    day: int | None
    near: int
    values: Mapping[str, Any]
    n_bytes: int


def read_row(name: str, message: Message) -> Row | None:
    """Turn a record into a row of a table.

    Parameters
    ----------
    name : str
        The table's.
    message : confluent_kafka.Message
        A record of its topic.

    Returns
    -------
    Row or None
        None where the record has no event id.
    """
    # In any case, the last one of a name counts: as decoding reads them.
    headers = {key.lower(): value or b"" for key, value in message.headers() or ()}
    values = _READERS[name](message, headers)
    if not values["event_id"]:
        return None
    day = None if values["date"] is None else (values["date"] - _EPOCH).days
    n_bytes = _ROW_BYTES + (0 if name == DEAD_LETTERS else len(message.value() or b"") * _measure(values))
    return Row(values["event_id"], day, _record_day(message) if day is None else day, values, n_bytes)


def _measure(values: Mapping[str, Any]) -> int:
    """Tell how many bytes of memory a byte of a record's JSON is at most: an object for each, but in our vectors."""
    return 1 if isinstance(values.get("features"), np.ndarray) else _OBJECT_BYTES


def to_arrow(rows: Sequence[Row], table: Table) -> pa.Table:
    """Give rows as Arrow, with all of the table's columns."""
    schema = arrow_schema(table)
    columns = [pa.array([row.values.get(field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _record_day(message: Message) -> int:
    kind, ms = message.timestamp()
    moment = datetime.now(UTC).timestamp() if kind == TIMESTAMP_NOT_AVAILABLE else ms / 1000
    return int(moment // 86_400)


def _read_prediction(message: Message, headers: Headers) -> dict[str, Any]:
    event = _parse(message.value())
    image, model = _object(event, "image"), _object(event, "model")
    probabilities = _numbers_by_name(event.get("probabilities"))
    positive_label = _text(event.get("positive_label"))
    return {
        "event_id": _text(event.get("event_id")),
        **_image(image),
        "media_type": _text(image.get("media_type")),
        "height": _integer(image.get("height"), _INT_BITS),
        "width": _integer(image.get("width"), _INT_BITS),
        "payload_bytes": _integer(image.get("payload_bytes"), _BIGINT_BITS),
        **{f"model_{name}": _text(model.get(name)) for name in ("name", "version", "sha256")},
        "rendering_version": _integer(model.get("rendering_version"), _INT_BITS),
        "label": _text(event.get("label")),
        "probabilities": None if probabilities is None else list(probabilities.items()),
        "positive_label": positive_label,
        "score": (probabilities or {}).get(positive_label or ""),
        "threshold": _number(event.get("threshold")),
        "operating_point": _text(event.get("operating_point")),
        # A device may send any text as its time; what is no time becomes null, the topic keeps the text.
        "captured_at": _time_header(headers, envelope.CAPTURED_AT),
        "scored_at": _time_header(headers, envelope.CE_TIME),
        "decode_seconds": _number_header(headers, envelope.DECODE_SECONDS),
        "predict_seconds": _number_header(headers, envelope.PREDICT_SECONDS),
        "flags": _texts(event.get("flags")),
        **_position(headers),
    }


def _read_features(message: Message, headers: Headers) -> dict[str, Any]:
    event = _parse(message.value())
    featurizer = _object(event, "featurizer")
    return {
        "event_id": _text(event.get("event_id")),
        **_image(_object(event, "image")),
        **{name: _text(featurizer.get(name)) for name in ("network", "precision", "model_sha256")},
        "rendering_version": _integer(featurizer.get("rendering_version"), _INT_BITS),
        "features": _vector(event.get("features")),
        **_position(headers),
    }


def _read_dead_letter(message: Message, headers: Headers) -> dict[str, Any]:
    payload = message.value() or b""
    return {
        "event_id": _header(headers, envelope.EVENT_ID),
        "reason": _header(headers, envelope.REASON),
        "error_class": _header(headers, envelope.ERROR_EXCEPTION_CLASS),
        "error_message": _header(headers, envelope.ERROR_EXCEPTION_MESSAGE),
        "source": _header(headers, envelope.CE_SOURCE),
        "id": _header(headers, envelope.CE_ID),
        "content_type": _header(headers, envelope.CONTENT_TYPE),
        "sha256": hashlib.sha256(payload).hexdigest(),
        "payload_bytes": len(payload),
        "dead_letter_partition": message.partition(),
        "dead_letter_offset": message.offset(),
        **_position(headers),
    }


_READERS: dict[str, Callable[[Message, Headers], dict[str, Any]]] = {
    PREDICTIONS: _read_prediction,
    FEATURES: _read_features,
    DEAD_LETTERS: _read_dead_letter,
}


def _image(image: Event) -> dict[str, Any]:
    return {name: _text(image.get(name)) for name in ("source", "id", "sha256")}


def _position(headers: Headers) -> dict[str, Any]:
    received_at = _time_header(headers, envelope.INPUT_TIMESTAMP)
    return {
        "input_topic": _header(headers, envelope.INPUT_TOPIC),
        "input_partition": _integer_header(headers, envelope.INPUT_PARTITION, _INT_BITS),
        "input_offset": _integer_header(headers, envelope.INPUT_OFFSET, _BIGINT_BITS),
        "received_at": received_at,
        "date": None if received_at is None else received_at.date(),
    }


# --- the JSON value ---------------------------------------------------------------------------------------------------


def _parse(value: bytes | None) -> Event:
    try:
        event = json.loads((value or b"").decode(errors="replace"))
    except (ValueError, RecursionError):  # no JSON, a number of 5,000 digits, a thousand lists in each other
        return {}
    return event if isinstance(event, dict) else {}


def _object(event: Event, name: str) -> Event:
    value = event.get(name)
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    """Give text as a table can hold it; of another kind of value, the JSON that it was."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    # JSON can name half of a pair of surrogates, which is no character.
    return text if text.isascii() else text.encode(errors="replace").decode()


def _texts(value: Any) -> list[str | None] | None:
    return [_text(one) for one in value] if isinstance(value, list) else None


def _integer(value: Any, bits: int) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and -(1 << bits - 1) <= value < 1 << bits - 1
    return value if fits else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _numbers_by_name(value: Any) -> dict[str, float | None] | None:
    return {_text(name) or "": _number(one) for name, one in value.items()} if isinstance(value, dict) else None


def _vector(value: Any) -> list[float | None] | npt.NDArray[np.float32] | None:
    if not isinstance(value, list):
        return None
    with np.errstate(over="ignore"):  # too large for 32 bits is infinite
        if set(map(type, value)) <= {float}:
            return np.asarray(value, np.float64).astype(np.float32)
        numbers = map(_number, value)
        return [None if one is None else float(np.float32(one)) for one in numbers]


# --- headers ----------------------------------------------------------------------------------------------------------


def _header(headers: Headers, name: str) -> str | None:
    # A header has any bytes; a table with text that is not UTF-8 cannot be read. One that is larger than the contract
    # allows is a dead letter's, which keeps it; in a table it would be read again and again.
    value = headers.get(name)
    return None if value is None or len(value) > envelope.MAX_HEADER_BYTES else value.decode(errors="replace")


def _integer_header(headers: Headers, name: str, bits: int) -> int | None:
    text = (_header(headers, name) or "").strip()
    return _integer(int(text), bits) if _INTEGER.fullmatch(text) and len(text) < _BIGINT_BITS else None


def _number_header(headers: Headers, name: str) -> float | None:
    text = (_header(headers, name) or "").strip()
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _time_header(headers: Headers, name: str) -> datetime | None:
    try:
        time = datetime.fromisoformat((_header(headers, name) or "").strip())
        time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return time if _FIRST_TIME <= time < _END_TIME else None
