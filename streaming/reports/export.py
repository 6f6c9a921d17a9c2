"""Reports of predictions that there are already, as files."""

import os
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from schemas.envelope import DISCLAIMER
from schemas.errors import SettingsError
from schemas.folders import make_folder, sync_folder
from streaming.reports.past import (
    choose_correction,
    read_table_corrections,
    read_table_predictions,
    read_topic_corrections,
    read_topic_predictions,
)
from streaming.reports.report import Correction, LeftOut, NotReportedError, Prediction, Report
from streaming.reports.reporter import Reporter
from streaming.reports.reportfolder import ReportFolder, render
from streaming.reports.target import AwayError
from streaming.settings import ReportsSettings, StreamSettings

ExportFormat = Literal["fhir", "ndjson", "sr", "hl7"]
NDJSON_FILE = "reports.ndjson"

_UPDATED = frozenset(("fhir", "ndjson"))
"""Formats in which an amended report takes the former one's place; in the others it follows it."""


@dataclass
class ExportSummary:
    """What an export has written.

    Parameters
    ----------
    written : int
        Reports.
    amended : int
        Those of them that a person's finding amends.
    left_out : Counter
        Predictions without a report, by reason.
    """

    written: int = 0
    amended: int = 0
    left_out: Counter[LeftOut] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        left_out = {reason.value: count for reason, count in sorted(self.left_out.items())}
        return {"written": self.written, "amended": self.amended, "left_out": left_out, "notice": DISCLAIMER}


def export_reports(
    settings: StreamSettings,
    folder: Path,
    *,
    form: ExportFormat = "fhir",
    since: datetime | None = None,
    from_tables: bool = False,
    demonstration: bool = False,
    progress: Callable[[int], None] = lambda written: None,
) -> ExportSummary:
    """Write a report of each prediction that there is.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    folder : Path
        Where to; made where it is missing, for its owner alone. What it has of the same names is replaced.
    form : {"fhir", "ndjson", "sr", "hl7"}
        A Bundle for each image, all Bundles in one file, a DICOM object or an HL7 message for each.
    since : datetime, optional
        Only predictions published from then on; from tables, of images received from then on.
    from_tables : bool
        Read the archive's tables instead of the topics.
    demonstration : bool
        Whether predictions of demonstration models are reported too.
    progress : callable
        Called with how many are written.

    Returns
    -------
    ExportSummary
        Counts.

    Raises
    ------
    SettingsError
        There is no crosswalk, or the folder cannot be written to.
    BrokerError, TableError
        The predictions cannot be read.
    """
    warnings.simplefilter("ignore")  # those of pydicom quote what they write, and so a patient's name
    reporter = Reporter(settings, demonstration=demonstration)
    if from_tables:
        corrections = read_table_corrections(settings.tables_folder)
        predictions = read_table_predictions(settings.tables_folder, since)
    else:
        corrections = read_topic_corrections(settings.kafka)
        predictions = read_topic_predictions(settings.kafka, since)
    summary, seen = ExportSummary(), set[str]()
    with ExitStack() as stack:
        files = _open_files(folder, settings.reports, form, stack)
        for found in predictions:
            if isinstance(found, NotReportedError):
                summary.left_out[found.reason] += 1
            elif found.event_id not in seen:
                seen.add(found.event_id)
                _export(found, choose_correction(corrections, found), reporter, files, summary, form=form)
                progress(summary.written)
    return summary


class _Writes(Protocol):
    def send(self, report: Report) -> None: ...


class _Lines:
    """One file with a Bundle in each line; it is there once all of them are."""

    def __init__(self, folder: Path, settings: ReportsSettings, stack: ExitStack) -> None:
        self._settings = settings
        self._aside = folder / f".{NDJSON_FILE}-{os.getpid()}"
        try:
            make_folder(folder)
            descriptor = os.open(self._aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as exc:
            raise _unwritable(folder, exc.strerror) from exc
        self._stream = open(descriptor, "wb")
        stack.push(self._end)

    def send(self, report: Report) -> None:
        try:
            self._stream.write(render(report, self._settings, "fhir") + b"\n")
        except OSError as exc:
            raise AwayError(exc.strerror) from exc

    def _end(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stream:
            if kind is not None:
                self._aside.unlink()
                return
            try:
                self._stream.flush()
                os.fsync(self._stream.fileno())
                self._aside.replace(self._aside.with_name(NDJSON_FILE))
                sync_folder(self._aside.parent)
            except OSError as exc:
                raise _unwritable(self._aside.parent, exc.strerror) from exc


def _open_files(folder: Path, settings: ReportsSettings, form: ExportFormat, stack: ExitStack) -> _Writes:
    return _Lines(folder, settings, stack) if form == "ndjson" else ReportFolder(folder, settings, form)


def _export(
    prediction: Prediction,
    correction: Correction | None,
    reporter: Reporter,
    files: _Writes,
    summary: ExportSummary,
    *,
    form: ExportFormat,
) -> None:
    steps = [None] if correction is None else [correction] if form in _UPDATED else [None, correction]
    try:
        for step in steps:
            files.send(reporter.make(prediction, step))
            summary.written += 1
            summary.amended += step is not None
    except NotReportedError as exc:
        summary.left_out[exc.reason] += 1
    except AwayError as exc:
        msg = f"the reports cannot be written: {exc}"
        raise SettingsError(msg) from exc


def _unwritable(folder: Path, why: str | None) -> SettingsError:
    return SettingsError(f"cannot write to {folder}: {why}")
