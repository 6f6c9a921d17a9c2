"""Findings that a person has confirmed, for retraining: their table, and why an event about one is left out.

`xray label` writes the table, not the stream.
"""

from enum import StrEnum

from schemas.documents import Table

_COLUMNS = {
    "sha256": ("string", "of the image's bytes, hexadecimal, the key of this table"),
    "label": ("string", "the confirmed finding, one of the served model's labels"),
    "patient_id": ("string", "pseudonym of the person on the image; null where it is not known"),
    "confirmed_by": ("string", "who confirmed it; null where it was not said"),
    "confirmed_at": ("timestamp", "when it was confirmed, UTC; where it was not said, when it was recorded"),
    "recorded_at": ("timestamp", "when this row was written, UTC"),
}

LABELS_TABLE = Table(
    name="labels",
    columns={name: kind for name, (kind, _) in _COLUMNS.items()},
    comments={name: meaning for name, (_, meaning) in _COLUMNS.items()},
    partition_by=(),
    comment="One row per image whose finding was confirmed; the newest confirmation. Older ones are in older versions.",
)
"""Columns may be added."""


class LabelReason(StrEnum):
    """Why an event of the labels topic became a dead letter: one closed set for headers, counts and tests."""

    TOMBSTONE = "tombstone"
    NOT_JSON = "not_json"
    STRUCTURED_MODE = "structured_mode"
    INVALID_FIELD = "invalid_field"
    UNKNOWN_LABEL = "unknown_label"
    INVALID_TIME = "invalid_time"
    AMBIGUOUS_IMAGE = "ambiguous_image"
    UNKNOWN_IMAGE = "unknown_image"
