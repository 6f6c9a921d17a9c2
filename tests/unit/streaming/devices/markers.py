"""Patient markers in every place of a file that can hold one, and the search for them in what comes out."""

import itertools
import re
import struct
import zlib
from collections.abc import Iterator

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
)

from tests import testimages

_MARKER = r"ZQ[0-9]{7}"
_PATTERNS = (
    re.compile(_MARKER.encode()),
    re.compile(b"Z\0Q\0(?:[0-9]\0){7}"),  # UTF-16, either order: between the letters it is the same
    re.compile(b"\0Z\0Q(?:\0[0-9]){7}"),
)
_ZLIB_STARTS = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"\x1f\x8b\x08")
_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS
_MOST_DEFLATED_BYTES = 256 * 1024
"""Of a stream that is inflated: nearly all that look like the beginning of one are none."""

_numbers = itertools.count()


def marker() -> str:
    """Give one that no other place has."""
    return f"ZQ{next(_numbers):07}"


def count_markers() -> int:
    """Tell how many have been given so far."""
    return next(_numbers)


def find_markers(content: bytes) -> list[bytes]:
    """Search bytes, and all that inflates from any place of them."""
    found = [match for pattern in _PATTERNS for match in pattern.findall(content)]
    for start in _ZLIB_STARTS:
        at = content.find(start)
        while at >= 0:
            try:
                deflated = memoryview(content)[at : at + _MOST_DEFLATED_BYTES]
                inflated = zlib.decompressobj(_ZLIB_OR_GZIP).decompress(deflated, 1 << 20)
            except zlib.error:
                inflated = b""
            found += [match for pattern in _PATTERNS for match in pattern.findall(inflated)]
            at = content.find(start, at + 1)
    return found


# --- DICOM ------------------------------------------------------------------------------------------------------------

_TEXT_VRS = {"AE": 16, "CS": 16, "LO": 64, "LT": 200, "PN": 64, "SH": 16, "ST": 200, "UC": 200, "UR": 200, "UT": 200}
_BYTE_VRS = ("OB", "OW", "UN", "UI", "DA", "TM", "DT", "DS", "IS", "AS")
# What would be no image, or another one, with a text in it; group lengths and command elements are in no data set.
_NEEDED = frozenset({"PhotometricInterpretation", "Modality", "NumberOfFrames"})


def text_elements() -> list[tuple[int, str]]:
    """Give each element of the dictionary that may hold text or bytes, and lies before the pixels: tag and VR."""
    return [
        (tag, vr)
        for tag, (vr, _, _, _, keyword) in sorted(DicomDictionary.items())
        if 0x00080005 < tag < 0x7FE00000 and vr in (*_TEXT_VRS, *_BYTE_VRS) and keyword not in _NEEDED and tag & 0xFFFF
    ]


def add_raw(dataset: Dataset, tag: int, vr: str, value: bytes) -> None:
    """Add an element whose value nobody checks."""
    value += b" " * (len(value) % 2)
    dataset[tag] = RawDataElement(BaseTag(tag), vr, len(value), value, 0, False, True)


def marked_dataset(elements: list[tuple[int, str]], encoding: str = "utf-8") -> Dataset:
    """Build an image with a marker in each of these elements, in private ones, and nested in sequences."""
    dataset = testimages.dicom_dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for tag, vr in elements:
        add_raw(dataset, tag, vr, marker().encode(encoding))
    block = dataset.private_block(0x0011, f"OWNER {marker()}", create=True)
    block.add_new(0x01, "LO", marker())
    block.add_new(0x02, "UN", marker().encode())
    for keyword in ("RequestAttributesSequence", "OtherPatientIDsSequence", "OriginalAttributesSequence"):
        inner = Dataset()
        inner.PatientName = marker()
        inner.ImageComments = marker()
        nested = Dataset()
        nested.PatientID = marker()
        inner.ReferencedStudySequence = Sequence([nested])
        setattr(dataset, keyword, Sequence([inner]))
    return dataset


def marked_dicom_files(chunk: int = 60) -> Iterator[tuple[str, bytes]]:
    """Give images with markers in all elements of the dictionary, a few at a time, and everywhere else in a file."""
    elements = text_elements()
    for start in range(0, len(elements), chunk):
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            dataset = marked_dataset(elements[start : start + chunk], encoding)
            yield f"elements-{start}-{encoding}", testimages.write_dicom(dataset)
        dataset = marked_dataset(elements[start : start + chunk], "latin-1")
        yield f"elements-{start}-implicit", testimages.write_dicom(dataset, ImplicitVRLittleEndian)
    yield from _marked_places()
    yield from _marked_frames()


def _marked_places() -> Iterator[tuple[str, bytes]]:
    """Give images with markers where no element of the dictionary is."""
    dataset = testimages.dicom_dataset()
    for group in range(0x6000, 0x6020, 2):
        dataset.add_new((group, 0x0022), "LO", marker())
        dataset.add_new((group, 0x4000), "LT", marker())
        dataset.add_new((group, 0x3000), "OW", marker().encode() + b"\0")
        dataset.add_new((group + 0x0FE0 & 0x50FF | 0x5000, 0x2500), "LO", marker())
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
        behind = testimages.dicom_dataset()
        if syntax == ExplicitVRBigEndian:
            behind.PixelData = testimages.twelve_bit_pixels().byteswap().tobytes()
        behind.PixelData += marker().encode() + b"\0"
        behind.add_new(0xFFFCFFFC, "OB", marker().encode() + b"\0")
        behind.add_new(0xFFFAFFFA, "SQ", [marked_dataset([])])
        yield f"behind-{syntax}", testimages.write_dicom(behind, syntax) + marker().encode()
    yield "overlays", testimages.write_dicom(dataset)
    lut = testimages.lookup_table([*range(4096)], first=0, bits=12)
    lut[0].LUTExplanation = marker()
    lut[0].add_new(0x00091001, "LO", marker())
    yield "lut", testimages.dicom(VOILUTSequence=lut, WindowCenterWidthExplanation=marker())
    yield "head", _marked_head()


