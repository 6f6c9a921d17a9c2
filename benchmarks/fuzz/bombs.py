"""Files within every limit on their size that would cost a careless reader minutes or gigabytes."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from benchmarks.fuzz.jail import Limits
from benchmarks.fuzz.kinds import write_frame
from sparkdl.image.limits import MAX_PAYLOAD_BYTES
from tests import testimages

BOMB_LIMITS: Final = Limits(max_pixels=1 << 22, max_memory_mb=400)
"""Of a file of up to 20 MB, which is copied a few times on its way, with up to 4 million pixels."""

_Bombs = dict[str, Callable[[], bytes]]

_SIDE = 2048
_MANY = 1_000_000


def build_bombs(kind: str) -> dict[str, Callable[[], bytes]]:
    """Give builders of a kind's bombs by name; what they build is not wrapped yet, as that of `Kind.build`."""
    build = _BOMBS.get(kind)
    return build() if build else {}


def _fit(unit: bytes, *, count: int = MAX_PAYLOAD_BYTES, room: int = 64 * 1024) -> bytes:
    """Repeat a unit up to ``count`` times, as often as a payload has room for."""
    return unit * min(count, (MAX_PAYLOAD_BYTES - room) // len(unit))


# --- PNG --------------------------------------------------------------------------------------------------------------


def _png_with(chunks: bytes) -> bytes:
    whole = testimages.png()
    return whole[:33] + chunks + whole[33:]


def _png_full_of(kind: bytes, body: bytes = b"", count: int = MAX_PAYLOAD_BYTES) -> bytes:
    return _png_with(_fit(testimages.png_chunk(kind, body), count=count))


def _png_of_inflating_text(kind: bytes, before: bytes, text: bytes, count: int) -> bytes:
    return _png_full_of(kind, before + zlib.compress(text, 9), count)


def _png_of_one_byte_data() -> bytes:
    """Give each byte of the rows a chunk of its own."""
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in testimages.gray_pixels(1000, 1600)), 0)
    data = b"".join(testimages.png_chunk(b"IDAT", rows[i : i + 1]) for i in range(len(rows)))
    header = testimages.png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1600, 1000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + data + testimages.png_chunk(b"IEND", b"")


def _png_bombs() -> _Bombs:
    return {
        **{f"a million {kind.decode()}": partial(_png_full_of, kind) for kind in (b"IDAT", b"tEXt", b"acTL", b"vpAg")},
        "64,000 IDAT": partial(_png_full_of, b"IDAT", count=64_000),
        "a million IDAT of one byte": _png_of_one_byte_data,
        "texts that inflate": partial(_png_of_inflating_text, b"zTXt", b"Comment\0\0", bytes(1 << 20), 2000),
        "EXIF texts that inflate": partial(
            _png_of_inflating_text, b"zTXt", b"Raw profile type exif\0\0", b"\n\n\n" + b"z" * 299_000, 60_000
        ),
        "a profile that inflates": partial(_png_of_inflating_text, b"iCCP", b"a\0\0", bytes(400 << 20), 1),
    }


