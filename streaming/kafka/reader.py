"""Reading topics without a consumer group: partitions, offsets by number and by time, and the records at them."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import BrokerError
from streaming.kafka.cluster import describe_cluster
from streaming.settings import KafkaSettings

_TIMEOUT_S = 20.0
_LEADER_COMES = frozenset((KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION))
"""What a broker says for a moment of a topic that was just made, or whose leader has gone."""
_LEADER_WAIT_S = 0.2
_SCAN_BATCH = 200
_SCAN_WAIT_S = 0.02
BOUNDED_FETCH = {
    # A larger message is fetched all the same, alone. What is fetched ahead is about all that is held: with dead
    # letters of 5 MB the process takes 350 MB, whether the topic has 2 GB or 4.
    "fetch.message.max.bytes": 4 * 1024 * 1024,
    "fetch.max.bytes": 8 * 1024 * 1024,
    "queued.max.messages.kbytes": 16 * 1024,
}
"""For a consumer of records of any size."""
_SCAN_OPTIONS = {
    "enable.partition.eof": True,
    # Where retention overtakes the reader, it goes on with the oldest record that is there.
    "auto.offset.reset": "earliest",
    **BOUNDED_FETCH,
    # Librdkafka's default rests a whole second whenever that much is held, and half of one at a topic's end:
    # 200,000 small records took 1.8 s, and take 0.8 s so.
    "fetch.queue.backoff.ms": 5,
    "fetch.wait.max.ms": 10,
}


def list_partitions(consumer: Any, topic: str) -> list[int]:
    """List the partitions of a topic.

    Raises
    ------
    BrokerError
        Nobody answers, or there is no such topic.
    """
    try:
        found = consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
    except KafkaException as exc:
        msg = f"cannot reach Kafka to list {topic}: {exc.args[0].str()}"
        raise BrokerError(msg) from exc
    if found.error is not None:
        denied = found.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
        hint = "See the roles in docs/security.md." if denied else "Create the topics with 'xray up'."
        msg = f"topic {topic}: {found.error.str()}. {hint}"
        raise BrokerError(msg)
    return sorted(found.partitions)


def assign_all(consumer: Consumer, topic: str, *, at: Literal["beginning", "end"]) -> int:
    """Read every partition of a topic, without a consumer group.

    Returns
    -------
    int
        Number of partitions.

    Raises
    ------
    BrokerError
        See `list_partitions`.
    """
    partitions = list_partitions(consumer, topic)
    if at == "beginning":
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
    else:
        # Asked for here rather than left to the consumer, which would look only at its first poll: what is published
        # between this call and that one must be seen.
        ends = [TopicPartition(topic, p, _end(consumer, TopicPartition(topic, p))) for p in partitions]
        consumer.assign(ends)
    return len(partitions)


def _end(consumer: Consumer, partition: TopicPartition) -> int:
    answer = _ask_watermarks(consumer, partition)
    return OFFSET_END if answer is None else int(answer[1])


def _ask_watermarks(consumer: Consumer, partition: TopicPartition) -> tuple[int, int] | None:
    """Ask for a partition's first and next offset, None where nobody answers; wait for a leader that is yet to come."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            answer: tuple[int, int] | None = consumer.get_watermark_offsets(partition, timeout=_TIMEOUT_S)
        except KafkaException as exc:
            if exc.args[0].code() not in _LEADER_COMES or time.monotonic() > deadline:
                raise
            time.sleep(_LEADER_WAIT_S)
        else:
            return answer


@contextmanager
def open_reader(kafka: KafkaSettings) -> Iterator[Consumer]:
    """Open a consumer that belongs to no group and commits nothing.

    Raises
    ------
    BrokerError, SettingsError
        See `streaming.kafka.cluster.describe_cluster`.
    """
    describe_cluster(kafka)  # a refused log-in is told at once and by its name; the reader would only time out
    options = {"group.id": "xray-reader", "enable.auto.commit": False, "log_level": 0}
    reader = Consumer(kafka.to_librdkafka() | options | _SCAN_OPTIONS)
    try:
        yield reader
    finally:
        reader.close()


