"""``xray alerts``: alarms on outcomes, by the rules of a file."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.envelope import DISCLAIMER
from schemas.errors import JobError
from schemas.extras import check_extra
from streaming.ending import end_on_signals
from streaming.settings import StreamSettings, load_settings
from xray.commands.options import Json
from xray.console import err, make_printable, new_table, out, print_json, say_ended

if TYPE_CHECKING:
    from streaming.alerts.ledger import Delivery, Entry, Ledger

_SHOWN_ID = 12

alerts_app = typer.Typer(
    help=(
        "Alarms on predictions, dead letters and receipts, delivered to Alertmanager, webhooks, mail or a file.\n\n"
        "Write rules, try them: [bold]xray alerts check RULES.yml --against EVENTS.jsonl[/]. Then: "
        "[bold]xray alerts run RULES.yml[/]. Research use only. Not a medical device."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)

RulesFile = Annotated[Path, typer.Argument(metavar="RULES.yml", help="Rules and sinks; see docs/alerts.md.")]


@alerts_app.command("run")
def run_rules(
    rules_file: RulesFile,
    json_: Annotated[bool, typer.Option("--json", help="One JSON line when ready, and one at the end.")] = False,
) -> None:
    """Read outcomes and deliver alarms; until Ctrl-C.

    Each alarm is written down before it is sent, and sent again until its receiver has it, with the same id. One
    process at a time for each state folder (XRAY_ALERTS__FOLDER).
    """
    check_extra("alerts", "xray alerts")
    from streaming.alerts.rulesfile import read_rules
    from streaming.alerts.service import AlertsState, run_alerts
    from streaming.alerts.sinks import open_sinks

    rules = read_rules(rules_file)
    sinks = open_sinks(rules.sinks)
    settings = load_settings()
    ended = threading.Event()
    end_on_signals(ended)

    def on_ready(state: AlertsState) -> None:
        if json_:
            print_json(
                {
                    "event": "ready",
                    "metrics": state.metrics_url,
                    "rules": len(rules.rules),
                    "sinks": list(state.sinks),
                    "folder": str(settings.alerts_folder),
                }
            )
            return
        out.print(f"[green]Alarms[/] by {len(rules.rules)} rules, to {', '.join(state.sinks) or 'no sink'}")
        out.print(f"Metrics {state.metrics_url}")
        out.print(f"Health  {state.metrics_url.removesuffix('metrics')}health")
        out.print(f"{DISCLAIMER} Ctrl-C ends it in order.")

    run_alerts(settings, rules, sinks, ended=ended, on_ready=on_ready)
    say_ended(as_json=json_)


@alerts_app.command("check")
def check_rules(
    rules_file: RulesFile,
    against: Annotated[
        Path | None,
        typer.Option(metavar="EVENTS.jsonl", help="Say what would fire: 'xray watch --json' or topics' records."),
    ] = None,
    sinks: Annotated[
        bool, typer.Option("--sinks/--no-sinks", help="Check addresses and secrets of the sinks too.")
    ] = True,
    json_: Json = False,
) -> None:
    """Check a file of rules and run its tests; nothing is sent. Exit code 1 where a test fails.

    With --json and --against: for each event and rule the alarm, or why there is none.
    """
    check_extra("alerts", "xray alerts")
    from streaming.alerts.rulesfile import read_rules
    from streaming.alerts.sinks import open_sinks
    from streaming.alerts.trial import describe_verdict, read_events, run_tests, try_rules

    rules = read_rules(rules_file)
    if sinks:
        open_sinks(rules.sinks)
    results = run_tests(rules)
    trial = None if against is None else try_rules(rules, read_events(against))
    failed = [one for one in results if one.faults]
    if json_:
        found: dict[str, Any] = {
            "rules": [rule.name for rule in rules.rules],
            "tests": [{"name": one.name, "ok": not one.faults, "faults": one.faults} for one in results],
        }
        if trial is not None:
            found["alarms"] = [_describe(entry) for entry in trial.alarms]
            found["verdicts"] = [describe_verdict(event, one) for event, all_ in trial.verdicts for one in all_]
        print_json(found)
    else:
        out.print(f"{len(rules.rules)} rules, {len(results)} tests, {len(failed)} failed.")
        for one in failed:
            for fault in one.faults:
                out.print(make_printable(f"test {one.name}: {fault}"), markup=False, soft_wrap=True)
        if trial is not None:
            _show(trial.alarms)
            _count_reasons([one.why for _, all_ in trial.verdicts for one in all_ if one.why is not None])
    if failed:
        raise typer.Exit(1)


@alerts_app.command("list")
def list_alarms(
    rule: Annotated[str | None, typer.Option(metavar="NAME", help="Only alarms of this rule.")] = None,
    sink: Annotated[str | None, typer.Option(metavar="NAME", help="Only alarms for this sink.")] = None,
    undelivered: Annotated[
        bool, typer.Option("--undelivered", help="Only alarms that a sink has not got, and will not get by itself.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    json_: Json = False,
) -> None:
    """List alarms, newest first, and what became of their deliveries."""
    from streaming.alerts.ledger import UNDELIVERED

    with _Opened(load_settings()) as ledger:
        if undelivered:
            by_status = [ledger.list_alarms(rule=rule, status=one, sink=sink, limit=limit) for one in UNDELIVERED]
            found = {one.alarm.id: one for entries in by_status for one in entries}
            entries = sorted(found.values(), key=lambda one: one.alarm.starts_at, reverse=True)[:limit]
        else:
            entries = ledger.list_alarms(rule=rule, sink=sink, limit=limit)
        deliveries = {one.alarm.id: ledger.list_deliveries(one.alarm.id) for one in entries}
    if json_:
        print_json([_describe(one, deliveries[one.alarm.id]) for one in entries])
    else:
        _show(entries, deliveries)


@alerts_app.command("show")
def show_alarm(
    alarm: Annotated[str, typer.Argument(metavar="ID", help="As 'list' shows it; its beginning is enough.")],
    json_: Json = False,
) -> None:
    """Show one alarm: what it says, what became of each delivery, and which images a summary is about."""
    with _Opened(load_settings()) as ledger:
        entry = _find(ledger, alarm)
        deliveries = ledger.list_deliveries(entry.alarm.id)
        members = ledger.list_members(entry.alarm.id)
    if json_:
        print_json(_describe(entry, deliveries) | {"members": members})
        return
    said = _describe(entry)
    for name in ("id", "rule", "kind", "severity", "state", "starts_at", "ends_at", "images"):
        out.print(make_printable(f"{name:12}{said[name]}"), markup=False)
    for part in ("labels", "annotations"):
        for name, text in said[part].items():
            out.print(make_printable(f"{name:12}{text}"), markup=False, soft_wrap=True)
    for member in members:
        out.print(make_printable(f"{'image':12}{member['image']}"), markup=False, soft_wrap=True)
    _show_deliveries(deliveries)


@alerts_app.command("replay")
def replay_alarms(
    alarms: Annotated[list[str] | None, typer.Argument(metavar="[ID]", help="As 'list' shows them.")] = None,
    undelivered: Annotated[
        bool,
        typer.Option("--undelivered", help="All that were refused, given up, or for a sink that is disabled or gone."),
    ] = False,
    sink: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only to this sink, which is enabled again where it was disabled."),
    ] = None,
    json_: Json = False,
) -> None:
    """Deliver alarms again, with the ids they have: a receiver that has one drops it.

    A running 'xray alerts run' sends them within a second, otherwise the next one does.
    """
    import time

    if bool(alarms) == undelivered:
        msg = "say which: ids, or --undelivered; one of the two"
        raise typer.BadParameter(msg)
    with _Opened(load_settings()) as ledger:
        if undelivered:
            n_alarms, n = ledger.replay_undelivered(sink, time.time())
        else:
            chosen = {_find(ledger, one).alarm.id for one in alarms or ()}
            n_alarms, n = len(chosen), ledger.replay(sorted(chosen), sink, time.time())
    if json_:
        print_json({"alarms": n_alarms, "deliveries": n})
    else:
        out.print(f"{n} deliveries of {n_alarms} alarms will be made again.")


class _Opened:
    """The ledger of a state folder, whether or not 'xray alerts run' has it."""

    def __init__(self, settings: StreamSettings) -> None:
        self._folder = settings.alerts_folder

    def __enter__(self) -> "Ledger":
        from streaming.alerts.ledger import LEDGER_FILE, Ledger

        path = self._folder / LEDGER_FILE
        if not path.is_file():
            msg = f"there is no {path}: 'xray alerts run' has never run from this state folder (XRAY_ALERTS__FOLDER)"
            raise JobError(msg)
        self._ledger = Ledger(path)
        return self._ledger

    def __exit__(self, *_: object) -> None:
        self._ledger.close()


def _find(ledger: "Ledger", alarm: str) -> "Entry":
    entry = ledger.find(alarm)
    if entry is None:
        msg = f"no alarm, or more than one, begins with {alarm}; 'xray alerts list' shows them"
        raise JobError(msg)
    return entry


def _describe(entry: "Entry", deliveries: "list[Delivery] | None" = None) -> dict[str, Any]:
    from streaming.alerts.wording import write_time

    alarm = entry.alarm
    found: dict[str, Any] = {
        "id": alarm.id,
        "rule": alarm.rule,
        "kind": entry.kind.value,
        "severity": alarm.severity,
        "state": alarm.state.value,
        "starts_at": write_time(alarm.starts_at),
        "ends_at": None if alarm.ends_at is None else write_time(alarm.ends_at),
        "images": entry.images,
        "labels": dict(alarm.labels),
        "annotations": dict(alarm.annotations),
        "event": dict(alarm.event),
        "routes": list(entry.routes),
    }
    if deliveries is not None:
        found["deliveries"] = [
            {
                "sink": one.sink,
                "state": one.alarm.state.value,
                "status": one.status.value,
                "attempts": one.attempts,
                "next_at": one.next_at,
                "delivered_at": one.delivered_at,
                "why": one.why or None,
            }
            for one in deliveries
        ]
    return found


def _show(entries: "list[Entry]", deliveries: "dict[str, list[Delivery]] | None" = None) -> None:
    table = new_table("id", "start", "rule", "severity", "what", "deliveries")
    for entry in entries:
        said = _describe(entry)
        sent = ", ".join(f"{one.sink} {one.status.value}" for one in (deliveries or {}).get(entry.alarm.id, ()))
        cells = (said["id"][:_SHOWN_ID], said["starts_at"], said["rule"], said["severity"])
        what = said["annotations"].get("summary", f"{entry.images} images so far")
        table.add_row(*map(make_printable, (*cells, what, sent or ", ".join(entry.routes))))
    out.print(table, markup=False)


def _show_deliveries(deliveries: "list[Delivery]") -> None:
    table = new_table("sink", "state", "status", "#attempts", "why")
    for one in deliveries:
        table.add_row(one.sink, one.alarm.state.value, one.status.value, str(one.attempts), make_printable(one.why))
    out.print(table, markup=False)


def _count_reasons(reasons: list[Any]) -> None:
    for why in sorted(set(reasons)):
        err.print(f"no alarm, {why}: {reasons.count(why)}", markup=False)
