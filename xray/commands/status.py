"""``xray status``: what runs and what is there."""

from typing import Any

import typer
from rich.markup import escape

from sparkdl.image.limits import describe_other_rendering
from streaming.settings import load_settings
from xray.commands.options import Json
from xray.console import new_table, out, print_json
from xray.tabular import print_table


def status(json_: Json = False) -> None:
    """Tell whether the broker answers, what topics and spool hold, and the champion. Exit code 1: no answer."""
    from xray.status import describe_status

    state = describe_status(load_settings())
    if json_:
        print_json(state)
    else:
        table = new_table("topic", "#partitions", "#messages")
        for name, topic in state["topics"].items():
            table.add_row(name, str(topic["partitions"]), str(topic["messages"]))
        answer = (
            "[green]answers[/]" if state["kafka"] else f"[red]does not answer[/]; {_advise(state['bootstrap_servers'])}"
        )
        out.print(f"Kafka at {state['bootstrap_servers']} {answer}.", soft_wrap=True)
        out.print(f"State folder: {state['home']}", markup=False, soft_wrap=True)
        out.print(f"Champion: {state['champion'] or 'none; train one with xray train'}")
        rendering = state["champion_rendering_version"]
        if rendering is not None and (told := describe_other_rendering(rendering)):
            out.print(f"[bold yellow]warning:[/] {escape(told)}", soft_wrap=True)
        if state["spool"] is not None:
            out.print(_describe_spool(state["spool"]), soft_wrap=True)
        if state["topics"]:
            print_table(table)
    if not state["kafka"]:
        raise typer.Exit(1)


def _describe_spool(spool: dict[str, Any]) -> str:
    where = f"Spool: {escape(spool['folder'])}"
    if spool["error"] is not None:
        return f"{where} [red]cannot be read[/]: {escape(spool['error'])}"
    waiting = f"{spool['images']} images wait, {spool['bytes']} bytes"
    if spool["oldest_at"] is not None:
        waiting += f", the oldest since {spool['oldest_at']}"
    aside = [f"{spool[kind]} {kind}" for kind in ("refused", "damaged") if spool[kind]]
    return f"{where}: {waiting}" + (f"; [red]set aside: {', '.join(aside)}[/]" if aside else "")


def _advise(servers: str) -> str:
    from xray.broker import LOCAL_HOSTS

    if servers.rpartition(":")[0] in LOCAL_HOSTS:
        return "start it with 'xray up'"
    return "look at XRAY_KAFKA__BOOTSTRAP_SERVERS, the network and that cluster"
