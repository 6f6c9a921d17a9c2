"""What real Spark saved, scaler and all, is the same linear head when it is read without Spark."""

from pathlib import Path

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import StandardScaler
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession

from sparkdl.transformers.pipelinefiles import read_pipeline
from sparkdl.transformers.savedstages import read_head, read_network
from tests.paths import FIRST_RELEASE

pytestmark = pytest.mark.spark


@pytest.mark.parametrize(("with_mean", "with_std", "l1"), [(True, True, 0.0), (False, True, 0.2), (True, False, 0.0)])
def test_a_pipeline_with_a_scaler_is_one_linear_head(
    spark: SparkSession, tmp_path: Path, *, with_mean: bool, with_std: bool, l1: float
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    rows = rng.normal(3, 2, (60, 3)) + labels[:, None] * [1.0, -0.5, 0]
    rows[:, 2] = 4.0  # a feature that never varies
    frame = spark.createDataFrame(
        [(Vectors.dense(row.tolist()), float(label)) for row, label in zip(rows, labels, strict=True)],
        ["features", "label"],
    )
    scaler = StandardScaler(inputCol="features", outputCol="scaled", withMean=with_mean, withStd=with_std).fit(frame)
    scaled = scaler.transform(frame)
    regression = LogisticRegression(featuresCol="scaled", regParam=0.1, elasticNetParam=l1, maxIter=20).fit(scaled)
    featurizer, _ = read_pipeline(FIRST_RELEASE)
    PipelineModel(stages=[featurizer, scaler, regression]).write().save(f"file://{tmp_path / 'model'}")

    weights, intercept = read_head(tmp_path / "model").logit_of(1)

    said = [row.rawPrediction[1] for row in regression.transform(scaled).select("rawPrediction").collect()]
    np.testing.assert_allclose(rows @ weights + intercept, said, atol=1e-9)
    assert read_network(tmp_path / "model") == featurizer.network
