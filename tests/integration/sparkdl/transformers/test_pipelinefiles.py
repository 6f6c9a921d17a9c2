"""Saved pipelines as files: what is written without a JVM is read by Spark, and the other way round."""

from pathlib import Path

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegressionModel
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession

from sparkdl import DeepImageFeaturizer
from sparkdl.transformers.pipelinefiles import Regression, load_pipeline, read_pipeline, write_pipeline
from tests.paths import FIRST_RELEASE
from training.model.classifier import ClassifierSettings, Head

pytestmark = pytest.mark.spark

_FIXTURE = FIRST_RELEASE


def _numbers(n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n_classes)
    shape = (1, 3) if n_classes == 2 else (n_classes, 3)
    return rng.normal(size=shape), rng.normal(size=shape[0])


@pytest.mark.parametrize("n_classes", [2, 4])
def test_spark_reads_what_was_written_without_it(spark: SparkSession, tmp_path: Path, n_classes: int) -> None:
    featurizer, _ = read_pipeline(_FIXTURE)
    featurizer.setParams(timingCol="seconds")
    coefficients, intercepts = _numbers(n_classes)
    params = {"maxIter": 10, "regParam": 0.05, "elasticNetParam": 0.3, "threshold": 0.25}
    write_pipeline(tmp_path / "a model", featurizer, Regression(coefficients, intercepts, params))

    first, second = PipelineModel.load(f"file://{tmp_path / 'a model'}").stages

    assert isinstance(first, DeepImageFeaturizer)
    assert first.extractParamMap() == featurizer.extractParamMap()
    assert first.network == featurizer.network
    assert isinstance(second, LogisticRegressionModel)
    assert (second.coefficientMatrix.toArray() == coefficients).all()
    assert (second.interceptVector.toArray() == intercepts).all()
    assert second.numClasses == n_classes
    found = {param.name: value for param, value in second.extractParamMap().items()}
    assert {name: found[name] for name in params} == params
    assert found["probabilityCol"] == "probability"
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    frame = spark.createDataFrame([(Vectors.dense(row.tolist()),) for row in rows], ["features"])
    said = np.array([row.probability.toArray() for row in second.transform(frame).collect()])
    np.testing.assert_allclose(said, Head(coefficients, intercepts).predict(rows), atol=1e-12)


@pytest.mark.parametrize(("n_classes", "n_zeros"), [(2, 0), (2, 3), (4, 0), (4, 11)])  # sparse where it is smaller
def test_what_spark_wrote_is_read_without_it(spark: SparkSession, tmp_path: Path, n_classes: int, n_zeros: int) -> None:
    featurizer, _ = read_pipeline(_FIXTURE)
    coefficients, intercepts = _numbers(n_classes)
    coefficients.flat[:n_zeros] = 0
    params = ClassifierSettings(class_weights=True).to_params(0.75 if n_classes == 2 else None)
    write_pipeline(tmp_path / "ours", featurizer, Regression(coefficients, intercepts, params))
    load_pipeline(spark, tmp_path / "ours").write().save(f"file://{tmp_path / 'model'}")

    first, second = read_pipeline(tmp_path / "model")

    assert (first.uid, first.network) == (featurizer.uid, featurizer.network)
    assert first.extractParamMap() == featurizer.extractParamMap()
    assert (second.coefficients == coefficients).all()
    assert (second.intercepts == intercepts).all()
    assert second.params == params
