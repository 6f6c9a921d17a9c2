"""A stream for the length of a test, and what goes into it and comes out."""

import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource
from prometheus_client.parser import text_string_to_metric_families
from pyspark.sql import SparkSession

from schemas.deltatable import open_table
from streaming.devices.publish import ImagePublisher
from streaming.kafka.cluster import connect_admin
from streaming.run.service import StreamState, run_stream
from streaming.settings import StreamSettings
from tests.conftest import Trained
from tests.integration.consumers import Record, read_topic

Headers = list[tuple[str, bytes]]


def publish(settings: StreamSettings, messages: dict[str, tuple[bytes | None, Headers]]) -> None:
    """Publish named messages and fail where one is not confirmed."""
    failed: dict[str, str] = {}
    publisher = ImagePublisher(settings.kafka, lambda token, error: failed.update({token: error} if error else {}))
    for name, (payload, headers) in messages.items():
        publisher.publish(payload, headers, key=name.encode(), token=name)
    publisher.flush()
    assert failed == {}


def drain(spark: SparkSession, settings: StreamSettings, trained: Trained, **options: bool) -> None:
    """Score and archive what is there."""
    run_stream(settings, model_folder=trained.folder, spark=spark, available_now=True, **options)


def score(spark: SparkSession, settings: StreamSettings, trained: Trained, **options: bool) -> None:
    """Score what is there; the tables are not what is tested."""
    drain(spark, settings, trained, archive=False, **options)


def environment(settings: StreamSettings) -> dict[str, str]:
    """Settings of a test as a command's environment variables."""
    kafka = {f"XRAY_KAFKA__{name.upper()}": value for name, value in settings.kafka if name.endswith("_topic")}
    own = {"XRAY_HOME": str(settings.home), "XRAY_JARS": str(settings.jars_folder)}
    own |= {"XRAY_METRICS__PORT": "0", "XRAY_ARCHIVE__METRICS_PORT": "0"}
    return {
        **os.environ,
        **own,
        **kafka,
        "XRAY_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "XRAY_SPARK__MASTER": settings.spark.master,
    }


def change(settings: StreamSettings, topic: str, name: str, value: str) -> None:
    """Set a topic's property, as somebody who made it by hand would have."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    admin = connect_admin(settings.kafka)
    for future in admin.incremental_alter_configs([resource]).values():
        future.result()
    deadline = time.monotonic() + 20
    while True:  # the broker heeds it once its metadata log has it
        [answer] = admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, topic)]).values()
        if answer.result()[name].value == value:
            return
        assert time.monotonic() < deadline


def outcomes(settings: StreamSettings) -> tuple[list[Record], list[Record]]:
    """Predictions and dead letters, as kafka-python reads them."""
    kafka = settings.kafka
    return read_topic(kafka, kafka.predictions_topic), read_topic(kafka, kafka.deadletters_topic)


@dataclass(frozen=True)
class StreamThread:
    """A stream that was started and has become ready, or has failed."""

    thread: threading.Thread
    states: list[StreamState]
    errors: list[BaseException]


@contextmanager
def running(
    spark: SparkSession, settings: StreamSettings, trained: Trained | None, *, archive: bool = True
) -> Iterator[StreamState]:
    """Run the stream while the body runs, with a model or the promoted one; end it in order, raise what it raised."""
    with starting(spark, settings, trained, archive=archive) as stream:
        yield stream.states[0]
    assert not stream.errors, stream.errors


@contextmanager
def starting(
    spark: SparkSession, settings: StreamSettings, trained: Trained | None, *, archive: bool = True
) -> Iterator[StreamThread]:
    """Run the stream while the body runs, or until it ends by itself; its errors are the body's to look at."""
    ended, ready = threading.Event(), threading.Event()
    states: list[StreamState] = []
    errors: list[BaseException] = []

    def on_ready(state: StreamState) -> None:
        states.append(state)
        ready.set()

    def run() -> None:
        try:
            folder = trained.folder if trained else None
            run_stream(settings, model_folder=folder, spark=spark, archive=archive, ended=ended, on_ready=on_ready)
        except BaseException as exc:
            errors.append(exc)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(120)
        assert not errors, errors
        yield StreamThread(thread, states, errors)
    finally:
        ended.set()
        thread.join(120)
    assert not thread.is_alive()


def find_archives() -> list[int]:
    """Processes of archives that streams of this process have started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == os.getpid() and b"streaming.archive" in words:
                found.append(int(entry.name))
    return found


def wait_for_count(url: str, consumed: int) -> str:
    """Read the page until it has counted so many images; a batch is counted when it is committed."""
    return wait_for_sample(url, "xray_images_consumed_total", lambda value: value >= consumed)


def wait_for_sample(url: str, name: str, wanted: Callable[[float], bool]) -> str:
    """Read the page until a sample is as wanted."""
    page = ""
    for _ in range(600):
        page = urllib.request.urlopen(url).read().decode()  # noqa: S310
        if wanted(read_samples(page)[name]):
            return page
        threading.Event().wait(0.1)
    pytest.fail(f"{name} was never as wanted:\n{page}")


def wait_for_rows(settings: StreamSettings, **wanted: int) -> None:
    """Wait until the named tables have so many rows or more; one that is not there yet has none."""
    found: dict[str, int] = {}
    for _ in range(600):
        tables = {name: open_table(f"{settings.tables_folder}/{name}") for name in wanted}
        found = {name: 0 if table is None else table.count() for name, table in tables.items()}
        if all(found[name] >= count for name, count in wanted.items()):
            return
        threading.Event().wait(0.1)
    pytest.fail(f"the tables have {found}, wanted {wanted}")


def read_samples(page: str) -> dict[str, float]:
    """Samples by name and sorted labels."""
    samples = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = "".join(f"|{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[sample.name + labels] = sample.value
    return samples
