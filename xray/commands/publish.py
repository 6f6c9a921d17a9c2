"""``xray publish``: image files into the images topic."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streaming.settings import StreamSettings, load_settings
from xray.commands.options import Json
from xray.console import err, make_printable, new_progress, out, print_json

if TYPE_CHECKING:
    from streaming.devices.deidentify import Deidentifier
    from streaming.devices.publish import PublishReport
    from streaming.lookup.awaited import AwaitedOutcomes
    from streaming.lookup.outcome import Outcome


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
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for each image's outcome, and print a line of it.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="With --wait: give up when no outcome came for so long.")
    ] = 60.0,
    json_: Json = False,
) -> None:
    """Send image files to the images topic, and wait until the broker confirms each.

    Exit code 1 when one was not confirmed, or with --wait has no prediction; each of those is listed. Publishing the
    same bytes again is harmless: the image keeps its id. A named file that is no image is published all the same, with
    a warning: it becomes a dead letter.
    """
    from streaming.devices.publish import find_files, publish_files
    from streaming.lookup.awaited import open_awaited

    settings = load_settings()
    files = find_files(paths)
    deidentifier = _make_deidentifier(settings) if deidentify else None
    with ExitStack() as stack:
        awaited = stack.enter_context(open_awaited(settings.kafka)) if wait else None
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
        if not json_:
            images = "image" if len(files) == 1 else "images"
            out.print(f"{len(report.delivered)} of {len(files)} {images} confirmed in {report.seconds:.1f} s.")
        for path in report.no_images:
            _warn(f"{path} is no PNG, JPEG or DICOM: it was sent as it is, and will be a dead letter")
        for path, why in report.failed.items():
            _warn(f"not published: {path}: {why}")
        outcomes = {} if awaited is None else _await_outcomes(awaited, report, timeout, quiet=json_)
    if json_:
        print_json(_describe(report, outcomes if wait else None))
    unanswered = [path for path in report.delivered if path not in outcomes] if wait else []
    for path in unanswered:
        _warn(f"no outcome within {timeout:g} s: {path}, image {report.event_ids[path]}")
    if unanswered:
        _warn("'xray status' tells whether a stream runs; 'xray find' with an image's id tells what became of it later")
    if report.failed or unanswered or not all(one.is_prediction for one in outcomes.values()):
        raise typer.Exit(1)


def _await_outcomes(
    awaited: "AwaitedOutcomes", report: "PublishReport", timeout_s: float, *, quiet: bool
) -> "dict[Path, Outcome]":
    """Wait for the images' outcomes, and print each as it comes; files of the same name and bytes share one."""
    files: dict[str, list[Path]] = {}
    for path in report.delivered:
        files.setdefault(report.event_ids[path], []).append(path)
    found: dict[Path, Outcome] = {}
    for outcome in awaited.read(files, timeout_s):
        for path in files[outcome.image_key]:
            found[path] = outcome
            if not quiet:
                out.print(make_printable(f"{path}: {_say(outcome)}"), markup=False, soft_wrap=True)
    return found


def _say(outcome: "Outcome") -> str:
    model = outcome.model
    if model is None:
        return f"dead letter {outcome.event_id}, {outcome.reason}: {outcome.error or 'no message'}"
    flags = f", flags {', '.join(outcome.flags)}" if outcome.flags else ""
    score = f"score {outcome.score:.3f} for {model.positive_label}"
    return f"{outcome.shown_label}, {score}{flags}, model {model.version}, prediction {outcome.event_id}"


def _describe(report: "PublishReport", outcomes: "Mapping[Path, Outcome] | None") -> dict[str, Any]:
    found: dict[str, Any] = {
        "delivered": len(report.delivered),
        "failed": {str(path): why for path, why in report.failed.items()},
        "seconds": round(report.seconds, 3),
        "no_images": [str(path) for path in report.no_images],
        "event_ids": {str(path): report.event_ids[path] for path in report.delivered},
    }
    if outcomes is not None:
        from streaming.lookup.history import describe_outcome

        found["outcomes"] = {
            str(path): describe_outcome(outcomes[path]) if path in outcomes else None for path in report.delivered
        }
    return found


def _warn(text: str) -> None:
    err.print(make_printable(text), markup=False, soft_wrap=True)


def _make_deidentifier(settings: StreamSettings) -> "Deidentifier":
    """Make it with the gateway's key and settings, so that an image has one pseudonym by whichever way it comes."""
    from streaming.devices.deidentify import Deidentifier
    from streaming.devices.pseudonyms import open_pseudonyms

    pseudonyms = open_pseudonyms(settings.pseudonyms_key, settings.gateway_folder)
    return Deidentifier(pseudonyms, dates=settings.gateway.dates, limits=settings.score.to_limits())
