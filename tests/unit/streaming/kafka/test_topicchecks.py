"""Every fault of the topics at once, without a broker; what each is judged by is in test_topics.py."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streaming.kafka import topicchecks as module
from streaming.kafka.topicchecks import TopicFault, find_topic_faults, read_topic_configs
from streaming.kafka.topics import DAY_MS, wanted_topics
from streaming.settings import KafkaSettings

KAFKA = KafkaSettings()


class ConfiguredAdmin:
    """A fake broker that tells the topics' configurations it was given, or denies them."""

    def __init__(self, configs: dict[str, dict[str, str] | None]) -> None:
        self.configs = configs
        self.hidden: set[str] = set()

    def describe_configs(self, resources: list[Any], **_: Any) -> dict[Any, "Future[Any]"]:
        return {one: self._answer(one.name) for one in resources}

    def describe_topics(self, topics: Any, **_: Any) -> dict[str, "Future[Any]"]:
        return {name: self._refuse(name) for name in topics.topic_names}

    def _refuse(self, name: str) -> "Future[Any]":
        future: Future[Any] = Future()
        denied, unknown = KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART
        future.set_exception(KafkaException(KafkaError(denied if name in self.hidden else unknown)))
        return future

    def _answer(self, name: str) -> "Future[Any]":
        future: Future[Any] = Future()
        config = self.configs[name]
        if config is None:
            future.set_exception(KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)))
        else:
            future.set_result({key: SimpleNamespace(value=value) for key, value in config.items()})
        return future


def sound() -> dict[str, dict[str, str] | None]:
    return {name: {"message.timestamp.type": "CreateTime", **config} for name, config in wanted_topics(KAFKA).items()}


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> ConfiguredAdmin:
    admin = ConfiguredAdmin(sound())

    def open_admin(_: KafkaSettings) -> tuple[Any, Any]:
        partition = SimpleNamespace(replicas=[1])
        topics = {name: SimpleNamespace(partitions={0: partition}) for name in admin.configs}
        return admin, SimpleNamespace(topics=topics, brokers={1: None})

    monkeypatch.setattr(module, "open_admin", open_admin)
    return admin


def change(broker: ConfiguredAdmin, name: str, **properties: str) -> None:
    broker.configs[name] = {**(broker.configs[name] or {}), **{k.replace("_", "."): v for k, v in properties.items()}}


def test_topics_as_they_are_created_have_no_fault(broker: ConfiguredAdmin) -> None:
    assert find_topic_faults(KAFKA) == []


def test_every_fault_is_found_and_not_the_first_alone(broker: ConfiguredAdmin) -> None:
    del broker.configs[KAFKA.features_topic]
    change(broker, KAFKA.images_topic, max_message_bytes="1000", cleanup_policy="compact")
    change(broker, KAFKA.predictions_topic, retention_ms=str(DAY_MS))
    found = find_topic_faults(KAFKA)
    assert {(one.topic, one.stops) for one in found} == {
        (KAFKA.features_topic, True),
        (KAFKA.images_topic, True),
        (KAFKA.predictions_topic, False),
    }
    texts = "\n".join(one.text for one in found)
    for said in ("is missing. Create it with 'xray up'", "up to 1000 bytes", "compaction", "1 days, wanted 30"):
        assert said in texts


def test_a_topic_that_keeps_its_records_for_ever_is_no_fault(broker: ConfiguredAdmin) -> None:
    change(broker, KAFKA.predictions_topic, retention_ms="-1")
    assert find_topic_faults(KAFKA) == []


def test_a_canary_may_be_compacted_and_short(broker: ConfiguredAdmin) -> None:
    change(broker, KAFKA.canary_topic, cleanup_policy="compact", retention_ms="1000")
    assert find_topic_faults(KAFKA) == []


@pytest.mark.parametrize(("topic", "stops"), [(KAFKA.images_topic, True), (KAFKA.features_topic, False)])
def test_a_configuration_that_may_not_be_read_stops_for_what_holds_images(
    broker: ConfiguredAdmin, topic: str, stops: bool
) -> None:
    broker.configs[topic] = None
    [fault] = find_topic_faults(KAFKA)
    assert isinstance(fault, TopicFault)
    assert (fault.topic, fault.stops, fault.is_hidden) == (topic, stops, True)
    assert "DescribeConfigs" in fault.text


def test_a_topic_that_this_user_may_not_see_is_not_called_missing(broker: ConfiguredAdmin) -> None:
    del broker.configs[KAFKA.features_topic], broker.configs[KAFKA.canary_topic]
    broker.hidden.add(KAFKA.features_topic)
    said = {one.topic: one for one in find_topic_faults(KAFKA)}
    assert said[KAFKA.features_topic].is_hidden
    assert "not shown to this user" in said[KAFKA.features_topic].text
    assert not said[KAFKA.canary_topic].is_hidden
    assert "is missing" in said[KAFKA.canary_topic].text


def test_configurations_are_of_topics_that_are_there(broker: ConfiguredAdmin) -> None:
    broker.configs[KAFKA.features_topic] = None
    found = read_topic_configs(KAFKA, [KAFKA.images_topic, KAFKA.features_topic, "other"])
    assert set(found) == {KAFKA.images_topic, KAFKA.features_topic}
    assert found[KAFKA.features_topic] == {}
    assert found[KAFKA.images_topic]["replicas"] == "1"
    assert found[KAFKA.images_topic]["retention.ms"] == str(7 * DAY_MS)
