"""An event about a finding, and the dead letter of one that cannot be recorded."""

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from confluent_kafka import Message

from schemas import envelope
from schemas.errors import ContractError
from schemas.labels import LabelReason
from streaming.kafka.places import Headers, Place

GROUP = "xray-label"
"""The consumer group; several readers share the partitions."""


@dataclass(frozen=True, slots=True)
class Event:
    """One record of the labels topic.

    Parameters
    ----------
    partition, offset : int
        Where it is.
    received_at : datetime
        Its Kafka timestamp, UTC; never after the moment of reading.
    key, value : bytes or None
        As they came.
    headers : list of (str, bytes or None)
        As they came.
    """

    partition: int
    offset: int
    received_at: datetime
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def place(self) -> str:
        """``partition@offset``."""
        return str(Place(self.partition, self.offset))

    @property
    def size_bytes(self) -> int:
        """Key, value and headers together; more than the broker measured where the sender's client compressed them."""
        headers = sum(len(name.encode()) + len(value or b"") for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


@dataclass(frozen=True, slots=True)
class Rejection:
    """An event that cannot be recorded.

    Parameters
    ----------
    event : Event
        It.
    reason : LabelReason
        Why, as a code.
    detail : str
        What was found and what was wanted. Never a word of the event's own.
    """

    event: Event
    reason: LabelReason
    detail: str


def read_event(message: Message) -> Event:
    """Read one message of the labels topic."""
    now = time.time()
    seconds = min(max(message.timestamp()[1] / 1000, 0), now)  # a topic made by hand may have the senders' clocks
    received_at = datetime.fromtimestamp(seconds, UTC)
    headers = list(message.headers() or [])
    return Event(message.partition(), message.offset(), received_at, message.key(), message.value(), headers)


def add_error_headers(rejection: Rejection, topic: str) -> Headers:
    """Give an event's headers, and behind them Kafka Connect's, as the stream's own dead letters have them.

    A ``__connect.errors`` header that the event had already is kept and not added again.
    """
    event = rejection.event
    place = (topic, str(event.partition), str(event.offset))
    added = {
        envelope.INPUT_TOPIC: topic,
        envelope.INPUT_PARTITION: place[1],
        envelope.INPUT_OFFSET: place[2],
        envelope.INPUT_TIMESTAMP: event.received_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        envelope.EVENT_ID: envelope.derive_event_id(*place, "dead-letter"),
        envelope.REASON: rejection.reason.value,
        envelope.ERROR_TOPIC: topic,
        envelope.ERROR_PARTITION: place[1],
        envelope.ERROR_OFFSET: place[2],
        envelope.ERROR_CONNECTOR: GROUP,
        envelope.ERROR_TASK: place[1],
        envelope.ERROR_STAGE: "VALUE_CONVERTER",
        envelope.ERROR_CLASS: "training.data.labelevents.read_events",
        envelope.ERROR_EXCEPTION_CLASS: f"{ContractError.__module__}.{ContractError.__name__}",
        envelope.ERROR_EXCEPTION_MESSAGE: rejection.detail,
        # A stack would be this program's, and the same for all.
        envelope.ERROR_EXCEPTION_STACKTRACE: "",
    }
    taken = {name for name, _ in event.headers if name.startswith(envelope.ERROR_PREFIX)}
    return event.headers + [(name, text.encode()) for name, text in added.items() if name not in taken]


def without_content(rejection: Rejection) -> Rejection:
    """Leave key, value and headers out: no dead letter can hold them."""
    return replace(rejection, event=replace(rejection.event, key=None, value=None, headers=[]))
