"""A report as an HL7 v2.5.1 message, ORU^R01, and what the receiver answers.

References
----------
HL7 v2.5.1, chapters 2 (escape sequences, acknowledgement) and 7 (ORU, OBR, OBX); IHE RAD-28 for the UIDs as OBX.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from streaming.reports.report import MAKER, Report

ENCODING = "utf-8"

_SPECIAL = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FORESEEN_CHARS = 20
"""Of MSH-10 and MSA-2, as version 2.5.1 has them."""
_OWN = "99XRAY"
"""Name of our own coding system."""
_SERVICE = ("18748-4", "Diagnostic imaging study", "LN")
_STUDY_UID = ("113014", "DICOM Study", "DCM")
_INSTANCE_UID = ("121126", "Source Image", "DCM")


class Answer(StrEnum):
    """What a receiver says of a message."""

    ACCEPTED = "accepted"
    FAILED = "failed"
    REJECTED = "rejected"


_ANSWERS = {
    "AA": Answer.ACCEPTED,
    "CA": Answer.ACCEPTED,
    "AE": Answer.FAILED,
    "CE": Answer.FAILED,
    "AR": Answer.REJECTED,
    "CR": Answer.REJECTED,
}


@dataclass(frozen=True, slots=True)
class Parties:
    """What a message says of who sends and who receives.

    Parameters
    ----------
    sending_facility, receiving_application, receiving_facility : str
        MSH-4 to MSH-6.
    patient_authority : str
        Who gives out the patient's ids, in PID-3.
    processing : str
        MSH-11: P, T or D.
    """

    sending_facility: str
    receiving_application: str
    receiving_facility: str
    patient_authority: str
    processing: str


def to_message(report: Report, parties: Parties) -> bytes:
    """Make the message of a report.

    Parameters
    ----------
    report : Report
        It. Its key is the message's control id (MSH-10), so that a repetition is known by it.
    parties : Parties
        Sender and receiver.

    Returns
    -------
    bytes
        UTF-8, segments ended by carriage returns. The same report gives the same bytes.
    """
    said, known = report.prediction, report.identity
    status = "P" if report.correction is None else "C"
    issued = _time(report.issued_at)
    header = [
        "MSH|^~\\&",
        _escape(MAKER),
        _escape(parties.sending_facility),
        _escape(parties.receiving_application),
        _escape(parties.receiving_facility),
        issued,
        "",
        "ORU^R01^ORU_R01",
        report.key,
        parties.processing,
        "2.5.1",
        *[""] * 5,
        "UNICODE UTF-8",
    ]
    patient = _join(known.patient_id.own, "", "", parties.patient_authority, "MR")
    # A name is wanted, and the crosswalk has none: U says that it is not told.
    lines = [header, ["PID", "1", "", patient, "", "^^^^^^U"]]
    request = ["OBR", "1", "", _join(said.event_id, MAKER), _join(*_SERVICE), "", "", _time(said.received_at)]
    request += [*[""] * 10, _escape(known.accession_number.own), "", "", "", issued, "", "RAD", status]
    lines.append(request)
    lines += [["NTE", str(i), "L", _escape(text)] for i, text in enumerate((report.conclusion, *report.notes), start=1)]
    lines += _results(report, status)
    return b"".join("|".join(line).rstrip("|").encode(ENCODING, "replace") + b"\r" for line in lines)


def _results(report: Report, status: str) -> list[list[str]]:
    said, known = report.prediction, report.identity
    finding = (said.finding, f"{said.finding}, by a model", _OWN)
    rows = [("CWE", finding, "" if report.label is None else _join(report.label, report.label, _OWN))]
    if report.probability is not None:
        rows.append(("NM", ("probability", f"Probability of {said.finding}", _OWN), f"{report.probability:.6f}"))
    rows += [
        ("ST", ("model", "Model: name, version and hash", _OWN), _escape(report.model)),
        ("ST", _STUDY_UID, _escape(known.study_uid.own)),
        ("ST", _INSTANCE_UID, _escape(known.sop_uid.own)),
    ]
    # X: there is no result. What is undecided must not read like a finding.
    states = ["X" if report.label is None else status, *[status] * (len(rows) - 1)]
    device = _join(report.device_uid, "", report.device_uid, "ISO")
    return [
        [
            "OBX",
            str(i),
            kind,
            _join(*code),
            "1",
            value,
            *[""] * 5,
            state,
            "",
            "",
            _time(said.received_at),
            "",
            "",
            "",
            device,
        ]
        for i, ((kind, code, value), state) in enumerate(zip(rows, states, strict=True), start=1)
    ]


def read_answer(message: bytes, control_id: str) -> Answer | None:
    """Read what a receiver answered; None where it is no answer to this message.

    Its texts are not read: they may quote the patient's data.
    """
    segments = message.decode(ENCODING, "replace").replace("\n", "\r").split("\r")
    acknowledged = next((line.split(line[3]) for line in segments if line.startswith("MSA") and len(line) > 3), [])  # noqa: PLR2004
    if len(acknowledged) < 3 or not _names(acknowledged[2].strip(), control_id):  # noqa: PLR2004
        return None
    return _ANSWERS.get(acknowledged[1].strip())


def _names(given: str, control_id: str) -> bool:
    """Tell whether an answer names a message; a receiver may know no more of its id than version 2.5.1 foresees."""
    return given == control_id or (len(given) == _FORESEEN_CHARS and control_id.startswith(given))


def _join(*components: str) -> str:
    return "^".join(map(_escape, components)).rstrip("^")


def _escape(text: str) -> str:
    """Escape what would be read as structure, MLLP's own bytes among it."""
    escaped = "".join(_SPECIAL.get(char, char) for char in text)
    return _CONTROL.sub(lambda found: f"\\X{found[0].encode(ENCODING).hex().upper()}\\", escaped)


def _time(moment: datetime) -> str:
    return f"{moment:%Y%m%d%H%M%S}.{moment.microsecond // 1000:03d}+0000"
