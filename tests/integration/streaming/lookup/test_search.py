"""What became of images, with a real broker, the archive's own tables and a gateway's receipts."""

import hashlib
import json
from datetime import UTC, datetime

import pytest
from confluent_kafka import Producer

from schemas import envelope
from streaming.archive.service import run_archive
from streaming.devices.publish import name_image, publish_files
from streaming.gateway.offer import Outgoing
from streaming.gateway.receipts.receipt import Receipt
from streaming.kafka.topics import create_topics, label_topics, receipt_topics
from streaming.lookup.awaited import open_awaited
from streaming.lookup.history import History, Reach
from streaming.lookup.outcome import NO_PLACE, Kind
from streaming.lookup.query import read_query
from streaming.lookup.search import find_image
from streaming.settings import StreamSettings
from tests.imageoutcomes import Record, broken, outgoing, score
from tests.testimages import png
from tests.unit.streaming.lookup.stores import redriven

pytestmark = [pytest.mark.kafka, pytest.mark.delta]


@pytest.fixture
def own(settings: StreamSettings) -> StreamSettings:
    """Settings with topics of labels and receipts of this test's own."""
    prefix = settings.kafka.images_topic.partition(".")[0]
    names = ("labels", "labels_deadletters", "receipts")
    kafka = settings.kafka.model_copy(update={f"{name}_topic": f"{prefix}.{name}" for name in names})
    create_topics(kafka, label_topics(kafka) | receipt_topics(kafka))
    return settings.model_copy(update={"kafka": kafka})


def send(settings: StreamSettings, *records: Record) -> None:
    producer = Producer(settings.kafka.to_librdkafka() | {"linger.ms": 0})
    for one in records:
        headers = [(name, value or b"") for name, value in one.headers()]
        producer.produce(one.topic(), one.value(), key=one.key(), headers=headers)
    assert producer.flush(60) == 0


def dead_letter_of(image: Outgoing, settings: StreamSettings) -> Record:
    """The dead letter of an image that a later release can read."""
    return score(broken(name=image.header(envelope.CE_ID)), settings.kafka).changed(value=image.value)


def told(history: History, where: str) -> tuple[int, Reach, str]:
    [found] = [(one.found, one.reach, one.limits) for one in history.looked if one.where == where]
    return found


def test_an_image_that_failed_a_while_ago_and_was_sent_again_is_one_story(own: StreamSettings) -> None:
    kafka = own.kafka
    image, other = outgoing(name="1.2"), outgoing(name="other")
    send(own, dead_letter_of(image, own), score(other, kafka))
    run_archive(own, available_now=True)
    send(own, score(redriven(image, f"{kafka.images_topic}-0@12"), kafka, place="0@77"))
    value = json.dumps({"label": "normal", "source": "/dx-1", "id": "1.2"}).encode()
    send(own, Record(kafka.labels_topic, None, value, []))
    for asked in ("1.2", image.event_id):
        history = find_image(own, read_query(asked))
        letter, prediction = history.outcomes
        assert (letter.kind, prediction.kind) == (Kind.DEAD_LETTER, Kind.PREDICTION)
        assert prediction.redriven_from == f"{kafka.images_topic}-0@12"
        assert prediction.record != NO_PLACE
        assert [one.label for one in history.confirmed] == ["normal"]
        assert history.is_whole
        # Of two predictions the table has the other one: it was not read again.
        found, reach, limits = told(history, f"topic {kafka.predictions_topic}")
        assert (found, reach) == (1, Reach.ALL)
        assert "the last 1 of its 2 records" in limits
        found, _, limits = told(history, f"topic {kafka.deadletters_topic}")
        assert (found, "the last 0 of its 1 records" in limits) == (0, True)


def test_an_image_that_only_the_gateway_knows_is_found_by_its_receipt(own: StreamSettings) -> None:
    receipt = Receipt.of_accepted(outgoing(name="1.2"), None, datetime.now(UTC))
    send(own, Record(own.kafka.receipts_topic, b"key", receipt.to_json(), receipt.to_headers()))
    for asked in ("1.2", receipt.event_id, receipt.sha256):
        history = find_image(own, read_query(asked))
        assert history.receipts == [receipt]
        assert history.outcomes == []
    assert not find_image(own, read_query("1.3")).is_found


def test_what_waits_in_the_images_topic_is_found_where_it_is_read(own: StreamSettings) -> None:
    image = outgoing(name="1.2")
    send(own, Record(own.kafka.images_topic, image.key, image.value, list(image.headers)))
    assert not find_image(own, read_query("1.2")).is_found
    [found] = find_image(own, read_query("1.2"), with_images=True).images
    assert found.place.startswith(f"{own.kafka.images_topic}-")
    assert find_image(own, read_query(image.event_id), with_images=True).images == [found]


def test_whoever_publishes_and_waits_misses_no_outcome(own: StreamSettings) -> None:
    file = own.home / "scan.png"
    file.write_bytes(png())
    send(own, score(outgoing(), own.kafka))  # what was there before is nobody's answer
    with open_awaited(own.kafka) as awaited:
        report = publish_files([file], own.kafka, source="/ward")
        [event_id] = report.event_ids.values()
        assert len(find_image(own, read_query(event_id), with_images=True).images) == 1
        name = name_image(file, hashlib.sha256(png()).hexdigest(), hide_names=False)
        send(own, score(outgoing(), own.kafka), score(outgoing(png(), source="/ward", name=name), own.kafka))
        [outcome] = awaited.read([event_id], 20.0)
    assert (outcome.image_key, outcome.kind) == (event_id, Kind.PREDICTION)
