"""Where the numbers are that a reader of each format believes: sizes, counts, lengths, depths.

A map is drawn anew of the bytes at hand, damaged or not, and as far as they can be followed.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_NUMBER_VRS = {b"US": 2, b"SS": 2, b"UL": 4, b"SL": 4, b"AT": 2, b"OW": 2}
_UNDEFINED = 0xFFFFFFFF
_ITEM_GROUP = 0xFFFE
_MAPPED_NUMBERS = 8  # of one value
_MAPPED_DEPTH = 8
_MAPPED_PIECES = 2000


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a file.

    Parameters
    ----------
    offset : int
        In the file.
    width : int
        1, 2 or 4 bytes.
    order : str
        Of its bytes.
    """

    offset: int
    width: int
    order: Literal["big", "little"] = "big"


@dataclass
class Map:
    """What of a file can be damaged by design.

    Parameters
    ----------
    numbers : list of Number
        Those that a reader believes.
    pieces : list of (int, int)
        Begin and end of what can be left out, repeated or moved: chunks, segments, elements.
    """

    numbers: list[Number] = field(default_factory=list)
    pieces: list[tuple[int, int]] = field(default_factory=list)

    def add(self, offset: int, widths: str, order: Literal["big", "little"] = "big") -> None:
        """Add numbers that lie side by side: ``"4411"`` is two of 4 bytes and two of 1."""
        for width in map(int, widths):
            self.numbers.append(Number(offset, width, order))
            offset += width


# --- PNG --------------------------------------------------------------------------------------------------------------


_PNG_NUMBERS = {
    b"IHDR": "4411111", b"acTL": "44", b"fcTL": "444442211", b"sBIT": "1111", b"tRNS": "222", b"pHYs": "441",
    b"eXIf": "1111422224442222444", b"PLTE": "111", b"IDAT": "11", b"iCCP": "1111",
}  # fmt: skip


def map_png(payload: bytes) -> Map:
    """Map chunks, their lengths, and the numbers at the beginning of those that pixels depend on."""
    found = Map()
    for start, kind, end in _chunks(payload):
        found.add(start, "4")
        found.add(start + 8, _PNG_NUMBERS.get(kind, ""))
        found.pieces.append((start, end))
    return found


def mend_png(payload: bytes) -> bytes:
    """Give each chunk the sum that its bytes have, so that more than the sums is tried."""
    mended = bytearray(payload)
    for start, _, end in _chunks(payload):
        mended[end - 4 : end] = struct.pack(">I", zlib.crc32(mended[start + 4 : end - 4]))
    return bytes(mended)


