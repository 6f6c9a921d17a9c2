"""The supervisor of a query, with queries that fail as they are told."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from schemas.errors import BrokerError, JobError
from streaming.run import supervisor
from streaming.run.sparkinternals import JavaError
from streaming.run.supervisor import FailureKind, QueryFailure, QuerySupervisor, describe_failure
from streaming.score.decision import NO_ANSWER_MARK
from streaming.settings import RetrySettings


class Query:
    """Stands for Spark's query; fails with the causes that are put into ``causes``."""

    def __init__(self) -> None:
        self.isActive = True
        self.lastProgress: object | None = None
        self.causes: list[JavaError] = []

    def fail(self, message: str = "no broker", class_name: str = "java.io.IOException") -> None:
        self.isActive = False
        self.causes = [JavaError("x.StreamingQueryException", "StreamingQueryException", "outer")]
        self.causes.append(JavaError(class_name, class_name.rpartition(".")[2], message))


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    monkeypatch.setattr("streaming.retry.time", clock)
    return clock


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done to Spark, in order."""
    done: list[str] = []

    def end(query: Query, _timeout_s: float) -> bool:
        done.append("ended")
        query.isActive = False
        return True

    monkeypatch.setattr(supervisor, "list_causes", lambda query: iter(query.causes))
    monkeypatch.setattr(supervisor, "end_after_batch", end)
    monkeypatch.setattr(supervisor, "cancel_jobs", lambda _: done.append("cancelled"))
    monkeypatch.setattr(supervisor, "await_quiet", lambda _: done.append("quiet"))
    return done


def supervise(
    start: Callable[[], Any], failures: list[QueryFailure] | None = None, *, give_up_s: float = 60
) -> QuerySupervisor:
    retry = RetrySettings(first_wait_s=1, max_wait_s=4, give_up_s=give_up_s)
    noted: list[QueryFailure] = [] if failures is None else failures
    return QuerySupervisor(None, "score", start, retry, noted.append)


def test_a_failed_query_is_started_again_after_a_wait(clock: Clock, quiet: list[str]) -> None:
    started: list[Query] = []
    failures: list[QueryFailure] = []

    def start() -> Query:
        started.append(Query())
        return started[-1]

    watched = supervise(start, failures)
    watched.start()
    assert watched.check()
    for wait_s in (1, 2, 4, 4):
        before = len(started)
        started[-1].fail()
        assert watched.check()
        clock.now += wait_s - 0.1
        assert watched.check()
        assert len(started) == before
        clock.now += 0.1
        assert watched.check()
        assert len(started) == before + 1
    assert quiet == ["cancelled", "quiet"] * 4, "what the failed batch left is awaited before it is done again"
    assert failures == [QueryFailure("score", FailureKind.OTHER, "IOException: no broker")] * 4


@pytest.mark.parametrize("recovered", [True, False])
def test_it_gives_up_only_where_it_did_not_recover_between(clock: Clock, quiet: list[str], recovered: bool) -> None:
    query = Query()
    watched = supervise(lambda: query)
    watched.start()
    query.fail()
    watched.check()
    clock.now += 30
    query.isActive, query.causes = True, []
    watched.check()
    query.lastProgress = "a batch" if recovered else None
    watched.check()
    clock.now += 30
    query.fail()
    if recovered:
        assert watched.check()
    else:
        with pytest.raises(JobError, match=r"the score query ended in error: IOException: no broker\. Details"):
            watched.check()


def test_a_query_that_ran_for_a_minute_without_an_image_has_recovered(
    clock: Clock, quiet: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    query = Query()
    watched = supervise(lambda: query)
    watched.start()
    query.fail()
    watched.check()
    clock.now += 1
    query.isActive, query.causes = True, []
    watched.check()
    clock.now += 61
    assert watched.check()
    assert "the score query works again" in caplog.text


def test_a_start_that_fails_is_tried_again(clock: Clock, quiet: list[str]) -> None:
    answers: list[Exception | Query] = [BrokerError("away"), Query()]

    def start() -> Query:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    failures: list[QueryFailure] = []
    watched = supervise(start, failures)
    watched.start()
    assert [failure.cause for failure in failures] == ["BrokerError: away"]
    clock.now += 1
    assert watched.check()
    assert answers == []


def test_missing_features_are_tried_again_at_once_and_for_ever(clock: Clock, quiet: list[str]) -> None:
    query = Query()
    failures: list[QueryFailure] = []
    watched = supervise(lambda: query, failures, give_up_s=0)
    watched.start()
    for _ in range(3):
        query.fail(f"[USER_RAISED_EXCEPTION] {NO_ANSWER_MARK} ...")
        assert watched.check()
        query.isActive, query.causes = True, []
        assert watched.check()
    assert [failure.kind for failure in failures] == [FailureKind.FEATURES] * 3


def test_a_query_that_has_done_all_there_was_ends(clock: Clock, quiet: list[str]) -> None:
    query = Query()
    watched = supervise(lambda: query)
    watched.start()
    query.isActive = False
    assert not watched.check()


def test_a_restart_and_a_stop_finish_the_running_batch_first(clock: Clock, quiet: list[str]) -> None:
    started: list[Query] = []

    def start() -> Query:
        started.append(Query())
        return started[-1]

    watched = supervise(start)
    watched.start()
    watched.restart()
    assert (quiet, len(started)) == (["ended", "cancelled", "quiet"], 2)
    started[-1].causes = [JavaError("java.io.IOException", "IOException", "no disk")]
    with pytest.raises(JobError, match="no disk"):
        watched.stop()
    watched.stop()  # there is nothing to stop any more


@pytest.mark.parametrize(
    ("class_name", "message", "kind"),
    [
        ("org.apache.spark.api.python.PythonException", "", FailureKind.WORKER),
        ("java.io.EOFException", "", FailureKind.WORKER),
        ("x.E", "Some data may have been lost: failOnDataLoss", FailureKind.LOSS),
        ("x.E", f"[USER_RAISED_EXCEPTION] {NO_ANSWER_MARK}", FailureKind.FEATURES),
        ("x.E", f"a plan that quotes {NO_ANSWER_MARK}", FailureKind.OTHER),
    ],
)
def test_failures_are_told_apart(quiet: list[str], class_name: str, message: str, kind: FailureKind) -> None:
    query: Any = Query()
    assert describe_failure(query, "score") is None
    query.fail(message, class_name)
    found = describe_failure(query, "score")
    assert found is not None
    assert found.kind is kind
