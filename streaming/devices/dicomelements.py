"""The elements of a DICOM image that de-identification keeps.

No text of a file gets through. What is kept is a number, a word of a closed set, or a look-up table that was read and
is written anew; everything else is gone, whether anybody has thought of it or not. What decoding would find damaged it
finds damaged afterwards, but not by the same bytes: `UNREADABLE` takes their place.

References
----------
DICOM PS3.3 C.7 and C.8 (modules), PS3.15 E.1 (what is to be removed).
"""

import re
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from pydicom import uid
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from schemas.errors import Reason, UnsupportedImageError
from sparkdl.image.dicom import KNOWN_MODALITIES, PixelLayout
from sparkdl.image.dicomfile import PYDICOM_ERRORS, read_code, read_decimals
from sparkdl.image.grayscale import read_padding
from sparkdl.image.limits import DecodeLimits
from sparkdl.image.lut import read_table
from streaming.devices.elementwriter import Elements

UNREADABLE: Final = b"UNREADABLE"
"""In place of a value that decoding does not understand; it understands this as little."""

_WORDS: Final[Mapping[str, frozenset[str]]] = {
    "ConversionType": frozenset("DV DI DF WSD SD SI DRW SYN".split()),
    "PresentationIntentType": frozenset({"FOR PRESENTATION", "FOR PROCESSING"}),
    "BodyPartExamined": frozenset("CHEST RIB CLAVICLE SHOULDER SSPINE TSPINE STERNUM ABDOMEN".split()),
    "ViewPosition": frozenset("AP PA LL RL RLD LLD RLO LLO".split()),
    "Laterality": frozenset("L R".split()),
    "ImageLaterality": frozenset("L R U B".split()),
    "BurnedInAnnotation": frozenset({"YES", "NO"}),
    "RecognizableVisualFeatures": frozenset({"YES", "NO"}),
    "PixelIntensityRelationship": frozenset("LIN LOG DISP".split()),
    "LossyImageCompression": frozenset({"00", "01"}),
    "LossyImageCompressionMethod": frozenset("ISO_10918_1 ISO_14495_1 ISO_15444_1 ISO_15444_15".split()),
    "PresentationLUTShape": frozenset({"IDENTITY", "INVERSE"}),
}
"""Elements of VR CS, and the words that they may have."""

_IMAGE_TYPE = (frozenset({"ORIGINAL", "DERIVED"}), frozenset({"PRIMARY", "SECONDARY"}))
_VOI_FUNCTIONS = frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"})

_DECIMALS: Final[Mapping[str, int]] = {
    "ImagerPixelSpacing": 2,
    "NominalScannedPixelSpacing": 2,
    "PixelSpacing": 2,
    "LossyImageCompressionRatio": 1,
}
"""Elements of VR DS that tell of pixels, and how many numbers they have; decoding does not read them."""

_RENDERING: Final = ("RescaleIntercept", "RescaleSlope", "WindowCenter", "WindowWidth")
"""Elements of VR DS that decoding reads, with as many numbers as they have."""

_DIRECTIONS = re.compile(r"[AFHLPR]{1,3}\\[AFHLPR]{1,3}")

_SECONDARY_CAPTURE = str(uid.SecondaryCaptureImageStorage)

_EMPTY: Final = {
    "ReferringPhysicianName": "PN",
    "Manufacturer": "LO",
    "PatientName": "PN",
    "PatientBirthDate": "DA",
    "PatientSex": "CS",
    "BodyPartExamined": "CS",
    "ViewPosition": "CS",
    "StudyID": "SH",
    "SeriesNumber": "IS",
    "InstanceNumber": "IS",
    "PatientOrientation": "CS",
}
"""Elements that an image has to have, with a value or without."""

_EMPTY_OF_DX: Final = {
    "AnatomicRegionSequence": "SQ",
    "PositionerType": "CS",
    "DetectorType": "CS",
    "AcquisitionContextSequence": "SQ",
}

