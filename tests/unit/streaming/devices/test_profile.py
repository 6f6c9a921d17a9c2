"""De-identified DICOM against a foreign table: that of PS3.15 2026c, as Kitware's dicom-anonymizer has it."""

import io
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from streaming.devices import dicomelements
from streaming.devices.deidentify import Deidentifier
from streaming.devices.dicomelements import read_text
from streaming.devices.pseudonyms import Pseudonyms
from tests import testimages

ACTIONS = "D_TAGS Z_TAGS X_TAGS U_TAGS Z_D_TAGS X_Z_TAGS X_D_TAGS X_Z_D_TAGS X_Z_U_STAR_TAGS".split()
VALUES = {
    "AE": "STATION1", "AS": "045Y", "CS": "SECRET", "DA": "20240229", "DS": "1.25", "DT": "20240229101112", "FD": 1.25,
    "FL": 1.25, "IS": "17", "LO": "secret", "LT": "secret", "OB": b"secret", "OW": b"secret", "PN": "Doe^Jane",
    "SH": "secret", "SL": 17, "SS": 17, "ST": "secret", "TM": "101112", "UC": "secret", "UI": "1.2.3.4", "UL": 17,
    "UN": b"secret", "UR": "secret", "US": 17, "UT": "secret", "AT": 0x00100010, "OF": b"secret!!", "OD": b"secret!!",
    "OL": b"secret!!", "SV": 17, "UV": 17,
}  # fmt: skip
# What option 113107 keeps in another form, and may look like the value before: a time of day.
RETAINED_TIMES = frozenset({0x00080030, 0x00080031, 0x00080032, 0x00080033})


def tags() -> list[int]:
    """Give each element of the table; of a range of groups its first one, and its last."""
    found = set[int]()
    for entry in (entry for action in ACTIONS for entry in getattr(table, action)):
        group, element = entry[:2]
        if len(entry) > 2 and group in (0x5000, 0x6000):
            element = element or 0x3000
            found |= {group << 16 | element, (group + 0x1E) << 16 | element}
        else:
            found.add(group << 16 | element)
    return sorted(tag for tag in found if 0x00080000 <= tag < 0x7FE00000)


def value_of(tag: int) -> tuple[str, object]:
    vr = dictionary_VR(tag).split(" or ")[0] if dictionary_has_tag(tag) else "LO"
    if vr == "SQ":
        item = Dataset()
        item.PatientName = "Doe^Jane"
        return vr, Sequence([item])
    return vr, VALUES[vr]


def images() -> Iterator[tuple[list[int], Dataset, bytes]]:
    """Give images with 40 of the elements each."""
    listed = tags()
    for start in range(0, len(listed), 40):
        dataset = testimages.dicom_dataset()
        for tag in listed[start : start + 40]:
            dataset.add_new(tag, *value_of(tag))
        yield listed[start : start + 40], dataset, testimages.write_dicom(dataset)


def find_kept(deidentifier: Deidentifier, allowed: frozenset[int] = frozenset()) -> list[int]:
    """Give the elements of the table that have the value that they had."""
    kept = []
    for listed, before, payload in images():
        after = pydicom.dcmread(io.BytesIO(deidentifier.deidentify(payload, origin="x").payload))
        kept += [tag for tag in listed if tag in after and after[tag].value == before[tag].value and tag not in allowed]
    return kept


@pytest.fixture
def pseudonyms(tmp_path: Path) -> Pseudonyms:
    return Pseudonyms(tmp_path / "key")


def test_the_table_is_the_whole_one() -> None:
    assert len(tags()) > 550


def test_nothing_of_the_basic_profile_keeps_its_value(pseudonyms: Pseudonyms) -> None:
    assert find_kept(Deidentifier(pseudonyms, dates="cut")) == []


def test_moved_dates_keep_times_alone(pseudonyms: Pseudonyms) -> None:
    deidentifier = Deidentifier(pseudonyms, dates="shift")
    assert find_kept(deidentifier, RETAINED_TIMES) == []
    assert set(find_kept(deidentifier)) <= RETAINED_TIMES


@pytest.mark.parametrize("keyword", ["StudyDescription", "ImageComments", "OperatorsName", "PatientAge"])
def test_an_element_that_were_kept_by_mistake_would_be_found(
    pseudonyms: Pseudonyms, monkeypatch: pytest.MonkeyPatch, keyword: str
) -> None:
    monkeypatch.setitem(dicomelements.KEPT, keyword, lambda dataset, keyword: read_text(dataset, keyword).encode())
    assert find_kept(Deidentifier(pseudonyms)) == [dicomelements.tag_of(keyword)]


def test_what_is_kept_is_not_in_the_table() -> None:
    """Without its own list of exceptions: no element that is read by value is one that the profile acts on."""
    assert not {dicomelements.tag_of(keyword) for keyword in dicomelements.KEPT} & set(tags())
