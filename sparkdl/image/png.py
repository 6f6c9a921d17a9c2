"""PNG files: their chunks, all of them checked, and their samples as they are stored.

Decoders see only the chunks that say something about pixels. A profile or a text that inflates to more than a library
allows is then no fault of the image; its checksum counts all the same.

Which library, and why. Milliseconds of one core for 1024 x 1024 pixels of a radiograph:

===============  ================  =============================================
samples          taken             others
===============  ================  =============================================
8 bits, gray     png, in Rust 3.7  libpng 7.6, libspng 9.3, Pillow 9.3
8 bits, RGB      png, in Rust 8.3  libpng 13, libspng 13, Pillow 16
16 bits, gray    png, in Rust 9.0  libpng 17, Pillow 17
16 bits, RGB     png, in Rust 13   libpng 25; Pillow keeps 8 of the 16 bits
===============  ================  =============================================

The Rust library comes with ``kornia-rs``, libpng with ``imagecodecs``. Pillow decodes what they are not asked for:
palettes, fewer than 8 bits, 8 bits interlaced or with alpha. It also gets what they refuse, and says what is wrong.

References
----------
PNG, third edition: 5.3 (chunks), 11.2.1 (IHDR), 11.3.2.5 (sBIT), 11.3.4.5 (eXIf).
"""

import logging
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import imagecodecs
import kornia_rs.io
import numpy as np
import numpy.typing as npt

from schemas.errors import CorruptImageError, Reason, UnsupportedImageError
from sparkdl.image.limits import DecodeLimits
from sparkdl.image.pixels import check_pixels

# imagecodecs logs what its libraries warn of; what matters comes back as an exception.
logging.getLogger("imagecodecs").setLevel(logging.CRITICAL)

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types

COLORS: Final = {GRAY: 1, RGB: 3, PALETTE: 3, GRAY_ALPHA: 1, RGB_ALPHA: 3}
"""Values of a pixel by colour type, alpha not counted; for each of them sBIT has an entry, and then one for alpha."""

BYTE, WORD = 8, 16  # bits of a sample

_QUICK_MODES = {(GRAY, BYTE): "mono", (RGB, BYTE): "rgb", (GRAY, WORD): "mono", (RGB, WORD): "rgb"}

# Beside the header. Transparency is dropped, not blended, hence no tRNS; decoders would obey a second header.
_PIXEL_CHUNKS = frozenset({b"PLTE", b"IDAT", b"IEND"})

_NOTED_CHUNKS = frozenset({b"acTL", b"fcTL", b"IDAT", b"PLTE", b"sBIT", b"eXIf"})  # whose first one is looked at

_TEXT_CHUNKS = frozenset({b"tEXt", b"zTXt", b"iTXt"})

_FRAME_BYTES = 12  # of a chunk beside its body: length, kind, checksum

_MAX_CHUNKS = 1 << 16  # 256 MB in chunks of 4 kB, the smallest that encoders make; so many take 0.1 s

_RAW_EXIF = b"Raw profile type exif\0"  # ImageMagick's way to store EXIF, older than the chunk for it

_MOST_TEXTS, _MOST_TEXT_BYTES = 10, 300_000  # an EXIF block has 64 kB at most, here written as hexadecimal digits

