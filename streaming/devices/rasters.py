"""PNG and JPEG files without what they say beside their pixels: texts, dates, profiles, thumbnails, previews.

References
----------
PNG, third edition: 5.6 (order of chunks), 11.3.2.5 (sBIT), 11.3.4.5 (eXIf); CIPA DC-008 (EXIF) 4.5.2, 4.6.2.
"""

import struct
import zlib
from typing import Final

from schemas.errors import CorruptImageError, Reason
from sparkdl.image.limits import DecodeLimits
from sparkdl.image.png import GRAY_ALPHA, PNG_SIGNATURE, RGB_ALPHA, read_png
from sparkdl.image.raster import check_jpeg, read_orientation
from streaming.devices.hiddentext import CutStreamError, StreamError, clean_jpeg

_IHDR_END: Final = len(PNG_SIGNATURE) + 12 + 13
_TURNED: Final = range(2, 9)  # EXIF orientations that are not upright


def clean_png(payload: bytes, *, origin: str, limits: DecodeLimits) -> bytes:
    """Keep the chunks of a PNG that say something about its pixels as they are decoded.

    Parameters
    ----------
    payload : bytes
        The file.
    origin : str
        Where it came from, for errors.
    limits : DecodeLimits
        ``max_pixels`` counts.

    Returns
    -------
    bytes
        Header, significant bits, orientation, palette, pixels. The compressed data is as it was.

    Raises
    ------
    UnsupportedImageError, CorruptImageError
        As `sparkdl.image.png.read_png`.
    """
    png = read_png(payload, origin, limits)
    chunks = [png.pixel_data[:_IHDR_END]]
    if png.significant_bits:
        has_alpha = png.color_type in (GRAY_ALPHA, RGB_ALPHA)
        chunks.append(_chunk(b"sBIT", bytes(png.significant_bits) + bytes([png.bits] * has_alpha)))
    if (orientation := read_orientation(png.exif)) in _TURNED:
        chunks.append(_chunk(b"eXIf", _exif(orientation)))
    return b"".join([*chunks, memoryview(png.pixel_data)[_IHDR_END:]])


def clean_jpeg_file(payload: bytes, *, origin: str, limits: DecodeLimits) -> bytes:
    """Keep the segments of a JPEG that decoding needs, and its orientation; of several pictures the first.

    Parameters
    ----------
    payload, origin, limits
        As `clean_png` takes them.

    Raises
    ------
    UnsupportedImageError, CorruptImageError
        As decoding does, as far as headers and end tell.
    """
    orientation = check_jpeg(payload, origin, limits)
    exif = b"Exif\0\0" + _exif(orientation) if orientation in _TURNED else b""
    head = struct.pack(">HH", 0xFFE1, len(exif) + 2) + exif if exif else b""
    try:
        return clean_jpeg(payload, head=head)
    except StreamError as exc:
        reason = Reason.TRUNCATED_IMAGE if isinstance(exc, CutStreamError) else Reason.CORRUPT_IMAGE
        raise CorruptImageError(reason, origin, f"JPEG cannot be followed to its end ({exc})") from exc


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _exif(orientation: int) -> bytes:
    """Write an EXIF block of one entry: a TIFF header, one directory, no further one."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return b"MM\0\x2a" + struct.pack(">IH", 8, 1) + entry + bytes(4)
