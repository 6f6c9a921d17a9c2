"""xray doctor and xray support beside a real broker: what is well, what is broken on purpose, and no change."""

import json
import zipfile
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from streaming.kafka.cluster import connect_admin, describe_cluster
from streaming.kafka.topics import wanted_topics
from streaming.settings import KafkaSettings, StreamSettings
from xray.doctor.broker import check_clocks, check_reach, check_rights, check_topics, read_newest
from xray.doctor.examination import examine, list_checks
from xray.doctor.finding import Verdict
from xray.support.bundle import write_bundle

pytestmark = [pytest.mark.kafka]

_PATIENT = "KOWALCZYK^ZUZANNA"


def change(kafka: KafkaSettings, topic: str, **properties: str) -> None:
    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in properties.items()
    ]
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=entries)
    admin = connect_admin(kafka)  # held: one that nobody holds ends, and its answers with it
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(30)


def publish(kafka: KafkaSettings, topic: str, payload: bytes) -> None:
    producer = Producer(kafka.to_librdkafka())
    producer.produce(topic, payload, key=_PATIENT)
    assert producer.flush(30) == 0


def test_topics_as_they_are_made_are_well(settings: StreamSettings) -> None:
    for check in (check_reach, check_topics, check_rights, check_clocks):
        assert [one for one in check(settings) if one.verdict is Verdict.FAULT] == []


def test_without_an_authorizer_every_user_may_be_every_role(settings: StreamSettings) -> None:
    """But for what is on topics that this test has not."""
    [finding] = [one for one in check_rights(settings) if one.verdict is Verdict.OK]
    for role in ("device", "stream", "archive", "consumer", "operator"):
        assert role in finding.found


def test_a_topic_that_loses_is_a_fault_and_one_that_is_short_a_warning(settings: StreamSettings) -> None:
    kafka = settings.kafka
    change(kafka, kafka.images_topic, cleanup_policy="compact")
    change(kafka, kafka.predictions_topic, retention_ms="3600000")
    verdicts = {one.found.split()[1]: one.verdict for one in check_topics(settings) if one.verdict is not Verdict.OK}
    assert verdicts[kafka.images_topic] is Verdict.FAULT
    assert verdicts[kafka.predictions_topic] is Verdict.WARNING


def test_the_newest_canary_tells_the_brokers_time(settings: StreamSettings) -> None:
    assert read_newest(settings.kafka) is None
    publish(settings.kafka, settings.kafka.canary_topic, b"x")
    assert read_newest(settings.kafka) is not None
    assert all(one.verdict is not Verdict.FAULT for one in check_clocks(settings))


def test_doctor_makes_no_topic_and_no_group(settings: StreamSettings) -> None:
    admin = connect_admin(settings.kafka)
    before = set(describe_cluster(settings.kafka).topics)
    groups = {one.group_id for one in admin.list_consumer_groups().result().valid}
    files = sorted(settings.home.rglob("*"))
    examine(settings, list_checks())
    assert set(describe_cluster(settings.kafka).topics) == before
    assert {one.group_id for one in admin.list_consumer_groups().result().valid} == groups
    assert sorted(settings.home.rglob("*")) == files


def test_a_bundle_has_the_topics_and_nothing_of_a_record(settings: StreamSettings, tmp_path: Path) -> None:
    publish(settings.kafka, settings.kafka.images_topic, _PATIENT.encode())
    bundle = write_bundle(settings, tmp_path / "bundle.zip")
    assert bundle.missing == {}
    with zipfile.ZipFile(bundle.path) as file:
        texts = {name: file.read(name).decode() for name in file.namelist()}
    assert set(json.loads(texts["topics.json"])) >= set(wanted_topics(settings.kafka))
    assert json.loads(texts["status.json"])["topics"][settings.kafka.images_topic]["messages"] == 1
    assert all(_PATIENT not in text for text in texts.values())
