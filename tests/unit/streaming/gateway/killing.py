"""Runs something again and again, and kills it before each of the calls by which it changes the disk.

A run is a process of its own, forked, so that the imports are paid once. Before its n-th call of those in `CALLS` it
kills itself by SIGKILL; half of what a write was given is written before. The last run meets no kill.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

CALLS = ("open", "write", "fsync", "close", "rename", "unlink", "mkdir")
_MOST = 500


def kill_everywhere(work: Callable[[int, Callable[[str], None]], None]) -> Iterator[tuple[int, list[str]]]:
    """Run ``work(n, tell)`` for n from 0, each killed one call later than the one before.

    Yields
    ------
    tuple of int and list of str
        n, and what the run told before its end.
    """
    for number in range(_MOST):
        ear, mouth = os.pipe()
        child = os.fork()
        if child == 0:
            _be_killed(work, number, mouth)
        os.close(mouth)
        with os.fdopen(ear) as stream:
            told = stream.read().split()
        _, status = os.waitpid(child, 0)
        assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
        assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
        yield number, told
        if os.WIFEXITED(status):
            return
    raise AssertionError


def _be_killed(work: Callable[[int, Callable[[str], None]], None], number: int, mouth: int) -> None:
    write = os.write
    left = [number]
    lock = threading.Lock()

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counted(*arguments: Any, **options: Any) -> Any:
            with lock:
                left[0] -= 1
                is_last = left[0] < 0
            if is_last:
                if name == "write":
                    write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return counted

    code = 1
    try:
        for name in CALLS:
            setattr(os, name, wrap(name, getattr(os, name)))
        work(number, lambda word: (write(mouth, f"{word}\n".encode()), None)[1])
        code = 0
    finally:
        os._exit(code)
