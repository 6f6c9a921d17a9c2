"""Small help around confluent-kafka's messages and consumers."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import BrokerError
from streaming.settings import KafkaSettings

_TIMEOUT_S = 20.0
_SCAN_BATCH = 1000
_SCAN_WAIT_S = 0.05


def read_headers(message: Message) -> dict[str, bytes]:
    """Return headers by name; of several with one name the last one counts."""
    return {name: value or b"" for name, value in message.headers() or []}


def header_text(headers: Mapping[str, bytes], name: str) -> str | None:
    """Return a header as text, None where it is absent; bytes that are not UTF-8 show as replacement marks."""
    value = headers.get(name)
    return None if value is None else value.decode(errors="replace")


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
        msg = f"topic {topic}: {found.error.str()}. Create the topics with 'xray up'."
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
    answer = consumer.get_watermark_offsets(partition, timeout=_TIMEOUT_S)
    return OFFSET_END if answer is None else int(answer[1])


def scan_topic(kafka: KafkaSettings, topic: str) -> Iterator[Message]:
    """Read a topic from its beginning to the end that it has now.

    Raises
    ------
    BrokerError
        Nobody answers, there is no such topic, or reading fails; nothing is skipped silently.
    """
    options = kafka.to_librdkafka() | {
        "log_level": 0,
        "group.id": "xray-scan",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "fetch.message.max.bytes": kafka.max_message_bytes,
        "queued.max.messages.kbytes": 128 * 1024,
    }
    consumer = Consumer(options)
    try:
        unread = assign_all(consumer, topic, at="beginning")
        deadline = time.monotonic() + _TIMEOUT_S
        while unread:
            # Short, because the call waits for a full batch: the last one is seldom full.
            messages = consumer.consume(num_messages=_SCAN_BATCH, timeout=_SCAN_WAIT_S)
            if messages:
                deadline = time.monotonic() + _TIMEOUT_S
            elif time.monotonic() > deadline:
                msg = f"topic {topic}: no answer for {_TIMEOUT_S} s"
                raise BrokerError(msg)
            for message in messages:
                if message.error() is None:
                    yield message
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    unread -= 1
                else:
                    msg = f"topic {topic}: {message.error().str()}"
                    raise BrokerError(msg)
    finally:
        consumer.close()
