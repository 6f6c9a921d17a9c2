"""What all devices have done so far, on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.live import Live
from rich.table import Table

from xray.console import err, new_table
from xray.simulator.account import Account
from xray.simulator.habits import Way

_COLUMNS = ("sent", "accepted", "refused", "retry", "given up")


@contextmanager
def show_devices(account: Account) -> Iterator[Callable[[], None]]:
    """Give what redraws the table; nothing is drawn where standard error is no terminal."""
    if not err.is_terminal:
        yield lambda: None
        return
    with Live(console=err, auto_refresh=False) as live:
        yield lambda: live.update(draw_account(account), refresh=True)


def draw_account(account: Account) -> Table:
    """Draw the account so far, a row for each way of sending."""
    figures = account.figures()
    latency = figures["latency_s"]
    times = "no answer yet" if latency["p50"] is None else f"answers p50 {latency['p50']} s, p99 {latency['p99']} s"
    table = new_table("devices send by", *(f"#{column}" for column in _COLUMNS))
    table.title = f"{figures['sent']} images in {figures['seconds']:.0f} s, {times}"
    for way in Way:
        if account.by_way[way, "sent"]:
            table.add_row(way, *(str(account.by_way[way, column]) for column in _COLUMNS))
    refused = ", ".join(f"{answer} ({count})" for answer, count in figures["refused"].items())
    table.caption, table.caption_justify = f"refused for good: {refused or 'none'}", "left"
    return table
