"""Spark's private names, with the Spark that is installed."""

import time

import pyspark
import pytest
from pyspark.sql import SparkSession

from schemas.errors import JobError
from streaming.run import sparkinternals
from streaming.run.sparkinternals import (
    check_internals,
    close_kafka_producers,
    count_running_tasks,
    end_after_batch,
    list_causes,
)

pytestmark = pytest.mark.spark


def test_every_name_is_there(spark: SparkSession) -> None:
    check_internals(spark)


@pytest.mark.parametrize(
    ("class_name", "member"),
    [
        ("org.apache.spark.NoSuchThing$", "MODULE$"),
        ("org.apache.spark.SparkContext", "MODULE$"),
        ("org.apache.spark.SparkContext", "noSuchMethod()"),
        ("org.apache.spark.status.AppStatusStore", "executorList(long)"),
    ],
)
def test_a_name_that_is_gone_is_told_with_the_version(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, class_name: str, member: str
) -> None:
    monkeypatch.setitem(sparkinternals._NEEDED, class_name, (member,))
    with pytest.raises(JobError) as caught:
        check_internals(spark)
    assert f"pyspark {pyspark.__version__} has no {class_name}.{member}" in str(caught.value)


def test_a_query_ends_in_order_and_leaves_nothing_behind(spark: SparkSession) -> None:
    query = spark.readStream.format("rate").load().writeStream.format("noop").start()
    assert end_after_batch(query, 60)
    assert not query.isActive
    assert end_after_batch(query, 60), "a second time there is nothing to do"
    assert list(list_causes(query)) == []
    assert count_running_tasks(spark) == 0
    close_kafka_producers(spark)


def test_a_batch_that_takes_too_long_is_not_called_an_end_in_order(spark: SparkSession) -> None:
    rows = spark.readStream.format("rate").option("rowsPerSecond", 10).load()
    query = rows.selectExpr("java_method('java.lang.Thread', 'sleep', 60000L)").writeStream.format("noop").start()
    deadline = time.monotonic() + 60
    while not count_running_tasks(spark):
        assert time.monotonic() < deadline, "no task began to sleep"
        time.sleep(0.05)
    assert not end_after_batch(query, 0.5)
    assert not query.isActive


def test_the_causes_of_a_failure_are_listed_from_the_outermost_on(spark: SparkSession) -> None:
    rows = spark.readStream.format("rate").option("rowsPerSecond", 100).load()
    query = rows.selectExpr("raise_error('by intent')").writeStream.format("noop").start()
    with pytest.raises(Exception, match="by intent"):
        query.awaitTermination(60)
    causes = list(list_causes(query))
    assert causes[0].class_name == "org.apache.spark.sql.streaming.StreamingQueryException"
    assert causes[0].short_name == "StreamingQueryException"
    assert "by intent" in causes[-1].message
