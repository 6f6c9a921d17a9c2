"""``xray demo``: all of it on this machine."""

import signal
from typing import Annotated

import typer

from schemas.extras import check_extra
from streaming.settings import load_settings
from xray.commands.options import Json, Verbose
from xray.console import print_json


def demo(
    count: Annotated[int, typer.Option(min=20, max=5000, help="Images to stream, good ones.")] = 300,
    seed: Annotated[int, typer.Option(help="Another seed makes other images.")] = 7,
    keep: Annotated[
        bool, typer.Option("--keep", help="Go on as a sandbox after the summary, until Ctrl-C or xray down.")
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.1, help="Of the sandbox: seconds from one generated image to the next.")
    ] = 5.0,
    port: Annotated[
        int, typer.Option(min=1024, max=65534, help="Of the demo's broker; the next one is used too.")
    ] = 19292,
    json_: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show the whole thing on this machine: broker, generated radiographs, training, streaming, the account.

    Everything it makes is below XRAY_HOME/demo; its broker is its own and ends with it.
    """
    check_extra("train", "the demo trains, which")
    from xray.demo import Keeping, run_demo

    # As Ctrl-C: what was started is ended in order, wherever the demo is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keeping = Keeping(every, json_) if keep else None
    summary = run_demo(load_settings(), count=count, seed=seed, keep=keeping, verbose=verbose, port=port)
    if json_:
        print_json(summary.to_dict())
    if not summary.passed:
        raise typer.Exit(1)
