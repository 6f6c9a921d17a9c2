"""What an outcome topic says, read from messages that no broker has seen."""

from collections.abc import Iterator, Mapping

import pytest
from confluent_kafka import Message

from schemas import envelope
from streaming.account import outcomes
from streaming.account.outcomes import Outcomes, read_outcomes
from streaming.kafka.places import Headers
from streaming.kafka.topicids import TopicIds
from streaming.settings import KafkaSettings

_IMAGES = {0: range(10, 14), 1: range(2)}
_IDS = TopicIds("c", {"xray.images": "its-id"})


def outcome(place: tuple[int, int], event_id: str, *more: tuple[str, bytes], topic: str = "xray.images") -> Headers:
    return [
        (envelope.INPUT_TOPIC, topic.encode()),
        (envelope.INPUT_PARTITION, b"%d" % place[0]),
        (envelope.INPUT_OFFSET, b"%d" % place[1]),
        (envelope.INPUT_TOPIC_ID, b"its-id"),
        (envelope.EVENT_ID, event_id.encode()),
        *more,
    ]


def read(monkeypatch: pytest.MonkeyPatch, records: list[Headers | None], *, whole: bool = False) -> Outcomes:
    def scan(kafka: KafkaSettings, topic: str, spans: Mapping[int, range]) -> Iterator[Message]:
        yield from (Message(topic, 0, i, None, b"", headers) for i, headers in enumerate(records))

    monkeypatch.setattr(outcomes, "scan_offsets", scan)
    monkeypatch.setattr(outcomes, "_spans_since", lambda *_: {0: range(len(records))})
    return read_outcomes(KafkaSettings(), "t", _IDS, _IMAGES, archived={0: 2}, whole=whole)


def test_outcomes_are_counted_at_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = "a" * 32, "b" * 32
    found = read(
        monkeypatch,
        [
            outcome((0, 10), a),
            outcome((0, 10), a),
            outcome((0, 10), b, (envelope.REASON, b"corrupt_image")),
            outcome((1, 1), a),
        ],
    )
    assert {p: list(counts) for p, counts in found.counts.items()} == {0: [3, 0, 0, 0], 1: [0, 1]}
    assert {p: list(counts) for p, counts in found.other_ids.items()} == {0: [1, 0, 0, 0], 1: [0, 0]}
    assert found.first_ids[0][0] == int("a" * 16, 16)
    assert (found.archived_ids, found.pending_ids) == ({a.encode()}, {b.encode(), a.encode()})
    assert (found.reasons, found.read) == ({b"corrupt_image": 1}, 4)


@pytest.mark.parametrize(("whole", "n_events"), [(False, 0), (True, 4)])
def test_what_is_about_other_images_counts_only_for_the_tables(
    monkeypatch: pytest.MonkeyPatch, whole: bool, n_events: int
) -> None:
    elsewhere = [
        outcome((0, 9), "1" * 32),  # before the range
        outcome((7, 0), "2" * 32),  # no partition of the range
        outcome((0, 10), "3" * 32, topic="another"),
        [*outcome((0, 10), "4" * 32), (envelope.INPUT_TOPIC_ID, b"another")],
    ]
    found = read(monkeypatch, [*elsewhere, None, [("x", None)]], whole=whole)
    assert not any(counts.any() for counts in found.counts.values())
    assert len(found.archived_ids | found.pending_ids) == n_events
    assert found.read == 6
