"""What a found topic is judged by, without a broker; tests/integration/streaming/test_no_harm.py asks a real one."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas.errors import BrokerError
from streaming.gateway.receipts.receiptbook import KEPT
from streaming.kafka import topics as module
from streaming.kafka.topicchecks import _Topic
from streaming.kafka.topics import create_topics, label_topics, receipt_topics, wanted_topics
from streaming.settings import KafkaSettings

_SOUND = {
    "max.message.bytes": str(64 * 1024 * 1024),
    "cleanup.policy": "delete",
    "min.insync.replicas": "2",
    "message.timestamp.type": "LogAppendTime",
}


@pytest.mark.parametrize(("replicas", "in_sync"), [(1, "1"), (2, "1"), (3, "2"), (5, "2")])
def test_a_created_topic_says_how_many_disks_a_confirmed_record_is_on(replicas: int, in_sync: str) -> None:
    kafka = KafkaSettings(replication_factor=replicas)
    topics = wanted_topics(kafka) | label_topics(kafka)
    assert {config["cleanup.policy"] for config in topics.values()} == {"delete"}
    topics |= receipt_topics(kafka)
    assert {config["min.insync.replicas"] for config in topics.values()} == {in_sync}


def test_of_receipts_the_last_of_each_image_is_kept_for_as_long_as_its_prediction() -> None:
    kafka = KafkaSettings()
    receipts = receipt_topics(kafka)[kafka.receipts_topic]
    assert receipts["cleanup.policy"] == "compact,delete"
    assert receipts["retention.ms"] == wanted_topics(kafka)[kafka.predictions_topic]["retention.ms"]
    assert int(receipts["retention.ms"]) / 1000 == KEPT.total_seconds()


@pytest.mark.parametrize(
    ("replicas", "brokers", "in_sync", "said"),
    [
        (1, 1, "1", None),  # one machine: the documentation says what that is worth
        (1, 3, "1", "Use 3 replicas"),
        (2, 2, "1", "Use 3 replicas"),
        (2, 3, "2", "while one broker is away"),
        (3, 3, "3", "while one broker is away"),
        (3, 3, "1", "Set min.insync.replicas=2"),
        (3, 3, "2", None),
        (5, 5, "3", None),
    ],
)
def test_a_topic_whose_confirmations_one_disk_can_undo_is_warned_of(
    replicas: int, brokers: int, in_sync: str, said: str | None
) -> None:
    kafka = KafkaSettings()
    config = _SOUND | {"min.insync.replicas": in_sync}
    topic = _Topic(kafka.images_topic, config, replicas)
    topic.refuse_what_stops(devices_write=True)
    topic.refuse_what_loses()
    warnings = list(topic.warnings(brokers, broker_time_wanted=True))
    assert len(warnings) == (said is not None)
    assert all(said in one and kafka.images_topic in one for one in warnings if said)


_CREATE_TIME = _SOUND | {"message.timestamp.type": "CreateTime"}


@pytest.mark.parametrize(
    ("config", "replicas", "said"),
    [
        (_SOUND, 1, "nothing can be written"),
        (_CREATE_TIME | {"message.timestamp.after.max.ms": str((1 << 63) - 1)}, 3, "any time from its senders"),
    ],
)
def test_what_would_stop_the_stream_is_refused(config: dict[str, str], replicas: int, said: str) -> None:
    with pytest.raises(BrokerError, match=said):
        _Topic("t", config, replicas).refuse_what_stops(devices_write=True)


def test_a_senders_clock_is_warned_of_where_it_is_bounded() -> None:
    topic = _Topic("t", _CREATE_TIME | {"message.timestamp.after.max.ms": "3600000"}, 3)
    topic.refuse_what_stops(devices_write=True)
    [warning] = topic.warnings(3, broker_time_wanted=True)
    assert "wanted LogAppendTime" in warning
    assert list(topic.warnings(3, broker_time_wanted=False)) == []


def test_a_broker_that_tells_no_property_is_not_a_defect_of_this_program() -> None:
    topic = _Topic("t", {}, 3)
    topic.refuse_smaller(1)
    topic.refuse_what_stops(devices_write=True)
    topic.refuse_what_loses()
    [warning] = topic.warnings(3, broker_time_wanted=True)
    assert "min.insync.replicas" in warning


@pytest.mark.parametrize(("found", "wanted"), [(999, 1000), (0, 1)])
def test_a_topic_that_takes_too_little_is_refused(found: int, wanted: int) -> None:
    topic = _Topic("t", _SOUND | {"max.message.bytes": str(found)}, 3)
    topic.refuse_smaller(found)
    with pytest.raises(BrokerError, match=rf"up to {found} bytes, wanted {wanted}\. Raise .* or lower it\."):
        topic.refuse_smaller(wanted, " or lower it")


# --- creation ---------------------------------------------------------------------------------------------------------


def shown(*leaders: int, error: KafkaError | None = None) -> SimpleNamespace:
    """Make what a broker tells of a topic."""
    return SimpleNamespace(error=error, partitions={i: SimpleNamespace(leader=at) for i, at in enumerate(leaders)})


class SlowAdmin:
    """A fake broker that confirms topics before it shows them, as a busy one does; what it shows is told beforehand."""

    def __init__(self, answers: list[dict[str, SimpleNamespace]], existing: tuple[str, ...] = ()) -> None:
        self.answers, self.existing = answers, existing

    def create_topics(self, new: list[object], request_timeout: float) -> dict[str, "Future[None]"]:
        futures: dict[str, Future[None]] = {}
        for topic in new:
            futures[topic.topic] = future = Future()  # type: ignore[attr-defined]
            if topic.topic in self.existing:  # type: ignore[attr-defined]
                future.set_exception(KafkaException(KafkaError(KafkaError.TOPIC_ALREADY_EXISTS)))
            else:
                future.set_result(None)
        return futures

    def list_topics(self, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(topics=self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])


def create(monkeypatch: pytest.MonkeyPatch, admin: SlowAdmin) -> list[str]:
    monkeypatch.setattr(module, "open_admin", lambda _: (admin, SimpleNamespace(topics={})))
    monkeypatch.setattr(module, "_POLL_S", 0.0)
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    return create_topics(KafkaSettings(), {"a": {}, "b": {}})


@pytest.mark.parametrize(
    "first",
    [
        {},
        {"a": shown(0)},
        {"a": shown(0), "b": shown()},
        {"a": shown(0, -1), "b": shown(0, 0)},
        {"a": shown(0), "b": shown(0, error=KafkaError(KafkaError.LEADER_NOT_AVAILABLE))},
    ],
    ids=["none", "one of two", "without partitions", "without a leader", "with an error"],
)
def test_created_topics_are_waited_for_until_the_broker_shows_them(
    monkeypatch: pytest.MonkeyPatch, first: dict[str, SimpleNamespace]
) -> None:
    admin = SlowAdmin([first, first, {"a": shown(0, 0), "b": shown(0, 0)}])
    assert create(monkeypatch, admin) == ["a", "b"]
    assert len(admin.answers) == 1, "it was asked until both were there"


def test_a_topic_that_never_shows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BrokerError, match=r"not shown by the broker after 0\.2 s: b$"):
        create(monkeypatch, SlowAdmin([{"a": shown(0)}]))


def test_what_somebody_else_created_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user may have no right to see it."""
    assert create(monkeypatch, SlowAdmin([{"a": shown(0)}], existing=("b",))) == ["a", "b"]
