"""The bound on memory that all doors share."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from streaming.gateway.memory import Memory
from streaming.gateway.refusals import Cause, Refusal


def test_what_does_not_fit_waits_until_others_are_done() -> None:
    memory, is_inside, may_go = Memory(900), threading.Event(), threading.Event()

    def hold() -> None:
        with memory.reserve(200, 0):
            is_inside.set()
            may_go.wait(10)

    with ThreadPoolExecutor(2) as pool:
        holder = pool.submit(hold)
        assert is_inside.wait(10)
        assert memory.reserved == 600
        with pytest.raises(Refusal) as refused, memory.reserve(101, 0.01):
            pass
        assert refused.value.cause is Cause.BUSY
        with memory.reserve(100, 0):
            assert memory.reserved == 900
        may_go.set()
        holder.result(10)
        with memory.reserve(300, 10):
            assert memory.reserved == 900
    assert memory.reserved == 0


def test_an_object_that_is_larger_than_all_goes_alone() -> None:
    memory = Memory(100)
    with memory.reserve(5000, 0), pytest.raises(Refusal), memory.reserve(1, 0.01):
        pass
    with memory.reserve(5000, 0):
        pass
    assert memory.reserved == 0


def test_an_error_gives_its_room_back() -> None:
    memory = Memory(100)
    with pytest.raises(ZeroDivisionError), memory.reserve(10, 0):
        _ = 1 / 0
    assert memory.reserved == 0


def test_many_at_once_never_hold_more_than_the_bound() -> None:
    memory, most = Memory(300), []

    def hold(_: int) -> None:
        with memory.reserve(33, 10):
            most.append(memory.reserved)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, range(200)))
    assert len(most) == 200
    assert max(most) <= 300
    assert memory.reserved == 0
