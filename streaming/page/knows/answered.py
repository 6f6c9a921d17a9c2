"""Which images of the images topic have an outcome, as far as the outcomes that were read tell."""

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streaming.kafka.places import Place

WINDOW = 50_000
"""Newest images of the topic that are looked at: as many as any queue that a person looks through, and 5 MB."""
_SETTLED_S = 60.0
"""A micro-batch publishes its outcomes within seconds of each other; behind one of a minute ago nothing is to come."""
_SAMPLE_S = 1.0
_SAMPLES = 240
"""More than the minute has, where nobody asks for long."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """An image without an outcome.

    Parameters
    ----------
    place : Place
        Where it is in the images topic.
    is_passed_over : bool
        Whether images behind it in its partition have had their outcomes for more than a minute: it will get none. Else
        it waits.
    source, image_id : str or None
        Of the gateway's receipt, where the image came by one; the image itself is not read for it.
    accepted_at : float or None
        When the gateway took it, Unix time in seconds.
    """

    place: Place
    is_passed_over: bool
    source: str | None = None
    image_id: str | None = None
    accepted_at: float | None = None


@dataclass(frozen=True)
class UnansweredImages:
    """Images without an outcome.

    Parameters
    ----------
    newest : tuple of Unanswered
        Newest first in each partition; those that were passed over before those that wait.
    passed_over, waiting : int
        How many there are of each, shown or not.
    looked_at : int
        Images of the topic that this is about.
    """

    newest: tuple[Unanswered, ...]
    passed_over: int
    waiting: int
    looked_at: int


class Answered:
    """Notes which images have an outcome; safe between threads.

    Parameters
    ----------
    window : int
        Newest images that are looked at, in all partitions together.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._spans: dict[int, range] = {}
        self._answered: dict[int, set[int]] = {}
        self._marks: dict[int, deque[tuple[float, int]]] = {}

    def begin(self, first: Mapping[int, int]) -> None:
        """Begin anew, with the first image of each partition whose outcome must have been read."""
        with self._lock:
            self._spans = {partition: range(offset, offset) for partition, offset in first.items()}
            self._answered = {partition: set() for partition in first}
            self._marks = {partition: deque(maxlen=_SAMPLES) for partition in first}

    def note(self, place: Place, published_at: float) -> None:
        """Note that an image has an outcome, which was published then."""
        with self._lock:
            if place.partition not in self._answered or place.offset < self._spans[place.partition].start:
                return
            self._answered[place.partition].add(place.offset)
            marks = self._marks[place.partition]
            if marks and (place.offset <= marks[-1][1] or published_at < marks[-1][0] + _SAMPLE_S):
                return
            marks.append((published_at, place.offset))

    def advance(self, spans: Mapping[int, range]) -> None:
        """Note which offsets the topic has now, and forget what is outside of them or of the window."""
        with self._lock:
            for partition, span in spans.items():
                if partition not in self._spans:  # partitions were added: nothing of theirs was missed
                    self._spans[partition] = range(span.start, span.start)
                    self._answered[partition], self._marks[partition] = set(), deque(maxlen=_SAMPLES)
                first = max(span.start, self._spans[partition].start, span.stop - self._window // len(spans))
                if first > self._spans[partition].start:
                    self._answered[partition] = {one for one in self._answered[partition] if one >= first}
                self._spans[partition] = range(first, max(first, span.stop))

    def find_unanswered(self, limit: int, now: float) -> UnansweredImages:
        """Find images without an outcome.

        Parameters
        ----------
        limit : int
            How many to name.
        now : float
            Unix time in seconds.
        """
        passed: list[Unanswered] = []
        waiting: list[Unanswered] = []
        n_passed = n_waiting = 0
        with self._lock:
            for partition in self._spans:
                settled = self._find_settled(partition, now - _SETTLED_S)
                before, behind = self._list_missing(partition, settled)
                n_passed, n_waiting = n_passed + len(before), n_waiting + len(behind)
                passed += _name_newest(partition, before, limit, is_passed_over=True)
                waiting += _name_newest(partition, behind, limit, is_passed_over=False)
            looked_at = sum(map(len, self._spans.values()))
        return UnansweredImages((*passed, *waiting)[:limit], n_passed, n_waiting, looked_at)

    def _list_missing(self, partition: int, settled: int) -> tuple[list[int], list[int]]:
        """List offsets without an outcome, those before the settled one and those from there on."""
        span, answered = self._spans[partition], self._answered[partition]
        ahead = sum(1 for offset in answered if offset >= span.stop)
        if len(answered) - ahead == len(span):  # so it is most of the time
            return [], []
        missing = sorted(set(span) - answered)
        n_passed = bisect_left(missing, settled)
        return missing[:n_passed], missing[n_passed:]

    def _find_settled(self, partition: int, until: float) -> int:
        """Give the highest offset whose outcome was published by then; -1 where there is none."""
        marks = self._marks[partition]
        while len(marks) > 1 and marks[1][0] <= until:
            marks.popleft()
        return marks[0][1] if marks and marks[0][0] <= until else -1


def _name_newest(partition: int, offsets: Sequence[int], limit: int, *, is_passed_over: bool) -> list[Unanswered]:
    newest = reversed(offsets[max(len(offsets) - limit, 0) :])
    return [Unanswered(Place(partition, offset), is_passed_over) for offset in newest]
