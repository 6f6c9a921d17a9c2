"""Compressed frames of DICOM files to pixels: JPEG, JPEG lossless, JPEG-LS, JPEG 2000 and HTJ2K, in this process.

The stream's own header is read first. It says how large the pixels are, which the caller compares with what it allows;
the array for them is made before the library starts, and the library refuses a stream that does not fit it.

Which library, and why. Milliseconds of one core for 2048 x 2048 pixels of 12 bits; all give the same pixels:

=================  =======================  =======================================================================
stream             taken                    others on PyPI
=================  =======================  =======================================================================
JPEG lossless      libjpeg-turbo 3     20   ljpeg 36, jpegsof3 60, pylibjpeg-libjpeg (GPL) 118, gdcm 200 and its process
JPEG of 8 bits     libjpeg-turbo 3      4   Pillow 5
JPEG of 12 bits    libjpeg-turbo 3     20   Pillow and gdcm do not read it
JPEG-LS            CharLS              48   gdcm and pyjpegls have CharLS in them, too
JPEG 2000          OpenJPEG           346   pylibjpeg-openjpeg 348, Pillow 372: OpenJPEG in them, too
HTJ2K              OpenJPH             18   OpenJPEG 42
=================  =======================  =======================================================================

References
----------
DICOM PS3.5 8.2 and Annex A.4; ITU-T T.81 (JPEG), T.87 (JPEG-LS), T.800 (JPEG 2000), T.814 (HTJ2K).
"""

import struct
from dataclasses import dataclass
from typing import Any, Final

import imagecodecs
import numpy as np
import numpy.typing as npt

JPEG_SYNTAXES: Final = frozenset(
    {
        "1.2.840.10008.1.2.4.50",  # Baseline
        "1.2.840.10008.1.2.4.51",  # Extended, 8 and 12 bits
        "1.2.840.10008.1.2.4.57",  # Lossless
        "1.2.840.10008.1.2.4.70",  # Lossless, first-order prediction
        "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
        "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
    }
)
JPEG_2000_SYNTAXES: Final = frozenset({"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"})
HTJ2K_SYNTAXES: Final = frozenset(
    {
        "1.2.840.10008.1.2.4.201",  # lossless
        "1.2.840.10008.1.2.4.202",  # lossless, RPCL progression
        "1.2.840.10008.1.2.4.203",  # lossy
    }
)
SYNTAXES: Final = JPEG_SYNTAXES | JPEG_2000_SYNTAXES | HTJ2K_SYNTAXES

_PREFIX, _END_OF_IMAGE = 0xFF, b"\xff\xd9"
_NO_SEGMENTS = frozenset({0x00, 0xD8, 0xD9, 0xDA})  # stuffing, start and end of an image, start of scan
_LONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD8)})  # without a length: TEM and the restart markers
_JPEG_LS = 0xF7  # SOF55
# SOF0 to SOF15 without the three that are not frame headers (DHT, JPG, DAC), and that of JPEG-LS.
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), _JPEG_LS} - {0xC4, 0xC8, 0xCC})
_CODESTREAM = b"\xff\x4f\xff\x51"  # start of codestream and SIZ; DICOM has no JP2 boxes before, some files do

_BYTE, _WORD = 8, 16
# A tile costs OpenJPEG 7 kB before any of its data is read, and a header may announce 65,535 of them. Those that
# encoders make have 64 x 64 pixels and more.
_SMALLEST_TILE = 32 * 32

# What imagecodecs raises: a RuntimeError of each codec, and a ValueError for an array that the stream does not fit.
_LIBRARY_ERRORS = (RuntimeError, ValueError, TypeError, OverflowError, NotImplementedError)


class CodecError(RuntimeError):
    """The frame does not decode, or its header says what is not read here."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The pixels of one frame, and what the compressed stream itself says about them.

    Parameters
    ----------
    pixels : numpy.ndarray
        Shape (height, width); uint8 for up to 8 bits, uint16 for up to 16, int8 and int16 where ``signed``.
    bits : int
        Bits of a value, 1 to 16, as the stream's header says: SOF of a JPEG or JPEG-LS, SIZ of a JPEG 2000.
    signed : bool
        Whether the values have a sign. Only JPEG 2000 can say so.
    """

    pixels: npt.NDArray[Any]
    bits: int
    signed: bool


@dataclass(frozen=True, slots=True)
class _Header:
    height: int
    width: int
    bits: int
    components: int
    signed: bool = False
    jpeg_ls: bool = False
    start: int = 0  # of a JPEG 2000 codestream; of what follows the header in a JPEG
    tiles: int = 1


def frame_size(frame: bytes, syntax: str) -> tuple[int, int] | None:
    """Read the size of a frame from its header; nothing is decompressed.

    Parameters
    ----------
    frame : bytes
        The compressed stream of one frame.
    syntax : str
        Transfer syntax UID, one of ``SYNTAXES``.

    Returns
    -------
    tuple of int or None
        (height, width) in pixels, each 0 or more; None where there is no header of that syntax.
    """
    header = _read_header(frame, syntax)
    return (header.height, header.width) if header else None


