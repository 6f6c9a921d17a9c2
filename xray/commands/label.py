"""``xray label``: confirmed findings into the archive's labels table, from a CSV file or as they come on a topic."""

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schemas.errors import JobError, SettingsError
from schemas.labels import LABELS_TABLE, LabelReason
from schemas.modelcard import read_card
from schemas.registry import champion_folder
from streaming.ending import end_on_signals
from streaming.retry import Backoff
from streaming.settings import StreamSettings, load_settings
from xray.console import err, new_table, out, print_json, step

if TYPE_CHECKING:
    from streaming.results.confirmations import Confirmations
    from streaming.results.labelevents import Event, Rejection
    from training.data.labelstable import Matched

log = logging.getLogger(__name__)

_SHOWN = 10
_MAX_PRINTED = 100
"""Events of one batch that are told line by line; the rest is counted, and all are on the dead letters' topic."""
_MONTH_S = 30 * 86_400
"""So long the topic keeps an event."""
_WAIT_S = 600
"""ARCHIVE writes every 15 s, and is started again for ten minutes where it fails."""

_HEALTHY_S = 120.0
"""What ran so long, even without an event, has recovered: longer than any single attempt takes to fail."""

Json = Annotated[bool, typer.Option("--json", help="JSON for a program; with --follow a line for each batch.")]


