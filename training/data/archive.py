"""The stream's tables as training reads them."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable

from schemas.deltatable import open_table
from schemas.errors import DatasetError

FEATURES_TABLE, PREDICTIONS_TABLE = "features", "predictions"


def open_features(folder: str) -> DeltaTable:
    """Open the archive's features.

    Raises
    ------
    DatasetError
        There are none yet.
    TableError
        They cannot be read.
    """
    return _open(folder, FEATURES_TABLE)


def open_predictions(folder: str) -> DeltaTable:
    """Open the archive's predictions.

    Raises
    ------
    DatasetError
        There are none yet.
    TableError
        They cannot be read.
    """
    return _open(folder, PREDICTIONS_TABLE)


def _open(folder: str, name: str) -> DeltaTable:
    table = open_table(f"{folder}/{name}")
    if table is None:
        msg = f"there is no archive in {folder} yet: 'xray stream' writes it, or set XRAY_ARCHIVE__FOLDER"
        raise DatasetError(msg)
    return table


def features_version(folder: str) -> int:
    """Give the version of the archive's features: while it is the same, no image has come.

    Raises
    ------
    DatasetError
        There are none yet.
    TableError
        They cannot be read.
    """
    return int(open_features(folder).version())


def is_one_of(column: str, values: pa.Array) -> ds.Expression:
    """Give the condition that a text column has one of some values."""
    # Files that deltalake's own update and delete write have another kind of text, which a bare isin stumbles over.
    return pc.field(column).cast(pa.string()).isin(values.cast(pa.string()))
