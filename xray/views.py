"""How results look on a terminal: the account, a training run, predictions as they come."""

import math
from collections import Counter, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from schemas.envelope import DISCLAIMER
from schemas.modelcard import UNDECIDED, Flag
from streaming.account.audit import Account
from streaming.deadletters.read import Details, Listing
from streaming.deadletters.redrive import RedrivePlan, RedriveReport, Skip
from streaming.results.watch import SeenPrediction, watch_predictions
from streaming.settings import KafkaSettings
from xray.console import err, make_printable, new_table, out, print_json
from xray.tabular import print_listing, print_table

if TYPE_CHECKING:  # it brings Spark, and the other views are of commands that start without
    from training.evidence.probes import Verdict
    from training.figures.bootstrap import Estimate
    from training.lifecycle.promotion import PromotionDecision
    from training.model.material import TrainingResult
    from xray.train import Trained

_LIVE_ROWS = 20
_WORD_WIDTH = 20
"""Of a label or a flag, in columns; longer ones go on in the next line, so that 80 columns are enough for a row."""
_SKIP_TEXTS = {
    Skip.TOMBSTONE: "tombstones: there are no bytes to send",
    Skip.EMPTY_PAYLOAD: "empty: there are no bytes to send",
    Skip.TOO_LARGE: "larger than XRAY_SCORE__MAX_PAYLOAD_BYTES: they would come back; raise it here and for the stream",
    Skip.OVER_BOUND: "with a key or headers larger than the contract allows: they would come back; publish them anew",
    Skip.OTHER_TOPIC: "read from another images topic; set XRAY_KAFKA__IMAGES_TOPIC to that one",
    Skip.REPEATED: "of an attempt that has a newer dead letter",
    Skip.ALREADY_REDRIVEN: "re-driven before; --again sends them once more",
}


def show_account(account: Account) -> None:
    """Print the account: one row per partition, the tables, the verdict."""
    offsets = [] if account.scope.whole else ["#offsets"]
    table = new_table(
        "partition", *offsets, "#consumed", "#predicted", "#dead letters", "#missing", "#repeated", "#still to read"
    )
    for p in account.partitions:
        consumed = p.predicted + p.dead_lettered - p.both + p.missing
        numbers = (consumed, p.predicted, p.dead_lettered, p.missing, p.repeated, p.end - p.consumed_end)
        span = [f"{p.first}-{p.end - 1}" if p.first < p.end else "none"][: len(offsets)]
        table.add_row(str(p.partition), *span, *map(str, numbers))
    print_table(table)
    tables = new_table("table", "#rows", "#duplicates", "#missing", "#still to write")
    for name, t in account.tables.items():
        tables.add_row(name, *map(str, (t.rows, t.duplicates, t.missing, t.pending)))
    print_table(tables)
    for reason, count in account.dead_letter_reasons.items():
        out.print(f"  {count:>6} {_name_dead_letters(count)}: {_plain(reason)}", soft_wrap=True)
    again = account.total("repeated_under_another_id")
    if again:
        out.print(
            f"[bold yellow]{again} of the repeated outcomes have another event id[/]: another model scored the image"
        )
        out.print("again. A consumer that drops ids it has seen has acted on them a second time.")
    if account.balanced:
        scope = "" if account.scope.whole else " in this range"
        out.print(f"[green]Balanced[/]: {account.consumed} images consumed{scope}, each with its outcome.")
    else:
        out.print(
            f"[bold red]Not balanced[/]: {account.unaccounted} images without exactly one outcome, and tables that"
        )
        out.print("lack or repeat events where the columns missing and duplicates are not 0.")
        for p in account.partitions:
            if p.missing_offsets:
                out.print(f"  partition {p.partition}, offsets {', '.join(map(str, p.missing_offsets))}")


