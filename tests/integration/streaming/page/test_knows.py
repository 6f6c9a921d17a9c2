"""What the page knows, with a real broker: outcomes as they come, findings that are published once, parts that hang."""

import time
from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from streaming.kafka.topics import create_topics, label_topics, receipt_topics
from streaming.page.knows.feed import Feed
from streaming.page.knows.latest import Filter
from streaming.page.knows.outcome import Kind
from streaming.settings import StreamSettings
from tests.alertrecords import dead_letter, prediction, publish, receipt

pytestmark = [pytest.mark.kafka]

_WITHIN_S = 20.0


def wait_for(holds: Callable[[], bool], within_s: float = _WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def own(settings: StreamSettings) -> StreamSettings:
    """Settings with topics of labels and receipts of this test's own."""
    prefix = settings.kafka.images_topic.partition(".")[0]
    names = ("labels", "labels_deadletters", "receipts")
    kafka = settings.kafka.model_copy(update={f"{name}_topic": f"{prefix}.{name}" for name in names})
    create_topics(kafka, label_topics(kafka) | receipt_topics(kafka))
    return settings.model_copy(update={"kafka": kafka})


def test_outcomes_appear_in_order_and_images_without_one_are_named(own: StreamSettings) -> None:
    kafka = own.kafka
    send_images(own, 6)
    publish(kafka, prediction(kafka, 0), prediction(kafka, 1), dead_letter(kafka, 2), receipt(kafka, 4))
    with Feed(own) as feed:
        wait_for(lambda: feed.state.is_filled)
        before = feed.latest.since(0)
        assert (len(before.outcomes), before.skipped) == (3, 0)
        assert [one.published_at for one in before.outcomes] == sorted(one.published_at for one in before.outcomes)
        late = prediction(kafka, 3, flags=["uncertain"])
        publish(kafka, late, prediction(kafka, 1))  # the second one is a repetition
        wait_for(lambda: feed.latest.last > before.last)
        [came] = feed.latest.since(before.last).outcomes
        assert (came.event_id, came.shown_label) == (late.event_id, "undecided")
        assert [one.place.offset for one in feed.latest.search(Filter(kind=Kind.DEAD_LETTER))] == [2]
        wait_for(lambda: feed.find_unanswered().waiting == 2)
        missing = feed.find_unanswered()
        assert {one.place.offset: one.image_id for one in missing.newest} == {4: "1.2.4", 5: None}
        assert feed.state.is_reading
        assert feed.state.known_from == 0


def send_images(settings: StreamSettings, count: int) -> None:
    """Bytes in partition 0 of the images topic, as many as there are offsets."""
    producer = Producer(settings.kafka.to_librdkafka())
    for _ in range(count):
        producer.produce(settings.kafka.images_topic, b"an image", partition=0)
    assert producer.flush(20) == 0