_DX_CLASSES = frozenset({uid.DigitalXRayImageStorageForPresentation, uid.DigitalXRayImageStorageForProcessing})


def tag_of(keyword: str) -> int:
    """Give an element's tag."""
    tag = tag_for_keyword(keyword)
    if tag is None:  # a mistake of the program
        raise KeyError(keyword)
    return int(tag)


def read_text(dataset: Dataset, keyword: str) -> str:
    """Give an element's text as it is in the file, without the padding around it; empty where it is absent."""
    tag = tag_of(keyword)
    value = dataset.get_item(tag).value if tag in dataset else None
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8").strip(" \0")
        except UnicodeDecodeError:
            return value.decode("latin-1").strip(" \0")
    return "" if value is None else str(value).strip(" \0")


def keep_elements(dataset: Dataset, layout: PixelLayout, limits: DecodeLimits, *, order: str, origin: str) -> Elements:
    """Give what is kept of an image, but for what names it: UIDs, patient, dates.

    Parameters
    ----------
    dataset : Dataset
        As `sparkdl.image.dicomfile.read_dicom` gives it.
    layout : PixelLayout
        Of its pixels.
    limits : DecodeLimits
        Its ``modalities`` are kept beside those of the standard.
    order : str
        Of bytes: ``"<"`` or ``">"``.
    origin : str
        Where it came from, for errors.

    Raises
    ------
    UnsupportedImageError
        ``DICOM_FOREIGN_MODALITY``: a word that is no modality.
    ValueError, KeyError and others of `PYDICOM_ERRORS`
        A look-up table does not parse.
    """
    kept: Elements = {}
    sop_class = class_of(dataset)
    empty = _EMPTY | (_EMPTY_OF_DX if sop_class in _DX_CLASSES else {})
    for keyword, vr in empty.items():
        kept[tag_of(keyword)] = (vr, [] if vr == "SQ" else b"")
    kept[tag_of("SOPClassUID")] = ("UI", sop_class.encode())
    _keep_modality(kept, dataset, limits, origin)
    for keyword, read in KEPT.items():
        value = read(dataset, keyword)
        if value is not None:
            kept[tag_of(keyword)] = ("DS" if keyword in _DECIMALS or keyword in _RENDERING else "CS", value)
    _keep_layout(kept, dataset, layout, order)
    _keep_tables(kept, dataset, layout, order)
    return kept


def class_of(dataset: Dataset) -> str:
    """Give the SOP class; one that is not in the standard, and so may be any text, counts as Secondary Capture."""
    found = str(dataset.get("SOPClassUID") or "").strip(" \0")
    is_known = found in uid.UID_dictionary and uid.UID_dictionary[found][1] == "SOP Class"
    return found if is_known else _SECONDARY_CAPTURE


def _keep_modality(kept: Elements, dataset: Dataset, limits: DecodeLimits, origin: str) -> None:
    modality = read_code(dataset, "Modality")
    if modality and modality not in KNOWN_MODALITIES and modality not in (limits.modalities or ()):
        detail = "modality is something else, expected a word of the standard or none"
        raise UnsupportedImageError(Reason.DICOM_FOREIGN_MODALITY, origin, detail)
    kept[tag_of("Modality")] = ("CS", modality.encode())


def _keep_layout(kept: Elements, dataset: Dataset, layout: PixelLayout, order: str) -> None:
    numbers = {
        "SamplesPerPixel": 1,
        "Rows": layout.rows,
        "Columns": layout.columns,
        "BitsAllocated": layout.bits_allocated,
        "BitsStored": layout.bits_stored,
        "HighBit": layout.high_bit,
        "PixelRepresentation": int(layout.signed),
    }
    word = struct.Struct(f"{order}H")
    kept |= {tag_of(keyword): ("US", word.pack(number)) for keyword, number in numbers.items()}
    kept[tag_of("PhotometricInterpretation")] = ("CS", read_code(dataset, "PhotometricInterpretation").encode())
    padding = zip(("PixelPaddingValue", "PixelPaddingRangeLimit"), read_padding(dataset), strict=False)
    for keyword, number in padding:
        kept[tag_of(keyword)] = ("SS" if layout.signed else "US", word.pack(number))
    sign = dataset.get("PixelIntensityRelationshipSign")
    if sign in (1, -1):
        kept[tag_of("PixelIntensityRelationshipSign")] = ("SS", struct.pack(f"{order}h", sign))
    if tag_of("RescaleSlope") in kept:
        kept[tag_of("RescaleType")] = ("LO", b"US")  # unspecified: what it says else is text


