"""What a STOW-RS client is told, and by which names."""

import io
import json
from xml.etree import ElementTree as ET

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ImplicitVRLittleEndian

from streaming.gateway.http.objectnames import HEAD_BYTES, ObjectNames, is_uid, read_names
from streaming.gateway.http.stow import JSON_TYPE, XML_TYPE, StowAnswer, choose_type
from streaming.gateway.refusals import Cause
from tests import testimages

_ONE, _TWO = ObjectNames("1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"), ObjectNames("1.2.840.10008.5.1.4.1.1.1.1", "1.2.4")
_EVENT = "e" * 32


@pytest.mark.parametrize(
    ("stored", "failed", "status"),
    [
        ([_ONE], [], 200),
        ([_ONE, _TWO], [], 200),
        ([_ONE], [Cause.UNREADABLE], 202),
        ([_ONE], [Cause.BROKER_AWAY], 202),
        ([], [Cause.UNREADABLE], 409),
        ([], [Cause.TOO_LARGE, Cause.WRONG_CLASS], 409),
        ([], [Cause.BROKER_AWAY], 503),
        ([], [Cause.UNREADABLE, Cause.SPOOL_FULL], 503),
        ([], [Cause.RATE], 429),
        ([], [Cause.RATE, Cause.BUSY], 503),
        ([], [Cause.FAILED], 409),
    ],
)
def test_status(stored: list[ObjectNames], failed: list[Cause], status: int) -> None:
    answer = StowAnswer([(names, _EVENT) for names in stored], [(_TWO, cause) for cause in failed])
    assert answer.status == status


def test_json_is_what_pydicom_reads() -> None:
    answer = StowAnswer([(_ONE, _EVENT)], [(_TWO, Cause.BROKER_AWAY), (ObjectNames(), Cause.UNREADABLE)])
    found = pydicom.Dataset.from_json(json.loads(answer.render(JSON_TYPE)))
    assert found.RetrieveURL == ""
    (stored,) = found.ReferencedSOPSequence
    assert (stored.ReferencedSOPClassUID, stored.ReferencedSOPInstanceUID) == (_ONE.sop_class, _ONE.sop_instance)
    assert stored.private_block(0x0009, "XRAY")[1].value == _EVENT
    first, second = found.FailedSOPSequence
    assert (first.ReferencedSOPInstanceUID, first.FailureReason) == ("1.2.4", 0xA700)
    assert (second.ReferencedSOPInstanceUID, second.FailureReason) == ("", 0xC000)


def test_xml_says_the_same_by_the_standards_names() -> None:
    answer = StowAnswer([(_ONE, _EVENT)], [(_TWO, Cause.BROKER_AWAY)])
    root = ET.fromstring(answer.render(XML_TYPE))  # noqa: S314 - our own
    space = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"
    assert root.tag == f"{space}NativeDicomModel"
    found = {
        (sequence.get("keyword"), one.get("keyword")): one.findtext(f"{space}Value")
        for sequence in root
        for one in sequence.iter(f"{space}DicomAttribute")
        if one is not sequence
    }
    assert found == {
        ("FailedSOPSequence", "ReferencedSOPClassUID"): _TWO.sop_class,
        ("FailedSOPSequence", "ReferencedSOPInstanceUID"): "1.2.4",
        ("FailedSOPSequence", "FailureReason"): str(0xA700),
        ("ReferencedSOPSequence", "ReferencedSOPClassUID"): _ONE.sop_class,
        ("ReferencedSOPSequence", "ReferencedSOPInstanceUID"): "1.2.3",
        ("ReferencedSOPSequence", "RetrieveURL"): None,
    }


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", JSON_TYPE),
        ("*/*", JSON_TYPE),
        ("application/dicom+json", JSON_TYPE),
        ("Application/DICOM+XML", XML_TYPE),
        ("application/dicom+xml;q=0.2, application/json;q=0.3", JSON_TYPE),
        ("application/dicom+xml; q=x", None),
        ("image/*", None),
        (",;,", None),
    ],
)
def test_how_the_answer_is_written(accept: str, kind: str | None) -> None:
    assert choose_type(accept) == kind


@pytest.mark.parametrize(("text", "is_one"), [("1.2.3", True), ("0", True), ("1.02", True), ("1" * 64, True)])
def test_uids(text: str, is_one: bool) -> None:
    assert is_uid(text) is is_one


@pytest.mark.parametrize("text", ["", ".", "1.", ".1", "1..2", "1" * 65, "1.a", "Example^Synthetic", "1\n", "\u0661"])
def test_what_is_no_uid_names_nothing(text: str) -> None:
    assert not is_uid(text)


@pytest.mark.parametrize("text", ["Example^Synthetic", "1.2.x", "..", "<b>", "\u0661.\u0662"])
def test_no_other_text_is_repeated(text: str) -> None:
    own = b"1.2.826.0.1.3680043.8.498.1"
    payload = testimages.dicom().replace(own, text.encode().ljust(len(own), b"\0"))
    assert read_names(payload) == ObjectNames(sop_class="1.2.840.10008.5.1.4.1.1.1.1")


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("explicit", testimages.dicom(StudyInstanceUID="1.2.9")),
        ("implicit", testimages.dicom(StudyInstanceUID="1.2.9", syntax=ImplicitVRLittleEndian)),
        ("big endian", testimages.big_endian_dicom(StudyInstanceUID="1.2.9")),
        ("no pixels", testimages.dicom(StudyInstanceUID="1.2.9", PixelData=None)),
    ],
)
def test_names_of_an_object(name: str, payload: bytes) -> None:
    found = pydicom.dcmread(io.BytesIO(payload))
    assert read_names(payload) == ObjectNames(found.SOPClassUID, found.SOPInstanceUID, "1.2.9")


def test_of_a_cut_object_the_file_meta_information_tells() -> None:
    payload = testimages.dicom(StudyInstanceUID="1.2.9")
    for length in (400, 450, HEAD_BYTES):
        assert read_names(payload[:length]).sop_instance == "1.2.826.0.1.3680043.8.498.1"
    assert read_names(payload[:150]) == ObjectNames()


@pytest.mark.parametrize("length", [63, 64, 65, 66, 67, 300])
def test_a_uid_that_is_too_long_is_none_rather_than_its_begin(length: int) -> None:
    text = "1." + "9" * (length - 2)
    value = text.encode() + bytes(length % 2)
    payload = bytes(128) + b"DICM\2\0\3\0UI" + len(value).to_bytes(2, "little") + value
    assert read_names(payload).sop_instance == (text if is_uid(text) else None)


def test_deflated_objects_are_named_without_inflating_them() -> None:
    assert read_names(testimages.deflated_dicom()).sop_instance == "1.2.826.0.1.3680043.8.498.1"


@given(st.binary(max_size=600), st.booleans())
def test_any_bytes_are_named_or_not(payload: bytes, has_preamble: bool) -> None:
    found = read_names(bytes(128) + b"DICM" + payload if has_preamble else payload)
    assert all(uid is None or is_uid(uid) for uid in (found.sop_class, found.sop_instance, found.study))
