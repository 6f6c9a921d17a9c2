"""Predictions and identities for tests of reports, with texts that no format takes as they are."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from schemas.envelope import DISCLAIMER, derive_event_id
from streaming.devices.identity import Identity, Known
from streaming.reports.report import Correction, Report, read_prediction

DX = "1.2.840.10008.5.1.4.1.1.1.1"
RECEIVED = datetime(2026, 1, 31, 14, 3, 59, 123000, UTC)
SCORED = datetime(2026, 1, 31, 14, 4, 1, 250000, UTC)
CORRECTION = Correction("normal", datetime(2026, 2, 1, 8, 0, tzinfo=UTC))


def event(number: int = 1, *, probability: float = 0.9375, **changed: Any) -> dict[str, Any]:
    """An event of the predictions topic; its schema is ``prediction``."""
    return {
        "event_id": derive_event_id("prediction", str(number)),
        "image": {
            "source": "/hospital/ward-3/dx-1",
            "id": pseudonym(number),
            "sha256": f"{number:064x}",
            "media_type": "application/dicom",
            "height": 30,
            "width": 20,
            "payload_bytes": 2000,
        },
        "model": {
            "name": "cxr",
            "version": "20260131T120000Z",
            "sha256": "4e54813613b60d11d370965ad526215ab0af1f8e78c11264f138c2e8c0129835",
            "rendering_version": 2,
        },
        "label": "opacities" if probability >= 0.5 else "normal",
        "probabilities": {"normal": 1 - probability, "opacities": probability},
        "positive_label": "opacities",
        "threshold": 0.5,
        "operating_point": "probability of opacities at least 0.5, not tuned",
        "flags": [],
        "disclaimer": DISCLAIMER,
    } | changed


def pseudonym(number: int) -> str:
    return f"2.25.{10**30 + number}"


def identity(number: int = 1, **own: str) -> Identity:
    """Whose image it is; ``own`` changes names, e.g. ``patient_id=""``."""
    names = {
        "patient_id": f"PAT^{number}&|~\\Ä",
        "accession_number": f"ACC{number}",
        "study_uid": f"1.2.826.0.1.3680043.8.498.{number}",
        "series_uid": f"1.2.826.0.1.3680043.8.498.{number}.1",
        "sop_uid": f"1.2.826.0.1.3680043.8.498.{number}.1.1",
    } | {name: text for name, text in own.items() if name != "sop_class"}
    pseudonyms = {name: f"pseudonym of {name} {number}" for name in names} | {"sop_uid": pseudonym(number)}
    known: Mapping[str, Known] = {name: Known(text, pseudonyms[name]) for name, text in names.items()}
    return Identity(**known, sop_class=own.get("sop_class", DX))


def report(
    number: int = 1, *, correction: Correction | None = None, whose: Identity | None = None, **changed: Any
) -> Report:
    value = json.dumps(event(number, **changed)).encode()
    found = read_prediction(value, received_at=RECEIVED, scored_at=SCORED)
    return Report(found, whose or identity(number), correction)
