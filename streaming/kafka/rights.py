"""Which rights each role needs at the broker, and which of them this user has: docs/security.md has the same table."""

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from schemas.errors import BrokerError
from streaming.kafka.cluster import open_admin
from streaming.settings import KafkaSettings

_WITHIN_S = 10.0
_DENIED = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)


@dataclass(frozen=True)
class Right:
    """What a role may do with one topic or group.

    Parameters
    ----------
    kind : str
        ``topic`` or ``group``.
    name : str
        Its name, or what the names begin with.
    operations : tuple of str
        As Kafka names them: ``Read``, ``Write``, ``DescribeConfigs``.
    is_prefix : bool
        Whether it is of all whose names begin so.
    """

    kind: Literal["topic", "group"]
    name: str
    operations: tuple[str, ...]
    is_prefix: bool = False


def list_roles(kafka: KafkaSettings) -> dict[str, list[Right]]:
    """List what each role needs.

    The admin, who makes topics, is none of them: it needs rights on topics that are not there.
    """
    images, predictions, features = kafka.images_topic, kafka.predictions_topic, kafka.features_topic
    letters, labels, receipts = kafka.deadletters_topic, kafka.labels_topic, kafka.receipts_topic
    canary = (kafka.canary_topic, kafka.canary_results_topic)
    return {
        "device": [_topic(images, "Write")],
        "stream": [
            _topic(images, "Read", "DescribeConfigs"),
            *[_topic(name, "Read", "Write", "DescribeConfigs") for name in (predictions, features, letters, *canary)],
            Right("group", "xray-canary-", ("Read",), is_prefix=True),
            _group("xray-reader"),
        ],
        "archive": [
            *[_topic(name, "Read", "DescribeConfigs") for name in (predictions, features, letters)],
            _group("xray-archive"),
        ],
        "consumer": [_topic(predictions, "Read"), _group("xray-watch")],
        "operator": [
            _topic(images, "Read", "Write"),
            _topic(predictions, "Read"),
            _topic(letters, "Read"),
            _group("xray-reader"),
        ],
        "gateway": [
            _topic(images, "Write"),
            _topic(receipts, "Read", "Write"),
            _topic(predictions, "Read"),
            _topic(letters, "Read"),
        ],
        "alerts": [*[_topic(name, "Read") for name in (predictions, letters, receipts)], _group("xray-alerts")],
        "page": [
            *[_topic(name, "Read") for name in (images, predictions, letters, receipts)],
            _topic(labels, "Read", "Write"),
            _group("xray-reader"),
        ],
        "reporter": [_topic(labels, "Write")],
        "reports": [
            _topic(predictions, "Read"),
            _topic(labels, "Read"),
            Right("group", "xray-reports-", ("Read",), is_prefix=True),
            _group("xray-reader"),
        ],
        "labeller": [
            _topic(labels, "Read", "DescribeConfigs"),
            _topic(kafka.labels_deadletters_topic, "Write", "DescribeConfigs"),
            _group("xray-label"),
        ],
    }


def _topic(name: str, *operations: str) -> Right:
    return Right("topic", name, operations)


def _group(name: str) -> Right:
    return Right("group", name, ("Read",))


def find_lacking(kafka: KafkaSettings) -> dict[str, list[str]]:
    """Find what this user lacks for each role; the broker itself tells what it may do, and nothing is tried.

    Returns
    -------
    dict
        By role, such as ``"Read on topic xray.images"``; empty where the user may be it. Of a topic that is not there,
        or which the user may not see, the broker tells nothing: it then lacks all rights on it.

    Raises
    ------
    BrokerError
        Nobody answers.
    """
    admin, _ = open_admin(kafka)
    roles = list_roles(kafka)
    wanted = [right for rights in roles.values() for right in rights]
    granted = _read_granted(admin, wanted)
    return {role: _list_lacking(rights, granted) for role, rights in roles.items()}


def _list_lacking(rights: Iterable[Right], granted: Mapping[Right, frozenset[str]]) -> list[str]:
    lacking = []
    for right in rights:
        missing = [one for one in right.operations if one.upper() not in _spell(granted[right])]
        if missing:
            of = "names beginning with " if right.is_prefix else ""
            lacking.append(f"{', '.join(missing)} on {right.kind} {of}{right.name}")
    return lacking


def _spell(operations: Iterable[str]) -> set[str]:
    """Give operations without the underscores that the client's names have."""
    return {one.replace("_", "").upper() for one in operations}


def _read_granted(admin: AdminClient, wanted: Iterable[Right]) -> dict[Right, frozenset[str]]:
    rights = set(wanted)
    topics = sorted({right.name for right in rights if right.kind == "topic"})
    # Any name that begins so will do to ask about all of them; no group is made by asking.
    groups = sorted({_example(right) for right in rights if right.kind == "group"})
    options: dict[str, Any] = {"include_authorized_operations": True, "request_timeout": _WITHIN_S}
    # A group for each request: the broker of one may be away.
    futures = {("topic", name): one for name, one in admin.describe_topics(TopicCollection(topics), **options).items()}
    futures |= {("group", name): admin.describe_consumer_groups([name], **options)[name] for name in groups}
    granted = {place: _read_operations(future) for place, future in futures.items()}
    return {right: granted[right.kind, _example(right)] for right in rights}


def _example(right: Right) -> str:
    return f"{right.name}doctor" if right.is_prefix else right.name


def _read_operations(future: "Future[Any]") -> frozenset[str]:
    try:
        told = future.result(_WITHIN_S + 1.0).authorized_operations
    except KafkaException as exc:
        code = exc.args[0].code()
        # Whether a group is there is told to those alone who may see it, and whoever may see one may read it but for
        # brokers that are set up by hand for it.
        if code == KafkaError.GROUP_ID_NOT_FOUND:
            return frozenset({"READ"})
        if code in (*_DENIED, KafkaError.UNKNOWN_TOPIC_OR_PART):
            return frozenset()
        msg = f"the broker does not tell this user's rights: {exc.args[0].str()}. Ask its administrators for them."
        raise BrokerError(msg) from exc
    except TimeoutError as exc:
        msg = f"the broker has not told this user's rights within {_WITHIN_S:g} s. Try again when it is less busy."
        raise BrokerError(msg) from exc
    return frozenset(one.name for one in told or ())
