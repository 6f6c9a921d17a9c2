"""SCORE takes a short way through the pipeline; its answers are those of `PipelineModel.transform`, to the bit."""

import json
from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegressionModel, RandomForestClassifier
from pyspark.ml.feature import MinMaxScaler
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col

from schemas.modelcard import ModelCard, Novelty, read_card
from sparkdl.engine.novelty import StoredDetector, to_units
from sparkdl.image.decode import decode_image
from sparkdl.image.row import IMAGE_DDL
from sparkdl.transformers.featurizer import NOVEL_COLUMN
from streaming.run.models import load_model
from streaming.score.decision import NO_ANSWER_MARK
from streaming.score.query import ScorePlan, build_outcomes, featurizer_of
from streaming.settings import StreamSettings
from tests.conftest import Trained
from tests.testimages import good_files, wrong_files
from tests.unit.streaming.score.records import STAMP
from xray.phantom import FINDINGS, encode_png, generate_radiograph

pytestmark = pytest.mark.spark

_KAFKA_DDL = """topic string, partition int, offset bigint, timestamp timestamp, key binary,
    headers array<struct<key: string, value: binary>>, value binary"""


@pytest.fixture(scope="module")
def payloads() -> dict[str, bytes]:
    drawn = [generate_radiograph(seed, finding=FINDINGS[seed % 2], height=320, width=288) for seed in range(4)]
    return {**good_files(), **{f"drawn-{i}": encode_png(one) for i, one in enumerate(drawn)}}


@pytest.fixture(scope="module")
def images(spark: SparkSession, payloads: dict[str, bytes], trained: Trained) -> DataFrame:
    """As a user of the library has them: decoded at their own size for the network."""
    size = featurizer_of(load_model(trained.folder)).network.input_size
    rows = [(name, astuple(decode_image(payload, origin="t", size=size).image)) for name, payload in payloads.items()]
    return spark.createDataFrame(rows, f"name string, image struct<{IMAGE_DDL}>").cache()


def kafka_rows(spark: SparkSession, topic: str, payloads: dict[str, bytes | None]) -> DataFrame:
    rows = [
        (topic, i % 3, i, STAMP, bytearray(name.encode()), [], None if payload is None else bytearray(payload))
        for i, (name, payload) in enumerate(payloads.items())
    ]
    return spark.createDataFrame(rows, _KAFKA_DDL)


def with_detector(model: PipelineModel, images: DataFrame) -> PipelineModel:
    """Half of the images are unlike the others."""
    featurizer = featurizer_of(model)
    rows = featurizer.transform(images).orderBy("name").collect()
    vectors = np.array([row[featurizer.getOutputCol()].toArray() for row in rows], np.float32)
    plain = StoredDetector(to_units(vectors[::2]), 0.0, "0" * 64)
    distances = plain.measure_distances(vectors)
    return PipelineModel(
        [featurizer.setNoveltyDetector(replace(plain, threshold=float(np.median(distances)))), *model.stages[1:]]
    )


def with_scaler(model: PipelineModel, images: DataFrame) -> PipelineModel:
    """A pipeline that is no featurizer and regression."""
    featurizer, regression = model.stages
    name = featurizer.getOutputCol()
    scaler = MinMaxScaler(inputCol=name, outputCol="scaled").fit(featurizer.transform(images))
    return PipelineModel([featurizer, scaler, regression.copy({regression.featuresCol: "scaled"})])


def with_forest(model: PipelineModel, images: DataFrame) -> PipelineModel:
    featurizer = featurizer_of(model)
    labelled = featurizer.transform(images).withColumn("label", (col("name") > "m").cast("double"))
    forest = RandomForestClassifier(featuresCol=featurizer.getOutputCol(), numTrees=5, seed=1)
    return PipelineModel([featurizer, forest.fit(labelled)])


def in_bf16(model: PipelineModel, images: DataFrame) -> PipelineModel:
    featurizer = featurizer_of(model)
    network = replace(featurizer.network, precision="bf16")
    featurizer._network = network
    return model


def in_int8(model: PipelineModel, images: DataFrame) -> PipelineModel:
    return PipelineModel([featurizer_of(model).quantize(images, n_images=12), *model.stages[1:]])