def label(
    file: Annotated[Path | None, typer.Argument(metavar="FILE.csv", help="Columns: see above.")] = None,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Exit code 0 also where rows are about unknown images.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Record events of the labels topic, until Ctrl-C.")] = False,
    available_now: Annotated[
        bool, typer.Option("--available-now", help="With --follow: record what is there, then end.")
    ] = False,
    wait: Annotated[
        int | None,
        typer.Option(
            min=0, max=_MONTH_S, help="With --follow: seconds that an event waits for its image; 600 unless told."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Record confirmed findings of images that were scored, for retraining.

    The CSV file's first row names its columns: label, and what names the image: sha256, event_id (as in the
    prediction), or both source and id (as published). Also, where known, patient_id (a pseudonym: images of one person
    must not be both trained and judged on), confirmed_by and confirmed_at (ISO 8601).

    Each image has one label, the one confirmed last; the same file again changes nothing. Rows about images that the
    archive does not have are listed and left out, with exit code 1. A label that the served model does not have is an
    error, and then nothing is recorded. Needs no Spark; the stream may go on.

    With --follow instead of a file: events with the same fields, as JSON, from the topic xray.labels. An event about an
    image that is not archived yet waits for it; one that cannot be recorded goes to xray.labels.deadletters. Ctrl-C and
    SIGTERM end it in order; what comes later is read at the next start.

    Then: [bold]xray retrain[/].
    """
    if (file is None) != follow:
        msg = "say where from: FILE.csv or --follow, one of the two"
        raise typer.BadParameter(msg)
    if follow and allow_unknown:
        msg = "--allow-unknown is about a file's rows; with --follow say how long to --wait"
        raise typer.BadParameter(msg)
    if not follow and (available_now or wait is not None):
        msg = "--available-now and --wait go with --follow"
        raise typer.BadParameter(msg)
    if file is not None:
        _record_file(file, allow_unknown=allow_unknown, as_json=json_)
    else:
        _follow(timedelta(seconds=_WAIT_S if wait is None else wait), available_now=available_now, as_json=json_)


# --- a file -----------------------------------------------------------------------------------------------------------


def _record_file(file: Path, *, allow_unknown: bool, as_json: bool) -> None:
    from training.data.labelfile import read_label_file
    from training.data.labelstable import match_images, record_labels

    settings = load_settings()
    card = read_card(champion_folder(settings.models_folder))
    read = read_label_file(file, card.labels)
    with step(f"looking for {len(read.confirmations)} images in the archive"):
        matched = match_images(settings.tables_folder, read)
    with step("recording"):
        recorded = record_labels(settings.tables_folder, matched.by_sha256)
    left_out = [(one, "not in the archive") for one in matched.unknown]
    left_out += [(one, "several images have this source and id: name it by sha256") for one in matched.ambiguous]
    if as_json:
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
                "table": f"{settings.tables_folder}/{LABELS_TABLE.name}",
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
    out.print(f"{_count(recorded)}.")
    if recorded.total:
        table = new_table("label", "#images")
        for name, count in recorded.by_label.items():
            table.add_row(name, f"{count:,}")
        out.print(table)
        out.print(f"{recorded.total:,} labelled images in all. Learn from them with: xray retrain")


def _count(recorded: Any) -> str:
    parts = [f"{recorded.added} added", f"{recorded.changed} changed", f"{recorded.unchanged} unchanged"]
    if recorded.older:
        parts.append(f"{recorded.older} older than what is recorded, left as it is")
    return ", ".join(parts)


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass
class BatchReport:
    """What became of events, of one batch or of all.

    Parameters
    ----------
    events : int
        Were recorded; several may be about one image.
    added, changed, unchanged, older : int
        Images, see `training.data.labelstable.Recorded`.
    reasons : Counter of LabelReason
        Events that were left out, by why.
    held : int
        Events that wait for their image now.
    """

    events: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    older: int = 0
    reasons: Counter[LabelReason] = field(default_factory=Counter)
    held: int = 0

    def add(self, batch: "BatchReport") -> None:
        """Count a batch in."""
        for name in ("events", "added", "changed", "unchanged", "older"):
            setattr(self, name, getattr(self, name) + getattr(batch, name))
        self.reasons += batch.reasons
        self.held = batch.held

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {
            "events": self.events,
            "added": self.added,
            "changed": self.changed,
            "unchanged": self.unchanged,
            "older": self.older,
            "left_out": self.reasons.total(),
            "reasons": {reason.value: count for reason, count in self.reasons.items()},
            "held": self.held,
        }

    def describe(self) -> str:
        """Render for people."""
        parts = [f"{self.events} events recorded: {_count(self)}"]
        parts += [f"{self.reasons.total()} left out"] if self.reasons else []
        parts += [f"{self.held} waiting for their images"] if self.held else []
        return "; ".join(parts)


def _follow(wait: timedelta, *, available_now: bool, as_json: bool) -> None:
    settings = load_settings()
    topic = settings.kafka.labels_topic
    ended = threading.Event()
    end_on_signals(ended)
    total = BatchReport()

    def on_ready() -> None:
        if as_json:
            print_json({"event": "ready", "topic": topic})
        else:
            out.print(f"[green]Following[/] {topic} → {settings.tables_folder}/{LABELS_TABLE.name}", soft_wrap=True)
            if not available_now:
                out.print("Ctrl-C ends it in order.")

    def on_batch(batch: BatchReport) -> None:
        total.add(batch)
        if as_json:
            print_json({"event": "batch", **batch.to_dict()})
        else:
            out.print(f"{datetime.now(UTC):%H:%M:%S} UTC  {batch.describe()}.", soft_wrap=True)

    follow_labels(settings, wait=wait, to_end=available_now, ended=ended, on_ready=on_ready, on_batch=on_batch)
    if as_json:
        print_json({"event": "ended", **total.to_dict()})
    else:
        out.print(f"Ended in order: {total.describe()}.", soft_wrap=True)


def follow_labels(
    settings: StreamSettings,
    *,
    wait: timedelta,
    to_end: bool,
    ended: threading.Event,
    on_ready: Callable[[], None],
    on_batch: Callable[[BatchReport], None],
) -> None:
    """Record the events of the labels topic until told to end.

    Offsets are committed after the batch is in the table and its dead letters are on their topic: every event is
    recorded or dead-lettered at least once. Recording the same event again changes nothing, so its effect is that of
    exactly once; a dead letter that is written again has the same event id.

    Parameters
    ----------
    settings : StreamSettings
        Broker, models and tables.
    wait : timedelta
        How long after its Kafka timestamp an event waits for its image to be in the archive.
    to_end : bool
        End when what is there was read; what waits then is left to the next start.
    ended : threading.Event
        Ends it once the running batch is recorded and committed.
    on_ready : callable
        Called once, when the topic is being read.
    on_batch : callable
        Called with what became of each batch that had any effect.

    Raises
    ------
    JobError
        Broker, model or table were not to be used for `RetrySettings.give_up_s` on end, or at all with ``to_end``.
    """
    from streaming.results.confirmations import open_confirmations

    backoff = Backoff(settings.retry, healthy_s=_HEALTHY_S)
    is_ready = False
    while not ended.is_set():
        try:
            with open_confirmations(settings.kafka, ended, to_end=to_end) as reader:
                if not is_ready:
                    on_ready()
                    is_ready = True
                for batch in _record_batches(settings, reader, wait=wait, ended=ended):
                    backoff.reset()
                    on_batch(batch)
            return
        except SettingsError:
            raise
        except JobError as exc:
            if to_end:
                raise
            _wait_to_retry(backoff, exc, ended)


def _wait_to_retry(backoff: Backoff, failure: JobError, ended: threading.Event) -> None:
    """Tell of a failure and wait, or raise it where it has gone on for too long."""
    if backoff.has_run_long:
        backoff.reset()
    wait_s = backoff.note_failure()
    if wait_s is None:
        raise failure
    log.warning("%s; trying again in %.0f s, nothing is lost", str(failure).rstrip("."), wait_s)
    ended.wait(wait_s)
    backoff.start_try()


def _record_batches(
    settings: StreamSettings, reader: "Confirmations", *, wait: timedelta, ended: threading.Event
) -> Iterator[BatchReport]:
    """Record batches of events, and yield what became of each that had any effect."""
    from training.data.archive import features_version

    held: set[str] = set()
    searched = -1
    done = False
    while not done:
        events = reader.read(ended)
        done = ended.is_set() or reader.drained
        if not events:
            continue
        version = features_version(settings.tables_folder)
        due = any(_has_waited(event, wait) for event in events)
        if version == searched and not due and held.issuperset(event.place for event in events):
            continue  # no new event, and no new image that one of those may wait for
        batch, waiting = _record_batch(settings, reader, events, wait)
        before, held, searched = held, {event.place for event in waiting}, version
        if batch.events or batch.reasons or held != before:
            yield batch


def _record_batch(
    settings: StreamSettings, reader: "Confirmations", events: "Sequence[Event]", wait: timedelta
) -> "tuple[BatchReport, list[Event]]":
    """Record a batch in one commit, put aside what cannot be recorded, and commit the offsets, in this order."""
    from streaming.results.labelevents import Rejection
    from training.data.labelevents import read_events
    from training.data.labelstable import match_images, record_labels

    # Read anew for each batch: a model that was promoted may know other labels.
    card = read_card(champion_folder(settings.models_folder))
    read = read_events([(event.value, event.received_at) for event in events], card.labels)
    matched = match_images(settings.tables_folder, *read.files)
    rejected, held = _separate_by_wait(events, matched, wait)
    rejections = [Rejection(events[one.row], one.reason, one.detail) for one in read.wrong] + rejected
    batch = BatchReport(
        events=len(events) - len(rejections) - len(held),
        reasons=Counter(one.reason for one in rejections),
        held=len(held),
    )
    if matched.by_sha256:
        recorded = record_labels(settings.tables_folder, matched.by_sha256)
        batch.added, batch.changed = recorded.added, recorded.changed
        batch.unchanged, batch.older = recorded.unchanged, recorded.older
    reader.reject(rejections)
    reader.finish(held)
    _print_rejections(rejections, settings.kafka.labels_topic)
    return batch, held


def _separate_by_wait(
    events: "Sequence[Event]", matched: "Matched", wait: timedelta
) -> "tuple[list[Rejection], list[Event]]":
    """Part events about images that were not found into those that are given up and those that wait on."""
    from streaming.results.labelevents import Rejection

    several = "several images have this source and id, wanted the image's sha256"
    rejected = [Rejection(events[one.row], LabelReason.AMBIGUOUS_IMAGE, several) for one in matched.ambiguous]
    waited = f"the archive does not have this image, {wait.total_seconds():.0f} s after the event came"
    missing = [events[one.row] for one in matched.unknown]
    rejected += [Rejection(event, LabelReason.UNKNOWN_IMAGE, waited) for event in missing if _has_waited(event, wait)]
    given_up = {one.event.place for one in rejected}
    return rejected, [event for event in missing if event.place not in given_up]


def _has_waited(event: "Event", wait: timedelta) -> bool:
    return event.received_at + wait <= datetime.now(UTC)


def _print_rejections(rejections: "Sequence[Rejection]", topic: str) -> None:
    for one in rejections[:_MAX_PRINTED]:
        text = f"{topic}-{one.event.place}: left out ({one.reason.value}): {one.detail}"
        err.print(text, markup=False, soft_wrap=True)
    if len(rejections) > _MAX_PRINTED:
        err.print(f"... and {len(rejections) - _MAX_PRINTED} more, left out as well.")
