"""`DeepImageFeaturizer` as a Spark ML stage."""

import json
import subprocess
import sys
from dataclasses import astuple
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import DataFrame, SparkSession

from schemas.errors import ModelLoadError, SettingsError
from sparkdl import DeepImageFeaturizer
from sparkdl.decode import resize_pixels
from sparkdl.engine import Engine
from sparkdl.imagerow import IMAGE_DDL, row_from_array

pytestmark = [
    pytest.mark.spark,
    pytest.mark.train,
    pytest.mark.skipif(find_spec("keras") is None, reason="building networks needs the train extra"),
]

_RNG = np.random.default_rng(3)
_PIXELS = {
    "gray": _RNG.integers(0, 256, (50, 70, 1), np.uint8),
    "bgr": _RNG.integers(0, 256, (224, 224, 3), np.uint8),
    "bgra": _RNG.integers(0, 256, (300, 200, 4), np.uint8),
}


@pytest.fixture(scope="module")
def featurizer() -> DeepImageFeaturizer:
    return DeepImageFeaturizer(
        inputCol="image", outputCol="features", modelName="EfficientNetLite0", weights="random", seed=5
    )


@pytest.fixture(scope="module")
def images(spark: SparkSession) -> DataFrame:
    rows = [(name, astuple(row_from_array(pixels, origin=name))) for name, pixels in _PIXELS.items()]
    return spark.createDataFrame([*rows, ("null", None)], f"name string, image struct<{IMAGE_DDL}>")


def test_features_are_the_engines_and_null_stays_null(featurizer: DeepImageFeaturizer, images: DataFrame) -> None:
    rows = {row["name"]: row["features"] for row in featurizer.transform(images).collect()}
    assert set(rows) == {*_PIXELS, "null"}
    assert rows["null"] is None
    engine = Engine(featurizer.network)
    for name, pixels in _PIXELS.items():
        wanted = engine.infer(resize_pixels(pixels, engine.input_size))
        np.testing.assert_array_equal(rows[name].toArray().astype(np.float32), wanted)


def test_timing_column_is_only_there_when_named(featurizer: DeepImageFeaturizer, images: DataFrame) -> None:
    timed = featurizer.copy().setTimingCol("seconds").transform(images)
    assert timed.columns == ["name", "image", "features", "seconds"]
    assert timed.where("image IS NOT NULL AND NOT seconds > 0").count() == 0
    assert featurizer.transform(images).columns == ["name", "image", "features"]


def test_the_network_runs_once_for_all_columns(featurizer: DeepImageFeaturizer, images: DataFrame) -> None:
    timed = featurizer.copy().setTimingCol("seconds").transform(images)
    plan = timed._jdf.queryExecution().executedPlan().toString()
    assert plan.count("featurize(") == 1


def test_columns_are_checked(featurizer: DeepImageFeaturizer, images: DataFrame) -> None:
    with pytest.raises(SettingsError, match="'features' is there already"):
        featurizer.transform(images.withColumnRenamed("name", "features"))
    with pytest.raises(SettingsError, match="inputCol 'image' is not among the columns: name"):
        featurizer.transform(images.select("name"))
    with pytest.raises(SettingsError, match="InceptionV3"):
        DeepImageFeaturizer(inputCol="a", outputCol="b", modelName="InceptionV4")


def test_save_and_load_keep_everything(featurizer: DeepImageFeaturizer, images: DataFrame, tmp_path: Path) -> None:
    folder = str(tmp_path / "a folder with spaces")
    Pipeline(stages=[featurizer]).fit(images).save(folder)
    [stage] = PipelineModel.load(folder).stages
    assert stage.uid == featurizer.uid
    assert stage.network == featurizer.network
    assert stage.extractParamMap() == featurizer.extractParamMap()
    # This path is in every model that was ever saved; it can never change.
    metadata = next(Path(folder).glob("stages/*/metadata/part-*")).read_text()
    assert json.loads(metadata)["class"] == "sparkdl.DeepImageFeaturizer"


def test_copy_with_another_network_builds_it_anew(featurizer: DeepImageFeaturizer) -> None:
    assert featurizer.copy().network is featurizer.network
    assert featurizer.copy({featurizer.seed: 6}).network.sha256 != featurizer.network.sha256


def test_damaged_network_is_refused(featurizer: DeepImageFeaturizer, tmp_path: Path) -> None:
    featurizer.save(str(tmp_path / "stage"))
    network = tmp_path / "stage" / "network" / "network.bin"
    network.write_bytes(network.read_bytes()[:-4])
    (network.parent / ".network.bin.crc").unlink(missing_ok=True)
    with pytest.raises(ModelLoadError, match=r"network\.bin"):
        DeepImageFeaturizer.load(str(tmp_path / "stage"))


def test_decoding_and_inference_start_without_spark() -> None:
    code = (
        "import sys, sparkdl.decode, sparkdl.engine; sys.exit(any(m.split('.')[0] == 'pyspark' for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
