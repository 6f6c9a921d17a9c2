"""Something that is done every so many seconds, in a thread of its own, while the stream runs."""

import logging
import threading
from collections.abc import Callable

from schemas.errors import XrayError

log = logging.getLogger(__name__)


class PeriodicTask:
    """Does something again and again; no failure ends it.

    Parameters
    ----------
    name : str
        Of the thread.
    action : callable
        What is done.
    interval_s : float
        Seconds from the end of one turn to the begin of the next; 0 does nothing at all.
    failure : str
        How a line of the log about an expected failure begins: ``"no account could be drawn up"``.
    expected : tuple of exception types
        Failures that are told in one line: the broker or a disk may be away. Any other is told with its traceback.
    level : int
        Of these lines in the log.
    first_wait_s : float, optional
        Seconds before the first turn; one interval when absent.
    """

    def __init__(
        self,
        name: str,
        action: Callable[[], None],
        interval_s: float,
        *,
        failure: str,
        expected: tuple[type[Exception], ...] = (XrayError, OSError),
        level: int = logging.WARNING,
        first_wait_s: float | None = None,
    ) -> None:
        self._action = action
        self._interval_s = interval_s
        self._failure = failure
        self._expected = expected
        self._level = level
        self._first_wait_s = interval_s if first_wait_s is None else first_wait_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread, once."""
        if self._interval_s:
            self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end; a turn that is under way is not waited for."""
        self._ended.set()

    def run_once(self) -> None:
        """Do it now; a failure is logged once, here, and not raised."""
        try:
            self._action()
        except self._expected as exc:
            log.log(self._level, "%s: %s", self._failure, first_line(exc))
        except Exception:  # whatever it is, the next turn may succeed, and a thread that ended would go unseen
            log.exception("%s, for an unexpected reason", self._failure)

    def _run(self) -> None:
        wait_s = self._first_wait_s
        while not self._ended.wait(wait_s):
            self.run_once()
            wait_s = self._interval_s


def first_line(exc: Exception) -> str:
    """Say in one line what an exception says."""
    return next(iter(str(exc).splitlines()), type(exc).__name__)
