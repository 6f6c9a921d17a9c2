"""Delta tables as this project writes them: made from their definition, and changed by compare-and-swap.

Every change is made on a table that was opened before, and lands only where nobody else has changed that table since:
what was read from it, its rows and how far its writer had come, is then still true. To write by a table's address
instead would open its newest version, and not know what came in between.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import PyFileSystem

from schemas.documents import Table
from schemas.errors import TableError, TableMovedError
from schemas.objectstore import describe_failure, store_options

# Checkpoints and the clean-up of the log have their own time; within an append they would make it wait.
NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)

_UNSUPPORTED = "Unsupported table features"

_TYPES = {
    "string": pa.string(),
    "int": pa.int32(),
    "bigint": pa.int64(),
    "double": pa.float64(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", "UTC"),
    "map<string,double>": pa.map_(pa.string(), pa.float64()),
    "array<float>": pa.list_(pa.float32()),
    "array<string>": pa.list_(pa.string()),
}


def arrow_schema(table: Table) -> pa.Schema:
    """Give a table's columns as Arrow has them, each with its comment."""
    return pa.schema(
        [
            pa.field(name, _TYPES[kind], metadata={"comment": table.comments[name]})
            for name, kind in table.columns.items()
        ]
    )


def open_table(place: str) -> DeltaTable | None:
    """Open a table at its newest version; None where there is none.

    Parameters
    ----------
    place : str
        Path or URI of the table.

    Raises
    ------
    TableError
        It is there and cannot be read.
    """
    with failing_as(f"the table {place} cannot be read"):
        try:
            return DeltaTable(place, storage_options=store_options(place))
        except TableNotFoundError:
            return None


def open_files(table: DeltaTable) -> PyFileSystem:
    """Give the files of a table, by their paths in its folder, wherever that is."""
    return PyFileSystem(DeltaStorageHandler(table.table_uri, store_options(table.table_uri)))


def create_table(place: str, table: Table, properties: Mapping[str, str]) -> DeltaTable:
    """Create a table, or open the one that somebody else created at the same moment.

    Parameters
    ----------
    place : str
        Path or URI.
    table : Table
        Its definition.
    properties : Mapping of str to str
        Delta's own and others.

    Raises
    ------
    TableError
        It cannot be written there.
    """
    with failing_as(f"the table {place} cannot be made"):
        try:
            return DeltaTable.create(
                place,
                schema=arrow_schema(table),
                mode="ignore",
                partition_by=list(table.partition_by),
                name=table.name,
                description=table.comment,
                configuration=dict(properties),
                storage_options=store_options(place),
                # Else the later of two creates the table once more, as its next version and with another id.
                commit_properties=_swap([], None),
                raise_if_key_not_exists=False,
            )
        except CommitFailedError:
            return DeltaTable(place, storage_options=store_options(place))


def append_rows(
    table: DeltaTable, rows: pa.Table, places: Mapping[str, int], metadata: Mapping[str, str] | None = None
) -> None:
    """Append rows in one commit, which is the next version of the table or none.

    Parameters
    ----------
    table : DeltaTable
        As it was opened; afterwards it is the version with the rows.
    rows : pyarrow.Table
        Columns that it lacks, since somebody else added them to the table, are null. Without rows only the places are
        committed.
    places : Mapping of str to int
        How far the writer has come, as Delta's application transactions; they are part of the commit.
    metadata : Mapping of str to str, optional
        What the commit says about itself.

    Raises
    ------
    TableMovedError
        Somebody else has changed the table meanwhile; nothing was written.
    TableError
        It cannot be written.
    """
    transactions = [Transaction(name, place) for name, place in places.items()]
    with failing_as(f"the table {table.table_uri} cannot be written"):
        write_deltalake(
            table,
            _fill_columns(rows, table),
            mode="append",
            commit_properties=_swap(transactions, metadata),
            post_commithook_properties=NO_HOOKS,
        )


def _fill_columns(rows: pa.Table, table: DeltaTable) -> pa.Table:
    for field in pa.schema(table.schema().to_arrow()):
        if field.name not in rows.column_names:
            rows = rows.append_column(field, pa.nulls(len(rows), field.type))
    return rows


def replace_rows(table: DeltaTable, rows: pa.Table) -> None:
    """Put rows in the place of all that a table has; see `append_rows` for what is raised."""
    with failing_as(f"the table {table.table_uri} cannot be written"):
        write_deltalake(
            table, rows, mode="overwrite", commit_properties=_swap([], None), post_commithook_properties=NO_HOOKS
        )


def _swap(transactions: list[Transaction], metadata: Mapping[str, str] | None) -> CommitProperties:
    # An append reads nothing, as delta-rs sees it, and would be tried again behind whatever was committed in between.
    return CommitProperties(max_commit_retries=0, app_transactions=transactions, custom_metadata=dict(metadata or {}))


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Turn what Delta and the file system say into one line.

    Raises
    ------
    TableMovedError
        Another writer was first.
    TableError
        Any other failure.
    """
    try:
        yield
    except CommitFailedError as exc:
        if _UNSUPPORTED in str(exc):  # as refused by the client itself, and again at each try
            msg = f"{what}: {describe_failure(exc)}"
            raise TableError(msg) from exc
        msg = f"{what}, it was changed by somebody else meanwhile: {describe_failure(exc)}"
        raise TableMovedError(msg) from exc
    except (DeltaError, OSError, pa.ArrowException) as exc:
        msg = f"{what}: {describe_failure(exc)}"
        raise TableError(msg) from exc
