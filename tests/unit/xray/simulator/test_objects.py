"""Simulated objects: read back by pydicom and decoded by the product, with a marker wherever a name could be."""

import io
from dataclasses import replace
from functools import cache

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRBigEndian

from sparkdl.image.decode import decode_image
from xray.simulator.habits import BASELINE, CR, DX, EXTENDED, LOSSLESS, NATIVE, SC, Habits, Way, draw_habits
from xray.simulator.objects import Shot, write_file_bytes, write_jpeg, write_png
from xray.simulator.patient import MARKER, derive_uid, draw_patient
from xray.simulator.pictures import Pictures

SEED = 11
BITS = {CR: 12, DX: 14, SC: 8}
LOSSY = {BASELINE: 8, EXTENDED: 12}
SYNTAXES = (*NATIVE, *LOSSLESS, *LOSSY)


@cache
def pictures() -> Pictures:
    return Pictures(SEED, count=2, shape=(200, 170))


def shot(sop_class: str, bits: int, *, inverted: bool = False) -> Shot:
    habits = replace(draw_habits(1, seed=SEED, http=False), sop_class=sop_class, bits=bits, inverted=inverted)
    return Shot(habits, 7, 6)


@pytest.mark.parametrize("inverted", [False, True], ids=["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("sop_class", [CR, DX])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_syntax_shows_the_picture(syntax: str, sop_class: str, inverted: bool) -> None:
    one = shot(sop_class, LOSSY.get(syntax, BITS[sop_class]), inverted=inverted)
    payload = write_file_bytes(one, pictures(), syntax)
    image = decode_image(payload, origin="simulated").image
    seen = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width).astype(int)
    far = np.abs(seen - pictures().pick(7)).max()
    assert far <= (25 if syntax in LOSSY else 0)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_secondary_capture_without_window_is_read(syntax: str) -> None:
    if syntax == EXTENDED:
        pytest.skip("a Secondary Capture has 8 bits here")
    assert decode_image(write_file_bytes(shot(SC, 8), pictures(), syntax), origin="simulated").image.height > 0


def test_another_library_reads_the_file() -> None:
    for syntax in NATIVE:
        read = pydicom.dcmread(io.BytesIO(write_file_bytes(shot(CR, 12), pictures(), syntax)))
        assert read.file_meta.TransferSyntaxUID == syntax
        assert read.SOPInstanceUID == shot(CR, 12).sop_uid == read.file_meta.MediaStorageSOPInstanceUID
        order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
        assert np.frombuffer(read.PixelData, order).max() <= 4095


@pytest.mark.parametrize("syntax", NATIVE)
def test_a_marker_is_in_every_kind_of_place(syntax: str) -> None:
    payload = write_file_bytes(shot(DX, 12), pictures(), syntax)
    marker = draw_patient(SEED, 6).marker
    found = set()

    def note(_: pydicom.Dataset, element: pydicom.DataElement) -> None:
        if element.VR != "SQ" and marker[:16].encode() in (
            element.value if isinstance(element.value, bytes) else str(element.value).encode()
        ):
            found.add("private" if element.tag.is_private else element.keyword or element.name)

    dataset = pydicom.dcmread(io.BytesIO(payload))
    dataset.walk(note)
    assert {"PatientName", "PatientComments", "StudyDescription", "OperatorsName", "private"} <= found
    assert {"IssuerOfPatientID", "ScheduledProcedureStepDescription"} <= found, "those of sequences"
    assert {"Overlay Data", "Overlay Comments", "Overlay Label"} <= found
    assert marker.encode() in payload[:128], "the preamble may hold anything"


@pytest.mark.parametrize("write", [write_png, write_jpeg])
def test_pictures_have_the_marker_beside_their_pixels(write: object) -> None:
    assert callable(write)
    assert MARKER.encode() in write(shot(CR, 8), pictures())


def test_no_two_pictures_have_the_same_pixels() -> None:
    for write in (write_png, write_jpeg):
        seen = set()
        for number in range(40):
            payload = write(Shot(draw_habits(1, seed=SEED, http=True), number, number), pictures())
            seen.add(np.asarray(Image.open(io.BytesIO(payload))).tobytes())
        assert len(seen) == 40


def test_the_same_shot_is_the_same_bytes() -> None:
    for syntax in SYNTAXES:
        one = shot(CR, LOSSY.get(syntax, 12))
        assert write_file_bytes(one, pictures(), syntax) == write_file_bytes(one, Pictures(SEED, 2, (200, 170)), syntax)
    assert write_png(shot(CR, 8), pictures()) == write_png(shot(CR, 8), pictures())


def test_images_of_a_study_share_patient_and_study_and_no_uid() -> None:
    habits = draw_habits(2, seed=SEED, http=False)
    read = [
        pydicom.dcmread(io.BytesIO(write_file_bytes(Shot(habits, number, 3), pictures(), NATIVE[0])))
        for number in (3, 4, 5)
    ]
    for name in ("PatientName", "StudyInstanceUID", "SeriesInstanceUID"):
        assert len({str(one[name].value) for one in read}) == 1, name
    assert len({one.SOPInstanceUID for one in read}) == 3
    assert [one.InstanceNumber for one in read] == [1, 2, 3]


def test_uids_are_valid_and_of_their_parts() -> None:
    assert pydicom.uid.UID(derive_uid(1, "instance", 2)).is_valid
    assert derive_uid(1, "instance", 2) != derive_uid(1, "instance", 3) != derive_uid(2, "instance", 3)


def test_habits_of_a_number_stay_and_differ_between_numbers() -> None:
    def draw(seed: int) -> list[Habits]:
        return [draw_habits(number, seed=seed, http=False) for number in range(1, 61)]

    first = draw(1)
    assert first == draw(1) != draw(2)
    assert {one.sop_class for one in first} == {CR, DX, SC}
    assert {one.inverted for one in first} == {one.echoes for one in first} == {False, True}
    assert len({one.syntaxes[0] for one in first}) >= 9
    assert all(one.syntaxes[-1] in NATIVE[:2] for one in first), "every receiver has one of them"
    assert all(one.bits == 8 for one in first if one.sop_class == SC or one.syntaxes[0] == BASELINE)
    assert len({one.aet for one in first}) == 60
    assert {draw_habits(number, seed=1, http=True).way for number in range(1, 61)} == set(Way) - {Way.C_STORE}
