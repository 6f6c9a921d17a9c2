"""Waits between failures, by a clock that is set by hand."""

import pytest

from streaming import retry
from streaming.retry import Backoff
from streaming.settings import RetrySettings


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    return clock


def test_waits_double_up_to_their_bound_and_end_when_it_goes_on_for_too_long(clock: Clock) -> None:
    backoff = Backoff(RetrySettings(first_wait_s=1, max_wait_s=5, give_up_s=60), healthy_s=10)
    assert not backoff.is_failing
    assert [backoff.note_failure() for _ in range(5)] == [1, 2, 4, 5, 5]
    assert backoff.is_failing
    clock.now += 59
    assert backoff.note_failure() == 5
    clock.now += 1
    assert backoff.note_failure() is None


def test_after_a_reset_it_begins_anew(clock: Clock) -> None:
    backoff = Backoff(RetrySettings(first_wait_s=1, give_up_s=60), healthy_s=10)
    backoff.note_failure()
    clock.now += 59
    backoff.reset()
    assert not backoff.is_failing
    clock.now += 59
    assert [backoff.note_failure(), backoff.note_failure()] == [1, 2]


def test_a_try_that_runs_long_is_known(clock: Clock) -> None:
    backoff = Backoff(RetrySettings(), healthy_s=10)
    clock.now += 10
    assert not backoff.has_run_long
    clock.now += 1
    assert backoff.has_run_long
    backoff.start_try()
    assert not backoff.has_run_long


def test_it_may_end_at_the_first_failure_and_may_wait_for_years(clock: Clock) -> None:
    assert Backoff(RetrySettings(give_up_s=0), healthy_s=10).note_failure() is None
    endless = Backoff(RetrySettings(give_up_s=1e12), healthy_s=10)
    assert [endless.note_failure() for _ in range(2000)][-1] == 30


def test_the_longest_wait_holds_for_the_first_one_too() -> None:
    assert Backoff(RetrySettings(first_wait_s=50, max_wait_s=30), healthy_s=10).note_failure() == 30
