"""Saved pipelines as one linear head, without Spark; what Spark saved is in the integration tests."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import ModelLoadError
from sparkdl.engine.activation import NoMapError
from sparkdl.transformers.pipelinefiles import Regression, read_pipeline, write_pipeline
from sparkdl.transformers.savedstages import LinearHead, read_head, read_network
from tests.paths import FIRST_RELEASE


def test_a_model_of_the_first_release_is_read() -> None:
    featurizer, regression = read_pipeline(FIRST_RELEASE)
    head = read_head(FIRST_RELEASE)
    assert (head.weights == regression.coefficients).all()
    assert (head.intercepts == regression.intercepts).all()
    assert read_network(FIRST_RELEASE) == featurizer.network


def written(folder: Path, rows: int = 1) -> Path:
    featurizer, _ = read_pipeline(FIRST_RELEASE)
    rng = np.random.default_rng(0)
    write_pipeline(folder, featurizer, Regression(rng.normal(size=(rows, 3)), rng.normal(size=rows), {}))
    return folder


def test_the_first_of_two_classes_has_the_negative_logit(tmp_path: Path) -> None:
    head = read_head(written(tmp_path / "model"))
    first, second = head.logit_of(0), head.logit_of(1)
    assert (first[0] == -second[0]).all()
    assert first[1] == -second[1]


def test_of_several_classes_no_sum_is_the_logit(tmp_path: Path) -> None:
    with pytest.raises(NoMapError, match="tells 3 classes apart"):
        read_head(written(tmp_path / "model", rows=3)).logit_of(1)


def test_scaling_is_folded_into_the_weights() -> None:
    rng = np.random.default_rng(1)
    head = LinearHead(rng.normal(size=(1, 5)), rng.normal(size=1))
    factors, offsets, x = rng.random(5), rng.normal(size=5), rng.normal(size=5)
    scaled = head.scale(factors, offsets)
    wanted = head.weights[0] @ ((x - offsets) * factors) + head.intercepts[0]
    assert scaled.weights[0] @ x + scaled.intercepts[0] == pytest.approx(wanted, abs=1e-12)


def put_between(folder: Path, name: str, **params: object) -> None:
    """Add a stage as Spark would between the two; only what is read of it."""
    _, second = sorted((folder / "stages").glob("*"))
    second.rename(second.with_name(second.name.replace("1_", "2_", 1)))
    stage = folder / "stages" / "1_Between_1"
    (stage / "metadata").mkdir(parents=True)
    metadata = {"class": name, "uid": "Between_1", "paramMap": params, "defaultParamMap": {}}
    (stage / "metadata" / "part-00000").write_text(json.dumps(metadata) + "\n", encoding="utf-8")
    vector = {"type": 1, "size": None, "indices": None, "values": [1.0, 2.0, 0.0]}
    (stage / "data").mkdir()
    pq.write_table(pa.Table.from_pylist([{"std": vector, "mean": vector}]), stage / "data" / "part-00000.parquet")


SCALER = "org.apache.spark.ml.feature.StandardScalerModel"


def test_a_stage_that_is_not_linear_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    put_between(folder, "org.apache.spark.ml.feature.Normalizer", inputCol="features", outputCol="unit")
    with pytest.raises(NoMapError, match="has Normalizer where StandardScalerModel"):
        read_head(folder)


def test_a_stage_that_nobody_reads_is_told(tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    put_between(folder, SCALER, inputCol="features", outputCol="scaled", withStd=True, withMean=False)
    with pytest.raises(NoMapError, match="reads the column 'features', and the one before it writes 'scaled'"):
        read_head(folder)


def test_a_damaged_classifier_is_told(tmp_path: Path) -> None:
    folder = written(tmp_path / "model")
    [part] = folder.glob("stages/1_*/data/part-*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ModelLoadError, match="cannot be read"):
        read_head(folder)
