"""Text that compressed pixels carry beside themselves: taken out of JPEG, JPEG-LS and JPEG 2000 streams.

Nothing is decoded: the segments that decoders need are copied as they are, and no byte of the compressed data changes.

References
----------
ITU-T T.81 B.1.1 (markers, entropy-coded segments), T.87 (JPEG-LS), T.800 A.4.1 (EOC) and A.9.2 (COM); T.871 (JFIF);
Adobe Technical Note 5116, section 18 (APP14).
"""

import re
from collections.abc import Iterator
from typing import Final

from sparkdl.image.jpeg import END_OF_IMAGE, JPEG_LS
from sparkdl.image.jpeg2000 import read_jpeg2000_header, walk_segments


class StreamError(ValueError):
    """The stream cannot be followed to its end; the message quotes nothing of it."""


class CutStreamError(StreamError):
    """It has no end."""


_START: Final = b"\xff\xd8"
_SOS, _EOI, _JFIF, _ADOBE = 0xDA, 0xD9, 0xE0, 0xEE
_LONE = frozenset({0x01, *range(0xD0, 0xD8)})  # TEM and the restart markers: outside compressed data they say nothing
_TEXT = frozenset({*range(0xE0, 0xF0), 0xFE})  # APPn and COM
_NEEDED = frozenset({*range(0xC0, 0xD0), *range(0xDA, 0xE0), JPEG_LS, 0xF8} - {0xC8})
_FRAMES = frozenset({*range(0xC0, 0xD0), JPEG_LS} - {0xC4, 0xC8, 0xCC})
_MOST_SEGMENTS = 2000  # 500 before the first scan, a few before each of 100 others

_MARKER = re.compile(rb"\xff[^\x00\xff]")
# In compressed data FF is followed by 00, in JPEG-LS by a bit that is 0; and restart markers belong to it.
_DATA_ENDS = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_LS_DATA_ENDS = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")

_PLAIN_JFIF = b"\xff\xe0\x00\x10JFIF\0\1\1\0\0\1\0\1\0\0"  # that it is JFIF says how its colours are coded
_LEAST_JFIF, _LEAST_ADOBE = 14, 12  # of shorter ones decoders take no notice

_END_OF_CODESTREAM = b"\xff\xd9"
_COMMENT = b"\xff\x64"
_SOT, _SOD = b"\xff\x90", b"\xff\x93"


def clean_jpeg(stream: bytes, *, head: bytes = b"") -> bytes:
    """Take comments, application segments and all behind the end out of a JPEG, lossless JPEG or JPEG-LS stream.

    Parameters
    ----------
    stream : bytes
        The file, or the frame of a DICOM image.
    head : bytes
        Segments to put at the start.

    Returns
    -------
    bytes
        Of JFIF's segment what is the same in all files, of Adobe's the number that says how colours are coded. Bytes
        before the first scan that belong to no segment are gone as well, as decoders pass them over.

    Raises
    ------
    CutStreamError
        It has no end marker.
    StreamError
        It has thousands of segments, or one that the standard does not have, or that does not belong there: its data
        is damaged, and a decoder would make up the rest.
    """
    if not stream.startswith(_START):
        msg = "the stream does not begin with its start marker"
        raise StreamError(msg)
    whole = memoryview(stream)
    kept: list[bytes | memoryview] = [_START, head]
    for marker, start, end in _walk(stream):
        if marker == _JFIF:
            if end - start >= _LEAST_JFIF + 4 and stream.startswith(b"JFIF\0", start + 4):
                kept.append(_PLAIN_JFIF)
        elif marker == _ADOBE:
            if end - start >= _LEAST_ADOBE + 4 and stream.startswith(b"Adobe", start + 4):
                transform = stream[start + 15]
                kept.append(b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]))
        elif marker not in _TEXT:
            kept.append(whole[start:end])
    return b"".join(kept)


def _walk(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """Give marker, begin and end of each segment; to that of a scan belongs the data behind it."""
    offset, data_ends, has_data = len(_START), _DATA_ENDS, False
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(stream, offset)
        if found is None:
            raise _cut()
        start, marker = found.start(), found.group()[1]
        if has_data and (marker in _LONE or stream[offset:start].strip(b"\xff")):
            msg = "the stream has bytes between its scans that belong to none"
            raise StreamError(msg)
        if marker == _EOI:
            if not has_data:
                raise _cut()
            yield marker, start, found.end()
            return
        offset = found.end()
        if marker in _LONE:
            continue
        if marker not in _NEEDED and marker not in _TEXT:
            msg = "the stream has a marker that is not one of its standard"
            raise StreamError(msg)
        offset += max(2, int.from_bytes(stream[offset : offset + 2], "big"))
        if marker in _FRAMES:
            data_ends = _LS_DATA_ENDS if marker == JPEG_LS else _DATA_ENDS
        if marker == _SOS:
            data_end, has_data = data_ends.search(stream, offset), True
            offset = len(stream) if data_end is None else data_end.start()
        if offset > len(stream):
            raise _cut()
        yield marker, start, offset
    msg = f"the stream has more than {_MOST_SEGMENTS} segments"
    raise StreamError(msg)


def _cut() -> CutStreamError:
    return CutStreamError("the stream has no end marker behind its data")


def clean_jpeg2000(stream: bytes) -> bytes:
    """Blank the comments of a JPEG 2000 or HTJ2K codestream, and drop what stands before and behind it.

    Parameters
    ----------
    stream : bytes
        A codestream, with or without boxes around it.

    Returns
    -------
    bytes
        Comments keep their length, for offsets elsewhere in the codestream count them, and hold zeros.

    Raises
    ------
    StreamError
        It has no header, or a segment that is not known.
    """
    header = read_jpeg2000_header(stream)
    if header is None:
        msg = "the stream has no header"
        raise StreamError(msg)
    cleaned = bytearray(memoryview(stream)[header.start :])
    last_part = data = 0
    for marker, body, body_end in walk_segments(stream, header.start):
        start, end = body - header.start, max(body, min(body_end, len(stream))) - header.start
        if marker == _COMMENT:
            cleaned[start:end] = bytes(end - start)
        elif marker == _SOT:
            last_part = start - 4
        data = end
    if cleaned[data : data + 2] != _SOD:
        msg = "the stream has a segment that is not known, or no data"
        raise StreamError(msg)
    part_end = last_part + int.from_bytes(cleaned[last_part + 6 : last_part + 10], "big")
    stop = cleaned.find(_END_OF_CODESTREAM, part_end if data < part_end <= len(cleaned) else data)
    return bytes(cleaned if stop < 0 else cleaned[: stop + len(END_OF_IMAGE)])
