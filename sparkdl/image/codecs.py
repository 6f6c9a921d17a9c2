"""Compressed frames of DICOM files to pixels: JPEG, JPEG lossless, JPEG-LS, JPEG 2000, HTJ2K and RLE, in this process.

The stream's own header is read first. It says how large the pixels are, which the caller compares with what it allows;
the array for them is made before the library starts, and the library refuses a stream that does not fit it.

Which library, and why. Milliseconds of one core for 2048 x 2048 pixels of 12 bits; all give the same pixels:

===============  ==================  =====================================================================
stream           taken               others on PyPI
===============  ==================  =====================================================================
JPEG lossless    libjpeg-turbo 3 20  ljpeg 36, jpegsof3 60, gdcm 84, pylibjpeg-libjpeg (GPL) 118
JPEG, 8 bits     libjpeg-turbo 3 4   Pillow 5
JPEG, 12 bits    libjpeg-turbo 3 20  pylibjpeg-libjpeg (GPL); neither Pillow nor pydicom's gdcm reads it
JPEG-LS          CharLS 2.4 50       pyjpegls 51, gdcm 94: CharLS in them, too
JPEG 2000        OpenJPEG 2.5 340    pylibjpeg-openjpeg 348, Pillow 372, gdcm 414: OpenJPEG in them, too
HTJ2K            OpenJPEG 2.5 42     OpenJPH 18, but some damaged streams end its process
RLE              imagecodecs 12      pydicom 69, and it unpacks 16 MB to a gigabyte
===============  ==================  =====================================================================

References
----------
DICOM PS3.5 8.2 and Annex A.4; ITU-T T.81 (JPEG), T.87 (JPEG-LS), T.800 (JPEG 2000), T.814 (HTJ2K).
"""

import logging
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import imagecodecs
import numpy as np
import numpy.typing as npt

from sparkdl.image.jpeg import END_OF_IMAGE, JPEG_LS, MAX_SCANS, JpegHeader, count_scans, read_jpeg_header
from sparkdl.image.jpeg2000 import Jpeg2000Header, read_jpeg2000_header

# imagecodecs logs what its libraries warn of; what matters comes back as an exception.
logging.getLogger("imagecodecs").setLevel(logging.CRITICAL)

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
        "1.2.840.10008.1.2.4.202",  # lossless, resolutions first
        "1.2.840.10008.1.2.4.203",  # lossless or lossy
    }
)
SYNTAXES: Final = JPEG_SYNTAXES | JPEG_2000_SYNTAXES | HTJ2K_SYNTAXES

