"""Reads the contract files that ship with this package."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

SCHEMA_NAMES = (
    "image_headers",
    "prediction",
    "outcome_headers",
    "features",
    "dead_letter_headers",
    "label",
    "receipt",
    "receipt_headers",
    "label_headers",
    "label_dead_letter_headers",
)
"""The JSON Schemas of messages; headers are checked as an object of name to text."""

RULES_SCHEMA = "alert_rules"
"""The JSON Schema of a file of rules, which is checked as the YAML file's content."""


@dataclass(frozen=True)
class Table:
    """One Delta table.

    Parameters
    ----------
    name : str
        Folder name below the tables' folder.
    columns : dict of str to str
        Type by name, as Spark SQL has it, in order.
    comments : dict of str to str
        What each column means, by name.
    partition_by : tuple of str
        Partition columns.
    comment : str
        What a row is.
    """

    name: str
    columns: dict[str, str]
    comments: dict[str, str]
    partition_by: tuple[str, ...]
    comment: str


def load_schema(name: str) -> dict[str, Any]:
    """Load a JSON Schema by its name: one of `SCHEMA_NAMES`, or `RULES_SCHEMA`."""
    text = (files("schemas") / f"{name}.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def load_asyncapi() -> dict[str, Any]:
    """Load the AsyncAPI document: all topics, what is on them, and the JSON Schemas of that."""
    document: dict[str, Any] = json.loads((files("schemas") / "asyncapi.json").read_text(encoding="utf-8"))
    return document


@cache
def load_tables() -> dict[str, Table]:
    """Load the Delta tables' definitions, by name."""
    tables = json.loads((files("schemas") / "tables.json").read_text(encoding="utf-8"))
    return {name: _table(name, table) for name, table in tables.items()}


def _table(name: str, table: dict[str, Any]) -> Table:
    columns = table["columns"]
    return Table(
        name=name,
        columns={column["name"]: column["type"] for column in columns},
        comments={column["name"]: column["comment"] for column in columns},
        partition_by=tuple(table["partition_by"]),
        comment=table["comment"],
    )
