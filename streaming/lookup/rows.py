"""Rows of the archive's tables: those of some images, found without reading all columns of all days; as outcomes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.dataset import Dataset

from schemas import envelope
from schemas.deltatable import failing_as, open_table
from streaming.account.archived import PREDICTIONS
from streaming.kafka.places import Origin, Place
from streaming.lookup.outcome import NO_PLACE, FindBand, Kind, Outcome, ScoredBy

MOST_ROWS = 200
"""Of one table, the newest days first: a device may use one id for all its images."""


@dataclass(frozen=True)
class Days:
    """Which days are looked at, by the UTC date at which Kafka took the image; each end is included.

    Parameters
    ----------
    first, last : date, optional
        No bound where it is None.
    """

    first: date | None = None
    last: date | None = None

    def to_filter(self) -> pc.Expression | None:
        """Give it as a filter, by which partitions of other days are not opened; None where all days are meant."""
        bounds = []
        if self.first is not None:
            bounds.append(pc.field("date") >= self.first)
        if self.last is not None:
            bounds.append(pc.field("date") <= self.last)
        if not bounds:
            return None
        return bounds[0] if len(bounds) == 1 else bounds[0] & bounds[1]


def match_any(column: str, texts: Iterable[str]) -> pc.Expression:
    """Give a filter of rows that have one of some texts in a column; no row where there are no texts."""
    return pc.field(column).isin(pa.array(sorted(texts), pa.string()))


@dataclass(frozen=True)
class FoundRows:
    """Rows of one table.

    Parameters
    ----------
    rows : list of dict
        By column; at most `MOST_ROWS`.
    left_off : int
        How many more there are.
    version : int
        Of the table, as it was read.
    """

    rows: list[dict[str, Any]]
    left_off: int
    version: int


def find_rows(
    place: str, wanted: pc.Expression, *, days: Days | None = None, columns: list[str] | None = None
) -> FoundRows | None:
    """Find the rows of a table that are wanted.

    First only the columns that are asked about are read, of all days; then the other columns, of the days with a hit.

    Parameters
    ----------
    place : str
        Path or URI of the table.
    wanted : pyarrow.compute.Expression
        Which rows.
    days : Days, optional
        Which days; a row without a date is left out where it has a bound.
    columns : list of str, optional
        Which columns; all where absent.

    Returns
    -------
    FoundRows or None
        None where there is no such table.

    Raises
    ------
    TableError
        It cannot be read.
    """
    table = open_table(place)
    if table is None:
        return None
    with failing_as(f"the table {place} cannot be read"):
        dataset: Dataset = table.to_pyarrow_dataset()
        bound = None if days is None else days.to_filter()
        wanted = wanted if bound is None else bound & wanted
        hits = Counter(dataset.to_table(columns=["date"], filter=wanted)["date"].to_pylist())
        chosen = _choose_days(hits)
        if not chosen:
            return FoundRows([], 0, table.version())
        rows = dataset.head(MOST_ROWS, columns=columns, filter=_on(chosen) & wanted).to_pylist()
        return FoundRows(rows, hits.total() - len(rows), table.version())


def _choose_days(hits: Counter[date | None]) -> list[date | None]:
    """Choose the newest days that fill an answer; a row without a date comes last."""
    chosen: list[date | None] = []
    n = 0
    for day in sorted(hits, key=lambda one: one or date.min, reverse=True):
        if n >= MOST_ROWS:
            break
        chosen.append(day)
        n += hits[day]
    return chosen


def _on(days: list[date | None]) -> pc.Expression:
    known = pc.field("date").isin(pa.array([day for day in days if day is not None], pa.date32()))
    return known | pc.field("date").is_null() if None in days else known


def find_events(place: str, image_keys: frozenset[str], *, days: Days | None = None) -> set[str]:
    """Find the outcomes of images by the images' own event ids, which no table has: they are derived from each row.

    Of a million rows that takes some seconds.

    Parameters
    ----------
    place : str
        Path or URI of the table of predictions or dead letters.
    image_keys : frozenset of str
        Of the images; see `streaming.lookup.outcome.Outcome`.
    days : Days, optional
        Which days.

    Returns
    -------
    set of str
        Event ids of outcomes; none where there is no such table.

    Raises
    ------
    TableError
        The table cannot be read.
    """
    table = open_table(place)
    if table is None:
        return set()
    found = set()
    columns = ["event_id", "source", "id", "sha256", "input_topic", "input_partition", "input_offset"]
    with failing_as(f"the table {place} cannot be read"):
        bound = None if days is None else days.to_filter()
        for batch in table.to_pyarrow_dataset().to_batches(columns=columns, filter=bound):
            # By columns: a dictionary for each row takes twice as long.
            values = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
            # Rows that some other program wrote may name no image.
            found |= {event_id for event_id, *own in values if event_id and own[2] and _derive(*own) in image_keys}
    return found


def _derive(
    source: str | None, image_id: str | None, sha256: str, topic: str | None, partition: int | None, offset: int | None
) -> str:
    """Derive an image's own event id; of plain bytes, which have none, one of their place."""
    if source and image_id:
        return envelope.derive_image_event_id(source, image_id, sha256)
    return envelope.derive_event_id(f"{topic}-{partition}@{offset}", "image")