_BYTE, _WORD = 8, 16
_RLE_HEADER = struct.Struct("<16I")  # the count of segments, and where each of up to 15 begins
# A tile costs OpenJPEG 7 kB, a precinct 600 bytes, a code block 300, before any data is read. Encoders make tiles and
# precincts of 64 x 64 pixels and more, but for a few on the lowest levels, and code blocks of 32 x 32.
_SMALLEST_TILE, _SMALLEST_PRECINCT, _SMALLEST_BLOCK, _FEW_PIECES = 32 * 32, 8 * 16, 8 * 8, 100

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
    JPEG 2000 takes 6 to 20 bytes a pixel beside the pixels. Ask `frame_size` first how many there are. A damaged
    JPEG-LS stream may make CharLS count to 2^31, for 3 s, before it gives up.
    """
    header = _read_header(frame, syntax)
    if header is None:
        msg = "the stream has no header of its transfer syntax"
        raise CodecError(msg)
    signed = isinstance(header, Jpeg2000Header) and header.signed
    _check(header)
    if isinstance(header, JpegHeader) and header.process != JPEG_LS:
        _check_scans(frame, header)
    # Zeros cost nothing more. What a library leaves out is then never what was in memory before: another's picture.
    pixels = np.zeros((header.height, header.width), f"{'i' if signed else 'u'}{1 if header.bits <= _BYTE else 2}")
    try:
        _decode(frame, header, pixels)
    except _LIBRARY_ERRORS as exc:
        msg = f"the stream does not decode ({type(exc).__name__})"
        raise CodecError(msg) from exc
    return Frame(pixels, header.bits, signed)


def decode_rle(frame: bytes, height: int, width: int, bits_allocated: int) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Decode one frame of RLE Lossless, which has no header that says how large it is.

    Parameters
    ----------
    frame : bytes
        The compressed frame: where its segments begin, then a segment for each byte of a pixel, the high bytes first.
    height, width : int
        As the data set says.
    bits_allocated : int
        8 or 16.

    Returns
    -------
    numpy.ndarray
        uint8 or uint16 of shape (height, width).

    Raises
    ------
    CodecError
        There are other than so many segments; one is damaged, too short, or more than twice too long. Two bytes may
        stand for 128, and so 16 MB for a gigabyte.

    References
    ----------
    DICOM PS3.5 Annex G.
    """
    pixels = np.empty((height * width, bits_allocated // _BYTE), np.uint8)
    count, segments = pixels.shape
    if len(frame) < _RLE_HEADER.size or (header := _RLE_HEADER.unpack_from(frame))[0] != segments:
        msg = f"the frame has no header of {segments} segments"
        raise CodecError(msg)
    borders = [*header[1 : segments + 1], len(frame)]
    for number, (start, end) in enumerate(pairwise(borders)):
        try:
            decoded = imagecodecs.packbits_decode(frame[start:end], out=2 * count + _WORD)
        except _LIBRARY_ERRORS as exc:
            msg = f"segment {number + 1} does not decode ({type(exc).__name__})"
            raise CodecError(msg) from exc
        if len(decoded) < count:
            msg = f"segment {number + 1} has {len(decoded)} bytes, expected {count}"
            raise CodecError(msg)
        pixels[:, number] = np.frombuffer(decoded, np.uint8, count)
    return pixels.view(f">u{segments}").astype(f"u{segments}").reshape(height, width)


def _read_header(frame: bytes, syntax: str) -> JpegHeader | Jpeg2000Header | None:
    return read_jpeg_header(frame) if syntax in JPEG_SYNTAXES else read_jpeg2000_header(frame)


def _check(header: JpegHeader | Jpeg2000Header) -> None:
    if header.components != 1:
        msg = f"the stream has {header.components} components, expected 1"
        raise CodecError(msg)
    if header.height < 1 or header.width < 1:
        msg = f"the stream is {header.height}x{header.width}, expected 1x1 or more"
        raise CodecError(msg)
    if not 1 <= header.bits <= _WORD:
        msg = f"the stream has {header.bits} bits a value, expected 1 to {_WORD}"
        raise CodecError(msg)
    if isinstance(header, Jpeg2000Header):
        _check_pieces(header)


def _check_pieces(header: Jpeg2000Header) -> None:
    """Refuse a codestream of so many pieces that their number, not that of its pixels, is what it costs."""
    pixels = header.height * header.width
    most_tiles, most_precincts = (_FEW_PIECES + pixels // least for least in (_SMALLEST_TILE, _SMALLEST_PRECINCT))
    if not 1 <= header.tiles <= most_tiles:
        msg = f"the stream has {header.tiles} tiles, expected at most {most_tiles} for its size"
        raise CodecError(msg)
    if header.tiles_present < header.tiles:  # OpenJPEG leaves the others black
        msg = f"the stream holds {header.tiles_present} of its {header.tiles} tiles"
        raise CodecError(msg)
    if header.precincts > most_precincts:
        msg = f"a tile of the stream has {header.precincts} precincts, expected at most {most_precincts} for its size"
        raise CodecError(msg)
    if header.block_pixels < _SMALLEST_BLOCK:
        msg = f"code blocks of the stream have {header.block_pixels} pixels, expected {_SMALLEST_BLOCK} or more"
        raise CodecError(msg)


def _decode(frame: bytes, header: JpegHeader | Jpeg2000Header, pixels: npt.NDArray[Any]) -> None:
    """Fill the array with the pixels of the stream; the libraries refuse one of another size or type."""
    if isinstance(header, Jpeg2000Header):
        imagecodecs.jpeg2k_decode(frame[header.start :], out=pixels)
    elif header.process == JPEG_LS:
        imagecodecs.jpegls_decode(frame, out=pixels)
    else:
        imagecodecs.jpeg8_decode(frame, out=pixels)


def _check_scans(frame: bytes, header: JpegHeader) -> None:
    """Look for the end marker, for libjpeg-turbo makes up what is missing, and count the scans.

    Compressed data never holds the end marker by chance. A thumbnail has its own, in a segment before.
    """
    if frame.rfind(END_OF_IMAGE, header.start) < 0:
        msg = "the stream ends without its end marker"
        raise CodecError(msg)
    if (scans := count_scans(frame, header.start)) > MAX_SCANS:
        msg = f"the stream has {scans} scans, expected at most {MAX_SCANS}"
        raise CodecError(msg)
