"""Options that several commands have, and how their texts are read."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from schemas.errors import Reason


def read_moment(text: str) -> datetime:
    """Read an absolute or a relative time of the command line."""
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    if match := re.fullmatch(r"(\d{1,6})([smhd])", text):
        return datetime.now(UTC) - timedelta(seconds=int(match[1]) * seconds[match[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        msg = f"{text!r} is no time; wanted e.g. 2026-01-31T12:00, 2026-01-31T12:00+01:00, 90s, 30m, 2h or 7d"
        raise typer.BadParameter(msg) from exc
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def read_place(text: str) -> tuple[int, int]:
    """Read ``PARTITION@OFFSET``."""
    match = re.fullmatch(r"(\d{1,9})@(\d{1,18})", text)
    if match is None:
        msg = f"{text!r} is no place in a topic; wanted PARTITION@OFFSET, e.g. 0@17"
        raise typer.BadParameter(msg)
    return int(match[1]), int(match[2])


Since = Annotated[
    datetime | None,
    typer.Option(parser=read_moment, metavar="TIME", help="From this time on: ISO 8601 (UTC unless it says), or 2h."),
]
Until = Annotated[
    datetime | None,
    typer.Option(parser=read_moment, metavar="TIME", help="Before this time: ISO 8601 (UTC unless it says), or 30m."),
]
Reasons = Annotated[list[Reason] | None, typer.Option("--reason", help="Only this reason; may be given several times.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for a program.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Let Spark and its neighbours speak on the terminal.")]