def show_training(trained: "Trained", decision: "PromotionDecision | None", *, as_json: bool) -> None:
    """Print the verdict on a training run, its four figures with intervals, and where the report is.

    Parameters
    ----------
    trained : Trained
        What came of it.
    decision : PromotionDecision or None
        Whether it was promoted; None where nobody asked for that.
    as_json : bool
        For a program.
    """
    promoted = decision is not None and decision.allowed
    result, evaluation = trained.result, trained.evaluation
    if as_json:
        print_json({**_describe_training(trained), "promoted": promoted, "why": decision.why if decision else None})
        return
    out.print(_verdict_text(evaluation.verdict))
    for reason in evaluation.verdict.reasons:
        out.print(f"  {_plain(reason)}.")
    n_test = sum(result.n_test.values())
    title = f"{n_test} held-out images of {len(result.card.labels)} classes"
    table = new_table("held-out figure", "#value", "#95 % interval", title=title)
    for name, value in evaluation.metrics.items():
        table.add_row(name, f"{value:.3f}", _interval_text(evaluation.internal.figures[name]))
    auroc = evaluation.internal.figures["auroc"]
    table.add_row("AUROC", f"{auroc.value:.3f}", _interval_text(auroc))
    for other in evaluation.others:
        auroc = other.figures["auroc"]
        table.add_row(f"AUROC, {_plain(other.name)}", f"{auroc.value:.3f}", _interval_text(auroc))
    print_table(table)
    print_table(_confusion_table(result))
    for failed in result.failed:
        out.print(f"left out: {failed.path}: {failed.error}", markup=False)
    if not result.patient_ids_known:
        out.print("Patients are not known here: images of one patient may be on both sides, and flatter the figures.")
    out.print(f"Report {trained.report}", markup=False, soft_wrap=True)
    done = f"Model {result.folder} in {result.seconds:.1f} s{', promoted' if promoted else ''}."
    out.print(done, markup=False, soft_wrap=True)
    if decision is not None and not promoted:
        err.print(f"[bold red]Not promoted:[/] {escape(decision.why)}.", soft_wrap=True)
        err.print("All the same: xray models promote --force " + result.card.version, markup=False)
    out.print(f"A figure from one data set says little about another hospital's images. {DISCLAIMER}")


def _verdict_text(verdict: "Verdict") -> str:
    if verdict.verdict == "confounded":
        return "[bold red]Confounded[/]: the figures below are no evidence that a disease is detected."
    if verdict.verdict == "unknown":
        return "[bold yellow]Not judged[/]: no shortcut probe could be measured, so nothing is known of shortcuts."
    return "[bold]No shortcut found[/] by the probes, which is not proof that there is none."


def _interval_text(estimate: "Estimate") -> str:
    return "none" if math.isnan(estimate.low) else f"{estimate.low:.3f} to {estimate.high:.3f}"


def _describe_training(trained: "Trained") -> dict[str, Any]:
    result, told = trained.result, trained.evaluation.to_dict()
    external = [other for other in told["others"] if other["kind"] == "external"]
    return {
        **told["metrics"],
        "positive_label": told["positive_label"],
        "positive_known_by": told["positive_known_by"],
        "model": str(result.folder),
        "accuracy_interval": list(result.accuracy_interval),
        "n_train": result.n_train,
        "n_test": result.n_test,
        "failed_files": len(result.failed),
        "seconds": round(result.seconds, 2),
        "verdict": told["verdict"]["verdict"],
        "verdict_reasons": told["verdict"]["reasons"],
        "verdict_notes": told["verdict"]["notes"],
        "probes": told["probes"],
        "intervals": {name: [one["low"], one["high"]] for name, one in told["internal"]["figures"].items()},
        "external": external,
        "report": str(trained.report),
    }


def _confusion_table(result: "TrainingResult") -> Table:
    labels = result.card.labels
    table = new_table("actual \\ said", *[f"#{_cell(label)}" for label in labels])
    for label, row in zip(labels, result.confusion, strict=True):
        table.add_row(_cell(label), *[str(int(count)) for count in row])
    return table


def watch_live(
    kafka: KafkaSettings, *, from_beginning: bool, count: int | None, timeout_s: float | None, as_json: bool
) -> None:
    """Show predictions as they come: on a terminal a table that moves, in a pipe a line each, as JSON or for people."""
    seen: deque[SeenPrediction] = deque(maxlen=_LIVE_ROWS)
    total = 0
    stream = watch_predictions(kafka, from_beginning=from_beginning, timeout_s=timeout_s)
    if as_json or not out.is_terminal:
        for total, seen_now in enumerate(filter(None, stream), 1):
            _write_prediction(seen_now, as_json=as_json)
            if total == count:
                return
        return
    with Live(console=out, auto_refresh=False, transient=False) as live:
        for prediction in stream:
            if prediction is None:
                continue
            total += 1
            seen.append(prediction)
            live.update(prediction_table(seen, total), refresh=True)
            if count is not None and total >= count:
                return


