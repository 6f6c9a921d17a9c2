"""What a run found: a table for people, JSON for the record."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from benchmarks.fuzz.finds import Find
from benchmarks.fuzz.jail import Outcome
from xray.console import new_table

_COLUMNS = ("decoder", "#inputs", "#images", "#refused", "#reasons", "#finds", "#per s", "#max s", "#max MB")


@dataclass
class Tally:
    """What became of the files of one kind.

    Parameters
    ----------
    inputs, images : int
        How many there were, and how many were decoded.
    reasons : Counter
        How many were refused, by reason.
    finds : dict of str to Find
        By signature.
    seconds : float
        By the clock.
    slowest_s : float
        Of a processor, for one file.
    most_mb : float
        For one file, beyond what the child had before.
    """

    inputs: int = 0
    images: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    finds: dict[str, Find] = field(default_factory=dict)
    seconds: float = 0.0
    slowest_s: float = 0.0
    most_mb: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.inputs += 1
        self.slowest_s = max(self.slowest_s, outcome.seconds)
        self.most_mb = max(self.most_mb, outcome.memory_mb)
        if outcome.kind == "image":
            self.images += 1
        elif outcome.kind == "refused":
            self.reasons[outcome.detail] += 1

    @property
    def per_second(self) -> float:
        """Inputs a second."""
        return self.inputs / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Give it for JSON."""
        finds = [
            {"signature": signature, "times": find.times, "bytes": len(find.payload), "file": str(find.path)}
            for signature, find in self.finds.items()
        ]
        figures = {"seconds": self.seconds, "slowest_s": self.slowest_s, "most_mb": self.most_mb}
        return {
            "inputs": self.inputs,
            "images": self.images,
            "reasons": dict(self.reasons.most_common()),
            "finds": finds,
            "inputs_per_second": round(self.per_second, 1),
            **{name: round(value, 2) for name, value in figures.items()},
        }


def draw_table(tallies: dict[str, Tally]) -> Table:
    """Draw one row for each decoder."""
    table = new_table(*_COLUMNS)
    for name, tally in tallies.items():
        counts = (tally.inputs, tally.images, tally.reasons.total(), len(tally.reasons), len(tally.finds))
        figures = (f"{tally.per_second:.0f}", f"{tally.slowest_s:.2f}", f"{tally.most_mb:.0f}")
        table.add_row(name, *map(str, counts), *figures)
    return table
