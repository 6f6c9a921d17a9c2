"""An independent client (kafka-python) that reads what the stream wrote, as any consumer would."""

from dataclasses import dataclass

from kafka import KafkaConsumer, TopicPartition

from streaming.settings import KafkaSettings


@dataclass(frozen=True)
class Record:
    """One Kafka record."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]

    def text(self, name: str) -> str:
        """The last header of a name, as text."""
        return [value for key, value in self.headers if key == name][-1].decode()


def read_topic(kafka: KafkaSettings, topic: str) -> list[Record]:
    """Read every record that a topic has now."""
    consumer = KafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_bytes=64 * 1024 * 1024,
        max_partition_fetch_bytes=40 * 1024 * 1024,
    )
    try:
        partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        records: list[Record] = []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for found in consumer.poll(timeout_ms=1000).values():
                records += [Record(r.key, r.value, list(r.headers)) for r in found]
        return records
    finally:
        consumer.close()
