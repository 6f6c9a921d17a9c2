"""Creates the topics of the stream and of the labels, and checks the ones that are there."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from schemas.errors import BrokerError, SettingsError
from streaming.settings import KafkaSettings

HEADROOM_BYTES = 1024 * 1024
"""How much larger a dead letter may be than the message it was."""
LABEL_BYTES = 1024 * 1024
"""Largest event about a finding; one has some hundred bytes."""

_TIMEOUT_S = 20
_TRY_S = 2.0
_POLL_S = 0.2
_TLS_ALERT = "SSL alert"
"""What librdkafka says where a broker ends a TLS handshake, for want of a certificate above all."""
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


def label_topics(kafka: KafkaSettings) -> dict[str, dict[str, str]]:
    """Topics of the confirmed findings, with their configuration.

    The stream does not use them, and needs no right to see them.

    Returns
    -------
    dict
        Topic name to topic properties. Events carry the broker's time: what they are held back by and what counts as
        the time of those that give none must not hang on a sender's clock.
    """
    month = {"retention.ms": str(30 * _DAY_MS)}
    return {
        kafka.labels_topic: {
            **month,
            "max.message.bytes": str(LABEL_BYTES),
            "message.timestamp.type": "LogAppendTime",
        },
        kafka.labels_deadletters_topic: {**month, "max.message.bytes": str(LABEL_BYTES + HEADROOM_BYTES)},
    }


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
    admin = connect_admin(kafka)
    present = set(describe_cluster(kafka).topics)
    wanted = wanted_topics(kafka) if topics is None else topics
    missing = {name: dict(config) for name, config in wanted.items() if name not in present}
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
        code = exc.args[0].code()
        if code != KafkaError.TOPIC_ALREADY_EXISTS:
            # A broker does not say which of the two it is: whoever may not see a topic is told that there is none.
            denied = code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED)
            hint = ". It is missing, or the user may not see it; see the roles in docs/security.md" if denied else ""
            msg = f"cannot create topic {name}: {exc.args[0].str()}{hint}"
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


def check_label_topics(kafka: KafkaSettings) -> None:
    """Check that every event of the labels topic can become a dead letter.

    Raises
    ------
    BrokerError
        A topic is missing, its configuration may not be read, or the dead letters' topic takes too little.
    """
    events, letters = kafka.labels_topic, kafka.labels_deadletters_topic
    found = _max_message_bytes(kafka, (events, letters))
    wanted = found[events] + HEADROOM_BYTES
    if found[letters] < wanted:
        msg = (
            f"topic {letters} takes messages up to {found[letters]} bytes, wanted {wanted}: what {events} takes, and "
            f"{HEADROOM_BYTES} more. Raise its max.message.bytes or lower that of {events}."
        )
        raise BrokerError(msg)


def _max_message_bytes(kafka: KafkaSettings, names: Iterable[str]) -> dict[str, int]:
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
    admin = connect_admin(kafka)  # must outlive the futures it gives
    answers = admin.describe_configs(resources, request_timeout=_TIMEOUT_S)
    try:
        return {resource.name: int(future.result()["max.message.bytes"].value) for resource, future in answers.items()}
    except KafkaException as exc:
        denied = exc.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
        hint = ". The user needs DescribeConfigs on them; see the roles in docs/security.md" if denied else ""
        msg = f"cannot read the configuration of {', '.join(names)}: {exc.args[0].str()}{hint}"
        raise BrokerError(msg) from exc


def connect_admin(kafka: KafkaSettings, **options: Any) -> AdminClient:
    """Make an admin client that keeps its complaints to itself; callers get typed errors.

    Raises
    ------
    SettingsError
        No client can be made of the settings, such as a certificate that cannot be read.
    """
    try:
        return AdminClient({**kafka.to_librdkafka(), "log_level": 0, **options}, logger=None)
    except KafkaException as exc:
        msg = f"no Kafka client can be made of the settings XRAY_KAFKA__*: {_in_our_names(exc.args[0].str())}"
        raise SettingsError(msg) from exc


def describe_cluster(kafka: KafkaSettings) -> Any:
    """Ask the broker for its metadata.

    Returns
    -------
    confluent_kafka.admin.ClusterMetadata
        Brokers and the topics that the user may see.

    Raises
    ------
    BrokerError
        Nobody answers, the credentials are refused or TLS fails; one line that names the settings to look at.
    SettingsError
        No client can be made of the settings.
    """
    # Why a connection failed is not in the call's own error: librdkafka tells it to this callback, when it is polled.
    reports: list[KafkaError] = []
    admin = connect_admin(kafka, error_cb=reports.append)
    deadline = time.monotonic() + _TIMEOUT_S / 2
    while True:
        try:
            return admin.list_topics(timeout=_TRY_S)
        except KafkaException as exc:
            admin.poll(_POLL_S)
            # Trying again would not change a refusal; of several brokers another one has had its time to answer.
            if any(map(_is_refusal, reports)) or time.monotonic() > deadline:
                msg = f"cannot reach Kafka at {kafka.bootstrap_servers}: {_explain(kafka, reports)}"
                raise BrokerError(msg) from exc


def _is_refusal(report: KafkaError) -> bool:
    return report.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL) or _TLS_ALERT in report.str()


def _explain(kafka: KafkaSettings, reports: Sequence[KafkaError]) -> str:
    """Say in one sentence what librdkafka reported, and in another what to look at."""
    said = {report.code(): _in_our_names(report.str()) for report in reversed(reports)}  # the first of each kind
    protocol = f"XRAY_KAFKA__SECURITY_PROTOCOL, which is {kafka.security_protocol}"
    if (text := said.get(KafkaError._AUTHENTICATION)) is not None:
        users = "XRAY_KAFKA__SASL_USERNAME, XRAY_KAFKA__SASL_PASSWORD and XRAY_KAFKA__SASL_MECHANISM"
        return f"it refuses the log-in ({text}). Check {users}."
    if (text := said.get(KafkaError._SSL)) is not None:
        if "certificate verify failed" in text:
            return (
                "its certificate is not trusted. Check XRAY_KAFKA__SSL_CA_LOCATION, and that the certificate was made "
                "for the host in XRAY_KAFKA__BOOTSTRAP_SERVERS."
            )
        return f"TLS fails ({text}). Check {protocol}."
    text = said.get(KafkaError._TRANSPORT, said.get(KafkaError._RESOLVE))
    if text is None:
        return f"it hangs up or does not answer. Check {protocol}, and XRAY_KAFKA__BOOTSTRAP_SERVERS."
    if _TLS_ALERT in text:
        certificate = "XRAY_KAFKA__SSL_CERTIFICATE_LOCATION and XRAY_KAFKA__SSL_KEY_LOCATION"
        return f"it refuses this client's certificate ({text}). Check {certificate}."
    return f"{text}. Start the local one with 'xray up', or set XRAY_KAFKA__BOOTSTRAP_SERVERS."


def _in_our_names(text: str) -> str:
    """Give librdkafka's words with the names of this project's settings, and without its own state."""
    text = re.sub(r"^\S+/bootstrap: | \(after \d+ms in state .*\)$", "", text)
    return re.sub(r"ssl\.(ca|certificate|key)\.location", lambda m: f"XRAY_KAFKA__SSL_{m[1].upper()}_LOCATION", text)
