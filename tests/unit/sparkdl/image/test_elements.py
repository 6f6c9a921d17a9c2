"""Where elements begin and end, however they are written, and how many there may be."""

import struct

import numpy as np
import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit

from schemas.errors import CorruptImageError, Reason
from sparkdl.image.dicom import render_dicom
from sparkdl.image.elements import MAX_ELEMENTS
from sparkdl.image.limits import DecodeLimits
from tests.testimages import (
    big_endian_dicom,
    dicom,
    encapsulated_dicom,
    gray_pixels,
    jpeg,
    jpeg_baseline_dicom,
    lookup_table,
)

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
CONTRAST, AGENT, CODES = (0x0018, 0x0012), (0x0018, 0x0010), (0x0018, 0x0014)
"""Two sequences and a text, which stand before the pixels' description."""


class Writer:
    """Writes elements by hand: also such as pydicom would not write."""

    def __init__(self, syntax=ExplicitVRLittleEndian):
        self.syntax = syntax
        self.order = ">" if syntax == ExplicitVRBigEndian else "<"
        self.explicit = syntax != ImplicitVRLittleEndian

    def element(self, tag, value=b"", vr=b"SQ", length=None):
        length = len(value) if length is None else length
        if not self.explicit or tag[0] == 0xFFFE:
            return struct.pack(f"{self.order}HHI", *tag, length) + value
        if vr in (b"SQ", b"UN", b"OB"):
            return struct.pack(f"{self.order}HH2sHI", *tag, vr, 0, length) + value
        return struct.pack(f"{self.order}HH2sH", *tag, vr, length) + value

    def item(self, content=b"", *, ends=True):
        if ends:
            return self.element(ITEM, content, length=UNDEFINED) + self.element(ITEM_END)
        return self.element(ITEM, content)

    def sequence(self, items, tag=CONTRAST, vr=b"SQ", *, ends=True):
        if ends:
            return self.element(tag, items, vr, UNDEFINED) + self.element(SEQUENCE_END)
        return self.element(tag, items, vr)

    def file(self, elements):
        """Put elements before those that describe the pixels."""
        whole = big_endian_dicom() if self.order == ">" else dicom(syntax=self.syntax)
        start = whole.index(struct.pack(f"{self.order}HH", 0x0028, 0x0002))
        return whole[:start] + elements + whole[start:]


def shown(payload):
    return render_dicom(payload, origin="x", limits=DecodeLimits()).pixels


def fault_of(payload):
    with pytest.raises(CorruptImageError) as caught:
        shown(payload)
    assert caught.value.reason == Reason.DICOM_CORRUPT
    return caught.value.detail


def nested(write):
    text = write.element(AGENT, b"ab", b"LO")
    inner = write.sequence(write.item(text) + write.item(text, ends=False), CODES)
    return [
        write.sequence(b""),
        write.sequence(write.item() * 3),
        write.sequence(write.item(text + inner + text) * 2),
        write.sequence(write.item(text + inner, ends=False) + write.item(inner)),
        write.sequence(write.item(write.sequence(write.item(inner), CODES, ends=False)), ends=False),
        write.sequence(write.item(inner), vr=b"UN"),
        write.element((0x0009, 0x1001), b"any bytes " + write.element(SEQUENCE_END), b"OB", UNDEFINED),
        write.element((0x0009, 0x1001), b"any bytes " + write.element(SEQUENCE_END), b"UN", UNDEFINED),
    ]


@pytest.mark.parametrize("case", range(len(nested(Writer()))))
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_has_no_length_is_passed_over_to_its_end(syntax, case):
    write = Writer(syntax)
    np.testing.assert_array_equal(shown(write.file(nested(write)[case])), shown(write.file(b"")))


def test_a_sequence_in_implicit_vr_inside_explicit_vr():
    explicit, implicit = Writer(), Writer(ImplicitVRLittleEndian)
    item = implicit.item(implicit.element(AGENT, b"ab") + implicit.sequence(implicit.item(), CODES))
    np.testing.assert_array_equal(shown(explicit.file(explicit.sequence(item, vr=b"UN"))), shown(explicit.file(b"")))


def test_pixels_of_an_icon_are_not_the_pixels():
    """The icon is compressed, and its fragments hold what looks like the end of a sequence."""
    write = Writer()
    fragments = write.element(ITEM) + write.element(ITEM, jpeg()[:200]) + write.element(SEQUENCE_END)
    icon = write.item(write.element((0x7FE0, 0x0010), fragments, b"OB", UNDEFINED))
    payload = write.file(write.sequence(icon, (0x0009, 0x1002)))
    np.testing.assert_array_equal(shown(payload), shown(write.file(b"")))


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "build",
    [
        pytest.param(
            lambda write: write.element(CONTRAST, write.item(), length=UNDEFINED), id="no end of the sequence"
        ),
        pytest.param(lambda write: write.sequence(write.element(ITEM, b"", length=UNDEFINED)), id="no end of an item"),
        pytest.param(lambda write: write.sequence(write.item() + write.element(AGENT, b"ab", b"LO")), id="no item"),
        pytest.param(lambda write: write.sequence(write.element(ITEM, length=1 << 30)), id="an item beyond the file"),
        pytest.param(lambda write: write.element(CONTRAST, length=UNDEFINED - 1), id="a length of 4 GB"),
    ],
)
def test_a_sequence_that_does_not_end_is_damage(syntax, build):
    write = Writer(syntax)
    assert fault_of(write.file(build(write))).startswith(("data set ends before", "something else stands"))


