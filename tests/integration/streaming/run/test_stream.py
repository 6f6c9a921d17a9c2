"""The stream end to end, with a real broker, Spark and Delta: every record in is one outcome out."""

import hashlib
import json
import shutil
from dataclasses import astuple
from itertools import islice

import duckdb
import jsonschema
import pytest
from deltalake import DeltaTable
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from schemas.documents import load_schema, load_tables
from schemas.envelope import DISCLAIMER
from schemas.errors import ModelLoadError, SettingsError
from sparkdl.image.decode import decode_image
from sparkdl.image.row import IMAGE_DDL
from streaming.account.audit import audit_stream
from streaming.devices.publish import find_files, publish_files
from streaming.results.watch import watch_predictions
from streaming.run.service import run_stream
from streaming.score.query import featurizer_of
from streaming.settings import StreamSettings
from tests.conftest import Trained
from tests.integration.consumers import read_topic
from tests.integration.streams import Headers, drain, outcomes, publish, read_samples, running, score, wait_for_count
from tests.testimages import MAX_PAYLOAD_BYTES, good_files, png, wrong_files

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.delta]


def test_every_record_is_one_outcome_and_every_message_keeps_its_contract(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    score = settings.score.model_copy(update={"max_payload_bytes": MAX_PAYLOAD_BYTES})
    settings = settings.model_copy(update={"score": score})
    good, wrong = good_files(), wrong_files()
    extra: Headers = [("x-site", b"\xff\x00bytes"), ("traceparent", b"00-abc-def-01")]
    messages: dict[str, tuple[bytes | None, Headers]] = {name: (payload, extra) for name, payload in good.items()}
    for name, file in wrong.items():
        declared: Headers = [("content-type", file.content_type.encode())] if file.content_type else []
        messages[f"wrong-{name}"] = (file.payload, [*extra, *declared])
    messages["wrong-header"] = (png(), [*extra, ("content-type", b"\xff\xfe")])
    publish(settings, messages)

    drain(spark, settings, trained)

    predictions, dead_letters = outcomes(settings)
    features = read_topic(settings.kafka, settings.kafka.features_topic)
    assert sorted(r.key.decode() for r in predictions) == sorted(good)
    assert sorted(r.key.decode() for r in features) == sorted(good)
    wanted = {f"wrong-{name}": file.reason.value for name, file in wrong.items()} | {"wrong-header": "invalid_header"}
    assert {r.key.decode(): r.text("xray_reason") for r in dead_letters} == wanted
    assert len(dead_letters) == len(wanted)

    for record in predictions:
        jsonschema.validate(json.loads(record.value), load_schema("prediction"))
        jsonschema.validate({k: v.decode() for k, v in record.headers}, load_schema("outcome_headers"))
        assert record.text("traceparent") == "00-abc-def-01"
        assert json.loads(record.value)["disclaimer"] == DISCLAIMER
    for record in features:
        jsonschema.validate(json.loads(record.value), load_schema("features"))
    for record in dead_letters:
        payload, headers = messages[record.key.decode()]
        assert record.value == payload
        assert record.headers[: len(headers)] == headers
        added = {k: v.decode() for k, v in record.headers[len(headers) :]}
        jsonschema.validate(added, load_schema("dead_letter_headers"))

    account = audit_stream(settings)
    assert account.balanced
    assert (account.total("predicted"), account.total("dead_lettered")) == (len(good), len(wanted))
    assert (account.pending, account.total("repeated")) == (0, 0)
    assert account.tables["predictions"].rows == len(good)
    assert account.tables["dead_letters"].rows == len(wanted)


def test_tables_open_without_spark(spark: SparkSession, settings: StreamSettings, trained: Trained) -> None:
    publish(settings, {"a": (png(), []), "b": (b"no image", [])})
    drain(spark, settings, trained)

    for name, table in load_tables().items():
        opened = DeltaTable(f"{settings.tables_folder}/{name}")
        assert [field.name for field in opened.schema().fields] == list(table.columns)
        dataset = opened.to_pyarrow_dataset()
        rows = duckdb.sql("SELECT event_id, input_offset, date FROM dataset").fetchall()
        assert len(rows) == 1, name
        assert dataset.count_rows() == 1
    [row] = DeltaTable(f"{settings.tables_folder}/predictions").to_pyarrow_table().to_pylist()
    assert row["sha256"] == hashlib.sha256(png()).hexdigest()
    assert row["score"] == dict(row["probabilities"])[row["positive_label"]]
    assert row["received_at"] <= row["scored_at"]


def test_streamed_predictions_equal_the_saved_model_applied_offline(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    files = find_files([str(trained.manifest.parent)])
    assert publish_files(files, settings.kafka).failed == {}
    score(spark, settings, trained)
    predictions, _ = outcomes(settings)
    streamed = {json.loads(r.value)["image"]["sha256"]: json.loads(r.value) for r in predictions}

    model = PipelineModel.load(str(trained.folder))
    size = featurizer_of(model).network.input_size
    images = [decode_image(file.read_bytes(), origin=file.name, size=size).image for file in files]
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    rows = [(digest, astuple(image)) for digest, image in zip(hashes, images, strict=True)]
    frame = spark.createDataFrame(rows, f"sha256 string, image struct<{IMAGE_DDL}>")
    labels = trained.card.labels

    assert len(streamed) == len(files)
    for row in model.transform(frame).select("sha256", "probability", "prediction").collect():
        event = streamed[row["sha256"]]
        assert [event["probabilities"][label] for label in labels] == pytest.approx(list(row["probability"]), abs=1e-6)
        assert event["label"] == labels[int(row["prediction"])]


@pytest.mark.long
def test_a_lost_checkpoint_repeats_ids_and_bytes_and_adds_no_row(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    publish(settings, {f"image-{i}": (payload, []) for i, payload in enumerate(good_files().values())})
    publish(settings, {"wrong": (b"no image", [])})
    drain(spark, settings, trained)
    first, first_dead = outcomes(settings)

    shutil.rmtree(settings.checkpoints_folder)
    drain(spark, settings, trained, from_beginning=True)

    again, again_dead = outcomes(settings)
    assert len(again) == 2 * len(first)
    assert len(again_dead) == 2 * len(first_dead)
    by_id: dict[str, set[bytes | None]] = {}
    for record in again:
        by_id.setdefault(record.text("ce_id"), set()).add(record.value)
    assert len(by_id) == len(first)
    assert all(len(values) == 1 for values in by_id.values())
    account = audit_stream(settings)
    assert account.balanced
    assert account.tables["predictions"].rows == len(first)
    assert account.tables["dead_letters"].rows == len(first_dead)
    assert account.total("repeated") == len(first) + len(first_dead)


def test_a_device_that_sends_one_id_for_all_images_loses_none(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    same: Headers = [("ce_specversion", b"1.0"), ("ce_id", b"1"), ("ce_source", b"/device")]
    payloads = [good_files()["gray.png"], good_files()["gray.jpg"], good_files()["gray.png"]]
    publish(settings, {f"image-{i}": (payload, same) for i, payload in enumerate(payloads)})
    drain(spark, settings, trained)

    predictions, _ = outcomes(settings)
    assert len(predictions) == 3
    # Two different images, of which one was sent twice: that is one event, and one row.
    assert len({r.text("ce_id") for r in predictions}) == 2
    assert DeltaTable(f"{settings.tables_folder}/predictions").to_pyarrow_table().num_rows == 2
    assert audit_stream(settings).balanced


def test_live_stream_answers_counts_and_ends_in_order(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    count = 60
    payload = good_files()["gray.png"]
    with running(spark, settings, trained, archive=False) as state:
        watched = watch_predictions(settings.kafka, timeout_s=60)
        next(watched)
        publish(settings, {f"image-{i}": (payload, [("ce_id", b"%d" % i), ("ce_source", b"/t")]) for i in range(count)})
        publish(settings, {"wrong": (b"no image", [])})
        seen = list(islice((p for p in watched if p), count))
        page = wait_for_count(state.metrics_url, count + 1)
        # More arrives while it is told to end: what is consumed is finished, the rest waits for the next start.
        publish(settings, {f"late-{i}": (payload, [("ce_id", b"l%d" % i), ("ce_source", b"/t")]) for i in range(count)})

    assert {p.event["image"]["id"] for p in seen} == {str(i) for i in range(count)}
    samples = read_samples(page)
    assert samples["xray_images_consumed_total"] == count + 1
    assert samples["xray_input_bytes_total"] == count * len(payload) + len(b"no image")
    label = seen[0].event["label"]
    assert samples[f"xray_predictions_total|label={label}|model={trained.card.name}"] == count
    assert samples["xray_dead_letters_total|reason=unsupported_format|stage=decode"] == 1
    assert samples["xray_decode_seconds_count"] == count + 1
    assert samples[f"xray_predict_seconds_count|model={trained.card.name}"] == count
    assert samples["xray_query_up|query=score"] == 1
    assert samples["xray_canary_seconds_count"] >= 1

    score(spark, settings, trained)
    account = audit_stream(settings)
    assert account.balanced
    assert account.total("predicted") == 2 * count
    assert account.total("repeated") == 0


def test_a_second_stream_on_the_same_checkpoints_is_refused(
    spark: SparkSession, settings: StreamSettings, trained: Trained
) -> None:
    with running(spark, settings, trained, archive=False), pytest.raises(SettingsError, match="another stream runs"):
        run_stream(settings, model_folder=trained.folder, spark=spark, available_now=True)


def test_a_changed_model_is_refused_before_anything_starts(settings: StreamSettings, trained: Trained) -> None:
    folder = settings.home / "tampered"
    shutil.copytree(trained.folder, folder)
    network = next(folder.rglob("network.bin"))
    content = bytearray(network.read_bytes())
    content[-1] ^= 1
    network.write_bytes(content)
    with pytest.raises(ModelLoadError, match="was changed after training"):
        run_stream(settings, model_folder=folder, available_now=True)
