"""``xray tables``: what the Delta tables hold, and their upkeep."""

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.table import Table

from streaming.settings import load_settings
from xray.console import new_table, out, print_json, step
from xray.tabular import print_table

if TYPE_CHECKING:
    from streaming.archive.tables import Compaction, TableState

tables_app = typer.Typer(
    help="Show what the Delta tables hold, and join their small files. Needs no Spark; the stream may go on.",
    no_args_is_help=True,
)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _read_span(text: str) -> timedelta:
    """Read a span of time of the command line."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None:
        msg = f"{text!r} is no span of time; wanted e.g. 90m, 12h or 7d"
        raise typer.BadParameter(msg)
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for a program.")]


@tables_app.command("show")
def show_tables(json_: Json = False) -> None:
    """Show rows, files, sizes and versions of each table, and whether joining its files is worth it."""
    from streaming.archive.tables import describe_tables

    folder = load_settings().tables_folder
    states = describe_tables(folder)
    if json_:
        tables = {name: None if state is None else state.to_dict() for name, state in states.items()}
        print_json({"folder": folder, "tables": tables})
        return
    out.print(f"Tables in {folder}", markup=False, soft_wrap=True)
    print_table(_draw({name: _describe(state) for name, state in states.items()}))
    worth = [name for name, state in states.items() if state is not None and state.worth_compacting]
    if worth:
        out.print(f"Many small files: {', '.join(worth)}. Join them with: xray tables compact")


@tables_app.command("compact")
def compact_tables(
    keep: Annotated[
        timedelta,
        typer.Option(parser=_read_span, metavar="SPAN", help="Replaced versions stay readable so long; 1h at least."),
    ] = "7d",  # type: ignore[assignment]
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    json_: Json = False,
) -> None:
    """Join the tables' small files, then remove files that no version within --keep refers to.

    No row changes. A running archive does this by itself; beside one it is refused, where the tables are on a disk.
    Versions that were replaced before --keep cannot be read afterwards.
    """
    from schemas.documents import load_tables
    from streaming.archive.tables import check_keep, compact_table

    check_keep(keep)
    folder = load_settings().tables_folder
    done: dict[str, Compaction | None] = {}
    for name in load_tables():
        with step(f"{'looking at' if dry_run else 'compacting'} {name}"):
            done[name] = compact_table(folder, name, keep=keep, dry_run=dry_run)
    if json_:
        tables = {name: None if result is None else result.to_dict() for name, result in done.items()}
        print_json({"folder": folder, "dry_run": dry_run, "keep_seconds": int(keep.total_seconds()), "tables": tables})
    else:
        _show_compactions(done, dry_run=dry_run)


def _describe(state: "TableState | None") -> dict[str, str]:
    if state is None:
        return {"rows": "not there yet"}
    return {
        "rows": f"{state.rows:,}",
        "files": f"{state.files:,}",
        "size": decimal(state.bytes),
        "mean file": decimal(state.mean_file_bytes),
        "replaced files": f"{state.dead_files:,}",
        "their size": decimal(state.dead_bytes),
        "version": str(state.version),
        "commits": f"{state.versions:,}",
        "commit log": decimal(state.log_bytes),
    }


def _draw(columns: dict[str, dict[str, str]]) -> Table:
    """Draw a column for each table, for there are more figures than tables."""
    table = new_table("", *[f"#{name}" for name in columns])
    for figure in max(columns.values(), key=len):
        table.add_row(figure, *[figures.get(figure, "") for figures in columns.values()])
    return table


def _show_compactions(done: "dict[str, Compaction | None]", *, dry_run: bool) -> None:
    columns = {}
    for name, result in done.items():
        figures = _describe(None if result is None else result.before)
        if result is not None:
            if not dry_run:
                after = _describe(result.after)
                figures = {key: was if was == after[key] else f"{was} → {after[key]}" for key, was in figures.items()}
            figures |= {"joined": f"{result.joined_files:,}", "removed": f"{result.removed_files:,}"}
        columns[name] = figures
    print_table(_draw(columns))
    if dry_run:
        out.print("Nothing was done. Up to so many files would be joined, and so many replaced ones removed.")
    elif any(result is not None and result.joined_files for result in done.values()):
        out.print("The files that were joined are replaced now; a run after --keep removes them.")
