"""Waiting for an outcome in this process."""

import asyncio
import threading
import time

from streaming.gateway.receipts.waiters import Answer, Waiters

_ANSWER = Answer(prediction={"label": "normal"})


def test_all_who_wait_for_an_image_are_answered_and_nobody_else() -> None:
    waiters = Waiters()
    with waiters.expect("a") as first, waiters.expect("a") as second, waiters.expect("b") as other:
        waiters.answer("a", _ANSWER)
        waiters.answer("c", _ANSWER)
        assert (first.wait(1), second.wait(1), other.wait(0)) == (_ANSWER, _ANSWER, None)
        waiters.answer("a", Answer(reason="unexpected"))
        assert first.wait(1) == _ANSWER, "the first answer counts"


def test_an_answer_wakes_who_waits() -> None:
    waiters = Waiters()
    with waiters.expect("a") as waiter:
        threading.Timer(0.05, waiters.answer, ("a", _ANSWER)).start()
        started = time.monotonic()
        assert waiter.wait(20) == _ANSWER
        assert time.monotonic() - started < 10


def test_who_has_gone_is_forgotten() -> None:
    waiters = Waiters()
    with waiters.expect("a") as stays:
        with waiters.expect("a") as gone:
            pass
        waiters.answer("a", _ANSWER)
        assert (stays.wait(1), gone.wait(0)) == (_ANSWER, None)
    assert not waiters._futures


def test_an_event_loop_waits_too_and_may_give_up() -> None:
    waiters = Waiters()

    async def wait(timeout_s: float) -> Answer | None:
        with waiters.expect("a") as waiter:
            try:
                return await asyncio.wait_for(asyncio.wrap_future(waiter.future), timeout_s)
            except TimeoutError:
                waiters.answer("a", _ANSWER)  # an answer that comes just now disturbs nobody
                return None

    async def both() -> tuple[Answer | None, Answer | None]:
        late = await wait(0.01)
        threading.Timer(0.05, waiters.answer, ("a", _ANSWER)).start()
        return late, await wait(20)

    assert asyncio.run(both()) == (None, _ANSWER)
