"""``xray stream``: score and archive until told to stop."""

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from schemas.envelope import DISCLAIMER
from streaming.ending import end_on_signals
from streaming.settings import load_settings
from xray.commands.options import Verbose
from xray.console import err, out, print_json


def stream(
    available_now: Annotated[bool, typer.Option("--available-now", help="Score what is there, then end.")] = False,
    model: Annotated[
        Path | None, typer.Option(help="Serve this folder and stay with it; by default the champion.")
    ] = None,
    no_archive: Annotated[
        bool, typer.Option("--no-archive", help="Write no tables; a later stream without this option does.")
    ] = False,
    accept_loss: Annotated[
        bool,
        typer.Option(
            "--accept-loss",
            help="Go on behind records that retention removed unread, or from the beginning of a topic made anew.",
        ),
    ] = False,
    from_beginning: Annotated[
        bool,
        typer.Option("--from-beginning", help="Without a checkpoint: score images again that have an outcome already."),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON line when ready, and one at the end.")] = False,
    verbose: Verbose = False,
) -> None:
    """Score images as they come (SCORE), keep results in Delta tables (ARCHIVE), serve metrics; until Ctrl-C.

    Ctrl-C and SIGTERM finish the running batch and commit it; what comes later is read at the next start. A model that
    is promoted meanwhile (xray models promote) serves from the next batch on.
    """
    # Before the other imports: the JVM runs up beside them.
    from streaming.run.session import launch_ahead

    settings = load_settings()
    with ExitStack() as stack:
        ahead = launch_ahead(settings, verbose=verbose)
        if ahead is not None:
            stack.callback(ahead.end_jvm)
        from prometheus_client import CollectorRegistry

        from streaming.run.service import StreamState, run_stream
        from xray.monitor import Monitor

        ended, registry = threading.Event(), CollectorRegistry()
        monitor = None if available_now else Monitor(settings, registry, model_folder=model)
        if monitor is not None:
            stack.callback(monitor.stop)

        def on_ready(state: StreamState) -> None:
            if monitor is not None:
                monitor.start()
            if json_:
                print_json({"event": "ready", "metrics": state.metrics_url, "model": state.card.version})
            else:
                out.print(f"[green]Streaming[/] {settings.kafka.images_topic} → {settings.kafka.predictions_topic}")
                out.print(f"Model   {state.card.name} {state.card.version} ({', '.join(state.card.labels)})")
                out.print(f"Tables  {'not written (--no-archive)' if no_archive else settings.tables_folder}")
                out.print(f"Metrics {state.metrics_url}")
                out.print(f"Logs    {settings.logs_folder / 'spark.log'}")
                out.print(DISCLAIMER if available_now else f"{DISCLAIMER} Ctrl-C ends it in order.")

        end_on_signals(ended)
        if not json_:
            err.print("starting (Spark takes some seconds) ...")
        run_stream(
            settings,
            model_folder=model,
            available_now=available_now,
            archive=not no_archive,
            accept_loss=accept_loss,
            from_beginning=from_beginning,
            ended=ended,
            on_ready=on_ready,
            registry=registry,
            verbose=verbose,
            ahead=ahead,
        )
    if json_:
        print_json({"event": "ended"})
    else:
        out.print("Ended in order: every consumed image has its outcome.")
