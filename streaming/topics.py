"""Creates the topics of the stream and of the labels, and checks the ones that are there."""

import logging
import re
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from schemas import envelope
from schemas.errors import BrokerError, SettingsError
from schemas.modelcard import ModelCard
from streaming.settings import KafkaSettings

log = logging.getLogger(__name__)

HEADROOM_BYTES = 1024 * 1024
"""How much larger a dead letter may be than the message it was."""
LABEL_BYTES = 1024 * 1024
"""Largest event about a finding; one has some hundred bytes."""
CARRIED_BYTES = (
    envelope.MAX_KEY_BYTES
    + envelope.MAX_HEADERS_BYTES
    + 2 * 6 * envelope.MAX_HEADER_BYTES
    + 2 * envelope.MAX_HEADER_BYTES
)
"""What an outcome can take over from its image: the key; trace headers; source and id in JSON, where one control
character is six; id and time once more as headers."""

_OWN_BYTES = 16 * 1024
"""What the stream itself says in an outcome, model apart: ids, sizes, times, names of fields; about 2 kB."""
_BYTES_PER_FEATURE = 16
"""The longest float in JSON, ``-1.17549435E-38``, and a comma."""
_SAFE_REPLICAS = 3
_SAFE_IN_SYNC = 2
"""With three replicas: a confirmed record is on two disks, and one broker may be away."""

_TIMEOUT_S = 20
_TRY_S = 2.0
_POLL_S = 0.2
_TLS_ALERT = "SSL alert"
"""What librdkafka says where a broker ends a TLS handshake, for want of a certificate above all."""
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_FARTHEST_AHEAD_MS = 366 * _DAY_MS
"""Kafka takes an hour by default since 4.0, and any time before that."""


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


def _kept(kafka: KafkaSettings) -> dict[str, str]:
    """Say what keeps a confirmed record, whatever the broker's own defaults.

    With one replica in sync a single disk's loss takes confirmed images along; with as many as there are nothing can be
    written while one broker is away.
    """
    in_sync = _SAFE_IN_SYNC if kafka.replication_factor >= _SAFE_REPLICAS else 1
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
    month = {"retention.ms": str(30 * _DAY_MS), **_kept(kafka)}
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


def check_topics(kafka: KafkaSettings, *, may_be_denied: bool = False) -> None:
    """Check that every topic is there, keeps what it confirms, and takes the largest message that can come to it.

    What is no danger to an image yet, and may be meant so, is a warning in the log.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    may_be_denied : bool
        Warn of topics whose configuration the user may not read, where it is not this user's stream that needs them.

    Raises
    ------
    BrokerError
        One line that says which topic, what was found and what to do.
    """
    cluster = describe_cluster(kafka)
    missing = sorted(set(wanted_topics(kafka)) - set(cluster.topics))
    if missing:
        msg = f"missing topics at {kafka.bootstrap_servers}: {', '.join(missing)}. Create them with 'xray up'."
        raise BrokerError(msg)
    canary = (kafka.canary_topic, kafka.canary_results_topic)
    received = (kafka.images_topic, kafka.canary_topic)
    largest = _largest_messages(kafka)
    essential = () if may_be_denied else (kafka.images_topic, kafka.deadletters_topic)
    names = wanted_topics(kafka)
    topics = _read_topics(kafka, cluster, names, optional=[name for name in names if name not in essential])
    for topic in topics:
        topic.refuse_smaller(largest[topic.name], _or_lower(kafka, topic.name))
        topic.refuse_what_stops(devices_write=topic.name in received)
        if topic.name not in canary:
            topic.refuse_what_loses()
    kept = [topic for topic in topics if topic.name not in canary]
    _warn(kept, len(cluster.brokers), by_senders_clock=(kafka.images_topic,))


def _warn(topics: Iterable["_Topic"], n_brokers: int, by_senders_clock: Container[str]) -> None:
    for topic in topics:
        for warning in topic.warnings(n_brokers, broker_time_wanted=topic.name in by_senders_clock):
            log.warning("%s", warning)


