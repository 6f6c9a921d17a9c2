"""`DeepImageFeaturizer` as a Spark ML stage."""

import json
import subprocess
import sys
from dataclasses import astuple
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel, ParamGridBuilder, TrainValidationSplit
from pyspark.sql import DataFrame, SparkSession

from schemas.errors import ModelLoadError, SettingsError
from sparkdl import DeepImageFeaturizer
from sparkdl.engine.cache import start_engine
from sparkdl.image.pixels import resize_pixels
from sparkdl.image.row import IMAGE_DDL, row_from_array
from tests.paths import FIRST_RELEASE

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
    engine = start_engine(featurizer.network)
    for name, pixels in _PIXELS.items():
        wanted = engine.infer(resize_pixels(pixels, featurizer.network.input_size))
        np.testing.assert_array_equal(rows[name].toArray().astype(np.float32), wanted)


def test_a_broken_row_has_null_features_and_a_reason(featurizer: DeepImageFeaturizer, spark: SparkSession) -> None:
    good = astuple(row_from_array(_PIXELS["bgr"], origin="good"))
    broken = {
        "good": (good, None),
        "null": (None, "null_input: the row's value is null"),
        "short": ((*good[:5], b"12345"), "corrupt_image: data has 5 bytes, expected 150528 for 224x224x3"),
        "float": (("", 1, 1, 1, 5, b"1234"), "unsupported_format: mode is 5, expected 0 for 1 channels of 8 bits"),
        "two": (("", 1, 1, 2, 8, b"12"), "unsupported_format: nChannels is 2, expected 1, 3 or 4"),
        "sizeless": (("", None, None, 1, 0, b"1"), "corrupt_image: size is NonexNone, expected 1x1 or more"),
        "unread": (("", -1, -1, -1, -1, b""), "unsupported_format: nChannels is -1, expected 1, 3 or 4"),
    }
    rows = [(name, image) for name, (image, _) in broken.items()]
    frame = spark.createDataFrame(rows, f"name string, image struct<{IMAGE_DDL}>")
    found = featurizer.copy().setReasonCol("why").transform(frame)
    assert found.columns == ["name", "image", "features", "why"]
    by_name = {row["name"]: row for row in found.collect()}
    assert set(by_name) == set(broken), "no row may vanish"
    for name, (_, reason) in broken.items():
        assert (by_name[name]["features"] is None) == (reason is not None), name
        assert (by_name[name]["why"] or "").startswith(reason or ""), by_name[name]["why"]
    assert by_name["good"]["why"] is None


def test_features_have_each_networks_own_order_of_rows(featurizer: DeepImageFeaturizer, spark: SparkSession) -> None:
    # More rows than one Arrow batch holds, in two tasks: an image must never get its neighbour's features.
    pixels = [np.full((30 + step, 50, 3), step * 10, np.uint8) for step in range(20)]
    rows = [(step, astuple(row_from_array(value, origin=str(step)))) for step, value in enumerate(pixels)]
    frame = spark.createDataFrame(rows, f"step int, image struct<{IMAGE_DDL}>").repartition(2)
    found = {row["step"]: row["features"].toArray() for row in featurizer.transform(frame).collect()}
    engine = start_engine(featurizer.network)
    for step, value in enumerate(pixels):
        wanted = engine.infer(resize_pixels(value, featurizer.network.input_size))
        np.testing.assert_array_equal(found[step].astype(np.float32), wanted)


def test_timing_column_is_only_there_when_named(featurizer: DeepImageFeaturizer, images: DataFrame) -> None:
    timed = featurizer.copy().setTimingCol("seconds").transform(images)
    assert timed.columns == ["name", "image", "features", "seconds"]
    assert timed.where("image IS NOT NULL AND NOT seconds > 0").count() == 0
    assert featurizer.transform(images).columns == ["name", "image", "features"]


def test_the_network_runs_once_for_all_columns(featurizer: DeepImageFeaturizer, images: DataFrame) -> None:
    timed = featurizer.copy().setTimingCol("seconds").transform(images)
    plan = timed._jdf.queryExecution().executedPlan().toString()
    assert plan.count("run_network(") == 1


def test_columns_are_checked(featurizer: DeepImageFeaturizer, images: DataFrame) -> None:
    with pytest.raises(SettingsError, match="'features' is there already"):
        featurizer.transform(images.withColumnRenamed("name", "features"))
    with pytest.raises(SettingsError, match="inputCol 'image' is not among the columns: name"):
        featurizer.transform(images.select("name"))
    with pytest.raises(SettingsError, match="inputCol 'name' is string, wanted an image struct"):
        featurizer.copy().setInputCol("name").transform(images)
    with pytest.raises(SettingsError, match="'why' is there already"):
        featurizer.copy().setReasonCol("why").setTimingCol("why").transform(images)
    with pytest.raises(SettingsError, match=r"modelName is 'InceptionV4', wanted one of .*InceptionV3"):
        DeepImageFeaturizer(inputCol="a", outputCol="b", modelName="InceptionV4")
    with pytest.raises(SettingsError, match=r"scaleHint is 'BEST', wanted one of .*SCALE_AREA_AVERAGING"):
        featurizer.copy().setScaleHint("BEST")


def test_schema_is_what_comes_out(featurizer: DeepImageFeaturizer, images: DataFrame) -> None:
    stage = featurizer.copy().setReasonCol("why").setTimingCol("seconds")
    assert stage.transform(images).schema.simpleString() == stage.transformSchema(images.schema).simpleString()


