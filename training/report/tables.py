"""Tables and plain text in Markdown, for every page that is written here."""

import re
from collections.abc import Callable, Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&!])")


def escape(text: str) -> str:
    """Make text stand for itself, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def escape_bars(text: str) -> str:
    """Keep a cell in one cell, and leave all else as it is."""
    return text.replace("|", "\\|")


def draw_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Iterable[bool],
    escape_cell: Callable[[str], str] = escape_bars,
    gap: str = "",
) -> str:
    """Draw a table in GitHub's Markdown.

    Parameters
    ----------
    header : sequence of str
        As it is to stand there.
    rows : iterable of sequence of str
        Cells.
    numbers : iterable of bool
        Of each column, whether it holds numbers, which stand on the right.
    escape_cell : callable
        Makes a cell stand for itself.
    gap : str
        Around the dashes below the header.
    """
    dashes = "|".join(f"{gap}{'--:' if number else ':--'}{gap}" for number in numbers)
    lines = [header, *([escape_cell(cell) for cell in row] for row in rows)]
    drawn = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([drawn[0], f"|{dashes}|", *drawn[1:]])
