"""What a write into large tables costs the archive, beside delta-rs's own MERGE of the same rows, in one run.

Tables as years make them: predictions of 365 dates, feature vectors of 30. Each case is a process of its own, so that
its memory is its own: it opens the table, writes 600 outcomes (cold: the ids near them are read for that), and writes
600 others (warm). Then thousands of small commits, with the log's retention at minutes: what files, bytes and the time
to open the table come to.

Run it: ``python -m benchmarks.archive`` (``--help``).
"""

import gc
import multiprocessing
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer
from deltalake import DeltaTable

from schemas.deltatable import append_rows, create_table, open_table
from schemas.documents import load_tables
from streaming.archive.archivetable import ArchiveTable
from streaming.archive.knownids import KnownIds
from streaming.archive.rows import Row, to_arrow
from streaming.archive.tables import clean_log, join_files
from streaming.archive.upkeep import Upkeep
from streaming.kafka.topicids import TopicIds
from streaming.settings import ArchiveSettings
from xray.console import err, new_table, print_json, step
from xray.tabular import print_table

_OUTCOMES = 600
_MIXED_DATES = 30
_N_FEATURES = 1280
_EPOCH = date(1970, 1, 1)
_TOPIC = "outcomes"
_IDS = TopicIds("cluster", {_TOPIC: "topic"})
_SPAN_DAYS = ArchiveSettings().span_days


@dataclass
class Write:
    """One case.

    Parameters
    ----------
    table, case : str
        Which table, and which rows.
    cold_s, warm_s : float
        Seconds of the first write, the table's opening included, and of the second.
    merge_s : float or None
        Of the same with delta-rs's MERGE, pruned by date; None where it was not tried.
    peak_mb, merge_peak_mb : float or None
        Memory of the process at its most.
    """

    table: str
    case: str
    cold_s: float
    warm_s: float
    peak_mb: float
    merge_s: float | None = None
    merge_peak_mb: float | None = None


@dataclass
class Commits:
    """What many small commits come to: at the end, and at their most."""

    commits: int
    seconds: float
    log_files: int
    log_mb: float
    most_log_files: int
    data_files: int
    dead_files: int
    open_ms: float


