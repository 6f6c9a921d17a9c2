"""Reads DICOM elements: where each begins and ends, its value left as bytes until somebody asks for it.

pydicom converts the values, but does not walk the file: it makes objects of all that is in a sequence without a length,
and of each character set, asked for or not. A file of 20 MB can hold two million elements or character sets, which take
pydicom a minute or a gigabyte.

References
----------
DICOM PS3.5 section 7 (data elements, sequences).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""Those with a length of 32 bits (PS3.5 7.1.2)."""

SHORT_VRS: Final = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())

UNDEFINED_LENGTH: Final = 0xFFFFFFFF
HEADER_BYTES: Final = 8

MAX_ELEMENTS: Final = 50_000
"""In a file, those in sequences without a length included. A radiograph has a few hundred; so many take 0.1 s."""

_MAX_VALUE_BYTES = 4096
"""What counts for pixels takes a few bytes, but for tables. Each number of a value takes pydicom two microseconds."""

_MAX_TABLE_BYTES = 1 << 18
"""Twice what a LUT of 65,536 entries takes."""

_TABLES = frozenset({0x00283000, 0x00283010})  # Modality and VOI LUT Sequence, the only ones that are looked into
_PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


class ElementError(ValueError):
    """The elements contradict themselves or are too many; the message quotes nothing of the file."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """How elements are written.

    Parameters
    ----------
    implicit : bool
        Without VR.
    order : str
        ``"<"`` or ``">"``, as `struct` has it.
    """

    implicit: bool
    order: str

    @property
    def little(self) -> bool:
        """Whether the low byte comes first."""
        return self.order == "<"


def has_vr(header: bytes) -> bool:
    """Tell whether an element's header has a VR: letters where the length of implicit VR would be 16 kB or more."""
    return len(header) >= HEADER_BYTES and all(ord("A") <= letter <= ord("Z") for letter in header[4:6])


def read_elements(payload: bytes, offset: int, encoding: Encoding) -> tuple[Dataset, int]:
    """Read the elements of a file before its pixels.

    Parameters
    ----------
    payload : bytes
        The file.
    offset : int
        Where the first element begins.
    encoding : Encoding
        Of the elements. One without the letters of a VR is implicit all the same.

    Returns
    -------
    tuple of Dataset and int
        The elements, and where that of the pixels begins, or what is left of the file has no room for another. Values
        are cut at 4 kB, but for the sequences of LUTs.

    Raises
    ------
    ElementError
        The file ends inside an element, something else stands in a sequence, or there are more than `MAX_ELEMENTS`.
    """
    walk = _Walk(payload, encoding)
    found: dict[BaseTag, RawDataElement] = {}
    while offset + HEADER_BYTES <= len(payload):
        element = walk.element(offset, encoding.implicit)
        if element.tag in _PIXELS:
            break
        end, offset = walk.skip(element)
        most = len(payload) if element.tag in _TABLES else _MAX_VALUE_BYTES
        found[BaseTag(element.tag)] = element.raw(payload[element.start : min(end, element.start + most)], encoding)
    return _dataset(found, encoding), offset


def read_items(dataset: Dataset, keyword: str) -> Iterator[Dataset]:
    """Read the items of a LUT sequence, one after the other.

    Parameters
    ----------
    dataset : Dataset
        Of `read_elements`.
    keyword : str
        ``"ModalityLUTSequence"`` or ``"VOILUTSequence"``.

    Yields
    ------
    Dataset
        Values are cut at twice the length of the largest LUT.

    Raises
    ------
    ElementError
        As `read_elements`.
    """
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in dataset:
        return
    sequence = dataset.get_item(tag)
    value = sequence.value or b""
    encoding = Encoding(sequence.is_implicit_VR, "<" if sequence.is_little_endian else ">")
    walk, offset = _Walk(value, encoding), 0
    while offset + HEADER_BYTES <= len(value):
        item = walk.element(offset, implicit=True)
        if item.tag == _SEQUENCE_END:
            return
        if item.tag != _ITEM:
            raise _foreign()
        content, offset = _read_item(walk, item, encoding)
        yield content


def _read_item(walk: "_Walk", item: "_Element", encoding: Encoding) -> tuple[Dataset, int]:
    payload, offset = walk.payload, item.start
    undefined = item.length == UNDEFINED_LENGTH
    end = len(payload) if undefined else item.start + item.length
    implicit = encoding.implicit or not has_vr(payload[offset : offset + HEADER_BYTES])
    found: dict[BaseTag, RawDataElement] = {}
    while offset + HEADER_BYTES <= end:
        element = walk.element(offset, implicit)
        value_end, offset = walk.skip(element)
        if element.tag == _ITEM_END:
            break
        value = payload[element.start : min(value_end, element.start + _MAX_TABLE_BYTES)]
        found[BaseTag(element.tag)] = element.raw(value, encoding)
    return _dataset(found, Encoding(implicit, encoding.order)), offset if undefined else end