Change = Callable[[PipelineModel, DataFrame], PipelineModel]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda model, images: model, id="as trained"),
        pytest.param(with_detector, id="with a detector"),
        pytest.param(in_bf16, id="bf16"),
        pytest.param(in_int8, id="int8", marks=pytest.mark.long),
        pytest.param(with_scaler, id="with a scaler"),
        pytest.param(with_forest, id="with a forest", marks=pytest.mark.long),
    ],
)
def test_answers_are_the_pipelines_own_to_the_bit(
    spark: SparkSession,
    settings: StreamSettings,
    trained: Trained,
    images: DataFrame,
    payloads: dict[str, bytes],
    change: Change,
) -> None:
    model = change(load_model(trained.folder), images)
    featurizer, card = featurizer_of(model), trained.card
    detector = featurizer.noveltyDetector
    if detector is not None:
        card = replace(card, novelty=Novelty(detector.threshold, 0.99))
    wanted = {row["name"]: row for row in model.transform(images).collect()}
    found = score(spark, settings, model, card, payloads)
    assert found.keys() == wanted.keys()
    for name, (event, features) in found.items():
        row = wanted[name]
        assert features == row[featurizer.getOutputCol()].toArray().astype(np.float32).tolist()
        assert [event["probabilities"][label] for label in card.labels] == row["probability"].toArray().tolist()
        if detector is not None:
            assert (event["label"] == "unlike_training") == row[NOVEL_COLUMN]
    if detector is not None:
        assert {row[NOVEL_COLUMN] for row in wanted.values()} == {False, True}


def score(
    spark: SparkSession, settings: StreamSettings, model: PipelineModel, card: ModelCard, payloads: dict[str, bytes]
) -> dict[str, tuple[dict[str, Any], list[float]]]:
    """Each image's prediction and features, as they would be published."""
    rows = kafka_rows(spark, settings.kafka.images_topic, dict(payloads))
    topics = settings.kafka.predictions_topic, settings.kafka.features_topic
    events: dict[str, dict[str, Any]] = {topic: {} for topic in topics}
    for row in build_outcomes(rows, model, card, settings, ScorePlan(100)).collect():
        events[row["topic"]][row["key"].decode()] = json.loads(row["value"])
    predictions, features = (events[topic] for topic in topics)
    return {
        name: (event, np.array(features[name]["features"], np.float32).tolist()) for name, event in predictions.items()
    }


def test_what_the_classifier_has_no_numbers_for_is_refused_with_its_bytes(
    spark: SparkSession, settings: StreamSettings, trained: Trained, payloads: dict[str, bytes]
) -> None:
    """A classifier whose sum is infinity less infinity; the features are sound."""
    model, card = load_model(trained.folder), read_card(trained.folder)
    broken = PipelineModel([featurizer_of(model), overflowing(spark, model.stages[-1])])
    # Not those that only another limit or a header of theirs makes wrong.
    files = {name: file for name, file in wrong_files().items() if name not in ("too_large.png", "mismatch")}
    wrong = {name: file.payload for name, file in files.items() if file.payload is not None}
    rows = kafka_rows(spark, settings.kafka.images_topic, {**payloads, **wrong})
    canaries = kafka_rows(spark, settings.kafka.canary_topic, {"canary": payloads["gray.png"]})

    with pytest.raises(Exception, match=NO_ANSWER_MARK):
        build_outcomes(rows, broken, card, settings, ScorePlan(100)).collect()
    assert build_outcomes(canaries, broken, card, settings, ScorePlan(100)).collect() == []

    kept = ScorePlan(100, keep_payloads=True)
    found = build_outcomes(rows.union(canaries), broken, card, settings, kept).collect()
    assert {row["topic"] for row in found} == {settings.kafka.deadletters_topic}
    assert {row["key"].decode(): bytes(row["value"]) for row in found} == {**payloads, **wrong}
    reasons = {
        row["key"].decode(): next(h["value"].decode() for h in row["headers"] if h["key"] == "xray_reason")
        for row in found
    }
    assert {name for name, reason in reasons.items() if reason == "no_features"} == set(payloads)
    assert len(found) == len(payloads) + len(wrong)


def overflowing(spark: SparkSession, regression: LogisticRegressionModel) -> LogisticRegressionModel:
    n_features = regression.numFeatures
    linalg = spark._jvm.org.apache.spark.ml.linalg
    huge = [1.7e308 if i % 2 else -1.7e308 for i in range(n_features)]
    array = spark.sparkContext._gateway.new_array(spark._jvm.double, n_features)
    for i, value in enumerate(huge):
        array[i] = value
    java = spark._jvm.org.apache.spark.ml.classification.LogisticRegressionModel(
        "huge", linalg.Vectors.dense(array), 0.0
    )
    model: LogisticRegressionModel = LogisticRegressionModel(java)
    return model.setFeaturesCol(regression.getFeaturesCol())
