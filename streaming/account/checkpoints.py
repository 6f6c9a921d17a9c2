"""Reads how far a query came from its checkpoint folder, without Spark.

Spark writes ``offsets/N`` before micro-batch N and ``commits/N`` after it. ``offsets/N`` has a version line, a line of
metadata, and one line of JSON per source: topic, partition, next offset.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import JobError

_LINES = 3

Offsets = Mapping[str, Mapping[int, int]]
"""Next offset by topic and partition."""


@dataclass(frozen=True)
class UnfinishedBatch:
    """A micro-batch that a query began and did not commit; Spark does it again, with the same records.

    Parameters
    ----------
    number : int
        Its number.
    started_ms : int
        When it was planned, by the driver's clock, in milliseconds.
    spans : mapping of (str, int) to range
        Its offsets by topic and partition; those without a record are left out.
    """

    number: int
    started_ms: int
    spans: Mapping[tuple[str, int], range]


def has_begun(checkpoint: Path) -> bool:
    """Tell whether a query has ever planned a micro-batch with this checkpoint."""
    return _last_number(checkpoint / "offsets") is not None


def committed_offsets(checkpoint: Path) -> Offsets | None:
    """Return the offsets up to which a query has committed.

    Parameters
    ----------
    checkpoint : Path
        The query's folder.

    Returns
    -------
    dict or None
        Next offset by topic and partition; None where there is no committed micro-batch.

    Raises
    ------
    JobError
        A file is damaged.
    """
    committed = _last_number(checkpoint / "commits")
    return None if committed is None else _read_offsets(checkpoint, committed)


def unfinished_batch(checkpoint: Path) -> UnfinishedBatch | None:
    """Return the micro-batch that was begun and not committed, None where there is none.

    Parameters
    ----------
    checkpoint : Path
        The query's folder; of a query that does not run now.
    """
    planned, committed = _last_number(checkpoint / "offsets"), _last_number(checkpoint / "commits")
    if planned is None or planned == committed:
        return None
    # Where the first batch began is not said beside its end; a range from 0 holds it.
    first: Offsets = {} if committed is None else _read_offsets(checkpoint, committed)
    spans = {
        (topic, partition): range(first.get(topic, {}).get(partition, 0), end)
        for topic, partitions in _read_offsets(checkpoint, planned).items()
        for partition, end in partitions.items()
    }
    metadata: dict[str, Any] = json.loads(_read_lines(checkpoint, planned)[1])
    return UnfinishedBatch(
        planned, metadata["batchTimestampMs"], {place: span for place, span in spans.items() if span}
    )


def last_committed(checkpoint: Path) -> int:
    """Return the number of the last committed micro-batch, -1 where there is none."""
    number = _last_number(checkpoint / "commits")
    return -1 if number is None else number


def _last_number(folder: Path) -> int | None:
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=None)


def _read_offsets(checkpoint: Path, number: int) -> Offsets:
    offsets: dict[str, dict[str, int]] = json.loads(_read_lines(checkpoint, number)[-1])
    return {topic: {int(p): next_ for p, next_ in partitions.items()} for topic, partitions in offsets.items()}


def _read_lines(checkpoint: Path, number: int) -> list[str]:
    path = checkpoint / "offsets" / str(number)
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) < _LINES or not lines[-1].startswith("{"):
        msg = f"the checkpoint file {path} is damaged (a power cut?). Move {checkpoint} aside; see the runbook."
        raise JobError(msg)
    return lines
