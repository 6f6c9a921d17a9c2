"""Training end to end: files in, a model out that another process loads and that says the same there."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pyspark.ml import PipelineModel
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.sql import SparkSession

from schemas.errors import DatasetError, LeakError, SettingsError
from schemas.modelcard import read_card
from schemas.registry import champion_folder, list_models, promote
from sparkdl import DeepImageFeaturizer
from sparkdl.image.decode import decode_image
from sparkdl.image.limits import RENDERING_VERSION
from sparkdl.image.row import IMAGE_DDL
from training.data.dataset import Dataset, read_dataset
from training.features import extract, featurizer
from training.features.cache import FeatureCache
from training.model.fit import prepare, train_model
from training.model.material import Procedure, TrainingResult

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
def two_noisy(two_classes: Dataset) -> Dataset:
    """Wrong labels for some: probabilities of 0 and 1 would leave nothing to calibrate."""
    samples = [replace(s, label=1 - s.label) if i % 5 == 0 else s for i, s in enumerate(two_classes.samples)]
    return replace(two_classes, samples=tuple(samples))


@pytest.fixture(scope="module")
def calls() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def trained(
    spark: SparkSession, two_classes: Dataset, tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[int, int]]
) -> TrainingResult:
    def note(done: int, total: int) -> None:
        calls.append((done, total))

    return train_model(lambda: spark, two_classes, out=tmp_path_factory.mktemp("out") / "mödels 1", progress=note)


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("three")
    _write_images(folder, {"0": "across", "1": "down", "2": "disc"}, 12)
    dataset = read_dataset(folder, positive="2")
    # Wrong labels for some: a perfect confusion matrix would hide a mistaken formula.
    samples = [replace(s, label=(s.label + 1) % 3) if i % 4 == 0 else s for i, s in enumerate(dataset.samples)]
    return replace(dataset, samples=tuple(samples))


@pytest.fixture(scope="module")
def train_random(
    spark: SparkSession, three_classes: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], TrainingResult]:
    out = tmp_path_factory.mktemp("random")
    return lambda: train_model(lambda: spark, three_classes, out=out, weights="random", test_fraction=0.4, seed=2)


@pytest.fixture(scope="module")
def same_second(train_random: Callable[[], TrainingResult]) -> tuple[TrainingResult, TrainingResult]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.model.save.datetime", Clock)
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
    assert (card.network, card.precision, card.rendering_version) == ("EfficientNetLite0", "fp32", RENDERING_VERSION)
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
from sparkdl.image.decode import decode_image
from sparkdl.image.row import IMAGE_DDL
from sparkdl.spark.session import start_session

model_folder, log_folder, *paths = sys.argv[1:]
spark = start_session(app_name="fresh", log_folder=Path(log_folder), master="local[1]")
model = PipelineModel.load("file://" + model_folder)
size = model.stages[0].network.input_size
rows = [(path, astuple(decode_image(Path(path).read_bytes(), origin=path, size=size).image)) for path in paths]
frame = spark.createDataFrame(rows, f"path string, image struct<{IMAGE_DDL}>")
found = {row["path"]: row["probability"].tolist() for row in model.transform(frame).collect()}
print(json.dumps({"found": found, "keras": "keras" in sys.modules, "training": "training" in sys.modules}))
"""


@pytest.mark.long
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

    monkeypatch.setattr("training.model.save.write_card", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_model(lambda: spark, three_classes, out=tmp_path, weights="random")
    assert list(tmp_path.iterdir()) == []


def test_mostly_unreadable_data_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    _write_images(tmp_path / "data", {"a": "across", "b": "down"}, 2)
    for index in range(5):
        (tmp_path / "data" / "a" / f"{index}.txt").write_text("no image", encoding="utf-8")
    dataset = read_dataset(tmp_path / "data", positive="b")
    with pytest.raises(DatasetError, match=r"5 of 9 files do not decode, wanted at most half: .*0\.txt: unsupported"):
        train_model(lambda: spark, dataset, out=tmp_path / "out", weights="random")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("nncf") is None, reason="int8 needs the int8 extra (NNCF)")
