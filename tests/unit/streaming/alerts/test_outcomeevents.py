"""Events as SCORE and the gateway write them, and records that are nobody's."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from schemas import envelope
from streaming.alerts.outcomeevents import Kind, read_dead_letter, read_line, read_prediction, read_receipt
from streaming.kafka.places import headers_by_name
from streaming.settings import KafkaSettings
from tests.alertrecords import prediction, receipt
from tests.imageoutcomes import Record, broken, outgoing, score

KAFKA = KafkaSettings()
NOW = datetime(2026, 1, 31, 14, 4, tzinfo=UTC)


def parts(record: Record, **changes: str | None) -> Any:
    headers = headers_by_name(record.headers())
    kept = {name: value for name, value in headers.items() if name not in changes}
    return record.value(), kept | {name: text.encode() for name, text in changes.items() if text is not None}, NOW


def test_a_prediction_of_score_is_read_whole() -> None:
    image = outgoing(source="/hospital/dx-1")
    said = {"label": "opacities", "probabilities": {"normal": 0.25, "opacities": 0.75}, "threshold": 0.75, "flags": []}
    event = read_prediction(*parts(score(image, KAFKA, **said)))
    assert event is not None
    assert (event.kind, event.label, event.score, event.threshold, event.is_positive) == (
        Kind.PREDICTION,
        "opacities",
        0.75,
        0.75,
        True,
    )
    assert event.image_key == image.event_id
    assert event.place == f"{KAFKA.images_topic}-0@12"
    assert event.received_at == datetime.fromtimestamp(1_769_868_239, UTC)
    assert abs((event.at - datetime.now(UTC)).total_seconds()) < 60
    assert not event.is_redriven


def test_a_dead_letter_of_score_is_about_the_same_image() -> None:
    image = broken(source="/hospital/dx-1")
    event = read_dead_letter(*parts(score(image, KAFKA)))
    assert event is not None
    assert (event.image_key, event.reason, event.source) == (image.event_id, "truncated_image", "/hospital/dx-1")
    assert event.at == NOW


@pytest.mark.parametrize("name", [envelope.REDRIVEN_FROM])
def test_a_redriven_image_is_told_by_both(name: str) -> None:
    for read, image in ((read_prediction, outgoing()), (read_dead_letter, broken())):
        event = read(*parts(score(image, KAFKA), **{name: "xray.images-0@3"}))
        assert event is not None
        assert event.is_redriven


@pytest.mark.parametrize(("label", "is_positive"), [("opacities", True), ("normal", False), ("unlike_training", False)])
def test_without_a_threshold_the_label_decides(label: str, *, is_positive: bool) -> None:
    event = read_prediction(*parts(score(outgoing(), KAFKA, label=label)))
    assert event is not None
    assert event.is_positive is is_positive


@pytest.mark.parametrize(
    "said",
    [
        {"event_id": "not hexadecimal"},
        {"event_id": "AB" * 16},
        {"event_id": "ab" * 15},
        {"event_id": "ab " * 16},
        {"event_id": "ab" * 15 + "\nab"},
        {"label": "\ud800"},
        {"flags": ["\udfff"]},
        {"image": {"source": "\ud800", "sha256": "a" * 64}},
        {"probabilities": {"normal": float("nan"), "opacities": float("nan")}},
        {"probabilities": {"normal": 0.5}},
        {"probabilities": [0.5, 0.5]},
        {"probabilities": {"normal": 0, "opacities": 1.5}},
        {"model": {}},
        {"image": None},
        {"threshold": "high"},
        {"flags": 3},
    ],
)
def test_a_value_that_is_no_prediction_is_nobodys(said: dict[str, Any]) -> None:
    assert read_prediction(*parts(score(outgoing(), KAFKA).with_value(**said))) is None


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"[]", b"3", b"{", b"[" * 100_000])
def test_a_value_that_is_no_json_object_is_nobodys(value: bytes | None) -> None:
    _, headers, now = parts(score(outgoing(), KAFKA))
    assert read_prediction(value, headers, now) is None
    assert read_receipt(value) is None


@pytest.mark.parametrize(
    "changes",
    [
        {envelope.REASON: None},
        {envelope.EVENT_ID: None},
        {envelope.EVENT_ID: "x"},
        {envelope.INPUT_OFFSET: "many"},
        {envelope.INPUT_TOPIC: None},
    ],
)
def test_a_record_without_scores_headers_is_no_dead_letter(changes: dict[str, str | None]) -> None:
    assert read_dead_letter(*parts(score(broken(), KAFKA), **changes)) is None


@pytest.mark.parametrize("text", ["yesterday", "2026-01-31", "2026-01-31T14:00:00", "99999-01-31T14:00:00Z", None])
def test_a_time_that_is_none_leaves_the_records_own(text: str | None) -> None:
    event = read_prediction(*parts(score(outgoing(), KAFKA), **{envelope.INPUT_TIMESTAMP: text}))
    assert event is not None
    assert event.received_at == NOW


def test_a_receipt_is_about_the_same_image_as_its_prediction() -> None:
    said = prediction(KAFKA, 7)
    accepted, predicted = read_receipt(receipt(KAFKA, 7).value), read_prediction(said.value, said.headers, NOW)
    assert accepted is not None
    assert predicted is not None
    assert accepted.kind is Kind.ACCEPTED
    assert accepted.image_key == accepted.event_id == predicted.image_key


def test_a_line_may_be_a_record_of_a_topic_or_what_watch_prints() -> None:
    said = prediction(KAFKA, 7, age_s=30)
    texts = {name: value.decode() for name, value in said.headers.items()}
    value = json.loads(said.value or b"")
    record = {"topic": said.topic, "timestamp": "2026-01-31T14:00:00Z", "headers": texts, "value": value}
    watched = value | {"latency_seconds": 30.0}
    for line in (record, watched):
        event = read_line(line, NOW)
        assert event is not None
        assert event.event_id == said.event_id
        assert round((event.at - event.received_at).total_seconds()) == 30
    one = receipt(KAFKA, 7)
    headers = {name: value.decode() for name, value in one.headers.items()}
    accepted = read_line({"topic": one.topic, "headers": headers, "value": json.loads(one.value or b"")}, NOW)
    assert accepted is not None
    assert accepted.kind is Kind.ACCEPTED


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"prediction": {}, "dead_letter": {}},
        {"prediction": {"patient": "x"}},
        {"prediction": {}, "when": 3},
        {"headers": {}, "topic": "t"},
        [],
        "prediction",
        None,
    ],
)
def test_any_other_line_is_none(line: Any) -> None:
    assert read_line(line, NOW) is None
