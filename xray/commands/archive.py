"""``xray archive``: outcomes into the Delta tables, as a program of its own."""

import threading
from typing import Annotated

import typer

from schemas.envelope import DISCLAIMER
from streaming.ending import end_on_signals
from streaming.settings import load_settings
from xray.console import out, print_json, say_ended


def archive(
    available_now: Annotated[bool, typer.Option("--available-now", help="Write what is there, then end.")] = False,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="Go on behind outcomes that retention removed unread, or from the beginning of a topic made anew.",
        ),
    ] = False,
    from_beginning: Annotated[
        bool,
        typer.Option("--from-beginning", help="Read all that the topics have once more; no row is added twice."),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON line when ready, and one at the end.")] = False,
) -> None:
    """Keep predictions, feature vectors and dead letters in Delta tables (ARCHIVE), with their upkeep; until Ctrl-C.

    'xray stream' starts one beside it. By itself it runs where that has --no-archive: on another machine, in a
    container of its own, or to write what is missing. One at a time; a second one ends with an error.
    """
    from streaming.archive.service import ArchiveState, run_archive

    settings = load_settings()
    ended = threading.Event()

    def on_ready(state: ArchiveState) -> None:
        if json_:
            print_json({"event": "ready", "metrics": state.metrics_url or None, "tables": settings.tables_folder})
        else:
            out.print(f"[green]Archiving[/] into {settings.tables_folder}", soft_wrap=True)
            if state.metrics_url:
                out.print(f"Metrics {state.metrics_url}")
                out.print(f"Health  {state.metrics_url.removesuffix('metrics')}health")
            out.print(DISCLAIMER if available_now else f"{DISCLAIMER} Ctrl-C ends it in order.")

    end_on_signals(ended)
    run_archive(
        settings,
        available_now=available_now,
        accept_loss=accept_loss,
        from_beginning=from_beginning,
        ended=ended,
        on_ready=on_ready,
    )
    say_ended(as_json=json_)