def _marked_head() -> bytes:
    """Hold markers in the preamble and the file meta information."""
    whole = testimages.dicom()
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.SourceApplicationEntityTitle = meta.SendingApplicationEntityTitle = marker()
    meta.ImplementationVersionName = marker()
    meta.PrivateInformationCreatorUID = "1.2.3"
    meta.PrivateInformation = marker().encode() + b"\0"
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_file_meta_info(buffer, meta)
    length = struct.unpack_from("<I", whole, 140)[0]
    preamble = (marker() * 15).encode()[:128].ljust(128)
    return preamble + b"DICM" + buffer.getvalue() + whole[144 + length :]


def segment(code: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


def marked_jpeg(stream: bytes) -> bytes:
    """Put markers into a JPEG's segments, before the frame and before the last scan, and behind its end."""
    texts = [segment(0xFE, marker().encode()), segment(0xED, b"Photoshop 3.0\0" + marker().encode())]
    texts += [segment(code, marker().encode("utf-16-le")) for code in range(0xE1, 0xF0)]
    texts += [segment(0xE1, b"Exif\0\0" + exif(marker())), segment(0xE2, b"MPF\0" + marker().encode())]
    texts += [segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\3\3" + marker().encode())]
    texts += [segment(0xE0, b"JFXX\0" + marker().encode())]
    texts += [segment(0xEE, b"Adobe\0\x64\0\0\0\0\0" + marker().encode())]
    last = stream.rfind(b"\xff\xda")
    between = segment(0xFE, marker().encode()) + segment(0xE5, marker().encode())
    return stream[:2] + b"".join(texts) + stream[2:last] + between + stream[last:] + marker().encode()


def exif(text: str, orientation: int | None = None) -> bytes:
    """Write an EXIF block with a text in several of its entries."""
    block = Image.Exif()
    block[0x010E] = block[0x013B] = block[0x8298] = text
    if orientation is not None:
        block[0x0112] = orientation
    return block.tobytes().removeprefix(b"Exif\0\0")


def _marked_frames() -> Iterator[tuple[str, bytes]]:
    """Give compressed images whose frames hold markers."""
    pixels = testimages.gray_pixels()
    plain = testimages.encode(Image.fromarray(pixels), "JPEG2000", irreversible=False, no_jp2=True)
    boxed = testimages.encode(Image.fromarray(pixels), "JPEG2000", irreversible=False)
    box = struct.pack(">I4s", 17, b"xml ") + marker().encode()
    frames = {
        "jpeg": (marked_jpeg(testimages.jpeg(progressive=True)), JPEGBaseline8Bit),
        "jpeg-ls": (marked_jpeg(bytes(imagecodecs.jpegls_encode(pixels))), JPEGLSLossless),
        "jpeg2000": (marked_jpeg2000(plain), JPEG2000Lossless),
        "jp2": (box + boxed + box, JPEG2000Lossless),
    }
    for name, (frame, syntax) in frames.items():
        yield f"{name}-frame", testimages.encapsulated_dicom(frame, syntax, pixels, bits_stored=8)


def marked_jpeg2000(stream: bytes) -> bytes:
    """Put comments into the main header, and a text behind the end."""
    first_tile = stream.index(b"\xff\x90")
    comments = b"".join(segment(0x64, b"\0\1" + marker().encode()) for _ in range(3))
    return stream[:first_tile] + comments + stream[first_tile:] + marker().encode()


# --- PNG and JPEG -----------------------------------------------------------------------------------------------------


def marked_png(pixels: npt.NDArray[np.uint8], orientation: int | None = None) -> bytes:
    """Hold markers in each chunk that is for texts, and in some that are not."""
    info = PngInfo()
    info.add_text("Title", marker())
    info.add_text("Comment", marker() * 20, zip=True)
    info.add_itxt("Author", marker(), "en", marker())
    info.add_itxt("Description", marker() * 20, zip=True)
    info.add(b"tIME", marker().encode()[:7])
    info.add(b"prVt", marker().encode())
    info.add(b"iCCP", b"x\0\0" + zlib.compress((marker() * 30).encode()))
    info.add(b"eXIf", exif(marker(), orientation))
    info.add(b"prIv", marker().encode("utf-16-be"), after_idat=True)
    return testimages.png(pixels, pnginfo=info) + marker().encode()


def marked_rasters() -> Iterator[tuple[str, bytes]]:
    for number in range(9):
        yield f"{number}.png", marked_png(testimages.gray_pixels(), number or None)
        yield f"{number}-colour.png", marked_png(testimages.rgb_pixels(), number or None)
        turned = testimages.rotated_jpeg(number) if number else testimages.jpeg()
        yield f"{number}.jpg", marked_jpeg(turned)
    yield "progressive.jpg", marked_jpeg(testimages.jpeg(testimages.rgb_pixels(), progressive=True))
    yield "mpo.jpg", marked_jpeg(testimages.mpo())
    yield "restarts.jpg", marked_jpeg(testimages.jpeg(restart_marker_blocks=2))
