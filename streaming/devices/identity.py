"""Whose image it is, beside what takes the place of it: what a report needs to find its way back."""

import re
from dataclasses import dataclass, field

_UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_UID_CHARS = 64


@dataclass(frozen=True, slots=True)
class Known:
    """A name and its pseudonym.

    Parameters
    ----------
    own : str
        As the object had it; never in a log, a metric or an error. Empty where it had none.
    pseudonym : str
        What stands in its place; empty where nothing does.
    """

    own: str = field(repr=False)
    pseudonym: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What the crosswalk keeps of an image.

    Parameters
    ----------
    patient_id, accession_number, study_uid, series_uid, sop_uid : Known
        As they were, and their pseudonyms.
    sop_class : str
        The object's SOP Class UID, without which nothing may refer to it. Empty where it is not known.
    """

    patient_id: Known
    accession_number: Known
    study_uid: Known
    series_uid: Known
    sop_uid: Known
    sop_class: str = ""


def is_uid(text: str) -> bool:
    """Tell whether a text is a UID as DICOM has them (PS3.5, 9.1)."""
    return len(text) <= _UID_CHARS and _UID.fullmatch(text) is not None