def _dataset(elements: dict[BaseTag, RawDataElement], encoding: Encoding) -> Dataset:
    dataset = Dataset(elements)
    dataset.set_original_encoding(encoding.implicit, encoding.little)
    return dataset


@dataclass(frozen=True, slots=True)
class _Element:
    """An element's header; ``vr`` is None where it has none."""

    tag: int
    vr: bytes | None
    length: int
    start: int

    def raw(self, value: bytes, encoding: Encoding) -> RawDataElement:
        vr = None if self.vr is None else self.vr.decode("latin-1")
        return RawDataElement(BaseTag(self.tag), vr, len(value), value, self.start, self.vr is None, encoding.little)


class _Walk:
    """Goes from element to element, and counts them."""

    def __init__(self, payload: bytes, encoding: Encoding) -> None:
        self.payload = payload
        self._explicit = struct.Struct(f"{encoding.order}HH2sH")
        self._length = struct.Struct(f"{encoding.order}I")
        self._item, self._sequence_end = (
            struct.pack(f"{encoding.order}HH", tag >> 16, tag & 0xFFFF) for tag in (_ITEM, _SEQUENCE_END)
        )
        self._left = MAX_ELEMENTS

    def element(self, offset: int, implicit: bool) -> _Element:
        """Read the header at an offset; there have to be 8 bytes."""
        self._left -= 1
        if self._left < 0:
            msg = f"the data set has more than {MAX_ELEMENTS} elements"
            raise ElementError(msg)
        group, element, vr, length = self._explicit.unpack_from(self.payload, offset)
        if implicit or not (b"AA" <= vr <= b"ZZ"):
            length = self._length.unpack_from(self.payload, offset + 4)[0]
            return _Element(group << 16 | element, None, length, offset + 8)
        if vr in LONG_VRS:
            if offset + 12 > len(self.payload):
                raise _cut()
            length = self._length.unpack_from(self.payload, offset + 8)[0]
            return _Element(group << 16 | element, vr, length, offset + 12)
        return _Element(group << 16 | element, vr, length, offset + 8)

    def skip(self, element: _Element) -> tuple[int, int]:
        """Give where an element's value ends, and where the next element begins."""
        if element.length != UNDEFINED_LENGTH:
            end = element.start + element.length
            if end > len(self.payload):
                raise _cut()
            return end, end
        if self._holds_items(element):
            return self._skip_sequence(element.start, implicit=element.vr is None)
        end = self.payload.find(self._sequence_end, element.start)
        if end < 0 or end + HEADER_BYTES > len(self.payload):
            raise _cut()
        return end, end + HEADER_BYTES

    def _holds_items(self, element: _Element) -> bool:
        if element.vr == b"SQ":
            return True
        may_hold = element.vr is None or element.vr == b"UN"  # a UN without a length is a sequence (PS3.5 6.2.2)
        return may_hold and self.payload[element.start : element.start + 4] in (self._item, self._sequence_end)

    def _skip_sequence(self, offset: int, *, implicit: bool) -> tuple[int, int]:
        """Go to the end of a sequence without a length, over all that is nested in it.

        What is open is on a stack: for each item without a length whether its elements are implicit, for each sequence
        None.
        """
        opened: list[bool | None] = [None]
        while offset + HEADER_BYTES <= len(self.payload):
            inside = opened[-1]
            element = self.element(offset, implicit=inside is None or inside)
            if element.tag == (_SEQUENCE_END if inside is None else _ITEM_END):
                opened.pop()
                if not opened:
                    return offset, element.start
                offset = element.start
            elif inside is None and element.tag != _ITEM:
                raise _foreign()
            elif element.length != UNDEFINED_LENGTH:
                _, offset = self.skip(element)
            elif inside is None:
                offset = element.start
                opened.append(implicit or not has_vr(self.payload[offset : offset + HEADER_BYTES]))
            elif self._holds_items(element):
                offset = element.start
                opened.append(None)
            else:
                _, offset = self.skip(element)
        raise _cut()


def _cut() -> ElementError:
    return ElementError("data set ends before its elements do")


def _foreign() -> ElementError:
    return ElementError("something else stands where an item of a sequence should begin")
