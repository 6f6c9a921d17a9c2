"""Confirmed findings: from a CSV file into the Delta table ``labels``, one row for each image.

An image is known by its bytes' SHA-256, which the archive's features table has for every event id and every source and
id. The newest confirmation of an image counts; what it replaces stays readable in the table's older versions. All of a
file is one commit, and the same file again changes nothing. Needs no Spark.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from schemas.errors import DatasetError, JobError
from schemas.labels import LABELS_COLUMNS, LABELS_COMMENT, LABELS_TABLE

FEATURES_TABLE = "features"

_KEYS = (("sha256",), ("event_id",), ("source", "id"))
"""What may name an image; of several in one file the first counts."""
_OPTIONAL = ("patient_id", "confirmed_by", "confirmed_at")
_ARROW_TYPES = {"string": pa.string(), "timestamp": pa.timestamp("us", "UTC")}
_CLOCK_SKEW = timedelta(days=1)
_ATTEMPTS = 5
_NAMED_IN_ERROR = 5


@dataclass(frozen=True)
class Confirmation:
    """What one row of a file says.

    Parameters
    ----------
    row : int
        Its line in the file, the header being 1.
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
    """A file of confirmed findings.

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


@dataclass(frozen=True)
class Matched:
    """Which images the rows of a file are about.

    Parameters
    ----------
    by_sha256 : mapping of str to Confirmation
        The newest one of each image.
    unknown : tuple of Confirmation
        About images that the archive does not have.
    ambiguous : tuple of Confirmation
        Whose source and id belong to several images.
    """

    by_sha256: Mapping[str, Confirmation]
    unknown: tuple[Confirmation, ...] = ()
    ambiguous: tuple[Confirmation, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """What recording did, in images.

    Parameters
    ----------
    added : int
        Had no label.
    changed : int
        Have another label, patient or person who confirmed it now, or a newer confirmation.
    unchanged : int
        Were recorded just so.
    older : int
        Have a newer confirmation than the file's, which stays.
    total : int
        Rows of the table now.
    by_label : mapping of str to int
        The same, by label.
    """

    added: int
    changed: int
    unchanged: int
    older: int
    total: int
    by_label: Mapping[str, int] = field(default_factory=dict)


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
    latest = (now or datetime.now(UTC)) + _CLOCK_SKEW
    found, wrong = [], []
    for number, row in rows:
        try:
            found.append(_read_row(number, row, key_names, labels, latest))
        except ValueError as exc:
            wrong.append(f"row {number}: {exc}")
    if wrong:
        more = f"; and {len(wrong) - _NAMED_IN_ERROR} more rows" if len(wrong) > _NAMED_IN_ERROR else ""
        msg = f"{path}: {'; '.join(wrong[:_NAMED_IN_ERROR])}{more}. Nothing was recorded."
        raise DatasetError(msg)
    known = {"label", *key_names, *_OPTIONAL}
    return LabelFile(key_names, tuple(found), tuple(name for name in header if name not in known))


def _find_key(header: Sequence[str], path: Path) -> tuple[str, ...]:
    names = set(header)
    key = next((key for key in _KEYS if names.issuperset(key)), None)
    if key is None or "label" not in names:
        found = ", ".join(header) or "nothing"
        msg = f"{path} has the columns {found}; wanted label, and sha256, event_id or both source and id"
        raise DatasetError(msg)
    return key


def _read_row(
    number: int, row: Mapping[str, str | None], key_names: Sequence[str], labels: Sequence[str], latest: datetime
) -> Confirmation:
    cells = {name: (row.get(name) or "").strip() for name in (*key_names, "label", *_OPTIONAL)}
    if empty := [name for name in (*key_names, "label") if not cells[name]]:
        msg = f"{' and '.join(empty)} is empty"
        raise ValueError(msg)
    if cells["label"] not in labels:
        msg = f"label is {cells['label']!r}, wanted one of {', '.join(labels)}"
        raise ValueError(msg)
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
    except ValueError as exc:
        msg = f"confirmed_at is {text!r}, wanted a time like 2026-01-31T12:00"
        raise ValueError(msg) from exc
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment > latest:
        msg = f"confirmed_at is {text}, which is in the future: nothing could replace it until then"
        raise ValueError(msg)
    return moment.astimezone(UTC)


# --- the archive ------------------------------------------------------------------------------------------------------


def match_images(folder: str, file: LabelFile) -> Matched:
    """Find the images that a file's rows are about.

    Parameters
    ----------
    folder : str
        Path or URI of the tables. Of ``features`` only the columns that name images are read.
    file : LabelFile
        What to look for.

    Returns
    -------
    Matched
        Of several rows about one image the newest counts, of equally new ones the last.

    Raises
    ------
    DatasetError
        There is no archive yet.
    JobError
        It cannot be read.
    """
    images = _find_images(folder, file)
    newest: dict[str, Confirmation] = {}
    unknown, ambiguous = [], []
    for one in file.confirmations:
        found = images.get(one.key, set())
        if len(found) > 1:
            ambiguous.append(one)
        for digest in found if len(found) == 1 else ():
            if digest not in newest or not _is_older(one.confirmed_at, newest[digest].confirmed_at):
                newest[digest] = one
        if not found:
            unknown.append(one)
    return Matched(newest, tuple(unknown), tuple(ambiguous))


def _find_images(folder: str, file: LabelFile) -> dict[tuple[str, ...], set[str]]:
    """Give the digests of the images that each key names."""
    last = file.key_names[-1]
    wanted = pa.array(sorted({one.key[-1] for one in file.confirmations}), pa.string())
    with failing_as(f"the table {folder}/{FEATURES_TABLE} cannot be read"):
        dataset = open_features(folder).to_pyarrow_dataset()
        columns = list(dict.fromkeys([*file.key_names, "sha256"]))
        rows = dataset.to_table(columns=columns, filter=is_one_of(last, wanted))
    found: dict[tuple[str, ...], set[str]] = {}
    keys = zip(*(rows[name].to_pylist() for name in file.key_names), strict=True)
    for key, digest in zip(keys, rows["sha256"].to_pylist(), strict=True):
        found.setdefault(key, set()).add(digest)
    return found


def _is_older(moment: datetime | None, than: datetime | None) -> bool:
    """Tell whether a confirmation is older; one without a time is of now."""
    return moment is not None and (than is None or moment < than)


def open_features(folder: str) -> DeltaTable:
    """Open the archive's features.

    Raises
    ------
    DatasetError
        There are none yet.
    """
    try:
        return DeltaTable(f"{folder}/{FEATURES_TABLE}")
    except TableNotFoundError as exc:
        msg = f"there is no archive in {folder} yet: 'xray stream' writes it, or set XRAY_ARCHIVE__FOLDER"
        raise DatasetError(msg) from exc


def is_one_of(column: str, values: pa.Array) -> ds.Expression:
    """Give the condition that a text column has one of some values."""
    # Files that deltalake's own update and delete write have another kind of text, which a bare isin stumbles over.
    return pc.field(column).cast(pa.string()).isin(values.cast(pa.string()))


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Turn what Delta and the file system say into one line."""
    try:
        yield
    except CommitFailedError:
        raise
    except (DeltaError, OSError) as exc:
        lines = str(exc).strip().splitlines()
        msg = f"{what}: {lines[0] if lines else type(exc).__name__}"
        raise JobError(msg) from exc


