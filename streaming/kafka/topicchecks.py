"""Checks that topics which were found keep what they confirm, and take the largest message."""

import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource

from schemas.errors import BrokerError
from schemas.modelcard import ModelCard
from streaming.kafka.cluster import TIMEOUT_S, open_admin
from streaming.kafka.topics import CARRIED_BYTES, DAY_MS, HEADROOM_BYTES, SAFE_IN_SYNC, SAFE_REPLICAS, wanted_topics
from streaming.settings import KafkaSettings

log = logging.getLogger(__name__)

_OWN_BYTES = 16 * 1024
"""What the stream itself says in an outcome, model apart: ids, sizes, times, names of fields; about 2 kB."""

_BYTES_PER_FEATURE = 16
"""The longest float in JSON, ``-1.17549435E-38``, and a comma."""

_FARTHEST_AHEAD_MS = 366 * DAY_MS
"""Kafka takes an hour by default since 4.0, and any time before that."""


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
    admin, cluster = open_admin(kafka)
    missing = sorted(set(wanted_topics(kafka)) - set(cluster.topics))
    if missing:
        msg = f"missing topics at {kafka.bootstrap_servers}: {', '.join(missing)}. Create them with 'xray up'."
        raise BrokerError(msg)
    canary = (kafka.canary_topic, kafka.canary_results_topic)
    received = (kafka.images_topic, kafka.canary_topic)
    largest = _largest_messages(kafka)
    essential = () if may_be_denied else (kafka.images_topic, kafka.deadletters_topic)
    names = wanted_topics(kafka)
    topics = _read_topics(admin, cluster, names, optional=[name for name in names if name not in essential])
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
        if in_sync < SAFE_IN_SYNC and self.replicas >= SAFE_REPLICAS:
            yield (
                f"topic {self.name} has {self.replicas} replicas and min.insync.replicas={in_sync}: a record is "
                f"confirmed when one disk has it. Set min.insync.replicas={SAFE_IN_SYNC}."
            )
        elif in_sync < SAFE_IN_SYNC and (self.replicas > 1 or n_brokers > 1):
            yield (
                f"topic {self.name} has {self.replicas} replica(s): a record is confirmed when one disk has it, and "
                f"lost with that. Use {SAFE_REPLICAS} replicas and min.insync.replicas={SAFE_IN_SYNC}."
            )
        elif in_sync == self.replicas > 1:
            yield (
                f"topic {self.name} has {self.replicas} replicas and min.insync.replicas={in_sync}: nothing can be "
                f"written while one broker is away. Use {SAFE_REPLICAS} replicas and "
                f"min.insync.replicas={SAFE_IN_SYNC}."
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
    for topic in _read_topics(*open_admin(kafka), wanted, optional=wanted):
        found = min(topic.number("max.message.bytes") or most, most)
        if found < wanted[topic.name]:
            msg = (
                f"model {card.version} makes messages of up to {wanted[topic.name]} bytes for {topic.name}, which "
                f"takes {found}. Raise the topic's max.message.bytes and XRAY_KAFKA__MAX_MESSAGE_BYTES."
            )
            raise BrokerError(msg)


def _read_topics(
    admin: AdminClient, cluster: Any, names: Iterable[str], *, optional: Container[str] = ()
) -> list[_Topic]:
    """Read topics; of an optional one whose configuration the user may not read there is a warning, and no more.

    Former releases of the stream wanted that right for the two topics that hold images alone.
    """
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
    topics = []
    for resource, future in admin.describe_configs(resources, request_timeout=TIMEOUT_S).items():
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


def read_retention_ms(kafka: KafkaSettings, name: str) -> int | None:
    """Read how long a topic keeps its records, in milliseconds; None where it keeps them, or the user may not know.

    Raises
    ------
    BrokerError
        Nobody answers.
    """
    found = [topic.number("retention.ms") for topic in _read_topics(*open_admin(kafka), (name,), optional=(name,))]
    return next((ms for ms in found if ms is not None and ms >= 0), None)


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
    admin, cluster = open_admin(kafka)
    topics = _read_topics(admin, cluster, (events, letters))
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


@dataclass(frozen=True)
class TopicFault:
    """What is not as it should be of a topic.

    Parameters
    ----------
    topic : str
        Its name.
    stops : bool
        Whether a stream refuses to start with it; otherwise it may be meant so.
    text : str
        One line that says what was found and what to do.
    is_hidden : bool
        Whether this user may not look at it: another one's stream may find all well.
    """

    topic: str
    stops: bool
    text: str
    is_hidden: bool = False


def find_topic_faults(kafka: KafkaSettings) -> list[TopicFault]:
    """Find all that `check_topics` refuses or warns of, and what is kept for a shorter time than `xray up` would set.

    Returns
    -------
    list of TopicFault
        Empty where all is well.

    Raises
    ------
    BrokerError
        Nobody answers.
    """
    admin, cluster = open_admin(kafka)
    names = wanted_topics(kafka)
    found = _judge_missing(admin, [name for name in names if name not in cluster.topics])
    largest = _largest_messages(kafka)
    for name in names:
        if name not in cluster.topics:
            continue
        try:
            [topic] = _read_topics(admin, cluster, (name,))
        except BrokerError as exc:
            stops = name in (kafka.images_topic, kafka.deadletters_topic)
            found.append(TopicFault(name, stops, str(exc), is_hidden=True))
        else:
            found += _judge(topic, kafka, largest[name], len(cluster.brokers))
    return found


def _judge_missing(admin: AdminClient, names: Sequence[str]) -> list[TopicFault]:
    """Tell topics that are not there from those that this user may not see: a list of all leaves out either."""
    found = []
    futures = admin.describe_topics(TopicCollection(list(names)), request_timeout=TIMEOUT_S) if names else {}
    for name, future in futures.items():
        try:
            future.result()
        except KafkaException as exc:
            if exc.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                text = f"topic {name} is not shown to this user. See the roles in docs/security.md."
                found.append(TopicFault(name, stops=True, text=text, is_hidden=True))
                continue
        found.append(TopicFault(name, stops=True, text=f"topic {name} is missing. Create it with 'xray up'."))
    return found


def _judge(topic: _Topic, kafka: KafkaSettings, largest: int, n_brokers: int) -> Iterator[TopicFault]:
    is_canary = topic.name in (kafka.canary_topic, kafka.canary_results_topic)
    checks: list[Callable[[], None]] = [
        partial(topic.refuse_smaller, largest, _or_lower(kafka, topic.name)),
        partial(topic.refuse_what_stops, devices_write=topic.name in (kafka.images_topic, kafka.canary_topic)),
    ]
    if not is_canary:
        checks.append(topic.refuse_what_loses)
    for check in checks:
        try:
            check()
        except BrokerError as exc:
            yield TopicFault(topic.name, stops=True, text=str(exc))
    if is_canary:
        return
    for text in topic.warnings(n_brokers, broker_time_wanted=topic.name == kafka.images_topic):
        yield TopicFault(topic.name, stops=False, text=text)
    wanted_ms, kept_ms = int(wanted_topics(kafka)[topic.name]["retention.ms"]), topic.number("retention.ms")
    if kept_ms is not None and 0 <= kept_ms < wanted_ms:
        text = (
            f"topic {topic.name} keeps records for {kept_ms / DAY_MS:.3g} days, wanted {wanted_ms / DAY_MS:.3g}: what "
            "is not read by then is gone. Raise the topic's retention.ms."
        )
        yield TopicFault(topic.name, stops=False, text=text)


def read_topic_configs(kafka: KafkaSettings, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Read the configuration of those of some topics that are there.

    Returns
    -------
    dict
        Property to value, by topic; empty for a topic whose configuration the user may not read.

    Raises
    ------
    BrokerError
        Nobody answers.
    """
    admin, cluster = open_admin(kafka)
    present = [name for name in names if name in cluster.topics]
    configs: dict[str, dict[str, str]] = {name: {} for name in present}
    if present:
        for topic in _read_topics(admin, cluster, present, optional=present):
            kept = {name: value for name, value in topic.config.items() if value is not None}
            configs[topic.name] = {**kept, "replicas": str(topic.replicas)}
    return configs
