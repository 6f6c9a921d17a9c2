"""The main header of a JPEG 2000 codestream: its size and bits, and how much OpenJPEG will take for it.

A header of 200 bytes may cut an image into as many pieces as it has pixels. OpenJPEG makes room for them all before it
reads any data: 560 bytes a pixel were seen. So the pieces are counted first.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_CODESTREAM = b"\xff\x4f\xff\x51"  # start of codestream and SIZ; DICOM has no JP2 boxes before, some files do

_CODING_DEFAULT, _CODING_COMPONENT = b"\xff\x52", b"\xff\x53"  # COD, COC
_START_OF_TILE_PART, _START_OF_DATA = b"\xff\x90", b"\xff\x93"  # SOT, SOD

_WITH_LENGTH: Final = frozenset(
    bytes([0xFF, code])
    for code in (
        *range(0x50, 0x54),
        0x55,
        *range(0x57, 0x5A),
        *range(0x5C, 0x62),
        0x63,
        0x64,
        0x74,
        0x75,
        0x77,
        0x78,
        0x90,
    )
)
"""Markers of headers that OpenJPEG knows. Of any other it takes the length for the next marker."""

_MAX_SEGMENTS = 1 << 16  # a dozen, and a few for each tile

_SIGNED = 0x80


@dataclass(frozen=True, slots=True)
class Jpeg2000Header:
    """What the header of a JPEG 2000 codestream says.

    Parameters
    ----------
    height, width : int
        In pixels, each 0 or more.
    bits : int
        Of a value of the first component, 1 to 128.
    signed : bool
        Whether that has a sign.
    components : int
        1 for gray.
    start : int
        Where the codestream begins.
    tiles : int
        In how many tiles the image is cut.
    tiles_present : int
        How many of them the codestream holds, whole or in part.
    precincts : int
        In how many precincts a tile is cut, on all levels together; 0 where nothing is said, which is one for each.
    block_pixels : int
        Of a code block at most: the precincts may cut it smaller. The smallest of several that are said; 0 where none
        is.
    """

    height: int
    width: int
    bits: int
    signed: bool
    components: int
    start: int
    tiles: int
    tiles_present: int
    precincts: int
    block_pixels: int


def read_jpeg2000_header(stream: bytes) -> Jpeg2000Header | None:
    """Read the SIZ segment, and what the image is cut into.

    Parameters
    ----------
    stream : bytes
        A codestream, with or without boxes around it.

    Returns
    -------
    Jpeg2000Header or None
        None where there is none, where it contradicts itself, or has tens of thousands of segments. What stands behind
        an unknown marker is not read: OpenJPEG would find other segments there.

    References
    ----------
    ITU-T T.800 A.4.2 (SOT), A.5.1 (SIZ), A.6.1 (COD), A.6.2 (COC), B.6 (precincts).
    """
    start = stream.find(_CODESTREAM)
    if start < 0 or start + 45 > len(stream):
        return None
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = struct.unpack_from(
        ">8I", stream, start + 8
    )
    components, depth = struct.unpack_from(">HB", stream, start + 40)
    if right < left or bottom < top or not tile_width or not tile_height:
        return None
    width, height = right - left, bottom - top
    tiles = _shares(right - tile_left, tile_width) * _shares(bottom - tile_top, tile_height)
    tile = min(tile_width, width), min(tile_height, height)
    present, precincts, blocks = set[bytes](), 0, set[int]()
    for count, (marker, body_start, body_end) in enumerate(walk_segments(stream, start)):
        if count > _MAX_SEGMENTS:
            return None
        body = stream[body_start:body_end]
        if marker == _START_OF_TILE_PART:
            present.add(body[:2])
        elif style := _coding_style(marker, body):
            precincts = max(precincts, _count_precincts(style[5:] if _has_precincts(marker, body) else b"", *tile))
            blocks.add(1 << (style[1] % 16 + style[2] % 16 + 4))
    bits, signed = (depth & ~_SIGNED) + 1, bool(depth & _SIGNED)
    smallest = min(blocks, default=0)
    return Jpeg2000Header(height, width, bits, signed, components, start, tiles, len(present), precincts, smallest)


def _shares(length: int, part: int) -> int:
    return -(-length // part)


def walk_segments(stream: bytes, start: int) -> Iterator[tuple[bytes, int, int]]:
    """Give each segment of the main header and of those of tile-parts, as far as they lead.

    Parameters
    ----------
    stream : bytes
        A codestream.
    start : int
        Where it begins, as `Jpeg2000Header` says.

    Yields
    ------
    tuple of bytes, int and int
        The marker, and where its body begins and ends, the length not included.
    """
    offset = tile_part = start + 2
    part_bytes = 0
    while offset + 12 <= len(stream) and stream[offset] == 0xFF:  # noqa: PLR2004
        marker, length = stream[offset : offset + 2], int.from_bytes(stream[offset + 2 : offset + 4], "big")
        if marker == _START_OF_DATA:
            if tile_part + part_bytes <= offset:
                return  # 0 is "to the end"; what else is too short, OpenJPEG refuses
            offset = tile_part + part_bytes
            continue
        if marker == _START_OF_TILE_PART:
            tile_part, part_bytes = offset, int.from_bytes(stream[offset + 6 : offset + 10], "big")
        elif marker not in _WITH_LENGTH:
            return
        yield marker, offset + 4, offset + 2 + length
        offset += 2 + max(2, length)


def _coding_style(marker: bytes, body: bytes) -> bytes:
    """Give what a COD or COC says: levels, exponents of a code block's width and height, two bytes, then precincts."""
    start = {_CODING_DEFAULT: 5, _CODING_COMPONENT: 2}.get(marker, len(body))
    return body[start:] if len(body) >= start + 5 else b""


def _has_precincts(marker: bytes, body: bytes) -> bool:
    return bool(body[0 if marker == _CODING_DEFAULT else 1] & 1)


def _count_precincts(sizes: bytes, width: int, height: int) -> int:
    """Count the precincts of a tile: each byte has the exponents of their width and height on a level, lowest first."""
    total = 0
    for level, exponents in enumerate(reversed(sizes)):
        columns, rows = _shares(width, 1 << level), _shares(height, 1 << level)
        total += _shares(columns, 1 << (exponents & 15)) * _shares(rows, 1 << (exponents >> 4))
    return total
