"""Predictions and findings that there are already: of the topics, or of the archive's tables."""

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import pyarrow.compute as pc
from deltalake import DeltaTable

from schemas.deltatable import failing_as, open_table
from schemas.errors import TableError
from schemas.labels import LABELS_TABLE
from streaming.kafka.cluster import describe_cluster
from streaming.kafka.reader import find_offsets, open_reader, read_spans, scan_offsets
from streaming.reports.findings import Finding
from streaming.reports.records import read_finding_record, read_prediction_record
from streaming.reports.report import Correction, NotReportedError, Prediction, name_image, read_prediction
from streaming.settings import KafkaSettings

Corrections = dict[str, dict[str, Correction]]
"""The newest of each finding of an image, by each name that it had for the image, and by label: which labels the model
knows is not known yet."""
_COLUMNS = (
    "event_id source id sha256 model_name model_version model_sha256 label probabilities positive_label "
    "operating_point flags received_at scored_at"
).split()


def choose_correction(corrections: Corrections, prediction: Prediction) -> Correction | None:
    """Give the newest finding of a prediction's image; one that is none of the model's labels amends nothing."""
    named = [one for name in prediction.names for one in corrections.get(name, {}).values()]
    found = [one for one in named if one.label in prediction.labels]
    return max(found, key=lambda one: one.confirmed_at, default=None)


def read_topic_corrections(kafka: KafkaSettings) -> Corrections:
    """Read all findings of the labels topic; none where there is no such topic.

    Raises
    ------
    BrokerError
        It cannot be read.
    """
    if kafka.labels_topic not in describe_cluster(kafka).topics:
        return {}
    with open_reader(kafka) as reader:
        spans = read_spans(reader, kafka.labels_topic)
    found = (read_finding_record(message) for message in scan_offsets(kafka, kafka.labels_topic, spans))
    return keep_newest(one for one in found if one is not None)


def read_topic_predictions(kafka: KafkaSettings, since: datetime | None) -> Iterator[Prediction | NotReportedError]:
    """Read the predictions of the topic as it is now.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topic.
    since : datetime, optional
        Only those published from then on.

    Yields
    ------
    Prediction or NotReportedError
        The latter of a record that is none.

    Raises
    ------
    BrokerError
        It cannot be read.
    """
    topic = kafka.predictions_topic
    with open_reader(kafka) as reader:
        spans = read_spans(reader, topic)
        if since is not None:
            begins = find_offsets(reader, topic, spans, since)
            spans = {partition: range(begins[partition], span.stop) for partition, span in spans.items()}
    for message in scan_offsets(kafka, topic, spans):
        try:
            found: Prediction | NotReportedError = read_prediction_record(message)
        except NotReportedError as exc:
            found = exc
        yield found


def read_table_corrections(folder: str) -> Corrections:
    """Read the findings that `xray label` has recorded.

    Parameters
    ----------
    folder : str
        Path or URI of the tables.

    Raises
    ------
    TableError
        The table cannot be read.
    """
    table = open_table(f"{folder}/{LABELS_TABLE.name}")
    if table is None:
        return {}
    with failing_as(f"the table {table.table_uri} cannot be read"):
        rows = table.to_pyarrow_table(columns=["sha256", "label", "confirmed_at"]).to_pylist()
    return keep_newest(
        Finding(name_image("sha256", row["sha256"]), Correction(row["label"], row["confirmed_at"])) for row in rows
    )


def read_table_predictions(folder: str, since: datetime | None) -> Iterator[Prediction | NotReportedError]:
    """Read the predictions of the archive's table.

    Parameters
    ----------
    folder : str
        Path or URI of the tables.
    since : datetime, optional
        Only those of images that were received from then on.

    Yields
    ------
    Prediction or NotReportedError
        The latter of a row that is none.

    Raises
    ------
    TableError
        There is no table, or it cannot be read.
    """
    table = open_table(f"{folder}/predictions")
    if table is None:
        msg = f"{folder} has no table predictions; 'xray archive' fills it"
        raise TableError(msg)
    for row in _read_rows(table, since):
        try:
            value = json.dumps(_to_event(row)).encode()
            found: Prediction | NotReportedError = read_prediction(
                value, received_at=row["received_at"], scored_at=row["scored_at"] or row["received_at"]
            )
        except NotReportedError as exc:
            found = exc
        yield found


def _read_rows(table: DeltaTable, since: datetime | None) -> Iterator[dict[str, Any]]:
    wanted = None
    if since is not None:
        wanted = (pc.field("date") >= since.date()) & (pc.field("received_at") >= since)
    with failing_as(f"the table {table.table_uri} cannot be read"):
        for batch in table.to_pyarrow_dataset().to_batches(columns=_COLUMNS, filter=wanted):
            yield from batch.to_pylist()


def _to_event(row: dict[str, Any]) -> dict[str, Any]:
    """Give a row as the event that it was; what is null in it was absent."""
    image = {name: row[name] for name in ("source", "id", "sha256") if row[name] is not None}
    model = {name: row[f"model_{name}"] for name in ("name", "version", "sha256")}
    event = {name: row[name] for name in ("event_id", "label", "positive_label", "operating_point", "flags")}
    return event | {"image": image, "model": model, "probabilities": dict(row["probabilities"] or ())}


def keep_newest(findings: Iterable[Finding]) -> Corrections:
    """Keep of each image's findings the newest of each label."""
    newest: Corrections = {}
    for one in findings:
        by_label = newest.setdefault(one.name, {})
        known = by_label.get(one.correction.label)
        if known is None or one.correction.confirmed_at >= known.confirmed_at:
            by_label[one.correction.label] = one.correction
    return newest
