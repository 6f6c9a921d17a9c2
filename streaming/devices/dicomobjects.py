"""DICOM objects without what names a patient: the elements that are kept, pseudonyms, and the pixels as they are.

References
----------
DICOM PS3.15 annex E (Basic Application Confidentiality Profile, and its option Retain Longitudinal Temporal Information
with Modified Dates); PS3.16 CID 7050 (the codes of both); PS3.3 C.9.2 (Overlay Plane); PS3.5 section 8 (pixels) and A.4
(encapsulation); PS3.10 section 7.1 (file meta information).
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from hashlib import sha256
from typing import Any, Final, Literal

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from schemas.errors import RecordError
from sparkdl.image.codecs import JPEG_SYNTAXES, frame_size
from sparkdl.image.dicom import PixelLayout, check_header
from sparkdl.image.dicomfile import (
    NATIVE_SYNTAXES,
    DicomFile,
    corrupt,
    join_fragments,
    parsing,
)
from sparkdl.image.elements import Encoding
from sparkdl.image.limits import DecodeLimits
from streaming.devices.dicomelements import keep_elements, read_text, tag_of
from streaming.devices.elementwriter import PIXEL_DATA, Elements, write_elements, write_fragments, write_header
from streaming.devices.hiddentext import StreamError, clean_jpeg, clean_jpeg2000
from streaming.devices.identity import Identity, Known, is_uid
from streaming.devices.pseudonyms import Pseudonyms

Dates = Literal["cut", "shift"]

_DATES = {"StudyDate": "StudyTime", "SeriesDate": "SeriesTime", "AcquisitionDate": "AcquisitionTime"}
_DATES |= {"ContentDate": "ContentTime"}
"""Dates that an image may have, and the time that goes with each."""

_DATE, _TIME = re.compile(r"[0-9]{8}"), re.compile(r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?")

_METHOD: Final = b"XRAY: keep list, keyed pseudonyms"
_BASIC_PROFILE: Final = (b"113100", b"Basic Application Confidentiality Profile")
_MODIFIED_DATES: Final = (b"113107", b"Retain Longitudinal Temporal Information Modified Dates Option")

_PREAMBLE: Final = bytes(128) + b"DICM"
_META_ENCODING: Final = Encoding(implicit=False, order="<")
_IMPLEMENTATION_UID: Final = b"2.25.131903842715520446373640120613870931262"
_IMPLEMENTATION_NAME: Final = b"XRAY"

_OVERLAY_GROUPS = range(0x6000, 0x6100, 2)
_OVERLAY_BIT_POSITION = 0x0102
_BYTE = 8


def deidentify_object(
    file: DicomFile, payload: bytes, *, pseudonyms: Pseudonyms, dates: Dates, limits: DecodeLimits, origin: str
) -> tuple[bytes, Identity]:
    """Write a DICOM image anew, without what names its patient.

    Parameters
    ----------
    file : DicomFile
        Of `sparkdl.image.dicomfile.read_dicom`.
    payload : bytes
        What it was read from.
    pseudonyms : Pseudonyms
        Of patient, UIDs and accession number.
    dates : {"cut", "shift"}
        What becomes of dates.
    limits : DecodeLimits
        Of who decodes the image.
    origin : str
        Where it came from, for errors.

    Returns
    -------
    tuple of bytes and Identity
        The file, in its transfer syntax; and what was replaced.

    Raises
    ------
    UnsupportedImageError, CorruptImageError
        It is no image of one gray frame, or its pixels do not end where they should: nobody knows then what else is in
        them. The reason is that of decoding with the same limits. Modality and purpose alone refuse nothing.
    """
    encoding = _encoding_of(file)
    try:
        layout = check_header(file, origin=origin, limits=replace(limits, modalities=None, for_processing=True))
        with parsing(origin, "the display parameters"):
            elements = keep_elements(file.dataset, layout, limits, order=encoding.order, origin=origin)
        pixels = list(_write_pixels(file, layout, encoding, origin))
    except RecordError:
        check_header(file, origin=origin, limits=limits)  # of several faults, that which decoding names
        raise
    with parsing(origin, "the data set"):
        identity = _identify(file.dataset, payload, pseudonyms)
        elements |= _name(identity, file.dataset, pseudonyms)
        elements |= _date(identity, file.dataset, pseudonyms, dates)
    elements |= _mark(dates)
    meta = _write_meta(file.syntax, elements)
    return b"".join([_PREAMBLE, meta, write_elements(elements, encoding), *pixels]), identity


def _encoding_of(file: DicomFile) -> Encoding:
    order = ">" if file.syntax == uid.ExplicitVRBigEndian else "<"
    return Encoding(implicit=file.syntax == uid.ImplicitVRLittleEndian, order=order)


def _write_meta(syntax: str, elements: Elements) -> bytes:
    meta: Elements = {
        0x00020001: ("OB", b"\0\1"),
        0x00020002: elements[tag_of("SOPClassUID")],
        0x00020003: elements[tag_of("SOPInstanceUID")],
        0x00020010: ("UI", str(syntax).encode()),
        0x00020012: ("UI", _IMPLEMENTATION_UID),
        0x00020013: ("SH", _IMPLEMENTATION_NAME),
    }
    written = write_elements(meta, _META_ENCODING)
    return write_elements({0x00020000: ("UL", struct.pack("<I", len(written)))}, _META_ENCODING) + written


# --- who and when -----------------------------------------------------------------------------------------------------


def _identify(dataset: Dataset, payload: bytes, pseudonyms: Pseudonyms) -> Identity:
    sop_uid, patient, accession = (
        read_text(dataset, keyword) for keyword in ("SOPInstanceUID", "PatientID", "AccessionNumber")
    )
    own = sop_uid or sha256(payload).hexdigest()
    sop_class = read_text(dataset, "SOPClassUID")

    def name_part(keyword: str) -> Known:
        text = read_text(dataset, keyword)  # an image without its study's UID is of a study of its own
        return Known(text, pseudonyms.uid(text or f"{keyword} of {own}"))

    return Identity(
        patient_id=Known(patient, pseudonyms.identifier(patient) if patient else ""),
        accession_number=Known(accession, pseudonyms.identifier(accession) if accession else ""),
        study_uid=name_part("StudyInstanceUID"),
        series_uid=name_part("SeriesInstanceUID"),
        sop_uid=Known(sop_uid, pseudonyms.uid(own)),
        sop_class=sop_class if is_uid(sop_class) else "",  # no other text, as it may be shown
    )


def _name(identity: Identity, dataset: Dataset, pseudonyms: Pseudonyms) -> Elements:
    named: Elements = {
        tag_of("PatientID"): ("LO", identity.patient_id.pseudonym.encode()),
        tag_of("AccessionNumber"): ("SH", identity.accession_number.pseudonym.encode()),
        tag_of("StudyInstanceUID"): ("UI", identity.study_uid.pseudonym.encode()),
        tag_of("SeriesInstanceUID"): ("UI", identity.series_uid.pseudonym.encode()),
        tag_of("SOPInstanceUID"): ("UI", identity.sop_uid.pseudonym.encode()),
    }
    if frame_of_reference := read_text(dataset, "FrameOfReferenceUID"):
        named[tag_of("FrameOfReferenceUID")] = ("UI", pseudonyms.uid(frame_of_reference).encode())
    return named


def _date(identity: Identity, dataset: Dataset, pseudonyms: Pseudonyms, dates: Dates) -> Elements:
    """Give the dates and times; those of the study have to be there, if empty."""
    dated: Elements = {tag_of("StudyDate"): ("DA", b""), tag_of("StudyTime"): ("TM", b"")}
    if dates == "cut":
        return dated
    days = pseudonyms.days(identity.patient_id.own or identity.study_uid.pseudonym)
    for day, time in _DATES.items():
        if shifted := _shift(read_text(dataset, day), days):
            dated[tag_of(day)] = ("DA", shifted)
            if _TIME.fullmatch(text := read_text(dataset, time)):
                dated[tag_of(time)] = ("TM", text.encode())
    return dated


def _shift(text: str, days: int) -> bytes:
    """Move a date; empty where the text is none, or the day before the first."""
    if not _DATE.fullmatch(text):
        return b""
    try:
        moved = date(int(text[:4]), int(text[4:6]), int(text[6:])) + timedelta(days)
    except (ValueError, OverflowError):
        return b""
    return moved.isoformat().replace("-", "").encode()


def _mark(dates: Dates) -> Elements:
    """Say that the object is de-identified, and how. Not 113101: pixels are as they were."""
    codes = [_BASIC_PROFILE, *([_MODIFIED_DATES] if dates == "shift" else [])]
    items: list[Elements] = [
        {0x00080100: ("SH", code), 0x00080102: ("SH", b"DCM"), 0x00080104: ("LO", meaning)} for code, meaning in codes
    ]
    return {
        tag_of("PatientIdentityRemoved"): ("CS", b"YES"),
        tag_of("DeidentificationMethod"): ("LO", _METHOD),
        tag_of("DeidentificationMethodCodeSequence"): ("SQ", items),
        tag_of("LongitudinalTemporalInformationModified"): ("CS", b"MODIFIED" if dates == "shift" else b"REMOVED"),
    }


# --- pixels -----------------------------------------------------------------------------------------------------------


def _write_pixels(
    file: DicomFile, layout: PixelLayout, encoding: Encoding, origin: str
) -> Iterator[bytes | memoryview]:
    """Give the element of the pixels in pieces; nothing behind it is kept."""
    if file.syntax in NATIVE_SYNTAXES:
        pixels = _take_native(file, layout, encoding, origin)
        vr = "OW" if layout.bits_allocated > _BYTE or file.pixel_vr == "OW" else "OB"
        yield write_header(PIXEL_DATA, vr, len(pixels) + len(pixels) % 2, encoding)
        yield pixels
        yield bytes(len(pixels) % 2)
    else:
        yield from write_fragments(_take_frame(file, origin))


def _take_native(file: DicomFile, layout: PixelLayout, encoding: Encoding, origin: str) -> bytes | memoryview:
    """Cut behind the last pixel: an element may be longer than its pixels are."""
    if file.is_encapsulated:
        raise corrupt(origin, f"pixel data is compressed, but the transfer syntax is {file.syntax.name}")
    wanted = layout.rows * layout.columns * layout.bits_allocated // _BYTE
    if len(file.pixels) < wanted:
        raise corrupt(origin, f"pixel data has {len(file.pixels)} bytes, expected {wanted}")
    if not encoding.little:
        wanted += wanted % 2  # the last of an odd number of 8-bit pixels may be the low byte of a word
    pixels = file.pixels[:wanted]
    mask = _find_overlay_bits(file.dataset, layout, encoding)
    if not mask:
        return pixels
    words: np.ndarray[Any, Any] = np.frombuffer(pixels, f"{encoding.order}u{layout.bits_allocated // _BYTE}")
    kept = words.dtype.type(~mask & ((1 << layout.bits_allocated) - 1))
    return bytes((words & kept).astype(words.dtype).data)


def _find_overlay_bits(dataset: Dataset, layout: PixelLayout, encoding: Encoding) -> int:
    """Give the bits of a pixel beside the stored ones that overlays say to be theirs: drawings and texts of users."""
    positions = set[int]()
    for group in _OVERLAY_GROUPS:
        tag = group << 16 | _OVERLAY_BIT_POSITION
        value = dataset.get_item(tag).value if tag in dataset else None
        if isinstance(value, bytes) and len(value) >= 2:  # noqa: PLR2004
            positions.add(struct.unpack_from(f"{encoding.order}H", value)[0])
    lowest = layout.high_bit + 1 - layout.bits_stored
    stored = range(lowest, layout.high_bit + 1)
    return sum(1 << bit for bit in positions if bit < layout.bits_allocated and bit not in stored)


def _take_frame(file: DicomFile, origin: str) -> bytes:
    """Give the compressed frame without the texts that it carries."""
    frame = join_fragments(file.pixels, origin=origin)
    if file.syntax == uid.RLELossless:
        return frame
    if frame_size(frame, file.syntax) is None:
        raise corrupt(origin, f"compressed pixels have no {file.syntax.name} header")
    try:
        return clean_jpeg(frame) if file.syntax in JPEG_SYNTAXES else clean_jpeg2000(frame)
    except StreamError as exc:
        raise corrupt(origin, f"pixels do not decode as {file.syntax.name} ({exc})") from None
