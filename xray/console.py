"""What the commands draw with: people's output goes to standard error where a program reads standard output."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def say_positive(label: str, known_by: str) -> None:
    """Say on standard error which class is the positive one, before any work: a wrong one makes all of it wrong."""
    err.print(make_printable(f"positive: {label} ({known_by})"), markup=False, soft_wrap=True)


def make_printable(text: str) -> str:
    """Keep a text that others wrote in its line: one that breaks it, or redraws the terminal, is replaced there."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def print_json(value: Mapping[str, Any] | list[Any]) -> None:
    """Print one JSON document on one line, for a program to read."""
    sys.stdout.write(json.dumps(value, default=str) + "\n")
    sys.stdout.flush()


def say_ended(*, as_json: bool) -> None:
    """Say that a program has ended in order: as a person reads it, or as a line of JSON."""
    if as_json:
        print_json({"event": "ended"})
    else:
        out.print("Ended in order.")


def new_progress() -> Progress:
    """Make a progress display; it leaves nothing behind on a terminal that cannot redraw."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        disable=not err.is_terminal,
    )


@contextmanager
def step(text: str) -> Iterator[None]:
    """Show that something without a count goes on, and that it is done."""
    if not err.is_terminal:
        err.print(f"{text} ...")
        yield
        return
    with err.status(text):
        yield
    err.print(f"[green]✓[/] {text}")


def new_table(*columns: str, title: str | None = None) -> Table:
    """Make a table; numbers are right-aligned where a column's name begins with ``#``."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column.removeprefix("#"), justify="right" if column.startswith("#") else "left")
    return table
