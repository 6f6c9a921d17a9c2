"""Supervises a query: starts it, and starts it again after a failure, with longer and longer waits between.

What fails here is the machinery: a broker away, a full disk, a worker that died. Wrong images never come here, they
become dead letters. A query that keeps failing ends the process, so that whoever supervises it sees it.
"""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql.streaming import StreamingQuery

from schemas.errors import BrokerError, JobError, TableError
from streaming.retry import Backoff
from streaming.run.sparkinternals import (
    cancel_jobs,
    close_kafka_producers,
    count_running_tasks,
    end_after_batch,
    list_causes,
)
from streaming.score.decision import NO_ANSWER_MARK
from streaming.settings import RetrySettings

log = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 120.0
_QUIET_TIMEOUT_S = 15.0
_POLL_S = 0.05
_HEALTHY_S = 60.0
"""A query that ran so long without an image to show for it has recovered, too."""
_MAX_SUMMARY = 500
_TRACEBACK = "Traceback (most recent call last)"
_RAISED = re.compile(r"(?:: |Caused by: )?([\w.$]+(?:Error|Exception)\b.*)")
"""An exception's own line, which alone begins with its name; Java's within Python's has a colon before it."""


class FailureKind(Enum):
    """What to do about a failure depends on this."""

    WORKER = "worker"
    """A Python worker died or raised: it may have been an image."""
    LOSS = "loss"
    """Records are gone that were not read yet."""
    FEATURES = "features"
    """An image was decoded and has no features; its bytes are no longer at hand."""
    OTHER = "other"
    """Anything else: broker, disk, memory of the JVM."""


_MARKS = {
    # As raised: the mark alone is in the plan's text too, which other errors quote.
    FailureKind.FEATURES: (f"[USER_RAISED_EXCEPTION] {NO_ANSWER_MARK}",),
    FailureKind.LOSS: ("KAFKA_DATA_LOSS", "failOnDataLoss", "OffsetOutOfRange", "some data may have been missed"),
    # A worker that dies is noticed by whichever end of its socket is used first. To take a network's trouble for it
    # costs a batch some speed, no more.
    FailureKind.WORKER: ("Python worker", "PythonException", "EOFException", "Connection reset", "Broken pipe"),
}


@dataclass(frozen=True)
class QueryFailure:
    """Why a query ended.

    Parameters
    ----------
    query : str
        Its name.
    kind : FailureKind
        See there.
    cause : str
        The innermost cause, in one line.
    """

    query: str
    kind: FailureKind
    cause: str


