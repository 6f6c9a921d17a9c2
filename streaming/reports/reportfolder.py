"""A folder as a target: a file for each report, for its owner alone, in one of the three formats."""

import os
from pathlib import Path
from typing import Literal

from schemas.folders import make_folder, sync_folder
from streaming.reports.fhir import to_bundle, to_json
from streaming.reports.hl7v2 import to_message
from streaming.reports.mllp import make_parties
from streaming.reports.report import Report
from streaming.reports.structuredreport import to_dataset, to_file
from streaming.reports.target import AwayError
from streaming.settings import ReportsSettings

Format = Literal["fhir", "sr", "hl7"]

_SUFFIXES: dict[Format, str] = {"fhir": "json", "sr": "dcm", "hl7": "hl7"}


class ReportFolder:
    """Writes files: ``EVENT_ID.json`` and, of an amended report in a format without updates, a file of its own.

    Parameters
    ----------
    folder : Path
        Made where it is missing, for its owner alone.
    settings : ReportsSettings
        What the formats want to know.
    form : {"fhir", "sr", "hl7"}
        Which format.
    """

    def __init__(self, folder: Path, settings: ReportsSettings, form: Format) -> None:
        self._folder = folder
        self._settings = settings
        self._form = form

    def send(self, report: Report) -> None:
        """See `Target.send`."""
        content = render(report, self._settings, self._form)
        # FHIR's has the identifier of the former one and takes its place; of the others each is a document.
        name = report.prediction.event_id if self._form == "fhir" else report.key
        try:
            self._write(f"{name}.{_SUFFIXES[self._form]}", content)
        except OSError as exc:
            raise AwayError(exc.strerror or type(exc).__name__) from exc

    def close(self) -> None:
        """See `Target.close`."""

    def _write(self, name: str, content: bytes) -> None:
        """Write aside and rename: nobody reads half a report; the name is on the disk too when this returns."""
        make_folder(self._folder)
        aside = self._folder / f".{name}-{os.getpid()}"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(self._folder / name)
        sync_folder(self._folder)


def render(report: Report, settings: ReportsSettings, form: Format) -> bytes:
    """Render a report as a file.

    Raises
    ------
    NotReportedError
        There is none in this format.
    """
    if form == "sr":
        return to_file(to_dataset(report))
    if form == "hl7":
        return to_message(report, make_parties(settings))
    bundle = to_bundle(report, patient_system=settings.patient_system, accession_system=settings.accession_system)
    return to_json(bundle)
