"""What teams wrote for former releases reads this one's events and tables: their programs, and their schemas."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from schemas.deltatable import arrow_schema
from schemas.documents import Table
from schemas.errors import Reason
from schemas.goldenevents import EVENT_NAMES, GoldenEvent, load_event
from streaming.kafka.producer import RecordProducer
from streaming.settings import StreamSettings
from tests.conftest import Trained
from tests.integration.consumers import read_topic
from tests.integration.streams import Headers, drain, outcomes, publish
from tests.paths import FIXTURES
from tests.testimages import MAX_PAYLOAD_BYTES, good_files, wrong_files

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.delta]

_RELEASES = ("first", "spark")
_TIMEOUT_S = 60.0


def folder_of(release: str) -> Path:
    return FIXTURES / f"consumers-{release}-release"


def former_schema(release: str, name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((folder_of(release) / "schemas" / f"{name}.schema.json").read_text())
    return schema


def former_reasons(release: str) -> set[str]:
    return set(former_schema(release, "dead_letter_headers")["properties"]["xray_reason"]["enum"])


def stream(spark: SparkSession, settings: StreamSettings, trained: Trained) -> StreamSettings:
    """Score and archive a file of each kind, good and wrong."""
    limits = settings.score.model_copy(update={"max_payload_bytes": MAX_PAYLOAD_BYTES})
    settings = settings.model_copy(update={"score": limits})
    own: Headers = [("ce_source", b"/t"), ("traceparent", b"00-abc-def-01")]
    messages: dict[str, tuple[bytes | None, Headers]] = {}
    for name, payload in good_files().items():
        messages[name] = (payload, [*own, ("ce_id", name.encode())])
    for name, file in wrong_files().items():
        declared = [("content-type", file.content_type.encode())] if file.content_type else []
        messages[f"wrong-{name}"] = (file.payload, declared)
    publish(settings, messages)
    drain(spark, settings, trained)
    return settings


def publish_golden(settings: StreamSettings) -> list[GoldenEvent]:
    """Put predictions that this model does not make on the topic: flagged ones, and of an old rendering."""
    events = [load_event(name) for name in EVENT_NAMES if name.startswith("prediction")]
    producer = RecordProducer(settings.kafka, settings.kafka.predictions_topic)
    failed: list[str | None] = []
    for event in events:
        producer.send(event.value, key=event.key, headers=event.headers, on_delivery=lambda d: failed.append(d.error))
    producer.flush()
    assert failed == [None] * len(events)
    return events


def run_consumer(release: str, settings: StreamSettings, count: int) -> list[str]:
    """Run the release's consumer, but for the addresses as its page had it, until it has printed so many lines."""
    program = (folder_of(release) / "consumer.py").read_text()
    for theirs, ours in (
        ("127.0.0.1:19092", settings.kafka.bootstrap_servers),
        ("xray.predictions", settings.kafka.predictions_topic),
        ("ward-3-alerts", f"ward-3-alerts-{release}-{settings.home.name}"),
    ):
        assert program.count(theirs) == 1
        program = program.replace(theirs, ours)
    process = subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(_TIMEOUT_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        lines = [line.rstrip("\n") for line in (process.stdout.readline() for _ in range(count)) if line]
    finally:
        timer.cancel()
        process.kill()
        process.wait()
    return lines


def expected_line(event: dict[str, Any]) -> str | None:
    """What the former pages' consumer says of an event; None where it says nothing."""
    image = event["image"].get("id")
    if event.get("flags"):
        return f"UNDECIDED {image} {event['flags']}"
    if event["label"] == event["positive_label"]:
        return f"ALERT {image} {event['probabilities'][event['positive_label']]}"
    return None


def test_former_consumers_read_events_and_tables(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    settings = stream(spark, settings, trained)
    check_schemas(settings)
    check_tables(settings)
    publish_golden(settings)
    check_programs(settings)


def check_schemas(settings: StreamSettings) -> None:
    predictions, dead_letters = outcomes(settings)
    features = read_topic(settings.kafka, settings.kafka.features_topic)
    assert len(predictions) == len(features) == len(good_files())
    assert {letter.text("xray_reason") for letter in dead_letters} >= {file.reason for file in wrong_files().values()}
    for release in _RELEASES:
        for records, name in ((predictions, "prediction"), (features, "features")):
            for record in records:
                jsonschema.validate(json.loads(record.value or b""), former_schema(release, name))
                headers = {header: value.decode() for header, value in record.headers}
                jsonschema.validate(headers, former_schema(release, "outcome_headers"))
        for letter in dead_letters:
            headers = {header: value.decode() for header, value in letter.headers}
            check_dead_letter(release, headers)


def check_dead_letter(release: str, headers: dict[str, str]) -> None:
    """By the former schema; but a reason that came later is not one of its words, as its page had said."""
    if headers["xray_reason"] not in former_reasons(release):
        headers = headers | {"xray_reason": "unexpected"}
    jsonschema.validate(headers, former_schema(release, "dead_letter_headers"))


def check_tables(settings: StreamSettings) -> None:
    for release in _RELEASES:
        tables = json.loads((folder_of(release) / "schemas" / "tables.json").read_text())
        for name, former in tables.items():
            columns = {column["name"]: column["type"] for column in former["columns"]}
            wanted = arrow_schema(Table(name, columns, dict.fromkeys(columns, ""), tuple(former["partition_by"]), ""))
            opened = DeltaTable(f"{settings.tables_folder}/{name}")
            read = opened.to_pyarrow_dataset().to_table(columns=list(columns))
            assert read.num_rows > 0
            assert opened.metadata().partition_columns == former["partition_by"]
            for field in wanted:
                assert read.schema.field(field.name).type == field.type, f"{name}.{field.name}"


def check_programs(settings: StreamSettings) -> None:
    predictions, _ = outcomes(settings)
    events = [json.loads(record.value or b"") for record in predictions]
    lines = sorted(line for line in map(expected_line, events) if line)
    assert {line.split()[0] for line in lines} == {"ALERT", "UNDECIDED"}
    for release in _RELEASES:
        assert sorted(run_consumer(release, settings, len(lines))) == lines
        program = [sys.executable, str(folder_of(release) / "tables.py")]
        environ = {**os.environ, "COLUMNS": "200"}
        done = subprocess.run(
            program, cwd=settings.home, env=environ, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stderr
        counts = [int(row.split("│")[3]) for row in done.stdout.splitlines() if row.startswith("│ 20")]
        assert sum(counts) == len(good_files())


@pytest.mark.parametrize("release", _RELEASES)
@pytest.mark.parametrize("name", [name for name in EVENT_NAMES if not name.startswith(("receipt", "label_dead"))])
def test_golden_events_keep_the_former_schemas(release: str, name: str) -> None:
    """Kinds that there were; a golden event has what is new, and a former reader must not stumble over it."""
    event = load_event(name)
    headers = {header: value.decode() for header, value in event.headers}
    if name.startswith("dead_letter"):
        check_dead_letter(release, headers)
    elif name != "label":
        jsonschema.validate(headers, former_schema(release, event.headers_schema))
    if event.value_schema is not None:
        assert event.value is not None
        jsonschema.validate(json.loads(event.value), former_schema(release, event.value_schema))


@pytest.mark.parametrize("release", _RELEASES)
def test_no_reason_went_away(release: str) -> None:
    assert former_reasons(release) <= {reason.value for reason in Reason}
