"""``xray results``: predictions as hospitals read them."""

import threading
from pathlib import Path
from typing import Annotated, Literal

import typer

from schemas.envelope import DISCLAIMER
from schemas.extras import check_extra
from streaming.ending import end_on_signals
from streaming.settings import load_settings
from xray.commands.options import Json, Since
from xray.console import err, out, print_json, say_ended, step

results_app = typer.Typer(
    help=(
        "Write reports of predictions, or deliver them: FHIR R4, DICOM SR, HL7 v2.\n\n"
        "Look: [bold]xray results export --to FOLDER[/]. Deliver: [bold]xray results run --to fhir:URL[/]. "
        "Reports name patients, by the gateway's crosswalk; without it there are none.\n\n"
        "Research use only. Not a medical device."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Demonstration = Annotated[bool, typer.Option("--demonstration", help="Report predictions of demonstration models too.")]


@results_app.command("export")
def export_results(
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where to; files are for their owner alone.")],
    form: Annotated[
        Literal["fhir", "ndjson", "sr", "hl7"],
        typer.Option("--format", help="A FHIR Bundle, a DICOM SR or an HL7 message for each image; or all Bundles."),
    ] = "fhir",
    since: Since = None,
    from_tables: Annotated[
        bool, typer.Option("--from-tables", help="Read the archive's tables instead of the topics.")
    ] = False,
    demonstration: Demonstration = False,
    json_: Json = False,
) -> None:
    """Write a report of each prediction that there is.

    A report whose finding a person has confirmed is amended. Predictions without a report are counted, with the reason.
    """
    check_extra("reports", "reporting")
    from streaming.reports.export import export_reports

    settings = load_settings()
    with step("writing reports"):
        summary = export_reports(
            settings, to, form=form, since=since, from_tables=from_tables, demonstration=demonstration
        )
    if json_:
        print_json(summary.to_dict())
        return
    out.print(f"{summary.written} reports in {to}, {summary.amended} of them amended", soft_wrap=True)
    for reason, count in sorted(summary.left_out.items()):
        err.print(f"no report of {count}: {reason.meaning}", markup=False, soft_wrap=True)
    out.print(DISCLAIMER)


@results_app.command("run")
def run_results(
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            metavar="TARGET",
            help=(
                "fhir:URL, stow:URL, dicom:AET@HOST:PORT, mllp:HOST:PORT or files:FOLDER, with TLS dicoms: or mllps:; "
                "may be given several times."
            ),
        ),
    ],
    from_beginning: Annotated[
        bool,
        typer.Option("--from-beginning", help="A target that is new begins with the oldest prediction, not the next."),
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Send once more what a target refused for good.")] = False,
    demonstration: Demonstration = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON line when ready, and one at the end.")] = False,
) -> None:
    """Deliver a report of each new prediction, once acknowledged; amend it when a person confirms a finding.

    Until Ctrl-C. Each target has its own place in the topics and its own ledger: a dead one stops no other, and has
    everything once it is back.
    """
    check_extra("reports", "reporting")
    from streaming.reports.service import ReportsState, run_reports

    settings = load_settings()
    ended = threading.Event()
    end_on_signals(ended)

    def on_ready(state: ReportsState) -> None:
        if json_:
            targets = list(state.targets)
            print_json({"event": "ready", "targets": targets, "again": state.reopened, "metrics": state.metrics_url})
            return
        for text in to:
            out.print(f"[green]Reporting[/] to {text}", soft_wrap=True)
        if again:
            out.print(f"{state.reopened} reports are sent again")
        out.print(f"Metrics {state.metrics_url}")
        out.print(f"{DISCLAIMER} Ctrl-C ends it in order.")

    run_reports(
        settings,
        to,
        demonstration=demonstration,
        from_beginning=from_beginning,
        again=again,
        ended=ended,
        on_ready=on_ready,
    )
    say_ended(as_json=json_)
