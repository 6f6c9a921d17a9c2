"""The table of confirmed findings: matching them with images, and recording them once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from schemas.deltatable import append_rows, arrow_schema, create_table, failing_as, open_table, replace_rows
from schemas.errors import JobError, TableMovedError
from schemas.labels import LABELS_TABLE
from training.data.archive import FEATURES_TABLE, is_one_of, open_features
from training.data.labelfile import Confirmation, LabelFile

_ATTEMPTS = 20
"""Two that record without a pause, which nobody does, needed up to 8; a random wait made it no fewer."""

_MANY_FILES = 64
"""Reading so many small files takes as long as reading 100,000 rows of one."""

_CHECKPOINT_EVERY = 100
"""Commits; as Delta has it."""


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
        Columns as `schemas.labels.LABELS_TABLE` has them, one row an image; without rows where nothing was recorded
        yet.

    Raises
    ------
    TableError
        The table cannot be read.
    """
    rows = _read_rows(open_table(f"{folder}/{LABELS_TABLE.name}"))
    return _keep_newest(rows).select(list(LABELS_TABLE.columns))


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
    TableError
        The table cannot be read or written.
    JobError
        Others wrote to it at each of twenty attempts.
    """
    place = f"{folder}/{LABELS_TABLE.name}"
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    for _ in range(_ATTEMPTS):
        try:
            return _record(place, confirmations, moment)
        except TableMovedError:  # somebody else recorded at the same moment: what is new is to be found out again
            continue
    msg = f"the table {place} was written by others at each of {_ATTEMPTS} attempts; try again"
    raise JobError(msg)


def _record(place: str, confirmations: Mapping[str, Confirmation], moment: datetime) -> Recorded:
    """Read, plan and write on one version of the table: where it is not the newest any more, nothing is written."""
    table = open_table(place)
    if table is None and confirmations:
        table = create_table(place, LABELS_TABLE, {})
    stored = _read_rows(table)
    before = _keep_newest(stored)
    known = pc.is_in(before["sha256"], pa.array(list(confirmations), pa.string()))
    rows, counts = _plan({row["sha256"]: row for row in before.filter(known).to_pylist()}, confirmations, moment)
    new = pa.Table.from_pylist(rows, before.schema)
    replaced = pc.is_in(before["sha256"], new["sha256"].combine_chunks())
    after = pa.concat_tables([before.filter(pc.invert(replaced)), new])
    if table is not None and rows:
        _write(table, new, after, is_addition=len(after) == len(stored) + len(new))
    by_label = {pair["values"]: pair["counts"] for pair in after["label"].value_counts().to_pylist()}
    return replace(counts, total=len(after), by_label=dict(sorted(by_label.items())))


def _read_rows(table: DeltaTable | None) -> pa.Table:
    """Read all columns: where a later release has added some, they stay as they are."""
    if table is None:
        return arrow_schema(LABELS_TABLE).empty_table()
    with failing_as(f"the table {table.table_uri} cannot be read"):
        return table.to_pyarrow_table()


def _keep_newest(rows: pa.Table) -> pa.Table:
    """Keep one row an image: where two joined the table's files at once, former releases left each row there twice."""
    if pc.count_distinct(rows["sha256"]).as_py() == len(rows):
        return rows
    rows = rows.sort_by([("confirmed_at", "ascending"), ("recorded_at", "ascending")])
    newest = {digest: number for number, digest in enumerate(rows["sha256"].to_pylist())}
    return rows.take(pa.array(newest.values()))


def _write(table: DeltaTable, new: pa.Table, after: pa.Table, *, is_addition: bool) -> None:
    """Add the new rows as a file, or put all rows in the place of all files: one row an image is little."""
    if is_addition and len(table.file_uris()) < _MANY_FILES:
        append_rows(table, new, {})
    else:
        replace_rows(table, after)
    # Without checkpoints each reader reads every commit that there has been.
    if table.version() % _CHECKPOINT_EVERY == 0:
        with failing_as(f"the table {table.table_uri} cannot be written"):
            table.create_checkpoint()


def _plan(
    stored: Mapping[str, Mapping[str, Any]], confirmations: Mapping[str, Confirmation], moment: datetime
) -> tuple[list[dict[str, Any]], Recorded]:
    """Give the rows to write, and what they are."""
    rows: list[dict[str, Any]] = []
    counts = dict.fromkeys(("added", "changed", "unchanged", "older"), 0)
    for digest, one in sorted(confirmations.items()):
        old = stored.get(digest)
        row = {
            **(old or {}),
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