# What imagecodecs raises: its codec's own error is a RuntimeError, and it may fail to read libpng's message.
_LIBPNG_ERRORS = (RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class PngFile:
    """What the chunks of a PNG file say.

    Parameters
    ----------
    height, width : int
        In pixels.
    bits : int
        Of one sample; 1, 2, 4, 8 or 16 in a good file.
    color_type : int
        ``GRAY``, ``RGB``, ``PALETTE``, ``GRAY_ALPHA`` or ``RGB_ALPHA`` in a good file.
    interlaced : bool
        Whether the pixels come in several passes.
    significant_bits : tuple of int
        What sBIT says of each colour, alpha not among them; empty without a valid sBIT.
    exif : bytes
        An EXIF block, perhaps a damaged one; empty without.
    exif_chunk : str
        The chunk that holds it: ``"eXIf"``, ``"tEXt"``, ``"zTXt"`` or ``"iTXt"``.
    pixel_data : bytes
        The file with only the chunks that say something about pixels.
    """

    height: int
    width: int
    bits: int
    color_type: int
    interlaced: bool
    significant_bits: tuple[int, ...]
    exif: bytes
    exif_chunk: str
    pixel_data: bytes


def read_png(payload: bytes, origin: str, limits: DecodeLimits) -> PngFile:
    """Walk the chunks: the pixel cap first, then their sums, a second frame and the end.

    Decoders stop reading when they have all rows, so they see neither a missing end nor a wrong sum after that.

    Parameters
    ----------
    payload : bytes
        The file.
    origin : str
        Where it came from, for errors.
    limits : DecodeLimits
        ``max_pixels`` bounds height x width.

    Returns
    -------
    PngFile
        What the chunks say.

    Raises
    ------
    UnsupportedImageError
        ``TOO_MANY_PIXELS``, ``MULTI_FRAME``.
    CorruptImageError
        ``TRUNCATED_IMAGE``: it ends before its last chunk. ``CORRUPT_IMAGE``: no header, a wrong checksum,
        or tens of thousands of chunks.
    """
    whole, walk = memoryview(payload), _walk(payload, origin)
    kind, body, end = next(walk)
    height, width, bits, color_type, interlaced = _read_header(kind, body, origin, limits)
    kept, first, texts = [whole[:end]], dict[bytes, memoryview](), list[tuple[bytes, bytes]]()
    for kind, body, end in walk:
        if kind in _NOTED_CHUNKS:
            first.setdefault(kind, body)
        if kind in _PIXEL_CHUNKS:
            kept.append(whole[end - len(body) - _FRAME_BYTES : end])
        elif kind in _TEXT_CHUNKS and len(texts) < _MOST_TEXTS and body[: len(_RAW_EXIF)] == _RAW_EXIF:
            texts.append((kind, bytes(body[len(_RAW_EXIF) :])))
    _check_frames(first, origin)
    if color_type == PALETTE and b"PLTE" not in first:  # Pillow takes it for granted
        raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, "PNG of palette colours has no palette")
    significant = _significant_bits(bytes(first.get(b"sBIT", b"")), color_type, bits)
    exif, exif_chunk = (bytes(first[b"eXIf"]), "eXIf") if b"eXIf" in first else _raw_exif(texts)
    return PngFile(
        height, width, bits, color_type, interlaced, significant, exif, exif_chunk, pixel_data=b"".join(kept)
    )


def decode_samples(png: PngFile) -> tuple[npt.NDArray[Any], str] | None:
    """Decode 8 and 16 bits with the libraries that are faster than Pillow, or keep more of them.

    Parameters
    ----------
    png : PngFile
        Of any kind.

    Returns
    -------
    tuple of (numpy.ndarray, str), or None
        The samples, uint8 or uint16 of shape (height, width) for gray, else (height, width, 2 | 3 | 4), alpha the last;
        nothing is scaled. The name of the library. None where Pillow has to decode: other kinds, and files that the
        libraries refuse.

    Notes
    -----
    Rows whose chunks have the right sums are taken even where the sum of the whole compressed stream is wrong.
    """
    mode = _QUICK_MODES.get((png.color_type, png.bits))
    samples = _decode_quickly(png, mode) if mode and not png.interlaced else None
    if samples is not None:
        return samples, "png in Rust"
    samples = _decode_deep(png) if png.bits == WORD else None
    return None if samples is None else (samples, "libpng")


