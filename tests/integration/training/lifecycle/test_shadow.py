"""The challenger in shadow says what Spark says: a model of a retraining, asked by Spark and from its files alone."""

import shutil
import urllib.request
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.sql import SparkSession

from schemas.registry import challenger_folder, set_challenger
from streaming.devices.publish import find_files, publish_files
from streaming.run.service import StreamState, run_stream
from streaming.settings import StreamSettings
from tests.challenger import add_labels_said
from tests.conftest import Trained
from tests.stored import add_champion, score_images
from training.data.labelfile import Confirmation
from training.data.labelstable import record_labels
from training.features.stored import read_stored
from training.lifecycle.retrain import retrain_model
from training.lifecycle.shadow import compare_shadow
from training.model.classifier import Head
from xray.monitor import Monitor

pytestmark = [pytest.mark.spark, pytest.mark.delta, pytest.mark.train]


def test_shadow_agrees_with_spark(spark: SparkSession, tmp_path: Path) -> None:
    card = add_champion(tmp_path)
    champion, tables, reports = tmp_path / "models" / card.version, str(tmp_path / "tables"), tmp_path / "reports"
    scored = score_images(tmp_path, card, 400)
    add_labels_said(tmp_path, threshold=0.7)
    labels = {
        digest: Confirmation(2, (), label, patient)
        for digest, label, patient in zip(scored.digests, scored.labels, scored.patients, strict=True)
    }
    record_labels(tables, labels)
    stored = read_stored(tables, tmp_path / "models", card.version)
    rival = retrain_model(stored, champion, card, reports_folder=reports).card
    set_challenger(tmp_path / "models", rival.version)
    folder = challenger_folder(tmp_path / "models")
    assert folder is not None

    found = compare_shadow(tables, (champion, card), (folder, rival), reports_folder=reports)

    vectors = list(zip(scored.digests, scored.features.tolist(), strict=True))
    frame = spark.createDataFrame(vectors, "sha256 string, vector array<float>")
    model = PipelineModel.load(f"file://{folder}").stages[1]
    answers = model.transform(frame.withColumn("features", array_to_vector("vector")))
    by_spark = {
        row["sha256"]: (rival.labels[int(row["prediction"])], row["probability"][1])
        for row in answers.select("sha256", "prediction", vector_to_array("probability").alias("probability")).collect()
    }
    old = 1 / (1 + np.exp(1 - scored.features[:, 1].astype(np.float64)))
    said = np.where(old >= 0.7, "ill", "normal")
    pairs = Counter(zip(said.tolist(), (by_spark[digest][0] for digest in scored.digests), strict=True))
    assert {(one, other): n for one, row in found.answers.items() for other, n in row.items() if n} == dict(pairs)
    assert pairs["normal", "ill"] > 10, "the two differ, so that there is something to agree on"
    assert found.difference is not None
    new = np.array([by_spark[digest][1] for digest in scored.digests])
    assert found.difference.mean == pytest.approx((new - old).mean(), abs=1e-9)
    by_event = {digest[:32]: by_spark[digest] for digest in scored.digests}
    assert len(found.disagreements) == 12
    for one in found.disagreements:
        assert (one.challenger, pytest.approx(one.challenger_score, abs=1e-9)) == by_event[one.event_id]
    # It has learned from all but the held-out patients, and says so of itself.
    assert found.labelled is not None
    held_out = rival.metrics["n_test"]
    assert (found.labelled.n_images, found.labelled.n_learned) == (held_out, 400 - held_out)
    assert [note for note in found.notes if "not known" in note and card.version in note]


@pytest.mark.parametrize("n_classes", [2, 3])
def test_numbers_read_from_files_are_those_that_spark_loads(
    spark: SparkSession, tmp_path: Path, n_classes: int
) -> None:
    card = add_champion(tmp_path)
    featurizer = PipelineModel.load(f"file://{tmp_path / 'models' / card.version}").stages[0]
    rng = np.random.default_rng(n_classes)
    labels = rng.integers(0, n_classes, 200)
    features = rng.standard_normal((200, 40)).astype(np.float32)
    features[:, :3] += labels[:, None]
    rows = list(zip(labels.astype(float).tolist(), features.tolist(), strict=True))
    frame = spark.createDataFrame(rows, "label double, vector array<float>")
    regression = LogisticRegression(maxIter=10, regParam=0.05, elasticNetParam=0.3)
    fitted = regression.fit(frame.withColumn("features", array_to_vector("vector")))
    folder = tmp_path / "saved"
    PipelineModel(stages=[featurizer, fitted]).write().save(f"file://{folder}")

    found = Head.read(folder)

    wanted = Head.of(PipelineModel.load(f"file://{folder}").stages[1])
    assert found.coefficients.shape == ((1, 40) if n_classes == 2 else (3, 40))
    assert np.array_equal(found.coefficients, wanted.coefficients)
    assert np.array_equal(found.intercepts, wanted.intercepts)
    assert 0 < (found.coefficients != 0).sum() < found.coefficients.size


@pytest.mark.kafka
def test_a_streams_archive_gives_its_scores_again(
    spark: SparkSession, settings: StreamSettings, trained: Trained, tmp_path: Path
) -> None:
    files = find_files([str(trained.manifest.parent)])
    assert publish_files(files, settings.kafka).failed == {}
    registry, pages = CollectorRegistry(), []
    watch = Monitor(settings, registry, model_folder=trained.folder)

    def read_page(state: StreamState) -> None:
        pages.append(urllib.request.urlopen(state.metrics_url).read().decode())  # noqa: S310

    run_stream(
        settings, model_folder=trained.folder, spark=spark, available_now=True, on_ready=read_page, registry=registry
    )

    # The page has the stream's series and those of the caller.
    assert "xray_model_info{" in pages[0]
    assert "# TYPE xray_drift_score_psi gauge" in pages[0]
    # The same model, only that it calls everything positive.
    copy = tmp_path / "copy"
    shutil.copytree(trained.folder, copy)
    alarmist = replace(trained.card, version="copy", threshold=0.0)
    found = compare_shadow(settings.tables_folder, (trained.folder, trained.card), (copy, alarmist))
    assert (found.n_images, found.n_without_vector) == (len(files), 0)
    negatives = sum(found.answers[trained.card.labels[0]].values())
    assert found.answers[trained.card.labels[0]][trained.card.positive_label] == negatives > 0
    assert len(found.disagreements) == min(negatives, 12)
    for one in found.disagreements:
        assert one.challenger_score == pytest.approx(one.champion_score, abs=1e-9)
    watch.measure()
    assert registry.get_sample_value("xray_last_monitor_timestamp_seconds") is not None
