"""Objects as devices make them: DICOM of three SOP classes, PNG and JPEG, each with a marker wherever a name could be.

References
----------
DICOM PS3.3 A.2 (CR), A.26 (DX), A.8.1 (Secondary Capture), C.9.2 (overlays); PS3.5 7.8 (private elements), A.4
(encapsulated frames); PS3.10 7.1 (file meta information).
"""

import io
from dataclasses import dataclass

from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from xray.simulator.habits import BASELINE, DX, EXTENDED, NATIVE, SC, Habits
from xray.simulator.patient import SHORT, Patient, derive_uid, draw_patient
from xray.simulator.pictures import Pictures

_PREAMBLE_BYTES = 128
_PRIVATE_GROUP = 0x0099
_OVERLAY_GROUP = 0x6000
_OVERLAY_SIDE_PX = 64


@dataclass(frozen=True)
class Shot:
    """An image that a device takes: enough to make the object anew for each try.

    Parameters
    ----------
    habits : Habits
        Of the device.
    number : int
        Of the image, among all of all devices.
    study : int
        Number of the first image of its study.
    """

    habits: Habits
    number: int
    study: int

    @property
    def sop_uid(self) -> str:
        """Its SOP Instance UID."""
        return derive_uid(self.habits.seed, "instance", self.number)

    @property
    def patient(self) -> Patient:
        """Whom it shows."""
        return draw_patient(self.habits.seed, self.study)

    @property
    def file_name(self) -> str:
        """What a device calls the file; such names are about patients."""
        return f"{self.patient.marker}_{self.number}"


def write_dataset_bytes(shot: Shot, pictures: Pictures, syntax: str, *, pixels: bool = True) -> bytes:
    """Write an object as C-STORE sends it: the data set alone, in a transfer syntax.

    Parameters
    ----------
    shot : Shot
        The image.
    pictures : Pictures
        What it shows.
    syntax : str
        Transfer syntax UID.
    pixels : bool
        False leaves the pixel data out.
    """
    dataset = make_dataset(shot)
    if pixels:
        dataset.update(_make_pixels(shot, pictures, syntax))
    buffer = DicomBytesIO()
    buffer.is_little_endian = syntax != ExplicitVRBigEndian
    buffer.is_implicit_VR = syntax == ImplicitVRLittleEndian
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())


def write_file_bytes(shot: Shot, pictures: Pictures, syntax: str, *, pixels: bool = True) -> bytes:
    """Write an object as a DICOM file, PS3.10: its preamble, too, may hold anything."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = shot.habits.sop_class, shot.sop_uid
    meta.TransferSyntaxUID = syntax
    meta.SourceApplicationEntityTitle = shot.patient.marker[:SHORT]
    buffer = DicomBytesIO()
    buffer.write(shot.patient.marker.encode()[:_PREAMBLE_BYTES].ljust(_PREAMBLE_BYTES, b"\0") + b"DICM")
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return bytes(buffer.getvalue()) + write_dataset_bytes(shot, pictures, syntax, pixels=pixels)


def write_png(shot: Shot, pictures: Pictures) -> bytes:
    """Write an image as PNG, with the person's name in a text chunk."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", f"chest of {shot.patient.name}")
    return _save(shot, pictures, "PNG", pnginfo=text)


def write_jpeg(shot: Shot, pictures: Pictures) -> bytes:
    """Write an image as JPEG, with the person's name in a comment."""
    return _save(shot, pictures, "JPEG", quality=92, comment=f"chest of {shot.patient.name}".encode())


def _save(shot: Shot, pictures: Pictures, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pictures.stamp(shot.number)).save(buffer, name, **options)
    return buffer.getvalue()


def make_dataset(shot: Shot) -> Dataset:
    """Make all of an object but its pixels."""
    dataset = Dataset()
    for module in (_patient_and_study, _equipment, _image, _private_and_overlay):
        dataset.update(module(shot))
    return dataset


def _patient_and_study(shot: Shot) -> Dataset:
    patient, marker, seed = shot.patient, shot.patient.marker, shot.habits.seed
    dataset = Dataset()
    dataset.PatientName, dataset.PatientID, dataset.OtherPatientNames = patient.name, marker, f"{marker}^OTHER"
    dataset.PatientBirthDate, dataset.PatientSex = f"{patient.born:%Y%m%d}", patient.sex
    dataset.PatientAddress, dataset.PatientTelephoneNumbers = f"{marker} street 1", marker[:SHORT]
    dataset.PatientComments = f"comment on {marker}"
    other = Dataset()
    other.PatientID, other.IssuerOfPatientID = marker, f"issuer {marker}"
    dataset.OtherPatientIDsSequence = [other]
    dataset.StudyInstanceUID = derive_uid(seed, "study", shot.study)
    dataset.SeriesInstanceUID = derive_uid(seed, "series", shot.study)
    day = f"{patient.examined:%Y%m%d}"
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = day
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = dataset.AcquisitionTime = "101500"
    dataset.StudyID = dataset.AccessionNumber = marker[:SHORT]
    dataset.StudyDescription, dataset.ReferringPhysicianName = f"chest of {marker}", f"{marker}^DOCTOR"
    request = Dataset()
    request.ScheduledProcedureStepDescription, request.RequestedProcedureID = f"request {marker}", marker[:SHORT]
    dataset.RequestAttributesSequence = [request]
    return dataset


