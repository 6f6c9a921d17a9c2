"""Work that is waited for no longer than it may take."""

import threading
import time

import pytest

from xray.bounded import Bounded


def test_what_work_gives_is_given() -> None:
    assert Bounded("t", lambda: 5).await_end(time.monotonic() + 10) == 5


def test_work_that_has_ended_is_given_after_the_time_too() -> None:
    ended = threading.Event()
    work = Bounded("t", ended.set)
    assert ended.wait(10)
    time.sleep(0.05)
    assert work.await_end(time.monotonic() - 1) is None


def test_what_work_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        Bounded("t", lambda: 1 // 0).await_end(time.monotonic() + 10)


def test_work_that_hangs_is_left_to_itself() -> None:
    released = threading.Event()
    with pytest.raises(TimeoutError):
        Bounded("t", lambda: released.wait(60)).await_end(time.monotonic() + 0.05)
    released.set()