def many(write, count):
    text = write.element(AGENT, b"", b"LO")
    return {
        "elements": b"".join(write.element((0x0019, 0x1000 + i % 4096), b"", b"LO") for i in range(count)),
        "items": write.sequence(write.item(ends=False) * count),
        "items without length": write.sequence(write.item() * (count // 2)),
        "elements of one item": write.sequence(write.item(text * count)),
        "sequences in sequences": (write.element(CODES, length=UNDEFINED) + write.element(ITEM, length=UNDEFINED))
        * (count // 2)
        + (write.element(ITEM_END) + write.element(SEQUENCE_END)) * (count // 2),
        "LUT items": write.sequence(write.item(ends=False) * count, (0x0028, 0x3010), ends=False),
        "elements of a LUT item": write.sequence(write.item(text * count, ends=False), (0x0028, 0x3010), ends=False),
    }


@pytest.mark.parametrize("kind", many(Writer(), 1))
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_there_may_be_so_many_elements_and_no_more(syntax, kind, monkeypatch):
    monkeypatch.setattr("sparkdl.image.elements.MAX_ELEMENTS", 500)
    write = Writer(syntax)
    assert fault_of(write.file(many(write, 502)[kind])) == "the data set has more than 500 elements"
    np.testing.assert_array_equal(shown(write.file(many(write, 220)[kind])), shown(write.file(b"")))


def test_a_file_of_two_million_elements_is_refused_before_it_costs_much():
    write = Writer()
    assert MAX_ELEMENTS < 100_000
    assert "more than" in fault_of(write.file(write.element(AGENT, b"", b"LO") * 2_000_000))


def with_values(keyword, tag, value, count):
    """Give an element of an implicit file so many values."""
    write = Writer(ImplicitVRLittleEndian)
    whole = dicom(syntax=ImplicitVRLittleEndian, **{keyword: "1"} if keyword == "NumberOfFrames" else {})
    start = whole.index(struct.pack("<HH", *tag), 132)
    end = start + 8 + struct.unpack_from("<I", whole, start + 4)[0]
    text = b"\\".join([value] * count)
    return whole[:start] + write.element(tag, text + b" " * (len(text) % 2)) + whole[end:]


@pytest.mark.parametrize(
    ("keyword", "tag", "value"),
    [
        ("SpecificCharacterSet", (0x0008, 0x0005), b"ABC"),
        ("SOPClassUID", (0x0008, 0x0016), b"1.2.840.10008.5.1.4.1.1.1"),
        ("Modality", (0x0008, 0x0060), b"DX"),
    ],
)
def test_of_millions_of_values_the_first_count(keyword, tag, value):
    np.testing.assert_array_equal(shown(with_values(keyword, tag, value, 300_000)), shown(dicom()))


@pytest.mark.parametrize(
    ("keyword", "tag"),
    [("NumberOfFrames", (0x0028, 0x0008)), ("Rows", (0x0028, 0x0010)), ("BitsStored", (0x0028, 0x0101))],
)
def test_millions_of_values_are_none_where_one_is_needed(keyword, tag):
    assert "image pixel module" in fault_of(with_values(keyword, tag, b"11", 300_000))


def test_a_table_of_65536_entries_is_not_cut():
    table = lookup_table([*range(65535, -1, -1)], first=0, bits=16)
    payload = dicom(
        np.array([[0, 65535]], np.uint16), bits_stored=16, syntax=ImplicitVRLittleEndian, VOILUTSequence=table
    )
    assert shown(payload).tolist() == [[255, 0]]


@pytest.mark.parametrize("uid", [b"1", b"1.2", b"1.2.826.0.1.3680043.8.498.1"])
def test_meta_information_of_odd_length_is_read(uid):
    """A UID that is not padded to an even length is against the standard, and is written."""
    whole = encapsulated_dicom(jpeg(), JPEGBaseline8Bit, gray_pixels(), bits_stored=8)
    start = whole.index(struct.pack("<HH2s", 0x0002, 0x0003, b"UI"))
    end = start + 8 + struct.unpack_from("<H", whole, start + 6)[0]
    odd = Writer().element((0x0002, 0x0003), uid, b"UI")
    np.testing.assert_array_equal(shown(whole[:start] + odd + whole[end:]), shown(whole))


def test_file_meta_information_may_have_a_thousand_elements():
    write = Writer()
    whole = write.file(b"")
    meta = write.element((0x0002, 0x0013), b"", b"SH")
    assert "more than 1000 elements" in fault_of(whole[:132] + meta * 1001 + whole[132:])
    np.testing.assert_array_equal(shown(whole[:132] + meta * 900 + whole[132:]), shown(whole))


@pytest.mark.parametrize("size", [0, 2])
def test_a_frame_may_have_65536_fragments(size):
    whole = jpeg_baseline_dicom()
    end = whole.rindex(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    empty = Writer().element(ITEM, bytes(size))
    assert "more than 65536 fragments" in fault_of(whole[:end] + empty * 65_537 + whole[end:])
    np.testing.assert_array_equal(shown(whole[:end] + empty * 60_000 + whole[end:]), shown(whole))
