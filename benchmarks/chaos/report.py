"""What a run of the kill matrix found: a table for people, Markdown and JSON for the record."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.chaos.faults import Round
from benchmarks.chaos.oracle import Verdict
from benchmarks.chaos.stream import Memory
from xray.console import new_table

FLAT = 0.05
"""Memory counts as flat where it changes by less over the second half of a run."""

_FEWEST_SAMPLES = 3
"""Two points always lie on a line."""
_COLUMNS = ("fault", "#hits of rounds", "#records", "#missing", "#topic duplicates", "#table duplicates",
            "#s to new prediction, median and max", "#audit exit", "verdict")  # fmt: skip
"""Topic duplicates are judged by the fault's kind, which stands behind its name."""


@dataclass
class Growth:
    """How the memory of one process life moved over the second half of it.

    Parameters
    ----------
    samples : int
        In that half.
    first_mb, last_mb : float
        Of the fitted line at its two ends, JVM and workers together.
    share : float
        Change as a share of the first.
    """

    samples: int
    first_mb: float
    last_mb: float
    share: float

    @property
    def flat(self) -> bool:
        """Whether it grew by less than `FLAT`."""
        return self.share < FLAT


@dataclass
class Report:
    """Everything a run found.

    Parameters
    ----------
    seed : int
        The run can be repeated with it.
    rounds : list of Round
        Of the matrix or the soak.
    whole : list of Verdict
        The account of each scene at its end.
    growth : Growth or None
        Where memory was sampled.
    figures : dict of str to float
        Others, by name.
    failures : list of str
        Why a scene could not be played to its end.
    seconds : float
        How long the run took.
    """

    seed: int
    rounds: list[Round] = field(default_factory=list)
    whole: list[Verdict] = field(default_factory=list)
    growth: Growth | None = None
    figures: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def balanced(self) -> bool:
        """Whether every round passed and the account of every scene balances."""
        sound = all(each.passed for each in self.rounds) and all(verdict.balanced for verdict in self.whole)
        return sound and not self.failures

    @property
    def records(self) -> int:
        """Confirmed records of all scenes."""
        return sum(verdict.records for verdict in self.whole)

    @property
    def missing(self) -> int:
        """Records without outcome."""
        return sum(verdict.missing for verdict in self.whole)

    def bound(self) -> str:
        """Say what the number of losses is worth."""
        if self.missing or not self.records:
            return f"{self.missing} losses in {self.records} records."
        rate = 3 / self.records
        return f"0 losses in {self.records} records: with 95 % confidence fewer than 1 in {1 / rate:.0f} ({rate:.1e})."

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {
            "seed": self.seed,
            "balanced": self.balanced,
            "records": self.records,
            "missing": self.missing,
            "loss_rate_below": 3 / self.records if self.records and not self.missing else None,
            "seconds": round(self.seconds, 1),
            "growth": None if self.growth is None else {**asdict(self.growth), "flat": self.growth.flat},
            "figures": self.figures,
            "failures": self.failures,
            "rounds": [_slim(asdict(each)) | {"passed": each.passed} for each in self.rounds],
            "whole": [asdict(verdict) for verdict in self.whole],
        }


def _slim(each: dict[str, Any]) -> dict[str, Any]:
    """Leave the audit's own account out of a round; the scene's end has it."""
    each["verdict"] = {name: value for name, value in each["verdict"].items() if name != "audit"}
    return each


def fault_rows(rounds: Sequence[Round]) -> list[list[str]]:
    """Give one row for each fault, in the order of the columns."""
    by_fault: dict[str, list[Round]] = {}
    for each in rounds:
        by_fault.setdefault(each.fault, []).append(each)
    return [_row(name, group) for name, group in by_fault.items()]