def _write_prediction(prediction: SeenPrediction, *, as_json: bool) -> None:
    """Write one line, at once: who reads the pipe waits for it."""
    if as_json:
        print_json({**prediction.event, "latency_seconds": round(prediction.latency_s, 3)})
        return
    name, said, flags, score, latency, size = _prediction_cells(prediction)
    line = f"{name}  {said}  score {score}  {latency} ms  {size}{'  ' if flags else ''}{', '.join(flags)}"
    remarks = [_cell(remark) for remark in list_remarks(prediction.event)]
    out.print(f"{line}{'  remarks: ' if remarks else ''}{', '.join(remarks)}", soft_wrap=True)
    out.file.flush()


def _prediction_cells(prediction: SeenPrediction) -> tuple[str, str, list[str], str, str, str]:
    """Give image, what was said, flags, score, milliseconds and size."""
    event, image = prediction.event, prediction.event["image"]
    place = "@".join(prediction.headers[f"xray_input_{name}"] for name in ("partition", "offset"))
    score = event["probabilities"][event["positive_label"]]
    size = _cell(f"{image['height']}x{image['width']}")
    latency = f"{prediction.latency_s * 1000:.0f}"
    flags = [_cell(flag) for flag in list_flags(event)]
    return _cell(image.get("id") or place), _said(event), flags, f"{score:.3f}", latency, size


def prediction_table(seen: deque[SeenPrediction], total: int) -> Table:
    """Draw the last predictions, and below them what is remarked of some.

    Parameters
    ----------
    seen : deque of SeenPrediction
        The rows, oldest first.
    total : int
        How many there were in all.
    """
    table = new_table(
        "image",
        "said",
        "flags",
        "#score",
        "#ms",
        "size",
        title=f"{total} prediction{'' if total == 1 else 's'}. {DISCLAIMER}",
    )
    table.columns[0].overflow = "fold"  # half an image's name names nothing
    for column, word in zip(table.columns[1:3], (UNDECIDED, Flag.UNLIKE_TRAINING), strict=True):
        column.overflow, column.min_width, column.max_width = "fold", len(word), _WORD_WIDTH
    for column in table.columns[3:]:
        column.no_wrap = True
    for prediction in seen:
        name, said, flags, score, latency, size = _prediction_cells(prediction)
        table.add_row(name, said, "\n".join(flags), score, latency, size)
    remarks = Counter(_cell(remark) for prediction in seen for remark in list_remarks(prediction.event))
    if remarks:
        told = ", ".join(f"{remark} ({count} of these {len(seen)})" for remark, count in sorted(remarks.items()))
        table.caption, table.caption_justify = f"remarks: {told}", "left"
    return table


def list_flags(event: Mapping[str, Any]) -> list[str]:
    """Give why a prediction is not to be acted on; flags that are not known here count as well.

    Parameters
    ----------
    event : Mapping
        The message's value.

    Returns
    -------
    list of str
        Empty where the model checks nothing, or found nothing.
    """
    return _list_words(event, "flags")


def list_remarks(event: Mapping[str, Any]) -> list[str]:
    """Give what else is to be known of a prediction, which may be acted on; words that are not known here as well.

    Parameters
    ----------
    event : Mapping
        The message's value.

    Returns
    -------
    list of str
        Empty where there is nothing to remark.
    """
    return _list_words(event, "remarks")


def _list_words(event: Mapping[str, Any], name: str) -> list[str]:
    words = event.get(name) or []
    return [str(word) for word in (words if isinstance(words, list) else [words])]


def _said(event: Mapping[str, Any]) -> str:
    if list_flags(event):
        return f"[magenta]{UNDECIDED}[/]"
    label = _cell(event["label"])
    return f"[bold yellow]{label}[/]" if event["label"] == event["positive_label"] else label


