"""What becomes of images when something fails in the midst of them: kills, crashes, losses, a model that changes."""

import hashlib
import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from deltalake import DeltaTable
from pyspark import SparkFiles
from pyspark.sql import SparkSession

from benchmarks.ports import find_ports
from schemas.errors import DataLossError, JobError, SettingsError
from schemas.registry import promote
from sparkdl.network.base import BIN_FILE, XML_FILE
from streaming.account.audit import audit_stream
from streaming.archive.service import run_archive
from streaming.kafka.cluster import connect_admin
from streaming.kafka.topics import create_topics
from streaming.run.service import StreamState, run_stream
from streaming.settings import StreamSettings
from tests.conftest import Trained
from tests.integration.consumers import read_topic
from tests.integration.streams import (
    change,
    drain,
    find_archives,
    outcomes,
    publish,
    read_samples,
    running,
    score,
    wait_for_count,
    wait_for_rows,
    wait_for_sample,
)
from tests.paths import ROOT
from tests.savedmodels import copy_model
from tests.stored import add_champion
from tests.testimages import good_files, png

CRASH_MARK = b"ends-its-decoder"  # see crash/sitecustomize.py

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.delta]


def publish_images(settings: StreamSettings, count: int, prefix: str = "image") -> None:
    """Publish images with ids of their own."""
    payload = good_files()["gray.png"]
    names = [f"{prefix}-{i}" for i in range(count)]
    publish(settings, {name: (payload, [("ce_id", name.encode()), ("ce_source", b"/t")]) for name in names})


