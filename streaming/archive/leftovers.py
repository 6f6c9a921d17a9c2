"""Files of an append that failed at its commit.

Each new try writes them again: where only the log cannot be written, or somebody has forbidden such rows (CHECK), they
would pile up until the next clean-up, days later.
"""

from collections.abc import Collection
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from pyarrow import parquet

_NO_DATE = "__HIVE_DEFAULT_PARTITION__"


def list_files(folder: Path, dates: Collection[date | None]) -> set[Path]:
    """List a table's data files of some dates, live or not.

    Parameters
    ----------
    folder : Path
        The table's.
    dates : collection of date or None
        Which; None is the partition of rows without a date.
    """
    names = [f"date={_NO_DATE if one is None else one.isoformat()}" for one in dates]
    return {path for name in names for path in (folder / name).glob("*.parquet")}


def remove_leftovers(new: Collection[Path], table: DeltaTable, event_ids: Collection[str]) -> int:
    """Remove those of some files that have nothing but rows of a failed append.

    Parameters
    ----------
    new : collection of Path
        What was not there before the append and was before ``table`` was opened: who claims the table later writes
        later.
    table : DeltaTable
        Opened after the append had failed, and still claimed by who made it. What was committed all the same is in it.
    event_ids : collection of str
        Of the append.

    Returns
    -------
    int
        How many were removed.
    """
    names = pa.table(table.get_add_actions(flatten=True))["path"].to_pylist()
    live = {Path(name).name for name in names}
    wanted = pa.array(event_ids, pa.string())
    removed = 0
    for path in new:
        if path.name not in live and _has_only(path, wanted):
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _has_only(path: Path, wanted: pa.Array) -> bool:
    try:
        found = parquet.read_table(path, columns=["event_id"], partitioning=None)["event_id"].cast(pa.string())
    except (OSError, pa.ArrowException):
        return False  # somebody else's, or half a file
    return len(found) > 0 and bool(pc.all(pc.is_in(found, value_set=wanted)).as_py())
