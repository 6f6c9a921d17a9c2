"""What once did harm, on a real broker with the real stream: each kind by its number, so that it stays mended.

1. A message with a long header, or more of anything than an outcome can carry, stops nothing.
2. A topic that was made anew loses no image in silence; an aborted transaction publishes none.
3. What is confirmed is safe: topics that would lose it are refused, or warned of.
5. A row without features is no prediction.
9. A wrong state folder gives no false all-clear, and scores nothing again unasked.

4 (Spark's ports), 6 (health as the finding), 7 (black pictures) and 8 (flags on the screen) have tests of their own.
"""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import ConfigResource
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from benchmarks.ports import find_ports
from schemas import envelope
from schemas.documents import load_tables
from schemas.errors import BrokerError, DataLossError, NoCheckpointError, RepetitionError
from schemas.modelcard import hash_model_folder, write_card
from sparkdl import DeepImageFeaturizer
from sparkdl.network.backends import import_keras
from sparkdl.transformers.pipelinefiles import Regression, write_pipeline
from streaming.account.audit import audit_stream
from streaming.archive.service import run_archive
from streaming.deadletters.read import Selection
from streaming.deadletters.redrive import RedrivePlan, Skip, plan_redrive, redrive
from streaming.kafka.cluster import connect_admin
from streaming.kafka.topicchecks import check_outcome_sizes, check_topics
from streaming.kafka.topicids import IDS_FILE
from streaming.kafka.topics import create_topics, wanted_topics
from streaming.settings import StreamSettings
from tests.conftest import Trained
from tests.integration.consumers import Record
from tests.integration.streams import (
    Headers,
    change,
    drain,
    environment,
    outcomes,
    publish,
    running,
    score,
    starting,
    wait_for_count,
    wait_for_rows,
    wait_for_sample,
)
from tests.paths import FIXTURES
from tests.stored import NO_CARD, add_champion
from tests.testimages import dicom, gray_pixels, png

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.delta]

_FIXTURES = FIXTURES
_MIB = 1024 * 1024
_KIB = 1024


@pytest.fixture
def model(settings: StreamSettings) -> Trained:
    """The first release's model: three features, no training."""
    card = add_champion(settings.home)
    return Trained(settings.models_folder / card.version, card, Path())


def named(count: int, prefix: str = "image") -> dict[str, tuple[bytes | None, Headers]]:
    """Images with ids of their own."""
    ids = [f"{prefix}-{i}" for i in range(count)]
    return {name: (png(), [("ce_id", name.encode()), ("ce_source", b"/t")]) for name in ids}


def reasons(dead_letters: list[Record]) -> dict[str, str]:
    return {r.key.decode()[:40] if r.key else "": r.text("xray_reason") for r in dead_letters}


# --- 1 ----------------------------------------------------------------------------------------------------------------

_TOO_MUCH: dict[str, tuple[Headers, str]] = {
    # A control character is six in JSON: this one made a prediction that no topic takes, and the stream stood still.
    "id-of-5-MB": ([("ce_id", b"\x01" * 5 * _MIB), ("ce_source", b"/t")], "header_too_large"),
    "source": ([("ce_id", b"1"), ("ce_source", b"/" * 9 * _KIB)], "header_too_large"),
    "time": ([("ce_time", b"2" * 17 * _MIB)], "header_too_large"),
    "content-type": ([("content-type", b"image/png; " + b"a" * 9 * _KIB)], "header_too_large"),
    "trace": ([("tracestate", b"t" * 5 * _MIB)], "header_too_large"),
    "trace-twice": ([("traceparent", b"t" * 8000)] * 9, "headers_too_large"),
    "unknown": ([("x-thumbnail", b"\xff" * 9 * _KIB)], "header_too_large"),
    "name": ([("n" * 9 * _KIB, b"")], "header_too_large"),
    "a-crowd": ([("", b"")] * 8_193, "headers_too_large"),
    "one-byte-more": ([("ce_time", b"2" * (8 * _KIB - 6))], "header_too_large"),
}