def _equipment(shot: Shot) -> Dataset:
    habits, marker = shot.habits, shot.patient.marker
    dataset = Dataset()
    dataset.Modality, dataset.SeriesNumber = habits.modality, 1
    dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", "PA"
    dataset.Manufacturer, dataset.ManufacturerModelName = habits.maker, habits.model
    dataset.StationName, dataset.InstitutionName = marker[:SHORT], f"hospital of {marker}"
    dataset.OperatorsName, dataset.DeviceSerialNumber = f"{marker}^OPERATOR", f"{habits.number:05d}"
    dataset.SoftwareVersions = "1.0"
    if habits.sop_class == SC:
        dataset.ConversionType = "DF"
    else:
        dataset.KVP = 120
    return dataset


def _image(shot: Shot) -> Dataset:
    habits = shot.habits
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = habits.sop_class, shot.sop_uid
    dataset.InstanceNumber = shot.number - shot.study + 1
    dataset.ImageType = ["DERIVED" if habits.sop_class == SC else "ORIGINAL", "PRIMARY"]
    dataset.ImageComments, dataset.BurnedInAnnotation = f"image of {shot.patient.marker}", "NO"
    dataset.PatientOrientation = ["L", "F"]
    if habits.sop_class == DX:
        dataset.PresentationIntentType, dataset.PixelIntensityRelationship = "FOR PRESENTATION", "LOG"
        dataset.PresentationLUTShape = "INVERSE" if habits.inverted else "IDENTITY"
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    if habits.sop_class != SC:
        dataset.WindowCenter, dataset.WindowWidth = 1 << (habits.bits - 1), 1 << habits.bits
    return dataset


def _private_and_overlay(shot: Shot) -> Dataset:
    marker = shot.patient.marker
    dataset = Dataset()
    block = dataset.private_block(_PRIVATE_GROUP, "IMAGINED PRIVATE", create=True)
    block.add_new(0x01, "LO", marker)
    block.add_new(0x02, "OB", marker.encode() + b"\0" * (len(marker) % 2))
    inner = Dataset()
    inner.PatientName = shot.patient.name
    block.add_new(0x03, "SQ", [inner])
    plane = marker.encode().ljust(_OVERLAY_SIDE_PX**2 // 8, b"\0")
    for element, vr, value in (
        (0x0010, "US", _OVERLAY_SIDE_PX),
        (0x0011, "US", _OVERLAY_SIDE_PX),
        (0x0040, "CS", "G"),
        (0x0050, "SS", [1, 1]),
        (0x0100, "US", 1),
        (0x0102, "US", 0),
        (0x0022, "LO", f"overlay {marker}"),
        (0x1500, "LO", f"label {marker}"),
        (0x3000, "OW", plane),
        (0x4000, "LT", f"comment {marker}"),
    ):
        dataset.add_new((_OVERLAY_GROUP, element), vr, value)
    return dataset


def _make_pixels(shot: Shot, pictures: Pictures, syntax: str) -> Dataset:
    habits = shot.habits
    frame, (height, width) = pictures.frame(shot.number, syntax, habits.bits, inverted=habits.inverted)
    allocated = 8 if habits.bits == 8 else 16  # noqa: PLR2004
    dataset = Dataset()
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if habits.inverted else "MONOCHROME2"
    dataset.Rows, dataset.Columns = height, width
    dataset.BitsAllocated, dataset.BitsStored = allocated, habits.bits
    dataset.HighBit, dataset.PixelRepresentation = habits.bits - 1, 0
    if syntax in {BASELINE, EXTENDED}:
        dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", 5
        dataset.LossyImageCompressionMethod = "ISO_10918_1"
    else:
        dataset.LossyImageCompression = "00"
    native = syntax in NATIVE
    dataset.PixelData = frame + b"\0" * (len(frame) % 2) if native else encapsulate([frame])
    dataset["PixelData"].VR = "OW" if native and allocated == 16 else "OB"  # noqa: PLR2004
    dataset["PixelData"].is_undefined_length = not native
    return dataset
