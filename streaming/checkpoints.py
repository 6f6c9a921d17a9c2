"""Reads how far a query came from its checkpoint folder, without Spark.

Spark writes ``offsets/N`` before micro-batch N and ``commits/N`` after it. ``offsets/N`` has a version line, a line of
metadata, and one line of JSON per source: topic, partition, next offset.
"""

import json
from pathlib import Path


def committed_offsets(checkpoint: Path) -> dict[str, dict[int, int]] | None:
    """Return the offsets up to which a query has committed.

    Parameters
    ----------
    checkpoint : Path
        The query's folder.

    Returns
    -------
    dict or None
        Next offset by topic and partition; None where there is no committed micro-batch.
    """
    numbers = [int(path.name) for path in (checkpoint / "commits").glob("*") if path.name.isdigit()]
    if not numbers:
        return None
    lines = (checkpoint / "offsets" / str(max(numbers))).read_text(encoding="utf-8").splitlines()
    offsets: dict[str, dict[str, int]] = json.loads(lines[-1])
    return {topic: {int(p): next_ for p, next_ in partitions.items()} for topic, partitions in offsets.items()}