def test_a_column_name_with_a_dot(featurizer: DeepImageFeaturizer, images: DataFrame) -> None:
    renamed = featurizer.copy().setInputCol("the.image").setOutputCol("the.features")
    found = renamed.transform(images.withColumnRenamed("image", "the.image"))
    assert found.columns == ["name", "the.image", "the.features"]
    assert found.where("`the.features` is null").count() == 1


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
    changed = featurizer.copy()
    assert changed.setParams(seed=featurizer.getOrDefault("seed")).network is featurizer.network
    assert changed.setParams(seed=6).network.sha256 != featurizer.network.sha256


def test_damaged_network_is_refused(featurizer: DeepImageFeaturizer, tmp_path: Path) -> None:
    featurizer.save(str(tmp_path / "stage"))
    network = tmp_path / "stage" / "network" / "network.bin"
    network.write_bytes(network.read_bytes()[:-4])
    (network.parent / ".network.bin.crc").unlink(missing_ok=True)
    with pytest.raises(ModelLoadError, match=r"network\.bin"):
        DeepImageFeaturizer.load(str(tmp_path / "stage"))


def test_a_model_of_the_first_release_still_predicts(spark: SparkSession) -> None:
    folder = FIRST_RELEASE
    model = PipelineModel.load(f"file://{folder}")
    pixels = np.full((4, 6, 3), (10, 20, 30), np.uint8)
    frame = spark.createDataFrame([(astuple(row_from_array(pixels, origin="x")),)], f"image struct<{IMAGE_DDL}>")
    row = model.transform(frame).first()
    # What that release printed.
    assert row["features"].toArray().tolist() == [10, 20, 30]
    np.testing.assert_allclose(row["probability"].toArray(), [0.0074739217131344045, 0.9925260782868656], rtol=1e-12)


_FRESH = """
import sys
from pathlib import Path
from pyspark.ml import PipelineModel
from sparkdl.spark.session import start_session

sys.modules["keras"] = sys.modules["tensorflow"] = None  # importing either is an error
spark = start_session(app_name="fresh", log_folder=Path(sys.argv[2]), master="local[1]")
model = PipelineModel.load(sys.argv[1])
images = spark.read.format("image").load(sys.argv[3])
print(len(model.transform(images).first()["features"]))
"""


def test_a_fresh_process_without_keras_loads_and_runs_it(
    featurizer: DeepImageFeaturizer, images: DataFrame, tmp_path: Path
) -> None:
    Image.fromarray(_PIXELS["bgra"][..., :3]).save(tmp_path / "a.png")
    Pipeline(stages=[featurizer]).fit(images).save(str(tmp_path / "model"))
    command = [sys.executable, "-c", _FRESH, str(tmp_path / "model"), str(tmp_path / "log"), str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("1280", 0), done.stderr


@pytest.fixture(scope="module")
def labelled(spark: SparkSession) -> DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for step in range(24):
        pixels = np.clip(rng.normal(80 if step % 2 else 170, 30, (40, 60, 3)), 0, 255).astype(np.uint8)
        rows.append((astuple(row_from_array(pixels, origin=str(step))), float(step % 2)))
    return spark.createDataFrame(rows, f"image struct<{IMAGE_DDL}>, label double").repartition(2).persist()


def test_it_works_inside_cross_validation(featurizer: DeepImageFeaturizer, labelled: DataFrame, tmp_path: Path) -> None:
    regression = LogisticRegression(maxIter=3)
    pipeline = Pipeline(stages=[featurizer, regression])
    grid = ParamGridBuilder().addGrid(regression.regParam, [0.05, 0.5]).build()
    evaluator = BinaryClassificationEvaluator()
    cross = CrossValidator(estimator=pipeline, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, seed=1)
    best = cross.fit(labelled)
    assert len(best.avgMetrics) == 2
    assert max(best.avgMetrics) > 0.9
    best.save(str(tmp_path / "cross"))
    again = CrossValidatorModel.load(str(tmp_path / "cross"))
    assert again.bestModel.stages[0].network == featurizer.network
    split = TrainValidationSplit(
        estimator=pipeline, estimatorParamMaps=grid, evaluator=evaluator, trainRatio=0.5, seed=1
    )
    assert max(split.fit(labelled).validationMetrics) > 0.9


@pytest.mark.skipif(find_spec("nncf") is None, reason="int8 needs the int8 extra (NNCF)")
def test_int8_is_calibrated_saved_and_served(
    featurizer: DeepImageFeaturizer, labelled: DataFrame, spark: SparkSession, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="precision 'int8' needs images to calibrate on"):
        featurizer.copy({featurizer.precision: "int8"}).transform(labelled)
    unread = spark.createDataFrame([(("", -1, -1, -1, -1, b""), 0.0), (None, 0.0)], labelled.schema)
    small = featurizer.quantize(unread.union(labelled), n_images=12)
    assert small.getOrDefault("precision") == small.network.precision == "int8"
    assert featurizer.network.precision == "fp32", "the original stays as it is"
    small.save(str(tmp_path / "int8"))
    loaded = DeepImageFeaturizer.load(str(tmp_path / "int8"))
    assert loaded.network == small.network
    wanted = {row["image"].origin: row["features"].toArray() for row in featurizer.transform(labelled).collect()}
    for row in loaded.transform(labelled).collect():
        a, b = wanted[row["image"].origin], row["features"].toArray()
        assert not np.array_equal(a, b)
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.97


def test_decoding_and_inference_start_without_spark() -> None:
    code = "import sys, sparkdl.image.decode, sparkdl.engine.cache; sys.exit('pyspark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