def show_dead_letters(listing: Listing) -> None:
    """Print dead letters, newest first, and how many there are of each reason."""
    if listing.shown:
        rows = []
        for letter in listing.shown:
            size = "a tombstone" if letter.payload_bytes is None else f"{letter.payload_bytes:,} bytes"
            when = f"{letter.time:%Y-%m-%d %H:%M:%S}"
            why, message = _plain(letter.reason), _plain(letter.message)
            rows.append((str(letter.place), when, why, _plain(letter.origin), size, message, _plain(letter.stage)))
        columns = ("dead letter", "time (UTC)", "reason", "input", "size", "message", "stage")
        print_listing(columns, rows, whole=2)
    total = listing.by_reason.total()
    if not total:
        out.print("No dead letters that match.")
    elif 0 < len(listing.shown) < total:
        out.print(f"The newest {len(listing.shown)} of {total}; --limit shows more.")
    for reason, count in listing.by_reason.most_common():
        out.print(f"  {count:>6} {_name_dead_letters(count)}: {_plain(reason)}", soft_wrap=True)
    _print_foreign(listing.foreign)
    if listing.shown:
        out.print(f"One of them in full: xray deadletters show {listing.shown[0].place}")


def show_dead_letter(details: Details, *, trace: bool = False) -> None:
    """Print one dead letter, with its trace where asked for; of the record only what cannot be about a patient."""
    letter = details.letter
    size = "null (a tombstone)" if details.payload is None else f"{len(details.payload):,} bytes"
    table = new_table("", "")
    table.show_header = False
    table.columns[1].overflow = "fold"
    for name, text in {
        "dead letter": f"{letter.place}, written {letter.time:%Y-%m-%d %H:%M:%S} UTC",
        "event id": letter.event_id,
        "reason": letter.reason,
        "message": letter.message,
        "error": letter.error_class,
        "stage": letter.stage,
        "input": f"{letter.origin}, received {letter.received_at}",
        "value": f"{size}, {details.media_type or 'no known image format'}",
        "SHA-256": details.sha256,
        "key": "none" if details.key_bytes is None else f"{details.key_bytes} bytes, not shown",
    }.items():
        table.add_row(name, _plain(text))
    for header in details.headers:
        shown = f"{header.size_bytes} bytes, not shown" if header.text is None else header.text
        table.add_row(f"header {_plain(header.name)}", _plain(shown))
    print_table(table)
    if trace:
        out.print(_plain(details.trace), soft_wrap=True)


def show_redrive_plan(plan: RedrivePlan, topic: str, *, dry_run: bool) -> None:
    """Tell what a re-drive does, before it does it; on standard error, for its result is another matter."""
    selected = len(plan.chosen) + plan.skipped.total()
    would = "Would send" if dry_run else "Sending"
    err.print(
        f"{would} {len(plan.chosen)} of {selected} {_name_dead_letters(selected)} to {topic} again.", soft_wrap=True
    )
    for reason, count in plan.by_reason.most_common():
        err.print(f"  {count:>6} {_plain(reason)}")
    for skip, count in plan.skipped.most_common():
        err.print(f"  {count:>6} left out, {_SKIP_TEXTS[skip]}")
    if plan.foreign:
        err.print(f"  {plan.foreign:>6} records that this stream did not write were left out")


def show_redrive_report(report: RedriveReport) -> None:
    """Tell what became of what was sent."""
    total = len(report.delivered) + len(report.failed)
    out.print(f"{len(report.delivered)} of {total} confirmed in {report.seconds:.1f} s.")
    if report.delivered:
        out.print(
            "Each is scored as a new record; 'xray watch' shows those that succeed, 'xray audit' accounts for all."
        )


def _name_dead_letters(count: int) -> str:
    return "dead letter" if count == 1 else "dead letters"


def _print_foreign(count: int) -> None:
    if count:
        out.print(f"  {count:>6} records of the topic were not written by this stream; they are not counted above")


def _cell(text: str) -> str:
    """Make a text from a message safe for one line of a table, where a second line would look like a row."""
    return escape(make_printable(text))


def _plain(text: str) -> str:
    """Make a text from a message safe for a terminal: no mark-up, no control characters."""
    return escape("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))
