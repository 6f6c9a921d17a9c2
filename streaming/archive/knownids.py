"""Which event ids a table holds near some dates: what keeps a row single, however often its record comes.

64 bits of each id are kept in memory, by date; they are read from the table's files, each file once. They may say too
much: rows that were deleted since, another id with the same bits. So a hit is looked up in the files before a row is
left out for it. They never say too little: no row comes into a table but in a file that is new.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from pandas.util import hash_array
from pyarrow import parquet

from schemas.deltatable import failing_as, open_files
from streaming.archive.rows import Row

Day = int | None
"""Days since 1970-01-01; None is the partition of rows without a date."""
Shorts = npt.NDArray[np.uint64]

_KEPT_IDS = 8_000_000
"""Of dates that the last rows were not near: 64 MB, so that a back-fill does not keep a table's whole history."""


class KnownIds:
    """The ids of one table.

    Parameters
    ----------
    span_days : int
        How far a row's date may be from another's for the two to count as one.
    note_step : callable
        Called after each file that was read: a first look at a large table takes a while.
    """

    def __init__(self, span_days: int, note_step: Callable[[], None] = lambda: None) -> None:
        self._span_days = span_days
        self._note_step = note_step
        self._shorts: dict[Day, Shorts] = {}
        self._seen: dict[Day, set[str]] = {}

    def drop_known(self, table: DeltaTable, rows: Sequence[Row]) -> list[Row]:
        """Leave out rows that the table has, and all but the first of those that are the same.

        Parameters
        ----------
        table : DeltaTable
            As it was opened: the answer holds for this version.
        rows : sequence of Row
            What is to be appended.

        Returns
        -------
        list of Row
            Those that are new.

        Raises
        ------
        TableError
            The table cannot be read.
        """
        if not rows:
            return []
        near = np.array([row.near for row in rows])
        with failing_as(f"the table {table.table_uri} cannot be read"):
            files = _list_files(table)
            days = [day for day in files if self._is_near(day, near).any()]
            self._load(table, {day: files[day] for day in days})
            shorts = shorten(pa.array([row.event_id for row in rows], pa.string()))
            maybe = np.zeros(len(rows), bool)
            for day in days:
                maybe |= self._is_near(day, near) & _contains(self._shorts[day], shorts)
            suspects = [row for row, hit in zip(rows, maybe, strict=True) if hit]
            known = self._confirm(table, suspects, {day: files[day] for day in days}) if suspects else set()
        self._forget(days)
        # Afterwards: which rows come together in one piece decides nothing about which of them are new.
        return self._drop_repeated([row for row in rows if id(row) not in known])

    def note_appended(self, table: DeltaTable, rows: Sequence[Row]) -> None:
        """Note rows that were appended, and the files that they are in: nobody has to read them.

        Parameters
        ----------
        table : DeltaTable
            After the append.
        rows : sequence of Row
            All that its commit had.
        """
        files = _list_files(table)
        by_day: dict[Day, list[str]] = {}
        for row in rows:
            by_day.setdefault(row.day, []).append(row.event_id)
        for day, ids in by_day.items():
            if day in self._shorts:
                self._add(day, [shorten(pa.array(ids, pa.string()))])
                self._seen[day] = set(files[day])

    def note_joined(self, before: DeltaTable, after: DeltaTable) -> None:
        """Note that files were replaced by others with the same rows.

        Parameters
        ----------
        before, after : DeltaTable
            Two versions between which nothing else was done.
        """
        were, are = _list_files(before), _list_files(after)
        for day, seen in self._seen.items():
            if seen == set(were.get(day, ())):  # else there are files of others that were not looked at yet
                self._seen[day] = set(are.get(day, ()))

    def _drop_repeated(self, rows: Sequence[Row]) -> list[Row]:
        kept: dict[str, list[Row]] = {}
        for row in rows:
            same = kept.setdefault(row.event_id, [])
            undated = any(one.day is None for one in (*same, row))
            if not same or not (undated or any(abs(one.near - row.near) <= self._span_days for one in same)):
                same.append(row)
        return [row for same in kept.values() for row in same]

    def _is_near(self, day: Day, near: npt.NDArray[np.int_]) -> npt.NDArray[np.bool_]:
        # A row without a date could be of any: it counts as near every row.
        return np.ones(len(near), bool) if day is None else np.abs(near - day) <= self._span_days

    def _load(self, table: DeltaTable, files: dict[Day, list[str]]) -> None:
        """Read the ids of files that are new, of dates that are wanted."""
        for day, paths in files.items():
            seen = self._seen.setdefault(day, set())
            if new := [path for path in paths if path not in seen]:
                found = []
                for ids in _read_ids(table, new):
                    found.append(shorten(ids))
                    self._note_step()
                self._add(day, found)
            self._shorts.setdefault(day, np.empty(0, np.uint64))
            self._seen[day] = set(paths)

    def _add(self, day: Day, found: Iterable[Shorts]) -> None:
        known = self._shorts.get(day, np.empty(0, np.uint64))
        self._shorts[day] = np.unique(np.concatenate([known, *found]))

    def _confirm(self, table: DeltaTable, suspects: Sequence[Row], files: dict[Day, list[str]]) -> set[int]:
        """Look the ids up in the files; give the `id` of the rows whose event the table has."""
        wanted = pa.array(sorted({row.event_id for row in suspects}), pa.string())
        shorts = shorten(wanted)
        days_of: dict[str, list[Day]] = {}
        for day, paths in files.items():
            if _contains(self._shorts[day], shorts).any():
                for ids in _read_ids(table, paths):
                    self._note_step()
                    for event_id in pc.filter(ids, pc.is_in(ids, value_set=wanted)).to_pylist():
                        days_of.setdefault(event_id, []).append(day)
        return {
            id(row)
            for row in suspects
            if any(day is None or abs(row.near - day) <= self._span_days for day in days_of.get(row.event_id, ()))
        }

    def _forget(self, wanted: Iterable[Day]) -> None:
        others = set(self._shorts) - set(wanted)
        if sum(len(self._shorts[day]) for day in others) > _KEPT_IDS:
            for day in others:
                del self._shorts[day], self._seen[day]


