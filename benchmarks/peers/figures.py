"""What the rounds of a run come to: one row of figures for each candidate."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.latency import summarise
from benchmarks.peers.measure import IDLE_RATE, Turn
from xray.console import new_table
from xray.tabular import print_table

_MB = 1_000_000


@dataclass
class Latency:
    """Seconds from publishing to reading the result, over all rounds; None where none was measured."""

    rate_img_s: float
    images: int = 0
    p50: float | None = None
    p95: float | None = None


@dataclass
class Peer:
    """One candidate: what it is, and its figures; a note where it was not measured.

    Parameters
    ----------
    name : str
        For people and programs.
    engine : str
        What computes the features.
    batch : int or None
        Images at a time in the engine.
    measure : callable or None
        Gives it its turn; None where it cannot be measured.
    turns : list of Turn
        One a round.
    note : str
        Why there are none.
    """

    name: str
    engine: str
    batch: int | None = None
    measure: Callable[[], Turn] | None = None
    turns: list[Turn] = field(default_factory=list)
    note: str = ""


def summarize(peer: Peer, bare: Peer, rates: Sequence[float]) -> dict[str, Any]:
    """Reduce a candidate's turns; medians over the rounds, ratios within each, latencies of all rounds together.

    Parameters
    ----------
    peer, bare : Peer
        The candidate, and the bare limit: as many turns where there are any.
    rates : sequence of float
        Images a second of the loads after the idle one.

    Returns
    -------
    dict
        Of JSON; a figure that was not measured is None.
    """
    turns = peer.turns
    measured = {name: median(getattr(turn, name) for turn in turns) if turns else None for name in _FIGURES}
    of_bare = [turn.img_s / limit.img_s for turn, limit in zip(turns, bare.turns, strict=bool(turns))]
    memory = measured.pop("pss_bytes")
    return {
        "name": peer.name,
        "engine": peer.engine,
        "batch": peer.batch,
        **measured,
        "of_bare": median(of_bare) if of_bare else None,
        "pss_mb": None if memory is None else memory / _MB,
        "latency_seconds": [asdict(_latency(turns, place, rate)) for place, rate in enumerate((IDLE_RATE, *rates))],
        "rounds": [{name: getattr(turn, name) for name in _FIGURES} for turn in turns],
        "note": peer.note,
    }


_FIGURES = ("img_s", "cpu_s_per_1000", "pss_bytes")


def _latency(turns: Sequence[Turn], place: int, rate: float) -> Latency:
    found = [turn.latencies[place] for turn in turns if place < len(turn.latencies)]
    seconds = [value for latencies in found if latencies is not None for value in latencies]
    if not seconds:
        return Latency(rate)
    result = summarise("", seconds)
    return Latency(rate, result.images, result.p50, result.p95)


def show(rows: Sequence[dict[str, Any]], rates: Sequence[float], title: str) -> None:
    """Print the figures as a table on standard output."""
    loads = ["#idle s", *(f"#{rate:.0f}/s s" for rate in rates)]
    table = new_table("", "engine", "#img/s", "#of bare", "#CPU s/1000", "#MB", *loads, "note", title=title)
    for row in rows:
        engine = row["engine"] + (f" x{row['batch']}" if row["batch"] else "")
        figures = [_text(row[name], digits) for name, digits in _COLUMNS]
        latencies = [_quantiles(latency) for latency in row["latency_seconds"]]
        table.add_row(row["name"], engine, *figures, *latencies, row["note"])
    print_table(table)


_COLUMNS = (("img_s", 1), ("of_bare", 2), ("cpu_s_per_1000", 1), ("pss_mb", 0))


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _quantiles(latency: dict[str, Any]) -> str:
    """Give both quantiles, p50 / p95."""
    return "" if latency["p50"] is None else f"{latency['p50']:.3f} / {latency['p95']:.3f}"
