"""Confirmed findings as events of a topic."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from schemas.labels import LabelReason
from training.data.labelfile import (
    CLOCK_SKEW,
    HEX_DIGITS,
    KEYS,
    OPTIONAL,
    Confirmation,
    LabelFile,
    WrongRowError,
    read_row,
)


@dataclass(frozen=True)
class WrongEvent:
    """An event that cannot be read.

    Parameters
    ----------
    row : int
        Its place in the batch, from 0.
    reason : LabelReason
        Why, as a code.
    detail : str
        What was found and what was wanted, without a word of what the event says.
    """

    row: int
    reason: LabelReason
    detail: str


@dataclass(frozen=True)
class LabelEvents:
    """A batch of events about confirmed findings; each is in exactly one of the two.

    Parameters
    ----------
    files : tuple of LabelFile
        One for each way in which some of them name their images.
    wrong : tuple of WrongEvent
        Those that cannot be read.
    """

    files: tuple[LabelFile, ...]
    wrong: tuple[WrongEvent, ...]


# --- events -----------------------------------------------------------------------------------------------------------


def read_events(
    events: Sequence[tuple[bytes | None, datetime]], labels: Sequence[str], *, now: datetime | None = None
) -> LabelEvents:
    """Read events about confirmed findings.

    Parameters
    ----------
    events : sequence of (bytes or None, datetime)
        Value of each message, in the schema ``label``; and when the broker received it, with a time zone, which is
        when it was confirmed where the event does not say. So an event that is read once more says the same again.
    labels : sequence of str
        Those that there are.
    now : datetime, optional
        Nothing can have been confirmed a day after it.

    Returns
    -------
    LabelEvents
        Every one of them, as read or as wrong; nothing is raised for an event's sake.
    """
    latest = (now or datetime.now(UTC)) + CLOCK_SKEW
    read: dict[tuple[str, ...], list[Confirmation]] = {}
    wrong: list[WrongEvent] = []
    for row, (value, received_at) in enumerate(events):
        try:
            cells = _parse_event(value)
            key_names = _find_event_key(cells)
            one = read_row(row, cells, key_names, labels, latest)
            _check_form(key_names[0], one.key[0])
        except WrongRowError as exc:
            wrong.append(WrongEvent(row, exc.reason, exc.detail))
        else:
            read.setdefault(key_names, []).append(replace(one, confirmed_at=one.confirmed_at or received_at))
    return LabelEvents(tuple(LabelFile(names, tuple(ones)) for names, ones in read.items()), tuple(wrong))


def _parse_event(value: bytes | None) -> dict[str, str]:
    if value is None:
        raise WrongRowError(LabelReason.TOMBSTONE, "there is no value, wanted a JSON object")
    try:
        event = json.loads(value.decode("utf-8-sig"))
    except (ValueError, RecursionError) as exc:
        raise WrongRowError(LabelReason.NOT_JSON, "the value is no JSON in UTF-8, wanted a JSON object") from exc
    if not isinstance(event, dict):
        raise WrongRowError(LabelReason.NOT_JSON, "the value is other JSON, wanted a JSON object")
    if "specversion" in event:
        msg = "the value is a CloudEvents envelope, wanted the finding itself, with the envelope in the headers"
        raise WrongRowError(LabelReason.STRUCTURED_MODE, msg)
    names = dict.fromkeys([*(name for key in KEYS for name in key), "label", *OPTIONAL])
    cells = {name: event[name] for name in names if event.get(name) is not None}
    if others := [name for name, cell in cells.items() if not _is_text(cell)]:
        raise WrongRowError(LabelReason.INVALID_FIELD, f"{' and '.join(others)} is no text")
    return cells


def _is_text(cell: object) -> bool:
    """Tell whether it can be written as UTF-8; JSON can have halves of characters, which cannot."""
    return isinstance(cell, str) and not re.search("[\ud800-\udfff]", cell)


def _find_event_key(cells: Mapping[str, str]) -> tuple[str, ...]:
    named = [name for key in KEYS for name in key if name in cells]
    key = next((key for key in KEYS if list(key) == named), None)
    if key is None:
        found = " and ".join(named) or "nothing"
        msg = f"the image is named by {found}, wanted exactly one of sha256, event_id, or source and id"
        raise WrongRowError(LabelReason.INVALID_FIELD, msg)
    return key


def _check_form(name: str, text: str) -> None:
    digits = HEX_DIGITS.get(name)
    if digits is not None and not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
        msg = f"{name} is something else, wanted {digits} hexadecimal digits"
        raise WrongRowError(LabelReason.INVALID_FIELD, msg)