def forget_last_commit(settings: StreamSettings) -> None:
    """Leave the checkpoint as a kill does between a micro-batch's last write and Spark's own commit."""
    commits = settings.checkpoints_folder / "score" / "commits"
    last = max((path for path in commits.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    last.unlink()
    (commits / f".{last.name}.crc").unlink()


def test_what_was_published_before_a_kill_is_not_published_again(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    publish_images(settings, 10)
    publish(settings, {"wrong": (b"no image", [])})
    drain(spark, settings, trained)
    first, first_dead = outcomes(settings)
    publish_images(settings, 5, "later")
    forget_last_commit(settings)

    drain(spark, settings, trained)

    predictions, dead_letters = outcomes(settings)
    assert len(predictions) == len(first) + 5
    assert len(predictions) == len({r.text("ce_id") for r in predictions}) == 15
    assert len(dead_letters) == len(first_dead) == 1
    account = audit_stream(settings)
    assert account.balanced
    assert (account.total("predicted"), account.total("dead_lettered"), account.total("repeated")) == (15, 1, 0)
    assert account.tables["predictions"].rows == 15


@pytest.mark.long
def test_the_first_batch_of_all_may_be_the_one_that_was_killed_and_only_the_rest_is_published(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    publish_images(settings, 4)
    drain(spark, settings, trained)
    # As if the kill had come before the features were published: their topic is another one now.
    other = settings.kafka.model_copy(update={"features_topic": f"{settings.kafka.features_topic}.anew"})
    create_topics(other)
    forget_last_commit(settings)
    settings = settings.model_copy(update={"kafka": other})

    score(spark, settings, trained)

    predictions, _ = outcomes(settings)
    assert len(predictions) == 4
    assert len(read_topic(other, other.features_topic)) == 4
    with pytest.raises(DataLossError, match=r"features is filled from the topic .*\.features\."):
        run_archive(settings, available_now=True)
    run_archive(settings, available_now=True, accept_loss=True)
    account = audit_stream(settings)
    assert account.balanced
    assert DeltaTable(f"{settings.tables_folder}/features").to_pyarrow_table().num_rows == 4


def test_a_lost_worker_costs_neither_the_stream_nor_an_image(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    few = settings.model_copy(update={"score": settings.score.model_copy(update={"max_images_per_batch": 30})})
    with running(spark, few, trained, archive=False) as state:
        publish_images(few, 150)
        wait_for_count(state.metrics_url, 30)
        # One that is idle is replaced without a word: kill until one was at work.
        wait_for_sample(
            state.metrics_url, "xray_query_failures_total|query=score", lambda value: value or kill_workers()
        )
        wait_for_count(state.metrics_url, 150)
    account = audit_stream(few)
    assert account.balanced
    assert (account.total("predicted"), account.total("repeated")) == (150, 0)


def kill_workers() -> bool:
    for pid in find_workers():
        os.kill(pid, signal.SIGKILL)
    return False


def find_workers() -> list[int]:
    """Processes of this session's Python workers: the children of Spark's daemon, itself a descendant of ours."""
    parents, daemons = {}, set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if b"streaming.run.workerdaemon" in (entry / "cmdline").read_bytes():
                    daemons.add(int(entry.name))
            except OSError:
                continue
    return [pid for pid in daemons if parents[pid] in daemons and is_ours(pid, parents)]


def is_ours(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False


@pytest.fixture
def crashing(spark: SparkSession) -> Iterator[None]:
    """Workers whose decoder ends its process on marked images."""
    environment = spark.sparkContext.environment
    before = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = str(ROOT / "tests" / "integration" / "crash")
    yield
    environment.pop("PYTHONPATH")
    if before is not None:
        environment["PYTHONPATH"] = before


@pytest.mark.usefixtures("crashing")
def test_an_image_that_crashes_its_decoder_becomes_a_dead_letter_and_its_batch_is_scored(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    publish_images(settings, 12)
    crashing_image = png() + CRASH_MARK
    publish(settings, {"crash": (crashing_image, [("ce_id", b"c"), ("ce_source", b"/t"), ("x-site", b"1")])})
    publish_images(settings, 12, "more")

    score(spark, settings, trained)

    predictions, dead_letters = outcomes(settings)
    assert len(predictions) == 24
    assert [(r.key, r.value, r.text("xray_reason"), r.text("x-site")) for r in dead_letters] == [
        (b"crash", crashing_image, "decoder_crash", "1")
    ]
    assert "2 times of 2" in dead_letters[0].text("__connect.errors.exception.message")
    account = audit_stream(settings)
    assert account.balanced
    assert account.total("repeated") == 0


def test_a_promoted_model_serves_from_the_next_batch_on_and_a_broken_one_never(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    for version in ("one", "two", "broken"):
        copy_model(settings.models_folder, trained.folder, version)
    network = next((settings.models_folder / "broken").rglob("network.bin"))
    network.write_bytes(network.read_bytes()[:-1])
    promote(settings.models_folder, "one")

    with running(spark, settings, None, archive=False) as state:
        publish_images(settings, 3, "first")
        wait_for_count(state.metrics_url, 3)
        started = time.monotonic()
        promote(settings.models_folder, "two")
        publish_images(settings, 1, "probe")
        wait_for_count(state.metrics_url, 4)
        gap_s = time.monotonic() - started
        wait_for_sample(state.metrics_url, "xray_model_reloads_total|result=ok", lambda value: value == 2)
        publish_images(settings, 3, "second")
        wait_for_count(state.metrics_url, 7)

        (settings.models_folder / "champion").write_text("broken\n")
        page = wait_for_sample(state.metrics_url, "xray_model_waiting", lambda value: value == 1)
        assert read_samples(page)["xray_model_reloads_total|result=failed"] >= 1
        publish_images(settings, 3, "third")
        wait_for_count(state.metrics_url, 10)

        promote(settings.models_folder, "one")  # the way back; a broken one is looked at again after half a minute
        wait_for_sample(state.metrics_url, "xray_model_reloads_total|result=ok", lambda value: value == 3)
        publish_images(settings, 3, "fourth")
        page = wait_for_count(state.metrics_url, 13)

    assert read_samples(page)["xray_model_waiting"] == 0
    assert [key for key in read_samples(page) if key.startswith("xray_model_info|") and "version=one" in key]
    predictions, _ = outcomes(settings)
    served = {r.key.decode(): json.loads(r.value)["model"]["version"] for r in predictions}
    assert {name.partition("-")[0]: version for name, version in served.items() if "probe" not in name} == {
        "first": "one",
        "second": "two",
        "third": "two",
        "fourth": "one",
    }
    assert audit_stream(settings).balanced
    print(f"one image, published with the promotion, was answered after {gap_s:.1f} s")  # noqa: T201


def test_the_network_of_a_model_that_no_longer_serves_is_gone(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    first = settings.models_folder / add_champion(settings.home).version
    copy_model(settings.models_folder, trained.folder, "two")
    sent = [Path(SparkFiles.getRootDirectory()) / name_sent(model) for model in (first, trained.folder)]

    with running(spark, settings, None, archive=False) as state:
        publish_images(settings, 1, "first")
        wait_for_count(state.metrics_url, 1)
        assert sent[0].is_dir()
        promote(settings.models_folder, "two")
        wait_for_sample(state.metrics_url, "xray_model_reloads_total|result=ok", lambda value: value == 2)
        publish_images(settings, 1, "second")
        wait_for_count(state.metrics_url, 2)
        assert [folder.exists() for folder in sent] == [False, True]
        promote(settings.models_folder, first.name)
        wait_for_sample(state.metrics_url, "xray_model_reloads_total|result=ok", lambda value: value == 3)
        publish_images(settings, 1, "third")
        wait_for_count(state.metrics_url, 3)
        assert sent[0].is_dir()

    assert not sent[0].exists()
    predictions, _ = outcomes(settings)
    versions = [json.loads(record.value or b"")["model"]["version"] for record in predictions]
    assert sorted(versions) == sorted([first.name, "two", first.name])


def name_sent(model: Path) -> str:
    """The folder that a model's network is sent in; its name is the SHA-256 of the files."""
    network = next(model.rglob("network.bin")).parent
    return (
        f"network-{hashlib.sha256((network / XML_FILE).read_bytes() + (network / BIN_FILE).read_bytes()).hexdigest()}"
    )


def test_images_that_retention_removed_unread_stop_the_start_and_are_named(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    publish_images(settings, 8)
    score(spark, settings, trained)
    publish_images(settings, 8, "lost")
    delete_all_records(settings, settings.kafka.images_topic)

    with pytest.raises(DataLossError, match=r"8 records were removed .* partition \d offsets \d+-\d+") as refused:
        run_stream(settings, model_folder=trained.folder, available_now=True)
    assert "--accept-loss" in str(refused.value)

    publish_images(settings, 2, "kept")
    run_stream(settings, model_folder=trained.folder, spark=spark, available_now=True, accept_loss=True)
    predictions, _ = outcomes(settings)
    assert len(predictions) == 10
    assert {r.key.decode() for r in predictions if b"kept" in r.key} == {"kept-0", "kept-1"}


def test_canaries_that_are_gone_are_nobodys_loss(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    canary = settings.kafka.model_copy(update={"images_topic": settings.kafka.canary_topic})
    publish(settings.model_copy(update={"kafka": canary}), {"one": (png(), [])})
    score(spark, settings, trained)
    publish(settings.model_copy(update={"kafka": canary}), {"two": (png(), [])})
    delete_all_records(settings, settings.kafka.canary_topic)
    publish_images(settings, 2)
    score(spark, settings, trained)
    predictions, _ = outcomes(settings)
    assert len(predictions) == 2


def delete_all_records(settings: StreamSettings, topic: str) -> None:
    """Do what retention does."""
    admin = connect_admin(settings.kafka)
    ends = [TopicPartition(topic, partition, -1) for partition in range(settings.kafka.partitions)]
    for future in admin.delete_records(ends).values():
        future.result()


@pytest.mark.parametrize("name", ["checkpoints", "logs"])
def test_a_folder_that_cannot_be_written_stops_the_start_and_is_named(
    settings: StreamSettings, trained: Trained, name: str
) -> None:
    blocked = settings.home / name
    blocked.write_text("a file where the folder should be")
    with pytest.raises(SettingsError, match=rf"cannot write to {blocked}: .*XRAY_HOME") as refused:
        run_stream(settings, model_folder=trained.folder, available_now=True)
    assert "\n" not in str(refused.value)


def test_tables_that_cannot_be_written_are_named_when_all_is_scored(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    (settings.home / "tables").write_text("a file where the folder should be")
    publish_images(settings, 3)
    with pytest.raises(SettingsError, match="XRAY_ARCHIVE__FOLDER") as refused:
        drain(spark, settings, trained)
    assert "\n" not in str(refused.value)
    assert len(outcomes(settings)[0]) == 3


def test_an_archive_that_cannot_start_is_started_again_and_stops_no_prediction(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    retry = settings.retry.model_copy(update={"first_wait_s": 0.1, "max_wait_s": 0.5, "give_up_s": 0.5})
    settings = settings.model_copy(update={"retry": retry})
    tables = settings.home / "tables"
    tables.write_text("a file where the folder should be")
    with running(spark, settings, trained) as state:
        publish_images(settings, 3)
        wait_for_count(state.metrics_url, 3)
        wait_for_sample(state.metrics_url, "xray_query_failures_total|query=archive", lambda value: value >= 2)
        publish_images(settings, 3, "later")
        page = wait_for_count(state.metrics_url, 6)
        assert read_samples(page)["xray_query_up|query=archive"] == 0
        tables.unlink()
        wait_for_rows(settings, predictions=6, features=6)
        wait_for_sample(state.metrics_url, "xray_query_up|query=archive", lambda value: value == 1)
    assert audit_stream(settings).tables["predictions"].rows == 6


def _block_log(table: Path) -> Callable[[], None]:
    """Put a file where the log should be; give what undoes it."""
    log, aside = table / "_delta_log", table / "aside"
    log.rename(aside)
    log.write_text("")

    def undo() -> None:
        log.unlink()
        aside.rename(log)

    return undo


def _move_away(table: Path) -> Callable[[], None]:
    aside = table.with_name("aside")
    table.rename(aside)

    def undo() -> None:
        # An append that was under way has written its file and its folders before it met that there is no table.
        shutil.rmtree(table, ignore_errors=True)
        aside.rename(table)

    return undo


def _damage_last_commit(table: Path) -> Callable[[], None]:
    last = max((table / "_delta_log").glob("*.json"))
    content = last.read_bytes()
    # Half of what somebody else writes; the archive finds it where its own next commit should be.
    broken = last.with_name(f"{int(last.stem) + 1:020}.json")
    broken.write_bytes(content[: len(content) // 2])
    return broken.unlink


@pytest.mark.parametrize("fault", [_block_log, _move_away, _damage_last_commit])
def test_a_table_that_cannot_be_written_for_a_while_stops_no_prediction_and_no_other_table(
    spark: SparkSession, settings: StreamSettings, trained: Trained, fault: Callable[[Path], Callable[[], None]]
) -> None:
    archive = settings.archive.model_copy(update={"metrics_port": find_ports()})
    retry = settings.retry.model_copy(update={"first_wait_s": 0.2, "max_wait_s": 0.5})
    settings = settings.model_copy(update={"archive": archive, "retry": retry})
    page = f"http://127.0.0.1:{archive.metrics_port}/metrics"
    with running(spark, settings, trained) as state:
        publish_images(settings, 3)
        wait_for_rows(settings, predictions=3, features=3)
        mend = fault(settings.home / "tables" / "predictions")
        publish_images(settings, 3, "meanwhile")
        wait_for_sample(page, "xray_query_failures_total|query=archive", lambda value: value >= 2)
        wait_for_rows(settings, features=6)
        assert not read_health(page)["tables"]["predictions"]["ok"]
        stream_page = wait_for_count(state.metrics_url, 6)
        assert read_samples(stream_page)["xray_query_failures_total|query=archive"] == 0  # it is the same process
        mend()
        wait_for_rows(settings, predictions=6)
        wait_for_sample(page, "xray_query_up|query=archive", lambda value: value == 1)
        health = read_health(page)
    assert health["ok"]
    assert {table["lag"] for table in health["tables"].values()} == {0}
    account = audit_stream(settings)
    assert account.balanced
    assert account.tables["predictions"].rows == 6


def read_health(page: str) -> dict[str, Any]:
    """Ask the archive how it is."""
    try:
        with urllib.request.urlopen(f"{page.removesuffix('metrics')}health") as answer:  # noqa: S310
            text, status = answer.read(), answer.status
    except urllib.error.HTTPError as exc:
        with exc:
            text, status = exc.read(), exc.code
    health: dict[str, Any] = json.loads(text)
    assert status == (200 if health["ok"] else 503)
    return health


def test_a_lost_table_is_filled_again_from_its_topic(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    publish_images(settings, 4)
    drain(spark, settings, trained)
    shutil.rmtree(settings.home / "tables" / "predictions")
    publish_images(settings, 2, "later")
    drain(spark, settings, trained)
    account = audit_stream(settings)
    assert account.balanced
    assert account.tables["predictions"].rows == 6
    assert DeltaTable(f"{settings.tables_folder}/features").to_pyarrow_table().num_rows == 6


def test_score_that_keeps_failing_ends_the_stream_in_error(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    retry = settings.retry.model_copy(update={"first_wait_s": 0.1, "give_up_s": 1.0})
    impatient = settings.model_copy(update={"retry": retry})

    def refuse_predictions(_state: StreamState) -> None:
        change(settings, settings.kafka.predictions_topic, "max.message.bytes", "100")
        publish_images(settings, 2)

    with pytest.raises(JobError, match=r"the score query ended in error: RecordTooLarge") as ended:
        run_stream(impatient, model_folder=trained.folder, spark=spark, on_ready=refuse_predictions)
    assert "\n" not in str(ended.value)
    assert not spark.streams.active
    assert find_archives() == []


def test_a_running_stream_audits_itself(spark: SparkSession, settings: StreamSettings, trained: Trained) -> None:
    audit = settings.audit.model_copy(update={"interval_s": 0.5})
    audited = settings.model_copy(update={"audit": audit})
    with running(spark, audited, trained, archive=False) as state:
        publish_images(settings, 3)
        wait_for_count(state.metrics_url, 3)
        begun = datetime.now(UTC).timestamp()
        page = wait_for_sample(state.metrics_url, "xray_last_audit_timestamp_seconds", lambda value: value > begun + 1)
        assert read_samples(page)["xray_unaccounted_records"] == 0
        assert read_samples(page)["xray_table_fault_rows"] == 0
