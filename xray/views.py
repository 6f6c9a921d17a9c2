"""How results look on a terminal: the account, models, a training run, predictions as they come."""

from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from schemas.errors import ModelLoadError
from schemas.registry import champion_folder, list_models
from streaming.audit import Account
from streaming.deadletters import Details, Listing, RedrivePlan, RedriveReport, Skip
from streaming.settings import KafkaSettings
from streaming.watch import SeenPrediction, watch_predictions
from xray.console import DISCLAIMER, err, new_table, out, print_json

if TYPE_CHECKING:  # it brings Spark, and the other views are of commands that start without
    from training.fit import TrainingResult

_LIVE_ROWS = 20
_SKIP_TEXTS = {
    Skip.TOMBSTONE: "tombstones: there are no bytes to send",
    Skip.EMPTY_PAYLOAD: "empty: there are no bytes to send",
    Skip.TOO_LARGE: "larger than XRAY_SCORE__MAX_PAYLOAD_BYTES: they would come back; raise it here and for the stream",
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
    out.print(table)
    tables = new_table("table", "#rows", "#duplicates", "#missing", "#still to write")
    for name, t in account.tables.items():
        tables.add_row(name, *map(str, (t.rows, t.duplicates, t.missing, t.pending)))
    out.print(tables)
    for reason, count in account.dead_letter_reasons.items():
        out.print(f"  {count:>6} dead letters: {reason}")
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


def show_models(models_folder: Path, *, as_json: bool) -> None:
    """Print the trained models, the promoted one marked."""
    try:
        champion = champion_folder(models_folder).name
    except ModelLoadError:
        champion = None
    cards = list_models(models_folder)
    if as_json:
        print_json([{"version": c.version, "champion": c.version == champion, **c.metrics} for c in cards])
        return
    if not cards:
        out.print("No models yet; train one with: xray train --data FOLDER")
        return
    table = new_table("", "version", "network", "classes", "#accuracy", "#held-out images")
    for card in cards:
        mark = "[green]●[/]" if card.version == champion else ""
        accuracy, held_out = card.metrics.get("accuracy", float("nan")), card.metrics.get("n_test", 0)
        row = (card.version, f"{card.network} {card.precision}", ", ".join(card.labels))
        table.add_row(mark, *row, f"{accuracy:.3f}", f"{held_out:.0f}")
    out.print(table)
    out.print("● is served by the stream. Accuracies of different held-out sets do not compare.")


def show_training(result: "TrainingResult", *, promoted: bool, as_json: bool) -> None:
    """Print the four figures of a training run, with what limits them."""
    figures = {name: result.metrics[name] for name in ("accuracy", "f1", "weightedPrecision", "weightedRecall")}
    if as_json:
        counts = {"n_train": result.n_train, "n_test": result.n_test, "failed_files": len(result.failed)}
        interval = list(result.accuracy_interval)
        print_json({**figures, "model": str(result.folder), "accuracy_interval": interval, **counts,
                    "promoted": promoted, "seconds": round(result.seconds, 2)})  # fmt: skip
        return
    n_test = sum(result.n_test.values())
    table = new_table(
        "held-out figure", "#value", title=f"{n_test} held-out images of {len(result.card.labels)} classes"
    )
    for name, value in figures.items():
        table.add_row(name, f"{value:.3f}")
    out.print(table)
    low, high = result.accuracy_interval
    out.print(f"Accuracy's 95 % interval: {low:.3f} to {high:.3f} (Wilson).")
    out.print(_confusion_table(result))
    for failed in result.failed:
        out.print(f"left out: {failed}", markup=False)
    if not result.patient_ids_known:
        out.print("Patients are not known here: images of one patient may be on both sides, and flatter the figures.")
    out.print(f"Model {result.folder} in {result.seconds:.1f} s{', promoted' if promoted else ''}.")
    out.print(f"A figure from one data set says little about another hospital's images. {DISCLAIMER}")


def _confusion_table(result: "TrainingResult") -> Table:
    labels = result.card.labels
    table = new_table("actual \\ said", *[f"#{label}" for label in labels])
    for label, row in zip(labels, result.confusion, strict=True):
        table.add_row(label, *[str(int(count)) for count in row])
    return table


def watch_live(
    kafka: KafkaSettings, *, from_beginning: bool, count: int | None, timeout_s: float | None, as_json: bool
) -> None:
    """Show predictions as they come: a table that moves, or one JSON line each."""
    seen: deque[SeenPrediction] = deque(maxlen=_LIVE_ROWS)
    total = 0
    stream = watch_predictions(kafka, from_beginning=from_beginning, timeout_s=timeout_s)
    with Live(console=out, auto_refresh=False, transient=False) as live:
        for prediction in stream:
            if prediction is None:
                continue
            total += 1
            seen.append(prediction)
            if as_json:
                live.stop()
                print_json({**prediction.event, "latency_seconds": round(prediction.latency_s, 3)})
            else:
                live.update(prediction_table(seen, total), refresh=True)
            if count is not None and total >= count:
                return


def prediction_table(seen: deque[SeenPrediction], total: int) -> Table:
    """Draw the last predictions.

    Parameters
    ----------
    seen : deque of SeenPrediction
        The rows, oldest first.
    total : int
        How many there were in all.
    """
    table = new_table("image", "said", "#score", "#ms", "size", title=f"{total} predictions. {DISCLAIMER}")
    for prediction in seen:
        event, image = prediction.event, prediction.event["image"]
        place = "@".join(prediction.headers[f"xray_input_{name}"] for name in ("partition", "offset"))
        positive = event["label"] == event["positive_label"]
        label = f"[bold yellow]{event['label']}[/]" if positive else event["label"]
        score = event["probabilities"][event["positive_label"]]
        name = (image.get("id") or place)[:48]
        size = f"{image['height']}x{image['width']}"
        table.add_row(name, label, f"{score:.3f}", f"{prediction.latency_s * 1000:.0f}", size)
    return table


def show_dead_letters(listing: Listing) -> None:
    """Print dead letters, newest first, and how many there are of each reason."""
    if listing.shown:
        table = new_table("dead letter", "time (UTC)", "reason, stage", "input", "#bytes", "message")
        for i, column in enumerate(table.columns):
            column.overflow = "fold"  # a reason that is cut off cannot be asked for
            column.no_wrap = i in (0, 1, 4)
        for letter in listing.shown:
            size = "null" if letter.payload_bytes is None else f"{letter.payload_bytes:,}"
            when = f"{letter.time:%Y-%m-%d %H:%M:%S}"
            why = f"{_plain(letter.reason)}\n[dim]{_plain(letter.stage)}[/]"
            table.add_row(str(letter.place), when, why, _plain(letter.origin), size, _plain(letter.message))
        out.print(table)
    total = listing.by_reason.total()
    if not total:
        out.print("No dead letters that match.")
    elif 0 < len(listing.shown) < total:
        out.print(f"The newest {len(listing.shown)} of {total}; --limit shows more.")
    _print_counts(listing.by_reason, "dead letters")
    _print_foreign(listing.foreign)
    if listing.shown:
        out.print(f"One of them in full: xray deadletters show {listing.shown[0].place}")


def show_dead_letter(details: Details) -> None:
    """Print one dead letter; of the original record only what cannot be about a patient."""
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
    out.print(table)
    out.print(_plain(details.trace), soft_wrap=True)


def show_redrive_plan(plan: RedrivePlan, topic: str, *, dry_run: bool) -> None:
    """Tell what a re-drive does, before it does it; on standard error, for its result is another matter."""
    selected = len(plan.chosen) + plan.skipped.total()
    would = "Would send" if dry_run else "Sending"
    err.print(f"{would} {len(plan.chosen)} of {selected} dead letters to {topic} again.")
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


def _print_counts(counts: Counter[str] | Mapping[str, int], noun: str) -> None:
    for reason, count in Counter(counts).most_common():
        out.print(f"  {count:>6} {noun}: {_plain(reason)}")


def _print_foreign(count: int) -> None:
    if count:
        out.print(f"  {count:>6} records of the topic were not written by this stream; they are not counted above")


def _plain(text: str) -> str:
    """Make a text from a message safe for a terminal: no mark-up, no control characters."""
    return escape("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))
