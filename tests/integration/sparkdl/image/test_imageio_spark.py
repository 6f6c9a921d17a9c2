"""`sparkdl.image.imageIO` on Spark: columns, files, failures, and Spark's own image source."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col, udf

from schemas.errors import CorruptImageError, Reason
from sparkdl.image import imageIO
from sparkdl.image.pixels import resize_pixels
from sparkdl.image.row import IMAGE_DDL
from tests import testimages

pytestmark = pytest.mark.spark

HEIGHT, WIDTH = 5, 7
_RNG = np.random.default_rng(8)
PIXELS = {
    name: _RNG.integers(0, 256, (HEIGHT, WIDTH, channels)).astype(dtype)
    for name, channels, dtype in [
        ("gray", 1, "uint8"),
        ("bgr", 3, "uint8"),
        ("bgra", 4, "uint8"),
        ("gray32", 1, "float32"),
        ("bgr32", 3, "float32"),
        ("bgra32", 4, "float32"),
    ]
}
MODES = {"gray": 0, "bgr": 16, "bgra": 24, "gray32": 5, "bgr32": 21, "bgra32": 29}
UNREAD = ("unread", -1, -1, -1, -1, b"")  # what Spark's image source gives for a file it cannot read


@pytest.fixture(scope="module")
def images(spark: SparkSession) -> DataFrame:
    """One row of each type, a null, a row of half its data, and one of Spark's for an unreadable file."""
    rows = [(name, imageIO.imageArrayToStruct(pixels, name)) for name, pixels in PIXELS.items()]
    half = ("half", HEIGHT, WIDTH, 3, 16, bytes(HEIGHT * WIDTH))
    return spark.createDataFrame(
        [*rows, ("null", None), ("half", half), ("unread", UNREAD)], f"name string, image struct<{IMAGE_DDL}>"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNGs of 1, 3 and 4 channels with spaces in their names; a text, an empty file, 16 bits, and a subfolder."""
    folder = tmp_path_factory.mktemp("images")
    for name in ("gray", "bgr", "bgra"):
        pixels = PIXELS[name]
        rgb = pixels[..., 0] if name == "gray" else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
        (folder / f"a {name}.png").write_bytes(testimages.png(rgb))
    (folder / "text.png").write_text("no image")
    (folder / "empty 100%20.png").write_bytes(b"")
    (folder / "deep.png").write_bytes(testimages.png(testimages.twelve_bit_pixels()))
    (folder / "sub").mkdir()
    (folder / "sub" / "below.png").write_bytes(testimages.png())
    return folder


def by_name(rows: list[Any], origin: str = "origin") -> dict[str, Any]:
    named = {Path(row[origin]).name: row for row in rows}
    assert len(named) == len(rows)
    return named


def test_fields_are_right_by_name_and_by_position(images: DataFrame) -> None:
    assert images.schema["image"].dataType == imageIO.imageSchema
    rows = {row["name"]: row["image"] for row in images.where(col("name").isin(*PIXELS)).collect()}
    for name, pixels in PIXELS.items():
        wanted = (name, HEIGHT, WIDTH, pixels.shape[2], MODES[name], pixels.tobytes())
        assert tuple(rows[name]) == wanted
        assert tuple(rows[name][field] for field in IMAGE_DDL.replace(",", "").split()[::2]) == wanted
        np.testing.assert_array_equal(imageIO.imageStructToArray(rows[name]), pixels, strict=True)


@pytest.mark.parametrize("use_arrow", [False, True])
def test_a_users_own_udf_may_return_the_struct(images: DataFrame, use_arrow: bool) -> None:
    def flip(image: Any) -> Any:
        return imageIO.imageArrayToStruct(imageIO.imageStructToArray(image)[::-1], image.origin)

    flipped = images.where(col("name").isin(*PIXELS)).select(
        udf(flip, imageIO.imageSchema, useArrow=use_arrow)("image").alias("image")
    )
    rows = flipped.select("image.*").collect()
    assert len(rows) == len(PIXELS)
    for row in rows:
        pixels = PIXELS[row.origin]
        assert tuple(row)[1:5] == (HEIGHT, WIDTH, pixels.shape[2], MODES[row.origin])
        np.testing.assert_array_equal(imageIO.imageStructToArray(row), pixels[::-1])


@pytest.mark.parametrize("size", [(4, 9), (9, 4), (WIDTH, HEIGHT), (HEIGHT, WIDTH)])
def test_resize_in_a_frame(images: DataFrame, size: tuple[int, int]) -> None:
    resized = images.select("name", imageIO.createResizeImageUDF(size)("image").alias("image"))
    assert resized.schema["image"].dataType == imageIO.imageSchema
    rows = {row["name"]: row["image"] for row in resized.collect()}
    assert {name for name, image in rows.items() if image is None} == {"null", "half", "unread"}
    assert set(rows) == {*PIXELS, "null", "half", "unread"}
    for name, pixels in PIXELS.items():
        assert tuple(rows[name])[:5] == (name, *size, pixels.shape[2], MODES[name])
        if pixels.dtype == np.uint8:
            np.testing.assert_array_equal(imageIO.imageStructToArray(rows[name]), resize_pixels(pixels, size))


def test_files_are_read_whole_without_subfolders(spark: SparkSession, folder: Path) -> None:
    frame = imageIO.filesToDF(spark, str(folder))
    assert frame.dtypes == [("filePath", "string"), ("fileData", "binary")]
    rows = by_name(frame.collect(), "filePath")
    assert set(rows) == {path.name for path in folder.glob("*.png")}
    for name, row in rows.items():
        assert row.filePath == f"file:{folder / name}"
        assert row.fileData == (folder / name).read_bytes()


def test_a_context_a_glob_a_list_and_partitions(spark: SparkSession, folder: Path) -> None:
    frame = imageIO.filesToDF(spark.sparkContext, f"{folder}/*/*.png", 7)
    assert frame.rdd.getNumPartitions() == 7
    assert set(by_name(frame.collect(), "filePath")) == {"below.png"}
    listed = imageIO.filesToDF(spark, [str(folder / "text.png"), str(folder / "sub")])
    assert set(by_name(listed.collect(), "filePath")) == {"text.png", "below.png"}
    with pytest.raises(AnalysisException, match="PATH_NOT_FOUND"):
        imageIO.filesToDF(spark, str(folder / "missing"))


def test_a_folder_of_nothing_but_an_empty_file(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "only.png").touch()
    assert [tuple(row) for row in imageIO.filesToDF(spark, str(tmp_path)).collect()] == [
        (f"file:{tmp_path}/only.png", b"")
    ]


def test_images_are_one_column_and_failures_are_nulls(spark: SparkSession, folder: Path) -> None:
    frame = imageIO.readImagesWithCustomFn(str(folder), imageIO.PIL_decode, 3)
    assert [(field.name, field.dataType) for field in frame.schema] == [("image", imageIO.imageSchema)]
    images = [row.image for row in frame.collect()]
    assert images.count(None) == 3
    read = by_name([image for image in images if image is not None])
    assert set(read) == {"a gray.png", "a bgr.png", "a bgra.png"}
    for name, image in read.items():
        assert image.origin == f"file:{folder / name}"
        wanted = PIXELS[name[2:-4]]
        assert tuple(image)[1:5] == (HEIGHT, WIDTH, wanted.shape[2], MODES[name[2:-4]])
        np.testing.assert_array_equal(imageIO.imageStructToArray(image), wanted, strict=True)


def test_failures_can_be_counted_and_named(spark: SparkSession, folder: Path) -> None:
    def decode(payload: bytes) -> Any:
        if not payload:
            raise CorruptImageError(Reason.EMPTY_PAYLOAD, "unknown", "0 bytes")
        if b"IHDR" not in payload:
            return payload.no_such_method()  # type: ignore[attr-defined]
        pixels = imageIO.PIL_decode(payload)
        return pixels.astype(np.float64) if pixels.shape[2] == 4 else pixels if pixels.shape[2] == 3 else None

    frame = imageIO.readImagesWithCustomFn(str(folder), decode, spark=spark, reasonCol="why", originCol="file path")
    assert frame.columns == ["image", "why", "file path"]
    rows = by_name(frame.collect(), "file path")
    assert set(rows) == {path.name for path in folder.glob("*.png")}
    assert {name: row.why and row.why.split(": ")[0] for name, row in rows.items()} == {
        "a bgr.png": None,
        "a bgra.png": "ValueError",
        "a gray.png": "undecodable",
        "deep.png": "ValueError",
        "empty 100%20.png": "empty_payload",
        "text.png": "AttributeError",
    }
    assert rows["empty 100%20.png"].why == "empty_payload: 0 bytes"
    assert rows["a bgra.png"].why.startswith("ValueError: image array is float64 with 4 channels")
    assert {name for name, row in rows.items() if row.image is None} == set(rows) - {"a bgr.png"}
    assert rows["a bgr.png"]["file path"] == rows["a bgr.png"].image.origin


def test_each_file_is_decoded_once_even_behind_a_filter(spark: SparkSession, folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "decoded"

    def decode(payload: bytes) -> Any:
        with log.open("a") as file:
            file.write(".")
        return imageIO.PIL_decode(payload)

    frame = imageIO.readImagesWithCustomFn(str(folder), decode, reasonCol="reason")
    kept = frame.where("image is not null").select("image.height", "image.data", "reason").collect()
    assert [row.height for row in kept] == [HEIGHT] * 3
    assert log.read_text() == "." * 6


@pytest.mark.parametrize("names", [{"reasonCol": "Image"}, {"reasonCol": "why", "originCol": "WHY"}])
def test_columns_need_different_names(folder: Path, names: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected different names"):
        imageIO.readImagesWithCustomFn(str(folder), imageIO.PIL_decode, **names)


def test_sparks_own_image_source_agrees(spark: SparkSession, folder: Path) -> None:
    theirs = spark.read.format("image").option("dropInvalid", True).load(f"{folder}/a*.png")
    ours = imageIO.readImagesWithCustomFn(f"{folder}/a*.png", imageIO.PIL_decode)
    assert theirs.schema["image"].dataType.simpleString() == ours.schema["image"].dataType.simpleString()
    their_rows = {unquote(Path(row.image.origin).name): row.image for row in theirs.collect()}
    our_rows = by_name([row.image for row in ours.collect()])
    assert set(their_rows) == set(our_rows) == {"a gray.png", "a bgr.png", "a bgra.png"}
    for name, row in their_rows.items():
        assert tuple(row)[1:] == tuple(our_rows[name])[1:]
        array = imageIO.imageStructToArray(row)
        np.testing.assert_array_equal(array, PIXELS[name[2:-4]], strict=True)
        assert imageIO.imageArrayToStruct(array, row.origin) == row
        image = imageIO.imageStructToPIL(row)
        np.testing.assert_array_equal(imageIO.PIL_to_imageStruct(image), array, strict=True)


def test_rows_that_sparks_source_could_not_read_stay_countable(spark: SparkSession, folder: Path) -> None:
    frame = spark.read.format("image").load(str(folder))
    resized = frame.select(imageIO.createResizeImageUDF((3, 4))("image").alias("image")).collect()
    unread = frame.where("image.mode = -1").count()
    assert unread >= 1  # the text; what it makes of 16 bits is its own affair
    assert sum(row.image is None for row in resized) == unread
    assert len(resized) == 5  # it leaves out the empty file, as every file source of Spark does; filesToDF does not


def test_images_join_the_featurizers_column_type(spark: SparkSession, images: DataFrame) -> None:
    """Rows of the struct, of the image source and of `IMAGE_DDL` are one type: unions work."""
    ours = images.select("image")
    empty = spark.createDataFrame([], f"image struct<{IMAGE_DDL}>")
    assert ours.union(empty).count() == images.count()
