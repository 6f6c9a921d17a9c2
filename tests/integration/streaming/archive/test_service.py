"""The archive and a real broker: where it begins, what it refuses, what it shows, and that one table stops no other."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import NewPartitions
from deltalake import DeltaTable
from kafka import KafkaConsumer
from kafka import TopicPartition as PeerPartition

from schemas.errors import DataLossError, TableClaimedError, TableError
from streaming.account.archived import find_archived, topics_by_table
from streaming.archive.service import ArchiveState, run_archive
from streaming.kafka.cluster import connect_admin
from streaming.kafka.topics import create_topics
from streaming.settings import StreamSettings
from tests.integration.streaming.archive.test_archive import (
    NAMES,
    archive,
    event_id,
    outcome,
    outcomes,
    publish,
    read_ids,
    wanted_ids,
)
from tests.integration.streams import read_samples

pytestmark = [pytest.mark.kafka, pytest.mark.delta]


@pytest.fixture
def settings(settings: StreamSettings) -> StreamSettings:
    """With a quick archive."""
    archive = settings.archive.model_copy(update={"trigger_s": 0.2, "metrics_port": 0})
    return settings.model_copy(update={"archive": archive})


def read_page(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url) as answer:  # noqa: S310
        return read_samples(answer.read().decode())


@contextmanager
def running(settings: StreamSettings, **options: bool) -> Iterator[tuple[str, list[BaseException]]]:
    """Run the archive while the body runs; give its metrics page's address, and what ended it."""
    ended, ready = threading.Event(), threading.Event()
    states: list[ArchiveState] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            run_archive(settings, ended=ended, on_ready=lambda state: (states.append(state), ready.set())[0], **options)
        except BaseException as exc:
            errors.append(exc)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(60)
        yield (states[0].metrics_url if states else ""), errors
    finally:
        ended.set()
        thread.join(60)
    assert not thread.is_alive()


def wait_until(check: Callable[[], Any], what: str) -> None:
    for _ in range(600):
        if check():
            return
        threading.Event().wait(0.05)
    pytest.fail(f"never came: {what}")


def is_filled(settings: StreamSettings, numbers: range) -> bool:
    return read_ids(settings) == wanted_ids(numbers)


def health(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url.removesuffix("metrics") + "health") as answer:  # noqa: S310
            return int(answer.status), json.load(answer)
    except urllib.error.HTTPError as exc:
        return exc.code, json.load(exc)


def remove_records(settings: StreamSettings, topic: str, before: int) -> None:
    """As retention does."""
    admin = connect_admin(settings.kafka)
    futures = admin.delete_records([TopicPartition(topic, 0, before)])
    for future in futures.values():
        future.result()


def make_anew(settings: StreamSettings, topic: str) -> None:
    admin = connect_admin(settings.kafka)
    for future in admin.delete_topics([topic]).values():
        future.result()
    wait_until(lambda: topic not in admin.list_topics(timeout=10).topics, "the topic's end")
    create_topics(settings.kafka)


def test_it_goes_on_as_outcomes_come_and_shows_how_far_it_is(settings: StreamSettings) -> None:
    publish(settings, outcomes(range(3)))
    with running(settings) as (url, errors):
        wait_until(lambda: is_filled(settings, range(3)), "the first rows")
        publish(settings, [*outcomes(range(1, 5)), outcome("predictions", 9, event_id=None)])
        wait_until(lambda: is_filled(settings, range(5)), "the others")
        wait_until(lambda: read_page(url)["xray_archived_rows_total"] == 22, "the count")
        page = read_page(url)
        by_result = {
            result: page[f"xray_archive_records_total|result={result}|table=predictions"]
            for result in ("written", "known", "nameless")
        }
        assert by_result == {"written": 5, "known": 2, "nameless": 1}
        assert page["xray_query_up|query=archive"] == 1
        topic = settings.kafka.predictions_topic
        assert page[f"xray_archive_lag_records|partition=0|table=predictions|topic={topic}"] == 0
        assert page["xray_archive_retention_left_seconds|table=features"] == 7 * 86_400
        assert page["xray_archive_retention_left_seconds|table=predictions"] == 30 * 86_400
        assert abs(page["xray_archive_last_turn_timestamp_seconds"] - time.time()) < 30
        status, state = health(url)
        assert (status, state["ok"]) == (200, True)
        assert state["tables"] == {name: {"ok": True, "lag": 0} for name in NAMES}
    assert errors == []
    assert find_archived(settings.tables_folder, settings.kafka, {topic: [0, 1]}) == {topic: {0: 8, 1: 0}}


