"""What an alarm says: its labels, its lines for a reader, and its JSON for a program. Nothing of a patient is in it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from schemas.envelope import DISCLAIMER
from streaming.alerts.outcomeevents import Event, Kind
from streaming.alerts.rules import Rule

_SUMMARIES = {
    Kind.PREDICTION: "{label} in an image of {source}, score {score}",
    Kind.DEAD_LETTER: "An image of {source} could not be scored: {reason}",
}


def label_image(rule: Rule, event: Event) -> dict[str, str]:
    """Give the labels of an image's alarm: the rule's, and what it is about."""
    found = {
        "source": event.source,
        "model": event.model_name,
        "label": event.shown_label,
        "reason": event.reason,
    }
    return dict(rule.labels) | {name: text for name, text in found.items() if text is not None}


def label_condition(rule: Rule, part: str) -> dict[str, str]:
    """Give the labels of a condition's alarm, or a summary's."""
    return dict(rule.labels) | ({"source": part} if part else {})


def annotate(rule: Rule, summary: str, description: str, facts: Mapping[str, object]) -> dict[str, str]:
    """Fill in the rule's lines for a reader, or these where it has none."""
    known = {name: "" for name in ("source", "label", "score", "model", "reason", "count")}
    known |= {name: str(fact) for name, fact in facts.items() if fact is not None}
    texts = {
        "summary": rule.summary or summary,
        "description": rule.description or description,
        "runbook": rule.runbook or "",
    }
    # Only what the rule's file has is a form: a source may have braces.
    return {name: text.format_map(known) for name, text in texts.items() if text} | {"notice": DISCLAIMER}


def annotate_image(rule: Rule, event: Event) -> dict[str, str]:
    """Give an image's alarm its lines for a reader."""
    facts = {
        "source": event.source or "unknown source",
        "label": event.shown_label,
        "score": None if event.score is None else f"{event.score:.3f}",
        "model": event.model_name,
        "reason": event.reason,
        "count": 1,
    }
    return annotate(rule, _SUMMARIES[event.kind], "Image {source}, read at " + write_time(event.received_at), facts)


def describe_image(event: Event) -> dict[str, Any]:
    """Give an image's event for a program: what a webhook gets."""
    image = {"source": event.source, "id": event.image_id, "sha256": event.sha256}
    return {
        "type": event.kind.value,
        "event_id": event.event_id,
        "image": {name: one for name, one in image.items() if one is not None},
        **_present(
            label=event.label,
            probability=event.probability,
            score=event.score,
            threshold=event.threshold,
            reason=event.reason,
        ),
        **({"flags": list(event.flags), "model": dict(event.model)} if event.kind is Kind.PREDICTION else {}),
        "place": event.place,
        "times": {"received": write_time(event.received_at), "outcome": write_time(event.at)},
        "notice": DISCLAIMER,
    }


def describe_condition(kind: str, rule: Rule, part: str, started_at: datetime, **facts: Any) -> dict[str, Any]:
    """Give a condition's event, or a summary's, for a program."""
    return {
        "type": kind,
        "rule": rule.name,
        **({"source": part} if part else {}),
        **_present(**facts),
        "times": {"started": write_time(started_at)},
        "notice": DISCLAIMER,
    }


def write_time(moment: datetime) -> str:
    """Write a time as RFC 3339, in UTC, with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
