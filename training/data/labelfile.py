"""Confirmed findings: from a CSV file or from events into the Delta table ``labels``, one row for each image.

An image is known by its bytes' SHA-256, which the archive's features table has for every event id and every source and
id. The newest confirmation of an image counts; what it replaces stays readable in the table's older versions. All of a
file, or of a batch of events, is one commit, and the same again changes nothing. Needs no Spark.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from schemas.errors import DatasetError
from schemas.labels import LabelReason

KEYS = (("sha256",), ("event_id",), ("source", "id"))
"""What may name an image; of several in one file the first counts."""

OPTIONAL = ("patient_id", "confirmed_by", "confirmed_at")

HEX_DIGITS = {"sha256": 64, "event_id": 32}

CLOCK_SKEW = timedelta(days=1)

_NAMED_IN_ERROR = 5


@dataclass(frozen=True)
class Confirmation:
    """What one row of a file, or one event, says.

    Parameters
    ----------
    row : int
        Its line in the file, the header being 1; of an event its place in the batch, from 0.
    key : tuple of str
        What names the image, see ``KeyNames``.
    label : str
        The finding.
    patient_id, confirmed_by : str or None
        None where it is not said.
    confirmed_at : datetime or None
        With a time zone; None where it is not said.
    """

    row: int
    key: tuple[str, ...]
    label: str
    patient_id: str | None = None
    confirmed_by: str | None = None
    confirmed_at: datetime | None = None


@dataclass(frozen=True)
class LabelFile:
    """Confirmed findings that name their images in one way: a file of them, or some of a batch of events.

    Parameters
    ----------
    key_names : tuple of str
        Columns that name the image: ``("sha256",)``, ``("event_id",)`` or ``("source", "id")``.
    confirmations : tuple of Confirmation
        In the order of the file.
    unread_columns : tuple of str
        Columns that mean nothing here.
    """

    key_names: tuple[str, ...]
    confirmations: tuple[Confirmation, ...]
    unread_columns: tuple[str, ...] = ()


# --- the file ---------------------------------------------------------------------------------------------------------


def read_label_file(path: Path, labels: Sequence[str], *, now: datetime | None = None) -> LabelFile:
    """Read a CSV file of confirmed findings.

    Parameters
    ----------
    path : Path
        UTF-8, with a header: ``label``, and ``sha256``, ``event_id`` or both ``source`` and ``id``; also
        ``patient_id``, ``confirmed_by`` and ``confirmed_at`` (ISO 8601, UTC unless it says).
    labels : sequence of str
        Those that there are.
    now : datetime, optional
        Nothing can have been confirmed a day after it.

    Returns
    -------
    LabelFile
        Every row of it.

    Raises
    ------
    DatasetError
        The file cannot be read, or a row is wrong; the message names the row and what was wanted.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            key_names = _find_key(header, path)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        msg = f"cannot read {path} as a CSV file in UTF-8: {exc}"
        raise DatasetError(msg) from exc
    latest = (now or datetime.now(UTC)) + CLOCK_SKEW
    found, wrong = [], []
    for number, row in rows:
        try:
            found.append(read_row(number, row, key_names, labels, latest))
        except WrongRowError as exc:
            wrong.append(f"row {number}: {exc}")
    if wrong:
        more = f"; and {len(wrong) - _NAMED_IN_ERROR} more rows" if len(wrong) > _NAMED_IN_ERROR else ""
        msg = f"{path}: {'; '.join(wrong[:_NAMED_IN_ERROR])}{more}. Nothing was recorded."
        raise DatasetError(msg)
    known = {"label", *key_names, *OPTIONAL}
    return LabelFile(key_names, tuple(found), tuple(name for name in header if name not in known))


def _find_key(header: Sequence[str], path: Path) -> tuple[str, ...]:
    names = set(header)
    key = next((key for key in KEYS if names.issuperset(key)), None)
    if key is None or "label" not in names:
        found = ", ".join(header) or "nothing"
        msg = f"{path} has the columns {found}; wanted label, and sha256, event_id or both source and id"
        raise DatasetError(msg)
    return key


def read_row(
    number: int, row: Mapping[str, str | None], key_names: Sequence[str], labels: Sequence[str], latest: datetime
) -> Confirmation:
    """Read one confirmed finding; raise `WrongRowError` with what is wrong with it."""
    cells = {name: (row.get(name) or "").strip() for name in (*key_names, "label", *OPTIONAL)}
    if empty := [name for name in (*key_names, "label") if not cells[name]]:
        raise WrongRowError(LabelReason.INVALID_FIELD, f"{' and '.join(empty)} is empty")
    if cells["label"] not in labels:
        wanted = f"wanted one of {', '.join(labels)}"
        raise WrongRowError(
            LabelReason.UNKNOWN_LABEL, f"label is {cells['label']!r}, {wanted}", f"label is another one, {wanted}"
        )
    key = tuple(cells[name] if name in {"source", "id"} else cells[name].lower() for name in key_names)
    return Confirmation(
        number,
        key,
        cells["label"],
        cells["patient_id"] or None,
        cells["confirmed_by"] or None,
        _read_time(cells["confirmed_at"], latest) if cells["confirmed_at"] else None,
    )


def _read_time(text: str, latest: datetime) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as exc:
        wanted = "wanted a time like 2026-01-31T12:00"
        raise WrongRowError(
            LabelReason.INVALID_TIME, f"confirmed_at is {text!r}, {wanted}", f"confirmed_at is no time, {wanted}"
        ) from exc
    if moment > latest:
        why = "in the future: nothing could replace it until then"
        raise WrongRowError(
            LabelReason.INVALID_TIME, f"confirmed_at is {text}, which is {why}", f"confirmed_at is {why}"
        )
    return moment


class WrongRowError(ValueError):
    """A row or an event cannot be read; ``detail`` says why without a word of what it says, for that may be anything.

    Parameters
    ----------
    reason : LabelReason
        Why, as a code.
    message : str
        What was found and what was wanted.
    detail : str, optional
        The same, without what was found; by default the message.
    """

    def __init__(self, reason: LabelReason, message: str, detail: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.detail = detail or message