def _row(name: str, group: Sequence[Round]) -> list[str]:
    verdicts = [each.verdict for each in group]
    recovery = [seconds for each in group for seconds in each.recovery_s]
    exits = sorted({str(verdict.audit_exit) for verdict in verdicts})
    troubles = sorted({trouble for verdict in verdicts for trouble in verdict.troubles})
    if any(each.repeated for each in group):
        troubles.append("repeated outcomes")
    if not all(each.drained for each in group):
        troubles.append("did not catch up")
    if not all(each.hit for each in group):
        troubles.append("not hit each time")
    return [
        f"{name} ({group[0].kind})",
        f"{sum(each.hit for each in group)} of {len(group)}",
        str(sum(verdict.records for verdict in verdicts)),
        str(sum(verdict.missing for verdict in verdicts)),
        str(sum(verdict.topic_duplicates for verdict in verdicts)),
        str(sum(verdict.table_duplicates for verdict in verdicts)),
        f"{median(recovery):.1f}, {max(recovery):.1f}" if recovery else "",
        ", ".join(exits),
        ", ".join(troubles) or "balanced",
    ]


def draw_table(rounds: Sequence[Round]) -> Table:
    """Draw the rows for a terminal."""
    table = new_table(*_COLUMNS)
    table.columns[0].no_wrap = True
    for row in fault_rows(rounds):
        table.add_row(*row)
    return table


def measure_growth(samples: Sequence[Memory]) -> Growth | None:
    """Fit a line through the second half of the longest process life; None where there are too few samples."""
    lives: dict[int, list[Memory]] = {}
    for sample in samples:
        lives.setdefault(sample.jvm_pid, []).append(sample)
    longest = max(lives.values(), key=len, default=[])
    half = longest[len(longest) // 2 :]
    if len(half) < _FEWEST_SAMPLES:
        return None
    times = [sample.time_s - half[0].time_s for sample in half]
    sizes = [(sample.jvm_bytes + sample.workers_bytes) / 1e6 for sample in half]
    mean_time, mean_size = sum(times) / len(times), sum(sizes) / len(sizes)
    spread = sum((time - mean_time) ** 2 for time in times)
    slope = sum((t - mean_time) * (s - mean_size) for t, s in zip(times, sizes, strict=True)) / spread
    first, last = mean_size - slope * mean_time, mean_size + slope * (times[-1] - mean_time)
    return Growth(len(half), first, last, (last - first) / first)


def write_report(report: Report, folder: Path, options: Mapping[str, object]) -> None:
    """Write ``chaos.json`` and ``chaos.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"options": {name: str(value) for name, value in options.items()}, **report.to_dict()}
    (folder / "chaos.json").write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")
    (folder / "chaos.md").write_text(render_markdown(report, options), encoding="utf-8")


def render_markdown(report: Report, options: Mapping[str, object]) -> str:
    """Render the report for people."""
    said = ", ".join(f"{name} {value}" for name, value in options.items())
    lines = ["# Kill matrix", "", f"{said}. {report.seconds / 60:.1f} minutes.", "", report.bound(), ""]
    lines += [f"The account {'balances' if report.balanced else '**does not balance**'}.", ""]
    if report.rounds:
        names = [column.removeprefix("#") for column in _COLUMNS]
        lines += [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        lines += [f"| {' | '.join(row)} |" for row in fault_rows(report.rounds)]
        lines += ["", "## Rounds", ""]
    for each in report.rounds:
        lines.append(f"- {each.fault}: {'; '.join(each.notes)}")
        lines += [f"  - the stream ended by itself: {death}" for death in each.deaths]
        lines += [f"  - {name}: {', '.join(found)}" for name, found in each.verdict.examples.items()]
    if report.growth is not None:
        g = report.growth
        flat = "flat" if g.flat else "**not flat**"
        lines += ["", f"Memory of JVM and workers over the second half of the longest life, {g.samples} samples: "
                  f"{g.first_mb:.0f} to {g.last_mb:.0f} MB ({g.share:+.1%}), {flat}."]  # fmt: skip
    lines += [f"- not played to its end: {failure}" for failure in report.failures]
    lines += [f"- {name}: {value:.1f}" for name, value in report.figures.items()]
    return "\n".join(lines) + "\n"
