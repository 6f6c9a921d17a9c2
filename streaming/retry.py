"""How long to wait before something is tried again, and when to give up."""

import time

from streaming.settings import RetrySettings


class Backoff:
    """Longer and longer waits between failures, and an end of them.

    Parameters
    ----------
    retry : RetrySettings
        First wait, longest wait, and for how long failures may go on.
    healthy_s : float
        A try that ran so long has recovered, whether or not it had anything to do.
    """

    def __init__(self, retry: RetrySettings, *, healthy_s: float) -> None:
        self._retry = retry
        self._healthy_s = healthy_s
        self.start_try()
        self.reset()

    @property
    def is_failing(self) -> bool:
        """Whether there was a failure since the last `reset`."""
        return self._failing_since is not None

    @property
    def has_run_long(self) -> bool:
        """Whether the present try began more than ``healthy_s`` ago."""
        return time.monotonic() - self._try_started > self._healthy_s

    def start_try(self) -> None:
        """Note that a try begins now."""
        self._try_started = time.monotonic()

    def reset(self) -> None:
        """Note that all is well again."""
        self._failing_since: float | None = None
        self._wait_s = self._retry.first_wait_s

    def note_failure(self) -> float | None:
        """Note a failure.

        Returns
        -------
        float or None
            Seconds to wait before the next try; None where failures have gone on for too long.
        """
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if now - self._failing_since >= self._retry.give_up_s:
            return None
        wait_s = min(self._wait_s, self._retry.max_wait_s)
        self._wait_s = min(2 * wait_s, self._retry.max_wait_s)
        return wait_s
