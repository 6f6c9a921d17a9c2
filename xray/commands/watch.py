"""``xray watch``: predictions as they come."""

from typing import Annotated

import typer

from streaming.settings import load_settings


def watch(
    from_beginning: Annotated[bool, typer.Option("--from-beginning", help="Begin with the oldest.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many predictions.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="End after so many quiet seconds.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="A JSON line each: the event, and latency_seconds.")] = False,
) -> None:
    """Show predictions as they come."""
    from xray.views import watch_live

    watch_live(load_settings().kafka, from_beginning=from_beginning, count=count, timeout_s=timeout, as_json=json_)