def main(
    predictions: Annotated[int, typer.Option(help="Rows of the predictions table, over 365 dates.")] = 10_000_000,
    features: Annotated[int, typer.Option(help="Rows of the features table, over 30 dates.")] = 300_000,
    commits: Annotated[int, typer.Option(help="Small commits.")] = 3_000,
    merge: Annotated[bool, typer.Option(help="Also with MERGE, which takes much memory.")] = True,
    folder: Annotated[Path | None, typer.Option(help="Keep the tables here for another run.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
) -> None:
    """Measure writes into large tables, and many small commits."""
    with TemporaryDirectory() as scratch:
        place = folder or Path(scratch)
        writes = []
        for name, rows, dates in (("predictions", predictions, 365), ("features", features, 30)):
            with step(f"making {rows:,} rows of {name}"):
                _make_table(place / "tables", name, rows, dates)
            for case, days in (("today", 1), ("30 mixed dates", _MIXED_DATES)):
                with step(f"{name}: {_OUTCOMES} outcomes of {case}"):
                    writes.append(_measure(place / "tables", name, case, days, merge=merge))
        with step(f"{commits:,} small commits"):
            many = _in_process(_commit_often, str(Path(scratch) / "many"), commits)
    if json_:
        print_json({"writes": [asdict(one) for one in writes], "commits": asdict(many)})
        return
    table = new_table("table", "outcomes of", "#cold, s", "#warm, s", "#MB", "#MERGE, s", "#MERGE, MB")
    for one in writes:
        shown = ("" if value is None else f"{value:.2f}" for value in (one.cold_s, one.warm_s))
        merged = (
            "" if one.merge_s is None else f"{one.merge_s:.2f}",
            "" if one.merge_peak_mb is None else f"{one.merge_peak_mb:.0f}",
        )
        table.add_row(one.table, one.case, *shown, f"{one.peak_mb:.0f}", *merged)
    print_table(table)
    err.print(
        f"{many.commits:,} commits in {many.seconds:.0f} s: the log has {many.log_files} files, {many.log_mb:.1f} MB, "
        f"at most {many.most_log_files}; there are {many.data_files} data files and {many.dead_files} replaced ones; "
        f"the table opens in {many.open_ms:.0f} ms"
    )


def _make_table(folder: Path, name: str, n_rows: int, n_dates: int) -> None:
    """Make a table of full dates up to today, joined and with a checkpoint, as upkeep leaves it."""
    definition = load_tables()[name]
    if (found := open_table(f"{folder}/{name}")) is not None and found.version() >= n_dates:
        return
    shutil.rmtree(folder / name, ignore_errors=True)
    table = create_table(f"{folder}/{name}", definition, {})
    today = datetime.now(UTC).date()
    each = n_rows // n_dates
    for back in range(n_dates):
        day = today - timedelta(days=back)
        for _ in range(-(-each // 10_000)):  # in pieces, for a date of feature vectors is large
            append_rows(table, to_arrow(list(_make_rows(name, [day], min(each, 10_000))), definition), {})
    join_files(f"{folder}/{name}")
    clean_log(DeltaTable(f"{folder}/{name}"))


def _make_rows(name: str, days: list[date], count: int) -> Iterator[Row]:
    vector = np.random.default_rng(1).random((16, _N_FEATURES), np.float32)
    for number in range(count):
        day = days[number % len(days)]
        event_id = secrets.token_hex(16)
        received_at = datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(seconds=number % 86_400)
        values: dict[str, Any] = {
            "event_id": event_id,
            "source": "/dx-1",
            "id": f"image-{number}",
            "sha256": event_id * 2,
            "received_at": received_at,
            "input_topic": "xray.images",
            "input_partition": number % 4,
            "input_offset": number,
            "date": day,
        }
        if name == "features":
            values |= {"network": "EfficientNetLite0", "precision": "fp32", "features": vector[number % 16]}
        else:
            values |= {
                "media_type": "image/png",
                "height": 1024,
                "width": 1024,
                "model_name": "cxr",
                "model_version": "20260131T120000Z",
                "model_sha256": "ab" * 32,
                "label": "normal",
                "probabilities": [("normal", 0.75), ("opacities", 0.25)],
                "positive_label": "opacities",
                "score": 0.25,
                "scored_at": received_at,
                "decode_seconds": 0.01,
                "predict_seconds": 0.011,
            }
        number_of_day = (day - _EPOCH).days
        yield Row(event_id, number_of_day, number_of_day, values, 1024)


def _measure(folder: Path, name: str, case: str, n_days: int, *, merge: bool) -> Write:
    cold_s, warm_s, peak_mb = _in_process(_append_twice, str(folder), name, n_days)
    write = Write(name, case, cold_s, warm_s, peak_mb)
    if merge:
        write.merge_s, write.merge_peak_mb = _in_process(_merge_once, str(folder), name, n_days)
    return write


def _days(n_days: int) -> list[date]:
    today = datetime.now(UTC).date()
    return [today - timedelta(days=back) for back in range(n_days)]


def _append_twice(folder: str, name: str, n_days: int) -> tuple[float, float, float]:
    pa.set_cpu_count(1)
    first, second = (list(_make_rows(name, _days(n_days), _OUTCOMES)) for _ in range(2))
    gc.collect()
    table = ArchiveTable(folder, load_tables()[name], _TOPIC, secrets.token_hex(4), KnownIds(_SPAN_DAYS))
    started = time.perf_counter()
    table.claim(_IDS, {0: range(1)}, from_beginning=True)
    written = [table.append(first, {0: 1})]
    cold_s = time.perf_counter() - started
    started = time.perf_counter()
    written.append(table.append(second, {0: 2}))
    warm_s = time.perf_counter() - started
    if written != [_OUTCOMES, _OUTCOMES]:
        msg = f"of {_OUTCOMES} rows {written} were written"
        raise AssertionError(msg)
    return cold_s, warm_s, _peak_mb()


def _merge_once(folder: str, name: str, n_days: int) -> tuple[float, float]:
    """Write new rows as one would without this project: MERGE, whose condition names the dates within the span."""
    days = _days(n_days)
    rows = to_arrow(list(_make_rows(name, days, _OUTCOMES)), load_tables()[name])
    span = timedelta(days=_SPAN_DAYS)
    first, last = (min(days) - span).isoformat(), (max(days) + span).isoformat()
    started = time.perf_counter()
    DeltaTable(f"{folder}/{name}").merge(
        rows,
        predicate=f"old.date >= '{first}' AND old.date <= '{last}' AND old.event_id = new.event_id",
        source_alias="new",
        target_alias="old",
    ).when_not_matched_insert_all().execute()
    return time.perf_counter() - started, _peak_mb()


def _peak_mb() -> float:
    """Give the most memory this process has had; getrusage would give its parent's where that had more."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def _commit_often(folder: str, commits: int) -> Commits:
    definition = load_tables()["predictions"]
    create_table(f"{folder}/predictions", definition, {"delta.logRetentionDuration": "interval 1 minutes"})
    known = KnownIds(_SPAN_DAYS)
    table = ArchiveTable(folder, definition, _TOPIC, "benchmark", known)
    table.claim(_IDS, {0: range(1)})
    upkeep = Upkeep(f"{folder}/predictions", "benchmark", ArchiveSettings())
    log = Path(folder) / "predictions" / "_delta_log"
    most = 0
    started = time.perf_counter()
    for number in range(commits):
        table.append(list(_make_rows("predictions", _days(1), 5)), {0: number})
        before = table.opened
        if upkeep.turn(before):
            table.reopen({0: range(1)})
            known.note_joined(before, table.opened)
        most = max(most, len(list(log.iterdir())))
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    opened = DeltaTable(f"{folder}/predictions")
    open_ms = 1000 * (time.perf_counter() - started)
    rows = opened.to_pyarrow_dataset().count_rows()
    if rows != 5 * commits:
        msg = f"the table has {rows} rows of {5 * commits}"
        raise AssertionError(msg)
    stored = list(log.iterdir())
    live = len(opened.file_uris())
    data = len(list((Path(folder) / "predictions").rglob("*.parquet"))) - len(list(log.glob("*.parquet")))
    log_mb = sum(path.stat().st_size for path in stored) / 1e6
    return Commits(commits, seconds, len(stored), log_mb, most, live, data - live, open_ms)


def _in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    typer.run(main)