def _decode_quickly(png: PngFile, mode: str) -> npt.NDArray[Any] | None:
    decode = kornia_rs.io.decode_image_png_u8 if png.bits == BYTE else kornia_rs.io.decode_image_png_u16
    try:
        samples = np.asarray(decode(png.pixel_data, (png.height, png.width), mode))
    except Exception:  # the library raises no narrower one; what is wrong, Pillow says
        return None
    except BaseException as exc:
        # A panic in Rust is no Exception. Its class cannot be imported, and an interrupt must pass.
        if type(exc).__module__ != "pyo3_runtime":
            raise
        return None
    return samples[..., 0] if mode == "mono" else samples


def _decode_deep(png: PngFile) -> npt.NDArray[Any] | None:
    try:
        samples: npt.NDArray[Any] = imagecodecs.png_decode(png.pixel_data)
    except _LIBPNG_ERRORS:
        return None
    return samples


def _walk(payload: bytes, origin: str) -> Iterator[tuple[bytes, memoryview, int]]:
    """Give one chunk after the other to IEND: its kind, its body, and where the next one begins."""
    whole, offset = memoryview(payload), len(PNG_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        length, kind = int.from_bytes(payload[offset : offset + 4], "big"), payload[offset + 4 : offset + 8]
        end = offset + _FRAME_BYTES + length
        if end > len(payload):
            detail = f"PNG ends at byte {len(payload)} inside a chunk, expected {end} bytes or more"
            raise CorruptImageError(Reason.TRUNCATED_IMAGE, origin, detail)
        if zlib.crc32(whole[offset + 4 : end - 4]) != int.from_bytes(payload[end - 4 : end], "big"):
            raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, f"PNG chunk at byte {offset} has a wrong checksum")
        yield kind, whole[offset + 8 : end - 4], end
        if kind == b"IEND":
            return
        offset = end
    detail = f"PNG has more than {_MAX_CHUNKS} chunks"
    raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, detail)


def _read_header(kind: bytes, body: memoryview, origin: str, limits: DecodeLimits) -> tuple[int, int, int, int, bool]:
    """Read the first chunk: (height, width, bits, colour type, whether interlaced)."""
    if kind != b"IHDR" or len(body) != 13:  # noqa: PLR2004
        raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, "PNG does not begin with an IHDR chunk of 13 bytes")
    width, height, bits, color_type, _, _, interlace = struct.unpack(">IIBBBBB", body)
    check_pixels(height, width, origin, limits)
    return height, width, bits, color_type, interlace != 0


def _check_frames(first: dict[bytes, memoryview], origin: str) -> None:
    """Refuse an animation, and one frame beside a still picture: that is no frame where no fcTL comes before it."""
    frames = int.from_bytes(first.get(b"acTL", b"")[:4], "big")
    if frames and b"fcTL" not in takewhile(lambda kind: kind != b"IDAT", first):
        frames += 1
    if frames > 1:
        raise UnsupportedImageError(Reason.MULTI_FRAME, origin, f"PNG has {frames} pictures, expected one")


def _significant_bits(body: bytes, color_type: int, bits: int) -> tuple[int, ...]:
    """Read sBIT; one of another length, or of impossible bits, counts as none."""
    colors = COLORS.get(color_type, 0)
    wanted = colors + (color_type in (GRAY_ALPHA, RGB_ALPHA))
    return tuple(body[:colors]) if len(body) == wanted and all(1 <= given <= bits for given in body) else ()


def _raw_exif(texts: list[tuple[bytes, bytes]]) -> tuple[bytes, str]:
    """Find the EXIF block in what ImageMagick's text chunks hold behind their keyword, and the name of its chunk."""
    for kind, rest in texts:
        compressed, text = kind == b"zTXt", rest
        if kind == b"iTXt":  # whether compressed, how, language, keyword in that language
            compressed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
        elif compressed:
            text = rest[1:]  # how
        try:
            text = zlib.decompressobj().decompress(text, _MOST_TEXT_BYTES) if compressed else text
            lines = text.decode("latin-1").split("\n")  # an empty one, the name, the length, then the digits
            return bytes.fromhex("".join(lines[3:])), kind.decode()
        except (ValueError, zlib.error):
            continue
    return b"", ""
