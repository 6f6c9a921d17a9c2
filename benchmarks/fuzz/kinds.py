"""The kinds of files that are fuzzed: what begins whole, how it is damaged, and how it gets to the decoder."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sequence import Sequence as Items

from benchmarks.fuzz.formats import (
    Map,
    map_codestream,
    map_dicom,
    map_jpeg,
    map_png,
    map_rle,
    mend_png,
    repack_png,
)
from benchmarks.fuzz.mutation import mutate
from sparkdl.image.codecs import SYNTAXES, frame_size
from tests import testimages

SECRET: Final = testimages.PATIENT_NAME.encode()
"""Is in every file somewhere, as a patient's name would be: no error may quote it."""

KEPT: Final = Path(__file__).parent / "kept"
"""Finds of the past, made small, a folder for each kind: every run begins with them, and damages them further."""

_HEIGHT, _WIDTH = 24, 40
_MAX_SIDE = 4096
_SHARE_REPACKED, _SHARE_UNMENDED, _SHARE_AS_SAID = 0.2, 0.1, 0.9

_JPEG_LS_S = 12.0
"""Damage makes CharLS 2 count to 2 ** 31 once, in three seconds, before it refuses a frame (mended in CharLS 3)."""

_Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Parameters
    ----------
    name : str
        As on the command line.
    build : callable
        Builds whole files of it.
    map : callable
        Finds what can be damaged.
    mend : callable
        Makes the check sums of a damaged one good.
    repack : callable
        Changes what is compressed inside.
    wrap : callable
        Makes it a file for `decode_image`.
    max_seconds : float
        Of a processor, that one may take.
    """

    name: str
    build: Callable[[], list[bytes]]
    map: Callable[[bytes], Map]
    mend: Callable[[bytes], bytes] = lambda payload: payload
    repack: Callable[[bytes, Callable[[bytes], bytes]], bytes] = lambda payload, _: payload
    wrap: Callable[[bytes], bytes] = lambda payload: payload
    max_seconds: float = 2.0

    @cache  # noqa: B019, there are as many as there are kinds
    def seeds(self) -> list[bytes]:
        """Give whole files, and the finds of the past."""
        return [*self.build(), *(path.read_bytes() for path in sorted((KEPT / self.name).glob("*")))]

    def draw(self, rng: random.Random) -> bytes:
        """Draw a damaged file, not yet wrapped."""
        seed = rng.choice(self.seeds())
        return self.damage(seed, rng)

    def damage(self, payload: bytes, rng: random.Random) -> bytes:
        """Damage a file of this kind."""
        damaged = mutate(payload, self.map(payload), self.seeds(), SECRET, rng)
        if rng.random() < _SHARE_REPACKED:
            damaged = self.repack(damaged, lambda inner: mutate(inner, Map(), [inner], SECRET, rng))
        return damaged if rng.random() < _SHARE_UNMENDED else self.mend(damaged)


# --- pictures ---------------------------------------------------------------------------------------------------------


def _smooth(bits: int = 8, *, signed: bool = False, scale: int = 1) -> _Pixels:
    """Draw slopes with some noise, over all values of so many bits."""
    rows, columns = np.mgrid[: scale * _HEIGHT, : scale * _WIDTH]
    noise = np.random.default_rng(bits).integers(0, 1 << max(0, bits - 3), rows.shape)
    values = np.minimum((rows + columns) * ((1 << bits) - 1) // sum(rows.shape) + noise, (1 << bits) - 1)
    width = 1 if bits <= 8 else 2  # noqa: PLR2004
    return np.asarray(values - (1 << bits - 1), f"i{width}") if signed else np.asarray(values, f"u{width}")


def _colored() -> _Pixels:
    return testimages.rgb_pixels(_HEIGHT, _WIDTH)


# --- PNG --------------------------------------------------------------------------------------------------------------


def _build_png() -> list[bytes]:
    gray, colored = Image.fromarray(_smooth()), Image.fromarray(_colored())
    alpha = Image.fromarray(_smooth()[::-1])
    deep = np.stack([_smooth(16)] * 4, axis=-1)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", SECRET.decode())
    text.add_text("Comment", SECRET.decode() * 20, zip=True)
    text.add_itxt("Comment", SECRET.decode() * 20, zip=True)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, SECRET.decode()
    pictures: list[tuple[Image.Image, dict[str, Any]]] = [
        (gray, {"pnginfo": text}),
        (gray, {"exif": exif.tobytes(), "icc_profile": bytes(200)}),
        (Image.fromarray(_smooth(12)), {"dpi": (300, 300)}),
        (colored, {"transparency": (1, 2, 3)}),
        (Image.merge("RGBA", (*colored.split(), alpha)), {}),
        (Image.merge("LA", (gray, alpha)), {}),
        (colored.quantize(16), {"transparency": 3}),
        (colored.quantize(200), {}),
        (gray.convert("1"), {}),
        (gray, {"save_all": True, "append_images": [alpha]}),
    ]
    files = [testimages.encode(image, "PNG", **options) for image, options in pictures]
    bits = testimages.png_chunk(b"sBIT", b"\x0c\x0c\x0c") + testimages.png_chunk(b"tRNS", bytes(6))
    files += [
        testimages.png16(deep[..., :1], interlaced=True),
        testimages.png16(deep[..., :2]),
        testimages.png16(deep[..., :3], chunks=bits),
        testimages.png16(deep, interlaced=True),
    ]
    return files


# --- JPEG -------------------------------------------------------------------------------------------------------------


def _build_jpeg() -> list[bytes]:
    gray, colored = Image.fromarray(_smooth()), Image.fromarray(_colored())
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, SECRET.decode()
    return [
        testimages.encode(gray, "JPEG", quality=90, comment=SECRET),
        testimages.encode(gray, "JPEG", progressive=True),
        testimages.encode(gray, "JPEG", exif=exif),
        testimages.encode(gray, "JPEG", restart_marker_blocks=2),
        testimages.encode(colored, "JPEG", subsampling=2, icc_profile=bytes(300)),
        testimages.encode(colored, "JPEG", subsampling=0, progressive=True, restart_marker_rows=1),
        testimages.encode(colored, "JPEG", subsampling=0, keep_rgb=True),
        testimages.encode(colored.convert("CMYK"), "JPEG"),
        testimages.encode(colored, "MPO", save_all=True, append_images=[colored]),
    ]


def _build_deep_jpeg() -> list[bytes]:
    """Build those of DICOM: baseline and extended, of 8 and 12 bits."""
    return [
        bytes(imagecodecs.jpeg8_encode(_smooth(12), level=95, bitspersample=12)),
        bytes(imagecodecs.jpeg8_encode(_smooth(12), level=50, bitspersample=12, optimize=True)),
        bytes(imagecodecs.jpeg8_encode(_smooth(), level=95)),
        testimages.encode(_smooth(), "JPEG", progressive=True),
        testimages.encode(_smooth(), "JPEG", restart_marker_blocks=1, comment=SECRET),
    ]


def _build_lossless_jpeg() -> list[bytes]:
    return [
        bytes(imagecodecs.jpeg8_encode(_smooth(bits), lossless=True, predictor=predictor, bitspersample=bits))
        for bits, predictor in ((2, 1), (7, 2), (8, 3), (10, 4), (12, 5), (12, 1), (14, 6), (16, 7), (16, 1))
    ]


def _build_jpeg_ls() -> list[bytes]:
    presets = struct.pack(">BBHBHHHHH", 0xFF, 0xF8, 13, 1, 4095, 18, 67, 276, 64)
    whole = bytes(imagecodecs.jpegls_encode(_smooth(12)))
    near = [imagecodecs.jpegls_encode(_smooth(bits), level=level) for bits, level in ((8, 0), (8, 3), (16, 0), (16, 9))]
    return [whole, whole[:2] + presets + whole[2:], *map(bytes, near)]


# --- JPEG 2000 --------------------------------------------------------------------------------------------------------


def _build_jpeg_2000() -> list[bytes]:
    lossless: dict[str, Any] = {"codecformat": "j2k", "reversible": True}
    files = [
        bytes(imagecodecs.jpeg2k_encode(_smooth(bits, signed=signed), bitspersample=bits, **lossless))
        for bits, signed in ((1, False), (8, False), (8, True), (12, False), (12, True), (16, False))
    ]
    options: list[dict[str, Any]] = [
        {"quality_mode": "rates", "quality_layers": [20, 10, 5], "irreversible": True},
        {"progression": "RPCL", "precinct_size": (32, 32), "codeblock_size": (8, 8)},
        {"progression": "CPRL", "num_resolutions": 1},
        {"plt": True, "comment": SECRET},
    ]
    files += [testimages.encode(_smooth(), "JPEG2000", no_jp2=True, **each) for each in options]
    tiled = testimages.encode(_smooth(scale=4), "JPEG2000", no_jp2=True, tile_size=(64, 64), num_resolutions=2)
    colored = testimages.encode(_colored(), "JPEG2000", no_jp2=True)
    return [*files, tiled, colored, testimages.encode(_smooth(12), "JPEG2000")]


def _build_htj2k() -> list[bytes]:
    cases: list[tuple[_Pixels, dict[str, Any]]] = [
        (_smooth(), {"reversible": True}),
        (_smooth(), {"reversible": False}),
        (_smooth(16), {"reversible": True, "tlm": True}),
        (_smooth(16, signed=True), {"reversible": True, "resolutions": 2}),
        (_smooth(scale=4), {"reversible": True, "tile": (64, 64)}),
        (_colored(), {"reversible": True}),
    ]
    return [bytes(imagecodecs.htj2k_encode(pixels, **options)) for pixels, options in cases]


# --- RLE --------------------------------------------------------------------------------------------------------------


def _build_rle() -> list[bytes]:
    return [_encode_rle(_smooth(16)), _encode_rle(np.zeros((_HEIGHT, _WIDTH), np.uint16)), _encode_rle(_smooth())]


def _encode_rle(pixels: _Pixels) -> bytes:
    bits = 8 * pixels.dtype.itemsize
    frame: bytes = RLELosslessEncoder.encode(
        pixels.tobytes(), rows=_HEIGHT, columns=_WIDTH, samples_per_pixel=1, number_of_frames=1, bits_allocated=bits,
        bits_stored=bits, pixel_representation=0, photometric_interpretation="MONOCHROME2", encoding_plugin="pydicom",
    )  # fmt: skip
    return frame


# --- DICOM ------------------------------------------------------------------------------------------------------------


def _build_dicom() -> list[bytes]:
    pixels = _smooth(12)
    table = testimages.lookup_table(list(range(0, 4096, 4)), first=0, bits=12)
    many = Items([*table, *table, *table])
    deep = Dataset()
    deep.PatientName = SECRET.decode()
    for _ in range(5):
        outer = Dataset()
        outer.AnatomicRegionSequence = Items([deep, deep])
        deep = outer
    frame = bytes(imagecodecs.jpeg8_encode(_smooth(), level=90))
    several = testimages.dicom_dataset(_smooth(), bits_stored=8)
    several.PixelData = encapsulate([frame], fragments_per_frame=3)
    several["PixelData"].VR, several["PixelData"].is_undefined_length = "OB", True
    compressed = testimages.encapsulated_dicom
    window: dict[str, Any] = {"WindowCenter": [2048, 1000], "WindowWidth": [4096, 50]}
    return [
        testimages.dicom(pixels, **window, RescaleSlope=2, RescaleIntercept=-1024, PixelPaddingValue=0),
        testimages.dicom(pixels, syntax=uid.ImplicitVRLittleEndian, **window, VOILUTFunction="SIGMOID"),
        testimages.big_endian_dicom(pixels, VOILUTSequence=table, PixelPaddingValue=5, PixelPaddingRangeLimit=9),
        testimages.big_endian_dicom(_smooth(), bits_stored=8),
        testimages.dicom(pixels, VOILUTSequence=many, ModalityLUTSequence=table, photometric="MONOCHROME1"),
        testimages.dicom(pixels, syntax=uid.ImplicitVRLittleEndian, VOILUTSequence=many, ModalityLUTSequence=table),
        testimages.dicom(pixels, AnatomicRegionSequence=Items([deep]), **window),
        testimages.dicom(pixels, syntax=uid.ImplicitVRLittleEndian, AnatomicRegionSequence=Items([deep])),
        testimages.dicom(_smooth(12, signed=True), PixelPaddingValue=-2048, PixelPaddingRangeLimit=-2000),
        testimages.dicom(_smooth(), bits_stored=8, NumberOfFrames=1, PresentationLUTShape="INVERSE"),
        testimages.bare_dicom(),
        testimages.dicom_without_preamble(),
        testimages.write_dicom(several, uid.JPEGBaseline8Bit),
        compressed(_encode_rle(pixels), uid.RLELossless, pixels),
        compressed(_build_lossless_jpeg()[4], uid.JPEGLosslessSV1, pixels),
        compressed(_build_jpeg_2000()[3], uid.JPEG2000Lossless, pixels),
    ]


def _wrap(syntax: str) -> Callable[[bytes], bytes]:
    """Make a frame a DICOM file, of the size that its own header says, where that can be told."""

    def wrap(frame: bytes) -> bytes:
        size = frame_size(frame, syntax) if syntax in SYNTAXES else None
        as_said = size is not None and max(size) <= _MAX_SIDE and zlib.crc32(frame) % 100 < 100 * _SHARE_AS_SAID
        height, width = size if size is not None and as_said else (_HEIGHT, _WIDTH)
        bits = 8 if syntax == uid.RLELossless and frame[:1] == b"\1" else 16
        return write_frame(frame, syntax, (height, width), bits)

    return wrap


def write_frame(frame: bytes, syntax: str, size: tuple[int, int], bits: int) -> bytes:
    """Write a DICOM file of the few elements that a frame needs; pydicom takes a hundred times as long."""
    stream = io.BytesIO()
    stream.write(bytes(128) + b"DICM")
    _write_element(stream, 0x0002, 0x0010, b"UI", syntax.encode())
    _write_element(stream, 0x0008, 0x0060, b"CS", b"DX")
    _write_element(stream, 0x0010, 0x0010, b"PN", SECRET)
    _write_element(stream, 0x0028, 0x0002, b"US", struct.pack("<H", 1))
    _write_element(stream, 0x0028, 0x0004, b"CS", b"MONOCHROME2")
    for element, value in (
        (0x10, size[0]),
        (0x11, size[1]),
        (0x100, bits),
        (0x101, bits),
        (0x102, bits - 1),
        (0x103, 0),
    ):
        _write_element(stream, 0x0028, element, b"US", struct.pack("<H", value))
    stream.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF))
    stream.write(struct.pack("<HHI", 0xFFFE, 0xE000, 0))
    stream.write(struct.pack("<HHI", 0xFFFE, 0xE000, len(frame) + len(frame) % 2) + frame + b"\0" * (len(frame) % 2))
    stream.write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    return stream.getvalue()


def _write_element(stream: io.BytesIO, group: int, element: int, vr: bytes, value: bytes) -> None:
    value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
    stream.write(struct.pack("<HH2sH", group, element, vr, len(value)) + value)


def _kinds() -> Sequence[Kind]:
    return (
        Kind("png", _build_png, map_png, mend_png, repack_png),
        Kind("jpeg", _build_jpeg, map_jpeg),
        Kind("dicom", _build_dicom, map_dicom),
        Kind("j2k", _build_jpeg_2000, map_codestream, wrap=_wrap(uid.JPEG2000Lossless)),
        Kind("htj2k", _build_htj2k, map_codestream, wrap=_wrap(uid.HTJ2KLossless)),
        Kind("jpegls", _build_jpeg_ls, map_jpeg, wrap=_wrap(uid.JPEGLSLossless), max_seconds=_JPEG_LS_S),
        Kind("ljpeg", _build_lossless_jpeg, map_jpeg, wrap=_wrap(uid.JPEGLosslessSV1)),
        Kind("jpeg12", _build_deep_jpeg, map_jpeg, wrap=_wrap(uid.JPEGExtended12Bit)),
        Kind("rle", _build_rle, map_rle, wrap=_wrap(uid.RLELossless)),
    )


KINDS: Final = {kind.name: kind for kind in _kinds()}
