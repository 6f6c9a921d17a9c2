"""A report as a DICOM object: Comprehensive 3D SR, TID 1500, in the study of the image.

One measurement group (TID 1501) has the finding as a qualitative evaluation, its probability as a number, the image,
the algorithm (TID 4019) and an id for tracking. The document is preliminary, partial and not verified.

References
----------
DICOM PS3.16 TID 1500, 1501, 4019, 1004; PS3.3 A.35.13, C.17.2; IHE AI Results (docs/reports.md).
"""

import io

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom import Dataset, dcmwrite
from pydicom.sr.codedict import codes
from pydicom.uid import UID, Comprehensive3DSRStorage

from schemas.envelope import DISCLAIMER
from streaming.devices.identity import is_uid
from streaming.reports.report import MAKER, LeftOut, NotReportedError, Report, derive_uid

SOP_CLASS: UID = Comprehensive3DSRStorage

_OWN = "99XRAY"
"""Name of our own coding scheme."""
_CODE_CHARS = 16  # of VR SH
_TEXT_CHARS = 64  # of VR LO
_SERIES_NUMBER = 9900
"""Far behind the series of a modality."""
_UTF8 = "ISO_IR 192"
_MOST_NUMBER = 2**31
"""Bound of VR IS."""


def to_dataset(report: Report) -> Dataset:
    """Make the object of a report.

    Parameters
    ----------
    report : Report
        It. SOP Instance UID, series and all times follow from it.

    Returns
    -------
    pydicom.Dataset
        With file meta information. The same report gives the same one.

    Raises
    ------
    NotReportedError
        The SOP class of the image is not known.
    """
    if not is_uid(report.identity.sop_class):
        raise NotReportedError(LeftOut.NO_SOP_CLASS)
    said = report.prediction
    made = Comprehensive3DSR(
        evidence=[_image(report)],
        content=_content(report)[0],
        series_instance_uid=_series_uid(report),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=derive_uid("sr", report.key),
        # Follows from the report: a counter would give a repetition another number.
        instance_number=1 + int(report.key[:8], 16) % (_MOST_NUMBER - 1),
        manufacturer=MAKER,
        manufacturer_model_name=_cut(said.model_name),
        software_versions=_cut(said.model_version),
        device_serial_number=said.model_sha256,
        series_description="AI result, preliminary, research use only",
        previous_versions=[_former(report)] if report.correction is not None else None,
        content_date=report.issued_at.date(),
        content_time=report.issued_at.time(),
        series_date=said.scored_at.date(),
        series_time=said.scored_at.time(),
        specific_character_set=_UTF8,
    )
    made.InstanceCreationDate = f"{report.issued_at:%Y%m%d}"
    made.InstanceCreationTime = f"{report.issued_at:%H%M%S}"
    made.TimezoneOffsetFromUTC = "+0000"
    made.DeviceUID = report.device_uid
    for equipment in made.ContributingEquipmentSequence:
        equipment.ContributionDateTime = f"{report.issued_at:%Y%m%d%H%M%S.%f}"  # highdicom's is the present moment
    return made


def to_file(dataset: Dataset) -> bytes:
    """Write an object as a DICOM file. The same object gives the same bytes."""
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def _content(report: Report) -> MeasurementReport:
    said = report.prediction
    observer = ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=report.device_uid,
            name=said.model_name,
            manufacturer_name=MAKER,
            model_name=f"{said.model_name} {said.model_version}",
            serial_number=said.model_sha256,
        ),
    )
    return MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=CodedConcept("18748-4", "LN", "Diagnostic imaging study"),
        imaging_measurements=[_group(report)],
        title=codes.DCM.ImagingMeasurementReport,
    )


def _group(report: Report) -> MeasurementsAndQualitativeEvaluations:
    said = report.prediction
    algorithm = AlgorithmIdentification(
        name=said.model_name,
        version=said.model_version,
        parameters=[f"SHA-256 {said.model_sha256}", *report.notes],
        manufacturer=MAKER,
    )
    measurements = None
    if report.probability is not None:
        name = CodedConcept("probability", _OWN, _cut(f"Probability of {said.finding}, by the model"))
        measurements = [Measurement(name=name, value=report.probability, unit=codes.UCUM.NoUnits)]
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=derive_uid("tracking", said.event_id), identifier=f"{said.finding} {said.event_id}"
        ),
        algorithm_id=algorithm,
        measurements=measurements,
        qualitative_evaluations=_evaluations(report),
        source_images=[SourceImageForMeasurementGroup(report.identity.sop_class, report.identity.sop_uid.own)],
    )


def _evaluations(report: Report) -> list[QualitativeEvaluation]:
    said = report.prediction
    name = _own_code(said.finding, f"{said.finding}, by a model")
    undecided = _own_code("undecided", f"Undecided: {', '.join(said.flags)}")
    found = [QualitativeEvaluation(name, undecided if report.label is None else _own_code(report.label))]
    if report.correction is not None:
        model = _own_code(said.label) if said.is_decided else undecided
        found.append(QualitativeEvaluation(_own_code("model-finding", "What the model had said"), model))
    notice = _own_code("research", DISCLAIMER)
    return [*found, QualitativeEvaluation(_own_code("notice", "Notice"), notice)]


def _own_code(text: str, meaning: str | None = None) -> CodedConcept:
    """Give a code of our own; a value may have 16 characters, its meaning 64."""
    value = text if len(text) <= _CODE_CHARS and "\\" not in text else derive_uid("code", text)[-_CODE_CHARS:]
    return CodedConcept(value, _OWN, _cut(meaning or text))


def _cut(text: str) -> str:
    """Make a text fit for VR LO, in which a backslash would make two of it."""
    return text.replace("\\", "/")[:_TEXT_CHARS]


def _series_uid(report: Report) -> str:
    """All reports of one model on one study are a series."""
    return derive_uid("series", report.identity.study_uid.own, report.device_uid)


def _image(report: Report) -> Dataset:
    """Give what the document takes over from the image. A name, a birth date and a sex nobody has kept."""
    known = report.identity
    image = Dataset()
    image.SOPClassUID = known.sop_class
    image.SOPInstanceUID = known.sop_uid.own
    image.StudyInstanceUID = known.study_uid.own
    image.SeriesInstanceUID = known.series_uid.own
    image.PatientID = known.patient_id.own
    image.AccessionNumber = known.accession_number.own
    image.SpecificCharacterSet = _UTF8
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"):
        setattr(image, keyword, "")
    image.Rows = image.Columns = 1
    return image


def _former(report: Report) -> Dataset:
    """Give the preliminary document, which an amended one follows."""
    former = Dataset()
    former.SOPClassUID = SOP_CLASS
    former.SOPInstanceUID = derive_uid("sr", report.prediction.event_id)
    former.StudyInstanceUID = report.identity.study_uid.own
    former.SeriesInstanceUID = _series_uid(report)
    return former
