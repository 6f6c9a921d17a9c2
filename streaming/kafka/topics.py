"""The topics that are wanted, with their properties, and making them."""

import time
from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from schemas import envelope
from schemas.errors import BrokerError
from streaming.kafka.cluster import TIMEOUT_S, open_admin
from streaming.settings import KafkaSettings

HEADROOM_BYTES = 1024 * 1024
"""How much larger a dead letter may be than the message it was."""

LABEL_BYTES = 1024 * 1024
"""Largest event about a finding; one has some hundred bytes."""

CARRIED_BYTES = (
    envelope.MAX_KEY_BYTES
    + envelope.MAX_HEADERS_BYTES
    + 2 * 6 * envelope.MAX_HEADER_BYTES
    + 2 * envelope.MAX_HEADER_BYTES
    + envelope.MAX_REDRIVE_BYTES
)
"""What an outcome can take over from its image: the key; trace headers; source and id in JSON, where one control
character is six; id and time once more as headers; and where it was before it was re-driven."""

SAFE_REPLICAS = 3

SAFE_IN_SYNC = 2
"""With three replicas: a confirmed record is on two disks, and one broker may be away."""

_POLL_S = 0.1

_HOUR_MS = 3_600_000

DAY_MS = 24 * _HOUR_MS


def wanted_topics(kafka: KafkaSettings) -> dict[str, dict[str, str]]:
    """Every topic the stream uses, with its configuration.

    Returns
    -------
    dict
        Topic name to topic properties. Images stay a week, so that a long week-end's stop loses none; what is derived
        from them stays longer. Images carry the broker's time: with a device's own, a clock that is years behind would
        have retention remove them at once.
    """
    size = {"max.message.bytes": str(kafka.max_message_bytes), **_kept(kafka)}
    # A dead letter is its original and the headers that explain it: the largest image must still fit with them.
    roomy = {**size, "max.message.bytes": str(kafka.max_message_bytes + HEADROOM_BYTES)}
    broker_time = {"message.timestamp.type": "LogAppendTime"}
    week = {"retention.ms": str(7 * DAY_MS), **size}
    hour = {"retention.ms": str(_HOUR_MS), **size}
    return {
        kafka.images_topic: {**week, **broker_time},
        kafka.predictions_topic: {"retention.ms": str(30 * DAY_MS), **size},
        kafka.features_topic: week,
        kafka.deadletters_topic: {"retention.ms": str(30 * DAY_MS), **roomy},
        kafka.canary_topic: {**hour, **broker_time},
        kafka.canary_results_topic: hour,
    }


def _kept(kafka: KafkaSettings) -> dict[str, str]:
    """Say what keeps a confirmed record, whatever the broker's own defaults.

    With one replica in sync a single disk's loss takes confirmed images along; with as many as there are nothing can be
    written while one broker is away.
    """
    in_sync = SAFE_IN_SYNC if kafka.replication_factor >= SAFE_REPLICAS else 1
    return {"min.insync.replicas": str(in_sync), "cleanup.policy": "delete"}


def label_topics(kafka: KafkaSettings) -> dict[str, dict[str, str]]:
    """Topics of the confirmed findings, with their configuration.

    The stream does not use them, and needs no right to see them.

    Returns
    -------
    dict
        Topic name to topic properties. Events carry the broker's time: what they are held back by and what counts as
        the time of those that give none must not hang on a sender's clock.
    """
    month = {"retention.ms": str(30 * DAY_MS), **_kept(kafka)}
    return {
        kafka.labels_topic: {
            **month,
            "max.message.bytes": str(LABEL_BYTES),
            "message.timestamp.type": "LogAppendTime",
        },
        kafka.labels_deadletters_topic: {**month, "max.message.bytes": str(LABEL_BYTES + HEADROOM_BYTES)},
    }


def receipt_topics(kafka: KafkaSettings) -> dict[str, dict[str, str]]:
    """Topic of the receipts, with its configuration; the gateway's alone.

    Returns
    -------
    dict
        Topic name to topic properties. Of each image the last state stays, for as long as a prediction does.
    """
    kept = {**_kept(kafka), "cleanup.policy": "compact,delete", "retention.ms": str(30 * DAY_MS)}
    return {kafka.receipts_topic: {**kept, "max.message.bytes": str(LABEL_BYTES)}}


def create_topics(kafka: KafkaSettings, topics: Mapping[str, Mapping[str, str]] | None = None) -> list[str]:
    """Create the topics that are missing.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker, partitions and replicas.
    topics : mapping of str to mapping, optional
        Names and properties; by default `wanted_topics`.

    Returns
    -------
    list of str
        The topics that were created now; an existing one is left as it is.

    Raises
    ------
    BrokerError
        The broker cannot be reached, or refuses.
    """
    admin, cluster = open_admin(kafka)
    wanted = wanted_topics(kafka) if topics is None else topics
    missing = {name: dict(config) for name, config in wanted.items() if name not in cluster.topics}
    new = [
        NewTopic(name, num_partitions=kafka.partitions, replication_factor=kafka.replication_factor, config=config)
        for name, config in missing.items()
    ]
    futures = admin.create_topics(new, request_timeout=TIMEOUT_S) if new else {}
    _await_leaders(admin, {name for name, future in futures.items() if _await_creation(name, future)})
    return sorted(missing)


def _await_leaders(admin: AdminClient, created: set[str]) -> None:
    """Wait until the broker shows topics that it has confirmed: a busy one needs a moment to learn of them itself."""
    deadline = time.monotonic() + TIMEOUT_S
    while created:
        found = admin.list_topics(timeout=TIMEOUT_S).topics
        created = {name for name in created if name not in found or not _has_leaders(found[name])}
        if created and time.monotonic() > deadline:
            msg = f"created, but still not shown by the broker after {TIMEOUT_S} s: {', '.join(sorted(created))}"
            raise BrokerError(msg)
        if created:
            time.sleep(_POLL_S)


def _has_leaders(topic: Any) -> bool:
    return topic.error is None and bool(topic.partitions) and all(p.leader >= 0 for p in topic.partitions.values())


def _await_creation(name: str, future: Any) -> bool:
    """Wait for the broker's answer; False where somebody else has created the topic in the meantime."""
    try:
        future.result()
    except KafkaException as exc:
        code = exc.args[0].code()
        if code != KafkaError.TOPIC_ALREADY_EXISTS:
            # A broker does not say which of the two it is: whoever may not see a topic is told that there is none.
            denied = code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
            hint = ". It is missing, or the user may not see it; see the roles in docs/security.md" if denied else ""
            msg = f"cannot create topic {name}: {exc.args[0].str()}{hint}"
            raise BrokerError(msg) from exc
        return False
    return True
