"""``xray support``: a bundle for a report of a fault."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from streaming.settings import load_settings
from xray.commands.options import Json
from xray.console import out, print_json, step


def support(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="It must not be there yet.")], json_: Json = False
) -> None:
    """Write what a report of a fault needs into one file, without patients' data and without secrets.

    Versions, settings, what 'xray doctor' and 'xray status' say, metrics, last lines of logs, configurations of topics,
    histories of tables. Ids, names and paths in logs are pseudonyms. Nothing is sent; look through it before you do.
    """
    from xray.support.bundle import write_bundle

    settings = load_settings()
    with step("gathering"):
        bundle = write_bundle(settings, file)
    if json_:
        print_json(bundle.to_dict())
        return
    for name, why in bundle.missing.items():
        out.print(f"[yellow]left out:[/] {escape(name)} ({escape(why)})", soft_wrap=True)
    out.print(f"{bundle.path}: {', '.join(bundle.parts)}", markup=False, soft_wrap=True)
    out.print("Look through it before you send it.")
