"""``xray publish``: image files into the images topic."""

from typing import TYPE_CHECKING, Annotated

import typer

from streaming.settings import StreamSettings, load_settings
from xray.commands.options import Json
from xray.console import err, new_progress, out, print_json

if TYPE_CHECKING:
    from streaming.devices.deidentify import Deidentifier


def publish(
    paths: Annotated[list[str], typer.Argument(help="Files, folders (searched for PNG, JPEG, DICOM) or globs.")],
    rate: Annotated[float | None, typer.Option(min=0.001, help="Images per second at most.")] = None,
    source: Annotated[str, typer.Option(help="Who publishes (CloudEvents source).")] = "/xray/publish",
    hide_names: Annotated[
        bool, typer.Option("--hide-names", help="Name images by their content: a file's name may be a patient's.")
    ] = False,
    deidentify: Annotated[
        bool,
        typer.Option(
            "--deidentify", help="Send the images without what names a patient, as the gateway does; hides names too."
        ),
    ] = False,
    json_: Json = False,
) -> None:
    """Send image files to the images topic, and wait until the broker confirms each.

    Exit code 1 when one was not confirmed; each of those is listed. Publishing the same bytes again is harmless: the
    image keeps its id.
    """
    from streaming.devices.publish import find_files, publish_files

    settings = load_settings()
    files = find_files(paths)
    deidentifier = _make_deidentifier(settings) if deidentify else None
    with new_progress() as progress:
        task = progress.add_task("publishing", total=len(files))
        report = publish_files(
            files,
            settings.kafka,
            source=source,
            rate=rate,
            hide_names=hide_names,
            deidentifier=deidentifier,
            on_progress=lambda done: progress.update(task, completed=done),
        )
    failed = {str(path): why for path, why in report.failed.items()}
    if json_:
        print_json({"delivered": len(report.delivered), "failed": failed, "seconds": round(report.seconds, 3)})
    else:
        images = "image" if len(files) == 1 else "images"
        out.print(f"{len(report.delivered)} of {len(files)} {images} confirmed in {report.seconds:.1f} s.")
    for path, why in failed.items():
        err.print(f"not published: {path}: {why}", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _make_deidentifier(settings: StreamSettings) -> "Deidentifier":
    """Make it with the gateway's key and settings, so that an image has one pseudonym by whichever way it comes."""
    from streaming.devices.deidentify import Deidentifier
    from streaming.devices.pseudonyms import open_pseudonyms

    pseudonyms = open_pseudonyms(settings.pseudonyms_key, settings.gateway_folder)
    return Deidentifier(pseudonyms, dates=settings.gateway.dates, limits=settings.score.to_limits())
