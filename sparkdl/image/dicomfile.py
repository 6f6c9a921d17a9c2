"""Reads a DICOM file up to its pixels: the elements before them, and where the bytes of the first frame are.

The pixels are never copied here: of an uncompressed plate they are all of the file.

No text of the file, and so nothing about a patient, gets into an error: pydicom quotes element values in its messages,
hence ``from None`` where it parses, its warnings suppressed, and its logger silenced.

References
----------
DICOM PS3.5 section 7 (data elements) and Annex A (transfer syntaxes, encapsulation); PS3.10 section 7.1 (file meta
information).
"""

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue

from schemas.errors import CorruptImageError, Reason, UnsupportedImageError
from sparkdl.image.elements import (
    HEADER_BYTES,
    LONG_VRS,
    SHORT_VRS,
    UNDEFINED_LENGTH,
    ElementError,
    Encoding,
    has_vr,
    read_elements,
)

# pydicom logs the values of broken elements; what matters comes back as an exception.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)

NATIVE_SYNTAXES = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)

# What pydicom is known to raise on damaged files.
PYDICOM_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zlib.error,
)

_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"
_PIXEL_VRS = frozenset((b"OB", b"OW", b"UN"))
_META_GROUP, _FIRST_GROUPS, _LAST_GROUP = 0x0002, (0x0002, 0x0008), 0x7FE0
_META_SYNTAX = 0x00020010
_MAX_META_ELEMENTS = 1000  # there are a dozen, and programs may add private ones
_PIXEL_DATA = 0x7FE00010
_ITEM, _SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_MAX_FRAGMENTS = 1 << 16  # of one frame; so many take 50 ms
_TEXT_VRS = (None, "DS", "UN", "IS", "LO", "SH")


@dataclass(frozen=True, slots=True)
class DicomFile:
    """A DICOM file as far as its pixels.

    Parameters
    ----------
    dataset : Dataset
        The elements before the pixels, as `sparkdl.image.elements.read_elements` gives them.
    syntax : UID
        The transfer syntax; that of the bytes where the file names none.
    pixel_vr : str
        VR of the Pixel Data element; ``"OW"`` in implicit VR.
    is_encapsulated : bool
        The pixels are in fragments: their element has no length of its own.
    pixels : memoryview
        The bytes of the file behind the header of the Pixel Data element: as many as its length says, where it has one
        and they are there, else all.
    """

    dataset: Dataset
    syntax: uid.UID
    pixel_vr: str
    is_encapsulated: bool
    pixels: memoryview


def looks_like_dicom(payload: bytes) -> bool:
    """Tell whether bytes are a DICOM file or a bare data set.

    Parameters
    ----------
    payload : bytes
        Anything.

    Returns
    -------
    bool
        True with ``DICM`` after the 128-byte preamble, or where the bytes begin with two elements in ascending order,
        the first of group 0002 or 0008: some devices and archives write no preamble. Big endian is always with explicit
        VR.
    """
    if payload.startswith(_MAGIC, _PREAMBLE_BYTES):
        return True
    return any(_begins_with_elements(payload, order) for order in "<>")


def read_dicom(payload: bytes, *, origin: str) -> DicomFile:
    """Read the elements before the pixels, and find the pixels.

    Parameters
    ----------
    payload : bytes
        The file, with or without preamble and file meta information.
    origin : str
        Where it came from, for tracing.

    Returns
    -------
    DicomFile
        With a view of ``payload``.

    Raises
    ------
    UnsupportedImageError
        ``DICOM_UNSUPPORTED_TRANSFER_SYNTAX`` (deflated), ``DICOM_UNSUPPORTED_PIXELS`` (floating point),
        ``DICOM_NO_PIXEL_DATA``.
    CorruptImageError
        ``DICOM_CORRUPT``: the elements do not parse, or end inside one.

    Notes
    -----
    Of two file meta informations the first one counts, as far as its group length says (PS3.10 7.1).
    """
    with parsing(origin, "the file meta information"):
        start, declared = _skip_meta(payload)
    if declared == uid.DeflatedExplicitVRLittleEndian:
        raise refuse_syntax(origin, declared)
    encoding = _guess_encoding(payload[start : start + HEADER_BYTES], declared)
    with parsing(origin, "the data set"):
        dataset, end = read_elements(payload, start, encoding)
    if end + HEADER_BYTES > len(payload):
        if end == start or any(payload[end:]):
            raise corrupt(origin, "data set ends before its elements do")
        detail = "data set has no Pixel Data element"
        raise UnsupportedImageError(Reason.DICOM_NO_PIXEL_DATA, origin, detail)
    with parsing(origin, "the pixel data element"):
        tag, vr, length, start = _pixel_header(payload, end, encoding.order)
    if tag != _PIXEL_DATA:
        detail = "pixels are floating point, expected integers"
        raise UnsupportedImageError(Reason.DICOM_UNSUPPORTED_PIXELS, origin, detail)
    native = uid.ExplicitVRLittleEndian if encoding.little else uid.ExplicitVRBigEndian
    syntax = declared or (uid.ImplicitVRLittleEndian if encoding.implicit else native)
    undefined = length == UNDEFINED_LENGTH
    pixels = memoryview(payload)[start:] if undefined else memoryview(payload)[start : start + length]
    return DicomFile(dataset, syntax, vr, undefined, pixels)


