"""KerasImageFileEstimator: training on image files, and the stage that comes out."""

import json
import logging
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import array, col, expr, lit, when

from schemas import extras
from schemas.errors import DatasetError, DependencyError, ModelLoadError, SettingsError
from schemas.extras import install_line
from sparkdl import KerasImageFileEstimator, KerasImageFileModel
from sparkdl.network.backends import import_keras

pytestmark = [
    pytest.mark.spark,
    pytest.mark.train,
    pytest.mark.skipif(find_spec("keras") is None, reason="reading Keras models needs the train extra"),
    pytest.mark.skipif(find_spec("tensorflow") is None, reason="training needs the tensorflow extra"),
]

_N_IMAGES = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("estimator")


@pytest.fixture(scope="module")
def model_file(folder: Path) -> str:
    keras = import_keras()
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((8, 10, 3)),
        keras.layers.Rescaling(1 / 64, offset=-2),
        keras.layers.Conv2D(4, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(2, activation="softmax"),
    ]
    path = folder / "start.keras"
    keras.Sequential(layers).save(path)
    return str(path)


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[tuple[str, int]]:
    """Paths of dark (0) and bright (1) images."""
    rng = np.random.default_rng(0)
    found = []
    for step in range(_N_IMAGES):
        pixels = np.clip(rng.normal(200 if step % 2 else 60, 25, (16, 20, 3)), 0, 255).astype(np.uint8)
        path = folder / f"{step}.png"
        Image.fromarray(pixels).save(path)
        found.append((str(path), step % 2))
    return found


@pytest.fixture(scope="module")
def images(spark: SparkSession, rows: list[tuple[str, int]]) -> DataFrame:
    labelled = [(uri, Vectors.dense(1.0 - label, label), label) for uri, label in rows]
    names = ["uri", "onehot", "label"]
    return spark.createDataFrame(labelled, names)


@pytest.fixture(scope="module")
def trainer(model_file: str) -> KerasImageFileEstimator:
    return KerasImageFileEstimator(
        inputCol="uri",
        outputCol="out",
        labelCol="onehot",
        modelFile=model_file,
        kerasOptimizer="adam",
        kerasLoss="categorical_crossentropy",
        kerasFitParams={"epochs": 40, "batch_size": 4},
        seed=3,
    )


@pytest.fixture(scope="module")
def fitted(trainer: KerasImageFileEstimator, images: DataFrame) -> KerasImageFileModel:
    return trainer.fit(images)


def _outputs(model: KerasImageFileModel, images: DataFrame) -> dict[str, list[float]]:
    return {row["uri"]: row["out"].toArray().tolist() for row in model.transform(images).collect()}


def _accuracy(outputs: dict[str, list[float]], rows: list[tuple[str, int]]) -> float:
    return float(np.mean([np.argmax(outputs[uri]) == label for uri, label in rows]))


def test_fitting_separates_the_classes(
    fitted: KerasImageFileModel, images: DataFrame, rows: list[tuple[str, int]], model_file: str
) -> None:
    assert len(fitted.history["loss"]) == 40
    assert fitted.history["loss"][-1] < fitted.history["loss"][0]
    assert fitted.nFailed == 0
    assert fitted.getModelFile() == model_file
    assert _accuracy(_outputs(fitted, images), rows) == 1.0


@pytest.mark.long
def test_a_seed_gives_the_same_model_and_save_and_load_keep_it(
    trainer: KerasImageFileEstimator, fitted: KerasImageFileModel, images: DataFrame, tmp_path: Path
) -> None:
    assert trainer.fit(images).history == fitted.history
    fitted.save(str(tmp_path / "stage"))
    again = KerasImageFileModel.load(str(tmp_path / "stage"))
    assert type(again) is KerasImageFileModel
    assert (again.history, again.nFailed, again.network) == (fitted.history, 0, fitted.network)
    assert _outputs(again, images) == _outputs(fitted, images)
    metadata = next((tmp_path / "stage").glob("metadata/part-*")).read_text()
    assert json.loads(metadata)["class"] == "sparkdl.KerasImageFileModel"


