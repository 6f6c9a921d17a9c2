"""The frame header of a JPEG: what kind it is, its size and its bits, before anything is decompressed."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

LOSSLESS, JPEG_LS = 0xC3, 0xF7  # SOF3 and SOF55

END_OF_IMAGE: Final = b"\xff\xd9"

MAX_SCANS: Final = 100
"""Each goes over all pixels, and may take ten bytes. Encoders of progressive JPEGs make ten, DICOM wants one."""

# Before the first scan. The longest profile makes 255. Bytes of no segment take Pillow a microsecond each.
_MAX_SEGMENTS, _MAX_OTHER_BYTES = 500, 1 << 16
_MAX_EXIF_PIECES = 16
"""The standard has one of 64 kB. Pillow copies what it has of the block for each more: 490 take seconds."""

_START, _SCAN, _PREFIX = b"\xff\xd8", b"\xff\xda", 0xFF
_CODE = re.compile(rb"[^\xff]")  # the second byte of a marker: any number of fill bytes may stand before
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_WITH_BODY = frozenset({*range(0xC0, 0xD0), *range(0xDB, 0xF0), 0xFE} - {0xC8})  # those that Pillow knows
_START_OF_SCAN, _NO_MARKER, _APP1 = 0xDA, 0x00, 0xE1
_EXIF, _HEAD_BYTES = b"Exif\0\0", 4  # of a segment: marker and length
_LONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})  # without a length: TEM, the restart markers, start of image
# SOF0 to SOF15 without the three that are not frame headers (DHT, JPG, DAC), and that of JPEG-LS.
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), JPEG_LS} - {0xC4, 0xC8, 0xCC})
_UNEXPECTED_MARKERS = frozenset({_NO_MARKER, 0xD8, 0xD9, _START_OF_SCAN})  # before a frame header


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What the frame header of a JPEG, lossless JPEG or JPEG-LS stream says.

    Parameters
    ----------
    process : int
        The second byte of its marker: 0xC0 (baseline) to 0xCF, or 0xF7 (JPEG-LS).
    bits : int
        Of one sample.
    height, width : int
        In pixels, each 0 or more.
    components : int
        1 for gray, 3 for colour.
    start : int
        Where the header is in the stream.
    """

    process: int
    bits: int
    height: int
    width: int
    components: int
    start: int

    @property
    def name(self) -> str:
        """The marker's name in the standard: ``"SOF0"`` to ``"SOF15"``, ``"SOF55"``."""
        return f"SOF{self.process - 0xC0}"


def read_jpeg_header(stream: bytes) -> JpegHeader | None:
    """Find the frame header, which comes after other segments.

    Parameters
    ----------
    stream : bytes
        A JPEG, lossless JPEG or JPEG-LS stream.

    Returns
    -------
    JpegHeader or None
        None where there is none, where 500 segments come before it, and where libraries could read these in another way
        than here: they would find another header.

    References
    ----------
    ITU-T T.81 B.1.1.3 (markers), B.2.2 (frame header); T.87 C.2.2.
    """
    for marker, offset in _segments(stream):
        if marker in _UNEXPECTED_MARKERS or offset + 10 > len(stream):
            return None
        if marker in _FRAME_MARKERS:
            bits, height, width, components = struct.unpack_from(">BHHB", stream, offset + 4)
            return JpegHeader(marker, bits, height, width, components, offset)
    return None


def find_first_scan(stream: bytes) -> int | None:
    """Find where the compressed data begin, as Pillow does: it goes over what is no segment one byte after the other.

    Parameters
    ----------
    stream : bytes
        A JPEG.

    Returns
    -------
    int or None
        The offset of the first start-of-scan marker. None where there is none, or more than 500 segments or 64 kB of
        other bytes come before it.
    """
    return next((start for code, start, _ in _walk(stream) if code == _START_OF_SCAN), None)


def limit_exif(stream: bytes) -> bytes:
    """Leave out what an EXIF block has behind its first 16 pieces, which is about a megabyte; pixels stay as they are.

    Parameters
    ----------
    stream : bytes
        A JPEG.

    Returns
    -------
    bytes
        The same bytes where there is nothing to leave out.
    """
    pieces = [
        (start, end)
        for code, start, end in _walk(stream)
        if code == _APP1 and stream.startswith(_EXIF, start + _HEAD_BYTES)
    ]
    kept, begin = [], 0
    for start, end in pieces[_MAX_EXIF_PIECES:]:
        kept.append(stream[begin:start])
        begin = end
    return b"".join([*kept, stream[begin:]]) if kept else stream


def _walk(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Give marker, start and end of one segment after the other as Pillow finds them, to the first scan's marker.

    It ends before where more than 500 segments or 64 kB of other bytes come first.
    """
    offset, others = len(_START), 0
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(stream, offset)
        if marker is None or (others := others + marker.start() - offset) > _MAX_OTHER_BYTES:
            return
        code, offset = marker.group()[1], marker.end()
        if code in _WITH_BODY:
            offset += max(2, int.from_bytes(stream[offset : offset + 2], "big"))
        yield code, marker.start(), offset
        if code == _START_OF_SCAN:
            return


def count_scans(stream: bytes, start: int) -> int:
    """Count the scans behind an offset that is behind the thumbnails; compressed data never holds their marker."""
    return stream.count(_SCAN, start)


def _segments(stream: bytes) -> Iterator[tuple[int, int]]:
    """Give marker and offset of one segment after the other, to the first scan; marker 0 where none stands."""
    offset = len(_START)
    for _ in range(_MAX_SEGMENTS if stream.startswith(_START) else 0):
        if offset + 4 > len(stream):
            return
        if stream[offset] != _PREFIX:
            yield _NO_MARKER, offset
            return
        code = _CODE.search(stream, offset)
        if code is None:
            return
        offset, marker = code.start() - 1, code.group()[0]
        yield marker, offset
        if marker == _START_OF_SCAN:
            return
        lone = marker in _LONE_MARKERS
        offset += 2 if lone else 2 + max(2, int.from_bytes(stream[offset + 2 : offset + 4], "big"))
