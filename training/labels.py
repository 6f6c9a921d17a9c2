"""Confirmed findings: from a CSV file or from events into the Delta table ``labels``, one row for each image.

An image is known by its bytes' SHA-256, which the archive's features table has for every event id and every source and
id. The newest confirmation of an image counts; what it replaces stays readable in the table's older versions. All of a
file, or of a batch of events, is one commit, and the same again changes nothing. Needs no Spark.
"""

import csv
import json
import logging
import re
from collections import Counter
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
from schemas.labels import LABELS_COLUMNS, LABELS_COMMENT, LABELS_TABLE, LabelReason

log = logging.getLogger(__name__)

FEATURES_TABLE = "features"

_KEYS = (("sha256",), ("event_id",), ("source", "id"))
"""What may name an image; of several in one file the first counts."""
_OPTIONAL = ("patient_id", "confirmed_by", "confirmed_at")
_HEX_DIGITS = {"sha256": 64, "event_id": 32}
_ARROW_TYPES = {"string": pa.string(), "timestamp": pa.timestamp("us", "UTC")}
_CLOCK_SKEW = timedelta(days=1)
_ATTEMPTS = 5
_NAMED_IN_ERROR = 5
_MANY_FILES = 64
"""Reading so many small files takes as long as reading 100,000 rows of one."""


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


@dataclass(frozen=True)
class WrongEvent:
    """An event that cannot be read.

    Parameters
    ----------
    row : int
        Its place in the batch, from 0.
    reason : LabelReason
        Why, as a code.
    detail : str
        What was found and what was wanted, without a word of what the event says.
    """

    row: int
    reason: LabelReason
    detail: str


@dataclass(frozen=True)
class LabelEvents:
    """A batch of events about confirmed findings; each is in exactly one of the two.

    Parameters
    ----------
    files : tuple of LabelFile
        One for each way in which some of them name their images.
    wrong : tuple of WrongEvent
        Those that cannot be read.
    """

    files: tuple[LabelFile, ...]
    wrong: tuple[WrongEvent, ...]