def _keep_tables(kept: Elements, dataset: Dataset, layout: PixelLayout, order: str) -> None:
    """Write the look-up tables anew, in one item each: they may hold texts and any other elements beside the table."""
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        table = read_table(dataset, keyword)
        if table is None:
            continue
        count = len(table.entries) % (1 << 16)  # 0 stands for 65,536
        item: Elements = {
            tag_of("LUTDescriptor"): (
                "SS" if layout.signed else "US",
                struct.pack(f"{order}3H", count, table.first, table.declared_bits),
            ),
            tag_of("LUTData"): ("OW", table.entries.astype(f"{order}u2").tobytes()),
        }
        if keyword == "ModalityLUTSequence":
            item[tag_of("ModalityLUTType")] = ("LO", b"US")
        kept[tag_of(keyword)] = ("SQ", [item])


# --- values -----------------------------------------------------------------------------------------------------------


def _read_word(dataset: Dataset, keyword: str) -> bytes | None:
    word = read_code(dataset, keyword)
    return word.encode() if word in _WORDS[keyword] else None


def _read_image_type(dataset: Dataset, keyword: str) -> bytes | None:
    """Give its first two words; further ones are anybody's own."""
    words = [word.strip() for word in read_text(dataset, keyword).upper().split("\\")[:2]]
    good = len(words) == len(_IMAGE_TYPE) and all(word in known for word, known in zip(words, _IMAGE_TYPE, strict=True))
    return "\\".join(words).encode() if good else None


def _read_function(dataset: Dataset, keyword: str) -> bytes | None:
    word = read_code(dataset, keyword)
    return word.encode() if word in _VOI_FUNCTIONS else UNREADABLE if word else None


def _read_directions(dataset: Dataset, keyword: str) -> bytes | None:
    text = read_text(dataset, keyword)
    return text.encode() if _DIRECTIONS.fullmatch(text) else None


def _read_decimals(dataset: Dataset, keyword: str) -> bytes | None:
    """Give as many numbers as there should be; none where there are others."""
    try:
        numbers = read_decimals(dataset, keyword)
    except PYDICOM_ERRORS:
        return None
    return _join(numbers) if len(numbers) == _DECIMALS[keyword] and None not in numbers else None


def _read_rendering(dataset: Dataset, keyword: str) -> bytes | None:
    try:
        numbers = read_decimals(dataset, keyword)
    except PYDICOM_ERRORS:
        return UNREADABLE
    return _join(numbers) if numbers else None


def _join(numbers: Iterable[float | None]) -> bytes:
    return "\\".join("" if number is None else _decimal(number) for number in numbers).encode()


def _decimal(number: float) -> str:
    """Write a number so that it is read as the same one, even where that takes more than the 16 characters of a DS."""
    return repr(number).removesuffix(".0")


KEPT: Final[dict[str, Callable[[Dataset, str], bytes | None]]] = {
    "ImageType": _read_image_type,
    **dict.fromkeys(_WORDS, _read_word),
    "PatientOrientation": _read_directions,
    **dict.fromkeys(_DECIMALS, _read_decimals),
    **dict.fromkeys(_RENDERING, _read_rendering),
    "VOILUTFunction": _read_function,
}
"""The keep list: elements of VR CS and DS, and what reads them; None leaves an element out."""
