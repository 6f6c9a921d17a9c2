"""Writes DICOM elements.

Not by a library: the bytes are part of an image's event id, so they may not change with a library's release.

References
----------
DICOM PS3.5 section 7 (data elements, sequences), PS3.10 section 7.1 (file meta information).
"""

import struct
from typing import Final, TypeAlias

from sparkdl.image.elements import LONG_VRS, UNDEFINED_LENGTH, Encoding

Elements: TypeAlias = "dict[int, tuple[str, bytes | list[Elements]]]"
"""VR and value by tag; a value may have an odd length. That of VR SQ is a list of items."""

PIXEL_DATA: Final = 0x7FE00010

_ITEM: Final = 0xFFFEE000
_PADDED_WITH_NULL = frozenset({"UI", "OB", "OW"})


def write_elements(elements: Elements, encoding: Encoding) -> bytes:
    """Write elements in the order of their tags, sequences with their lengths."""
    return b"".join(_write(tag, *elements[tag], encoding) for tag in sorted(elements))


def write_header(tag: int, vr: str, length: int, encoding: Encoding) -> bytes:
    """Write what stands before an element's value."""
    group, element = tag >> 16, tag & 0xFFFF
    if encoding.implicit:
        return struct.pack(f"{encoding.order}HHI", group, element, length)
    letters = vr.encode()
    if letters in LONG_VRS:
        return struct.pack(f"{encoding.order}HH2sHI", group, element, letters, 0, length)
    return struct.pack(f"{encoding.order}HH2sH", group, element, letters, length)


def write_fragments(frame: bytes) -> list[bytes]:
    """Write the pixels of one compressed frame, from the header of their element on, as pieces to be joined.

    Parameters
    ----------
    frame : bytes
        The compressed stream. It is one fragment, behind an empty Basic Offset Table.
    """
    encoding = Encoding(implicit=False, order="<")
    header = write_header(PIXEL_DATA, "OB", UNDEFINED_LENGTH, encoding)
    table, item = (
        struct.pack("<HHI", 0xFFFE, 0xE000, 0),
        struct.pack("<HHI", 0xFFFE, 0xE000, len(frame) + len(frame) % 2),
    )
    return [header, table, item, frame, bytes(len(frame) % 2), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)]


def _write(tag: int, vr: str, value: bytes | list[Elements], encoding: Encoding) -> bytes:
    if isinstance(value, list):
        value = b"".join(_write_item(item, encoding) for item in value)
    elif len(value) % 2:
        value += b"\0" if vr in _PADDED_WITH_NULL else b" "
    return write_header(tag, vr, len(value), encoding) + value


def _write_item(item: Elements, encoding: Encoding) -> bytes:
    content = write_elements(item, encoding)
    return struct.pack(f"{encoding.order}HHI", _ITEM >> 16, _ITEM & 0xFFFF, len(content)) + content
