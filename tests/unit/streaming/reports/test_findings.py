"""Events of the labels topic: those that name an image and a finding, and all others."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonschema
import pytest

from schemas.documents import load_schema
from streaming.reports.findings import Finding, read_finding
from tests.reportparts import RECEIVED, report

SAID = report().prediction
NAMES = (
    {"sha256": SAID.sha256},
    {"event_id": SAID.event_id},
    {"source": SAID.source, "id": SAID.image_id},
)


def read(**event: Any) -> Finding | None:
    return read_finding(json.dumps(event).encode(), received_at=RECEIVED)


@pytest.mark.parametrize("named", NAMES)
def test_an_image_is_known_however_it_is_named(named: dict[str, str]) -> None:
    event = named | {"label": "normal"}
    jsonschema.validate(event, load_schema("label"))
    found = read(**event)
    assert found is not None
    assert found.name in SAID.names
    assert found.name not in report(2).prediction.names


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-01-31T14:00:00Z", datetime(2026, 1, 31, 14, tzinfo=UTC)),
        ("2026-01-31T15:00+01:00", datetime(2026, 1, 31, 14, tzinfo=UTC)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31 14:00", datetime(2026, 1, 31, 14, tzinfo=UTC)),
        ("", RECEIVED),
        (None, RECEIVED),
    ],
)
def test_when_it_was_confirmed(text: str | None, wanted: datetime) -> None:
    found = read(sha256=SAID.sha256, label="normal", confirmed_at=text)
    assert found is not None
    assert found.correction.confirmed_at == wanted


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"label": "normal"},
        {"sha256": SAID.sha256},
        {"sha256": SAID.sha256, "label": ""},
        {"sha256": SAID.sha256, "label": 1},
        {"sha256": "x", "label": "normal"},
        {"sha256": 5, "label": "normal"},
        {"sha256": SAID.sha256, "event_id": SAID.event_id, "label": "normal"},
        {"source": SAID.source, "label": "normal"},
        {"id": SAID.image_id, "label": "normal"},
        {"sha256": SAID.sha256, "label": "normal", "confirmed_at": "yesterday"},
        {"sha256": SAID.sha256, "label": "normal", "confirmed_at": "0001-01-01T00:00:00+14:00"},
        {"sha256": SAID.sha256, "label": "normal", "confirmed_at": "9999-12-31T23:59:59-14:00"},
        {"sha256": SAID.sha256, "label": "\ud800"},
        {"source": "\ud800", "id": SAID.image_id, "label": "normal"},
        {"sha256": SAID.sha256, "label": "normal", "confirmed_at": (RECEIVED + timedelta(days=2)).isoformat()},
    ],
)
def test_what_names_no_image_or_no_finding_says_nothing(event: dict[str, Any]) -> None:
    assert read(**event) is None


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"[]", b"1", b"[" * 100_000])
def test_what_is_no_event_says_nothing(value: bytes | None) -> None:
    assert read_finding(value, received_at=RECEIVED) is None
