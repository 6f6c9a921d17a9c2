"""Creates the stream's topics, and checks the ones that are there."""

from collections.abc import Iterable
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from schemas.errors import BrokerError
from streaming.settings import KafkaSettings

HEADROOM_BYTES = 1024 * 1024
"""How much larger a dead letter may be than the image message it was."""

_TIMEOUT_S = 20
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


def wanted_topics(kafka: KafkaSettings) -> dict[str, dict[str, str]]:
    """Every topic the stream uses, with its configuration.

    Returns
    -------
    dict
        Topic name to topic properties. Images stay a week, so that a long week-end's stop loses none; what is derived
        from them stays longer. Images carry the broker's time: with a device's own, a clock that is years behind would
        have retention remove them at once.
    """
    size = {"max.message.bytes": str(kafka.max_message_bytes)}
    # A dead letter is its original and the headers that explain it: the largest image must still fit with them.
    roomy = {"max.message.bytes": str(kafka.max_message_bytes + HEADROOM_BYTES)}
    broker_time = {"message.timestamp.type": "LogAppendTime"}
    week = {"retention.ms": str(7 * _DAY_MS), **size}
    hour = {"retention.ms": str(_HOUR_MS), **size}
    return {
        kafka.images_topic: {**week, **broker_time},
        kafka.predictions_topic: {"retention.ms": str(30 * _DAY_MS), **size},
        kafka.features_topic: week,
        kafka.deadletters_topic: {"retention.ms": str(30 * _DAY_MS), **roomy},
        kafka.canary_topic: {**hour, **broker_time},
        kafka.canary_results_topic: hour,
    }


def create_topics(kafka: KafkaSettings) -> list[str]:
    """Create the topics that are missing.

    Returns
    -------
    list of str
        The topics that were created now; an existing one is left as it is.

    Raises
    ------
    BrokerError
        The broker cannot be reached, or refuses.
    """
    admin = connect_admin(kafka)
    present = set(describe_cluster(kafka).topics)
    missing = {name: config for name, config in wanted_topics(kafka).items() if name not in present}
    new = [
        NewTopic(name, num_partitions=kafka.partitions, replication_factor=kafka.replication_factor, config=config)
        for name, config in missing.items()
    ]
    for name, future in (admin.create_topics(new, request_timeout=_TIMEOUT_S) if new else {}).items():
        _await_creation(name, future)
    return sorted(missing)


def _await_creation(name: str, future: Any) -> None:
    try:
        future.result()
    except KafkaException as exc:
        if exc.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            msg = f"cannot create topic {name}: {exc.args[0].str()}"
            raise BrokerError(msg) from exc


def check_topics(kafka: KafkaSettings) -> None:
    """Check that every topic is there and takes messages as large as the settings promise.

    Raises
    ------
    BrokerError
        One line that says which topic, what was found and what to do.
    """
    present = set(describe_cluster(kafka).topics)
    missing = sorted(set(wanted_topics(kafka)) - present)
    if missing:
        msg = f"missing topics at {kafka.bootstrap_servers}: {', '.join(missing)}. Create them with 'xray up'."
        raise BrokerError(msg)
    wanted = {
        kafka.images_topic: kafka.max_message_bytes,
        kafka.deadletters_topic: kafka.max_message_bytes + HEADROOM_BYTES,
    }
    for name, found in _max_message_bytes(kafka, wanted).items():
        if found < wanted[name]:
            msg = (
                f"topic {name} takes messages up to {found} bytes, wanted {wanted[name]}. Raise the topic's "
                "max.message.bytes or lower XRAY_KAFKA__MAX_MESSAGE_BYTES."
            )
            raise BrokerError(msg)


def _max_message_bytes(kafka: KafkaSettings, names: Iterable[str]) -> dict[str, int]:
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
    admin = connect_admin(kafka)  # must outlive the futures it gives
    answers = admin.describe_configs(resources, request_timeout=_TIMEOUT_S)
    try:
        return {resource.name: int(future.result()["max.message.bytes"].value) for resource, future in answers.items()}
    except KafkaException as exc:
        msg = f"cannot read the topics' configuration at {kafka.bootstrap_servers}: {exc.args[0].str()}"
        raise BrokerError(msg) from exc


def connect_admin(kafka: KafkaSettings) -> AdminClient:
    """Make an admin client that keeps its complaints to itself; callers get typed errors."""
    return AdminClient({**kafka.to_librdkafka(), "log_level": 0}, logger=None)


def describe_cluster(kafka: KafkaSettings) -> Any:
    """Ask the broker for its metadata.

    Returns
    -------
    confluent_kafka.admin.ClusterMetadata
        Brokers and topics.

    Raises
    ------
    BrokerError
        Nobody answers, or the credentials are refused; says what to do.
    """
    # A refused log-in is not in the metadata call's own error: librdkafka tells it only to the error callback.
    reports: list[str] = []
    options = {**kafka.to_librdkafka(), "log_level": 0, "error_cb": lambda error: reports.append(error.str())}
    try:
        return AdminClient(options).list_topics(timeout=_TIMEOUT_S / 2)
    except KafkaException as exc:
        said = reports[0] if reports else exc.args[0].str()
        msg = (
            f"cannot reach Kafka at {kafka.bootstrap_servers}: {said}. "
            "Start the local one with 'xray up', or set XRAY_KAFKA__BOOTSTRAP_SERVERS."
        )
        raise BrokerError(msg) from exc
