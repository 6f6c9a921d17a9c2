"""Confirmed findings, as far as a report needs them: which image, what, and when.

`xray label` records findings for training, and puts events that it cannot record on a topic of their own. Here such an
event says nothing.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from streaming.reports.report import Correction, name_image

_HEX = {"sha256": re.compile(r"[0-9a-f]{64}"), "event_id": re.compile(r"[0-9a-f]{32}")}
_CLOCKS = timedelta(days=1)
"""By how much a sender's clock may be ahead; as `xray label` has it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A confirmed finding of an image.

    Parameters
    ----------
    name : str
        The image's, as one of `Prediction.names`.
    correction : Correction
        What was confirmed.
    """

    name: str
    correction: Correction


def read_finding(value: bytes | None, *, received_at: datetime) -> Finding | None:
    """Read the value of a record of the labels topic; None where it says nothing.

    Parameters
    ----------
    value : bytes or None
        JSON; its schema is ``label``.
    received_at : datetime
        When the broker received it, which is when it was confirmed where it does not say.
    """
    try:
        return _from_event(json.loads(value or b""), received_at)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _from_event(event: dict[str, Any], received_at: datetime) -> Finding | None:
    given = {name: event[name] for name in ("sha256", "event_id", "source", "id") if event.get(name)}
    label, text = event["label"], event.get("confirmed_at") or ""
    when = datetime.fromisoformat(text) if text else received_at
    when = (when if when.tzinfo else when.replace(tzinfo=UTC)).astimezone(UTC)
    label.encode()  # half of a surrogate pair is no text, and no ledger takes it
    if not isinstance(label, str) or not label or when > received_at + _CLOCKS:
        return None
    if set(given) == {"source", "id"}:
        name = name_image("source and id", given["source"], given["id"])
    elif len(given) == 1 and (kind := next(iter(given))) in _HEX and _HEX[kind].fullmatch(given[kind].lower()):
        name = name_image(kind, given[kind].lower())
    else:
        return None
    return Finding(name, Correction(label, when))
