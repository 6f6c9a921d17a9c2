"""DICOM SR: content by highdicom's own reader, whose it is, and that nothing hangs on the moment of writing."""

import io
from typing import Any

import pytest
from highdicom.sr import Comprehensive3DSR
from pydicom import Dataset, dcmread
from pydicom.uid import Comprehensive3DSRStorage

from schemas.envelope import DISCLAIMER
from streaming.reports.report import LeftOut, NotReportedError
from streaming.reports.structuredreport import to_dataset, to_file
from tests.reportparts import CORRECTION, DX, event, identity, report


def read(**kind: Any) -> Dataset:
    return dcmread(io.BytesIO(to_file(to_dataset(report(**kind)))))


def group(dataset: Dataset) -> Any:
    content = Comprehensive3DSR.from_dataset(dataset).content
    groups = content.get_image_measurement_groups()
    assert len(groups) == 1
    return groups[0]


def evaluations(dataset: Dataset) -> dict[str, str]:
    return {one.name.value: one.value.value for item in group(dataset).get_qualitative_evaluations() for one in item}


def test_it_is_tid_1500_preliminary_and_unverified() -> None:
    found = read()
    assert found.SOPClassUID == Comprehensive3DSRStorage
    assert found.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    flags = (found.CompletionFlag, found.VerificationFlag, found.PreliminaryFlag)
    assert flags == ("PARTIAL", "UNVERIFIED", "PRELIMINARY")


def test_it_is_in_the_study_of_the_original() -> None:
    own = identity(
        patient_id="4711", accession_number="A1", study_uid="1.2.3", series_uid="1.2.3.4", sop_uid="1.2.3.4.5"
    )
    found = read(whose=own)
    assert (found.PatientID, found.AccessionNumber, found.StudyInstanceUID) == ("4711", "A1", "1.2.3")
    evidence = found.CurrentRequestedProcedureEvidenceSequence[0]
    assert evidence.StudyInstanceUID == "1.2.3"
    series = evidence.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == "1.2.3.4"
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.5"
    assert series.ReferencedSOPSequence[0].ReferencedSOPClassUID == DX
    assert group(found).source_images[0].referenced_sop_instance_uid == "1.2.3.4.5"
    assert "pseudonym" not in str(found)


def test_one_finding_with_its_probability() -> None:
    found = read()
    assert evaluations(found)["opacities"] == "opacities"
    (measured,) = group(found).get_measurements()
    assert (measured.name.value, measured.value, measured.unit.value) == ("probability", 0.9375, "1")


def test_the_algorithm_and_the_device_are_named() -> None:
    said, found = report(), read()
    text = str(found)
    for word in (said.prediction.model_name, said.prediction.model_version, said.prediction.model_sha256):
        assert word in text
    assert {"Algorithm Name", "Algorithm Version"} <= {
        line.split("'")[1] for line in text.splitlines() if "Code Meaning" in line
    }
    assert found.DeviceUID == said.device_uid
    assert found.ManufacturerModelName == said.prediction.model_name
    assert group(found).tracking_uid
    other = read(model=event()["model"] | {"sha256": "7" * 64})
    assert other.DeviceUID != found.DeviceUID
    assert other.SeriesInstanceUID != found.SeriesInstanceUID


@pytest.mark.parametrize("flags", [["uncertain"], ["unlike_training"], ["new_flag"]])
def test_a_flagged_prediction_has_no_finding(flags: list[str]) -> None:
    found = read(flags=flags)
    assert evaluations(found)["opacities"] == "undecided"
    assert group(found).get_measurements() == []
    assert flags[0] in str(found)


def test_an_amended_report_is_a_document_that_follows_the_former_one() -> None:
    former, amended = read(), read(correction=CORRECTION)
    assert evaluations(amended) | {"notice": ""} == {"opacities": "normal", "model-finding": "opacities", "notice": ""}
    before = amended.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert before.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == former.SOPInstanceUID
    assert before.SeriesInstanceUID == former.SeriesInstanceUID == amended.SeriesInstanceUID
    assert amended.SOPInstanceUID != former.SOPInstanceUID
    assert (amended.CompletionFlag, amended.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    assert "PredecessorDocumentsSequence" not in former


@pytest.mark.parametrize("kind", [{}, {"flags": ["uncertain"]}, {"correction": CORRECTION}])
def test_it_says_research_use(kind: dict[str, Any]) -> None:
    assert DISCLAIMER in [
        item.value.meaning for one in group(read(**kind)).get_qualitative_evaluations() for item in one
    ]


@pytest.mark.parametrize("kind", [{}, {"flags": ["uncertain"]}, {"correction": CORRECTION}])
def test_the_same_report_gives_the_same_bytes(kind: dict[str, Any]) -> None:
    assert to_file(to_dataset(report(**kind))) == to_file(to_dataset(report(**kind)))


def test_reports_have_uids_of_their_own() -> None:
    assert len({read(number=number).SOPInstanceUID for number in range(20)}) == 20


@pytest.mark.parametrize("sop_class", ["", "SMITH^JOHN", "1.2."])
def test_without_a_sop_class_there_is_none(sop_class: str) -> None:
    with pytest.raises(NotReportedError) as caught:
        to_dataset(report(whose=identity(sop_class=sop_class)))
    assert caught.value.reason is LeftOut.NO_SOP_CLASS


@pytest.mark.parametrize("label", ["x" * 200, "pleural effusion, left side", "Müller 東京", "a\\b"])
def test_labels_of_any_length_and_script_are_written(label: str) -> None:
    found = read(label=label, positive_label=label, probabilities={label: 0.9, "normal": 0.1})
    assert len(evaluations(found)) == 2