def read_spans(reader: Consumer, topic: str) -> dict[int, range]:
    """Read which offsets each partition of a topic has now.

    Raises
    ------
    BrokerError
        Nobody answers, or there is no such topic.
    """
    return {partition: _watermarks(reader, topic, partition) for partition in list_partitions(reader, topic)}


def _watermarks(reader: Consumer, topic: str, partition: int) -> range:
    try:
        answer = _ask_watermarks(reader, TopicPartition(topic, partition))
    except KafkaException as exc:
        msg = f"topic {topic}: cannot read the offsets of partition {partition}: {exc.args[0].str()}"
        raise BrokerError(msg) from exc
    if answer is None:
        msg = f"topic {topic}: no answer about partition {partition} within {_TIMEOUT_S} s"
        raise BrokerError(msg)
    return range(int(answer[0]), int(answer[1]))


def find_offsets(reader: Consumer, topic: str, spans: Mapping[int, range], moment: datetime) -> dict[int, int]:
    """Find each partition's first offset whose record has a timestamp at or after a moment.

    Parameters
    ----------
    reader : Consumer
        Of `open_reader`.
    topic : str
        Its name.
    spans : Mapping of int to range
        Of `read_spans`.
    moment : datetime
        With a time zone.

    Returns
    -------
    dict of int to int
        The span's end where there is none.

    Raises
    ------
    BrokerError
        Nobody answers.
    """
    return offsets_at(reader, topic, spans, int(moment.timestamp() * 1000))


def offsets_at(reader: Consumer, topic: str, spans: Mapping[int, range], ms: int) -> dict[int, int]:
    """Find offsets by a timestamp in milliseconds; see `find_offsets`."""
    asked = [TopicPartition(topic, partition, ms) for partition in spans]
    try:
        answers = reader.offsets_for_times(asked, timeout=_TIMEOUT_S)
        # A partition that cannot answer must not pass for one without such a record.
        if failed := next((answer.error for answer in answers if answer.error is not None), None):
            raise KafkaException(failed)
    except KafkaException as exc:
        msg = f"topic {topic}: cannot find the offsets of a time: {exc.args[0].str()}"
        raise BrokerError(msg) from exc
    ends = {partition: span.stop for partition, span in spans.items()}
    return {a.partition: min(a.offset, ends[a.partition]) if a.offset >= 0 else ends[a.partition] for a in answers}


def scan_offsets(kafka: KafkaSettings, topic: str, spans: Mapping[int, range]) -> Iterator[Message]:
    """Read the records at some offsets of a topic; each partition in order, in memory that does not grow.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker.
    topic : str
        Its name.
    spans : Mapping of int to range
        Offsets by partition. Offsets without a record give nothing.

    Raises
    ------
    BrokerError
        Nobody answers, or reading fails; nothing is skipped silently.
    """
    unread = {partition: span for partition, span in spans.items() if span}
    with open_reader(kafka) as reader:
        if unread:
            reader.assign([TopicPartition(topic, partition, span.start) for partition, span in unread.items()])
        deadline = time.monotonic() + _TIMEOUT_S
        while unread:
            # Short, because the call waits for a full batch: the last one is seldom full.
            messages = reader.consume(num_messages=_SCAN_BATCH, timeout=_SCAN_WAIT_S)
            if not messages and time.monotonic() > deadline:
                msg = f"topic {topic}: no answer for {_TIMEOUT_S} s"
                raise BrokerError(msg)
            for message in messages:
                error, partition, offset = message.error(), message.partition(), message.offset()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    msg = f"topic {topic}: {error.str()}"
                    raise BrokerError(msg)
                span = unread.get(partition)
                if span is None:
                    continue  # fetched ahead, behind the span's end
                if error is None and offset in span:
                    yield message
                if error is not None or offset >= span.stop - 1:
                    del unread[partition]
                    reader.pause([TopicPartition(topic, partition)])
            if messages:
                deadline = time.monotonic() + _TIMEOUT_S  # whatever the caller took for them
