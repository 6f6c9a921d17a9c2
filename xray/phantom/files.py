"""A radiograph as PNG, JPEG and DICOM.

References
----------
DICOM PS3.3 A.2 (CR Image IOD) for :func:`encode_dicom`.
"""

import io
from datetime import date, timedelta

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from xray.phantom.chance import STUDY, happens, open_stream
from xray.phantom.patient import draw_anatomy
from xray.phantom.radiograph import SOURCE, Radiograph


def encode_png(radiograph: Radiograph) -> bytes:
    """Encode as an 8-bit grey PNG, without loss."""
    return _encode(radiograph, "PNG")


def encode_jpeg(radiograph: Radiograph, *, quality: int = 92) -> bytes:
    """Encode as an 8-bit grey JPEG; ``quality`` is Pillow's, 1 to 95."""
    return _encode(radiograph, "JPEG", quality=quality)


def _encode(radiograph: Radiograph, name: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(radiograph.pixels).save(buffer, name, **options)
    return buffer.getvalue()


def encode_dicom(radiograph: Radiograph) -> bytes:
    """Encode as a single-frame Computed Radiography image, DICOM Part 10, explicit VR little endian.

    12 bits are stored in 16. About a third of the seeds is MONOCHROME1. Window and rescale bring the stored values back
    to ``radiograph.pixels`` within one grey level. Names, identifiers and dates are invented from the seed; the UIDs
    are the same each time.
    """
    dataset = FileDataset(None, {}, preamble=b"\0" * 128, file_meta=_file_meta(radiograph))
    for module in (_patient_and_study, _series_and_equipment, _image_and_pixels):
        dataset.update(module(radiograph))
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _uid(radiograph: Radiograph, level: str) -> str:
    """Make a UID that is the same each time; study and series belong to the seed, the instance to the pixels too."""
    instance = [radiograph.finding, str(radiograph.pixels.shape)] if level == "instance" else []
    return str(generate_uid(entropy_srcs=[SOURCE, level, str(radiograph.seed), *instance]))


def _file_meta(radiograph: Radiograph) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = _uid(radiograph, "instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def _patient_and_study(radiograph: Radiograph) -> Dataset:
    rng = open_stream(radiograph.seed, STUDY)
    day = date(2020, 3, 1) + timedelta(days=int(rng.integers(0, 1400)))
    dataset = Dataset()
    dataset.PatientName = f"PHANTOM^{radiograph.seed:010d}"
    dataset.PatientID = radiograph.patient_id
    dataset.PatientBirthDate = f"{day.year - int(rng.integers(25, 85))}0101"
    dataset.PatientSex = draw_anatomy(radiograph.seed).sex
    dataset.StudyInstanceUID = _uid(radiograph, "study")
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = f"{day:%Y%m%d}"
    clock = f"{int(rng.integers(7, 20)):02d}{int(rng.integers(0, 60)):02d}00"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = dataset.AcquisitionTime = clock
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "", ""
    dataset.StudyDescription = "Chest, synthetic"
    return dataset


def _series_and_equipment(radiograph: Radiograph) -> Dataset:
    dataset = Dataset()
    dataset.Modality = "CR"
    dataset.SeriesInstanceUID = _uid(radiograph, "series")
    dataset.SeriesNumber = 1
    dataset.BodyPartExamined, dataset.ViewPosition, dataset.Laterality = "CHEST", "PA", ""
    dataset.Manufacturer, dataset.ManufacturerModelName = "xray-stream", SOURCE
    dataset.KVP = 120
    return dataset


def _image_and_pixels(radiograph: Radiograph) -> Dataset:
    inverted = happens(open_stream(radiograph.seed, STUDY), 1 / 3)
    dataset = Dataset()
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = _uid(radiograph, "instance")
    dataset.InstanceNumber = 1
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.PatientOrientation = ["L", "F"]
    dataset.BurnedInAnnotation = "NO"  # the side marker names nobody
    dataset.LossyImageCompression = "00"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.Rows, dataset.Columns = radiograph.pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.WindowCenter, dataset.WindowWidth = 2048, _STORED_PER_GREY * 255 + 1
    dataset.PixelData = _stored_values(radiograph.pixels, inverted=inverted).tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


_STORED_PER_GREY = 14  # 255 greys take 3570 of the 4096 stored values: the window has something to do


def _stored_values(pixels: NDArray[np.uint8], *, inverted: bool) -> NDArray[np.uint16]:
    grey = 255 - pixels if inverted else pixels
    lowest = 2048 - _STORED_PER_GREY * 255 // 2
    return (grey.astype("<u2") * _STORED_PER_GREY + lowest).astype("<u2")