def repack_png(payload: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Change the rows inside the compressed data; as it was where they do not inflate."""
    chunks = list(_chunks(payload))
    data = [(start, end) for start, kind, end in chunks if kind == b"IDAT"]
    if not data:
        return payload
    try:
        rows = zlib.decompressobj().decompress(b"".join(payload[a + 8 : b - 4] for a, b in data), 1 << 20)
    except zlib.error:
        return payload
    packed = zlib.compress(change(rows), 1)
    chunk = struct.pack(">I", len(packed)) + b"IDAT" + packed + struct.pack(">I", zlib.crc32(b"IDAT" + packed))
    return payload[: data[0][0]] + chunk + payload[data[-1][1] :]


def _chunks(payload: bytes) -> Iterator[tuple[int, bytes, int]]:
    offset = len(_SIGNATURE)
    for _ in range(_MAPPED_PIECES):
        if offset + 12 > len(payload):
            return
        (length,) = struct.unpack_from(">I", payload, offset)
        end = offset + 12 + length
        if end > len(payload):
            return
        yield offset, payload[offset + 4 : offset + 8], end
        offset = end


# --- JPEG and JPEG-LS -------------------------------------------------------------------------------------------------


_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_LONE_MARKERS = frozenset({0x01, *range(0xD0, 0xDA)})
_START_OF_SCAN = 0xDA
_JPEG_NUMBERS = {
    **dict.fromkeys(_FRAME_MARKERS, "12211111111111"),
    _START_OF_SCAN: "1111111111",
    0xC4: "1" * 20,  # Huffman table: class and id, how many codes of each length
    0xDB: "1111",  # quantization table
    0xDD: "2",  # restart interval
    0xCC: "11",  # arithmetic conditioning
    0xDC: "2",  # number of lines
    0xE1: "11111111112442222444",  # Exif
    0xE2: "11114422444222444",  # MPF
    0xEE: "11111221",  # Adobe
    0xF8: "122222",  # JPEG-LS: preset parameters
}


def map_jpeg(payload: bytes) -> Map:
    """Map segments, their markers and lengths, and the numbers that pixels depend on; scans are pieces, too."""
    found, offset = Map(), 2
    for _ in range(_MAPPED_PIECES):
        if offset + 4 > len(payload) or payload[offset] != 0xFF:  # noqa: PLR2004
            break
        marker = payload[offset + 1]
        found.add(offset + 1, "1")
        if marker in _LONE_MARKERS:
            offset += 2
            continue
        end = offset + 2 + struct.unpack_from(">H", payload, offset + 2)[0]
        found.add(offset + 2, "2" + _JPEG_NUMBERS.get(marker, ""))
        found.pieces.append((offset, min(end, len(payload))))
        if marker == _START_OF_SCAN:
            after = _end_of_scan(payload, end, stuffed_bit=_has_frame_of_jpeg_ls(payload))
            found.pieces += [(end, after), (offset, after)]
            end = after
        offset = end
    return found


def _has_frame_of_jpeg_ls(payload: bytes) -> bool:
    return b"\xff\xf7" in payload[:64]


def _end_of_scan(payload: bytes, offset: int, *, stuffed_bit: bool) -> int:
    """Find the next marker; JPEG stuffs a zero byte behind FF, JPEG-LS a zero bit."""
    while (offset := payload.find(b"\xff", offset)) >= 0:
        if offset + 1 >= len(payload):
            break
        following = payload[offset + 1]
        data = following < 0x80 if stuffed_bit else following == 0 or following in range(0xD0, 0xD8)  # noqa: PLR2004
        if not data:
            return offset
        offset += 2
    return len(payload)


# --- JPEG 2000 --------------------------------------------------------------------------------------------------------


_CODESTREAM_NUMBERS = {
    0x51: "24444444421111111",  # SIZ
    0x50: "42222",  # CAP
    0x52: "11211111111111111",  # COD
    0x53: "111111111111",  # COC
    0x5C: "1222222222",  # QCD
    0x5D: "11222222",  # QCC
    0x5E: "111",  # RGN
    0x5F: "1121111121",  # POC
    0x55: "11224",  # TLM
    0x90: "2411",  # SOT
}
_START_OF_CODESTREAM, _START_OF_TILE, _START_OF_DATA = 0x4F, 0x90, 0x93


def map_codestream(payload: bytes) -> Map:
    """Map segments of a JPEG 2000 codestream, their lengths and numbers; the data of a tile is a piece, too."""
    found, offset, tile_end = Map(), max(0, payload.find(b"\xff\x4f\xff\x51")), 0
    for _ in range(_MAPPED_PIECES):
        if offset + 4 > len(payload) or payload[offset] != 0xFF:  # noqa: PLR2004
            break
        marker = payload[offset + 1]
        found.add(offset + 1, "1")
        if marker == _START_OF_CODESTREAM:
            offset += 2
            continue
        if marker == _START_OF_DATA:
            end = tile_end if tile_end > offset else len(payload) - 2
            found.pieces.append((offset + 2, end))
            offset = end
            continue
        end = offset + 2 + struct.unpack_from(">H", payload, offset + 2)[0]
        found.add(offset + 2, "2" + _CODESTREAM_NUMBERS.get(marker, ""))
        if marker == _START_OF_TILE and offset + 10 <= len(payload):
            tile_end = offset + struct.unpack_from(">I", payload, offset + 6)[0]
        found.pieces.append((offset, min(end, len(payload))))
        offset = end
    return found


# --- RLE --------------------------------------------------------------------------------------------------------------


def map_rle(payload: bytes) -> Map:
    """Map the header of a frame: how many segments, and where each begins."""
    found = Map(pieces=[(0, 64), (64, len(payload))])
    found.add(0, "4" * 16, "little")
    found.add(64, "1" * 16)
    return found


# --- DICOM ------------------------------------------------------------------------------------------------------------


def map_dicom(payload: bytes) -> Map:
    """Map elements, in sequences as well: tags, VRs, lengths, numbers as values; fragments are pieces, too."""
    found = Map()
    start = 132 if payload[128:132] == b"DICM" else 0
    meta = payload[start : start + 2] == b"\2\0"
    end = (
        _map_elements(payload, start, len(payload), found, _Encoding(explicit=True), only_meta=True) if meta else start
    )
    _map_elements(payload, end, len(payload), found, _guess_encoding(payload, end))
    return found


@dataclass(frozen=True, slots=True)
class _Encoding:
    explicit: bool
    order: Literal["big", "little"] = "little"

    @property
    def sign(self) -> str:
        return ">" if self.order == "big" else "<"


def _guess_encoding(payload: bytes, offset: int) -> _Encoding:
    explicit = payload[offset + 4 : offset + 6].isalpha()
    big = explicit and payload[offset : offset + 1] == b"\0"
    return _Encoding(explicit, "big" if big else "little")


def _map_elements(
    payload: bytes, offset: int, end: int, found: Map, encoding: _Encoding, *, only_meta: bool = False, depth: int = 0
) -> int:
    """Map the elements from an offset on, and give where they end."""
    while offset + 8 <= min(end, len(payload)) and len(found.pieces) < _MAPPED_PIECES:
        group = struct.unpack_from(f"{encoding.sign}H", payload, offset)[0]
        if only_meta and group != 2:  # noqa: PLR2004
            break
        vr = payload[offset + 4 : offset + 6]
        found.add(offset, "22", encoding.order)
        if group != _ITEM_GROUP and encoding.explicit and vr in _LONG_VRS:
            at, width, value = offset + 8, 4, offset + 12
        elif group != _ITEM_GROUP and encoding.explicit:
            at, width, value = offset + 6, 2, offset + 8
        else:
            at, width, value = offset + 4, 4, offset + 8
        found.add(at, str(width), encoding.order)
        length = int.from_bytes(payload[at : at + width], encoding.order)
        nested = group == _ITEM_GROUP or vr == b"SQ" or length == _UNDEFINED
        if nested and depth < _MAPPED_DEPTH:
            inner = min(end, len(payload)) if length == _UNDEFINED else min(value + length, len(payload))
            after = inner if length != _UNDEFINED else value
            if _begins_like_elements(payload, value, encoding):
                after = _map_elements(payload, value, inner, found, encoding, depth=depth + 1)
        else:
            after = value + length if length != _UNDEFINED else value
            width = _NUMBER_VRS.get(vr, 0) if encoding.explicit else 2 if length in (2, 4, 6) else 0
            if width:
                found.add(value, str(width) * min(length // width, _MAPPED_NUMBERS), encoding.order)
        found.pieces.append((offset, min(after, len(payload))))
        offset = max(after, value)
    return offset


def _begins_like_elements(payload: bytes, offset: int, encoding: _Encoding) -> bool:
    if offset + 8 > len(payload):
        return False
    (group,) = struct.unpack_from(f"{encoding.sign}H", payload, offset)
    return bool(group == _ITEM_GROUP or 0 < group <= 0x60)  # noqa: PLR2004