# --- the table --------------------------------------------------------------------------------------------------------


def read_labels(folder: str) -> pa.Table:
    """Read the labels.

    Parameters
    ----------
    folder : str
        Path or URI of the tables.

    Returns
    -------
    pyarrow.Table
        Columns as `schemas.labels.LABELS_COLUMNS` has them; without rows where nothing was recorded yet.

    Raises
    ------
    JobError
        The table cannot be read.
    """
    with failing_as(f"the table {folder}/{LABELS_TABLE} cannot be read"):
        try:
            table = DeltaTable(f"{folder}/{LABELS_TABLE}")
        except TableNotFoundError:
            return _schema().empty_table()
        return table.to_pyarrow_table(columns=_schema().names).cast(_schema())


def record_labels(folder: str, confirmations: Mapping[str, Confirmation], *, now: datetime | None = None) -> Recorded:
    """Write confirmations into the table, in one commit.

    Parameters
    ----------
    folder : str
        Path or URI of the tables; the table is made where it is missing.
    confirmations : mapping of str to Confirmation
        By the image's SHA-256.
    now : datetime, optional
        When those were confirmed that do not say.

    Returns
    -------
    Recorded
        Counts. A patient's id that is known stays where the file gives none.

    Raises
    ------
    JobError
        The table cannot be written, or others wrote to it at each of five attempts.
    """
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    for _ in range(_ATTEMPTS):
        stored = {row["sha256"]: row for row in read_labels(folder).to_pylist()}
        rows, counts = _plan(stored, confirmations, moment)
        try:
            if rows:
                _merge(folder, rows)
        except CommitFailedError:
            continue  # somebody else recorded at the same moment: what is new is to be found out again
        after = {**stored, **{row["sha256"]: row for row in rows}}
        by_label: dict[str, int] = {}
        for row in after.values():
            by_label[row["label"]] = by_label.get(row["label"], 0) + 1
        return replace(counts, total=len(after), by_label=dict(sorted(by_label.items())))
    msg = f"the table {folder}/{LABELS_TABLE} was written by others at each of {_ATTEMPTS} attempts; try again"
    raise JobError(msg)


