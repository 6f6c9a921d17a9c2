"""The newest outcomes in memory: bounded by number and by bytes, and honest about what is no longer there."""

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from streaming.lookup.outcome import Kind, Outcome

MOST = 20_000
MOST_BYTES = 64 * 1024 * 1024
"""As `Outcome.size_bytes` counts. Ordinary outcomes take about 1.3 kB; ids may be of 8 KiB each, and are, of a hostile
device."""
_CHOICES = 50


@dataclass(frozen=True)
class Filter:
    """Which outcomes are meant; what is None or empty takes all.

    Parameters
    ----------
    kind : Kind, optional
        Predictions or dead letters alone.
    label : str, optional
        As people are shown it: a class, or ``"undecided"`` for all that are flagged.
    flag, source, reason : str, optional
        As outcomes have them; ``source`` is the device.
    model : str, optional
        Version.
    text : str
        A part of the event's or the image's id, in capitals or not.
    """

    kind: Kind | None = None
    label: str | None = None
    flag: str | None = None
    source: str | None = None
    model: str | None = None
    reason: str | None = None
    text: str = ""

    def takes(self, outcome: Outcome) -> bool:
        """Whether an outcome is meant."""
        return (
            (self.kind is None or outcome.kind is self.kind)
            and (self.label is None or outcome.shown_label == self.label)
            and (self.flag is None or self.flag in outcome.flags)
            and (self.source is None or outcome.source == self.source)
            and (self.model is None or (outcome.model is not None and outcome.model.version == self.model))
            and (self.reason is None or outcome.reason == self.reason)
            and (not self.text or _has_text(outcome, self.text.casefold()))
        )


def _has_text(outcome: Outcome, text: str) -> bool:
    return text in outcome.event_id or text in (outcome.image_id or "").casefold()


@dataclass(frozen=True)
class Batch:
    """What came since a number.

    Parameters
    ----------
    outcomes : tuple of Outcome
        Oldest first.
    skipped : int
        Outcomes between the number asked about and the first of these that are not among them: there were more than
        asked for, or the memory has let them go.
    last : int
        Number to ask about next.
    """

    outcomes: tuple[Outcome, ...]
    skipped: int
    last: int


@dataclass(frozen=True)
class Latency:
    """Seconds from Kafka taking an image to its outcome; None of no outcome.

    Parameters
    ----------
    count : int
        Outcomes that it is about.
    p50, p90, p95, p99, longest : float or None
        Exact, by nearest rank.
    """

    count: int
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    longest: float | None = None


@dataclass(frozen=True)
class Choices:
    """What there is to filter by, each with its count, the most frequent first; at most 50 of each."""

    labels: dict[str, int] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    models: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)


class Latest:
    """The newest outcomes, numbered from 1 as they come; safe between threads.

    An event that is repeated is left out: its number stays.

    Parameters
    ----------
    most : int
        Outcomes.
    most_bytes : int
        Of all together, as `Outcome.size_bytes` counts.
    """

    def __init__(self, most: int = MOST, most_bytes: int = MOST_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: deque[Outcome] = deque()
        self._by_id: dict[str, Outcome] = {}
        self._bytes = 0
        self._last = 0
        self._lock = threading.Lock()

    @property
    def last(self) -> int:
        """Number of the newest outcome; 0 where none has come."""
        return self._last

    @property
    def size_bytes(self) -> int:
        """Of what is kept, as `Outcome.size_bytes` counts."""
        return self._bytes

    def __len__(self) -> int:
        """Outcomes that are kept."""
        return len(self._kept)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Add outcomes, in the order in which they are to be shown."""
        with self._lock:
            for outcome in outcomes:
                if outcome.event_id in self._by_id:
                    continue
                self._last += 1
                kept = replace(outcome, number=self._last)
                self._kept.append(kept)
                self._by_id[kept.event_id] = kept
                self._bytes += kept.size_bytes
                while len(self._kept) > self._most or self._bytes > self._most_bytes:
                    gone = self._kept.popleft()
                    self._bytes -= gone.size_bytes
                    del self._by_id[gone.event_id]

    def find(self, event_id: str) -> Outcome | None:
        """Find one by its event id; None where it is not in memory."""
        with self._lock:
            return self._by_id.get(event_id)

    def since(self, number: int, limit: int = 200) -> Batch:
        """Give what came behind a number: the newest, where there are more than the limit.

        Parameters
        ----------
        number : int
            ``last`` of the batch before, or 0. One of another run of the page, which is above the last one here, counts
            as 0.
        limit : int
            How many at most.
        """
        with self._lock:
            last = self._last
            asked = number if number <= last else 0
            found = list(islice(reversed(self._kept), min(last - asked, limit)))
        found.reverse()
        return Batch(tuple(found), last - asked - len(found), last)

    def search(self, query: Filter, limit: int = 50, before: int | None = None) -> list[Outcome]:
        """Find outcomes, newest first.

        Parameters
        ----------
        query : Filter
            Which ones.
        limit : int
            How many at most.
        before : int, optional
            Only those with a smaller number: the last one's of the page before.
        """
        found = (one for one in reversed(self._copy()) if (before is None or one.number < before) and query.takes(one))
        return list(islice(found, limit))

    def count_choices(self) -> Choices:
        """Count what there is to filter by."""
        labels: Counter[str] = Counter()
        flags: Counter[str] = Counter()
        sources: Counter[str] = Counter()
        models: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for one in self._copy():
            sources[one.source or ""] += 1
            flags.update(one.flags)
            if one.model is not None:
                labels[one.shown_label or ""] += 1
                models[one.model.version] += 1
            else:
                reasons[one.reason or ""] += 1
        return Choices(*(dict(found.most_common(_CHOICES)) for found in (labels, flags, sources, models, reasons)))

    def measure_latency(self, since_s: float) -> Latency:
        """Measure the latency of outcomes that were published at or after a moment.

        Parameters
        ----------
        since_s : float
            Unix time in seconds.
        """
        found = sorted(one.latency_s for one in _back_to(self._copy(), since_s))
        if not found:
            return Latency(0)
        p50, p90, p95, p99 = (_rank(found, percent) for percent in (50, 90, 95, 99))
        return Latency(len(found), p50, p90, p95, p99, found[-1])

    def _copy(self) -> list[Outcome]:
        with self._lock:
            return list(self._kept)


_DISORDER_S = 60.0
"""How far partitions may be out of order among each other before older outcomes than asked for end the search."""


def _back_to(outcomes: Sequence[Outcome], since_s: float) -> Iterator[Outcome]:
    for one in reversed(outcomes):
        if one.published_at >= since_s:
            yield one
        elif one.published_at < since_s - _DISORDER_S:
            return


def _rank(ordered: Sequence[float], percent: int) -> float:
    return ordered[-(-len(ordered) * percent // 100) - 1]
