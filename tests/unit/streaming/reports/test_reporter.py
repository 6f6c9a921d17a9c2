"""Whether there is a report at all: whose image it is, and which model said it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from streaming.devices.crosswalk import Crosswalk
from streaming.devices.identity import Identity, Known
from streaming.reports.report import LeftOut, NotReportedError, Prediction, read_prediction
from streaming.reports.reporter import Reporter
from streaming.settings import GatewaySettings, ReportsSettings, StreamSettings
from tests.reportparts import CORRECTION, RECEIVED, SCORED, event, identity


def said(number: int = 1, **changed: Any) -> Prediction:
    value = json.dumps(event(number, **changed)).encode()
    return read_prediction(value, received_at=RECEIVED, scored_at=SCORED)


def named(name: str) -> Prediction:
    return said(model=event()["model"] | {"name": name})


class Place:
    """A gateway's crosswalk, and settings that lead to it."""

    def __init__(self, folder: Path) -> None:
        file, key = folder / "crosswalk", folder / "key"
        self.crosswalk = Crosswalk(file, key)
        self.settings = StreamSettings(
            home=folder,
            gateway=GatewaySettings(crosswalk=file, crosswalk_key=key),
            reports=ReportsSettings(demonstration_models="phantom"),
        )

    def open(self, *, demonstration: bool = False) -> Reporter:
        return Reporter(self.settings, demonstration=demonstration)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    made.crosswalk.note(identity(1))
    return made


@pytest.mark.parametrize("name", ["demo", "demo-2", "demo-cxr", "phantom"])
def test_a_model_for_demonstration_has_no_report_unless_asked(place: Place, name: str) -> None:
    with pytest.raises(NotReportedError) as caught:
        place.open().make(named(name))
    assert caught.value.reason is LeftOut.DEMONSTRATION
    assert place.open(demonstration=True).make(named(name)).prediction.model_name == name


@pytest.mark.parametrize("name", ["cxr", "demographics", "a-demo"])
def test_a_model_in_earnest_has_one(place: Place, name: str) -> None:
    assert place.open().make(named(name)).prediction.model_name == name


def another(**names: str) -> Identity:
    was = identity(1)
    return replace(was, **{name: Known(own, getattr(was, name).pseudonym) for name, own in names.items()})


@pytest.mark.parametrize("correction", [None, CORRECTION])
@pytest.mark.parametrize("is_known", [True, False])
def test_an_image_of_two_patients_is_reported_of_neither(place: Place, correction: Any, *, is_known: bool) -> None:
    reporter = place.open()
    if is_known:
        reporter.make(said())
    place.crosswalk.note(another(patient_id="PAT2"))
    with pytest.raises(NotReportedError) as caught:
        reporter.make(said(), correction)
    assert caught.value.reason is LeftOut.SEVERAL_PATIENTS


@pytest.mark.parametrize("name", ["accession_number", "study_uid", "series_uid"])
def test_what_was_corrected_at_the_device_is_reported_corrected(place: Place, name: str) -> None:
    reporter = place.open()
    reporter.make(said())
    place.crosswalk.note(another(**{name: "1.2.826.0.1.9"}))
    assert getattr(reporter.make(said(), CORRECTION).identity, name).own == "1.2.826.0.1.9"