def join_fragments(pixels: memoryview, *, origin: str) -> bytes:
    """Join the fragments of an image of one frame.

    Parameters
    ----------
    pixels : memoryview
        Of `DicomFile.pixels`, encapsulated: a Basic Offset Table, the fragments, a delimiter.
    origin : str
        Where it came from, for tracing.

    Returns
    -------
    bytes
        The compressed stream.

    Raises
    ------
    CorruptImageError
        ``DICOM_CORRUPT``: a fragment is cut or there is none, or something else stands between them.

    Notes
    -----
    A missing delimiter is no damage where the fragments are whole: the file may end there, zeros may follow, or the
    next element.
    """
    fragments: list[memoryview] = []
    offset = 0
    while offset + HEADER_BYTES <= len(pixels):
        group, element, length = struct.unpack_from("<HHI", pixels, offset)
        if (group, element) != _ITEM:
            is_next = (group, element) == _SEQUENCE_END or group > _LAST_GROUP or not any(pixels[offset : offset + 8])
            if not is_next:
                raise corrupt(origin, "compressed pixels: something else stands where a fragment should begin")
            break
        offset += HEADER_BYTES
        if len(fragments) > _MAX_FRAGMENTS:
            raise corrupt(origin, f"compressed pixels have more than {_MAX_FRAGMENTS} fragments")
        if offset + length > len(pixels):
            detail = f"compressed pixels: a fragment has {len(pixels) - offset} bytes, expected {length}"
            raise corrupt(origin, detail)
        fragments.append(pixels[offset : offset + length])
        offset += length
    frame = b"".join(fragments[1:])  # the first one is the Basic Offset Table
    if not frame:
        raise corrupt(origin, "compressed pixels have no fragment")
    return frame


def read_code(dataset: Dataset, keyword: str) -> str:
    """Give the first word of an element of VR CS, without the spaces around it, which say nothing; empty if absent."""
    value = dataset.get(keyword)
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    return "" if value is None else str(value).strip(" \0").upper()


def read_decimals(dataset: Dataset, keyword: str) -> list[float | None]:
    """Read an element of VR DS; an empty number is None, an absent element gives no numbers.

    Read from its text, for pydicom refuses a decimal comma, which some devices write.
    """
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in dataset:
        return []
    element = dataset.get_item(tag)
    if isinstance(element, RawDataElement) and element.VR in _TEXT_VRS and isinstance(element.value, bytes):
        texts = element.value.decode("ascii", "replace").replace(",", ".").split("\\")
        return [float(text) if text else None for text in (text.strip(" \0") for text in texts)]
    value = dataset[tag].value
    values = list(value) if isinstance(value, MultiValue | list) else [value]
    return [None if each is None or each == "" else float(each) for each in values]


def corrupt(origin: str, detail: str) -> CorruptImageError:
    """Make the error of a DICOM file that contradicts itself."""
    return CorruptImageError(Reason.DICOM_CORRUPT, origin, detail)


def refuse_syntax(origin: str, syntax: str) -> UnsupportedImageError:
    """Make the error of a transfer syntax that is not read; a UID outside the dictionary may be any text: not told."""
    known = f"{uid.UID(syntax).name} ({syntax})" if syntax in uid.UID_dictionary else "not one of the standard"
    detail = f"transfer syntax is {known}, which is not decoded here"
    return UnsupportedImageError(Reason.DICOM_UNSUPPORTED_TRANSFER_SYNTAX, origin, detail)


