"""Reading outcomes, without a broker; with a real one: the integration tests."""

from collections.abc import Iterable
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError

from schemas.errors import BrokerError
from streaming.lookup.outcome import Outcome
from streaming.page.knows.feed import Feed
from streaming.settings import StreamSettings
from tests.imageoutcomes import outgoing, score


class Failure:
    """A fake: what the client gives instead of a record when a topic was deleted."""

    def error(self) -> KafkaError:
        return KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)

    def topic(self) -> str:
        return "xray.deadletters"

    def partition(self) -> int:
        return 0


def test_outcomes_before_a_failure_are_kept_for_they_are_not_read_again() -> None:
    settings = StreamSettings()
    feed = Feed(settings)
    with pytest.raises(BrokerError, match="outcomes cannot be read"):
        feed._take(cast(Any, [score(outgoing(), settings.kafka), Failure()]))
    assert len(feed.latest) == 1


def test_whoever_sees_an_outcome_sees_that_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = StreamSettings()
    feed = Feed(settings)
    seen: list[bool] = []
    add = feed.latest.add

    def look(outcomes: Iterable[Outcome]) -> None:
        seen.append(feed.state.is_reading)
        add(outcomes)

    monkeypatch.setattr(feed.latest, "add", look)
    feed._take(cast(Any, []))
    feed._take(cast(Any, [score(outgoing(), settings.kafka)]))
    assert seen == [False, True]
