"""``xray demo``: all of it on this machine."""

from typing import Annotated

import typer

from schemas.extras import check_extra
from streaming.settings import load_settings
from xray.commands.options import Json, Verbose
from xray.console import print_json


def demo(
    count: Annotated[int, typer.Option(min=20, max=5000, help="Images to stream, good ones.")] = 300,
    seed: Annotated[int, typer.Option(help="Another seed makes other images.")] = 7,
    keep: Annotated[bool, typer.Option("--keep", help="Go on streaming after the summary, until Ctrl-C.")] = False,
    json_: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show the whole thing on this machine: broker, generated radiographs, training, streaming, the account.

    Everything it makes is below XRAY_HOME/demo; its broker is its own and ends with it.
    """
    check_extra("train", "the demo trains, which")
    from xray.demo import run_demo

    summary = run_demo(load_settings(), count=count, seed=seed, keep=keep, verbose=verbose)
    if json_:
        print_json(summary.to_dict())
    if not summary.passed:
        raise typer.Exit(1)