@contextmanager
def parsing(origin: str, what: str) -> Iterator[None]:
    """Turn what pydicom raises into an error that quotes nothing: its messages carry the values of elements."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ElementError as exc:
        raise corrupt(origin, str(exc)) from None
    except PYDICOM_ERRORS as exc:
        raise corrupt(origin, f"{what} cannot be read ({type(exc).__name__})") from None


def _begins_with_elements(payload: bytes, order: str) -> bool:
    first = _element_at(payload, 0, order)
    if first is None or first.group not in _FIRST_GROUPS:
        return False
    second = _element_at(payload, first.end, order)
    return second is not None and second.tag > first.tag and second.group <= _LAST_GROUP


@dataclass(frozen=True, slots=True)
class _Element:
    tag: int
    value: bytes
    end: int

    @property
    def group(self) -> int:
        return self.tag >> 16


def _element_at(payload: bytes, offset: int, order: str = "<", *, even: bool = True) -> _Element | None:
    """Read one element, or give None where there is no plausible one; big endian needs an explicit VR."""
    if offset + HEADER_BYTES > len(payload):
        return None
    group, element = struct.unpack_from(f"{order}HH", payload, offset)
    vr, start = payload[offset + 4 : offset + 6], offset + 8
    if vr in SHORT_VRS:
        (length,) = struct.unpack_from(f"{order}H", payload, offset + 6)
    elif vr in LONG_VRS and start + 4 <= len(payload):
        (length,) = struct.unpack_from(f"{order}I", payload, start)
        start += 4
    elif order == "<":  # implicit VR
        (length,) = struct.unpack_from("<I", payload, offset + 4)
    else:
        return None
    if (even and length % 2) or start + length > len(payload):
        return None
    return _Element(group << 16 | element, payload[start : start + length], start + length)


def _skip_meta(payload: bytes) -> tuple[int, uid.UID | None]:
    """Give where the data set begins, and the transfer syntax of the file meta information; None where it names none.

    A second one begins where tags stop ascending. The group length of the first alone does not tell: it is often wrong.
    """
    offset = _PREAMBLE_BYTES + len(_MAGIC) if payload.startswith(_MAGIC, _PREAMBLE_BYTES) else 0
    syntax, last, is_first = None, -1, True
    for _ in range(_MAX_META_ELEMENTS):
        element = _element_at(payload, offset, even=False)
        if element is None or element.group != _META_GROUP:
            return offset, syntax or None
        is_first = is_first and element.tag > last
        if element.tag == _META_SYNTAX and is_first:
            syntax = uid.UID(element.value.rstrip(b"\0 ").decode("ascii", "replace"))
        last, offset = element.tag, element.end
    msg = f"the file meta information has more than {_MAX_META_ELEMENTS} elements"
    raise ElementError(msg)


def _guess_encoding(header: bytes, declared: uid.UID | None) -> Encoding:
    """Tell how the data set is written by its first element; the transfer syntax decides the order of bytes alone."""
    implicit = not has_vr(header)
    if declared is None:  # no data set begins with a group of 256 or more, as 8 in big endian would be
        return Encoding(implicit, ">" if not implicit and header[0] == 0 < header[1] else "<")
    return Encoding(implicit, ">" if declared == uid.ExplicitVRBigEndian else "<")


def _pixel_header(payload: bytes, offset: int, order: str) -> tuple[int, str, int, int]:
    """Read the header of the element of the pixels: (tag, VR, length, offset of the value).

    The VR is explicit where its letters are there: read as the length of implicit VR they would give an odd number.
    """
    group, element = struct.unpack_from(f"{order}HH", payload, offset)
    vr = payload[offset + 4 : offset + 6]
    if vr in LONG_VRS:
        (length,) = struct.unpack_from(f"{order}I", payload, offset + 8)
        return group << 16 | element, vr.decode() if vr in _PIXEL_VRS else "OW", length, offset + 12
    (length,) = struct.unpack_from(f"{order}I", payload, offset + 4)
    return group << 16 | element, "OW", length, offset + 8
