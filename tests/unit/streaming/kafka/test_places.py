"""Which record an outcome is about."""

import pytest
from confluent_kafka import Message

from schemas import envelope
from streaming.kafka.places import Headers, Origin, Place, header_text, place_of, read_headers, read_origin

_SAID: Headers = [
    (envelope.INPUT_TOPIC, b"images"),
    (envelope.INPUT_PARTITION, b"3"),
    (envelope.INPUT_OFFSET, b"1024"),
]


def message(headers: Headers | None) -> Message:
    return Message("topic", 2, 7, None, b"", headers)


def test_an_outcome_names_its_record() -> None:
    origin = read_origin(read_headers(message(_SAID)))
    assert origin == Origin("images", Place(3, 1024))
    assert str(origin) == "images-3@1024"
    assert place_of(message(None)) == Place(2, 7)


@pytest.mark.parametrize(("said", "topic_id"), [(b"its-id", "its-id"), (b"", ""), (None, "")])
def test_an_outcome_may_name_its_topics_id(said: bytes | None, topic_id: str) -> None:
    origin = read_origin(read_headers(message([*_SAID, (envelope.INPUT_TOPIC_ID, said)])))
    assert origin == Origin("images", Place(3, 1024), topic_id)


def test_the_last_of_several_headers_with_one_name_counts() -> None:
    """The stream appends its own behind whatever a device wrote."""
    theirs: Headers = [(name, b"9") for name, _ in _SAID]
    assert read_origin(read_headers(message([*theirs, *_SAID]))) == Origin("images", Place(3, 1024))


@pytest.mark.parametrize("value", [None, b"", b"one", b"\xff"])
@pytest.mark.parametrize("name", [envelope.INPUT_PARTITION, envelope.INPUT_OFFSET])
def test_nonsense_is_nobodys_outcome(name: str, value: bytes | None) -> None:
    assert read_origin(read_headers(message([*_SAID, (name, value)]))) is None


@pytest.mark.parametrize("headers", [None, [], _SAID[1:], _SAID[:2], [*_SAID, (envelope.INPUT_TOPIC, b"\xff")]])
def test_without_a_topic_or_a_place_it_is_nobodys_outcome(headers: Headers | None) -> None:
    assert read_origin(read_headers(message(headers))) is None


def test_headers_are_read_by_name_and_a_missing_value_is_an_empty_one() -> None:
    headers = read_headers(message([("a", None), ("b", b"\xff"), ("c", b"1"), ("c", b"2")]))
    assert headers == {"a": b"", "b": b"\xff", "c": b"2"}
    assert [header_text(headers, name) for name in "abcd"] == ["", "\ufffd", "2", None]