def read_outcome(name: str, row: Mapping[str, Any], find_band: FindBand) -> Outcome:
    """Read a row as the outcome that it was.

    Parameters
    ----------
    name : str
        The table's.
    row : Mapping of str to object
        All columns.
    find_band : callable
        See `FindBand`.

    Returns
    -------
    Outcome
        Of a prediction ``record`` is `NO_PLACE`, and ``published_at`` is when it was scored. No row says whether its
        image was sent again.

    Raises
    ------
    KeyError, TypeError, AttributeError
        Something is null, or not there, in what an older release wrote.
    """
    return _to_prediction(row, find_band) if name == PREDICTIONS else _to_dead_letter(row)


def _common(row: Mapping[str, Any]) -> dict[str, Any]:
    origin = Origin(row["input_topic"], Place(row["input_partition"], row["input_offset"]))
    return {
        "event_id": row["event_id"],
        "image_key": _derive(row["source"], row["id"], row["sha256"], origin.topic, *origin.place),
        "topic": origin.topic,
        "topic_id": "",
        "place": origin.place,
        "received_at": _seconds(row["received_at"]),
        "source": row["source"],
        "image_id": row["id"],
        "sha256": row["sha256"],
        "payload_bytes": row["payload_bytes"],
    }


def _to_prediction(row: Mapping[str, Any], find_band: FindBand) -> Outcome:
    probabilities = dict(row["probabilities"])
    captured_at = row["captured_at"]
    model = ScoredBy(
        row["model_name"],
        row["model_version"],
        row["model_sha256"],
        tuple(probabilities),
        row["positive_label"],
        row["threshold"],
        row["operating_point"],
        find_band(row["model_version"], row["model_sha256"]),
    )
    return Outcome(
        Kind.PREDICTION,
        **_common(row),
        record=NO_PLACE,
        scored_at=_seconds(row["scored_at"]),
        published_at=_seconds(row["scored_at"]),
        captured_at=None if captured_at is None else captured_at.isoformat(),
        height=row["height"],
        width=row["width"],
        media_type=row["media_type"],
        decode_s=row["decode_seconds"],
        predict_s=row["predict_seconds"],
        model=model,
        label=row["label"],
        probabilities=tuple(probabilities.values()),
        flags=tuple(row["flags"] or ()),
    )


def _to_dead_letter(row: Mapping[str, Any]) -> Outcome:
    received_at = _seconds(row["received_at"])
    return Outcome(
        Kind.DEAD_LETTER,
        **_common(row),
        record=Place(row["dead_letter_partition"], row["dead_letter_offset"]),
        scored_at=received_at,
        published_at=received_at,
        reason=row["reason"],
        error=row["error_message"],
        error_class=(row["error_class"] or "").rpartition(".")[2],
    )


def _seconds(moment: datetime) -> float:
    return moment.timestamp()
