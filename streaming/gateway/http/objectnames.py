"""Which object it is, by its sender's own UIDs: for an answer to the sender, and for nothing else.

References
----------
DICOM PS3.10 7.1 (file meta information), PS3.5 9.1 (UIDs).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from schemas.errors import CorruptImageError
from sparkdl.image.dicomfile import parsing
from sparkdl.image.elements import HEADER_BYTES, LONG_VRS, Encoding, has_vr, read_elements

HEAD_BYTES = 4096
"""The file meta information is within so many bytes: it has a dozen elements."""

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_MAX_UID = 64
_MOST_READ = _MAX_UID + 2
"""Of a text: one that is too long is none, rather than another UID; the padding may be one character more."""
_START = 132
_MAGIC = b"DICM"
_META_GROUP = 0x0002
_SOP_CLASS, _SOP_INSTANCE, _SYNTAX = 0x0002, 0x0003, 0x0010
_MAX_META = 1000


@dataclass(frozen=True, slots=True)
class ObjectNames:
    """UIDs of an object; None where it has none that can be read.

    Parameters
    ----------
    sop_class, sop_instance, study : str or None
        As DICOM has them: digits and dots, at most 64.
    """

    sop_class: str | None = None
    sop_instance: str | None = None
    study: str | None = None


def is_uid(text: str) -> bool:
    """Tell whether a text is a UID; leading zeros, which some devices write, are let through."""
    return len(text) <= _MAX_UID and _UID.fullmatch(text) is not None


def read_names(payload: bytes) -> ObjectNames:
    """Read the UIDs of a file.

    Parameters
    ----------
    payload : bytes
        All of it, or its first `HEAD_BYTES`, which give class and instance alone.

    Returns
    -------
    ObjectNames
        Those of the data set where it can be read, else those of the file meta information.
    """
    meta: dict[int, str] = {}
    start = _START if payload.startswith(_MAGIC, _START - len(_MAGIC)) else 0
    for element, value, end in _walk_meta(payload, start):
        meta.setdefault(element, value)
        start = end
    announced = ObjectNames(_uid(meta.get(_SOP_CLASS)), _uid(meta.get(_SOP_INSTANCE)))
    syntax = meta.get(_SYNTAX)
    if syntax == DeflatedExplicitVRLittleEndian:  # such objects are not taken: nobody inflates them to name them
        return announced
    try:
        with parsing("the object", "its UIDs"):
            dataset, _ = read_elements(payload, start, _encoding(payload[start : start + HEADER_BYTES], syntax))
            own = [_element(dataset, name) for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID")]
    except CorruptImageError:
        return announced
    return ObjectNames(own[0] or announced.sop_class, own[1] or announced.sop_instance, own[2])


def _walk_meta(payload: bytes, offset: int) -> Iterator[tuple[int, str, int]]:
    """Give element number, text and end of each element of the file meta information, which is explicit VR."""
    for _ in range(_MAX_META):
        if offset + HEADER_BYTES > len(payload):
            return
        group, element, vr, length = struct.unpack_from("<HH2sH", payload, offset)
        offset += HEADER_BYTES
        if vr in LONG_VRS and offset + 4 <= len(payload):
            (length,) = struct.unpack_from("<I", payload, offset)
            offset += 4
        if group != _META_GROUP or offset + length > len(payload):
            return
        text = payload[offset : offset + min(length, _MOST_READ)].decode("latin-1").rstrip("\0 ")
        yield element, text, offset + length
        offset += length


def _encoding(header: bytes, syntax: str | None) -> Encoding:
    if syntax == ExplicitVRBigEndian:
        return Encoding(implicit=False, order=">")
    return Encoding(implicit=syntax == ImplicitVRLittleEndian or not has_vr(header), order="<")


def _element(dataset: Dataset, keyword: str) -> str | None:
    value = dataset.get(keyword)
    return None if value is None else _uid(str(value).rstrip("\0 "))


def _uid(text: str | None) -> str | None:
    return text if text is not None and is_uid(text) else None
