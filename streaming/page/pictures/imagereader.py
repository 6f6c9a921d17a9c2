"""One record of the images topic at a time, by its place, without a consumer group."""

import hashlib
import threading
import time
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas import envelope
from streaming.kafka.places import Place, header_text, read_headers
from streaming.page.pictures.picture import PictureGone, PictureUnreadable
from streaming.settings import KafkaSettings

_ANSWER_S = 10.0
_POLL_S = 0.1
_SILENT_S = 1.0
_LOOK_S = 3.0
_AWAY_S = 5.0
"""While Kafka is away a page of fifty pictures must not wait for each of them."""
_OPTIONS = {
    "group.id": "xray-reader",  # the client wants one; nothing is subscribed to and nothing committed
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    # A place that is gone must be told, and no other record shown for it.
    "auto.offset.reset": "error",
    # A larger record is fetched all the same, and what lies behind it is of no use here.
    "fetch.message.max.bytes": 64 * 1024,
    "queued.max.messages.kbytes": 1024,
    "fetch.wait.max.ms": 10,
    "log_level": 0,
}
_GONE = frozenset(
    (
        KafkaError._AUTO_OFFSET_RESET,
        KafkaError.OFFSET_OUT_OF_RANGE,
        KafkaError._PARTITION_EOF,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    )
)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image's bytes.

    Parameters
    ----------
    payload : bytes
        The file, as it was published.
    sha256 : str
        Of the file.
    burned_in : bool
        Its sender says that text is burned into the pixels.
    """

    payload: bytes = field(repr=False)
    sha256: str
    burned_in: bool


class ImageReader:
    """Reads single records of the images topic; from several threads one after the other.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topic.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka = kafka
        self._lock = threading.Lock()
        self._consumer: Consumer | None = None
        self._away_until = 0.0
        self._is_closed = False

    def read(self, place: Place, *, sha256: str = "") -> ImageRecord:
        """Read one record.

        Parameters
        ----------
        place : Place
            In the images topic.
        sha256 : str
            What the outcome says of the bytes there, where it is known.

        Raises
        ------
        PictureGone
            There is no record at this place any more, or another one: the topic was made anew.
        PictureUnreadable
            The record has no value, or Kafka does not answer.
        """
        with self._lock:
            message = self._fetch(place)
        value = message.value()
        if value is None:
            msg = f"{self._name(place)} has no value: a tombstone, no image"
            raise PictureUnreadable(msg)
        found = hashlib.sha256(value).hexdigest()
        if sha256 and found != sha256:
            msg = f"{self._name(place)} is another image now: the topic was made anew since this one was scored"
            raise PictureGone(msg)
        flags = (header_text(read_headers(message), envelope.IMAGE_FLAGS) or "").split(",")
        return ImageRecord(value, found, envelope.BURNED_IN in flags)

    def close(self) -> None:
        """Close the connection; what is read now is given up, and nothing is read after this."""
        self._is_closed = True
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None

    def _fetch(self, place: Place) -> Message:
        self._check_open(place)
        if time.monotonic() < self._away_until:
            msg = f"{self._name(place)} cannot be read: Kafka has not answered a moment ago"
            raise PictureUnreadable(msg)
        if self._consumer is None:
            self._consumer = Consumer(self._kafka.to_librdkafka() | _OPTIONS)
        partition = TopicPartition(self._kafka.images_topic, place.partition, place.offset)
        try:
            self._consumer.assign([partition])
            return self._wait(self._consumer, place)
        except KafkaException as exc:
            self._away_until = time.monotonic() + _AWAY_S
            msg = f"{self._name(place)} cannot be read: {exc.args[0].str()}"
            raise PictureUnreadable(msg) from exc
        finally:
            self._consumer.unassign()  # or it would go on fetching what nobody asked for

    def _wait(self, consumer: Consumer, place: Place) -> Message:
        deadline, looked = time.monotonic() + _ANSWER_S, False
        while time.monotonic() < deadline:
            self._check_open(place)
            message = consumer.poll(_POLL_S)
            if message is None:
                # Of a partition that is not there the client says nothing, and waits for it.
                if not looked and time.monotonic() > deadline - _ANSWER_S + _SILENT_S:
                    looked = True
                    self._check_partition(consumer, place)
                continue
            error = message.error()
            if error is None and message.offset() == place.offset:
                return message
            if error is None or error.code() in _GONE:
                raise self._gone(place)
            if not error.retriable() and error.code() not in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
                msg = f"{self._name(place)} cannot be read: {error.str()}"
                raise PictureUnreadable(msg)
        self._away_until = time.monotonic() + _AWAY_S
        msg = f"{self._name(place)} cannot be read: Kafka has not answered for {_ANSWER_S:.0f} s"
        raise PictureUnreadable(msg)

    def _check_open(self, place: Place) -> None:
        if self._is_closed:
            msg = f"{self._name(place)} is not read: the page is ending"
            raise PictureUnreadable(msg)

    def _check_partition(self, consumer: Consumer, place: Place) -> None:
        found = consumer.list_topics(self._kafka.images_topic, timeout=_LOOK_S).topics[self._kafka.images_topic]
        if found.error is None and place.partition not in found.partitions:
            raise self._gone(place)
        if found.error is not None and found.error.code() in _GONE:
            raise self._gone(place)

    def _gone(self, place: Place) -> PictureGone:
        msg = f"{self._name(place)} is not in Kafka any more: its retention has passed, or the topic was made anew"
        return PictureGone(msg)

    def _name(self, place: Place) -> str:
        return f"image {self._kafka.images_topic}-{place}"
