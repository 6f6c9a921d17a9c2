"""Kafka rows as Spark's source gives them, for the tests of what a worker makes of them."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from tests.testimages import png

STAMP = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)

_SCHEMA = pa.schema(
    [
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("key", pa.binary()),
        ("headers", pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))),
        ("value", pa.binary()),
    ]
)


def batch_of(*rows: dict[str, Any]) -> pa.RecordBatch:
    """One Arrow batch; each row names what differs from a plain one."""
    plain = {"topic": "t", "partition": 0, "timestamp": STAMP, "key": b"k", "headers": None, "value": png()}
    return pa.RecordBatch.from_pylist([plain | {"offset": i} | row for i, row in enumerate(rows)], schema=_SCHEMA)


def headers_of(*headers: tuple[str, bytes | None]) -> list[dict[str, Any]]:
    """Headers as Spark has them."""
    return [{"key": key, "value": value} for key, value in headers]
