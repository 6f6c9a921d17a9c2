"""``xray doctor``: what is wrong here, and what to do about it."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from streaming.settings import load_settings
from xray.commands.options import Json
from xray.console import make_printable, out, print_json
from xray.tabular import print_listing

if TYPE_CHECKING:
    from xray.doctor.finding import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def doctor(
    role: Annotated[
        list[str] | None,
        typer.Option("--role", metavar="ROLE", help="Kafka's user must have this role's rights: stream, gateway, ..."),
    ] = None,
    json_: Json = False,
) -> None:
    """Check Java, ports, disks, Kafka, topics, rights, clocks, models, tables and settings. Exit code 1: a fault.

    Each with what to do next. Nothing is changed, and each check has half a minute.
    """
    from xray.doctor.examination import examine, list_checks

    settings = load_settings()
    _refuse_unknown_roles(role or ())
    findings = examine(settings, list_checks(tuple(role or ())))
    counts = Counter(finding.verdict.value for finding in findings)
    if json_:
        print_json({"findings": [finding.to_dict() for finding in findings], "counts": dict(counts)})
    else:
        print_listing(("check", "", "found", "what to do"), [_draw(finding) for finding in findings], whole=1)
        told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in _COLOURS)
        out.print(f"{told}. State folder: {escape(str(settings.home))}", soft_wrap=True)
    if counts["fault"]:
        raise typer.Exit(1)


def _refuse_unknown_roles(roles: "list[str] | tuple[()]") -> None:
    from streaming.kafka.rights import list_roles
    from streaming.settings import KafkaSettings

    known = list_roles(KafkaSettings())
    for one in roles:
        if one not in known:
            msg = f"there is no role {one!r}; wanted one of {', '.join(known)}"
            raise typer.BadParameter(msg, param_hint="--role")


def _draw(finding: "Finding") -> tuple[str, str, str, str]:
    colour = _COLOURS[finding.verdict.value]
    found, advice = (escape(make_printable(text)) for text in (finding.found, finding.advice))
    return finding.check, f"[{colour}]{finding.verdict.value}[/]", found, advice