class QuerySupervisor:
    """Supervises one query.

    Parameters
    ----------
    spark : SparkSession
        Where it runs.
    name : str
        The query's name.
    start : callable
        Starts it and gives it; called again after each failure.
    retry : RetrySettings
        How long to wait, and when to give up.
    on_failure : callable
        Called with each `QueryFailure` before the next start.
    """

    def __init__(
        self,
        spark: SparkSession,
        name: str,
        start: Callable[[], StreamingQuery],
        retry: RetrySettings,
        on_failure: Callable[[QueryFailure], None],
    ) -> None:
        self.name = name
        self._spark = spark
        self._start_query = start
        self._backoff = Backoff(retry, healthy_s=_HEALTHY_S)
        self._on_failure = on_failure
        self._query: StreamingQuery | None = None
        self._next_start = 0.0

    def start(self) -> None:
        """Start the query; a failure to do so is answered as one of the query's own."""
        try:
            self._query = self._start_query()
            self._backoff.start_try()
        except (BrokerError, TableError, PySparkException, OSError) as exc:
            self._handle_failure(QueryFailure(self.name, FailureKind.OTHER, summarize(type(exc).__name__, str(exc))))

    def check(self) -> bool:
        """Start the query again where it failed; return False once it has ended by itself, having done what there was.

        Raises
        ------
        JobError
            It keeps failing.
        """
        if self._query is None:
            if time.monotonic() >= self._next_start:
                self.start()
            return True
        if self._query.isActive:
            if self._backoff.is_failing and self._has_recovered(self._query):
                log.info("the %s query works again", self.name)
                self._backoff.reset()
            return True
        failure = describe_failure(self._query, self.name)
        if failure is None:
            return False
        cancel_jobs(self._query)
        self._query = None
        self._handle_failure(failure)
        return True

    def restart(self) -> None:
        """Finish the running micro-batch, then start the query anew."""
        failure = self._end()
        if failure is None:
            self.start()
        else:
            self._handle_failure(failure)

    def stop(self) -> None:
        """Finish the running micro-batch and end the query.

        Raises
        ------
        JobError
            It failed before it could.
        """
        failure = self._end()
        if failure is not None:
            raise _error_of(failure)

    def _end(self) -> QueryFailure | None:
        query, self._query = self._query, None
        if query is None:
            return None
        if not end_after_batch(query, _STOP_TIMEOUT_S):
            log.warning("the %s query was cancelled: its batch did not end in %.0f s", self.name, _STOP_TIMEOUT_S)
        cancel_jobs(query)
        await_quiet(self._spark)
        return describe_failure(query, self.name)

    def _has_recovered(self, query: StreamingQuery) -> bool:
        return query.lastProgress is not None or self._backoff.has_run_long

    def _handle_failure(self, failure: QueryFailure) -> None:
        if failure.kind is FailureKind.FEATURES:
            # One image's fault, and known by its name: nothing to wait for, and no reason to give up.
            await_quiet(self._spark)
            self._on_failure(failure)
            self._next_start = time.monotonic()
            return
        wait_s = self._backoff.note_failure()
        log.warning("the %s query failed: %s", self.name, failure.cause)
        # Tasks that still run and messages that are still under way belong to the batch that is done again.
        await_quiet(self._spark)
        self._on_failure(failure)
        if wait_s is None:
            raise _error_of(failure)
        self._next_start = time.monotonic() + wait_s
        log.info("the %s query is started again in %.0f s", self.name, wait_s)


def _error_of(failure: QueryFailure) -> JobError:
    return JobError(f"the {failure.query} query ended in error: {failure.cause}. Details are in spark.log.")


def describe_failure(query: StreamingQuery, name: str) -> QueryFailure | None:
    """Tell why a query ended; None where it did not end in error."""
    causes = list(list_causes(query))
    if not causes:
        return None
    whole = "\n".join(f"{cause.class_name} {cause.message}" for cause in causes)
    kind = next((kind for kind, marks in _MARKS.items() if any(mark in whole for mark in marks)), FailureKind.OTHER)
    return QueryFailure(name, kind, summarize(causes[-1].short_name, causes[-1].message))


def summarize(kind: str, message: str) -> str:
    """Say in one line what an exception says.

    Parameters
    ----------
    kind : str
        The exception's class, in short.
    message : str
        What it says. Of a whole traceback, Python's and Java's one within the other, the last cause is told.
    """
    raised = [match[1] for line in message.splitlines() if (match := _RAISED.match(line))]
    if _TRACEBACK in message and raised:
        return raised[-1][:_MAX_SUMMARY]
    return f"{kind}: {message.strip().partition(chr(10))[0]}"[:_MAX_SUMMARY]


def await_quiet(spark: SparkSession) -> None:
    """Wait until no task of a query that has ended runs and nothing that it published is still on its way.

    Spark gives a failed task's Kafka producer back to its pool with whatever it has not sent yet, and that is sent
    later, behind the back of the batch that is done again. Closing the producers sends it now or gives it up.
    """
    deadline = time.monotonic() + _QUIET_TIMEOUT_S
    while (running := count_running_tasks(spark)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    if running:
        log.warning("%s tasks of a query that has ended still run; what they publish may be published again", running)
    close_kafka_producers(spark)
