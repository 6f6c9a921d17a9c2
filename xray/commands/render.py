"""``xray render``: what the network will see of image files, and why."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from streaming.settings import load_settings
from xray.commands.options import Json
from xray.console import err, new_progress, new_table, out, print_json
from xray.tabular import print_table

if TYPE_CHECKING:
    from xray.render.rendering import Rendering

_MOST_SIDE = 4096
"""In pixels; networks take a tenth of it. A larger one is a slip of the finger, and would fill the memory."""


def read_size(text: str) -> tuple[int, int]:
    """Read ``HEIGHTxWIDTH``."""
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= _MOST_SIDE for side in size):
        msg = f"{text!r} is no size; wanted HEIGHTxWIDTH in pixels, 1 to {_MOST_SIDE} each, e.g. 224x224"
        raise typer.BadParameter(msg)
    return size


def render(
    paths: Annotated[list[str], typer.Argument(help="Files, folders (searched for PNG, JPEG, DICOM) or globs.")],
    out_: Annotated[Path, typer.Option("--out", help="Folder for pictures, texts, contact sheet and page.")],
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="What the network takes, in pixels; without any model.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|VERSION", help="The model that would see it; by default the one in service, else 224x224."
        ),
    ] = None,
    hide_names: Annotated[
        bool, typer.Option("--hide-names", help="Name images by their content: a file's name may be a patient's.")
    ] = False,
    json_: Json = False,
) -> None:
    """Show what the network will see of image files, what decided their grays, and what the stream would refuse.

    Each file gets two pictures (as the network sees it, and at full size), a text and a JSON document. They are made
    to be attached to a report of a fault, but pictures may show a patient, or text that is burned in: look first. Exit
    code 1 when the stream would refuse a file. Needs no Kafka and no Spark.
    """
    if size is not None and model is not None:
        msg = "give --size or --model, not both"
        raise typer.BadParameter(msg)
    from xray.render.files import choose_files, render_files
    from xray.render.folder import OutFolder
    from xray.render.page import write_page
    from xray.render.plan import make_plan
    from xray.render.sheet import write_sheets

    wanted = None if size is None else read_size(size)
    plan = make_plan(load_settings(), size=wanted, model=model, hide_names=hide_names)
    files = choose_files(paths)
    folder = OutFolder(out_)
    with new_progress() as progress:
        task = progress.add_task("rendering", total=len(files))
        renderings = render_files(files, plan, folder, lambda done: progress.update(task, completed=done))
    several = len(files) > 1 or any(Path(path).expanduser().is_dir() for path in paths)
    overviews = [*write_sheets(renderings, folder), write_page(renderings, folder)] if several else []
    if json_:
        print_json([rendering.to_dict() for rendering in renderings])
    else:
        _show(renderings, folder.path, overviews)
    if any(rendering.refusal for rendering in renderings):
        raise typer.Exit(1)


def _show(renderings: "list[Rendering]", folder: Path, overviews: list[str]) -> None:
    from xray.render.rendering import NOTE

    print_table(_make_table(renderings))
    for rendering in renderings:
        if rendering.refusal is not None:
            why = f"{rendering.refusal.reason}: {rendering.refusal.error_message}"
            err.print(f"refused: {rendering.name}: {why}", markup=False, soft_wrap=True)
    for name in overviews or [f"{renderings[0].base}.txt"]:
        out.print(str(folder / name), markup=False, soft_wrap=True)
    out.print(NOTE)


def _make_table(renderings: "list[Rendering]") -> Table:
    from xray.render.words import name_format, tell_grays, tell_size

    table = new_table("#no.", "file", "type", "size", "grays", "the stream")
    for number, rendering in enumerate(renderings, 1):
        reason = rendering.refusal and rendering.refusal.reason
        table.add_row(
            str(number),
            escape(rendering.name),
            name_format(rendering.media_type),
            tell_size(rendering.height, rendering.width),
            escape(tell_grays(rendering.steps)) if rendering.full else "",
            f"[red]{reason}[/]" if reason else "[green]takes it[/]",
        )
    for column in table.columns[:1] + table.columns[2:4]:
        column.no_wrap = True
    for column in table.columns[1:2] + table.columns[4:]:
        column.overflow = "fold"
    return table
