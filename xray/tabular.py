"""Tables on a terminal of 80 columns, and in a pipe with one line for each row."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from xray.console import new_table, out

_WIDE = 10_000
_ROOMY = 140
"""Columns of a terminal from which on a listing has a column for everything."""


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table; where nobody looks at a terminal, each row is one line, so that grep and cut find it whole.

    Parameters
    ----------
    table : Table
        Its cells are text with markup.
    console : Console, optional
        Where to; standard output unless told otherwise.
    """
    console = console or out
    if console.is_terminal:
        console.print(table)
        return
    for column in table.columns:
        column._cells = [cell.replace("\n", " ") if isinstance(cell, str) else cell for cell in column._cells]
        column.no_wrap, column.max_width = True, None
    Console(file=console.file, width=_WIDE, highlight=False).print(table)


def print_listing(columns: Sequence[str], rows: Sequence[Sequence[str]], *, whole: int) -> None:
    """Print rows that are wider than a terminal.

    Parameters
    ----------
    columns : sequence of str
        Names as for `new_table`.
    rows : sequence of sequence of str
        Cells, with markup.
    whole : int
        So many first columns are never broken. On a narrow terminal the others share one column, a line for each.
    """
    if not out.is_terminal or out.width >= _ROOMY:
        table = new_table(*columns)
        for row in rows:
            table.add_row(*row)
    else:
        names = [name.removeprefix("#") for name in columns[whole:]]
        table = new_table(*columns[:whole], ", ".join(names))
        table.show_lines = True
        for row in rows:
            table.add_row(*row[:whole], "\n".join(cell for cell in row[whole:] if cell))
    for column in table.columns[:whole]:
        column.no_wrap = True
    for column in table.columns[whole:]:
        column.overflow = "fold"
    print_table(table)
