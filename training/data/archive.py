"""The stream's tables as training reads them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from schemas.errors import DatasetError, JobError

FEATURES_TABLE, PREDICTIONS_TABLE = "features", "predictions"


def open_features(folder: str) -> DeltaTable:
    """Open the archive's features.

    Raises
    ------
    DatasetError
        There are none yet.
    """
    return _open(folder, FEATURES_TABLE)


def open_predictions(folder: str) -> DeltaTable:
    """Open the archive's predictions.

    Raises
    ------
    DatasetError
        There are none yet.
    """
    return _open(folder, PREDICTIONS_TABLE)


def _open(folder: str, table: str) -> DeltaTable:
    try:
        return DeltaTable(f"{folder}/{table}")
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
