"""The Delta tables: what they hold, joining the small files that a stream leaves behind, and clearing what is dead.

Joining moves rows into larger files in one commit; a writer that commits at the same moment is noticed by Delta on
either side, and the later one tries again. Two that join are not noticed: deltalake lets both commit, and every row is
there twice. So whoever joins holds the tables (`streaming.archive.lease`), or has claimed them, and a running archive
does it itself, between two appends.
"""

import re
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from math import ceil
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from pyarrow.fs import FileSelector, FileType

from schemas.deltatable import NO_HOOKS, failing_as, open_files, open_table
from schemas.documents import load_tables
from schemas.errors import SettingsError, TableError, TableMovedError
from streaming.archive.archivetable import COMPACTION, WRITER_PROPERTY, open_claimed
from streaming.archive.lease import hold_tables

MIN_KEEP = timedelta(hours=1)
"""What a reader that began before, or a writer that has not committed yet, gets to finish."""
JOINED_BYTES = 128 * 1024 * 1024
"""Size of the files to join into. Larger ones are left as they are."""
_WORTH_JOINING = 100
"""Small files from which joining is worth it: measured, so many cost 0.15 s at each read of the table."""
_ATTEMPTS = 5
_JOIN = "OPTIMIZE"  # as the log calls it
_COMMIT_FILE = re.compile(r"_delta_log/\d{20}\.json")


@dataclass(frozen=True)
class TableState:
    """What one table holds.

    Parameters
    ----------
    name : str
        Its name.
    version : int
        The newest one.
    versions : int
        Commits that the log still has.
    rows, files : int
        Of the newest version.
    bytes : int
        Of its files.
    small_files : int
        Files that joining would replace: smaller than `JOINED_BYTES`, and not alone in their partition.
    dead_files, dead_bytes : int
        Files that are not in the newest version: older versions', and of writers that were killed or still write.
    log_bytes : int
        Of the log.
    """

    name: str
    version: int
    versions: int
    rows: int
    files: int
    bytes: int
    small_files: int
    dead_files: int
    dead_bytes: int
    log_bytes: int

    @property
    def mean_file_bytes(self) -> int:
        """Mean size of a live file."""
        return self.bytes // self.files if self.files else 0

    @property
    def worth_compacting(self) -> bool:
        """Whether joining its files is worth it."""
        return self.small_files >= _WORTH_JOINING

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {**asdict(self), "mean_file_bytes": self.mean_file_bytes, "worth_compacting": self.worth_compacting}


@dataclass(frozen=True)
class Compaction:
    """What compacting one table did, or would do.

    Parameters
    ----------
    before, after : TableState
        ``after`` is ``before`` where nothing was done.
    joined_files : int
        Files that were replaced by larger ones.
    removed_files : int
        Files that no version within the time to keep refers to.
    seconds : float
        How long it took.
    """

    before: TableState
    after: TableState
    joined_files: int
    removed_files: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "joined_files": self.joined_files,
            "removed_files": self.removed_files,
            "seconds": round(self.seconds, 3),
        }


def describe_tables(folder: str) -> dict[str, TableState | None]:
    """Describe every table.

    Parameters
    ----------
    folder : str
        Path or URI of the tables.

    Returns
    -------
    dict
        By name; None where there is no such table yet.

    Raises
    ------
    JobError
        A table is there and cannot be read.
    """
    return {name: describe_table(folder, name) for name in load_tables()}


def describe_table(folder: str, name: str) -> TableState | None:
    """Describe one table; see `describe_tables`."""
    table = open_table(f"{folder}/{name}")
    return None if table is None else _describe(table, name)


def compact_table(folder: str, name: str, *, keep: timedelta, dry_run: bool = False) -> Compaction | None:
    """Join a table's small files, remove dead ones, write a checkpoint of the log and clean the log up.

    Parameters
    ----------
    folder : str
        Path or URI of the tables.
    name : str
        Which one.
    keep : timedelta
        Files of versions that were replaced within this time stay; older versions cannot be read afterwards. Whole
        hours, rounded up.
    dry_run : bool
        Change nothing. ``joined_files`` is then an upper bound.

    Returns
    -------
    Compaction or None
        None where there is no such table yet.

    Raises
    ------
    SettingsError
        ``keep`` is below `MIN_KEEP`.
    JobError
        The table cannot be read or written, was changed by others at every attempt, or an archive or another
        compaction holds the tables.
    """
    check_keep(keep)
    with hold_tables(folder) as held:
        return _compact(folder, name, keep, held=held, dry_run=dry_run)


def _compact(folder: str, name: str, keep: timedelta, *, held: bool, dry_run: bool) -> Compaction | None:
    started = time.monotonic()
    place = f"{folder}/{name}"
    table = open_table(place)
    if table is None:
        return None
    before = _describe(table, name)
    if dry_run:
        dead = remove_dead_files(table, keep, dry_run=True)
        return Compaction(before, before, before.small_files, len(dead), time.monotonic() - started)
    writer = table.metadata().configuration.get(WRITER_PROPERTY) if held else _claim(table)
    joined = join_files(place, writer=writer)
    dead = remove_dead_files(_reopen(place), keep)
    clean_log(_reopen(place))
    return Compaction(before, _describe(_reopen(place), name), joined, len(dead), time.monotonic() - started)


def _claim(table: DeltaTable) -> str:
    """End whoever fills a table, where no lock keeps the two apart; an archive that starts again claims it back."""
    writer = f"{COMPACTION} {uuid.uuid4()}"
    with failing_as(f"the table {table.table_uri} cannot be compacted"):
        table.alter.set_table_properties({WRITER_PROPERTY: writer}, raise_if_not_exists=False)
    return writer


