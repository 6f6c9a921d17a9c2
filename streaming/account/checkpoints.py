"""Reads how far a query came from its checkpoint folder, without Spark.

Spark writes ``offsets/N`` before micro-batch N and ``commits/N`` after it. ``offsets/N`` has a version line, a line of
metadata, and one line of JSON per source: topic, partition, next offset.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import JobError

_LINES = 3

Offsets = Mapping[str, Mapping[int, int]]
"""Next offset by topic and partition."""


@dataclass(frozen=True)
class Uncommitted:
    """What a query may have done behind its last committed micro-batch; it does it again.

    Spark does a batch whose ``offsets/N`` it finds with the same records. A query that writes its log while it works
    can be killed before that file is there: what it did then is known by where it began alone.

    Parameters
    ----------
    since_ms : int
        Not before this, by the driver's clock, in milliseconds.
    starts : mapping
        Next offset by topic and partition; from 0 where there is none.
    """

    since_ms: int
    starts: Offsets

    def holds(self, topic: str, partition: int, offset: int) -> bool:
        """Tell whether a record is in it."""
        return offset >= self.starts.get(topic, {}).get(partition, 0)


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


def find_uncommitted(checkpoint: Path) -> Uncommitted | None:
    """Return what lies behind the last committed micro-batch; None where the query has never begun.

    Parameters
    ----------
    checkpoint : Path
        The query's folder; of a query that does not run now.

    Raises
    ------
    JobError
        A file is damaged.
    """
    planned, committed = _last_number(checkpoint / "offsets"), _last_number(checkpoint / "commits")
    if planned is None:
        return None
    _read_lines(checkpoint, planned)  # Spark is to read it, and says less of what is wrong
    if committed is None:
        return Uncommitted(_planned_ms(checkpoint, min(_numbers(checkpoint / "offsets"))), {})
    return Uncommitted(_planned_ms(checkpoint, committed), _read_offsets(checkpoint, committed))


def last_committed(checkpoint: Path) -> int:
    """Return the number of the last committed micro-batch, -1 where there is none."""
    number = _last_number(checkpoint / "commits")
    return -1 if number is None else number


def _last_number(folder: Path) -> int | None:
    return max(_numbers(folder), default=None)


def _numbers(folder: Path) -> Iterator[int]:
    return (int(path.name) for path in folder.glob("*") if path.name.isdigit())


def _planned_ms(checkpoint: Path, number: int) -> int:
    metadata: dict[str, Any] = json.loads(_read_lines(checkpoint, number)[1])
    return int(metadata["batchTimestampMs"])


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
