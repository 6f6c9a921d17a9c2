"""``xray status``: what runs and what is there."""

import typer

from streaming.settings import load_settings
from xray.commands.options import Json
from xray.console import new_table, out, print_json
from xray.tabular import print_table


def status(json_: Json = False) -> None:
    """Tell whether the broker answers, what the topics hold and which model is promoted. Exit code 1: no answer."""
    from xray.status import describe_status

    state = describe_status(load_settings())
    if json_:
        print_json(state)
    else:
        table = new_table("topic", "#partitions", "#messages")
        for name, topic in state["topics"].items():
            table.add_row(name, str(topic["partitions"]), str(topic["messages"]))
        answer = "[green]answers[/]" if state["kafka"] else "[red]does not answer[/]; start it with 'xray up'"
        out.print(f"Kafka at {state['bootstrap_servers']} {answer}.")
        out.print(f"State folder: {state['home']}")
        out.print(f"Promoted model: {state['champion'] or 'none; train one with xray train'}")
        if state["topics"]:
            print_table(table)
    if not state["kafka"]:
        raise typer.Exit(1)