@pytest.mark.long
def test_parameter_maps_share_the_loaded_images(
    trainer: KerasImageFileEstimator, images: DataFrame, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"

    def load(uri: str) -> np.ndarray:
        with calls.open("a") as file:
            file.write(f"{uri}\n")
        return np.asarray(Image.open(uri).resize((10, 8)), np.float32)[np.newaxis]

    numbered = trainer.copy().setLabelCol("label").setKerasLoss("sparse_categorical_crossentropy").setImageLoader(load)
    halves = {"validation_split": 0.5, "class_weight": {0: 1.0, 1: 2.0}, "shuffle": False}
    maps = [
        {numbered.kerasOptimizer: "sgd", numbered.outputCol: "other"},
        {numbered.kerasFitParams: {"epochs": 2, **halves}},
    ]
    first, second = numbered.fit(images, maps)
    assert sorted(calls.read_text().split()) == sorted(row["uri"] for row in images.collect())
    assert (first.getOutputCol(), second.getOutputCol()) == ("other", "out")
    assert set(first.history) == {"loss"}
    assert set(second.history) == {"loss", "val_loss"}
    assert len(second.history["val_loss"]) == 2
    assert first.network.sha256 != second.network.sha256
    assert first.getImageLoader() is load
    with pytest.raises(SettingsError, match="modelFile is in a parameter map"):
        numbered.fit(images, [{numbered.modelFile: "x.keras"}])


@pytest.mark.long
def test_it_works_inside_cross_validation(trainer: KerasImageFileEstimator, images: DataFrame) -> None:
    class ByLargest(MulticlassClassificationEvaluator):  # type: ignore[misc]
        def evaluate(self, dataset: DataFrame, params: object = None) -> float:
            bright = vector_to_array("out")[1] > 0.5
            return super().evaluate(dataset.withColumn("prediction", when(bright, lit(1.0)).otherwise(0.0)))

    grid = ParamGridBuilder().addGrid(trainer.kerasFitParams, [{"epochs": 30, "batch_size": 4}]).build()
    evaluator = ByLargest(metricName="accuracy")
    cross = CrossValidator(estimator=trainer, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, parallelism=2)
    best = cross.fit(images)
    assert max(best.avgMetrics) > 0.9
    assert len(best.bestModel.history["loss"]) == 30


@pytest.mark.long
def test_images_that_fail_are_left_out_and_counted(
    trainer: KerasImageFileEstimator, images: DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    wrong = images.limit(1).withColumn("uri", lit(str(broken)))
    null = images.limit(1).withColumn("uri", expr("cast(null as string)"))
    short = trainer.copy().setKerasFitParams({"epochs": 1})
    with caplog.at_level(logging.WARNING, "sparkdl.estimators.keras"):
        model = short.fit(images.limit(6).union(wrong).union(null))
    assert model.nFailed == 2
    assert "2 of 8 images cannot be loaded" in caplog.text
    with pytest.raises(DatasetError, match=r"none of 1 images can be loaded; .*unsupported_format: no image format"):
        short.fit(wrong)


def test_labels_are_checked(trainer: KerasImageFileEstimator, images: DataFrame) -> None:
    nulls = images.withColumn("onehot", when(col("label") == 1, col("onehot")))
    with pytest.raises(DatasetError, match="20 of 40 labels are null or not a number"):
        trainer.fit(nulls)
    with pytest.raises(DatasetError, match="20 of 40 labels are null or not a number"):
        trainer.copy().setLabelCol("label").fit(images.withColumn("label", expr("nullif(label, 0)")))
    with pytest.raises(DatasetError, match="labels have 1 to 1 values, wanted 2"):
        trainer.fit(images.withColumn("onehot", array("label")))
    with pytest.raises(SettingsError, match="labelCol 'uri' is string, wanted a vector"):
        trainer.copy().setLabelCol("uri").fit(images)
    with pytest.raises(SettingsError, match="labelCol 'nothing' is not among the columns: uri, onehot, label"):
        trainer.copy().setLabelCol("nothing").fit(images)
    with pytest.raises(DatasetError, match="no rows to train on"):
        trainer.fit(images.limit(0))


def test_settings_are_checked(trainer: KerasImageFileEstimator, images: DataFrame) -> None:
    with pytest.raises(SettingsError, match=r"kerasOptimizer is 'fastest', which Keras .* does not know"):
        trainer.copy().setKerasOptimizer("fastest").fit(images)
    with pytest.raises(SettingsError, match="kerasLoss is 'least'"):
        trainer.copy().setKerasLoss("least").fit(images)
    with pytest.raises(SettingsError, match=r"kerasFitParams has \['callbacks'\], wanted a dict with batch_size"):
        trainer.copy().setKerasFitParams({"callbacks": []})
    with pytest.raises(SettingsError, match="modelFile is not set"):
        KerasImageFileEstimator(inputCol="uri", outputCol="out").fit(images)
    # Raised in the other process, and again here.
    with pytest.raises(SettingsError, match="Keras cannot train it with optimizer 'adam'"):
        trainer.copy().setKerasLoss("sparse_categorical_crossentropy").fit(images)


def test_without_tensorflow_it_says_what_to_install(
    trainer: KerasImageFileEstimator, images: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=re.escape(install_line("tensorflow"))):
        trainer.fit(images)


def test_a_model_with_code_is_refused(trainer: KerasImageFileEstimator, images: DataFrame, tmp_path: Path) -> None:
    keras = import_keras()
    path = tmp_path / "lambda.keras"
    layers = [keras.Input((8, 10, 3)), keras.layers.Lambda(lambda x: x * 2), keras.layers.Flatten()]
    keras.Sequential(layers).save(path)
    with pytest.raises(ModelLoadError, match="Lambda"):
        trainer.copy().setModelFile(str(path)).fit(images)


def test_an_estimator_is_saved_without_its_loader(
    trainer: KerasImageFileEstimator, images: DataFrame, tmp_path: Path
) -> None:
    trainer.save(str(tmp_path / "plain"))
    again = KerasImageFileEstimator.load(str(tmp_path / "plain"))
    assert (again.uid, again.getKerasFitParams()) == (trainer.uid, trainer.getKerasFitParams())
    trainer.copy().setImageLoader(lambda uri: np.zeros((8, 10, 3))).save(str(tmp_path / "own"))
    with pytest.raises(SettingsError, match="give it again with setImageLoader"):
        KerasImageFileEstimator.load(str(tmp_path / "own")).fit(images)
