"""Who waits for an image's outcome, in this process."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an image; exactly one of the two.

    Parameters
    ----------
    prediction : dict or None
        The event as published; its schema is ``prediction``.
    reason : str or None
        Why it is a dead letter.
    """

    prediction: dict[str, Any] | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Waiter:
    """One who waits.

    Parameters
    ----------
    future : Future of Answer
        For whoever waits otherwise than in a thread: ``asyncio.wrap_future`` takes it.
    """

    future: "Future[Answer]"

    def wait(self, timeout_s: float) -> Answer | None:
        """Wait for so many seconds; None where nothing came."""
        try:
            return self.future.result(timeout_s)
        except NotInTime:
            return None


class Waiters:
    """All who wait, by the image's event id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: dict[str, list[Future[Answer]]] = {}

    @contextmanager
    def expect(self, event_id: str) -> Iterator[Waiter]:
        """Begin to wait; from here on no outcome is missed, so begin before the image is published."""
        future: Future[Answer] = Future()
        # Nobody cancels it then: to end a wait in an event loop would do so, and an answer that comes just now fail.
        future.set_running_or_notify_cancel()
        with self._lock:
            self._futures.setdefault(event_id, []).append(future)
        try:
            yield Waiter(future)
        finally:
            self._remove(event_id, future)

    def _remove(self, event_id: str, future: "Future[Answer]") -> None:
        with self._lock:
            left = [one for one in self._futures.get(event_id, []) if one is not future]
            if left:
                self._futures[event_id] = left
            else:
                self._futures.pop(event_id, None)

    def answer(self, event_id: str, answer: Answer) -> None:
        """Tell those who wait for an image, if there are any."""
        with self._lock:
            futures = self._futures.pop(event_id, ())
        for future in futures:
            future.set_result(answer)
