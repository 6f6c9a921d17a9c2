"""What is done every so many seconds."""

import logging
import threading

import pytest

from schemas.errors import BrokerError
from streaming.periodic import PeriodicTask


def test_it_goes_on_after_any_failure_until_it_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[Exception] = [BrokerError("away\nand more"), ValueError("half a file")]
    done = threading.Event()

    def act() -> None:
        if failures:
            raise failures.pop(0)
        done.set()

    task = PeriodicTask("test-periodic", act, 0.01, failure="nothing was done")
    task.start()
    assert done.wait(10)
    task.stop()
    for thread in [thread for thread in threading.enumerate() if thread.name == "test-periodic"]:
        thread.join(10)
        assert not thread.is_alive()
    expected, other = caplog.records
    assert (expected.levelno, expected.getMessage()) == (logging.WARNING, "nothing was done: away")
    assert (other.levelno, other.getMessage()) == (logging.ERROR, "nothing was done, for an unexpected reason")
    assert other.exc_info is not None
    assert isinstance(other.exc_info[1], ValueError)


def test_the_first_turn_may_come_sooner_than_the_next() -> None:
    turns: list[None] = []
    first = threading.Event()

    def act() -> None:
        turns.append(None)
        first.set()

    task = PeriodicTask("test-periodic", act, 3600, failure="", first_wait_s=0.01)
    task.start()
    assert first.wait(10)
    task.stop()
    assert len(turns) == 1


def test_an_interval_of_zero_does_nothing() -> None:
    task = PeriodicTask("test-periodic-never", lambda: None, 0, failure="")
    task.start()
    assert not [thread for thread in threading.enumerate() if thread.name == "test-periodic-never"]
    task.stop()


def test_an_expected_failure_may_be_no_more_than_information(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def act() -> None:
        raise OSError

    PeriodicTask("t", act, 1, failure="not compared", level=logging.INFO).run_once()
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.INFO, "not compared: OSError")