def test_1_a_message_with_a_long_header_stops_nothing(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    publish(settings, {name: (png(), headers) for name, (headers, _) in _TOO_MUCH.items()})
    publish(settings, {"k" * (4 * _KIB + 1): (png(), []), **named(3)})

    drain(spark, settings, model)

    predictions, dead_letters = outcomes(settings)
    assert len(predictions) == 3
    wanted = {name: reason for name, (_, reason) in _TOO_MUCH.items()}
    assert reasons(dead_letters) == wanted | {"k" * 40: "key_too_large"}
    for record in dead_letters:
        assert record.value == png()
        headers, _ = _TOO_MUCH.get(record.key.decode() if record.key else "", ([], ""))
        if len(headers) <= envelope.MAX_KEPT_HEADERS:
            assert record.headers[: len(headers)] == headers  # the original ones, whatever their size
    assert audit_stream(settings).balanced


@pytest.mark.long
def test_1_the_largest_allowed_message_of_each_kind_passes(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    worst: Headers = [
        ("ce_id", b"\x01" * (8 * _KIB - 5)),
        ("ce_source", b"\x02" * (8 * _KIB - 9)),
        ("ce_time", b"\x03" * (8 * _KIB - 7)),
        *[("tracestate", b"\x04" * (8 * _KIB - 10))] * 4,
        ("traceparent", b"\x05" * (8 * _KIB - 11 - 8 * 8)),
    ]
    assert sum(len(name) + len(value) + 8 for name, value in worst) == envelope.MAX_HEADERS_BYTES
    largest = settings.kafka.max_message_bytes - 10 * _KIB
    publish(settings, {"k" * 4 * _KIB: (png(), worst), "image": (bytes(largest), [])})
    publish(settings, {"header": (png(), [("x", bytes(largest))])})

    drain(spark, settings, model)

    [prediction], dead_letters = outcomes(settings)
    assert json.loads(prediction.value or b"")["image"]["id"] == "\x01" * (8 * _KIB - 5)
    assert [value for name, value in prediction.headers if name in envelope.TRACE_HEADERS] == [
        value for name, value in worst if name in envelope.TRACE_HEADERS
    ]
    assert reasons(dead_letters) == {"image": "unsupported_format", "header": "header_too_large"}
    assert sorted(len(r.value or b"") + len(r.headers[0][1]) for r in dead_letters if r.key == b"header") == [
        len(png()) + largest
    ]
    assert audit_stream(settings).balanced


def test_1_what_was_small_only_while_compressed_stops_nothing(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    """A broker measures a batch as it was sent: 60 MB of zeros are some kilobytes, and their dead letter is 60 MB."""
    options = settings.kafka.to_librdkafka() | {"compression.type": "gzip", "message.max.bytes": 200_000_000}
    producer = Producer(options)
    failed: list[object] = []
    for value, headers in ((bytes(60 * _MIB), []), (png(), [("x", bytes(60 * _MIB))])):
        producer.produce(
            settings.kafka.images_topic, value, b"zeros", headers=headers, on_delivery=lambda e, _: failed.append(e)
        )
    producer.flush()
    assert failed == [None, None]
    publish(settings, named(3))

    score(spark, settings, model)

    predictions, dead_letters = outcomes(settings)
    assert len(predictions) == 3
    assert [r.text("xray_reason") for r in dead_letters] == ["record_too_large"] * 2
    assert [(r.key, r.value) for r in dead_letters] == [(None, None)] * 2
    assert all(r.headers[0][0] == "xray_input_topic" for r in dead_letters)
    assert audit_stream(settings).balanced


@pytest.mark.long
def test_1_a_backlog_of_the_largest_messages_stops_nothing(settings: StreamSettings, model: Trained) -> None:
    """In a JVM of its own: where its heap is full it ends, and with it whatever else runs there."""
    largest = settings.kafka.max_message_bytes - 10 * _KIB
    noise = np.random.default_rng(5).bytes(largest)
    for number in range(16):
        publish(settings, {f"large-{number}": (noise, [])})
    left = settings.scratch_folder / "spark-of-a-killed-stream"
    left.mkdir(parents=True)
    command = [sys.executable, "-m", "xray", "stream", "--available-now", "--model", str(model.folder)]
    subprocess.run(command, env=environment(settings), check=True, timeout=240)

    predictions, dead_letters = outcomes(settings)
    assert predictions == []
    assert [r.text("xray_reason") for r in dead_letters] == ["unsupported_format"] * 16
    assert all(r.value == noise for r in dead_letters)
    assert list(settings.scratch_folder.iterdir()) == []
    assert audit_stream(settings).balanced


@pytest.mark.long
def test_1_a_backlog_of_the_largest_plates_is_scored_by_default(settings: StreamSettings, model: Trained) -> None:
    """CR plates of 3520 x 4280 pixels and 16 bits, 30.1 MB, uncompressed."""
    pixels = np.random.default_rng(6).integers(0, 4096, (3520, 4280)).astype(np.uint16)
    plate = dicom(pixels)
    for number in range(16):
        name = f"plate-{number}"
        publish(settings, {name: (plate, [("ce_id", name.encode()), ("ce_source", b"/t")])})
    command = [sys.executable, "-m", "xray", "stream", "--available-now", "--model", str(model.folder)]
    subprocess.run(command, env=environment(settings), check=True, timeout=240)

    predictions, dead_letters = outcomes(settings)
    assert (len(predictions), dead_letters) == (16, [])
    assert {json.loads(r.value or b"")["image"]["payload_bytes"] for r in predictions} == {len(plate)}
    assert audit_stream(settings).balanced


@pytest.mark.parametrize("name", ["predictions", "features", "deadletters", "canary_results", "images"])
def test_1_a_topic_that_takes_too_little_is_named_at_the_start(settings: StreamSettings, name: str) -> None:
    topic = getattr(settings.kafka, f"{name}_topic")
    change(settings, topic, "max.message.bytes", "100000")
    with pytest.raises(BrokerError, match=rf"topic {topic} takes messages up to 100000 bytes, wanted \d+\. Raise"):
        check_topics(settings.kafka)


def test_1_a_model_whose_features_a_topic_does_not_take_is_named(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    check_outcome_sizes(settings.kafka, model.card, 131_072)
    change(settings, settings.kafka.features_topic, "max.message.bytes", str(_MIB))
    check_topics(settings.kafka)
    check_outcome_sizes(settings.kafka, model.card, 2048)
    with pytest.raises(BrokerError, match=rf"messages of up to \d+ bytes for {settings.kafka.features_topic}, which"):
        check_outcome_sizes(settings.kafka, model.card, 131_072)


# --- 2 ----------------------------------------------------------------------------------------------------------------


def make_anew(settings: StreamSettings, topic: str) -> None:
    """Delete a topic and create it again."""
    admin = connect_admin(settings.kafka)
    admin.delete_topics([topic])[topic].result()
    deadline = time.monotonic() + 20
    while topic not in create_topics(settings.kafka):  # deleting goes on for a moment
        assert time.monotonic() < deadline


@pytest.mark.parametrize("count", [4, 10, 20], ids=["shorter", "as long", "longer"])
def test_2_a_topic_made_anew_is_refused_and_its_images_are_scored_once_that_is_accepted(
    spark: SparkSession, settings: StreamSettings, model: Trained, count: int
) -> None:
    publish(settings, named(10, "old"))
    score(spark, settings, model)
    make_anew(settings, settings.kafka.images_topic)
    publish(settings, named(count, "new"))

    for _ in range(2):  # a supervisor starts it again and again
        with pytest.raises(DataLossError, match=r"of another topic of that name .*--accept-loss"):
            score(spark, settings, model)
    with pytest.raises(DataLossError, match="of another topic of that name"):
        audit_stream(settings)

    score(spark, settings, model, accept_loss=True)

    predictions, _ = outcomes(settings)
    keys = [r.key.decode() for r in predictions if r.key]
    assert sorted(keys) == sorted([*named(10, "old"), *named(count, "new")])
    account = audit_stream(settings)
    assert account.balanced
    assert (account.consumed, account.pending, account.total("repeated")) == (count, 0, 0)
    assert [path.name for path in settings.checkpoints_folder.glob("score.2*")] != []
    score(spark, settings, model)  # and from then on as always
    assert len(outcomes(settings)[0]) == 10 + count


def test_2_an_outcome_of_the_old_topic_is_no_answer_to_an_image_of_the_new_one(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    publish(settings, named(6, "old"))
    score(spark, settings, model)
    make_anew(settings, settings.kafka.images_topic)
    publish(settings, named(6, "new"))
    (settings.checkpoints_folder / "score" / IDS_FILE).unlink()  # as a checkpoint of the former release
    account = audit_stream(settings)
    assert not account.balanced
    assert account.total("predicted") == 0
    assert account.total("missing") + account.pending == 6


def test_2_a_checkpoint_of_the_former_release_goes_on(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    """Its own files: after 6 and 7 images of two partitions, without a note of Kafka's ids."""
    former = {"images_topic": "former.images", "canary_topic": "former.canary"}
    settings = settings.model_copy(update={"kafka": settings.kafka.model_copy(update=former)})
    create_topics(settings.kafka)
    checkpoint = settings.checkpoints_folder / "score"
    shutil.copytree(_FIXTURES / "checkpoint-first-release", checkpoint)
    producer = Producer(settings.kafka.to_librdkafka())
    for partition, count in enumerate((6, 7)):
        for i in range(count):
            producer.produce(settings.kafka.images_topic, png(), f"scored-{i}", partition=partition)
    producer.flush()
    publish(settings, named(3, "later"))

    score(spark, settings, model)

    assert {r.key for r in outcomes(settings)[0]} == {name.encode() for name in named(3, "later")}
    noted = json.loads((checkpoint / IDS_FILE).read_text())
    assert [*noted["topics"]] == ["former.images"]
    assert noted["cluster"]


def test_2_another_cluster_is_refused(spark: SparkSession, settings: StreamSettings, model: Trained) -> None:
    publish(settings, named(1))
    score(spark, settings, model)
    path = settings.checkpoints_folder / "score" / IDS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cluster": "another"}))
    with pytest.raises(DataLossError, match="XRAY_KAFKA__BOOTSTRAP_SERVERS"):
        score(spark, settings, model)


def test_2_outcomes_made_anew_are_refused_and_then_archived(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    publish(settings, named(4, "old"))
    drain(spark, settings, model)
    make_anew(settings, settings.kafka.predictions_topic)
    publish(settings, named(5, "new"))
    with pytest.raises(DataLossError, match=r"predictions: the table .* is filled from another topic of that name"):
        drain(spark, settings, model)
    assert count_rows(settings) == {"predictions": 4, "features": 9, "dead_letters": 0}  # the others go on
    drain(spark, settings, model, accept_loss=True)
    account = audit_stream(settings)
    assert (account.tables["predictions"].rows, account.tables["predictions"].missing) == (9, 0)


def test_2_outcomes_made_anew_under_a_running_archive_stop_that_table_alone(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    archive = settings.archive.model_copy(update={"metrics_port": find_ports()})
    settings = settings.model_copy(update={"archive": archive})
    page = f"http://127.0.0.1:{archive.metrics_port}/metrics"
    with running(spark, settings, model) as state:
        publish(settings, named(3, "old"))
        wait_for_rows(settings, predictions=3, features=3)
        make_anew(settings, settings.kafka.features_topic)
        wait_for_sample(page, "xray_query_failures_total|query=archive", lambda value: value >= 1)
        publish(settings, named(4, "new"))
        wait_for_count(state.metrics_url, 7)
        wait_for_rows(settings, predictions=7)
        assert count_rows(settings)["features"] == 3
    run_archive(settings, available_now=True, accept_loss=True)
    assert count_rows(settings) == {"predictions": 7, "features": 7, "dead_letters": 0}


def count_rows(settings: StreamSettings) -> dict[str, int]:
    return {name: DeltaTable(f"{settings.tables_folder}/{name}").count() for name in load_tables()}


def test_2_settings_that_name_another_topic_are_no_all_clear(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    publish(settings, named(3))
    drain(spark, settings, model)
    kafka = settings.kafka.model_copy(update={"images_topic": f"{settings.kafka.images_topic}.other"})
    create_topics(kafka)
    wrong = settings.model_copy(update={"kafka": kafka})
    with pytest.raises(DataLossError, match=rf"of other topics: {settings.kafka.images_topic}\. If the settings"):
        audit_stream(wrong)
    with pytest.raises(DataLossError, match="of other topics"):
        drain(spark, wrong, model)
    drain(spark, settings, model)
    assert audit_stream(settings).balanced


def test_2_a_topic_that_lost_its_end_is_scored_again_only_when_asked(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    """As after an unclean election: the same topic, by its id, ends before the checkpoint's place."""
    publish(settings, named(5))
    score(spark, settings, model)
    offsets = settings.checkpoints_folder / "score" / "offsets"
    last = max((path for path in offsets.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    *head, places = last.read_text().splitlines()
    ahead = json.loads(places)
    ahead[settings.kafka.images_topic] = {p: end + 9 for p, end in ahead[settings.kafka.images_topic].items()}
    last.write_text("\n".join([*head, json.dumps(ahead)]))
    (offsets / f".{last.name}.crc").unlink()

    with pytest.raises(DataLossError, match=r"partition \d offsets \d+-\d+.*ahead of the topic's end.*--accept-loss"):
        score(spark, settings, model)
    with pytest.raises(RepetitionError, match="5 images"):
        score(spark, settings, model, accept_loss=True)
    assert len(outcomes(settings)[0]) == 5
    score(spark, settings, model, from_beginning=True)
    assert len(outcomes(settings)[0]) == 10


def test_2_a_redrive_tells_a_record_of_the_former_topic_from_one_of_this(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    everything = Selection()
    publish(settings, {"same place": (b"no image", [])})
    score(spark, settings, model)
    make_anew(settings, settings.kafka.images_topic)
    publish(settings, {"same place": (b"no image either", [])})
    score(spark, settings, model, accept_loss=True)

    def plan() -> RedrivePlan:
        return plan_redrive(settings.kafka, everything, max_payload_bytes=1000)

    first = plan()
    assert len(first.chosen) == 2
    newest = max(first.chosen, key=lambda place: place.offset)
    first.chosen = {newest: first.chosen[newest]}
    assert len(redrive(settings.kafka, first).delivered) == 1
    left = plan()
    assert [*left.chosen] != [newest]
    assert (len(left.chosen), left.skipped[Skip.ALREADY_REDRIVEN]) == (1, 1)


def test_2_a_running_stream_ends_when_its_topic_is_made_anew(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    publish(settings, named(5, "old"))
    with starting(spark, settings, model, archive=False) as stream:
        make_anew(settings, settings.kafka.images_topic)
        publish(settings, named(30, "new"))
        stream.thread.join(120)
        assert not stream.thread.is_alive()
    [error] = stream.errors
    assert isinstance(error, DataLossError)
    assert "of another topic of that name" in str(error)


def test_2_images_of_an_aborted_transaction_are_not_scored(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    topic = settings.kafka.images_topic
    producer = Producer(settings.kafka.to_librdkafka() | {"transactional.id": topic})
    producer.init_transactions()
    for name, finish in (
        ("kept", producer.commit_transaction),
        ("dropped", producer.abort_transaction),
        ("kept-too", producer.commit_transaction),
    ):
        producer.begin_transaction()
        for i in range(3):
            producer.produce(topic, png(), f"{name}-{i}", headers={"ce_id": f"{name}-{i}", "ce_source": "/t"})
        producer.flush()
        finish()

    score(spark, settings, model)

    predictions, dead_letters = outcomes(settings)
    wanted = [f"{name}-{i}" for name in ("kept", "kept-too") for i in range(3)]
    assert sorted(r.key.decode() for r in predictions if r.key) == sorted(wanted)
    assert dead_letters == []
    account = audit_stream(settings)
    assert account.balanced
    assert (account.consumed, account.pending) == (6, 0)


# --- 3 ----------------------------------------------------------------------------------------------------------------


def test_3_a_time_from_a_far_future_stops_nothing(settings: StreamSettings) -> None:
    """Spark fails at it, and again when the batch is done again: such a topic is refused, a bounded one warned of."""
    topic = settings.kafka.images_topic
    change(settings, topic, "message.timestamp.after.max.ms", str((1 << 63) - 1))
    check_topics(settings.kafka)
    change(settings, topic, "message.timestamp.type", "CreateTime")
    with pytest.raises(BrokerError, match=rf"topic {topic} has .*=CreateTime and takes any time from its senders"):
        check_topics(settings.kafka)


@pytest.mark.parametrize("name", ["images", "predictions", "features", "deadletters"])
@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_3_a_compacted_topic_is_refused(settings: StreamSettings, name: str, policy: str) -> None:
    topic = getattr(settings.kafka, f"{name}_topic")
    change(settings, topic, "cleanup.policy", policy)
    with pytest.raises(BrokerError, match=rf"topic {topic} has cleanup\.policy=.*, wanted delete"):
        check_topics(settings.kafka)


def test_3_a_topic_that_nothing_can_be_written_to_is_named(settings: StreamSettings) -> None:
    change(settings, settings.kafka.images_topic, "min.insync.replicas", "2")
    with pytest.raises(BrokerError, match=r"has 1 replica\(s\) and min\.insync\.replicas=2: nothing can be written"):
        check_topics(settings.kafka)


def test_3_a_devices_clock_as_the_topics_time_is_warned_of(
    settings: StreamSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="streaming.kafka.topicchecks"):
        check_topics(settings.kafka)
        assert caplog.messages == []  # what the stream creates itself
        change(settings, settings.kafka.images_topic, "message.timestamp.type", "CreateTime")
        check_topics(settings.kafka)
    assert [m for m in caplog.messages if "message.timestamp.type=CreateTime, wanted LogAppendTime" in m] != []


def test_3_the_broker_takes_what_is_wanted_of_a_topic(settings: StreamSettings) -> None:
    admin = connect_admin(settings.kafka)
    wanted = wanted_topics(settings.kafka)
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in wanted]
    found = {r.name: future.result() for r, future in admin.describe_configs(resources).items()}
    for name, config in wanted.items():
        assert config["min.insync.replicas"] == "1"
        assert {key: found[name][key].value for key in config} == config


# --- 5 ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model whose features are the pixels times 2e36: finite up to 170, as of a canary, and then not."""
    if find_spec("keras") is None:
        pytest.skip("building networks needs the train extra")
    keras = import_keras()
    inputs = keras.layers.Input((2, 2, 3))
    scaled = keras.layers.Rescaling(2e36)(inputs)
    network = keras.Model(inputs, keras.layers.Flatten()(scaled))
    folder = tmp_path_factory.mktemp("overflowing")
    network.save(folder / "network.keras")
    featurizer = DeepImageFeaturizer(
        inputCol="image", outputCol="features", modelName="custom", weights=str(folder / "network.keras")
    )
    coefficients = np.array([[1e-38, *[0.0] * 11]])
    regression = Regression(coefficients, np.array([-0.5]), {"featuresCol": "features"})
    write_pipeline(folder / "model", featurizer, regression)
    card = replace(NO_CARD, version="overflowing", network="custom", sha256=hash_model_folder(folder / "model"))
    write_card(folder / "model", card)
    return Trained(folder / "model", card, Path())


def test_5_a_row_without_features_is_a_dead_letter_with_its_bytes(
    spark: SparkSession, settings: StreamSettings, overflowing: Trained
) -> None:
    dark = png((gray_pixels() // 16).astype(np.uint8))
    bright = png(np.maximum(gray_pixels(), 200).astype(np.uint8))
    device: Headers = [("ce_source", b"/t"), ("x-site", b"\xff\x00bytes")]
    images = {f"dark-{i}": (dark, [*device, ("ce_id", b"d%d" % i)]) for i in range(4)}
    images |= {f"bright-{i}": (bright, [*device, ("ce_id", b"b%d" % i)]) for i in range(3)}
    images |= {"plain": (bright, []), "wrong": (b"no image", device)}
    publish(settings, images)
    # An image's fault is no reason to give up, however soon that is to be done for the machinery's.
    settings = settings.model_copy(update={"retry": settings.retry.model_copy(update={"give_up_s": 0.0})})

    with running(spark, settings, overflowing, archive=False):
        await_outcomes(settings, lambda predictions, dead: len(predictions) >= 4 and len(dead) >= 5)
        publish(settings, {"dark-later": (dark, device)})
        await_outcomes(settings, lambda predictions, dead: len(predictions) >= 5)

    predictions, dead_letters = outcomes(settings)
    assert sorted(r.key.decode() for r in predictions if r.key) == [*(f"dark-{i}" for i in range(4)), "dark-later"]
    assert reasons(dead_letters) == {
        **{f"bright-{i}": "no_features" for i in range(3)},
        "plain": "no_features",
        "wrong": "unsupported_format",
    }
    assert len(dead_letters) == 5
    for record in dead_letters:
        name = record.key.decode() if record.key else ""
        payload, headers = images[name]
        assert record.value == payload
        assert record.headers[: len(headers)] == headers
        if record.text("xray_reason") == "no_features":
            place = [record.text(f"xray_input_{part}") for part in ("topic", "partition", "offset")]
            identity = ["/t", name.replace("bright-", "b")] if headers else place
            digest = hashlib.sha256(bright).hexdigest()
            assert record.text("xray_event_id") == envelope.derive_event_id(*identity, digest, "dead-letter")
            assert "finite" in record.text("__connect.errors.exception.message")
    account = audit_stream(settings)
    assert account.balanced
    assert account.total("repeated") == 0


def await_outcomes(settings: StreamSettings, wanted: Callable[[list[Record], list[Record]], bool]) -> None:
    deadline = time.monotonic() + 120
    while not wanted(*outcomes(settings)):
        assert time.monotonic() < deadline, [len(found) for found in outcomes(settings)]
        threading.Event().wait(0.2)


# --- 9 ----------------------------------------------------------------------------------------------------------------


def elsewhere(settings: StreamSettings) -> StreamSettings:
    """The same topics, from a state folder that somebody mistyped."""
    return settings.model_copy(update={"home": settings.home / "mistyped"})


def test_9_an_audit_from_a_wrong_state_folder_is_no_all_clear(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    publish(settings, named(3))
    score(spark, settings, model)
    assert audit_stream(settings).balanced
    with pytest.raises(NoCheckpointError, match=r"no checkpoint in .*mistyped.*XRAY_HOME"):
        audit_stream(elsewhere(settings))
    publish(settings, named(2, "later"))
    with pytest.raises(NoCheckpointError):
        audit_stream(elsewhere(settings))
    assert audit_stream(settings).pending == 2


def test_9_a_stream_without_a_checkpoint_scores_nothing_again_unasked(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    publish(settings, named(5))
    publish(settings, {"wrong": (b"no image", [])})
    score(spark, settings, model)
    publish(settings, named(2, "later"))
    other = elsewhere(settings)

    with pytest.raises(RepetitionError, match=r"6 images of .* have an outcome already .*--from-beginning"):
        score(spark, other, model)
    assert [len(found) for found in outcomes(settings)] == [5, 1]

    score(spark, other, model, from_beginning=True)
    assert [len(found) for found in outcomes(settings)] == [12, 2]
    account = audit_stream(other)
    assert account.balanced
    assert (account.total("repeated"), account.total("repeated_under_another_id")) == (6, 0)
    # A checkpoint is there now: nothing is asked any more.
    score(spark, other, model)


def test_9_repetitions_under_another_id_are_told_apart(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    publish(settings, named(4))
    score(spark, settings, model)
    other = add_champion(settings.home, "another")
    folder = settings.models_folder / other.version
    (folder / "note").write_text("another model, by its hash")
    write_card(folder, replace(other, sha256=hash_model_folder(folder)))
    shutil.rmtree(settings.checkpoints_folder)
    score(spark, settings, Trained(folder, other, Path()), from_beginning=True)
    account = audit_stream(settings)
    assert account.balanced
    assert (account.total("repeated"), account.total("repeated_under_another_id")) == (4, 4)


def test_9_beginning_with_what_comes_next_repeats_nothing(
    spark: SparkSession, settings: StreamSettings, model: Trained
) -> None:
    publish(settings, named(2))
    score(spark, settings, model)
    latest = settings.score.model_copy(update={"starting_offsets": "latest"})
    score(spark, elsewhere(settings).model_copy(update={"score": latest}), model)
    assert len(outcomes(settings)[0]) == 2
