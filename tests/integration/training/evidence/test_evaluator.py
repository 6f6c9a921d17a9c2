"""Judging: what a trained model is worth, on sets whose shortcuts are known because they were planted."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from schemas.errors import DatasetError
from schemas.modelcard import read_card, write_card
from schemas.registry import promote
from sparkdl.image.limits import RENDERING_VERSIONS
from training.data.dataset import Dataset, read_dataset
from training.evidence.evaluation import Evaluation
from training.evidence.evaluator import External, evaluate_model, read_external
from training.evidence.served import write_images
from training.features.cache import FeatureCache
from training.features.extract import _FEATURES, features_key
from training.model.fit import train_model
from training.model.material import Procedure, TrainingResult
from xray.phantom import write_folder

pytestmark = [pytest.mark.spark, pytest.mark.train]

_N_PHANTOMS = 160


@dataclass(frozen=True)
class Judged:
    """A model and what was found out about it."""

    result: TrainingResult
    evaluation: Evaluation
    dataset: Dataset


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return FeatureCache(tmp_path_factory.mktemp("cache"))


def _in_two_sources(dataset: Dataset) -> Dataset:
    """Two sources that say nothing about the label."""
    samples = [replace(s, source=f"ward {s.path.stem[-1] in '02468'}") for s in dataset.samples]
    return replace(dataset, samples=tuple(samples))


@pytest.fixture(scope="module")
def honest(spark: SparkSession, cache: FeatureCache, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    folder = tmp_path_factory.mktemp("honest")
    dataset = _in_two_sources(read_dataset(write_folder(folder / "images", _N_PHANTOMS, seed=2)))
    procedure = Procedure(calibrate=True, sensitivity=0.9)
    result = train_model(lambda: spark, dataset, out=folder / "models", cache=cache, procedure=procedure)
    other = read_external(write_folder(folder / "other", 12, seed=77), dataset.labels)
    evaluation = evaluate_model(
        lambda: spark,
        result,
        external=[other],
        models_folder=folder / "models",
        reports_folder=folder / "reports",
        cache=cache,
    )
    return Judged(result, evaluation, dataset)


def test_an_honest_set_has_no_shortcut(honest: Judged) -> None:
    verdict = honest.evaluation.verdict
    assert (verdict.verdict, verdict.reasons) == ("ok", ())
    assert honest.evaluation.internal.figures["auroc"].value > 0.8


def test_a_planted_marker_makes_it_confounded(spark: SparkSession, cache: FeatureCache, tmp_path: Path) -> None:
    dataset = read_dataset(write_folder(tmp_path / "images", _N_PHANTOMS, seed=3, marker=True))
    result = train_model(lambda: spark, dataset, out=tmp_path / "models", cache=cache)
    verdict = evaluate_model(lambda: spark, result, cache=cache).verdict
    assert verdict.verdict == "confounded"
    assert any(reason.startswith("what is in the corners") for reason in verdict.reasons)


def test_figures_are_those_of_the_saved_model(honest: Judged) -> None:
    evaluation, result = honest.evaluation, honest.result
    assert evaluation.metrics.items() <= result.card.metrics.items()
    for name, value in evaluation.metrics.items():
        estimate = evaluation.internal.figures[name]
        assert estimate.value == pytest.approx(value)
        assert math.isnan(estimate.low) or estimate.low <= value <= estimate.high
    assert evaluation.confusion.tolist() == result.confusion.tolist()
    assert evaluation.internal.n_images == sum(result.n_test.values()) == int(evaluation.confusion.sum())


def test_each_step_is_shown_with_and_without(honest: Judged) -> None:
    variants = honest.evaluation.variants
    assert [variant.name for variant in variants] == ["as fitted", "calibrated", "at sensitivity 0.9"]
    assert all(variant.calibration is not None for variant in variants)
    aurocs = [variant.figures["auroc"].value for variant in variants]
    assert aurocs == pytest.approx([aurocs[0]] * 3)  # neither changes the order
    assert variants[-1].figures["accuracy"] == honest.evaluation.internal.figures["accuracy"]
    assert "out of fold" in variants[1].note


def test_each_source_is_left_out_once(honest: Judged) -> None:
    left_out = [one for one in honest.evaluation.others if one.kind == "leave-one-source-out"]
    assert [one.name for one in left_out] == ["without source ward False", "without source ward True"]
    assert sum(one.n_images for one in left_out) == _N_PHANTOMS
    assert all(one.figures["auroc"].value > 0.7 for one in left_out)
    assert [group.name for group in honest.evaluation.by_source] == ["ward False", "ward True"]


def test_an_external_set_is_measured(honest: Judged) -> None:
    [external] = [one for one in honest.evaluation.others if one.kind == "external"]
    assert (external.n_images, external.n_by_label) == (12, {"normal": 6, "opacities": 6})
    assert external.note == ""


def test_copies_of_the_training_data_are_no_external_set(
    spark: SparkSession, honest: Judged, cache: FeatureCache, tmp_path: Path
) -> None:
    fresh = read_dataset(write_folder(tmp_path / "other", 8, seed=78)).samples
    copied = []
    for sample in honest.dataset.samples[:5]:
        path = tmp_path / f"copy-{sample.path.name}"
        path.write_bytes(sample.path.read_bytes())
        copied.append(replace(sample, path=path))
    mixed = replace(honest.dataset, samples=(*fresh, *copied))
    [found] = [
        one
        for one in evaluate_model(lambda: spark, honest.result, external=[External("mixed", mixed)], cache=cache).others
        if one.kind == "external"
    ]
    assert found.n_images == 8
    assert found.note.startswith("5 images left out: copies")
    with pytest.raises(DatasetError, match="none is left without copies"):
        evaluate_model(
            lambda: spark,
            honest.result,
            external=[External("copies", replace(mixed, samples=tuple(copied)))],
            cache=cache,
        )


def test_the_model_in_service_is_asked_the_same(spark: SparkSession, honest: Judged, cache: FeatureCache) -> None:
    models = honest.result.folder.parent
    reports = models.parent / "reports"
    promote(models, honest.result.card.version)
    write_images(reports / honest.result.card.version, honest.result.material)
    try:
        other = train_model(lambda: spark, honest.dataset, out=models, seed=5, cache=cache)
        evaluation = evaluate_model(
            lambda: spark, other, seed=5, models_folder=models, reports_folder=reports, cache=cache
        )
    finally:
        (models / "champion").unlink()
    comparison = evaluation.in_service
    assert comparison is not None
    assert comparison["auroc"].second == pytest.approx(evaluation.internal.figures["auroc"].value)
    trained_on, asked = _digests(honest.result, held_out=False), _digests(other, held_out=True)
    seen = len(trained_on & asked)
    assert seen > 0
    assert (
        evaluation.in_service_name
        == f"{honest.result.card.version} (trained on {seen} of these {len(asked)} images; patients were not compared)"
    )


def test_a_model_of_an_old_rendering_is_asked_about_the_same_files_rendered_for_it(
    spark: SparkSession, honest: Judged, cache: FeatureCache, tmp_path: Path
) -> None:
    models, champion = tmp_path / "models", honest.result.card.version
    shutil.copytree(honest.result.folder, models / champion)
    write_card(models / champion, replace(honest.result.card, rendering_version=1))
    promote(models, champion)
    evaluation = evaluate_model(lambda: spark, honest.result, models_folder=models, cache=cache)
    assert evaluation.in_service is not None
    assert math.isfinite(evaluation.in_service["auroc"].first)
    assert evaluation.in_service_on is None
    assert any(f"{champion} was asked about images as rendering version 1" in note for note in evaluation.verdict.notes)
    # Its vectors are beside those of the present rendering, never among them: the network is the same.
    asked, network = _digests(honest.result, held_out=True), honest.result.fitted.network
    kinds = [f"features-{features_key(network, version)}" for version in RENDERING_VERSIONS]
    assert len(set(kinds)) == len(kinds)
    for kind in kinds:
        assert set(cache.read_rows(kind, asked, _FEATURES)["digest"].to_pylist()) == asked


def _digests(result: TrainingResult, *, held_out: bool) -> set[str]:
    material = result.material
    return {digest for digest, out in zip(material.digests, material.held_out, strict=True) if out == held_out}


def test_a_model_of_three_classes_is_judged(
    spark: SparkSession, honest: Judged, cache: FeatureCache, tmp_path: Path
) -> None:
    samples = [replace(s, label=2 if i % 3 == 0 else s.label) for i, s in enumerate(honest.dataset.samples)]
    dataset = replace(honest.dataset, samples=tuple(samples), labels=("normal", "opacities", "other"))
    result = train_model(lambda: spark, dataset, out=tmp_path, cache=cache, procedure=Procedure(class_weights=True))
    evaluation = evaluate_model(lambda: spark, result, cache=cache)
    assert (evaluation.roc, evaluation.precision_recall, evaluation.predictive_values) == (None, None, ())
    assert evaluation.confusion.shape == (3, 3)
    assert [variant.calibration for variant in evaluation.variants] == [None, None]
    assert json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))["data"]["labels"][2] == "other"


# --- the command


def _run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xray", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XRAY_")}
    return subprocess.run(
        command, env={**environment, "XRAY_HOME": str(home)}, capture_output=True, text=True, timeout=280, check=False
    )


def _with_split(manifest: Path, rows: list[dict[str, str]]) -> Path:
    target = manifest.with_name("split.csv")
    with target.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return target


@pytest.mark.long
def test_the_command_takes_the_manifests_split_and_refuses_a_leak(tmp_path: Path) -> None:
    manifest = write_folder(tmp_path / "images", 24, seed=9)
    with manifest.open(encoding="utf-8", newline="") as stream:
        rows = [{**row, "split": "test" if i % 4 < 2 else "train"} for i, row in enumerate(csv.DictReader(stream))]
    copy = "copy" + Path(rows[0]["file"]).suffix
    (manifest.parent / copy).write_bytes((manifest.parent / rows[0]["file"]).read_bytes())
    leaking = [*rows, {**rows[0], "file": copy, "patient_id": "someone-else", "split": "train"}]
    refused = _run(tmp_path / "home", "train", "--data", str(_with_split(manifest, leaking)), "--json")
    assert (refused.returncode, refused.stdout) == (1, "")
    said = " ".join(refused.stderr.split())
    assert "in both training and test, wanted none: 1 pair(s) of copies" in said
    assert "the same side" in said
    assert [*(tmp_path / "home" / "models").iterdir()] == []

    done = _run(tmp_path / "home", "train", "--data", str(_with_split(manifest, rows)), "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["n_test"] == {"normal": 6, "opacities": 6}
    assert answer["verdict"] in ("ok", "confounded")
    # Health taken for the finding would have ill people missed: which class it is, is said first, and at the top.
    assert done.stderr.startswith("positive: opacities ('normal' is the negative class)\n")
    assert (answer["positive_label"], answer["positive_known_by"]) == ("opacities", "'normal' is the negative class")
    assert {"verdict_reasons", "verdict_notes", "probes", "intervals", "external", "accuracy_interval"} <= set(answer)
    report = Path(answer["report"])
    assert report.parent == tmp_path / "home" / "reports" / Path(answer["model"]).name
    stored = json.loads((report.parent / "report.json").read_text(encoding="utf-8"))
    assert stored["data"]["split"] == "as the manifest gives it"
    assert stored["positive_label"] == "opacities"
    text = (report.parent / "report.md").read_text(encoding="utf-8")
    assert "Positive class: opacities ('normal' is the negative class)." in text
    assert read_card(Path(answer["model"])).metrics["accuracy"] == answer["accuracy"]  # the hash is still right
