"""The account of what devices sent and were told, in figures and, where wanted, as a file with a line for each try."""

import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from xray.simulator.answers import NO_ANSWER, Answer, Verdict
from xray.simulator.damage import Damage
from xray.simulator.habits import Way
from xray.simulator.objects import Shot

_SAMPLES = 20_000
"""Of latencies: a fair draw of so many stands for all, however long the run."""
_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Try:
    """One attempt to send an image.

    Parameters
    ----------
    shot : Shot
        The image.
    number : int
        1 is the first.
    damage : Damage or None
        What was done wrong on purpose.
    answer : Answer or None
        What came back; None where the sender has aborted on purpose.
    seconds : float
        From the first byte to the answer.
    gives_up : bool
        The device sends it no more, though nobody has taken it.
    """

    shot: Shot
    number: int
    damage: Damage | None
    answer: Answer | None
    seconds: float
    gives_up: bool

    @property
    def outcome(self) -> str:
        """What became of the image: accepted, refused, retry, given up."""
        if self.answer is not None and self.answer.verdict is not Verdict.LATER:
            return str(self.answer.verdict)
        return "given up" if self.gives_up else "retry"


class Account:
    """Counts every try, from any thread.

    Parameters
    ----------
    file : Path, optional
        Gets a JSON line for each try as soon as it has its answer.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._stream = None if file is None else file.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._ended: float | None = None
        self._random = random.Random(0)
        self._latencies: list[float] = []
        self._answered = 0
        self.sent = self.accepted = self.retried = self.given_up = self.aborted = self.unfinished = self.failed = 0
        self.no_answer = 0
        self.refused: Counter[str] = Counter()
        self.broken: Counter[tuple[str, str]] = Counter()
        self.by_way: Counter[tuple[Way, str]] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def note(self, one: Try) -> None:
        """Count a try, and write its line."""
        with self._lock:
            self._count(one)
            if self._stream is not None:
                self._stream.write(json.dumps(_describe(one)) + "\n")
                self._stream.flush()

    def note_unfinished(self, images: int) -> None:
        """Count images that were still to be sent when the end was asked for."""
        with self._lock:
            self.unfinished += images

    def end(self) -> None:
        """Stop the clock."""
        self._ended = time.monotonic()

    def figures(self) -> dict[str, Any]:
        """Give all of it, for JSON."""
        with self._lock:
            broken: dict[str, dict[str, int]] = {}
            for (damage, answer), count in sorted(self.broken.items()):
                broken.setdefault(damage, {})[answer] = count
            return {
                "sent": self.sent,
                "accepted": self.accepted,
                "refused": dict(sorted(self.refused.items())),
                "retried": self.retried,
                "given_up": self.given_up,
                "no_answer": self.no_answer,
                "aborted_on_purpose": self.aborted,
                "broken": broken,
                "unfinished": self.unfinished,
                "failed": self.failed,
                "seconds": round((self._ended or time.monotonic()) - self._started, 3),
                "latency_s": _percentiles(self._latencies),
            }

    def _count(self, one: Try) -> None:
        way, answer, outcome = one.shot.habits.way, one.answer, one.outcome
        if one.number == 1:
            self.sent += 1
            self.by_way[way, "sent"] += 1
        else:
            self.retried += 1
        if answer is None:
            self.aborted += 1
        elif answer is NO_ANSWER:
            self.no_answer += 1
        else:
            self._note_latency(one.seconds)
        if one.damage is not None:
            self.broken[one.damage, outcome if answer is None else answer.name] += 1
        self.by_way[way, outcome] += 1
        if outcome == Verdict.TAKEN:
            self.accepted += 1
        elif outcome == Verdict.REFUSED:
            assert answer is not None  # noqa: S101
            self.refused[answer.name] += 1
        elif outcome == "given up":
            self.given_up += 1
        if outcome in {Verdict.REFUSED, "given up"} and not (one.damage is not None and one.damage.spoils):
            self.failed += 1

    def _note_latency(self, seconds: float) -> None:
        """Keep a draw in which each answer so far has the same chance to be."""
        self._answered += 1
        if len(self._latencies) < _SAMPLES:
            self._latencies.append(seconds)
        elif (place := self._random.randrange(self._answered)) < _SAMPLES:
            self._latencies[place] = seconds


def _percentiles(latencies: list[float]) -> dict[str, float | None]:
    found = sorted(latencies)
    if not found:
        return dict.fromkeys(_PERCENTILES)
    return {name: round(found[min(len(found) - 1, int(share * len(found)))], 4) for name, share in _PERCENTILES.items()}


def _describe(one: Try) -> dict[str, Any]:
    shot, answer = one.shot, one.answer
    return {
        "time": round(time.time(), 3),
        "device": shot.habits.aet,
        "way": shot.habits.way,
        "uid": shot.sop_uid,
        "marker": shot.patient.marker,
        "try": one.number,
        "broken": one.damage,
        "answer": None if answer is None else answer.name,
        "event_id": None if answer is None else answer.event_id,
        "outcome": one.outcome,
        "seconds": round(one.seconds, 4),
    }
