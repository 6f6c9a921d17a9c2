"""A Spark session in a process of its own, which runs a query when asked, so that what it uses can be told apart.

It stays between two turns, idle: a stream runs for weeks, so its JVM is warm.
"""

import multiprocessing as mp
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from pyspark.sql import SparkSession

from streaming.run.session import open_session
from streaming.settings import StreamSettings

Start = Callable[[SparkSession, StreamSettings], AbstractContextManager[None]]
"""Runs a query while its body runs. It goes to another process, so it is a function of a module, or a part of one."""

_TIMEOUT_S = 240
_GONE = "the process with the Spark session has ended"


class SparkHost:
    """The process's other end; see `open_host`."""

    in_batches = True

    def __init__(self, process: Any, connection: Any) -> None:
        self._process = process
        self._connection = connection

    @contextmanager
    def running(self, settings: StreamSettings) -> Iterator[tuple[int, ...]]:
        """Run the query on some topics while the body runs; give the process's id.

        Raises
        ------
        RuntimeError
            The process has ended, or does not answer; its own words are on standard error.
        """
        self._ask(settings)
        try:
            yield (self._process.pid,)
        finally:
            self._ask(None)

    def await_answer(self) -> None:
        """Wait until the process has done what it was asked."""
        try:
            answered = self._connection.poll(_TIMEOUT_S)
            if answered:
                self._connection.recv()
        except (EOFError, ConnectionError) as exc:
            raise RuntimeError(_GONE) from exc
        if not answered:
            msg = f"the process with the Spark session did not answer within {_TIMEOUT_S} s"
            raise RuntimeError(msg)

    def _ask(self, settings: StreamSettings | None) -> None:
        try:
            self._connection.send(settings)
        except ConnectionError as exc:
            raise RuntimeError(_GONE) from exc
        self.await_answer()


@contextmanager
def open_host(settings: StreamSettings, start: Start) -> Iterator[SparkHost]:
    """Start the process and its session; end both."""
    context = mp.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_serve, args=(its, settings, start))
    process.start()
    its.close()  # so that its end is seen here
    host = SparkHost(process, ours)
    try:
        host.await_answer()
        yield host
    finally:
        ours.close()  # its sign to end
        process.join(_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(connection: Any, settings: StreamSettings, start: Start) -> None:
    spark = open_session(settings)
    try:
        connection.send(None)
        while (asked := _receive(connection)) is not None:
            with start(spark, asked):
                connection.send(None)
                _receive(connection)
            connection.send(None)
    finally:
        spark.stop()


def _receive(connection: Any) -> StreamSettings | None:
    """Give the topics to run on, None where the other end has gone or wants the query to end."""
    try:
        asked: StreamSettings | None = connection.recv()
    except EOFError:
        return None
    return asked
