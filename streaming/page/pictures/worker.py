"""A process that decodes and computes for the page: what an image does to its decoder, it does there.

The page shows bytes that devices sent, poison among them. A decoder that crashes or hangs ends this process and no
other, and the next picture starts a new one.
"""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import ParamSpec, TypeVar

from streaming.page.pictures.picture import PictureError, PictureUnreadable

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Worker:
    """A child process, started when it is first needed; one task at a time.

    Parameters
    ----------
    task_s : float
        Seconds after which a task is given up, and the process with it.
    wait_s : float
        Seconds that a task may wait for the one before.
    """

    def __init__(self, *, task_s: float = 30.0, wait_s: float = 30.0) -> None:
        self._task_s, self._wait_s = task_s, wait_s
        self._turn = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._closed = False

    def prepare(self, function: Callable[[], None]) -> None:
        """Start the process ahead of its first task, with the module of a function imported; nothing is waited for."""
        with self.take_turn():
            self._start().submit(function)

    def take_turn(self) -> "Turn":
        """Wait until nobody else uses the process; use it ``with`` the answer.

        What a task needs is read within its turn, so that of many requests only one has its bytes in memory.

        Raises
        ------
        PictureError
            The task before takes too long.
        """
        if not self._turn.acquire(timeout=self._wait_s):
            msg = f"other pictures have been in the making for {self._wait_s:.0f} s; ask again"
            raise PictureError(msg)
        return Turn(self._turn, self._run)

    def close(self) -> None:
        """End the process, whatever it does; there is none after this."""
        self._closed = True
        self._end()

    def _run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        if self._closed:
            msg = "the page is ending"
            raise PictureError(msg)
        try:
            return self._start().submit(function, *args, **kwargs).result(self._task_s)
        except BrokenProcessPool:
            why = "it ended the process that decoded it"
        except TimeoutError:
            why = f"it was not done within {self._task_s:.0f} s"
        except MemoryError:
            why = "it took more memory than there is"
        self._end()
        msg = f"no picture can be made of this image: {why}"
        raise PictureUnreadable(msg)

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Not forked: the page has threads of several libraries, and a fork of such a process can hang.
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin)
        return self._pool

    def _end(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in list((pool._processes or {}).values()):
                process.kill()  # one that hangs ends no other way
            pool.shutdown(cancel_futures=True)


class Turn:
    """One use of a `Worker`; a context manager that gives the function which runs tasks in its process."""

    def __init__(self, turn: threading.Lock, run: Callable[..., object]) -> None:
        self._turn, self._run = turn, run

    def __enter__(self) -> "Turn":
        return self

    def __exit__(self, *_: object) -> None:
        self._turn.release()

    def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a module's function in the process.

        Raises
        ------
        PictureUnreadable
            The process ended, or was ended for it took too long.
        """
        return self._run(function, *args, **kwargs)  # type: ignore[return-value]


def _begin() -> None:
    """Prepare the child: it ends with its parent, and by nothing else."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the page ends its children itself
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End where the page was killed: the pool's own pipes stay open in its children, which would wait for ever."""
    if (parent := parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)
