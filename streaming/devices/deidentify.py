"""De-identification: what of an object may name a patient is removed, or replaced by a pseudonym.

One direction: ``bytes -> format -> what decoding needs of it -> bytes``. It is a keep list: what nobody has thought of
is gone. Pixels are as they were, so what is burned into them stays; an image that says so itself is flagged.

References
----------
DICOM PS3.15 annex E (Basic Application Confidentiality Profile).
"""

import re
from dataclasses import dataclass, field
from threading import Lock

from schemas.envelope import BURNED_IN
from sparkdl.image.decode import find_media_type
from sparkdl.image.dicomfile import DicomFile, parsing, read_code, read_dicom
from sparkdl.image.limits import DICOM, PNG, DecodeLimits
from streaming.devices.dicomelements import read_text
from streaming.devices.dicomobjects import Dates, deidentify_object
from streaming.devices.identity import Identity
from streaming.devices.pseudonyms import Pseudonyms
from streaming.devices.rasters import clean_jpeg_file, clean_png

_UID = re.compile(r"[0-9.]{1,64}")

_LIMITS = DecodeLimits()

_ONE_AT_A_TIME = Lock()
"""What reads files keeps the warnings of its libraries off the log, for they quote patients' data; Python can do that
for one thread at a time only. Nearly all the while it holds the interpreter's lock anyway."""


@dataclass(frozen=True, slots=True)
class Deidentified:
    """An object to publish.

    Parameters
    ----------
    payload : bytes
        The file.
    media_type : str
        ``"image/png"``, ``"image/jpeg"`` or ``"application/dicom"``.
    image_id : str or None
        Its SOP Instance UID, of de-identified ones the pseudonym; None where it has none.
    flags : tuple of str
        ``schemas.envelope.BURNED_IN`` or none.
    identity : Identity or None
        What was replaced, for the crosswalk; None of PNG and JPEG, and where nothing was.
    named : tuple of str or None
        SOP Class UID and SOP Instance UID as the object had them, empty where it had none; None of PNG and JPEG.
    """

    payload: bytes
    media_type: str
    image_id: str | None
    flags: tuple[str, ...] = ()
    identity: Identity | None = None
    named: tuple[str, str] | None = field(default=None, repr=False)


class Deidentifier:
    """De-identifies objects, each one by itself: the same bytes always give the same bytes.

    Parameters
    ----------
    pseudonyms : Pseudonyms
        With another key all pseudonyms change, and so all bytes.
    dates : {"cut", "shift"}
        Whether a DICOM object's dates are removed, or moved back by a number of days that is the patient's own.
    limits : DecodeLimits
        Of who decodes the images: what that refuses by the header is refused here with the same reason.
    """

    def __init__(self, pseudonyms: Pseudonyms, *, dates: Dates = "cut", limits: DecodeLimits = _LIMITS) -> None:
        self._pseudonyms = pseudonyms
        self._dates: Dates = dates
        self._limits = limits

    def deidentify(self, payload: bytes, *, origin: str) -> Deidentified:
        """De-identify one PNG, JPEG or DICOM file; it decodes to the same pixels.

        Parameters
        ----------
        payload : bytes
            The file.
        origin : str
            Where it came from, for errors.

        Returns
        -------
        Deidentified
            Safe to use by several threads, as this method is.

        Raises
        ------
        ContractError
            ``EMPTY_PAYLOAD``, ``PAYLOAD_TOO_LARGE``.
        UnsupportedImageError
            It is of no format that is read, or of a kind of which nobody knows what has to go: colour or several frames
            in DICOM, another transfer syntax.
        CorruptImageError
            It does not parse, or ends too early.

        Notes
        -----
        What is hidden in pixels or compressed data stays: text in the picture, in unused entries of a palette, in
        bits of native pixels that no overlay claims, behind the rows in the data of a PNG, behind a segment of RLE.
        """
        media_type = find_media_type(payload, origin=origin, limits=self._limits)
        with _ONE_AT_A_TIME:
            if media_type == DICOM:
                return self._deidentify_dicom(payload, origin)
            clean = clean_png if media_type == PNG else clean_jpeg_file
            return Deidentified(clean(payload, origin=origin, limits=self._limits), media_type, None)

    def _deidentify_dicom(self, payload: bytes, origin: str) -> Deidentified:
        file = read_dicom(payload, origin=origin)
        cleaned, identity = deidentify_object(
            file, payload, pseudonyms=self._pseudonyms, dates=self._dates, limits=self._limits, origin=origin
        )
        image_id = identity.sop_uid.pseudonym if identity.sop_uid.own else None
        return Deidentified(cleaned, DICOM, image_id, _find_flags(file, origin), identity, _read_name(file, origin))


def examine(payload: bytes, *, origin: str, limits: DecodeLimits = _LIMITS) -> Deidentified:
    """Tell what a file is, where it is not to be de-identified.

    Parameters
    ----------
    payload, origin
        As `Deidentifier.deidentify` takes them.
    limits : DecodeLimits
        Its ``max_payload_bytes`` counts.

    Returns
    -------
    Deidentified
        With the payload as it is.

    Raises
    ------
    ContractError, UnsupportedImageError, CorruptImageError
        It is empty, too large, of no format that is read, or DICOM whose elements do not parse.
    """
    media_type = find_media_type(payload, origin=origin, limits=limits)
    if media_type != DICOM:
        return Deidentified(payload, media_type, None)
    with _ONE_AT_A_TIME:
        file = read_dicom(payload, origin=origin)
        named = _read_name(file, origin)
        # What is no UID may be any text, and an event's id is shown everywhere.
        image_id = named[1] if _UID.fullmatch(named[1]) else None
        return Deidentified(payload, DICOM, image_id, _find_flags(file, origin), named=named)


def _read_name(file: DicomFile, origin: str) -> tuple[str, str]:
    with parsing(origin, "the SOP class and instance"):
        return read_text(file.dataset, "SOPClassUID"), read_text(file.dataset, "SOPInstanceUID")


def _find_flags(file: DicomFile, origin: str) -> tuple[str, ...]:
    with parsing(origin, "the burned-in annotation"):
        return (BURNED_IN,) if read_code(file.dataset, "BurnedInAnnotation") == "YES" else ()
