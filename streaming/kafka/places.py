"""Where a record is, which record an outcome is about, and the headers that say so.

One reader of headers: of several with one name the last one counts, for the stream appends its own behind what a
sender wrote; one without a value counts as empty.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from confluent_kafka import Message

from schemas import envelope

Headers = list[tuple[str, bytes | None]]
"""A record's headers as they came, in their order."""


class Place(NamedTuple):
    """Where a record is in a topic that is known; as text ``partition@offset``."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}@{self.offset}"


class Origin(NamedTuple):
    """The record that an outcome is about; as text ``topic-partition@offset``.

    Parameters
    ----------
    topic : str
        Its topic's name.
    place : Place
        Where it is in there.
    topic_id : str
        Kafka's own id of that topic; empty where the outcome does not tell it.
    """

    topic: str
    place: Place
    topic_id: str = ""

    def __str__(self) -> str:
        return f"{self.topic}-{self.place}"


def place_of(message: Message) -> Place:
    """Tell where a message was read."""
    return Place(message.partition(), message.offset())


def read_headers(message: Message) -> dict[str, bytes]:
    """Return a message's headers by name."""
    return headers_by_name(message.headers() or ())


def headers_by_name(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, bytes]:
    """Return headers by name."""
    return {name: value or b"" for name, value in headers}


def header_text(headers: Mapping[str, bytes], name: str) -> str | None:
    """Return a header as text, None where it is absent; bytes that are not UTF-8 show as replacement marks."""
    value = headers.get(name)
    return None if value is None else value.decode(errors="replace")


def read_origin(headers: Mapping[str, bytes]) -> Origin | None:
    """Read which record an outcome is about.

    Parameters
    ----------
    headers : Mapping of str to bytes
        Of the outcome, by name.

    Returns
    -------
    Origin or None
        None where the headers are absent or nonsense: somebody else wrote the record.
    """
    try:
        place = Place(int(headers[envelope.INPUT_PARTITION]), int(headers[envelope.INPUT_OFFSET]))
        topic = headers[envelope.INPUT_TOPIC].decode()
    except (KeyError, ValueError):  # UnicodeDecodeError is a ValueError
        return None
    return Origin(topic, place, headers.get(envelope.INPUT_TOPIC_ID, b"").decode(errors="replace"))
