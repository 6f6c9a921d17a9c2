"""What a report says, whatever the format: whose it is, what is left out, and what stays the same."""

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from schemas.envelope import DISCLAIMER
from streaming.devices.identity import Known, is_uid
from streaming.reports.report import (
    LeftOut,
    NotReportedError,
    check_identity,
    derive_uid,
    read_prediction,
    report_key,
)
from tests.reportparts import CORRECTION, RECEIVED, SCORED, event, identity, report


def read(value: bytes | None) -> Any:
    return read_prediction(value, received_at=RECEIVED, scored_at=SCORED)


def test_a_finding_is_said_with_its_probability_and_the_model() -> None:
    said = report()
    assert (said.label, said.probability) == ("opacities", 0.9375)
    assert said.conclusion.startswith("Preliminary, by a model: opacities (probability of opacities: 0.938)")
    for text in (said.conclusion, " ".join(said.notes)):
        assert DISCLAIMER in text
    for word in ("cxr", "20260131T120000Z", said.prediction.model_sha256):
        assert word in said.model


@pytest.mark.parametrize("flags", [["uncertain"], ["unlike_training"], ["a_flag_of_a_later_release"]])
def test_a_flagged_prediction_has_no_finding(flags: list[str]) -> None:
    said = report(flags=flags)
    assert (said.label, said.probability) == (None, None)
    assert "opacities" not in said.conclusion
    assert flags[0] in said.conclusion


def test_a_confirmed_finding_amends_also_what_was_undecided() -> None:
    for flags in ([], ["uncertain"], ["unlike_training"]):
        said = report(flags=flags, correction=CORRECTION)
        assert said.label == "normal"
        assert said.conclusion.startswith("Amended: a person has confirmed normal.")


def test_the_first_report_has_the_id_of_the_event_and_each_amended_one_another() -> None:
    keys = {report().key, report(correction=CORRECTION).key}
    keys |= {report(correction=replace(CORRECTION, label="opacities")).key}
    keys |= {report(correction=replace(CORRECTION, confirmed_at=SCORED)).key}
    assert len(keys) == 4
    assert report().key == event()["event_id"]
    assert report_key(event()["event_id"], CORRECTION) == report(correction=CORRECTION).key


def test_a_model_that_is_trained_again_is_another_device() -> None:
    other = event()["model"] | {"sha256": "5" * 64}
    assert report().device_uid == report(2).device_uid
    assert report().device_uid != report(model=other).device_uid
    assert report(model=event()["model"] | {"version": "x"}).device_uid == report().device_uid
    assert is_uid(report().device_uid)


def test_uids_follow_from_their_parts() -> None:
    assert derive_uid("a", "b") == derive_uid("a", "b")
    assert len({derive_uid("a", "b"), derive_uid("b", "b"), derive_uid("a", "c"), derive_uid("a", "b", "")}) == 4


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"[" * 100_000,
        *(
            json.dumps({name: value for name, value in event().items() if name != gone}).encode()
            for gone in ("event_id", "image", "model", "label", "probabilities", "positive_label", "operating_point")
        ),
        json.dumps(event(event_id="../../etc/passwd")).encode(),
        json.dumps(event(label=["normal"])).encode(),
        json.dumps(event(probabilities={"normal": 0.5, "opacities": 1.5})).encode(),
        json.dumps(event(model=event()["model"] | {"sha256": "x"})).encode(),
        json.dumps(event(probabilities={"normal": 0.5, "opacities": 10**400})).encode(),
        json.dumps(event(label="\ud800")).encode(),
        json.dumps(event(flags=["\udfff"])).encode(),
        json.dumps(event(image=event()["image"] | {"source": "\ud800"})).encode(),
    ],
)
def test_what_is_no_prediction_is_none(value: bytes | None) -> None:
    with pytest.raises(NotReportedError) as caught:
        read(value)
    assert caught.value.reason is LeftOut.NOT_A_PREDICTION


@pytest.mark.parametrize("zone", [timezone(timedelta(hours=hours)) for hours in (1, 14, 23)])
def test_a_time_that_utc_does_not_have_is_no_predictions(zone: timezone) -> None:
    first = datetime(1, 1, 1, tzinfo=zone)
    for received_at, scored_at in ((first, SCORED), (RECEIVED, first)):
        with pytest.raises(NotReportedError):
            read_prediction(json.dumps(event()).encode(), received_at=received_at, scored_at=scored_at)


def test_fields_of_a_later_release_change_nothing() -> None:
    assert read(json.dumps(event() | {"new": {"a": 1}}).encode()) == read(json.dumps(event()).encode())


@pytest.mark.parametrize("text", ["", "   ", "\t"])
def test_who_has_no_patient_id_has_no_report(text: str) -> None:
    with pytest.raises(NotReportedError) as caught:
        check_identity(identity(patient_id=text))
    assert caught.value.reason is LeftOut.NO_PATIENT


@pytest.mark.parametrize("name", ["study_uid", "series_uid", "sop_uid"])
@pytest.mark.parametrize("text", ["", "1.2.x", "1." + "2" * 63, "1.02", ".1", "SMITH"])
def test_what_has_no_study_has_no_report(name: str, text: str) -> None:
    with pytest.raises(NotReportedError) as caught:
        check_identity(identity(**{name: text}))
    assert caught.value.reason is LeftOut.NO_STUDY


def test_what_is_complete_is_reported() -> None:
    check_identity(identity())
    check_identity(replace(identity(), accession_number=Known("", "")))


def test_every_reason_has_a_meaning() -> None:
    assert all(reason.meaning for reason in LeftOut)