def check_keep(keep: timedelta) -> None:
    """Refuse to keep so little that running readers and writers come to harm.

    Raises
    ------
    SettingsError
        Less than `MIN_KEEP`.
    """
    if keep < MIN_KEEP:
        msg = (
            f"cannot keep less than {MIN_KEEP}: running readers still read versions that were replaced since, running "
            "writers have files that are not committed yet; the first would fail, the second would lose rows"
        )
        raise SettingsError(msg)


def _describe(table: DeltaTable, name: str) -> TableState:
    actions = pa.table(table.get_add_actions(flatten=True))
    sizes = actions["size_bytes"]
    counted = pc.sum(actions["num_records"]).as_py() if actions["num_records"].null_count == 0 else table.count()
    stored = _list_files(table)
    parquet = [size for path, size in stored.items() if path.endswith(".parquet") and not path.startswith("_")]
    total = pc.sum(sizes).as_py() or 0
    return TableState(
        name=name,
        version=table.version(),
        versions=sum(1 for path in stored if _COMMIT_FILE.fullmatch(path)),
        rows=counted or 0,
        files=len(sizes),
        bytes=total,
        small_files=sum(count for count in count_small_files(actions).values() if count > 1),
        dead_files=max(0, len(parquet) - len(sizes)),
        dead_bytes=max(0, sum(parquet) - total),
        log_bytes=sum(size for path, size in stored.items() if path.startswith("_delta_log/")),
    )


def count_small_files(actions: pa.Table) -> dict[date | None, int]:
    """Count the files of each date that are below the wanted size: joining takes them, where they are several.

    Parameters
    ----------
    actions : pyarrow.Table
        The flattened add actions of a table.
    """
    small = actions.filter(pc.less(actions["size_bytes"], JOINED_BYTES))
    counts = small.group_by("partition.date").aggregate([("path", "count")])
    return dict(zip(counts["partition.date"].to_pylist(), counts["path_count"].to_pylist(), strict=True))


def _list_files(table: DeltaTable) -> dict[str, int]:
    """List what is stored, with sizes, by path in the table's folder."""
    found = open_files(table).get_file_info(FileSelector("", recursive=True))
    return {info.path: info.size for info in found if info.type == FileType.File}


def join_files(place: str, partition: str | None = None, *, writer: str | None = None) -> int:
    """Join the small files of a table in one commit; again where another writer came first.

    Parameters
    ----------
    place : str
        Path or URI of a table that this process holds or has claimed.
    partition : str, optional
        One date alone, as YYYY-MM-DD; empty for the rows that have none.
    writer : str, optional
        Who has claimed the table. Before each attempt it must still be so: whoever claims it later may join as well,
        and of two joins at one moment both would land.

    Returns
    -------
    int
        How many files were replaced.

    Raises
    ------
    TableClaimedError
        Another writer has claimed it.
    TableError
        It cannot be read or written, or others changed it at every attempt.
    """
    table = _reopen(place, writer)
    for _ in range(_ATTEMPTS):
        read = table.version()
        try:
            with failing_as(f"the table {place} cannot be compacted"):
                metrics = table.optimize.compact(
                    partition_filters=None if partition is None else [("date", "=", partition)],
                    target_size=JOINED_BYTES,
                    max_concurrent_tasks=1,
                    post_commithook_properties=NO_HOOKS,
                )
        except TableMovedError:
            table = _reopen(place, writer)
            continue
        joined = int(metrics["numFilesRemoved"])
        version, table = table.version(), _reopen(place)
        if not joined or _is_join(table, read=read, version=version):
            return joined
    msg = (
        f"the table {place} was changed by another writer at each of {_ATTEMPTS} attempts to join its files; "
        "nothing is lost. Try again when less is written."
    )
    raise TableError(msg)


def _reopen(place: str, writer: str | None = None) -> DeltaTable:
    """Open from what is stored: on a local disk Spark may have put a commit of its own in the place of the last one."""
    if writer is not None:
        return open_claimed(place, writer)
    table = open_table(place)
    if table is None:
        msg = f"the table {place} was removed meanwhile"
        raise TableError(msg)
    return table


def _is_join(table: DeltaTable, *, read: int, version: int) -> bool:
    """Tell whether a version is a join that was made from another one, and the only join since."""
    operations = {entry["version"]: entry["operation"] for entry in table.history(table.version() - read)}
    others = [number for number in range(read + 1, version) if operations.get(number) == _JOIN]
    if others and operations.get(version) == _JOIN:
        msg = (
            f"the table {table.table_uri} was compacted twice at one moment, in versions {others[0]} and {version}, by "
            f"something else than this project: its rows are there twice. Stop the archive, restore version "
            f"{version - 1}, start it: it reads its topics again."
        )
        raise TableError(msg)
    return operations.get(version) == _JOIN


def remove_dead_files(table: DeltaTable, keep: timedelta, *, dry_run: bool = False) -> list[str]:
    """Remove files that no version within a time refers to; give their names."""
    hours = ceil(keep / timedelta(hours=1))
    with failing_as(f"the table {table.table_uri}: its dead files cannot be removed"):
        return list(
            table.vacuum(
                hours,
                dry_run=dry_run,
                # It refuses less than the table's own retention, a week by default; `check_keep` is the check here.
                enforce_retention_duration=False,
                full=True,  # also what killed writers left behind, once it is as old
                post_commithook_properties=NO_HOOKS,
            )
        )


def clean_log(table: DeltaTable) -> None:
    """Write a checkpoint, and remove commits that are older than the log's retention and covered by it."""
    with failing_as(f"the table {table.table_uri}: its log cannot be cleaned up"):
        table.create_checkpoint()
        table.cleanup_metadata()
