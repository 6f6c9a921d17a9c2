"""One stream of events for each open page (server-sent events): bounded, with a heartbeat, ended when the page ends.

What is sent is made once a turn, whoever looks on, and nothing is made while nobody does. A tab that cannot keep up
misses turns; each message has its number, so that the tab can say how many it missed.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

log = logging.getLogger(__name__)

_HEARTBEAT_S = 15.0
"""A tab that has gone is noticed only when something is written to it."""
_RETRY_MS = 3000


class EventStreams:
    """Sends what a function makes to every open tab.

    Parameters
    ----------
    make : callable
        Makes a message, of which JSON is made; in a thread of its own, so it may wait.
    max_tabs : int
        Further tabs are refused.
    turn_s : float
        Seconds from one message to the next.
    heartbeat_s : float
        Seconds of silence after which a comment is sent.
    """

    def __init__(
        self,
        make: Callable[[], dict[str, Any]],
        *,
        max_tabs: int,
        turn_s: float = 1.0,
        heartbeat_s: float = _HEARTBEAT_S,
    ) -> None:
        self._make = make
        self._max_tabs = max_tabs
        self._turn_s = turn_s
        self._heartbeat_s = heartbeat_s
        self._tabs = 0
        self._number = 0
        self._message = b""
        self._is_ended = False
        self._turned = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def tabs(self) -> int:
        """How many are open."""
        return self._tabs

    @property
    def is_full(self) -> bool:
        """Whether a further tab would be refused."""
        return self._tabs >= self._max_tabs or self._is_ended

    def end(self) -> None:
        """End all streams, so that the server need not wait for them; called in the event loop."""
        self._is_ended = True
        self._turned.set()
        if self._task is not None:
            self._task.cancel()

    async def follow(self, is_let_in: Callable[[], bool] = lambda: True) -> AsyncIterator[bytes]:
        """Give what is to be sent to one tab, until it goes or the page ends; nothing where `is_full`.

        Parameters
        ----------
        is_let_in : callable
            Whether the tab may have more; asked before each message, for a stream is open for longer than a session.
        """
        if self.is_full:
            return
        # What was made for tabs that have gone is old; among others, a new one has the last message at once.
        seen = 0 if self._tabs else self._number
        self._tabs += 1
        try:
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._turn())
            yield f"retry: {_RETRY_MS}\n\n".encode()
            while not self._is_ended:
                turned = self._turned
                if not is_let_in():
                    return
                if self._number > seen:
                    seen = self._number
                    yield self._message
                    continue
                try:
                    await asyncio.wait_for(turned.wait(), self._heartbeat_s)
                except TimeoutError:
                    yield b": \n\n"
        finally:
            self._tabs -= 1

    async def _turn(self) -> None:
        """Make messages while anybody looks on."""
        while self._tabs and not self._is_ended:
            try:
                made = await asyncio.to_thread(self._make)
            except Exception:
                # A message that cannot be made must not end the stream of every tab: the next turn tries again.
                log.exception("the open pages were not told what is new")
            else:
                self._number += 1
                self._message = b"id: %d\ndata: %s\n\n" % (self._number, json.dumps(made).encode())
                turned, self._turned = self._turned, asyncio.Event()
                turned.set()
            await asyncio.sleep(self._turn_s)
