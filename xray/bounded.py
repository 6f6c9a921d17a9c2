"""Work that is waited for no longer than so many seconds, whatever it hangs on."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Bounded(Generic[T]):
    """Work in a thread of its own, which ends with the process where it hangs.

    Parameters
    ----------
    name : str
        Of the thread.
    work : callable
        What is done; it is started at once.
    """

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self._done: list[T] = []
        self._failure: Exception | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._run, args=(work,), name=name, daemon=True).start()

    def await_end(self, until: float) -> T:
        """Give what the work gave.

        Parameters
        ----------
        until : float
            By the monotonic clock, in seconds.

        Raises
        ------
        TimeoutError
            It has not ended by then.
        Exception
            Whatever the work raised.
        """
        if not self._ended.wait(max(until - time.monotonic(), 0.0)):
            raise TimeoutError
        if self._failure is not None:
            raise self._failure
        return self._done[0]

    def _run(self, work: Callable[[], T]) -> None:
        try:
            self._done.append(work())
        except Exception as exc:  # it is raised again where it is waited for
            self._failure = exc
        finally:
            self._ended.set()
