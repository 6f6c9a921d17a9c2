"""How much memory objects may take that wait for Kafka, whoever sends them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from streaming.gateway.refusals import Cause, Refusal

_COPIES = 3
"""Of an object: as it came, de-identified, and the Kafka client's own."""


class Memory:
    """A bound that all doors share.

    Parameters
    ----------
    max_bytes : int
        Of all objects together. One that is larger by itself waits until it is alone.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._reserved = 0
        self._freed = threading.Condition()

    @property
    def reserved(self) -> int:
        """Bytes now."""
        return self._reserved

    @contextmanager
    def reserve(self, size: int, wait_s: float) -> Iterator[None]:
        """Hold room for an object.

        Parameters
        ----------
        size : int
            Its bytes as it came.
        wait_s : float
            How long to wait for others to be done.

        Raises
        ------
        Refusal
            ``BUSY``: there was no room for so long.
        """
        wanted = _COPIES * size
        with self._freed:
            if not self._freed.wait_for(lambda: self._fits(wanted), wait_s):
                raise Refusal(Cause.BUSY, f"{self._reserved} bytes wait for Kafka, {self._max_bytes} may")
            self._reserved += wanted
        try:
            yield
        finally:
            with self._freed:
                self._reserved -= wanted
                self._freed.notify_all()

    def _fits(self, wanted: int) -> bool:
        return self._reserved == 0 or self._reserved + wanted <= self._max_bytes