def test_lag_tools_find_the_places_in_the_group(settings: StreamSettings) -> None:
    publish(settings, outcomes(range(3)))
    topic = settings.kafka.features_topic
    with running(settings):
        peer = KafkaConsumer(
            bootstrap_servers=settings.kafka.bootstrap_servers, group_id="xray-archive", enable_auto_commit=False
        )
        wait_until(lambda: peer.committed(PeerPartition(topic, 0)) == 3, "the group's offset")
        peer.close()


def test_a_second_one_is_refused_at_once_and_the_first_goes_on(
    settings: StreamSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.archive.service._LEASE_WAIT_S", 0.2)
    with running(settings) as (_, errors):
        with pytest.raises(TableClaimedError, match="one at a time"):
            archive(settings)
        publish(settings, outcomes(range(2)))
        wait_until(lambda: is_filled(settings, range(2)), "rows of the first")
    assert errors == []


def test_outcomes_that_are_gone_stop_their_table_alone(settings: StreamSettings) -> None:
    publish(settings, outcomes(range(2)))
    archive(settings)
    publish(settings, outcomes(range(2, 6)))
    remove_records(settings, topics_by_table(settings.kafka)["features"], before=4)
    with running(settings) as (url, errors):
        wait_until(
            lambda: read_ids(settings) == wanted_ids(range(6)) | {"features": wanted_ids(range(2))["features"]},
            "rows of the other tables",
        )
        status, state = health(url)
        assert (status, state["tables"]["features"]["ok"], state["tables"]["predictions"]["ok"]) == (503, False, True)
        assert read_page(url)["xray_query_up|query=archive"] == 0
    assert errors == []
    with pytest.raises(DataLossError, match=r"features.* partition 0 offsets 2-3.*--accept-loss"):
        archive(settings)
    archive(settings, accept_loss=True)
    assert read_ids(settings)["features"] == sorted(event_id("features", number) for number in (0, 1, 4, 5))
    archive(settings)  # and that was that


@pytest.mark.parametrize("name", NAMES)
def test_a_topic_made_anew_is_refused_at_the_start_until_somebody_says_so(settings: StreamSettings, name: str) -> None:
    publish(settings, outcomes(range(3)))
    archive(settings)
    make_anew(settings, topics_by_table(settings.kafka)[name])
    publish(settings, [outcome(name, number) for number in range(1, 8)])
    with pytest.raises(DataLossError, match="another topic of that name"):
        archive(settings)
    assert read_ids(settings) == wanted_ids(range(3))
    archive(settings, accept_loss=True)
    assert read_ids(settings) == wanted_ids(range(3)) | {name: wanted_ids(range(8))[name]}


def test_a_topic_made_anew_while_it_runs_stops_its_table(
    settings: StreamSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.archive.service._WATCH_S", 0.3)
    publish(settings, outcomes(range(3)))
    with running(settings) as (url, _):
        wait_until(lambda: is_filled(settings, range(3)), "rows")
        make_anew(settings, topics_by_table(settings.kafka)["predictions"])
        wait_until(lambda: not health(url)[1]["tables"]["predictions"]["ok"], "that it is noticed")
        publish(settings, [outcome("predictions", number) for number in range(10)])
        publish(settings, [outcome("features", 3)])
        wait_until(lambda: read_ids(settings)["features"] == wanted_ids(range(4))["features"], "the other table")
    assert read_ids(settings)["predictions"] == wanted_ids(range(3))["predictions"]


def test_partitions_that_are_added_are_read(settings: StreamSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.archive.archiver._NEW_PARTITIONS_S", 0.2)
    publish(settings, outcomes(range(2)))
    with running(settings):
        wait_until(lambda: is_filled(settings, range(2)), "rows")
        topic = topics_by_table(settings.kafka)["predictions"]
        admin = connect_admin(settings.kafka)
        for future in admin.create_partitions([NewPartitions(topic, 3)]).values():
            future.result()
        one = outcome("predictions", 7)

        def send() -> None:
            producer = Producer(settings.kafka.to_librdkafka())
            producer.produce(topic, one.value, headers=one.headers, partition=2)
            assert producer.flush(20) == 0

        wait_until(lambda: len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 3, "it")
        send()
        wait_until(lambda: event_id("predictions", 7) in read_ids(settings)["predictions"], "its row")
    assert find_archived(settings.tables_folder, settings.kafka, {topic: [0, 1, 2]}) == {topic: {0: 2, 1: 0, 2: 1}}


def test_transactions_leave_no_lag_behind(settings: StreamSettings) -> None:
    topic = topics_by_table(settings.kafka)["features"]
    producer = Producer({**settings.kafka.to_librdkafka(), "transactional.id": f"t-{topic}"})
    producer.init_transactions(30)
    for number, commits in enumerate((True, False, True)):
        producer.begin_transaction()
        one = outcome("features", number)
        producer.produce(topic, one.value, headers=one.headers, partition=0)
        (producer.commit_transaction if commits else producer.abort_transaction)(30)
    archive(settings)  # it ends: the marks of a transaction are no outcomes that are still to come
    assert read_ids(settings)["features"] == sorted(event_id("features", number) for number in (0, 2))


def test_one_table_that_cannot_be_written_stops_no_other(settings: StreamSettings) -> None:
    publish(settings, outcomes(range(2)))
    archive(settings)
    publish(settings, outcomes(range(2, 4)))
    log = Path(settings.tables_folder) / "features" / "_delta_log"
    log.rename(log.with_name("moved"))
    log.write_text("in the way", encoding="utf-8")
    with running(settings) as (url, errors):
        wait_until(
            lambda: len(DeltaTable(f"{settings.tables_folder}/dead_letters").to_pyarrow_table()) == 4,
            "another table's rows",
        )
        assert health(url)[0] == 503
        log.unlink()
        log.with_name("moved").rename(log)
        wait_until(lambda: is_filled(settings, range(4)), "the table's rows")
        wait_until(lambda: health(url)[0] == 200, "health")
    assert errors == []


def test_what_keeps_failing_ends_it_at_last(settings: StreamSettings) -> None:
    impatient = settings.model_copy(update={"retry": settings.retry.model_copy(update={"give_up_s": 0.0})})
    archive(settings)
    log = Path(settings.tables_folder) / "features" / "_delta_log"
    log.rename(log.with_name("moved"))
    log.write_text("in the way", encoding="utf-8")
    with pytest.raises(TableError, match="features"):
        archive(impatient)


def test_a_folder_that_cannot_be_one_is_told(settings: StreamSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    wrong = settings.archive.model_copy(update={"folder": str(tmp_path / "file" / "tables")})
    with pytest.raises(Exception, match="XRAY_ARCHIVE__FOLDER"):
        archive(settings.model_copy(update={"archive": wrong}))


def test_an_event_may_come_again_after_the_span_and_not_within(settings: StreamSettings) -> None:
    def at(day: str) -> list[tuple[str, bytes | None]]:
        return [("xray_input_timestamp", f"{day}T12:00:00Z".encode())]

    days = ["2026-01-31", "2026-03-07", "2025-12-27", "2026-03-08", "2025-12-26"]
    for day in days:
        publish(settings, [outcome("predictions", 1, more=at(day))])
        archive(settings)
    rows = DeltaTable(f"{settings.tables_folder}/predictions").to_pyarrow_table()
    assert sorted(str(day) for day in rows["date"].to_pylist()) == ["2025-12-26", "2026-01-31", "2026-03-08"]
    assert set(rows["event_id"].to_pylist()) == {event_id("predictions", 1)}
    archive(settings, from_beginning=True)
    assert DeltaTable(f"{settings.tables_folder}/predictions").to_pyarrow_table().num_rows == 3
