"""Finds: made as small as they stay the same, and kept as files that can be tried again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from benchmarks.fuzz.jail import Outcome
from benchmarks.fuzz.kinds import Kind

_SHRINK_S = 60.0
"""By the clock, for one find: of one that hangs, each try takes seconds."""

_NAME_CHARS = 12


@dataclass
class Find:
    """A file that ended neither in an image nor in a named reason.

    Parameters
    ----------
    kind : Kind
        Of the file.
    payload : bytes
        The file, made small, before `Kind.wrap`.
    outcome : Outcome
        What became of the file as it was drawn.
    path : Path
        Where it is kept.
    times : int
        How many files had the same signature.
    """

    kind: Kind
    payload: bytes
    outcome: Outcome
    path: Path
    times: int = 1


def shrink(payload: bytes, kind: Kind, is_same: Callable[[bytes], bool]) -> bytes:
    """Leave out of a file what a find does not need: halves, quarters, and so on to single bytes.

    Parameters
    ----------
    payload : bytes
        The file.
    kind : Kind
        Of the file; its sums are mended after each cut.
    is_same : callable
        Whether a file is still the same find.

    Returns
    -------
    bytes
        No longer than the file; what was reached within a minute.
    """
    end = time.monotonic() + _SHRINK_S
    step = max(1, len(payload) // 2)
    while step:
        start = 0
        while start < len(payload) and time.monotonic() < end:
            shorter = kind.mend(payload[:start] + payload[start + step :])
            if is_same(shorter):
                payload = shorter
            else:
                start += step
        step //= 2
    return payload


def keep(payload: bytes, kind: Kind, outcome: Outcome, seed: int, folder: Path) -> Path:
    """Write a find, named by its content, and beside it what it did."""
    path = folder / kind.name / sha256(payload).hexdigest()[:_NAME_CHARS]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)
    path.with_suffix(".txt").write_text(f"{outcome.signature}\nseed {seed}\n\n{outcome.trace}")
    return path
