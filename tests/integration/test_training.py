"""Training end to end: files in, a model out that another process loads and that says the same there."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyspark.ml import PipelineModel
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.sql import DataFrame, SparkSession

from schemas.errors import DatasetError
from schemas.modelcard import read_card
from schemas.registry import champion_folder, list_models, promote
from sparkdl import DeepImageFeaturizer
from training.dataset import Dataset, read_dataset
from training.fit import TrainingResult, train_model

pytestmark = [pytest.mark.spark, pytest.mark.train]

_HEIGHT, _WIDTH = 90, 120


def _draw(kind: str, seed: int) -> Image.Image:
    """Draw stripes across or down, or a disc, in noise."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[0:_HEIGHT, 0:_WIDTH]
    period, phase = rng.uniform(8, 14), rng.uniform(0, 6)
    disc = np.hypot(down - _HEIGHT / 2, across - _WIDTH / 2) < rng.uniform(20, 35)
    shapes = {"across": np.sin(down / period * 6 + phase), "down": np.sin(across / period * 6 + phase), "disc": disc}
    pixels = 128 + 60 * shapes[kind] + rng.normal(0, 12, (_HEIGHT, _WIDTH))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _write_images(folder: Path, kinds: dict[str, str], n_each: int) -> None:
    for number, (label, kind) in enumerate(kinds.items()):
        (folder / label).mkdir(parents=True)
        for index in range(n_each):
            # A serial over all classes: equal names would be taken for one patient.
            _draw(kind, 1000 * number + index).save(folder / label / f"{number:02}-{index:03}.png")


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    # A space and an umlaut: Hadoop and Python must mean the same folder.
    folder = tmp_path_factory.mktemp("two") / "bös e"
    _write_images(folder, {"normal": "across", "striped": "down"}, 20)
    whole = (folder / "striped" / "01-000.png").read_bytes()
    (folder / "striped" / "broken.png").write_bytes(whole[:-30])
    (folder / "normal" / "notes.txt").write_text("no image", encoding="utf-8")
    return read_dataset(folder)


@pytest.fixture(scope="module")
def calls() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def trained(
    spark: SparkSession, two_classes: Dataset, tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, int]]
) -> TrainingResult:
    def note(done: int, total: int) -> None:
        calls.append((done, total))

    return train_model(spark, two_classes, out=tmp_path_factory.mktemp("out") / "mödels 1", progress=note)


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("three")
    _write_images(folder, {"0": "across", "1": "down", "2": "disc"}, 12)
    dataset = read_dataset(folder)
    # Wrong labels for some: a perfect confusion matrix would hide a mistaken formula.
    samples = [replace(s, label=(s.label + 1) % 3) if i % 4 == 0 else s for i, s in enumerate(dataset.samples)]
    return replace(dataset, samples=tuple(samples))


@pytest.fixture(scope="module")
def train_random(
    spark: SparkSession, three_classes: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], TrainingResult]:
    out = tmp_path_factory.mktemp("random")
    return lambda: train_model(spark, three_classes, out=out, weights="random", test_fraction=0.4, seed=2)


@pytest.fixture(scope="module")
def same_second(train_random: Callable[[], TrainingResult]) -> tuple[TrainingResult, TrainingResult]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.fit.datetime", Clock)
        return train_random(), train_random()


def test_pretrained_features_tell_stripes_apart(trained: TrainingResult) -> None:
    assert trained.metrics["accuracy"] == pytest.approx(1.0)
    assert trained.confusion.tolist() == [[6, 0], [0, 6]]
    assert trained.accuracy_interval == pytest.approx((0.7575, 1.0), abs=1e-4)


def test_files_that_do_not_decode_are_left_out_and_named(trained: TrainingResult) -> None:
    assert [(file.path.name, file.error.partition(":")[0]) for file in trained.failed] == [
        ("notes.txt", "unsupported_format"),
        ("broken.png", "truncated_image"),
    ]
    assert trained.n_train == {"normal": 14, "striped": 14}
    assert trained.n_test == {"normal": 6, "striped": 6}


def test_the_card_describes_the_folder(trained: TrainingResult) -> None:
    card = read_card(trained.folder)  # checks the hash too
    assert card == trained.card
    assert (card.labels, card.positive_label, card.threshold) == (("normal", "striped"), "striped", 0.5)
    assert (card.network, card.precision, card.rendering_version) == ("EfficientNetLite0", "fp32", 1)
    assert card.metrics == trained.metrics
    assert (card.metrics["n_train"], card.metrics["n_test"]) == (28, 12)
    assert trained.folder.name == card.version
    assert [path.name for path in trained.folder.parent.iterdir()] == [card.version]


def test_progress_goes_from_nothing_to_everything(trained: TrainingResult, calls: list[tuple[int, int]]) -> None:
    assert calls[0] == (0, 42)
    assert calls[-1] == (42, 42)
    assert calls == sorted(calls)


