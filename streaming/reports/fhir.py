"""A report as FHIR R4: a transaction of DiagnosticReport, Observation and Device, each found by its identifier.

The transaction may be sent again and changes nothing then: each resource is put where its identifier is, or made where
there is none (a conditional update). Patient, study, image and order are named by their identifiers; none of them is
made or changed.

References
----------
FHIR R4 (4.0.1): http.html#cond-update, diagnosticreport.html, observation.html, device.html; DICOM UIDs as identifiers:
imagingstudy.html, section 4.23.4.
"""

import html
import json
from datetime import datetime
from typing import Any

from schemas.envelope import DISCLAIMER
from streaming.reports.report import MAKER, Report, derive_uuid

Json = dict[str, Any]

SYSTEM = "urn:xray-stream"
"""Of identifiers and codes. The identifier of DiagnosticReport (``:report``) and Observation (``:observation``) has the
prediction's event id for its value."""
UID_SYSTEM = "urn:dicom:uid"

_TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
_LOINC = "http://loinc.org"
_UCUM = "http://unitsofmeasure.org"


def to_bundle(report: Report, *, patient_system: str | None, accession_system: str | None) -> Json:
    """Make the transaction of a report.

    Parameters
    ----------
    report : Report
        It.
    patient_system, accession_system : str or None
        Systems (URIs) of the patient's id and of the accession number; None where the hospital has none.

    Returns
    -------
    dict
        A Bundle; the same report gives the same one.
    """
    device = f"urn:uuid:{derive_uuid('device', report.device_uid)}"
    observation = f"urn:uuid:{derive_uuid('observation', report.prediction.event_id)}"
    document = f"urn:uuid:{derive_uuid('diagnostic report', report.prediction.event_id)}"
    common = _common(report, patient_system, accession_system)
    return {
        "resourceType": "Bundle",
        "id": str(derive_uuid("bundle", report.key)),
        "type": "transaction",
        "entry": [
            _entry(device, _device(report)),
            _entry(observation, _observation(report, common, device)),
            _entry(document, _document(report, common, observation)),
        ],
    }


def to_json(bundle: Json) -> bytes:
    """Render a Bundle in one line, as NDJSON has it. The same Bundle gives the same bytes."""
    return json.dumps(bundle, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _entry(url: str, resource: Json) -> Json:
    identifier = resource["identifier"][0]
    query = f"{resource['resourceType']}?identifier={identifier['system']}|{identifier['value']}"
    return {"fullUrl": url, "resource": resource, "request": {"method": "PUT", "url": query}}


def _device(report: Report) -> Json:
    """Give the model: another device after each retraining."""
    said = report.prediction
    return {
        "resourceType": "Device",
        "text": _narrative(f"Model {report.model}. {DISCLAIMER}"),
        "identifier": [{"system": UID_SYSTEM, "value": f"urn:oid:{report.device_uid}"}],
        "status": "active",
        "manufacturer": MAKER,
        "deviceName": [{"name": said.model_name, "type": "model-name"}],
        "type": {"text": "Classifier of chest X-rays"},
        "version": [
            {"type": {"text": "version"}, "value": said.model_version},
            {"type": {"text": "SHA-256"}, "value": said.model_sha256},
        ],
        "note": [{"text": DISCLAIMER}],
    }


def _observation(report: Report, common: Json, device: str) -> Json:
    said = report.prediction
    components = []
    if report.correction is not None:
        model = _finding(report, said.label if said.is_decided else None)
        components.append({"code": _own_code("measure", "model-finding", "What the model had said"), **model})
    if report.probability is not None:
        quantity = {"value": report.probability, "system": _UCUM, "code": "1"}
        name = f"Probability of {said.finding}, by the model"
        components.append({"code": _own_code("measure", "probability", name), "valueQuantity": quantity})
    return {
        "resourceType": "Observation",
        "text": _narrative(report.conclusion),
        "identifier": [_identifier(report, "observation")],
        **common["order"],
        "status": common["status"],
        "category": [_concept(f"{_TERMINOLOGY}/observation-category", "imaging", "Imaging")],
        "code": _own_code("finding", said.finding, f"{said.finding}, by a model"),
        "subject": common["subject"],
        "effectiveDateTime": _time(said.received_at),
        "issued": _time(report.issued_at),
        **_finding(report, report.label),
        "note": [{"text": text} for text in report.notes],
        "method": {"text": f"Model {report.model}"},
        "device": {"reference": device},
        "derivedFrom": [common["study"], common["image"]],
        **({"component": components} if components else {}),
    }


def _finding(report: Report, label: str | None) -> Json:
    """Give a finding, or why there is none."""
    if label is None:
        reason = _concept(f"{_TERMINOLOGY}/data-absent-reason", "unknown", "Unknown")
        return {"dataAbsentReason": reason | {"text": f"undecided: {', '.join(report.prediction.flags)}"}}
    return {"valueCodeableConcept": _own_code("label", label)}


def _document(report: Report, common: Json, observation: str) -> Json:
    said = report.prediction
    return {
        "resourceType": "DiagnosticReport",
        "text": _narrative(f"{report.conclusion} Model {report.model}."),
        "identifier": [_identifier(report, "report")],
        **common["order"],
        "status": common["status"],
        "category": [_concept(f"{_TERMINOLOGY}/v2-0074", "RAD", "Radiology")],
        "code": _concept(_LOINC, "18748-4", "Diagnostic imaging study"),
        "subject": common["subject"],
        "effectiveDateTime": _time(said.received_at),
        "issued": _time(report.issued_at),
        "result": [{"reference": observation}],
        "imagingStudy": [common["study"]],
        "conclusion": f"{report.conclusion} Model {report.model}.",
    }


def _common(report: Report, patient_system: str | None, accession_system: str | None) -> Json:
    """Give what Observation and DiagnosticReport have in common; never final: nobody has read and signed it."""
    known = report.identity
    order = {}
    if known.accession_number.own:
        number = {
            "type": _concept(f"{_TERMINOLOGY}/v2-0203", "ACSN", "Accession ID"),
            **_named(accession_system, known.accession_number.own),
        }
        order = {"basedOn": [{"type": "ServiceRequest", "identifier": number}]}
    patient = {
        "type": _concept(f"{_TERMINOLOGY}/v2-0203", "MR", "Medical record number"),
        **_named(patient_system, known.patient_id.own),
    }
    return {
        "status": "preliminary" if report.correction is None else "amended",
        "order": order,
        "subject": {"type": "Patient", "identifier": patient},
        "study": {"type": "ImagingStudy", "identifier": _uid(known.study_uid.own)},
        "image": {"type": "Media", "identifier": _uid(known.sop_uid.own)},
    }


def _identifier(report: Report, what: str) -> Json:
    return {"system": f"{SYSTEM}:{what}", "value": report.prediction.event_id}


def _uid(uid: str) -> Json:
    return {"system": UID_SYSTEM, "value": f"urn:oid:{uid}"}


def _named(system: str | None, value: str) -> Json:
    return {"system": system, "value": value} if system else {"value": value}


def _concept(system: str, code: str, display: str) -> Json:
    return {"coding": [{"system": system, "code": code, "display": display}], "text": display}


def _own_code(kind: str, code: str, text: str | None = None) -> Json:
    return {"coding": [{"system": f"{SYSTEM}:{kind}", "code": code}], "text": text or code}


def _narrative(text: str) -> Json:
    return {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{html.escape(text)}</div>'}


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
