"""How an alarm is told: to programs as JSON, to people as text. Every one says that it is for research use only."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from schemas.envelope import DISCLAIMER
from streaming.alerts.alarm import Alarm, State

TYPES = {State.OPEN: "xray.alarm.open", State.RESOLVED: "xray.alarm.resolved"}
"""``type`` of a message about an alarm."""


def message_id(alarm: Alarm) -> str:
    """Give the id of the message about an alarm: the same at each repetition, and another one once it is resolved.

    Receivers drop ids that they know. A resolved alarm has the id of the open one, so with that id alone they would
    never hear that it is over.
    """
    return alarm.id if alarm.state is State.OPEN else f"{alarm.id}-resolved"


def to_document(alarm: Alarm) -> dict[str, Any]:
    """Make the JSON document about an alarm, as Standard Webhooks lay it out.

    Returns
    -------
    dict
        ``type`` of `TYPES`; ``timestamp``, when that came to be, so the same at each repetition; ``data``: the alarm's
        event, with id, rule, severity, state, labels, annotations and times.
    """
    came = alarm.starts_at if alarm.state is State.OPEN else alarm.ends_at or alarm.starts_at
    own = {
        "id": alarm.id,
        "rule": alarm.rule,
        "severity": alarm.severity,
        "state": str(alarm.state),
        "labels": dict(alarm.labels),
        "annotations": dict(alarm.annotations),
        "starts_at": format_time(alarm.starts_at),
        "ends_at": None if alarm.ends_at is None else format_time(alarm.ends_at),
        "notice": DISCLAIMER,
    }
    return {"type": TYPES[alarm.state], "timestamp": format_time(came), "data": {**_keep_finite(alarm.event), **own}}


def to_json(alarm: Alarm) -> str:
    """Write `to_document` in one line of ASCII."""
    return json.dumps(to_document(alarm), separators=(",", ":"), allow_nan=False)


def to_subject(alarms: Sequence[Alarm]) -> str:
    """Write one line about one alarm or several."""
    if len(alarms) == 1:
        [alarm] = alarms
        state = "" if alarm.state is State.OPEN else " (resolved)"
        return _in_one_line(f"[xray {alarm.severity}] {_summary(alarm)}{state}")
    rules = sorted({alarm.rule for alarm in alarms})
    return _in_one_line(f"[xray] {len(alarms)} alarms: {', '.join(rules)}")


def to_text(alarms: Sequence[Alarm]) -> str:
    """Write plain text about one alarm or several."""
    return "\n".join([f"{DISCLAIMER}\n", *(_paragraph(alarm) for alarm in alarms)])


def format_time(moment: datetime) -> str:
    """Write a time as RFC 3339 does, in UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _keep_finite(value: Any) -> Any:
    """Put null for the numbers that JSON does not have, which Python's reader takes from others."""
    match value:
        case Mapping():
            return {name: _keep_finite(one) for name, one in value.items()}
        case list() | tuple():
            return [_keep_finite(one) for one in value]
        case float() if not isfinite(value):
            return None
    return value


def _paragraph(alarm: Alarm) -> str:
    rows = {
        "rule": alarm.rule,
        "severity": alarm.severity,
        "state": str(alarm.state),
        "since": format_time(alarm.starts_at),
        "until": "" if alarm.ends_at is None or alarm.state is State.OPEN else format_time(alarm.ends_at),
        **alarm.labels,
        **{name: text for name, text in alarm.annotations.items() if name not in ("summary", "notice")},
        "id": alarm.id,
    }
    lines = [_in_one_line(f"{name}: {text}") for name, text in rows.items() if text]
    return "\n".join([_in_one_line(_summary(alarm)), *(f"  {line}" for line in lines), ""])


def _summary(alarm: Alarm) -> str:
    return alarm.annotations.get("summary") or alarm.rule


def _in_one_line(text: str) -> str:
    """Leave out what would begin another line or header, and what a header or UTF-8 cannot hold."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
