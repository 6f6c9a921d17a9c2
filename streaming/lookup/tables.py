"""Looks for images in the Delta tables, the oldest memory there is."""

from dataclasses import dataclass, field
from typing import Any

from schemas.deltatable import failing_as, open_table
from schemas.errors import TableError
from schemas.labels import LABELS_TABLE
from streaming.account.archived import DEAD_LETTERS, FEATURES, PREDICTIONS
from streaming.lookup.history import Confirmed, Looked, Reach, TableRow
from streaming.lookup.outcome import Outcome, no_band
from streaming.lookup.query import Query
from streaming.lookup.rows import Days, FoundRows, find_events, find_rows, match_any, read_outcome

_KEY_COLUMNS = ["event_id", "date"]
_LABEL_COLUMNS = ["sha256", "label", "confirmed_by", "confirmed_at"]
_NO_TABLE = "there is no such table: 'xray archive' has not run into this folder (XRAY_ARCHIVE__FOLDER)"


@dataclass
class TableFinds:
    """What the tables say.

    Parameters
    ----------
    query : Query
        What was asked, with the names that were learned.
    outcomes : list of Outcome
        Of predictions and dead letters.
    rows : list of TableRow
        Of all tables but the labels'.
    looked : list of Looked
        One for each table.
    """

    query: Query
    outcomes: list[Outcome] = field(default_factory=list)
    rows: list[TableRow] = field(default_factory=list)
    looked: list[Looked] = field(default_factory=list)


def search_tables(folder: str, query: Query, days: Days) -> TableFinds:
    """Search predictions, dead letters and features.

    Parameters
    ----------
    folder : str
        Path or URI of the tables.
    query : Query
        What is asked.
    days : Days
        Which days of the tables.

    Returns
    -------
    TableFinds
        A table that cannot be read is among ``looked``, with the reason.
    """
    finds = _search(folder, query, days)
    if not finds.outcomes and query.hex_ids:
        finds = _search_by_image(folder, finds, days)
    followed = finds.query.follow(finds.outcomes)
    return finds if followed == finds.query else _search(folder, followed, days)


def _search(folder: str, query: Query, days: Days) -> TableFinds:
    finds = TableFinds(query)
    for name in (PREDICTIONS, DEAD_LETTERS):
        _look(finds, folder, name, days, None)
    _look(finds, folder, FEATURES, days, _KEY_COLUMNS)
    return finds


def _look(finds: TableFinds, folder: str, name: str, days: Days, columns: list[str] | None) -> None:
    where = f"table {name}"
    try:
        found = find_rows(f"{folder}/{name}", finds.query.to_filter(), days=days, columns=columns)
    except TableError as exc:
        finds.looked.append(Looked(where, limits=str(exc), reach=Reach.FAILED))
        return
    if found is None:
        finds.looked.append(Looked(where, limits=_NO_TABLE))
        return
    limits = _describe_limits(found, days)
    for row in found.rows:
        finds.rows.append(TableRow(name, row["event_id"], row["date"]))
        if name == FEATURES:
            continue
        try:
            finds.outcomes.append(read_outcome(name, row, no_band))
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            limits.append(f"the row of {row['event_id']} lacks what an outcome has: {exc}")
    reach = Reach.ALL if not found.left_off and days == Days() else Reach.PART
    finds.looked.append(Looked(f"{where}, version {found.version}", len(found.rows), "; ".join(limits), reach))


def _describe_limits(found: FoundRows, days: Days) -> list[str]:
    limits = []
    if days.first is not None or days.last is not None:
        first, last = days.first or "the beginning", days.last or "now"
        limits.append(f"only images that Kafka took from {first} to {last} (UTC dates)")
    if found.left_off:
        limits.append(f"{found.left_off} more rows are left off; --since and --until narrow it")
    return limits


def _search_by_image(folder: str, finds: TableFinds, days: Days) -> TableFinds:
    """Search by an image's own event id, which no column has."""
    query, found = finds.query, set()
    for name in (PREDICTIONS, DEAD_LETTERS):
        try:
            found |= find_events(f"{folder}/{name}", query.hex_ids, days=days)
        except TableError:  # noted by the search before
            continue
    if not found:
        return finds
    again = _search(folder, Query(query.text, query.by, hex_ids=frozenset(found)), days)
    again.query = query
    return again


def search_labels(folder: str, digests: frozenset[str]) -> tuple[list[Confirmed], list[TableRow], Looked]:
    """Search the table of confirmed findings, which has the newest of each image.

    Parameters
    ----------
    folder : str
        Path or URI of the tables.
    digests : frozenset of str
        SHA-256 of the images' bytes.
    """
    where = f"table {LABELS_TABLE.name}"
    try:
        found = _find_labels(f"{folder}/{LABELS_TABLE.name}", digests)
    except TableError as exc:
        return [], [], Looked(where, limits=str(exc), reach=Reach.FAILED)
    if found is None:
        return [], [], Looked(where, limits="there is no such table: 'xray label' has recorded nothing here")
    confirmed = [
        Confirmed(row["label"], row["confirmed_at"], row["confirmed_by"], where)
        for row in found
        if row["label"] and row["confirmed_at"]
    ]
    rows = [TableRow(LABELS_TABLE.name, row["sha256"], None) for row in found]
    limits = "" if digests else "it is by SHA-256, and that of the image is not known"
    return confirmed, rows, Looked(where, len(rows), limits)


def _find_labels(place: str, digests: frozenset[str]) -> list[dict[str, Any]] | None:
    table = open_table(place)
    if table is None:
        return None
    with failing_as(f"the table {place} cannot be read"):
        wanted = match_any("sha256", digests)
        rows: list[dict[str, Any]] = table.to_pyarrow_dataset().to_table(_LABEL_COLUMNS, filter=wanted).to_pylist()
        return rows
