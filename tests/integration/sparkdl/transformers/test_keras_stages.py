"""`DeepImagePredictor`, the stages with a user's own Keras model, and the SQL function."""

from dataclasses import astuple
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from schemas.errors import ModelLoadError, SettingsError
from sparkdl import DeepImageFeaturizer, DeepImagePredictor, KerasImageFileTransformer, KerasTransformer
from sparkdl import registerKerasImageUDF as register
from sparkdl.engine.cache import start_engine
from sparkdl.image.imageIO import imageStructToArray
from sparkdl.image.row import IMAGE_DDL, row_from_array
from sparkdl.network.backends import import_keras
from sparkdl.network.imagenet import decode_predictions
from tests.testimages import png16

pytestmark = [
    pytest.mark.spark,
    pytest.mark.train,
    pytest.mark.skipif(find_spec("keras") is None, reason="building networks needs the train extra"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

HEIGHT, WIDTH = 6, 9
_RNG = np.random.default_rng(3)
RGB = _RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def keras() -> Any:
    return import_keras()


@pytest.fixture(scope="module")
def means_file(keras: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of images whose three outputs are the means of red, green and blue."""
    inputs = keras.layers.Input((HEIGHT, WIDTH, 3))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs), name="means")
    path = tmp_path_factory.mktemp("keras") / "means.keras"
    model.save(path)
    return str(path)


@pytest.fixture
def images(spark: SparkSession) -> DataFrame:
    good = astuple(row_from_array(np.ascontiguousarray(RGB[..., ::-1]), origin="good"))
    rows = [("good", good), ("null", None), ("broken", (*good[:5], b"12"))]
    return spark.createDataFrame(rows, f"name string, image struct<{IMAGE_DDL}>")


def by_name(frame: DataFrame) -> dict[str, Any]:
    return {row["name"]: row for row in frame.collect()}


# ---- DeepImagePredictor ----


def test_the_predictor_names_the_most_probable_classes(images: DataFrame, tmp_path: Path) -> None:
    predictor = DeepImagePredictor(inputCol="image", outputCol="found", modelName="EfficientNetLite0", reasonCol="why")
    vectors = by_name(predictor.transform(images))
    probabilities = vectors["good"]["found"].toArray()
    assert probabilities.shape == (1000,)
    assert probabilities.sum() == pytest.approx(1, abs=1e-3)
    assert vectors["null"]["found"] is vectors["broken"]["found"] is None
    assert vectors["broken"]["why"].startswith("corrupt_image: ")

    Pipeline(stages=[predictor]).fit(images).save(str(tmp_path / "model"))
    decoded = PipelineModel.load(str(tmp_path / "model")).stages[0].setParams(decodePredictions=True, topK=3)
    frame = decoded.transform(images)
    assert frame.schema["found"].dataType.simpleString() == (
        "array<struct<class:string,description:string,probability:float>>"
    )
    named = by_name(frame)
    wanted = decode_predictions(probabilities, 3)
    assert [tuple(item)[:2] for item in named["good"]["found"]] == [item[:2] for item in wanted]
    assert [item["probability"] for item in named["good"]["found"]] == pytest.approx([item[2] for item in wanted])
    assert named["null"]["found"] is named["broken"]["found"] is None


def test_the_predictor_checks_its_parameters() -> None:
    with pytest.raises(SettingsError, match="topK is 0, wanted 1 to 1000"):
        DeepImagePredictor(inputCol="a", outputCol="b", modelName="ResNet50", topK=0)


# ---- KerasTransformer ----


def test_a_model_of_arrays(spark: SparkSession, keras: Any, tmp_path: Path) -> None:
    inputs = keras.layers.Input((2, 3))
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(inputs)))
    model.save(tmp_path / "dense.h5")
    values = np.arange(6, dtype=np.float32) / 3
    wanted = model.predict(values.reshape(1, 2, 3), verbose=0)[0]
    rows = [("good", values.tolist()), ("null", None), ("short", [1.0]), ("hole", [1.0, 2.0, 3.0, 4.0, 5.0, None])]
    stage = KerasTransformer(inputCol="values", outputCol="out", modelFile=str(tmp_path / "dense.h5"), reasonCol="why")
    stage.save(str(tmp_path / "stage"))
    (tmp_path / "dense.h5").unlink()  # the saved stage holds all it needs
    stage = KerasTransformer.load(str(tmp_path / "stage"))
    found = by_name(stage.transform(spark.createDataFrame(rows, "name string, values array<double>")))
    np.testing.assert_allclose(found["good"]["out"], wanted, atol=2e-2)  # Keras itself computes in bf16 here
    assert [found[name]["out"] for name in ("null", "short", "hole")] == [None, None, None]
    assert "array has 1 values, 0 of them null, expected 6 for (2, 3)" in found["short"]["why"]

    vectors = spark.createDataFrame([("dense", Vectors.dense(values)), ("sparse", Vectors.sparse(6, {1: 1.0}))])
    found = by_name(stage.transform(vectors.toDF("name", "values")))
    np.testing.assert_allclose(found["dense"]["out"], wanted, atol=2e-2)
    with pytest.raises(SettingsError, match="inputCol 'name' is string, wanted an array of numbers or a vector"):
        stage.copy().setInputCol("name").transform(vectors.toDF("name", "values"))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_model_that_holds_code_is_refused(keras: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"lambda{suffix}"
    inputs = keras.layers.Input((2,))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs)).save(path)
    stage = KerasTransformer(inputCol="a", outputCol="b", modelFile=str(path))
    with pytest.raises(ModelLoadError, match=f"(?is)lambda{suffix}: Keras .* does not load it .*lambda"):
        _ = stage.network


def test_what_is_no_model_is_refused(keras: Any, tmp_path: Path) -> None:
    (tmp_path / "damaged.keras").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ModelLoadError, match=r"damaged\.keras"):
        _ = KerasTransformer(inputCol="a", outputCol="b", modelFile=str(tmp_path / "damaged.keras")).network
    with pytest.raises(SettingsError, match=r"none\.keras is not there, wanted a Keras model file"):
        _ = KerasTransformer(inputCol="a", outputCol="b", modelFile=str(tmp_path / "none.keras")).network
    inputs = keras.layers.Input((None, 3))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "open.keras")
    with pytest.raises(SettingsError, match=r"input has shape .* fixed"):
        _ = KerasTransformer(inputCol="a", outputCol="b", modelFile=str(tmp_path / "open.keras")).network


# ---- KerasImageFileTransformer ----


@pytest.fixture
def files(spark: SparkSession, tmp_path: Path) -> DataFrame:
    Image.fromarray(RGB).save(tmp_path / "a b.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a b.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    rows = [
        ("path", str(tmp_path / "a b.png")),
        ("uri", (tmp_path / "a b.png").as_uri()),
        ("broken", str(tmp_path / "broken.png")),
        ("text", str(tmp_path / "text.png")),
        ("missing", str(tmp_path / "missing.png")),
        ("remote", "s3a://bucket/a.png"),
        ("null", None),
    ]
    return spark.createDataFrame(rows, "name string, uri string")


def test_files_are_loaded_as_keras_loads_them(means_file: str, files: DataFrame) -> None:
    stage = KerasImageFileTransformer(inputCol="uri", outputCol="out", modelFile=means_file, reasonCol="why")
    found = by_name(stage.transform(files))
    for name in ("path", "uri"):
        np.testing.assert_allclose(found[name]["out"].toArray(), RGB.mean(axis=(0, 1)), rtol=1e-5)
    failed = {name: row["why"].split(":")[0] for name, row in found.items() if row["out"] is None}
    assert failed == {
        "broken": "corrupt_image",
        "text": "unsupported_format",
        "missing": "corrupt_image",
        "remote": "unsupported_format",
        "null": "null_input",
    }


def test_files_of_more_bits_than_the_loader_keeps_are_named(
    spark: SparkSession, means_file: str, tmp_path: Path
) -> None:
    """Pillow would make black pictures of the first, and clip the next at 255; the others it reads right."""
    small = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    wide = small * 75  # up to 3,975
    (tmp_path / "lost colour.png").write_bytes(png16(np.stack([wide] * 3, axis=-1)))
    (tmp_path / "lost alpha.png").write_bytes(png16(np.stack([wide, wide + 60_000], axis=-1)))
    Image.fromarray(wide).save(tmp_path / "lost gray.png")
    Image.fromarray(wide.astype(np.int32)).save(tmp_path / "lost gray.tiff")
    Image.fromarray(wide.astype(np.float32)).save(tmp_path / "lost float.tiff")
    (tmp_path / "colour.png").write_bytes(png16(RGB.astype(np.uint16) * 257))
    Image.fromarray(small).save(tmp_path / "gray.png")
    Image.fromarray(small.astype(np.float32)).save(tmp_path / "float.tiff")
    frame = spark.createDataFrame([(path.name, str(path)) for path in tmp_path.iterdir()], "name string, uri string")
    stage = KerasImageFileTransformer(inputCol="uri", outputCol="out", modelFile=means_file, reasonCol="why")
    found = by_name(stage.transform(frame))
    assert {name for name, row in found.items() if row["out"] is None} == {name for name in found if "lost" in name}
    assert {row["why"].split(":")[0] for name, row in found.items() if "lost" in name} == {"unsupported_bit_depth"}
    np.testing.assert_allclose(found["colour.png"]["out"].toArray(), RGB.mean(axis=(0, 1)), rtol=1e-5)
    for name in ("gray.png", "float.tiff"):
        np.testing.assert_allclose(found[name]["out"].toArray(), [small.mean()] * 3, rtol=1e-5)


def test_a_loader_of_ones_own(means_file: str, files: DataFrame, tmp_path: Path) -> None:
    def load_halved(uri: str) -> np.ndarray:
        if "missing" in uri:
            raise RuntimeError("not today")
        return np.asarray(Image.open(uri))[np.newaxis] / 2

    stage = KerasImageFileTransformer(
        inputCol="uri", outputCol="out", modelFile=means_file, imageLoader=load_halved, reasonCol="why"
    )
    some = files.where("name in ('path', 'missing')")
    found = by_name(stage.transform(some))
    np.testing.assert_allclose(found["path"]["out"].toArray(), RGB.mean(axis=(0, 1)) / 2, rtol=1e-5)
    assert found["missing"]["why"] == "unexpected: RuntimeError: not today"

    stage.save(str(tmp_path / "stage"))
    loaded = KerasImageFileTransformer.load(str(tmp_path / "stage"))
    with pytest.raises(SettingsError, match="imageLoader is not saved with the stage"):
        loaded.transform(some)
    again = by_name(loaded.setImageLoader(load_halved).transform(some))
    assert again["path"]["out"] == found["path"]["out"]


def test_a_loader_of_another_shape_is_named(means_file: str, files: DataFrame) -> None:
    stage = KerasImageFileTransformer(
        inputCol="uri", outputCol="out", modelFile=means_file, imageLoader=lambda _: np.zeros((2, 2)), reasonCol="why"
    )
    [row] = stage.transform(files.where("name = 'path'")).collect()
    assert row["why"] == "unsupported_format: the image was loaded with shape (2, 2), expected (6, 9, 3)"


def test_images_out(keras: Any, files: DataFrame, tmp_path: Path, means_file: str) -> None:
    inputs = keras.layers.Input((HEIGHT, WIDTH, 3))
    keras.Model(inputs, keras.layers.Rescaling(0.5)(inputs)).save(tmp_path / "half.keras")
    stage = KerasImageFileTransformer(
        inputCol="uri", outputCol="out", modelFile=str(tmp_path / "half.keras"), outputMode="image"
    )
    found = by_name(stage.transform(files))
    np.testing.assert_allclose(imageStructToArray(found["path"]["out"]), RGB / 2)
    assert found["path"]["out"]["origin"] == found["path"]["uri"]
    assert found["null"]["out"] is None
    flat = stage.copy({stage.modelFile: means_file})
    with pytest.raises(SettingsError, match=r"outputMode is 'image', but the model's output has shape \(3,\)"):
        flat.transform(files)


# ---- a custom network, and SQL ----


def test_a_custom_model_as_featurizer(means_file: str, images: DataFrame) -> None:
    stage = DeepImageFeaturizer(inputCol="image", outputCol="out", modelName="custom", weights=means_file)
    found = by_name(stage.transform(images))
    np.testing.assert_allclose(found["good"]["out"].toArray(), RGB.mean(axis=(0, 1)), rtol=1e-5)


def test_a_model_in_sql(spark: SparkSession, means_file: str, images: DataFrame, keras: Any) -> None:
    images.createOrReplaceTempView("some_images")
    register("means_of_file", means_file)
    register("means_of_model", keras.saving.load_model(means_file))

    def reload_halved(path: str) -> np.ndarray:
        return np.asarray(Image.open(path)) / 2

    register("means_of_half", means_file, reload_halved, spark=spark)
    rows = by_name(
        spark.sql(
            "SELECT name, means_of_file(image) AS a, means_of_model(image) AS b, means_of_half(image) AS c "
            "FROM some_images"
        )
    )
    wanted = RGB.mean(axis=(0, 1))
    np.testing.assert_allclose(rows["good"]["a"], wanted, rtol=1e-5)
    assert rows["good"]["b"] == rows["good"]["a"]
    np.testing.assert_allclose(rows["good"]["c"], wanted / 2, rtol=1e-5)
    for name in ("null", "broken"):
        assert [rows[name][column] for column in "abc"] == [None, None, None]
    with pytest.raises(SettingsError, match="keras_model_or_file_path is int, wanted a Keras model"):
        register("nothing", 3)


# ---- the reference engine ----


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="the reference engine needs the tensorflow extra")
@pytest.mark.parametrize("name", ["EfficientNetLite0", "InceptionV3", "VGG16"])
@pytest.mark.long
def test_tensorflow_gives_the_same_features(spark: SparkSession, name: str, tmp_path: Path) -> None:
    fast = DeepImageFeaturizer(inputCol="image", outputCol="fast", modelName=name, weights="random", seed=2)
    slow = fast.copy({fast.engine: "tensorflow"}).setOutputCol("slow")
    slow.save(str(tmp_path / "slow"))
    slow = DeepImageFeaturizer.load(str(tmp_path / "slow"))
    assert slow.network.weights_sha256 == fast.network.weights_sha256
    pixels = _RNG.integers(0, 256, (50, 70, 3), np.uint8)
    frame = spark.createDataFrame([(astuple(row_from_array(pixels, origin="x")),)], f"image struct<{IMAGE_DDL}>")
    row = slow.transform(fast.transform(frame)).first()
    a, b = row["fast"].toArray(), row["slow"].toArray()
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99999
    with pytest.raises(SettingsError, match="precision is 'bf16', expected 'fp32'"):
        _ = slow.copy({slow.precision: "bf16"}).network


def test_engines_of_all_kinds_start_from_saved_files(means_file: str, images: DataFrame) -> None:
    stage = DeepImageFeaturizer(inputCol="image", outputCol="out", modelName="custom", weights=means_file)
    found = start_engine(stage.network).infer(np.ascontiguousarray(RGB[..., ::-1]))
    np.testing.assert_allclose(found, RGB.mean(axis=(0, 1)), rtol=1e-5)
    with pytest.raises(SettingsError, match=r"device: 'GPU' is not on this machine, which has .*CPU"):
        start_engine(stage.network, device="GPU")
