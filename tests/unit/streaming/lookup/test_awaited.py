"""Waiting for outcomes, with a double of the consumer."""

from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError

from schemas.errors import BrokerError
from streaming.lookup.awaited import AwaitedOutcomes
from streaming.settings import KafkaSettings
from tests.imageoutcomes import broken, outgoing, score

KAFKA = KafkaSettings()


class Reader:
    """Stands in for a consumer: hands out these batches, then nothing."""

    def __init__(self, *batches: list[Any]) -> None:
        self._batches: Iterator[list[Any]] = iter(batches)

    def consume(self, num_messages: int, timeout: float) -> list[Any]:
        assert timeout < 1
        return next(self._batches, [])


class Failure:
    """A record that is an error."""

    def __init__(self, code: int) -> None:
        self._code = code

    def error(self) -> KafkaError:
        return KafkaError(self._code)

    def topic(self) -> str:
        return "xray.predictions"


def test_each_image_has_its_first_outcome_and_the_others_are_left() -> None:
    good, bad, other = outgoing(), broken(), outgoing()
    late = score(good, KAFKA, model="another")
    reader = Reader([score(other, KAFKA), score(good, KAFKA)], [late, Failure(KafkaError._PARTITION_EOF)])
    more = Reader([score(bad, KAFKA)])
    found = list(AwaitedOutcomes(reader).read({good.event_id}, 5.0))
    assert [one.image_key for one in found] == [good.event_id]
    [letter] = AwaitedOutcomes(more).read({bad.event_id}, 5.0)
    assert not letter.is_prediction
    assert letter.reason in {"truncated_image", "corrupt_image"}


def test_it_ends_where_nothing_comes() -> None:
    image = outgoing()
    assert list(AwaitedOutcomes(Reader([])).read({image.event_id}, 0.05)) == []


def test_nothing_to_wait_for_is_over_at_once() -> None:
    assert list(AwaitedOutcomes(Reader()).read([], 1000.0)) == []


def test_a_topic_that_cannot_be_read_is_told() -> None:
    reader = Reader([Failure(KafkaError.TOPIC_AUTHORIZATION_FAILED)])
    with pytest.raises(BrokerError, match=r"xray\.predictions"):
        list(AwaitedOutcomes(reader).read({"ab" * 16}, 5.0))
