"""``xray label``: confirmed findings into the archive's labels table."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from schemas.labels import LABELS_TABLE
from schemas.modelcard import read_card
from schemas.registry import champion_folder
from streaming.settings import load_settings
from xray.console import err, new_table, out, print_json, step

_SHOWN = 10

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for a program.")]


def label(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="Columns: see above.")],
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Exit code 0 also where rows are about unknown images.")
    ] = False,
    json_: Json = False,
) -> None:
    """Record confirmed findings of images that were scored, for retraining.

    The CSV file's first row names its columns: label, and what names the image: sha256, event_id (as in the
    prediction), or both source and id (as published). Also, where known, patient_id (a pseudonym: images of one person
    must not be both trained and judged on), confirmed_by and confirmed_at (ISO 8601).

    Each image has one label, the one confirmed last; the same file again changes nothing. Rows about images that the
    archive does not have are listed and left out, with exit code 1. A label that the served model does not have is an
    error, and then nothing is recorded. Needs no Spark; the stream may go on.

    Then: [bold]xray retrain[/].
    """
    from training.labels import match_images, read_label_file, record_labels  # noqa: PLC0415  heavy

    settings = load_settings()
    card = read_card(champion_folder(settings.models_folder))
    read = read_label_file(file, card.labels)
    with step(f"looking for {len(read.confirmations)} images in the archive"):
        matched = match_images(settings.tables_folder, read)
    with step("recording"):
        recorded = record_labels(settings.tables_folder, matched.by_sha256)
    left_out = [(one, "not in the archive") for one in matched.unknown]
    left_out += [(one, "several images have this source and id: name it by sha256") for one in matched.ambiguous]
    if json_:
        rows = [
            {"row": one.row, **dict(zip(read.key_names, one.key, strict=True)), "why": why} for one, why in left_out
        ]
        print_json(
            {
                "added": recorded.added,
                "changed": recorded.changed,
                "unchanged": recorded.unchanged,
                "older": recorded.older,
                "left_out": rows,
                "total": recorded.total,
                "by_label": recorded.by_label,
                "unread_columns": read.unread_columns,
                "table": f"{settings.tables_folder}/{LABELS_TABLE}",
            }
        )
    else:
        _show(recorded, read.unread_columns)
    for one, why in left_out[:_SHOWN]:
        err.print(f"row {one.row}: {json.dumps(' '.join(one.key))}: {why}", markup=False, soft_wrap=True)
    if left_out:
        err.print(f"[bold red]{len(left_out)} rows left out[/], of {len(read.confirmations)}.")
    if left_out and not allow_unknown:
        raise typer.Exit(1)


def _show(recorded: Any, unread: tuple[str, ...]) -> None:
    if unread:
        err.print(f"columns that mean nothing here: {', '.join(unread)}", markup=False, soft_wrap=True)
    parts = [f"{recorded.added} added", f"{recorded.changed} changed", f"{recorded.unchanged} unchanged"]
    if recorded.older:
        parts.append(f"{recorded.older} older than what is recorded, left as it is")
    out.print(f"{', '.join(parts)}.")
    if recorded.total:
        table = new_table("label", "#images")
        for name, count in recorded.by_label.items():
            table.add_row(name, f"{count:,}")
        out.print(table)
        out.print(f"{recorded.total:,} labelled images in all. Learn from them with: xray retrain")