def test_int8_is_calibrated_on_training_images_alone(
    spark: SparkSession, two_classes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    decode = featurizer._decode_images

    def watched(paths: list[Path], *how: Any) -> Iterator[npt.NDArray[np.uint8]]:
        seen.extend(paths)
        return decode(paths, *how)

    monkeypatch.setattr(featurizer, "_decode_images", watched)
    result = train_model(lambda: spark, two_classes, out=tmp_path, weights="random", precision="int8", seed=1)
    assert result.card.precision == "int8"
    assert PipelineModel.load(f"file://{result.folder}").stages[0].network.precision == "int8"
    assert len(seen) == sum(result.n_train.values())
    assert not set(seen) & {item.sample.path for item in result.held_out}


# --- cache


def _compute_nothing(*_: object) -> None:
    msg = "computed again"
    raise AssertionError(msg)


def _is_broken(path: str) -> bool:
    """Errors are not kept: what does not decode is tried again by each run."""
    return Path(path).name in ("broken.png", "notes.txt")


def test_a_second_fit_computes_nothing(
    spark: SparkSession, two_classes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(tmp_path / "cache")
    first = train_model(lambda: spark, two_classes, out=tmp_path, weights="random", cache=cache)
    compute = extract._map_files

    def refusing(session: SparkSession, paths: list[str], *how: Any) -> object:
        return compute(session, paths, *how) if all(map(_is_broken, paths)) else _compute_nothing()

    monkeypatch.setattr(extract, "_map_files", refusing)
    monkeypatch.setattr(DeepImageFeaturizer, "_build", _compute_nothing)
    second = train_model(lambda: spark, two_classes, out=tmp_path, weights="random", cache=cache)
    assert second.held_out == first.held_out
    assert second.failed == first.failed
    with pytest.raises(AssertionError, match="computed again"):  # another network is another matter
        train_model(lambda: spark, two_classes, out=tmp_path, weights="random", seed=1, cache=cache)


def test_a_stopped_run_goes_on_where_it_was(
    spark: SparkSession, two_classes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(tmp_path / "cache")
    computed: list[str] = []
    compute = extract._map_files

    def stopping(session: SparkSession, paths: list[str], *how: Any) -> object:
        if len(computed) == 60:  # 42 files were examined, and of 40 the first 18 have features
            raise KeyboardInterrupt
        computed.extend(f"{how[-1]} {path}" for path in paths)
        return compute(session, paths, *how)

    monkeypatch.setattr(extract, "_IMAGES_PER_BLOCK", 6)
    monkeypatch.setattr(extract, "_map_files", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_model(lambda: spark, two_classes, out=tmp_path, weights="random", cache=cache)
    calls: list[tuple[str, int, int]] = []
    computed.append("stopped here")
    train_model(
        lambda: spark, two_classes, out=tmp_path, weights="random", cache=cache, report=lambda *said: calls.append(said)
    )
    again = computed[computed.index("stopped here") + 1 :]
    whole = [said for said in computed if not _is_broken(said)]
    assert len(whole) - 1 == 40 + 40
    assert len(set(whole)) == len(whole)
    assert len(again) == 22 + 2, "those that do not decode are tried again"
    assert calls[0] == ("examining images", 40, 42)
    assert ("examining images", 42, 42) in calls
    assert ("computing features", 18, 40) in calls
    assert calls[-1] == ("computing features", 40, 40)


def test_a_changed_file_is_another_image(spark: SparkSession, tmp_path: Path) -> None:
    _write_images(tmp_path / "data", {"normal": "across", "striped": "down"}, 4)
    cache = FeatureCache(tmp_path / "cache")
    paths = sorted((tmp_path / "data").rglob("*.png"))
    before = extract.examine(lambda: spark, paths, cache)
    _draw("disc", 77).save(paths[2])
    paths[1].rename(tmp_path / "data" / "moved.png")
    paths[1] = tmp_path / "data" / "moved.png"
    after = extract.examine(lambda: spark, paths, cache)
    assert [a.digest == b.digest for a, b in zip(before, after, strict=True)] == [i != 2 for i in range(8)]
    assert before[2].picture != after[2].picture
    assert len(list((tmp_path / "cache" / f"images-r{RENDERING_VERSION}-1").iterdir())) == 2


def test_a_file_that_was_away_is_tried_again(spark: SparkSession, tmp_path: Path) -> None:
    _write_images(tmp_path / "data", {"normal": "across"}, 3)
    paths, cache = sorted((tmp_path / "data").rglob("*.png")), FeatureCache(tmp_path / "cache")
    digests = extract.digest_files(paths)
    content = paths[1].read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract, "digest_files", lambda _: digests)  # as if each changed a moment later
        paths[0].unlink()
        _draw("disc", 77).save(paths[1])
        errors = [facts.error for facts in extract.examine(lambda: spark, paths, cache)]
    assert errors == ["cannot be read: No such file or directory", "changed while it was read", ""]
    _draw("across", 0).save(paths[0])
    paths[1].write_bytes(content)
    found = extract.examine(lambda: spark, paths, cache)
    assert [facts.error for facts in found] == ["", "", ""]
    assert [facts.digest for facts in found] == digests
    assert found[1].picture == extract.examine(lambda: spark, paths[1:2])[0].picture


# --- split


def test_copies_are_kept_on_one_side(spark: SparkSession, two_classes: Dataset, tmp_path: Path) -> None:
    samples = [sample for sample in two_classes.samples if sample.path.suffix == ".png"]
    copies = []
    for index, sample in enumerate(samples[:8]):
        path = tmp_path / f"copy{index}{'.png' if index % 2 else '.jpeg'}"
        if index % 2:
            path.write_bytes(sample.path.read_bytes())
        else:
            Image.open(sample.path).save(path, quality=80)
        copies.append(replace(sample, path=path, patient_id=path.stem))
    dataset = replace(two_classes, samples=(*two_classes.samples, *copies))
    material, split, _ = prepare(lambda: spark, dataset, seed=3)
    assert {pair.kind for pair in material.pairs} == {"exact", "near"}
    assert len(material.pairs) == 8
    test = {sample.path for sample in split.test}
    for index, sample in enumerate(samples[:8]):
        assert (sample.path in test) == (copies[index].path in test)


def test_a_leak_in_the_datas_own_split_stops_it(spark: SparkSession, two_classes: Dataset, tmp_path: Path) -> None:
    sides = [replace(sample, side="train" if i % 3 else "test") for i, sample in enumerate(two_classes.samples)]
    first = next(sample for sample in sides if sample.side == "train" and sample.path.name == "00-001.png")
    copy = tmp_path / "again.png"
    copy.write_bytes(first.path.read_bytes())
    leaking = replace(two_classes, samples=(*sides, replace(first, path=copy, patient_id="other", side="test")))
    with pytest.raises(LeakError, match=r"00-001\.png = .*again\.png"):
        train_model(lambda: spark, leaking, out=tmp_path / "out", weights="random")
    assert not (tmp_path / "out").exists()


# --- procedure


def _served(spark: SparkSession, result: TrainingResult) -> dict[str, tuple[list[float], float]]:
    """What the saved model says of the held-out images."""
    model = PipelineModel.load(f"file://{result.folder}")
    size = model.stages[0].network.input_size
    paths = [item.sample.path for item in result.held_out]
    rows = [(str(p), astuple(decode_image(p.read_bytes(), origin=str(p), size=size).image)) for p in paths]
    frame = spark.createDataFrame(rows, f"path string, image struct<{IMAGE_DDL}>")
    found = model.transform(frame).select("path", "probability", "prediction").collect()
    return {row["path"]: (row["probability"].tolist(), row["prediction"]) for row in found}


def test_a_calibrated_model_serves_calibrated_probabilities(
    spark: SparkSession, two_noisy: Dataset, tmp_path: Path
) -> None:
    procedure = Procedure(class_weights=True, calibrate=True, sensitivity=0.9)
    result = train_model(lambda: spark, two_noisy, out=tmp_path, weights="random", procedure=procedure)
    fitted = result.fitted
    assert [step.name for step in fitted.steps] == [
        "as the paper fits it", fitted.settings.describe(), "calibrated", "at sensitivity 0.9",
    ]  # fmt: skip
    assert fitted.calibrator is not None
    assert fitted.operating_point is not None
    test = fitted.features[result.material.held_out]
    expected = fitted.calibrator.apply(fitted.steps[1].head.predict(test))
    assert np.abs(expected - fitted.steps[1].head.predict(test)).max() > 0.01
    served = _served(spark, result)
    threshold = result.card.threshold
    assert threshold == fitted.operating_point.threshold
    for item, wanted in zip(result.held_out, expected, strict=True):
        probabilities, prediction = served[str(item.sample.path)]
        assert probabilities == pytest.approx(wanted, abs=1e-9)
        assert item.probabilities == pytest.approx(wanted, abs=1e-9)
        assert prediction == item.prediction == (wanted[1] >= threshold)
    assert "chosen for sensitivity 0.9 on training patients" in result.card.operating_point
    assert read_card(result.folder) == result.card


def test_a_model_of_three_classes_is_calibrated_by_a_temperature(
    spark: SparkSession, three_classes: Dataset, tmp_path: Path
) -> None:
    result = train_model(
        lambda: spark, three_classes, out=tmp_path, weights="random", seed=2, procedure=Procedure(calibrate=True)
    )
    calibrator = result.fitted.calibrator
    assert calibrator is not None
    assert (calibrator.method, calibrator.slope != 1) == ("temperature", True)
    test = result.fitted.features[result.material.held_out]
    expected = calibrator.apply(result.fitted.steps[0].head.predict(test))
    served = _served(spark, result)
    for item, wanted in zip(result.held_out, expected, strict=True):
        assert served[str(item.sample.path)][0] == pytest.approx(wanted, abs=1e-6)


def test_tuning_tries_settings_and_says_which_it_chose(spark: SparkSession, two_noisy: Dataset, tmp_path: Path) -> None:
    result = train_model(lambda: spark, two_noisy, out=tmp_path, weights="random", procedure=Procedure(tune=True))
    candidates = result.fitted.candidates
    assert len(candidates) == 5
    [chosen] = [candidate for candidate in candidates if candidate.chosen]
    assert chosen.name == f"EfficientNetLite0, {result.fitted.settings.describe()}"
    assert chosen.auroc.value == max(candidate.auroc.value for candidate in candidates)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": ["EfficientNetLite0", "ResNet50"]}, "add --tune"),
        ({"procedure": Procedure(sensitivity=1.5)}, "sensitivity is 1.5"),
    ],
)
def test_a_procedure_that_cannot_be_followed_is_refused(
    spark: SparkSession, two_classes: Dataset, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        train_model(lambda: spark, two_classes, out=tmp_path, **options)


def test_an_operating_point_of_three_classes_is_refused(
    spark: SparkSession, three_classes: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="is for two classes, found 3: 0, 1, 2"):
        train_model(lambda: spark, three_classes, out=tmp_path, procedure=Procedure(sensitivity=0.9))