def test_the_registry_serves_it(trained: TrainingResult) -> None:
    models = trained.folder.parent
    promote(models, trained.card.version)
    assert champion_folder(models) == trained.folder
    assert list_models(models) == [trained.card]
    (models / "champion").unlink()


_FRESH_PROCESS = """
import json, sys
from dataclasses import astuple
from pathlib import Path
from pyspark.ml import PipelineModel
from sparkdl.decode import decode_image
from sparkdl.imagerow import IMAGE_DDL
from sparkdl.session import start_session

model_folder, log_folder, *paths = sys.argv[1:]
spark = start_session(app_name="fresh", log_folder=Path(log_folder), master="local[1]")
model = PipelineModel.load("file://" + model_folder)
size = model.stages[0].network.input_size
rows = [(path, astuple(decode_image(Path(path).read_bytes(), origin=path, size=size).image)) for path in paths]
frame = spark.createDataFrame(rows, f"path string, image struct<{IMAGE_DDL}>")
found = {row["path"]: row["probability"].tolist() for row in model.transform(frame).collect()}
print(json.dumps({"found": found, "keras": "keras" in sys.modules, "training": "training" in sys.modules}))
"""


def test_a_fresh_process_without_keras_predicts_the_same(trained: TrainingResult, tmp_path: Path) -> None:
    paths = [str(item.sample.path) for item in trained.held_out]
    command = [sys.executable, "-c", _FRESH_PROCESS, str(trained.folder), str(tmp_path), *paths]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    answer = json.loads(done.stdout)
    assert (answer["keras"], answer["training"]) == (False, False)
    for item in trained.held_out:
        assert answer["found"][str(item.sample.path)] == pytest.approx(item.probabilities, abs=1e-6)
    assert done.stderr == ""


def test_figures_are_those_of_sparks_evaluator(
    spark: SparkSession, same_second: tuple[TrainingResult, TrainingResult]
) -> None:
    result = same_second[0]
    assert 0 < result.metrics["accuracy"] < 1
    rows = [(float(item.sample.label), float(item.prediction)) for item in result.held_out]
    frame = spark.createDataFrame(rows, "label double, prediction double")
    for name in ("accuracy", "f1", "weightedPrecision", "weightedRecall"):
        assert result.metrics[name] == pytest.approx(MulticlassClassificationEvaluator(metricName=name).evaluate(frame))


def test_three_classes_have_no_threshold(same_second: tuple[TrainingResult, TrainingResult]) -> None:
    result = same_second[0]
    assert (result.card.labels, result.card.positive_label) == (("0", "1", "2"), "2")
    assert (result.card.threshold, result.card.operating_point) == (None, "the most probable class")
    assert PipelineModel.load(f"file://{result.folder}").stages[-1].numClasses == 3
    assert all(sum(item.probabilities) == pytest.approx(1) for item in result.held_out)


def test_the_same_second_gives_two_versions_of_the_same_model(
    same_second: tuple[TrainingResult, TrainingResult],
) -> None:
    one, two = same_second
    assert [result.card.version for result in same_second] == ["20260131T120000Z", "20260131T120000Z-2"]
    assert read_card(one.folder).version != read_card(two.folder).version
    assert one.held_out == two.held_out  # to the last bit


def test_an_interrupted_save_leaves_nothing(
    spark: SparkSession, three_classes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        assert list(tmp_path.glob(".*/*/metadata"))  # the model itself is there already, hidden
        raise KeyboardInterrupt

    monkeypatch.setattr("training.fit.write_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_model(spark, three_classes, out=tmp_path, weights="random")
    assert list(tmp_path.iterdir()) == []


def test_mostly_unreadable_data_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    _write_images(tmp_path / "data", {"a": "across", "b": "down"}, 2)
    for index in range(5):
        (tmp_path / "data" / "a" / f"{index}.txt").write_text("no image", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"5 of 9 files do not decode, wanted at most half: .*0\.txt: unsupported"):
        train_model(spark, read_dataset(tmp_path / "data"), out=tmp_path / "out", weights="random")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("nncf") is None, reason="int8 needs the int8 extra (NNCF)")
def test_int8_is_calibrated_on_training_images_alone(
    spark: SparkSession, two_classes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    calibrate = DeepImageFeaturizer.calibrate

    def watched(self: DeepImageFeaturizer, dataset: DataFrame, n_images: int) -> DeepImageFeaturizer:
        seen.extend(row["path"] for row in dataset.select("path").collect())
        return calibrate(self, dataset, n_images)

    monkeypatch.setattr(DeepImageFeaturizer, "calibrate", watched)
    result = train_model(spark, two_classes, out=tmp_path, weights="random", precision="int8", seed=1)
    assert result.card.precision == "int8"
    assert PipelineModel.load(f"file://{result.folder}").stages[0].network.precision == "int8"
    assert len(seen) == sum(result.n_train.values())
    assert not set(seen) & {str(item.sample.path) for item in result.held_out}
