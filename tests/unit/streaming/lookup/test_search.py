"""A whole search: real tables and ledgers, and a double of the topics."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from schemas import envelope
from streaming.account.archived import DEAD_LETTERS, PREDICTIONS
from streaming.gateway.receipts.receipt import Receipt
from streaming.gateway.receipts.receiptstore import STORE_FILE, ReceiptStore
from streaming.lookup.history import History, Reach
from streaming.lookup.outcome import NO_PLACE, Kind, no_band, read_prediction
from streaming.lookup.query import read_query
from streaming.lookup.search import find_image
from streaming.settings import StreamSettings, load_settings
from tests.imageoutcomes import Record, broken, outgoing, score
from tests.unit.streaming.lookup.stores import DAY, Topics, archive, at, redriven

FIRST_PLACE = "xray.images-0@4"


@pytest.fixture
def settings(tmp_path: Path) -> StreamSettings:
    return load_settings({}, home=tmp_path)


@pytest.fixture
def topics(settings: StreamSettings, monkeypatch: pytest.MonkeyPatch) -> Topics:
    made = Topics(settings.kafka)
    made.install(monkeypatch)
    return made


def reaches(history: History) -> dict[str, Reach]:
    return {one.where: one.reach for one in history.looked}


def event_id_of(record: Record) -> str:
    said = read_prediction(record, no_band)
    assert said is not None
    return said.event_id


def test_what_nobody_knows_is_not_found_and_it_is_told_where_it_was_looked(
    settings: StreamSettings, topics: Topics
) -> None:
    history = find_image(settings, read_query("1.2.3"))
    assert not history.is_found
    assert history.is_whole
    where = " ".join(reaches(history))
    for name in ("table predictions", "xray.predictions", "xray.receipts", "xray.labels", "receipts.db", "alarms.db"):
        assert name in where
    assert reaches(history)["topic xray.images"] is Reach.LEFT_OUT
    json.dumps(history.to_dict())


def test_an_outcome_that_table_and_topic_have_is_one(settings: StreamSettings, topics: Topics) -> None:
    record = score(outgoing(name="1.2"), settings.kafka)
    archive(Path(settings.tables_folder), PREDICTIONS, record)
    topics.put(record)  # the archive's commit is seen, its place is not
    [outcome] = find_image(settings, read_query("1.2")).outcomes
    assert outcome.event_id == event_id_of(record)
    assert outcome.record != NO_PLACE


def test_what_a_table_does_not_say_of_a_dead_letter_is_taken_from_its_topic(
    settings: StreamSettings, topics: Topics
) -> None:
    letter = score(redriven(broken(name="1.2"), FIRST_PLACE), settings.kafka, place="0@9")
    archive(Path(settings.tables_folder), DEAD_LETTERS, letter)
    assert [one.redriven_from for one in find_image(settings, read_query("1.2")).outcomes] == [None]
    topics.put(letter)
    assert [one.redriven_from for one in find_image(settings, read_query("1.2")).outcomes] == [FIRST_PLACE]


def test_what_the_tables_have_is_not_read_from_the_topic(settings: StreamSettings, topics: Topics) -> None:
    old, new = (score(outgoing(name=name), settings.kafka) for name in ("old", "new"))
    archive(Path(settings.tables_folder), PREDICTIONS, old)
    topics.put(old, new)
    topics.archived[settings.kafka.predictions_topic] = 1
    [outcome] = find_image(settings, read_query("new")).outcomes
    assert outcome.record.offset == 1
    assert (settings.kafka.predictions_topic, 1) in topics.scanned
    assert (settings.kafka.predictions_topic, 0) not in topics.scanned


def test_the_dead_letter_in_a_table_is_found_by_the_prediction_in_the_topic(
    settings: StreamSettings, topics: Topics
) -> None:
    """It was sent again a year later: neither place has both, and the question names the later one."""
    image = outgoing(name="1.2")
    letter = score(broken(), settings.kafka, place="0@4")
    headers = {envelope.CE_ID: b"1.2", envelope.CE_SOURCE: b"/dx-1"}
    letter = at(letter, DAY - timedelta(days=360)).with_headers(**headers).changed(value=image.value)
    prediction = score(redriven(image, FIRST_PLACE), settings.kafka, place="0@900")
    archive(Path(settings.tables_folder), DEAD_LETTERS, letter)
    topics.put(prediction)
    history = find_image(settings, read_query(event_id_of(prediction)))
    assert [one.kind for one in history.outcomes] == [Kind.DEAD_LETTER, Kind.PREDICTION]
    assert [one.redriven_from for one in history.outcomes] == [None, FIRST_PLACE]
    [(key, outcomes)] = history.by_image()
    assert (key, len(outcomes)) == (image.event_id, 2)
    assert [row.table for row in history.rows] == ["dead_letters"]


def test_the_dead_letter_before_the_prediction_in_the_topics_is_found_by_either(
    settings: StreamSettings, topics: Topics
) -> None:
    image = outgoing(name="1.2")
    letter = score(broken(name="1.2"), settings.kafka, place="0@4").changed(value=image.value)
    prediction = score(redriven(image, FIRST_PLACE), settings.kafka, place="0@9")
    topics.put(letter, prediction)
    [letter_id] = [value.decode() for name, value in letter.headers() if name == envelope.EVENT_ID and value]
    for asked in (letter_id, event_id_of(prediction)):
        found = find_image(settings, read_query(asked)).outcomes
        assert {one.kind for one in found} == {Kind.PREDICTION, Kind.DEAD_LETTER}


def test_without_a_broker_the_tables_answer_and_the_topics_are_named(settings: StreamSettings, topics: Topics) -> None:
    topics.away = True
    archive(Path(settings.tables_folder), PREDICTIONS, score(outgoing(name="1.2"), settings.kafka))
    history = find_image(settings, read_query("1.2"))
    assert history.is_found
    assert not history.is_whole
    assert reaches(history)["all topics"] is Reach.FAILED


def test_one_topic_that_is_missing_leaves_the_others(settings: StreamSettings, topics: Topics) -> None:
    kafka = settings.kafka
    topics.missing = {kafka.receipts_topic, kafka.labels_topic}
    topics.put(score(outgoing(name="1.2"), kafka))
    history = find_image(settings, read_query("1.2"))
    assert len(history.outcomes) == 1
    assert history.is_whole  # what is not there has nothing
    topics.missing = {kafka.deadletters_topic}
    history = find_image(settings, read_query("1.2"))
    assert reaches(history)[f"topics {kafka.predictions_topic} and {kafka.deadletters_topic}"] is Reach.FAILED


def test_a_gap_between_table_and_topic_makes_a_search_less_than_whole(settings: StreamSettings, topics: Topics) -> None:
    topics.put(*(score(outgoing(), settings.kafka) for _ in range(3)))
    topics.starts[settings.kafka.predictions_topic] = 2
    history = find_image(settings, read_query("1.2"))
    assert not history.is_whole
    assert any("retention has removed 0@0 to 0@1" in one.limits for one in history.looked)


def test_a_receipt_names_the_image_of_an_event_id(settings: StreamSettings, topics: Topics) -> None:
    image = outgoing(name="1.2")
    now = datetime(2026, 1, 31, tzinfo=UTC)
    store = ReceiptStore(settings.gateway_folder / STORE_FILE)
    store.absorb([Receipt.of_accepted(image, FIRST_PLACE, now)], {}, generation=store.read_generation())
    try:
        topics.put(score(image, settings.kafka))
        history = find_image(settings, read_query(image.event_id))
    finally:
        store.close()
    assert [one.event_id for one in history.receipts] == [image.event_id]
    assert len(history.outcomes) == 1
    assert f"topic {settings.kafka.receipts_topic}" not in reaches(history)  # the gateway has read it


@pytest.mark.parametrize("asked", ["event_id", "image_id", "sha256", "outcome_event_id"])
def test_an_image_without_an_outcome_has_its_receipt_from_the_topic(
    settings: StreamSettings, topics: Topics, asked: str
) -> None:
    image = outgoing(name="1.2")
    receipt = Receipt.of_accepted(image, None, datetime(2026, 1, 31, tzinfo=UTC))
    topics.put(_receipt_record(settings, receipt, outcome_event_id="cd" * 16))
    value = "cd" * 16 if asked == "outcome_event_id" else getattr(receipt, asked)
    history = find_image(settings, read_query(value))
    assert history.is_found
    assert [one.image_id for one in history.receipts] == ["1.2"]
    assert history.outcomes == []


def _receipt_record(settings: StreamSettings, receipt: Receipt, **more: str) -> Record:
    value = json.dumps(receipt.to_dict() | more).encode()
    return Record(settings.kafka.receipts_topic, receipt.event_id.encode(), value, receipt.to_headers())


def test_findings_of_the_labels_topic_are_found_by_every_name(settings: StreamSettings, topics: Topics) -> None:
    image = outgoing(name="1.2")
    prediction = score(image, settings.kafka)
    outcome = read_prediction(prediction, no_band)
    assert outcome is not None
    topics.put(prediction)
    names: list[dict[str, Any]] = [
        {"event_id": outcome.event_id},
        {"sha256": outcome.sha256},
        {"source": "/dx-1", "id": "1.2"},
        {"event_id": "ab" * 16},
    ]
    for i, name in enumerate(names):
        value = json.dumps({"label": f"finding {i}", "confirmed_at": f"2026-01-30T0{i}:00:00Z", **name}).encode()
        topics.put(Record(settings.kafka.labels_topic, None, value, []))
    history = find_image(settings, read_query("1.2"))
    assert [one.label for one in history.confirmed] == ["finding 0", "finding 1", "finding 2"]


def test_the_images_topic_is_read_where_it_is_asked_for(settings: StreamSettings, topics: Topics) -> None:
    image = outgoing(name="1.2")
    again = redriven(image, FIRST_PLACE)
    for one in (outgoing(), image, again):
        topics.put(Record(settings.kafka.images_topic, one.key, one.value, list(one.headers)))
    for asked in ("1.2", image.event_id):
        history = find_image(settings, read_query(asked), with_images=True)
        assert [(one.place, one.redriven_from) for one in history.images] == [
            ("xray.images-0@1", None),
            ("xray.images-0@2", FIRST_PLACE),
        ]
    assert not find_image(settings, read_query("1.2")).is_found


def test_a_time_bounds_tables_and_topics(settings: StreamSettings, topics: Topics) -> None:
    archive(
        Path(settings.tables_folder),
        PREDICTIONS,
        *(at(score(outgoing(name="1"), settings.kafka, place=f"0@{i}"), DAY + timedelta(days=i)) for i in range(3)),
    )
    early = score(outgoing(name="1"), settings.kafka, place="0@77").changed(ms=1_000_000_000_000)
    topics.put(early)
    history = find_image(settings, read_query("1"), since=DAY + timedelta(days=1), until=DAY + timedelta(days=1))
    assert [one.place.offset for one in history.outcomes] == [1]
    assert not history.is_whole