def _plan(
    stored: Mapping[str, Mapping[str, Any]], confirmations: Mapping[str, Confirmation], moment: datetime
) -> tuple[list[dict[str, Any]], Recorded]:
    """Give the rows to write, and what they are."""
    rows: list[dict[str, Any]] = []
    counts = dict.fromkeys(("added", "changed", "unchanged", "older"), 0)
    for digest, one in sorted(confirmations.items()):
        old = stored.get(digest)
        row = {
            "sha256": digest,
            "label": one.label,
            "patient_id": one.patient_id or (old["patient_id"] if old else None),
            "confirmed_by": one.confirmed_by,
            "confirmed_at": one.confirmed_at or moment,
            "recorded_at": moment,
        }
        kind = _compare(old, row, one)
        counts[kind] += 1
        if kind in ("added", "changed"):
            rows.append(row)
    return rows, Recorded(counts["added"], counts["changed"], counts["unchanged"], counts["older"], total=0)


def _compare(old: Mapping[str, Any] | None, row: Mapping[str, Any], one: Confirmation) -> str:
    if old is None:
        return "added"
    if one.confirmed_at is not None and one.confirmed_at < old["confirmed_at"]:
        return "older"
    same = all(old[name] == row[name] for name in ("label", "patient_id", "confirmed_by"))
    # A row without a time says nothing new by being read once more.
    return "unchanged" if same and one.confirmed_at in (None, old["confirmed_at"]) else "changed"


def _merge(folder: str, rows: Sequence[Mapping[str, Any]]) -> None:
    place = f"{folder}/{LABELS_TABLE}"
    with failing_as(f"the table {place} cannot be written"):
        try:
            table = DeltaTable(place)
        except TableNotFoundError:
            meanings = {name: meaning for name, (_, meaning) in LABELS_COLUMNS.items()}
            schema = pa.schema([column.with_metadata({"comment": meanings[column.name]}) for column in _schema()])
            table = DeltaTable.create(
                place, schema=schema, mode="ignore", name=LABELS_TABLE, description=LABELS_COMMENT
            )
        (
            table.merge(
                pa.Table.from_pylist(list(rows), _schema()),
                predicate="old.sha256 = new.sha256",
                source_alias="new",
                target_alias="old",
            )
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .execute()
        )


def _schema() -> pa.Schema:
    return pa.schema([(name, _ARROW_TYPES[kind]) for name, (kind, _) in LABELS_COLUMNS.items()])