# --- JPEG -------------------------------------------------------------------------------------------------------------


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def _jpeg_of_scans(count: int, bytes_a_scan: int = 0) -> bytes:
    """Refine the same coefficients over and over: a scan that says "nothing more" of many blocks takes few bytes."""
    frame = _segment(0xC2, struct.pack(">BHHB", 8, _SIDE, _SIDE, 1) + b"\1\x11\0")
    table = _segment(0xDB, b"\0" + bytes([1] * 64))
    # One code of one bit: "the rest of this and of the next 16,384 to 32,767 blocks is zero".
    codes = _segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0") + _segment(
        0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0"
    )
    blocks = (_SIDE // 8) ** 2
    dc = _segment(0xDA, b"\1\1\0\0\0\0") + bytes(blocks // 8)
    ac = _segment(0xDA, b"\1\1\0\1\x3f\1") + bytes(8)
    again = _segment(0xDA, b"\1\1\0\1\x3f\x10") + bytes(8)
    return b"\xff\xd8" + table + frame + codes + dc + ac + _fit(again, count=count) + b"\xff\xd9"


def _jpeg_full_of(unit: bytes, count: int = MAX_PAYLOAD_BYTES, *, late: bool = False) -> bytes:
    """Put bytes before the frame header, or before the first scan."""
    whole = testimages.jpeg()
    start = whole.index(b"\xff\xda") if late else 2
    return whole[:start] + _fit(unit, count=count) + whole[start:]


def _jpeg_with_exif_loop() -> bytes:
    """Let an IFD be its own successor, and hold thousands of entries."""
    entries = b"".join(struct.pack("<HHII", 0x8769, 4, 1, 8) for _ in range(5000))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 5000) + entries + struct.pack("<I", 8)
    return _jpeg_full_of(_segment(0xE1, exif), 1)


_FILLINGS = {
    "zeros": b"\0",
    "fill bytes": b"\xff",
    "stuffed bytes": b"\xff\0",
    "restart markers": b"\xff\xd0",
    "ends of images": b"\xff\xd9",
    "empty segments": _segment(0xEF, b""),
    "segments of no meaning": _segment(0xF0, bytes(65_000)),
    "quantization tables": _segment(0xDB, b"\0" + bytes([1] * 64)),
}
_PIECES = {
    "Exif": (0xE1, b"Exif\0\0"),
    "XMP": (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
    "profile": (0xE2, b"ICC_PROFILE\0\1\1"),
    "pictures": (0xE2, b"MPF\0"),
    "Photoshop": (0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 100),
    "comments": (0xFE, b""),
}


def _jpeg_bombs() -> _Bombs:
    """Of fillings, by the megabyte; of what Pillow puts together or takes apart, as many as there may be."""
    return {
        **{f"{count} scans": partial(_jpeg_of_scans, count) for count in (98, 5000, _MANY)},
        **{f"{name} by the megabyte": partial(_jpeg_full_of, unit) for name, unit in _FILLINGS.items()},
        **{f"{name} before the scan": partial(_jpeg_full_of, unit, late=True) for name, unit in _FILLINGS.items()},
        **{
            f"{name} in {count} pieces of {size} bytes": partial(
                _jpeg_full_of, _segment(marker, start + bytes(size)), count
            )
            for name, (marker, start) in _PIECES.items()
            for count, size in ((490, 60_000), (9000, 3000), (_MANY, 0))
        },
        "an Exif loop": _jpeg_with_exif_loop,
    }


# --- JPEG 2000 --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Codestream:
    """A codestream of a header and, for the first tile, bytes that say that packets are empty.

    A block's sides are exponents of two beyond 4; a precinct's are exponents of two, in one byte for each level.
    """

    levels: int = 5
    layers: int = 1
    block: tuple[int, int] = (4, 4)
    precincts: bytes = b""
    tile: int = _SIDE
    components: int = 1
    progression: int = 0
    data: int = 1000
    tile_parts: int = 1
    late: bytes = b""

    def write(self) -> bytes:
        """Give its bytes."""
        sides = (_SIDE, _SIDE, 0, 0, self.tile, self.tile, 0, 0)
        size = struct.pack(">H8IH", 0, *sides, self.components) + b"\7\1\1" * self.components
        coding = struct.pack(">BBHB", bool(self.precincts), self.progression, self.layers, 0)
        style = bytes([self.levels, *self.block, 0, 1])
        quantization = bytes([0x40, *[0x48] * (3 * self.levels + 1)])
        head = _segment(0x51, size) + _segment(0x52, coding + style + self.precincts) + _segment(0x5C, quantization)
        body = self.late + b"\xff\x93" + bytes(self.data)
        parts = (
            _segment(0x90, struct.pack(">HIBB", 0, 12 + len(body), number % 256, 0)) + body
            for number in range(self.tile_parts)
        )
        return b"\xff\x4f" + head + b"".join(parts) + b"\xff\xd9"


def _codestream_bombs() -> _Bombs:
    tiny = bytes([0, 4, 4, 0, 1, 0])  # one level, with precincts of one pixel
    return {
        "precincts of one pixel": _Codestream(precincts=bytes(6)).write,
        "precincts of one pixel, one level": _Codestream(0, precincts=bytes(1)).write,
        "precincts of one pixel of a tile": _Codestream(0, late=_segment(0x52, b"\1\0\0\1\0" + tiny)).write,
        "precincts of one pixel of a component": _Codestream(0, late=_segment(0x53, b"\0\1" + tiny)).write,
        "precincts of two pixels": _Codestream(precincts=b"\x11" * 6).write,
        "precincts of two pixels by position": _Codestream(precincts=b"\x11" * 6, progression=2).write,
        "precincts of two pixels, 32 levels": _Codestream(32, precincts=b"\x11" * 33, progression=3).write,
        "blocks of 4 x 4": _Codestream(block=(0, 0)).write,
        "blocks of 8 x 8": _Codestream(block=(1, 1)).write,
        "65,535 layers": _Codestream(layers=65535).write,
        "65,535 layers of small precincts": _Codestream(layers=65535, block=(1, 1), precincts=b"\x44" * 6).write,
        "32 levels": _Codestream(32).write,
        "as many tiles as there may be": _Codestream(tile=32).write,
        "as many tiles, of 32 levels": _Codestream(32, layers=65535, tile=32).write,
        "30 MB of empty packets": _Codestream(layers=65535, data=30_000_000).write,
        "30 MB of empty packets of small precincts": _Codestream(
            layers=65535, data=30_000_000, precincts=b"\x44" * 6, block=(1, 1)
        ).write,
        "16,384 components": _Codestream(components=16384).write,
        "255 tile parts": _Codestream(tile_parts=255).write,
        "a million tile parts": _Codestream(tile_parts=_MANY, data=0).write,
    }


# --- DICOM ------------------------------------------------------------------------------------------------------------


def _element(group: int, element: int, value: bytes, *, vr: bytes = b"", undefined: bool = False) -> bytes:
    length = 0xFFFFFFFF if undefined else len(value)
    if vr in (b"SQ", b"UN", b"OB", b"OW"):
        return struct.pack("<HH2sHI", group, element, vr, 0, length) + value
    if vr:
        return struct.pack("<HH2sH", group, element, vr, length) + value
    return struct.pack("<HHI", group, element, length) + value


_ITEM_END, _SEQUENCE_END = _element(0xFFFE, 0xE00D, b""), _element(0xFFFE, 0xE0DD, b"")


def _dicom_with(elements: bytes, *, syntax: str = uid.ExplicitVRLittleEndian) -> bytes:
    """Put elements in front of those that describe the pixels, and behind those of the patient."""
    whole = testimages.dicom(syntax=syntax)
    start = whole.index(struct.pack("<HH", 0x0028, 0x0002))
    return whole[:start] + elements + whole[start:]


def _dicom_of_depth(depth: int, *, undefined: bool, vr: bytes = b"SQ") -> bytes:
    if undefined:
        begin = _element(0x0018, 0x0012, b"", vr=vr, undefined=True) + _element(0xFFFE, 0xE000, b"", undefined=True)
        return _dicom_with(begin * depth + (_ITEM_END + _SEQUENCE_END) * depth)
    # From the inside out; 20 bytes more at each level.
    sizes = range(0, 20 * depth, 20)
    heads = [struct.pack("<HH2sHI HHI", 0x18, 0x12, vr, 0, size + 8, 0xFFFE, 0xE000, size) for size in sizes]
    return _dicom_with(b"".join(reversed(heads)))


def _dicom_of_items(inner: bytes = b"") -> bytes:
    items = _fit(_element(0xFFFE, 0xE000, inner), count=_MANY)
    return _dicom_with(_element(0x0018, 0x0012, items, vr=b"SQ"))


def _dicom_of_undefined_items(*, inner: bytes = b"", vr: bytes = b"SQ") -> bytes:
    item = _element(0xFFFE, 0xE000, b"", undefined=True) + inner + _ITEM_END
    sequence = _element(0x0018, 0x0012, _fit(item, count=_MANY), vr=vr, undefined=True)
    return _dicom_with(sequence + _SEQUENCE_END)


def _dicom_of_elements() -> bytes:
    private = (struct.pack("<HH2sH", 0x0019 + 2 * (i >> 16), i & 0xFFFF, b"US", 2) + b"\0\0" for i in range(_MANY))
    return _dicom_with(b"".join(private))


def _dicom_of_empty_tables() -> bytes:
    whole = testimages.dicom(VOILUTSequence=Sequence([Dataset()]))
    start = whole.index(struct.pack("<HH2s", 0x0028, 0x3010, b"SQ"))
    end = start + 12 + struct.unpack_from("<I", whole, start + 8)[0]
    items = _fit(_element(0xFFFE, 0xE000, b""), count=_MANY)
    return whole[:start] + _element(0x0028, 0x3010, items, vr=b"SQ") + whole[end:]


def _dicom_of_tables() -> bytes:
    entries = np.arange(65536).astype("<u2").tobytes()
    table = testimages.lookup_table(entries, first=0, bits=16)
    return testimages.dicom(VOILUTSequence=Sequence([*table] * 100))


def _dicom_of_decimals() -> bytes:
    dataset = testimages.dicom_dataset()
    implicit = testimages.write_dicom(dataset, uid.ImplicitVRLittleEndian)
    end = implicit.index(struct.pack("<HHI", 0x7FE0, 0x0010, len(dataset.PixelData)))
    numbers = _element(0x0028, 0x1050, _fit(b"1\\", count=_MANY) + b"1 ") + _element(0x0028, 0x1051, b"9 ")
    return implicit[:end] + numbers + implicit[end:]


def _dicom_of_fragments(size: int) -> bytes:
    whole = testimages.jpeg_baseline_dicom()
    start = whole.index(struct.pack("<HH", 0xFFFE, 0xE000))
    return whole[:start] + _fit(_element(0xFFFE, 0xE000, bytes(size))) + _SEQUENCE_END


def _dicom_of_metas() -> bytes:
    whole = testimages.dicom()
    return whole[:132] + _fit(_element(0x0002, 0x0013, b"", vr=b"SH")) + whole[132:]


def _dicom_of_values(tag: int, value: bytes) -> bytes:
    """Give an element a million values, which implicit VR has room for."""
    dataset = testimages.dicom_dataset(NumberOfFrames=1, PixelPaddingValue=0, PresentationLUTShape="IDENTITY")
    whole = testimages.write_dicom(dataset, uid.ImplicitVRLittleEndian)
    start = whole.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132)
    (length,) = struct.unpack_from("<I", whole, start + 4)
    values = _fit(value + b"\\", count=_MANY) + value + b" "
    return (
        whole[:start]
        + _element(tag >> 16, tag & 0xFFFF, values + b" " * (len(values) % 2))
        + whole[start + 8 + length :]
    )


def _dicom_of_lengths(vr: bytes) -> bytes:
    return _dicom_with(struct.pack("<HH2sHI", 0x0018, 0x0012, vr, 0, 0xFFFFFFFE))


def _rle_of_single_bytes() -> bytes:
    """Spend a run on every byte of two segments."""
    segment = b"\0\x55" * _SIDE**2
    frame = struct.pack("<16I", 2, 64, 64 + len(segment), *[0] * 13) + segment * 2
    return write_frame(frame, uid.RLELossless, (_SIDE, _SIDE), 16)


def _rle_that_unpacks(count: int) -> bytes:
    """Let every two bytes stand for 128."""
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * count
    return write_frame(frame, uid.RLELossless, (_SIDE, _SIDE), 8)


_VALUES = {
    "Specific Character Set": (0x00080005, b"ABC"),
    "SOP Class UID": (0x00080016, b"1.2"),
    "Modality": (0x00080060, b"DX"),
    "Photometric Interpretation": (0x00280004, b"RGB"),
    "Number of Frames": (0x00280008, b"1"),
    "Rows": (0x00280010, b"1"),
    "Pixel Padding Value": (0x00280120, b"1"),
    "Presentation LUT Shape": (0x20500020, b"INVERSE"),
}


def _dicom_bombs() -> _Bombs:
    text = _element(0x0018, 0x0010, b"", vr=b"LO")
    character_set = _element(0x0008, 0x0005, b"ISO 2022 IR 999 ", vr=b"CS")
    return {
        **{
            f"{depth} sequences deep, {'without' if undefined else 'with'} length, {vr.decode()}": partial(
                _dicom_of_depth, depth, undefined=undefined, vr=vr
            )
            for depth in (50, 1000, 100_000)
            for undefined in (False, True)
            for vr in (b"SQ", b"UN")
        },
        "a million items": _dicom_of_items,
        "a million items of one element": partial(_dicom_of_items, inner=text),
        "a million items without length": _dicom_of_undefined_items,
        "a million items without length, UN": partial(_dicom_of_undefined_items, vr=b"UN"),
        "a million items of a character set": partial(_dicom_of_undefined_items, inner=character_set),
        "a million elements": _dicom_of_elements,
        "a million empty VOI LUTs": _dicom_of_empty_tables,
        "100 VOI LUTs of 65,536": _dicom_of_tables,
        "a million windows": _dicom_of_decimals,
        "a million metas": _dicom_of_metas,
        "a million fragments": partial(_dicom_of_fragments, 0),
        "a million fragments of two bytes": partial(_dicom_of_fragments, 2),
        "RLE of a run for each byte": _rle_of_single_bytes,
        **{f"RLE of {2 * n} bytes for {128 * n}": partial(_rle_that_unpacks, n) for n in (1 << 15, 1 << 20, 1 << 23)},
        **{f"a million values of {name}": partial(_dicom_of_values, *value) for name, value in _VALUES.items()},
        **{f"{vr.decode()} of 4 GB": partial(_dicom_of_lengths, vr) for vr in (b"OB", b"UN", b"SQ", b"UT")},
    }


_BOMBS: Final[dict[str, Callable[[], _Bombs]]] = {
    "png": _png_bombs,
    "jpeg": _jpeg_bombs,
    "jpeg12": _jpeg_bombs,
    "dicom": _dicom_bombs,
    "j2k": _codestream_bombs,
    "htj2k": _codestream_bombs,
}