def _contains(shorts: Shorts, wanted: Shorts) -> npt.NDArray[np.bool_]:
    """Tell which of some ids are among sorted ones; numpy's own ``isin`` would sort all of them each time."""
    if not len(shorts):
        return np.zeros(len(wanted), bool)
    places = np.minimum(np.searchsorted(shorts, wanted), len(shorts) - 1)
    found: npt.NDArray[np.bool_] = shorts[places] == wanted
    return found


def shorten(ids: pa.Array) -> Shorts:
    """Give 64 bits of each id, the same for the same text.

    Parameters
    ----------
    ids : pyarrow.StringArray
        Without nulls.
    """
    return hash_array(ids.to_numpy(zero_copy_only=False), categorize=False)


def _list_files(table: DeltaTable) -> dict[Day, list[str]]:
    """List a table's files, as paths in its folder, by the date of their rows."""
    actions = pa.table(table.get_add_actions(flatten=True))
    days = actions["partition.date"].cast(pa.date32()).cast(pa.int32()).to_pylist()
    files: dict[Day, list[str]] = {}
    for day, path in zip(days, actions["path"].to_pylist(), strict=True):
        files.setdefault(day, []).append(unquote(path))
    return files


def _read_ids(table: DeltaTable, paths: Sequence[str]) -> Iterator[pa.Array]:
    """Read the id column of files, one after the other."""
    storage = open_files(table)
    for path in paths:
        with failing_as(f"the file {path} of the table {table.table_uri} cannot be read"):
            column = parquet.read_table(path, columns=["event_id"], filesystem=storage, use_threads=False)["event_id"]
        yield column.cast(pa.string()).combine_chunks()  # writers differ in the kind of text that they note
