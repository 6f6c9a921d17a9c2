"""What runs and what is there, for ``xray status``."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from schemas.errors import BrokerError, ModelLoadError
from schemas.modelcard import read_card
from schemas.registry import champion_folder
from streaming.gateway.keeping.spool import read_spool
from streaming.kafka.cluster import describe_cluster
from streaming.kafka.topics import label_topics, receipt_topics, wanted_topics
from streaming.settings import StreamSettings

_TIMEOUT_S = 10.0


def describe_status(settings: StreamSettings) -> dict[str, Any]:
    """Describe broker, topics, model and spool.

    Returns
    -------
    dict
        ``bootstrap_servers``, ``kafka`` (whether it answers), ``topics`` (partitions and messages by name), ``home``,
        ``champion`` (version or None), ``champion_rendering_version`` (None where its card cannot be read as well) and
        ``spool``, None where no setting names one: ``folder``, ``error`` (None, or why it cannot be read), and where it
        can ``images``, ``bytes``, ``oldest_at`` (None where none waits), ``refused`` and ``damaged`` (set aside).
    """
    champion, rendering = _champion(settings)
    state: dict[str, Any] = {
        "bootstrap_servers": settings.kafka.bootstrap_servers,
        "home": str(settings.home),
        "champion": champion,
        "champion_rendering_version": rendering,
        "spool": None if settings.gateway.spool is None else _describe_spool(settings.gateway.spool),
        "kafka": True,
        "topics": {},
    }
    try:
        state["topics"] = _describe_topics(settings)
    except BrokerError:
        state["kafka"] = False
    return state


def _describe_spool(folder: Path) -> dict[str, Any]:
    try:
        found = read_spool(folder)
    except OSError as exc:
        return {"folder": str(folder), "error": exc.strerror}
    oldest_at = None if found.oldest_at is None else datetime.fromtimestamp(found.oldest_at, UTC).isoformat()
    return {
        "folder": str(folder),
        "error": None,
        "images": found.count,
        "bytes": found.size,
        "oldest_at": oldest_at,
        "refused": found.refused,
        "damaged": found.damaged,
    }


def _describe_topics(settings: StreamSettings) -> dict[str, dict[str, int]]:
    topics = describe_cluster(settings.kafka).topics
    kafka = settings.kafka
    names = [*wanted_topics(kafka), *label_topics(kafka), *receipt_topics(kafka)]
    present = {name: sorted(topics[name].partitions) for name in names if name in topics}
    consumer = Consumer(settings.kafka.to_librdkafka() | {"group.id": "xray-status", "log_level": 0})
    try:
        return {
            name: {"partitions": len(partitions), "messages": sum(_count(consumer, name, p) for p in partitions)}
            for name, partitions in present.items()
        }
    finally:
        consumer.close()


def _count(consumer: Consumer, topic: str, partition: int) -> int:
    low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_TIMEOUT_S)
    return int(high - low)


def _champion(settings: StreamSettings) -> tuple[str | None, int | None]:
    try:
        folder = champion_folder(settings.models_folder)
    except ModelLoadError:
        return None, None
    try:
        return folder.name, read_card(folder).rendering_version
    except ModelLoadError:  # the stream says what is wrong with it
        return folder.name, None
