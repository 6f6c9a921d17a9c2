"""What is reported of an image, whatever the format: whose it is, what the model says, and what a person said later."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from schemas.envelope import DISCLAIMER, derive_event_id
from streaming.devices.identity import Identity, is_uid

MAKER = "xray-stream"
"""Who makes the reports, in every format."""

_HEX_ID = re.compile(r"[0-9a-f]{32}")
_HEX_SHA256 = re.compile(r"[0-9a-f]{64}")


class LeftOut(StrEnum):
    """Why there is no report of a prediction: one closed set for metrics, output and tests."""

    NOT_A_PREDICTION = "not_a_prediction"
    DEMONSTRATION = "demonstration"
    NOT_FROM_THE_GATEWAY = "not_from_the_gateway"
    NO_PATIENT = "no_patient"
    SEVERAL_PATIENTS = "several_patients"
    NO_STUDY = "no_study"
    NO_SOP_CLASS = "no_sop_class"
    UNKNOWN_LABEL = "unknown_label"

    @property
    def meaning(self) -> str:
        """What it means, for people."""
        return _MEANINGS[self]


_MEANINGS = {
    LeftOut.NOT_A_PREDICTION: "records of the topic that are no prediction of this release",
    LeftOut.DEMONSTRATION: "predictions of a demonstration model; --demonstration reports them too",
    LeftOut.NOT_FROM_THE_GATEWAY: (
        "images that are not in the crosswalk: they did not come through a gateway that keeps it, and nobody knows "
        "whose they are"
    ),
    LeftOut.NO_PATIENT: "images that came to the gateway without a patient id",
    LeftOut.SEVERAL_PATIENTS: (
        "images that came to the gateway under more than one patient id: nobody can tell whose they are"
    ),
    LeftOut.NO_STUDY: "images that came to the gateway without the UID of a study, a series or an instance",
    LeftOut.NO_SOP_CLASS: "images of which the crosswalk knows no SOP class, without which DICOM cannot refer to them",
    LeftOut.UNKNOWN_LABEL: "confirmed findings that are none of the model's labels",
}


class NotReportedError(Exception):
    """There is no report of this one; nothing is wrong with the others.

    Parameters
    ----------
    reason : LeftOut
        Why.
    """

    def __init__(self, reason: LeftOut) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is reported of a prediction's event.

    Parameters
    ----------
    event_id : str
        Its own; the report's identifier in every format.
    source, image_id : str
        ``ce_source`` and ``ce_id`` of the image, the latter its pseudonymous SOP Instance UID where the gateway took it
        in. Empty where it had none.
    sha256 : str
        Of the image's bytes.
    model_name, model_version, model_sha256 : str
        Which model.
    label : str
        What it says.
    labels : tuple of str
        What it could have said: the model's classes.
    finding : str
        Whose probability is the score.
    probability : float
        The score, from 0 to 1.
    operating_point : str
        How the threshold was chosen.
    flags, remarks : tuple of str
        Why it is not to be acted on, and what else is to be known.
    received_at, scored_at : datetime
        When the image was received and when it was scored, UTC.
    """

    event_id: str
    source: str
    image_id: str
    sha256: str
    model_name: str
    model_version: str
    model_sha256: str
    label: str
    labels: tuple[str, ...]
    finding: str
    probability: float
    operating_point: str
    flags: tuple[str, ...]
    remarks: tuple[str, ...]
    received_at: datetime
    scored_at: datetime

    @property
    def names(self) -> tuple[str, ...]:
        """How a confirmed finding can name the image; see `streaming.reports.findings`."""
        by_bytes, by_event = name_image("sha256", self.sha256), name_image("event_id", self.event_id)
        return by_bytes, by_event, name_image("source and id", self.source, self.image_id)

    @property
    def is_decided(self) -> bool:
        """Whether it has a finding: a flagged one has none."""
        return not self.flags


@dataclass(frozen=True, slots=True)
class Correction:
    """A finding that a person has confirmed.

    Parameters
    ----------
    label : str
        The finding.
    confirmed_at : datetime
        When, UTC.
    """

    label: str
    confirmed_at: datetime


