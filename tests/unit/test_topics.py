"""What a found topic is judged by, without a broker; tests/integration/test_no_harm.py asks a real one."""

import pytest

from schemas import envelope
from streaming.settings import KafkaSettings
from streaming.topics import CARRIED_BYTES, _Topic, label_topics, wanted_topics

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
    assert {config["min.insync.replicas"] for config in topics.values()} == {in_sync}
    for name in (kafka.images_topic, kafka.predictions_topic, kafka.labels_topic):
        assert "cleanup.policy" not in topics[name]


@pytest.mark.parametrize(
    ("replicas", "brokers", "in_sync", "said"),
    [
        (1, 1, "1", None),  # one machine: the documentation says what that is worth
        (1, 3, "1", "Use 3 replicas"),
        (2, 2, "1", "Use 3 replicas"),
        (2, 3, "2", None),
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
    for name in (kafka.images_topic, kafka.predictions_topic, kafka.features_topic, kafka.deadletters_topic):
        topic = _Topic(name, config, replicas)
        assert topic.problem(kafka) is None
        warnings = list(topic.warnings(kafka, brokers))
        assert len(warnings) == (said is not None)
        assert all(said in one and name in one for one in warnings if said)
    assert list(_Topic(kafka.canary_topic, config, replicas).warnings(kafka, brokers)) == []


def test_more_replicas_in_sync_than_there_are_is_a_problem() -> None:
    kafka = KafkaSettings()
    found = _Topic(kafka.images_topic, _SOUND, 1).problem(kafka)
    assert found is not None
    assert "nothing can be written" in found


def test_the_largest_outcome_is_what_the_contract_lets_an_image_carry() -> None:
    """Key; all headers; source and id as JSON, six bytes for one; id and time as headers once more."""
    kafka = KafkaSettings()
    key, header = envelope.MAX_KEY_BYTES, envelope.MAX_HEADER_BYTES
    assert key + envelope.MAX_HEADERS_BYTES + 2 * 6 * header + 2 * header == CARRIED_BYTES
    for name in (kafka.predictions_topic, kafka.features_topic, kafka.canary_results_topic):
        assert _Topic(name, _SOUND | {"max.message.bytes": "1048588"}, 3).problem(kafka) is None  # Kafka's own default
        assert _Topic(name, _SOUND | {"max.message.bytes": str(CARRIED_BYTES)}, 3).problem(kafka) is not None
