"""No patient marker gets through, wherever in a file it is; and the search would find it."""

import gzip
import logging
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from schemas.errors import RecordError
from sparkdl.image.decode import decode_image
from streaming.devices import dicomelements
from streaming.devices.deidentify import Deidentifier
from streaming.devices.dicomelements import read_text
from streaming.devices.pseudonyms import Pseudonyms
from tests import testimages
from tests.unit.streaming.devices import markers
from tests.unit.streaming.devices.markers import find_markers

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, where the test writes what it should not


@pytest.fixture(params=["cut", "shift"])
def deidentifier(tmp_path: Path, request: pytest.FixtureRequest) -> Deidentifier:
    return Deidentifier(Pseudonyms(tmp_path / "key"), dates=request.param)


def test_ten_thousand_markers_are_gone(deidentifier: Deidentifier, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    before, refused = markers.count_markers(), 0
    for name, payload in [*markers.marked_dicom_files(), *markers.marked_rasters()]:
        assert find_markers(payload), name
        try:
            cleaned = deidentifier.deidentify(payload, origin=name)
        except RecordError as exc:
            refused += 1
            assert not find_markers(f"{exc} {exc.detail}".encode()), name
            continue
        assert not find_markers(cleaned.payload), name
        assert not find_markers(f"{cleaned.image_id} {cleaned.flags} {cleaned.identity!r}".encode()), name
        assert outcome_of(cleaned.payload) == outcome_of(payload), name
    assert markers.count_markers() - before >= 10_000
    assert refused == 0
    assert not find_markers(caplog.text.encode())


@pytest.mark.parametrize(
    ("where", "hide"),
    [
        ("latin-1", lambda text: text.encode("latin-1")),
        ("utf-16-le", lambda text: text.encode("utf-16-le")),
        ("utf-16-be", lambda text: text.encode("utf-16-be")),
        ("deflated", lambda text: zlib.compress(b"x" * 500 + text.encode())),
        ("gzip", lambda text: gzip.compress(b"x" * 500 + text.encode())),
        ("deflated fast", lambda text: zlib.compress(text.encode("utf-16-le"), 1)),
    ],
)
def test_the_search_finds_a_marker(where: str, hide: Callable[[str], bytes]) -> None:
    assert find_markers(b"\0\1\2" * 50 + hide(markers.marker()) + bytes(20)), where
    assert not find_markers(b"\0\1\2" * 50 + hide("ZQ12") + bytes(20)), where


@pytest.mark.parametrize(
    "keyword", ["PatientComments", "StudyDescription", "InstitutionName", "DeviceSerialNumber", "ProtocolName"]
)
def test_an_element_that_were_kept_by_mistake_would_be_found(
    deidentifier: Deidentifier, monkeypatch: pytest.MonkeyPatch, keyword: str
) -> None:
    def keep(dataset: Dataset, keyword: str) -> bytes:
        return read_text(dataset, keyword).encode()

    payload = testimages.dicom(**{keyword: markers.marker()})
    assert not find_markers(deidentifier.deidentify(payload, origin="x").payload)
    monkeypatch.setitem(dicomelements.KEPT, keyword, keep)
    assert find_markers(deidentifier.deidentify(payload, origin="x").payload)


@pytest.mark.parametrize(
    "keyword", sorted({*dicomelements.KEPT, "PixelPaddingValue", "PixelIntensityRelationshipSign"})
)
@pytest.mark.parametrize("vr", ["LO", "UN", "DS"])
def test_a_kept_element_keeps_no_text(deidentifier: Deidentifier, keyword: str, vr: str) -> None:
    dataset = testimages.dicom_dataset()
    markers.add_raw(dataset, dicomelements.tag_of(keyword), vr, markers.marker().encode())
    payload = testimages.write_dicom(dataset)
    cleaned = deidentifier.deidentify(payload, origin="x").payload
    assert not find_markers(cleaned)
    assert outcome_of(cleaned) == outcome_of(payload)


@pytest.mark.parametrize("keyword", ["Modality", "PhotometricInterpretation", "SOPClassUID", "NumberOfFrames", "Rows"])
def test_what_decides_over_an_image_keeps_no_text(deidentifier: Deidentifier, keyword: str) -> None:
    dataset = testimages.dicom_dataset()
    markers.add_raw(dataset, dicomelements.tag_of(keyword), "LO", markers.marker().encode())
    payload = testimages.write_dicom(dataset)
    assert find_markers(payload)
    try:
        cleaned = deidentifier.deidentify(payload, origin="x").payload
    except RecordError as exc:
        assert outcome_of(payload) == exc.reason
        assert not find_markers(str(exc).encode())
    else:
        assert not find_markers(cleaned)
        assert outcome_of(cleaned) == outcome_of(payload)


def outcome_of(payload: bytes) -> object:
    try:
        return decode_image(payload, origin="x").image
    except RecordError as exc:
        return exc.reason
