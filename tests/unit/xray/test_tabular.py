"""Listings: whole on 80 columns, and one line for each row in a pipe."""

import io

import pytest
from rich.console import Console

from xray import tabular
from xray.console import new_table
from xray.tabular import print_listing, print_table

COLUMNS = ("version", "created (UTC)", "alias", "#figure", "verdict")
ROW = (
    "20261129T192101-efficientnetlite0",
    "2026-11-29 19:21",
    "challenger",
    "0.970 (0.940 to 0.990)",
    "no shortcut found",
)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> io.StringIO:
    written = io.StringIO()
    console = Console(file=written, width=80, force_terminal=request.param, color_system=None)
    monkeypatch.setattr(tabular, "out", console)
    return written


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("│")[1:-1]]


@pytest.mark.parametrize("screen", [True], indirect=True)
def test_a_narrow_terminal_shows_every_cell_whole(screen: io.StringIO) -> None:
    print_listing(COLUMNS, [ROW, ROW], whole=2)
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    rows = [cells(line) for line in lines if line.startswith("│")]
    assert rows[0] == [ROW[0], ROW[1], "challenger"]
    assert " ".join(row[2] for row in rows) == " ".join([*ROW[2:], *ROW[2:]])


@pytest.mark.parametrize("screen", [False], indirect=True)
def test_in_a_pipe_each_row_is_one_line(screen: io.StringIO) -> None:
    print_listing(COLUMNS, [ROW, ROW], whole=2)
    rows = [cells(line) for line in screen.getvalue().splitlines() if line.startswith("│")]
    assert rows == [list(ROW), list(ROW)]


def test_a_cell_of_two_lines_is_one_in_a_pipe() -> None:
    written = io.StringIO()
    table = new_table("what", "why")
    table.add_row("one\ntwo", "three " * 40)
    print_table(table, Console(file=written, width=80))
    [row] = [line for line in written.getvalue().splitlines() if line.startswith("│")]
    assert cells(row) == ["one two", ("three " * 40).strip()]
