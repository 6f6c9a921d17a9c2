"""The table of confirmed findings: matching them with images, and recording them once."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from schemas.errors import JobError
from schemas.labels import LABELS_COLUMNS, LABELS_COMMENT, LABELS_TABLE
from training.data.archive import FEATURES_TABLE, failing_as, is_one_of, open_features
from training.data.labelfile import Confirmation, LabelFile

log = logging.getLogger(__name__)

_ARROW_TYPES = {"string": pa.string(), "timestamp": pa.timestamp("us", "UTC")}

_ATTEMPTS = 5

_MANY_FILES = 64
"""Reading so many small files takes as long as reading 100,000 rows of one."""


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
