"""FHIR: what each resource must have, who it is about, and that a repetition changes nothing. HAPI judges the rest."""

import json
from typing import Any

import pytest

from schemas.envelope import DISCLAIMER
from streaming.reports.fhir import to_bundle, to_json
from streaming.reports.report import Report
from tests.reportparts import CORRECTION, identity, report


def resources(said: Report, *, patient_system: str | None = "urn:oid:2.999.1") -> dict[str, Any]:
    bundle = json.loads(to_json(to_bundle(said, patient_system=patient_system, accession_system="urn:oid:2.999.2")))
    return {entry["resource"]["resourceType"]: entry["resource"] for entry in bundle["entry"]}


CASES: dict[str, dict[str, Any]] = {
    "finding": {},
    "negative": {"probability": 0.1},
    "undecided": {"flags": ["uncertain"]},
    "amended": {"correction": CORRECTION},
    "undecided, then amended": {"correction": CORRECTION, "flags": ["unlike_training"]},
}


@pytest.mark.parametrize("case", CASES)
def test_a_report_is_never_final(case: str) -> None:
    found = resources(report(**CASES[case]))
    wanted = "amended" if "correction" in CASES[case] else "preliminary"
    assert {found[kind]["status"] for kind in ("DiagnosticReport", "Observation")} == {wanted}


@pytest.mark.parametrize("case", CASES)
def test_everything_has_an_identifier_by_which_it_is_put(case: str) -> None:
    bundle = to_bundle(report(**CASES[case]), patient_system=None, accession_system=None)
    urls = {entry["fullUrl"] for entry in bundle["entry"]}
    for entry in bundle["entry"]:
        identifier = entry["resource"]["identifier"][0]
        kind = entry["resource"]["resourceType"]
        assert entry["request"]["method"] == "PUT"
        assert entry["request"]["url"] == f"{kind}?identifier={identifier['system']}|{identifier['value']}"
    found = resources(report(**CASES[case]))
    assert {found["Observation"]["device"]["reference"], found["DiagnosticReport"]["result"][0]["reference"]} <= urls


def test_an_amended_report_has_the_identifiers_of_the_former_one() -> None:
    former, amended = resources(report()), resources(report(correction=CORRECTION))
    for kind in former:
        assert former[kind]["identifier"] == amended[kind]["identifier"]
    assert amended["Observation"]["valueCodeableConcept"]["text"] == "normal"
    model = amended["Observation"]["component"][0]
    assert model["valueCodeableConcept"]["text"] == "opacities"


def test_it_is_about_the_patient_and_study_of_the_original() -> None:
    own = identity(patient_id="4711", accession_number="A1", study_uid="1.2.3", sop_uid="1.2.3.4.5")
    found = resources(report(whose=own))
    for kind in ("DiagnosticReport", "Observation"):
        subject = found[kind]["subject"]["identifier"]
        assert (subject["system"], subject["value"]) == ("urn:oid:2.999.1", "4711")
        assert found[kind]["basedOn"][0]["identifier"]["value"] == "A1"
    assert found["DiagnosticReport"]["imagingStudy"][0]["identifier"]["value"] == "urn:oid:1.2.3"
    assert found["Observation"]["derivedFrom"][1]["identifier"]["value"] == "urn:oid:1.2.3.4.5"
    text = json.dumps(found)
    assert "pseudonym" not in text
    assert report().prediction.image_id not in text


@pytest.mark.parametrize("flags", [["uncertain"], ["unlike_training"], ["new_flag"]])
def test_a_flagged_prediction_has_no_value(flags: list[str]) -> None:
    observation = resources(report(flags=flags))["Observation"]
    assert "valueCodeableConcept" not in observation
    assert "component" not in observation
    assert flags[0] in observation["dataAbsentReason"]["text"]


@pytest.mark.parametrize("case", CASES)
def test_every_resource_says_research_use(case: str) -> None:
    for resource in resources(report(**CASES[case])).values():
        assert DISCLAIMER in json.dumps({name: resource[name] for name in resource if name != "text"})
        assert DISCLAIMER in resource["text"]["div"]


def test_every_resource_names_the_model() -> None:
    said = report()
    for resource in resources(said).values():
        text = json.dumps(resource)
        for word in (said.prediction.model_name, said.prediction.model_version, said.prediction.model_sha256):
            assert word in text


def test_without_accession_number_and_systems_there_are_none() -> None:
    found = resources(report(whose=identity(accession_number="")), patient_system=None)
    assert "basedOn" not in found["DiagnosticReport"]
    assert "system" not in found["Observation"]["subject"]["identifier"]


def test_text_of_a_model_is_no_markup() -> None:
    found = resources(report(label="<b>&", probabilities={"<b>&": 0.9, "normal": 0.1}, positive_label="<b>&"))
    assert "&lt;b&gt;&amp;" in found["Observation"]["text"]["div"]
    assert "<b>" not in found["DiagnosticReport"]["text"]["div"]


def test_the_same_report_gives_the_same_bytes_in_one_line() -> None:
    one, other = (to_json(to_bundle(report(), patient_system=None, accession_system=None)) for _ in range(2))
    assert one == other
    assert b"\n" not in one
