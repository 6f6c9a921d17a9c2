"""How results look on a terminal: the account, models, a training run, predictions as they come."""

from collections import deque
from pathlib import Path

from rich.live import Live
from rich.table import Table

from schemas.errors import ModelLoadError
from schemas.registry import champion_folder, list_models
from streaming.audit import Account
from streaming.settings import KafkaSettings
from streaming.watch import SeenPrediction, watch_predictions
from training.fit import TrainingResult
from xray.console import DISCLAIMER, new_table, out, print_json

_LIVE_ROWS = 20


def show_account(account: Account) -> None:
    """Print the account: one row per partition, the tables, the verdict."""
    table = new_table(
        "partition", "#consumed", "#predicted", "#dead letters", "#missing", "#repeated", "#still to read"
    )
    for p in account.partitions:
        consumed = p.predicted + p.dead_lettered - p.both + p.missing
        numbers = (consumed, p.predicted, p.dead_lettered, p.missing, p.repeated, p.end - p.consumed_end)
        table.add_row(str(p.partition), *map(str, numbers))
    out.print(table)
    tables = new_table("table", "#rows", "#duplicates", "#missing", "#still to write")
    for name, t in account.tables.items():
        tables.add_row(name, *map(str, (t.rows, t.duplicates, t.missing, t.pending)))
    out.print(tables)
    for reason, count in account.dead_letter_reasons.items():
        out.print(f"  {count:>6} dead letters: {reason}")
    if account.balanced:
        out.print(f"[green]Balanced[/]: {account.consumed} images consumed, each with its outcome.")
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


def show_training(result: TrainingResult, *, promoted: bool, as_json: bool) -> None:
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


def _confusion_table(result: TrainingResult) -> Table:
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
