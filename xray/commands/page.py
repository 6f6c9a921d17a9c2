"""``xray page``: what the stream does, for people who look."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from schemas.envelope import DISCLAIMER
from schemas.extras import check_extra
from streaming.ending import end_on_signals
from streaming.settings import load_settings
from xray.console import out, print_json, say_ended


def page(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 takes a free one. [8050]")] = None,
    allow_operate: Annotated[
        bool, typer.Option("--allow-operate", help="Let people promote, roll back and redrive from it.")
    ] = False,
    thumbnails: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep thumbnails after Kafka has removed the images.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON line once it answers, and one at the end.")] = False,
) -> None:
    """Show the stream to people: health, the latest images with their scores, models; until Ctrl-C.

    The address that is printed has a token, which lets its reader in. Who else may: XRAY_PAGE__PEOPLE. It reads Kafka,
    the metrics of the other programs and the models in XRAY_HOME, and needs neither Java nor Spark.
    """
    check_extra("page", "xray page")
    from streaming.page.service import PageState, run_page
    from xray.modelmoves import PageMoves

    given = {"port": port, "allow_operate": allow_operate or None, "thumbnails": thumbnails}
    settings = load_settings(page={name: value for name, value in given.items() if value is not None})
    ended = threading.Event()
    end_on_signals(ended)

    def on_ready(state: PageState) -> None:
        if json_:
            print_json({"event": "ready", "url": state.url, "address": state.address, "disclaimer": DISCLAIMER})
            return
        out.print("[green]Page[/]   ", end="")
        out.print(state.url, soft_wrap=True, markup=False, highlight=False)
        if not settings.page.allow_operate:
            out.print("Nobody can promote, roll back or redrive from it; --allow-operate lets them.")
        out.print(f"{DISCLAIMER} Ctrl-C ends it in order.")

    run_page(settings, moves=PageMoves(settings), ended=ended, on_ready=on_ready)
    say_ended(as_json=json_)
