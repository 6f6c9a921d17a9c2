"""What the stream needs of Spark's private classes, reached through py4j; nothing else in it touches them.

pyspark is pinned to one version, whose names these are. `check_internals` looks for each of them when a stream starts:
with another pyspark a missing one is told then, and not at the first stop or failure of a query.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pyspark
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.sql import SparkSession
from pyspark.sql.streaming import StreamingQuery

from schemas.errors import JobError

_TERMINATED = "org.apache.spark.sql.execution.streaming.runtime.TERMINATED$"
_PRODUCER_POOL = "org.apache.spark.sql.kafka010.producer.InternalKafkaProducerPool$"
_SINGLETON = "MODULE$"
"""Where a Scala object keeps itself."""

_NEEDED = {
    _TERMINATED: (_SINGLETON,),
    _PRODUCER_POOL: (_SINGLETON, "reset()"),
    "org.apache.spark.sql.execution.streaming.runtime.StreamingQueryWrapper": ("streamingQuery()", "exception()"),
    "org.apache.spark.sql.execution.streaming.runtime.StreamExecution": ("state()", "queryExecutionThread()"),
    "org.apache.spark.SparkContext": ("statusStore()", "listenerBus()"),
    "org.apache.spark.scheduler.LiveListenerBus": ("waitUntilEmpty()",),
    "org.apache.spark.status.AppStatusStore": ("executorList(boolean)",),
    "org.apache.spark.status.api.v1.ExecutorSummary": ("activeTasks()",),
}
"""Classes, and their fields and methods, that the functions below use."""

_PRIMITIVES = {"boolean": "Boolean", "int": "Integer", "long": "Long"}
"""Java's classes that know the type of a parameter."""


class JavaError(NamedTuple):
    """One exception of a chain of causes.

    Parameters
    ----------
    class_name, short_name : str
        Its class, with and without the package.
    message : str
        What it says; empty where it says nothing.
    """

    class_name: str
    short_name: str
    message: str


def check_internals(spark: SparkSession) -> None:
    """Check that every private name of Spark's that the stream uses is there.

    Raises
    ------
    JobError
        One is not; names it, and the version of pyspark.
    """
    for class_name, members in _NEEDED.items():
        for member in members:
            try:
                _find_member(spark, class_name, member)
            except (Py4JError, AttributeError) as exc:
                msg = (
                    f"pyspark {pyspark.__version__} has no {class_name}.{member}, which the stream needs to end its "
                    "queries in order. Install the version of pyspark that this package names."
                )
                raise JobError(msg) from exc


def _find_member(spark: SparkSession, class_name: str, member: str) -> None:
    found = _load_class(spark, class_name)
    name, is_method, rest = member.partition("(")
    if not is_method:
        found.getField(name)
        return
    parameters = [getattr(spark._jvm.java.lang, _PRIMITIVES[text]).TYPE for text in rest.rstrip(")").split(",") if text]
    types = spark.sparkContext._gateway.new_array(spark._jvm.java.lang.Class, len(parameters))
    for i, parameter in enumerate(parameters):
        types[i] = parameter
    found.getMethod(name, types)


def _load_class(spark: SparkSession, name: str) -> Any:
    """Load a class, the connectors' among them."""
    return spark._jvm.java.lang.Thread.currentThread().getContextClassLoader().loadClass(name)


def end_after_batch(query: StreamingQuery, timeout_s: float) -> bool:
    """End a query once its running micro-batch is committed; return False where that took too long.

    `StreamingQuery.stop` cancels the running batch. Spark's loop asks before each batch whether the query is still
    active, so saying that it is not, without the interrupt, lets the running one finish. Whether it has ended its
    thread alone can tell: `awaitTermination` answers by the state that was just set.

    A batch that is still being planned is the exception: Spark asks once more before it runs it, and interrupts itself.
    Its job may be under way by then, and goes on without its query, so `cancel_jobs` is called for in any case.
    """
    if not query.isActive:
        return True
    execution = query._jsq.streamingQuery()
    terminated = execution.getClass().getClassLoader().loadClass(_TERMINATED)
    execution.state().set(terminated.getField(_SINGLETON).get(None))
    thread = execution.queryExecutionThread()
    thread.join(max(1, int(timeout_s * 1000)))  # 0 would wait for ever
    in_order = not thread.isAlive()
    query.stop()
    return in_order


def cancel_jobs(query: StreamingQuery) -> None:
    """End what a query that has ended left running; nothing where its last micro-batch was committed."""
    query._jsq.sparkSession().sparkContext().cancelJobGroup(str(query.runId))


def count_running_tasks(spark: SparkSession) -> int:
    """Count the tasks that run now, of whatever query."""
    # What is counted there is told by events: a task that has just been started may still be among them.
    with suppress(Py4JJavaError):  # a busy machine's bus may not be empty for ten seconds
        spark.sparkContext._jsc.sc().listenerBus().waitUntilEmpty()
    executors = spark.sparkContext._jsc.sc().statusStore().executorList(True)
    return sum(executors.apply(i).activeTasks() for i in range(executors.size()))


def close_kafka_producers(spark: SparkSession) -> None:
    """Close the driver's Kafka producers: what they have not sent yet is sent now, or given up."""
    _load_class(spark, _PRODUCER_POOL).getField(_SINGLETON).get(None).reset()


def list_causes(query: StreamingQuery) -> Iterator[JavaError]:
    """Give the exception that a query ended with and its causes, outermost first; none where it did not fail."""
    error = query._jsq.exception()
    throwable = error.get() if error.isDefined() else None
    while throwable is not None:
        java_class = throwable.getClass()
        yield JavaError(java_class.getName(), java_class.getSimpleName(), throwable.getMessage() or "")
        throwable = throwable.getCause()