@dataclass(frozen=True)
class _Topic:
    """A topic that was found: its configuration, and on how many brokers each partition is at least.

    A broker that does not tell a property is not asked again: what needs it is not checked.
    """

    name: str
    config: Mapping[str, str]
    replicas: int

    def number(self, name: str) -> int | None:
        """Read a property; None where the broker does not tell it."""
        value = self.config.get(name)
        return None if value is None else int(value)

    def refuse_smaller(self, wanted: int, advice: str = "") -> None:
        """Refuse a topic that does not take messages of so many bytes."""
        found = self.number("max.message.bytes")
        if found is not None and found < wanted:
            msg = (
                f"topic {self.name} takes messages up to {found} bytes, wanted {wanted}. Raise the topic's "
                f"max.message.bytes{advice}."
            )
            raise BrokerError(msg)

    def refuse_what_loses(self) -> None:
        """Refuse compaction."""
        policy = self.config.get("cleanup.policy", "delete")
        if "compact" in policy:
            msg = (
                f"topic {self.name} has cleanup.policy={policy}, wanted delete: compaction removes all records of a "
                "key but the last, read or not. Change the topic's cleanup.policy."
            )
            raise BrokerError(msg)

    def refuse_what_stops(self, *, devices_write: bool) -> None:
        """Refuse what nothing can be written to, or what one message can stop the reader of."""
        in_sync = self.number("min.insync.replicas")
        if in_sync is not None and in_sync > self.replicas:
            msg = (
                f"topic {self.name} has {self.replicas} replica(s) and min.insync.replicas={in_sync}: nothing can be "
                "written to it. Lower min.insync.replicas or add replicas."
            )
            raise BrokerError(msg)
        ahead = self.number("message.timestamp.after.max.ms")
        if devices_write and self._by_senders_clock and ahead is not None and ahead > _FARTHEST_AHEAD_MS:
            msg = (
                f"topic {self.name} has message.timestamp.type=CreateTime and takes any time from its senders: Spark "
                "fails at one that is far enough in the future, again and again. Set LogAppendTime, or "
                f"message.timestamp.after.max.ms to at most {_FARTHEST_AHEAD_MS}."
            )
            raise BrokerError(msg)

    @property
    def _by_senders_clock(self) -> bool:
        return self.config.get("message.timestamp.type") == "CreateTime"

    def warnings(self, n_brokers: int, *, broker_time_wanted: bool) -> Iterator[str]:
        """Say what may be meant so, and is not safe."""
        in_sync = self.number("min.insync.replicas") or 1
        if in_sync < _SAFE_IN_SYNC and self.replicas >= _SAFE_REPLICAS:
            yield (
                f"topic {self.name} has {self.replicas} replicas and min.insync.replicas={in_sync}: a record is "
                f"confirmed when one disk has it. Set min.insync.replicas={_SAFE_IN_SYNC}."
            )
        elif in_sync < _SAFE_IN_SYNC and (self.replicas > 1 or n_brokers > 1):
            yield (
                f"topic {self.name} has {self.replicas} replica(s): a record is confirmed when one disk has it, and "
                f"lost with that. Use {_SAFE_REPLICAS} replicas and min.insync.replicas={_SAFE_IN_SYNC}."
            )
        elif in_sync == self.replicas > 1:
            yield (
                f"topic {self.name} has {self.replicas} replicas and min.insync.replicas={in_sync}: nothing can be "
                f"written while one broker is away. Use {_SAFE_REPLICAS} replicas and "
                f"min.insync.replicas={_SAFE_IN_SYNC}."
            )
        if broker_time_wanted and self._by_senders_clock:
            yield (
                f"topic {self.name} has message.timestamp.type=CreateTime, wanted LogAppendTime: records of a sender "
                "whose clock is wrong may be removed at once, or kept for ever."
            )


def _largest_messages(kafka: KafkaSettings) -> dict[str, int]:
    """How large a message of each topic can be; of outcomes without what their model adds (`check_outcome_sizes`)."""
    outcome = CARRIED_BYTES + _OWN_BYTES
    return dict.fromkeys(wanted_topics(kafka), outcome) | {
        kafka.images_topic: kafka.max_message_bytes,
        kafka.deadletters_topic: kafka.max_message_bytes + HEADROOM_BYTES,
    }


