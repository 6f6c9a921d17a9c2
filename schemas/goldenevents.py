"""Golden events: one event of each kind, as files that other teams' tests can use."""

import base64
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

EVENT_NAMES = (
    "image",
    "prediction",
    "prediction_normal",
    "prediction_uncertain",
    "prediction_unlike_training",
    "prediction_old_rendering",
    "features",
    "dead_letter",
    "dead_letter_tombstone",
    "receipt_accepted",
    "receipt_predicted",
    "receipt_dead_lettered",
    "label",
    "label_dead_letter",
)
"""The files below ``schemas/examples``, without ``.json``. More may come."""


@dataclass(frozen=True)
class GoldenEvent:
    """One Kafka record, and what it is held to.

    Parameters
    ----------
    topic : str
        Where such an event is, by its name in the default settings.
    headers_schema : str
        Name of the headers' JSON Schema; see `schemas.documents.SCHEMA_NAMES`.
    value_schema : str or None
        Of the value's; None where the value is not JSON.
    key, value : bytes or None
        As Kafka has them. The order of a value's fields and the spaces between them are not promised.
    headers : list of (str, bytes)
        In their order.
    """

    topic: str
    headers_schema: str
    value_schema: str | None
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


def load_event(name: str) -> GoldenEvent:
    """Load a golden event by its name in `EVENT_NAMES`."""
    found = json.loads((files("schemas") / "examples" / f"{name}.json").read_text(encoding="utf-8"))
    return GoldenEvent(
        topic=found["topic"],
        headers_schema=found["schemas"]["headers"],
        value_schema=found["schemas"].get("value"),
        key=None if found["key"] is None else found["key"].encode(),
        value=_read_value(found),
        headers=[(header, text.encode()) for header, text in found["headers"].items()],
    )


def _read_value(found: dict[str, Any]) -> bytes | None:
    if "value_base64" in found:
        return base64.b64decode(found["value_base64"])
    value = found["value"]
    return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