def decode_frame(frame: bytes, syntax: str) -> Frame:
    """Decode one compressed frame of gray pixels.

    Parameters
    ----------
    frame : bytes
        The compressed stream of one frame; what a writer has put behind its end marker does not count.
    syntax : str
        Transfer syntax UID, one of ``SYNTAXES``. JPEG, JPEG lossless and JPEG-LS are told apart by the stream itself.

    Returns
    -------
    Frame
        Pixels, bits and sign as the stream says. The caller's data set may say otherwise.

    Raises
    ------
    CodecError
        There is no header, it announces other than one component, no pixels or more than 16 bits; the stream ends too
        early or is damaged so that the library sees it. Damage inside the compressed data often goes unseen: these
        formats have no checksum.

    Notes
    -----
    About ten bytes a pixel are used for JPEG 2000, the pixels alone otherwise. Ask `frame_size` first how many there
    are.
    """
    header = _read_header(frame, syntax)
    if header is None:
        msg = "the stream has no header of its transfer syntax"
        raise CodecError(msg)
    _check(header)
    pixels = np.empty((header.height, header.width), _dtype(header))
    try:
        _decode(frame, syntax, header, pixels)
    except _LIBRARY_ERRORS as exc:
        msg = f"the stream does not decode ({type(exc).__name__})"
        raise CodecError(msg) from exc
    return Frame(pixels, header.bits, header.signed)


def _check(header: _Header) -> None:
    if header.components != 1:
        msg = f"the stream has {header.components} components, expected 1"
        raise CodecError(msg)
    if header.height < 1 or header.width < 1:
        msg = f"the stream is {header.height}x{header.width}, expected 1x1 or more"
        raise CodecError(msg)
    if not 1 <= header.bits <= _WORD:
        msg = f"the stream has {header.bits} bits a value, expected 1 to {_WORD}"
        raise CodecError(msg)
    most = 1 + header.height * header.width // _SMALLEST_TILE
    if not 1 <= header.tiles <= most:
        msg = f"the stream has {header.tiles} tiles, expected at most {most} for its size"
        raise CodecError(msg)


def _dtype(header: _Header) -> npt.DTypeLike:
    return np.dtype(f"{'i' if header.signed else 'u'}{1 if header.bits <= _BYTE else 2}")


def _decode(frame: bytes, syntax: str, header: _Header, pixels: npt.NDArray[Any]) -> None:
    """Fill the array with the pixels of the stream; the libraries refuse one of another size or type."""
    if syntax in HTJ2K_SYNTAXES:
        _check_end(frame, header.start)
        imagecodecs.htj2k_decode(memoryview(frame)[header.start :], out=pixels)
    elif syntax in JPEG_2000_SYNTAXES:
        imagecodecs.jpeg2k_decode(memoryview(frame)[header.start :], out=pixels)
    elif header.jpeg_ls:
        imagecodecs.jpegls_decode(frame, out=pixels)
    else:
        _check_end(frame, header.start)
        imagecodecs.jpeg8_decode(frame, out=pixels)


def _check_end(frame: bytes, start: int) -> None:
    """Look for the end marker, the same in JPEG and JPEG 2000: libjpeg-turbo and OpenJPH make up what is missing.

    Compressed data never holds the marker by chance. A thumbnail has its own, in a segment before.
    """
    if frame.rfind(_END_OF_IMAGE, start) < 0:
        msg = "the stream ends without its end marker"
        raise CodecError(msg)


def _read_header(frame: bytes, syntax: str) -> _Header | None:
    return _jpeg_header(frame) if syntax in JPEG_SYNTAXES else _jpeg_2000_header(frame)


def _jpeg_header(frame: bytes) -> _Header | None:
    """Read the frame header of a JPEG, JPEG lossless or JPEG-LS stream, which comes after other segments.

    A stream whose segments libraries could read in another way than here has none: they could find another header.
    """
    offset = 2
    while frame.startswith(b"\xff\xd8") and offset + 10 <= len(frame) and frame[offset] == _PREFIX:
        marker = frame[offset + 1]
        if marker == _PREFIX:  # a fill byte
            offset += 1
        elif marker in _LONE_MARKERS:
            offset += 2
        elif marker in _FRAME_MARKERS:
            bits, height, width, components = struct.unpack_from(">BHHB", frame, offset + 4)
            return _Header(height, width, bits, components, jpeg_ls=marker == _JPEG_LS, start=offset)
        elif marker in _NO_SEGMENTS:
            return None
        else:
            offset += 2 + max(2, int.from_bytes(frame[offset + 2 : offset + 4], "big"))
    return None


def _jpeg_2000_header(frame: bytes) -> _Header | None:
    """Read the SIZ segment of a JPEG 2000 codestream."""
    start = frame.find(_CODESTREAM)
    if start < 0 or start + 45 > len(frame):
        return None
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = struct.unpack_from(">8I", frame, start + 8)
    components, depth = struct.unpack_from(">HB", frame, start + 40)
    if right < left or bottom < top or not tile_width or not tile_height:
        return None
    tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
    signed, bits = bool(depth & 0x80), (depth & 0x7F) + 1
    return _Header(bottom - top, right - left, bits, components, signed, start=start, tiles=tiles)