def _or_lower(kafka: KafkaSettings, name: str) -> str:
    follows = name in (kafka.images_topic, kafka.deadletters_topic)
    return " or lower XRAY_KAFKA__MAX_MESSAGE_BYTES" if follows else ""


def check_outcome_sizes(kafka: KafkaSettings, card: ModelCard, n_features: int) -> None:
    """Check that the largest prediction and feature record of a model pass their topics and the stream's own producer.

    Parameters
    ----------
    kafka : KafkaSettings
        Broker and topics.
    card : ModelCard
        Its names and texts are in every prediction.
    n_features : int
        Length of its feature vectors.

    Raises
    ------
    BrokerError
        One of them does not; one line that says which, and what to do.
    """
    outcome = CARRIED_BYTES + _OWN_BYTES + 6 * len(card.to_json())
    wanted = {
        kafka.predictions_topic: outcome,
        kafka.canary_results_topic: outcome,
        kafka.features_topic: CARRIED_BYTES + _OWN_BYTES + _BYTES_PER_FEATURE * n_features,
    }
    most = kafka.max_message_bytes + HEADROOM_BYTES
    for topic in _read_topics(kafka, describe_cluster(kafka), wanted, optional=wanted):
        found = min(topic.number("max.message.bytes") or most, most)
        if found < wanted[topic.name]:
            msg = (
                f"model {card.version} makes messages of up to {wanted[topic.name]} bytes for {topic.name}, which "
                f"takes {found}. Raise the topic's max.message.bytes and XRAY_KAFKA__MAX_MESSAGE_BYTES."
            )
            raise BrokerError(msg)


def _read_topics(
    kafka: KafkaSettings, cluster: Any, names: Iterable[str], *, optional: Container[str] = ()
) -> list[_Topic]:
    """Read topics; of an optional one whose configuration the user may not read there is a warning, and no more.

    Former releases of the stream wanted that right for the two topics that hold images alone.
    """
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
    admin = connect_admin(kafka)  # must outlive the futures it gives
    topics = []
    for resource, future in admin.describe_configs(resources, request_timeout=_TIMEOUT_S).items():
        try:
            config = {name: entry.value for name, entry in future.result().items()}
        except KafkaException as exc:
            denied = exc.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
            hint = ". The user needs DescribeConfigs on it; see the roles in docs/security.md" if denied else ""
            msg = f"cannot read the configuration of {resource.name}: {exc.args[0].str()}{hint}"
            if not denied or resource.name not in optional:
                raise BrokerError(msg) from exc
            log.warning("%s. It is not checked", msg)
        else:
            topics.append(_Topic(resource.name, config, _count_replicas(cluster, resource.name)))
    return topics


def _count_replicas(cluster: Any, name: str) -> int:
    return min((len(partition.replicas) for partition in cluster.topics[name].partitions.values()), default=1)


def check_label_topics(kafka: KafkaSettings) -> int:
    """Check that the labels' topics keep what they confirm, and that every event can become a dead letter.

    Returns
    -------
    int
        Largest event, in bytes, whose dead letter can hold all of it.

    Raises
    ------
    BrokerError
        A topic is missing, its configuration may not be read, or the dead letters' topic takes too little.
    """
    events, letters = kafka.labels_topic, kafka.labels_deadletters_topic
    cluster = describe_cluster(kafka)
    topics = _read_topics(kafka, cluster, (events, letters))
    for topic in topics:
        topic.refuse_what_stops(devices_write=False)
        topic.refuse_what_loses()
    _warn(topics, len(cluster.brokers), by_senders_clock=(events,))
    found = {topic.name: int(topic.config["max.message.bytes"]) for topic in topics}
    wanted = found[events] + HEADROOM_BYTES
    if found[letters] < wanted:
        msg = (
            f"topic {letters} takes messages up to {found[letters]} bytes, wanted {wanted}: what {events} takes, and "
            f"{HEADROOM_BYTES} more. Raise its max.message.bytes or lower that of {events}."
        )
        raise BrokerError(msg)
    return min(found[letters] - HEADROOM_BYTES, kafka.max_message_bytes)


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
