"""``xray deadletters``: what could not be scored, and sending it again."""

import re
from pathlib import Path
from typing import Annotated

import typer

from schemas.errors import JobError
from streaming.settings import load_settings
from xray.commands.options import Json, Reasons, Since, Until, read_place
from xray.console import err, new_progress, out, print_json, step

deadletters_app = typer.Typer(
    help=(
        "List the records that could not be scored, show one, send them again.\n\n"
        "Look: [bold]xray deadletters list --since 2h[/]. Repair what was wrong. Try: [bold]xray deadletters redrive "
        "--reason payload_too_large --dry-run[/]; then the same without --dry-run.\n\n"
        "Nothing that was about a patient is printed. Needs no Spark."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@deadletters_app.command("list")
def list_deadletters(
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=0, help="The newest so many; 0 only counts.")] = 50,
    json_: Json = False,
) -> None:
    """List dead letters, newest first, and count them by reason.

    Times are those at which they were written to the topic of dead letters.
    """
    from streaming.deadletters.read import Selection, list_dead_letters
    from xray.views import show_dead_letters

    settings = load_settings()
    with step("reading dead letters"):
        listing = list_dead_letters(settings.kafka, Selection(frozenset(reason or ()), since, until), limit=limit)
    if json_:
        print_json(listing.to_dict())
    else:
        show_dead_letters(listing)


@deadletters_app.command("show")
def show_deadletter(
    which: Annotated[
        str, typer.Argument(metavar="DEAD_LETTER", help="PARTITION@OFFSET as 'list' shows it, or an event id.")
    ],
    save: Annotated[Path | None, typer.Option(help="Write the original bytes to this new file.")] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Print where in the program it failed, for a bug report.")
    ] = False,
    json_: Json = False,
) -> None:
    """Show one dead letter: what was wrong, where the record was, its size, format and headers.

    The record's bytes, its key and values of headers that could be about a patient are not printed. --save writes the
    bytes as they came; such a file may hold patient data, and only you can read it.
    """
    from streaming.deadletters.read import show_dead_letter
    from streaming.kafka.places import Place
    from xray import views

    settings = load_settings()
    place = which if re.fullmatch("[0-9a-f]{32}", which) else Place(*read_place(which))
    with step("looking for it"):
        details = show_dead_letter(settings.kafka, place)
    if save is not None:
        _save_payload(details.payload, save)
    if json_:
        print_json({**details.to_dict(), "saved": None if save is None else str(save)})
        return
    views.show_dead_letter(details, trace=trace)
    if save is not None:
        out.print(f"{len(details.payload or b'')} bytes written to {save}.", markup=False)


@deadletters_app.command("redrive")
def redrive_deadletters(
    which: Annotated[
        list[str] | None, typer.Argument(metavar="[PARTITION@OFFSET]", help="As 'list' shows them.")
    ] = None,
    reason: Reasons = None,
    since: Since = None,
    until: Until = None,
    all_: Annotated[bool, typer.Option("--all", help="Every dead letter that the topic holds.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also those that were sent again before.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be sent.")] = False,
    json_: Json = False,
) -> None:
    """Send original records to the images topic again, once what was wrong with them is repaired.

    Name them by place, or by --reason, --since and --until, or say --all. Bytes, key and headers are the original ones;
    the header xray_redriven_from says where the record was before. Each is sent again once: a second call leaves it
    out, unless it failed anew. It does not ask; it tells how many it sends and why others are left out. Exit code 1
    when one was not confirmed.
    """
    from streaming.deadletters.read import Selection
    from streaming.deadletters.redrive import plan_redrive, redrive
    from streaming.kafka.places import Place
    from xray.views import show_redrive_plan, show_redrive_report

    filters = bool(reason or since or until)
    if bool(which) + filters + all_ != 1:
        msg = "say which: PARTITION@OFFSET..., or --reason / --since / --until, or --all; one of the three"
        raise typer.BadParameter(msg)
    settings = load_settings()
    kafka = settings.kafka
    selection = Selection(frozenset(reason or ()), since, until, [Place(*read_place(text)) for text in which or ()])
    with step("reading dead letters, and what was sent again before"):
        plan = plan_redrive(kafka, selection, max_payload_bytes=settings.score.max_payload_bytes, again=again)
    show_redrive_plan(plan, kafka.images_topic, dry_run=dry_run)
    if dry_run:
        if json_:
            print_json({"dry_run": True, **plan.to_dict()})
        return
    with new_progress() as progress:
        task = progress.add_task("re-driving", total=len(plan.chosen))
        report = redrive(kafka, plan, on_progress=lambda done: progress.update(task, completed=done))
    failed = {str(place): why for place, why in report.failed.items()}
    if json_:
        figures = {"redriven": len(report.delivered), "failed": failed, "seconds": round(report.seconds, 3)}
        print_json({"dry_run": False, **plan.to_dict(), **figures})
    else:
        show_redrive_report(report)
    for place, why in failed.items():
        err.print(f"not sent: {place}: {why}", markup=False)
    if failed:
        raise typer.Exit(1)


def _save_payload(payload: bytes | None, path: Path) -> None:
    if payload is None:
        msg = "a tombstone has no bytes to save"
        raise JobError(msg)
    try:
        path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(payload)
    except OSError as exc:
        msg = f"cannot write {path}: {exc.strerror}; --save wants a new file"
        raise JobError(msg) from exc
