"""A member of the group whose joining takes longer than one poll, as it does on a machine with much to do."""

import time

import pytest
from confluent_kafka.admin import NewPartitions

from streaming.alerts.outcomereader import OutcomeReader
from streaming.kafka.cluster import connect_admin
from streaming.settings import StreamSettings
from tests.alertrecords import prediction, publish

pytestmark = [pytest.mark.kafka]

_AT_ONCE_S = 0.001
"""No answer of the broker comes within one poll."""


def test_a_member_that_polls_more_often_than_it_can_join_reads_partitions_that_are_added(
    settings: StreamSettings,
) -> None:
    kafka, group = settings.kafka, settings.alerts.group
    reader = OutcomeReader(kafka, group, "a-member")
    try:
        deadline = time.monotonic() + 60
        while not reader.holds_all:
            assert time.monotonic() < deadline, "no partitions at the start"
            reader.poll(_AT_ONCE_S)
        wanted = kafka.partitions + 1
        admin = connect_admin(kafka)
        admin.create_partitions([NewPartitions(kafka.predictions_topic, wanted)])[kafka.predictions_topic].result()
        records = [prediction(kafka, number) for number in range(200)]
        publish(kafka, *records)
        seen: set[str] = set()
        while len(seen) < len(records):
            assert time.monotonic() < deadline, f"{len(seen)} of {len(records)} were read"
            events, _ = reader.poll(_AT_ONCE_S)
            seen |= {event.event_id for event in events}
        assert reader.holds_all
    finally:
        reader.close()