@dataclass(frozen=True)
class Matched:
    """Which images the rows of a file, or the events of a batch, are about.

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
        Have a newer confirmation than this one, which stays.
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
        except _WrongRowError as exc:
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
        raise _WrongRowError(LabelReason.INVALID_FIELD, f"{' and '.join(empty)} is empty")
    if cells["label"] not in labels:
        wanted = f"wanted one of {', '.join(labels)}"
        raise _WrongRowError(
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
        raise _WrongRowError(
            LabelReason.INVALID_TIME, f"confirmed_at is {text!r}, {wanted}", f"confirmed_at is no time, {wanted}"
        ) from exc
    if moment > latest:
        why = "in the future: nothing could replace it until then"
        raise _WrongRowError(
            LabelReason.INVALID_TIME, f"confirmed_at is {text}, which is {why}", f"confirmed_at is {why}"
        )
    return moment


class _WrongRowError(ValueError):
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


# --- events -----------------------------------------------------------------------------------------------------------


def read_events(
    events: Sequence[tuple[bytes | None, datetime]], labels: Sequence[str], *, now: datetime | None = None
) -> LabelEvents:
    """Read events about confirmed findings.

    Parameters
    ----------
    events : sequence of (bytes or None, datetime)
        Value of each message, in the schema ``label``; and when the broker received it, with a time zone, which is
        when it was confirmed where the event does not say. So an event that is read once more says the same again.
    labels : sequence of str
        Those that there are.
    now : datetime, optional
        Nothing can have been confirmed a day after it.

    Returns
    -------
    LabelEvents
        Every one of them, as read or as wrong; nothing is raised for an event's sake.
    """
    latest = (now or datetime.now(UTC)) + _CLOCK_SKEW
    read: dict[tuple[str, ...], list[Confirmation]] = {}
    wrong: list[WrongEvent] = []
    for row, (value, received_at) in enumerate(events):
        try:
            cells = _parse_event(value)
            key_names = _find_event_key(cells)
            one = _read_row(row, cells, key_names, labels, latest)
            _check_form(key_names[0], one.key[0])
        except _WrongRowError as exc:
            wrong.append(WrongEvent(row, exc.reason, exc.detail))
        else:
            read.setdefault(key_names, []).append(replace(one, confirmed_at=one.confirmed_at or received_at))
    return LabelEvents(tuple(LabelFile(names, tuple(ones)) for names, ones in read.items()), tuple(wrong))


def _parse_event(value: bytes | None) -> dict[str, str]:
    if value is None:
        raise _WrongRowError(LabelReason.TOMBSTONE, "there is no value, wanted a JSON object")
    try:
        event = json.loads(value.decode("utf-8-sig"))
    except (ValueError, RecursionError) as exc:
        raise _WrongRowError(LabelReason.NOT_JSON, "the value is no JSON in UTF-8, wanted a JSON object") from exc
    if not isinstance(event, dict):
        raise _WrongRowError(LabelReason.NOT_JSON, "the value is other JSON, wanted a JSON object")
    if "specversion" in event:
        msg = "the value is a CloudEvents envelope, wanted the finding itself, with the envelope in the headers"
        raise _WrongRowError(LabelReason.STRUCTURED_MODE, msg)
    names = dict.fromkeys([*(name for key in _KEYS for name in key), "label", *_OPTIONAL])
    cells = {name: event[name] for name in names if event.get(name) is not None}
    if others := [name for name, cell in cells.items() if not _is_text(cell)]:
        raise _WrongRowError(LabelReason.INVALID_FIELD, f"{' and '.join(others)} is no text")
    return cells


def _is_text(cell: object) -> bool:
    """Tell whether it can be written as UTF-8; JSON can have halves of characters, which cannot."""
    return isinstance(cell, str) and not re.search("[\ud800-\udfff]", cell)


def _find_event_key(cells: Mapping[str, str]) -> tuple[str, ...]:
    named = [name for key in _KEYS for name in key if name in cells]
    key = next((key for key in _KEYS if list(key) == named), None)
    if key is None:
        found = " and ".join(named) or "nothing"
        msg = f"the image is named by {found}, wanted exactly one of sha256, event_id, or source and id"
        raise _WrongRowError(LabelReason.INVALID_FIELD, msg)
    return key


def _check_form(name: str, text: str) -> None:
    digits = _HEX_DIGITS.get(name)
    if digits is not None and not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
        msg = f"{name} is something else, wanted {digits} hexadecimal digits"
        raise _WrongRowError(LabelReason.INVALID_FIELD, msg)


# --- the archive ------------------------------------------------------------------------------------------------------


def match_images(folder: str, *files: LabelFile) -> Matched:
    """Find the images that a file's rows, or a batch's events, are about.

    Parameters
    ----------
    folder : str
        Path or URI of the tables. Of ``features`` only the columns that name images are read.
    *files : LabelFile
        What to look for; of several, rows count in the order of their numbers.

    Returns
    -------
    Matched
        Of several rows about one image the newest counts, of equally new ones the last. Where it gives no patient, the
        one that an earlier row gave stays, as it would if they were recorded one after the other.

    Raises
    ------
    DatasetError
        There is no archive yet.
    JobError
        It cannot be read.
    """
    found: list[tuple[Confirmation, set[str]]] = []
    for file in files:
        images = _find_images(folder, file)
        found += [(one, images.get(one.key, set())) for one in file.confirmations]
    newest: dict[str, Confirmation] = {}
    unknown, ambiguous = [], []
    for one, digests in sorted(found, key=lambda pair: pair[0].row):
        if len(digests) > 1:
            ambiguous.append(one)
        for digest in digests if len(digests) == 1 else ():
            before = newest.get(digest)
            if before is None:
                newest[digest] = one
            elif not _is_older(one.confirmed_at, before.confirmed_at):
                newest[digest] = replace(one, patient_id=one.patient_id or before.patient_id)
        if not digests:
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


def features_version(folder: str) -> int:
    """Give the version of the archive's features: while it is the same, no image has come.

    Raises
    ------
    DatasetError
        There are none yet.
    JobError
        They cannot be read.
    """
    with failing_as(f"the table {folder}/{FEATURES_TABLE} cannot be read"):
        return int(open_features(folder).version())


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
        table = read_labels(folder)
        known = pc.is_in(table["sha256"], pa.array(list(confirmations), pa.string()))
        stored = {row["sha256"]: row for row in table.filter(known).to_pylist()}
        rows, counts = _plan(stored, confirmations, moment)
        try:
            if rows:
                _merge(folder, rows)
        except CommitFailedError:
            continue  # somebody else recorded at the same moment: what is new is to be found out again
        after = {**stored, **{row["sha256"]: row for row in rows}}
        others = table.filter(pc.invert(known))["label"].value_counts().to_pylist()
        by_label = Counter({pair["values"]: pair["counts"] for pair in others})
        by_label.update(row["label"] for row in after.values())
        return replace(counts, total=by_label.total(), by_label=dict(sorted(by_label.items())))
    msg = f"the table {folder}/{LABELS_TABLE} was written by others at each of {_ATTEMPTS} attempts; try again"
    raise JobError(msg)


def join_label_files(folder: str) -> None:
    """Join the labels table's files where they have become many: each batch of events adds one.

    No row changes and no version goes away. Where somebody else writes at that moment, it is left to the next call.

    Raises
    ------
    JobError
        The table cannot be written.
    """
    with failing_as(f"the table {folder}/{LABELS_TABLE} cannot be written"):
        table = DeltaTable(f"{folder}/{LABELS_TABLE}")
        if len(table.file_uris()) < _MANY_FILES:
            return
        try:
            table.optimize.compact()
        except CommitFailedError:
            log.info("the files of %s are joined another time: somebody else wrote to it", LABELS_TABLE)


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