@dataclass(frozen=True, slots=True)
class Report:
    """One report of one image: preliminary, or amended by a person's finding.

    Parameters
    ----------
    prediction : Prediction
        What the model says.
    identity : Identity
        Whose image it is; it names a patient.
    correction : Correction, optional
        What a person has confirmed; the report is then the former one amended.
    """

    prediction: Prediction
    identity: Identity
    correction: Correction | None = None

    @property
    def key(self) -> str:
        """Give what tells this report from all others, the former ones of the same image too: 32 hexadecimal digits."""
        return report_key(self.prediction.event_id, self.correction)

    @property
    def label(self) -> str | None:
        """The finding: a person's where there is one, else the model's; None where that is undecided."""
        if self.correction is not None:
            return self.correction.label
        return self.prediction.label if self.prediction.is_decided else None

    @property
    def probability(self) -> float | None:
        """The model's, of `Prediction.finding`; None where it is undecided."""
        return self.prediction.probability if self.prediction.is_decided else None

    @property
    def issued_at(self) -> datetime:
        """When it was said: by the person, or by the model."""
        return self.prediction.scored_at if self.correction is None else self.correction.confirmed_at

    @property
    def device_uid(self) -> str:
        """The model as a device: another one at each retraining, since it follows from the hash of its files."""
        return derive_uid("device", self.prediction.model_sha256)

    @property
    def conclusion(self) -> str:
        """The report in one sentence or two, with what it must not be used for."""
        return f"{self._say_finding()} {DISCLAIMER}"

    @property
    def model(self) -> str:
        """Name, version and hash of the model, in words."""
        said = self.prediction
        return f"{said.model_name} {said.model_version}, SHA-256 {said.model_sha256}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What else a reader has to know, a sentence each."""
        said = self.prediction
        noted = [DISCLAIMER, f"Made by the model {self.model}. Not read by a physician before it was sent."]
        if said.is_decided:
            noted.append(f"Operating point: {said.operating_point}.")
        noted += [f"Remark: {word}." for word in said.remarks]
        return tuple(noted)

    def _say_finding(self) -> str:
        said = self.prediction
        if said.is_decided:
            model = f"{said.label} (probability of {said.finding}: {said.probability:.3f})"
        else:
            model = f"undecided ({', '.join(said.flags)}): no finding"
        if self.correction is None:
            return f"Preliminary, by a model: {model}."
        return f"Amended: a person has confirmed {self.correction.label}. The model had said: {model}."


def name_image(kind: str, *parts: str) -> str:
    """Give one name for each way in which an image can be named."""
    return derive_event_id(kind, *parts)


def report_key(event_id: str, correction: Correction | None) -> str:
    """Derive what tells one report from all others.

    Parameters
    ----------
    event_id : str
        Of the prediction; that of its first report is the same.
    correction : Correction or None
        Of an amended report.
    """
    if correction is None:
        return event_id
    return derive_event_id(event_id, correction.label, correction.confirmed_at.isoformat(), "correction")


def derive_uid(purpose: str, *parts: str) -> str:
    """Derive a UID under 2.25, always the same from the same parts; at most 44 characters."""
    return f"2.25.{derive_uuid(purpose, *parts).int}"


def derive_uuid(purpose: str, *parts: str) -> UUID:
    """Derive a UUID, always the same from the same parts."""
    return UUID(hex=derive_event_id("report", purpose, *parts), version=5)


def read_prediction(value: bytes | None, *, received_at: datetime, scored_at: datetime) -> Prediction:
    """Read the value of a record of the predictions topic.

    Parameters
    ----------
    value : bytes or None
        JSON; its schema is ``prediction``. Fields that are not known are ignored: a later release may have more.
    received_at, scored_at : datetime
        Of its headers, or of its row in the table.

    Raises
    ------
    NotReportedError
        It is no prediction.
    """
    try:
        return _from_event(json.loads(value or b""), received_at, scored_at)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as exc:
        raise NotReportedError(LeftOut.NOT_A_PREDICTION) from exc


def _from_event(event: dict[str, Any], received_at: datetime, scored_at: datetime) -> Prediction:
    image, model = event["image"], event["model"]
    found = Prediction(
        event_id=event["event_id"],
        source=image.get("source", ""),
        image_id=image.get("id", ""),
        sha256=image["sha256"],
        model_name=model["name"],
        model_version=model["version"],
        model_sha256=model["sha256"],
        label=event["label"],
        labels=tuple(event["probabilities"]),
        finding=event["positive_label"],
        probability=float(event["probabilities"][event["positive_label"]]),
        operating_point=event["operating_point"],
        flags=tuple(map(str, event.get("flags") or ())),
        remarks=tuple(map(str, event.get("remarks") or ())),
        received_at=received_at.astimezone(UTC),
        scored_at=scored_at.astimezone(UTC),
    )
    texts = (found.source, found.image_id, found.model_name, found.model_version, found.label, found.operating_point)
    if not all(isinstance(text, str) for text in (*texts, found.finding)) or not 0 <= found.probability <= 1:
        msg = "a field is of another type"
        raise ValueError(msg)
    for text in (*texts, found.finding, *found.labels, *found.flags, *found.remarks):
        text.encode()  # half of a surrogate pair is no text, and neither a ledger nor a target takes it
    if not (_HEX_ID.fullmatch(found.event_id) and all(map(_HEX_SHA256.fullmatch, (found.sha256, found.model_sha256)))):
        msg = "an id is none"
        raise ValueError(msg)
    return found


def check_identity(identity: Identity) -> None:
    """Refuse an image that no report can name.

    Raises
    ------
    NotReportedError
        It came without what a report has to name.
    """
    if not identity.patient_id.own.strip():
        raise NotReportedError(LeftOut.NO_PATIENT)
    if not all(is_uid(one.own) for one in (identity.study_uid, identity.series_uid, identity.sop_uid)):
        raise NotReportedError(LeftOut.NO_STUDY)
