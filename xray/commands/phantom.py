"""``xray phantom``: a labelled set of generated radiographs."""

from pathlib import Path
from typing import Annotated

import typer

from xray.commands.options import Json
from xray.console import new_progress, out, print_json


def phantom(
    folder: Annotated[Path, typer.Argument(help="Where the images and manifest.csv go.")],
    count: Annotated[int, typer.Option(min=2, help="How many; half of them with opacities.")] = 160,
    seed: Annotated[int, typer.Option(help="Another seed makes other patients.")] = 1,
    marker: Annotated[
        bool, typer.Option("--marker", help="Plant a shortcut: a letter on every image with opacities.")
    ] = False,
    json_: Json = False,
) -> None:
    """Generate radiographs of chest phantoms (PNG, JPEG, DICOM), normal and with bilateral opacities."""
    from streaming.folders import check_folder
    from xray.phantom import write_folder

    check_folder(folder, "FOLDER")
    with new_progress() as progress:
        task = progress.add_task("generating radiographs", total=count)
        manifest = write_folder(folder, count, seed=seed, marker=marker, progress=lambda *_: progress.advance(task))
    if json_:
        print_json({"manifest": str(manifest), "count": count})
    else:
        out.print(
            f"{count} radiographs; train on them with: xray train --data {manifest}", markup=False, soft_wrap=True
        )
