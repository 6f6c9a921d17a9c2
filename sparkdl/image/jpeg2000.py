"""The main header of a JPEG 2000 codestream: its size and bits, and how much OpenJPEG will take for it.

A header of 200 bytes may cut an image into as many pieces as it has pixels. OpenJPEG makes room for them all before it
reads any data: 560 bytes a pixel were seen. So the pieces are counted first.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_CODESTREAM = b"\xff\x4f\xff\x51"  # start of codestream and SIZ; DICOM has no JP2 boxes before, some files do

_CODING_DEFAULT, _CODING_COMPONENT = b"\xff\x52", b"\xff\x53"  # COD, COC
_START_OF_TILE_PART, _START_OF_DATA = b"\xff\x90", b"\xff\x93"  # SOT, SOD

_SMALLEST_PART = 14  # bytes of a tile-part: SOT and SOD

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


def read_jpeg2000_header(stream: bytes) -> Jpeg2000Header | None:
    """Read the SIZ segment, and count tiles and precincts.

    Parameters
    ----------
    stream : bytes
        A codestream, with or without boxes around it.

    Returns
    -------
    Jpeg2000Header or None
        None where there is none, or where it contradicts itself.

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
    present, precincts = set[bytes](), 0
    for marker, body in _segments(stream, start):
        if marker == _START_OF_TILE_PART:
            present.add(body[:2])
        elif sizes := _precinct_sizes(marker, body):
            precincts = max(precincts, _count_precincts(sizes, *tile))
    bits, signed = (depth & ~_SIGNED) + 1, bool(depth & _SIGNED)
    return Jpeg2000Header(height, width, bits, signed, components, start, tiles, len(present), precincts)


def _shares(length: int, part: int) -> int:
    return -(-length // part)


def _segments(stream: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    """Give marker and body of each segment, of the main header and of those of tile-parts, as far as they lead."""
    offset = tile_part = start + 2
    part_bytes = 0
    while offset + 12 <= len(stream) and stream[offset] == 0xFF:  # noqa: PLR2004
        marker, length = stream[offset : offset + 2], int.from_bytes(stream[offset + 2 : offset + 4], "big")
        if marker == _START_OF_DATA:
            if part_bytes < _SMALLEST_PART:
                return  # 0 is "to the end"; what else is too short, OpenJPEG refuses
            offset = tile_part + part_bytes
            continue
        if marker == _START_OF_TILE_PART:
            tile_part, part_bytes = offset, int.from_bytes(stream[offset + 6 : offset + 10], "big")
        yield marker, stream[offset + 4 : offset + 2 + length]
        offset += 2 + max(2, length)


def _precinct_sizes(marker: bytes, body: bytes) -> bytes:
    """Give what a COD or COC says of precincts, a byte for each level, the lowest resolution first; else nothing."""
    if marker == _CODING_DEFAULT and body[:1] and body[0] & 1:
        return body[10:]
    if marker == _CODING_COMPONENT and len(body) > 1 and body[1] & 1:
        return body[7:]
    return b""


def _count_precincts(sizes: bytes, width: int, height: int) -> int:
    """Count the precincts of a tile: each byte has the exponents of their width and height on one level."""
    total = 0
    for level, exponents in enumerate(reversed(sizes)):
        columns, rows = _shares(width, 1 << level), _shares(height, 1 << level)
        total += _shares(columns, 1 << (exponents & 15)) * _shares(rows, 1 << (exponents >> 4))
    return total
