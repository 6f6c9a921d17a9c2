"""Judging without Spark: external sets, sources left out, copies, and the model in service."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import DatasetError, ModelLoadError
from schemas.modelcard import AbstainBand, ModelCard, hash_model_folder, write_card
from sparkdl.engine.neighbours import read_vectors
from sparkdl.image.limits import RENDERING_VERSION, RENDERING_VERSIONS
from tests.stored import NO_CARD, add_champion
from training.data.dataset import Dataset, Sample
from training.data.duplicates import DuplicatePair
from training.evidence.evaluator import _Evaluator, read_external
from training.evidence.served import IMAGES_FILE, load_served, name_served, write_training_vectors
from training.features.extract import ImageFacts
from training.figures.bootstrap import Estimate
from training.figures.curves import OperatingPoint
from training.figures.measure import measure
from training.model.classifier import PAPER, Head
from training.model.decision import Decision
from training.model.fit import _list_held_out
from training.model.material import Fitted, Material, Procedure, Step, TrainingResult
from training.model.novelty import NoveltyDetector
from training.model.probability import Calibrator


def _manifest(folder: Path, name: str, *rows: str) -> Path:
    folder.mkdir(parents=True)
    for row in rows:
        (folder / row.split(",")[0]).touch()
    path = folder / name
    path.write_text("\n".join(["file,label,finding", *rows]) + "\n", encoding="utf-8")
    return path


def test_labels_are_put_in_the_training_datas_order(tmp_path: Path) -> None:
    # Integers order these as covid, normal; the training data have them the other way round.
    rows = ("a.png,0,covid", "b.png,1,normal", "c.png,2,pneumonia")
    external = read_external(_manifest(tmp_path / "hospital", "manifest.csv", *rows), ("normal", "covid"))
    assert external.name == "hospital"
    assert external.dataset.labels == ("normal", "covid")
    assert [(s.path.name, s.label) for s in external.dataset.samples] == [("a.png", 1), ("b.png", 0)]


def test_the_positive_class_is_the_training_datas_whatever_another_set_says(tmp_path: Path) -> None:
    # Nor need it say anything: only the training data's choice counts, or its figures would be about health.
    path = tmp_path / "manifest.csv"
    path.write_text("file,label,positive\na.png,normal,1\nb.png,covid,0\n", encoding="utf-8")
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    external = read_external(path, ("normal", "covid"))
    assert (external.dataset.labels, [s.label for s in external.dataset.samples]) == (("normal", "covid"), [0, 1])
    flipped = read_external(path, ("covid", "normal"))
    assert (flipped.dataset.positive, [s.label for s in flipped.dataset.samples]) == ("normal", [1, 0])
    rows = ("c.png,viral,", "d.png,bacterial,", "e.png,normal,")
    three = read_external(_manifest(tmp_path / "three", "manifest.csv", *rows), ("normal", "viral", "bacterial"))
    assert [s.label for s in three.dataset.samples] == [1, 2, 0]


def test_a_set_is_named_by_its_manifest_or_folder(tmp_path: Path) -> None:
    rows = ("a.png,normal,", "b.png,covid,")
    path = _manifest(tmp_path / "data", "north.csv", *rows)
    assert read_external(path, ("normal", "covid")).name == "north"
    for label in ("normal", "covid"):
        (tmp_path / "south" / label).mkdir(parents=True)
        (tmp_path / "south" / label / f"{label}.png").touch()
    assert read_external(tmp_path / "south", ("normal", "covid")).name == "south"


def test_a_set_without_a_class_is_refused(tmp_path: Path) -> None:
    path = _manifest(tmp_path / "data", "m.csv", "a.png,normal,", "b.png,flu,")
    with pytest.raises(DatasetError, match="no class 'covid'"):
        read_external(path, ("normal", "covid"))


# --- a training run on made-up features -------------------------------------------------------------------------------

N_IMAGES = 200
NOTHING = Estimate(0.9, 0.8, 0.95)


def evaluator_of(
    *, procedure: Procedure | None = None, threshold: float = 0.5, calibrator: Calibrator | None = None
) -> _Evaluator:
    """A model of 200 images in two wards, of which every third is held out."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, N_IMAGES)
    features = rng.normal(size=(N_IMAGES, 3)).astype(np.float32)
    features[:, 1] += labels
    samples = tuple(
        Sample(Path(f"/x/{index}.png"), int(label), f"p{index}", source=f"ward {index % 2}")
        for index, label in enumerate(labels)
    )
    facts = tuple(ImageFacts(hashlib.sha256(bytes([index])).hexdigest()) for index in range(N_IMAGES))
    held_out = np.arange(N_IMAGES) % 3 == 0
    dataset = Dataset(samples, ("normal", "ill"), True)
    material = Material(dataset, facts, tuple(sample.patient_id for sample in samples), (), held_out)
    point = None if threshold == 0.5 else OperatingPoint(threshold, 0.95, NOTHING, NOTHING)
    featurizer: Any = None
    step = Step("as fitted", Head(np.array([[0.0, 1.0, 0.0]]), np.array([-0.5])), threshold)
    fitted = Fitted(featurizer, features, PAPER, (step,), calibrator, point)
    result = TrainingResult(
        folder=Path("/models/new"),
        card=NO_CARD,
        metrics={},
        accuracy_interval=(0.0, 1.0),
        confusion=np.zeros((2, 2), np.int64),
        n_train={},
        n_test={},
        held_out=(),
        failed=(),
        patient_ids_known=True,
        seconds=0.0,
        procedure=procedure or Procedure(),
        material=material,
        fitted=fitted,
    )
    spark: Any = None
    return _Evaluator(spark, result, 0, None, lambda *_: None)


def test_a_source_that_was_left_out_is_decided_on_as_the_rest_is() -> None:
    plain, _ = evaluator_of().leave_sources_out()
    tuned = Procedure(tune=True, calibrate=True, sensitivity=0.95)
    low, _ = evaluator_of(procedure=tuned, threshold=0.2).leave_sources_out()
    # A calibrator that says 0.2 where the classifier says 0.5 takes the threshold's effect away.
    shifted, _ = evaluator_of(
        threshold=0.2, calibrator=Calibrator("platt", 1.0, float(np.log(0.25)))
    ).leave_sources_out()
    for before, after, both in zip(plain, low, shifted, strict=True):
        assert after.figures["sensitivity"].value > before.figures["sensitivity"].value + 0.1
        assert after.figures["auroc"] == before.figures["auroc"]
        assert both.figures["sensitivity"] == before.figures["sensitivity"]
        assert "chosen on all sources" not in before.note
        assert after.note.endswith("; settings, threshold as the model's, chosen on all sources")
        assert both.note.endswith("; calibration, threshold as the model's, chosen on all sources")


def test_copies_with_different_labels_are_counted() -> None:
    evaluator = evaluator_of()
    material = evaluator.material
    labels = material.labels.tolist()
    same = labels.index(labels[0], 1)
    other = labels.index(1 - labels[0])
    pairs = tuple(DuplicatePair("/x/0.png", f"/x/{index}.png", "exact", 0) for index in (same, other))
    found = _with(evaluator, material=replace(material, pairs=pairs)).summarize_data()
    assert (found.exact_copies, found.unlike_copies, found.copies_across) == (2, 1, 0)


def test_a_mistake_carries_the_flags_that_the_stream_would_put_on_it() -> None:
    evaluator = evaluator_of()
    fitted = evaluator.result.fitted
    features = fitted.features.copy()
    rows = np.flatnonzero(evaluator.material.held_out)
    features[rows[:10], 0] = 100  # unlike the others
    detector = NoveltyDetector(np.eye(3, dtype=np.float32)[1:], 0.9, 0.9)
    fitted = replace(fitted, features=features, decision=Decision(AbstainBand(0.4, 0.6), detector))
    final, probabilities = fitted.final, fitted.final.head.predict(features[evaluator.material.held_out])
    outcomes = evaluator.material.gather(probabilities, held_out=True, threshold=final.threshold)
    held_out = _list_held_out(evaluator.material, outcomes)
    evaluator = _with(evaluator, fitted=fitted, held_out=held_out)

    found = evaluator.mistakes(evaluator.held_out(fitted.final))

    assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
    for one in found:
        place = int(one.path.stem)
        near = ("uncertain",) if one.probability < 0.6 else ()
        assert one.flags == (("unlike_training",) if detector.flags(features[[place]])[0] else near)
        assert one.said == ("undecided" if one.flags else one.predicted)
    assert {flag for one in found for flag in one.flags} == {"unlike_training", "uncertain"}
    assert not all(one.flags for one in found)


def _with(evaluator: _Evaluator, **changes: Any) -> _Evaluator:
    return replace(evaluator, result=replace(evaluator.result, **changes))


# --- the model in service ---------------------------------------------------------------------------------------------


def _compare(evaluator: _Evaluator, home: Path) -> Any:
    outcomes = evaluator.held_out(_final(evaluator))
    return evaluator.compare_with_service(outcomes, home / "models", home / "reports")


def _final(evaluator: _Evaluator) -> Step:
    return evaluator.result.fitted.final


def _rewrite_hash(folder: Path, card: ModelCard) -> None:
    write_card(folder, replace(card, sha256=hash_model_folder(folder)))


def test_a_champion_with_another_positive_class_is_told(tmp_path: Path) -> None:
    # Of a champion whose figures are about health neither is better: they are about something else.
    card = replace(add_champion(tmp_path), labels=("ill", "normal"), positive_label="normal")
    write_card(tmp_path / "models" / card.version, card)
    found = _compare(evaluator_of(), tmp_path)
    assert (found.figures, found.name, found.on) == (None, "", None)
    assert found.notes == (
        f"comparison with the model in service: {card.version} has 'normal' as its positive class, this one 'ill'",
    )


def test_a_champion_of_other_classes_than_a_model_is_made_of_is_not_loaded(tmp_path: Path) -> None:
    card = add_champion(tmp_path)
    folder = tmp_path / "models" / card.version
    [part] = folder.glob("stages/1_*/metadata/part-*")
    metadata = json.loads(part.read_text(encoding="utf-8"))
    part.write_text(json.dumps({**metadata, "class": "os.system"}) + "\n", encoding="utf-8")
    _rewrite_hash(folder, card)

    found = _compare(evaluator_of(), tmp_path)

    assert (found.figures, found.name) == (None, "")
    [note] = found.notes
    assert note.startswith(f"comparison with the model in service: the model at {folder} is not loaded: ")
    assert "is of class 'os.system'" in note


@pytest.mark.parametrize("lost", ["stages/1_*/data", "stages/0_*/network"])
def test_a_champion_that_cannot_be_loaded_is_a_note_and_no_end(tmp_path: Path, lost: str) -> None:
    card = add_champion(tmp_path)
    folder = tmp_path / "models" / card.version
    [part] = folder.glob(lost)
    shutil.rmtree(part)
    _rewrite_hash(folder, card)

    found = _compare(evaluator_of(), tmp_path)

    assert (found.figures, found.name) == (None, "")
    [note] = found.notes
    assert note.startswith("comparison with the model in service: the ")
    assert str(folder) in note
    assert len(note.splitlines()) == 1
    with pytest.raises(ModelLoadError):
        load_served(folder)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Gives features in place of files, and keeps how they were asked for; ``errors`` are by the file's number."""
    kept: dict[str, Any] = {"errors": {}}

    def compute(_spark: Any, paths: list[Path], *_: Any, **options: Any) -> tuple[np.ndarray, list[str]]:
        kept.update(options, paths=paths)
        errors = [kept["errors"].get(int(path.stem), "") for path in paths]
        features = np.random.default_rng(8).normal(size=(len(paths), 3)).astype(np.float32)
        features[[bool(error) for error in errors]] = 0
        return features, errors

    monkeypatch.setattr("training.evidence.evaluator.compute_features", compute)
    return kept


@pytest.mark.parametrize("version", RENDERING_VERSIONS)
def test_a_champion_is_asked_about_files_rendered_as_it_knows_them(
    tmp_path: Path, asked: dict[str, Any], version: int
) -> None:
    card = add_champion(tmp_path, rendering=version)
    evaluator = evaluator_of()
    found = _compare(evaluator, tmp_path)
    assert asked["rendering"] == version
    assert asked["limits"] == evaluator.material.limits
    assert len(asked["paths"]) == int(evaluator.material.held_out.sum())
    assert found.figures["auroc"].second == pytest.approx(measure(evaluator.held_out(_final(evaluator)))["auroc"].value)
    assert found.on is None
    told = [note for note in found.notes if f"{card.version} was asked about images as rendering version" in note]
    assert len(told) == len(found.notes) == int(version != RENDERING_VERSION)


@pytest.mark.parametrize("version", [-1, 0, max(RENDERING_VERSIONS) + 1])
def test_a_champion_whose_rendering_is_not_known_is_not_asked(
    tmp_path: Path, asked: dict[str, Any], version: int
) -> None:
    add_champion(tmp_path, rendering=version)
    found = _compare(evaluator_of(), tmp_path)
    assert (found.figures, "paths" in asked) == (None, False)
    [note] = found.notes
    assert f"is for images of rendering version {version}, which are not made any more" in note


def test_images_that_a_champion_does_not_read_are_left_out_of_the_comparison(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    add_champion(tmp_path, rendering=1)
    evaluator = evaluator_of()
    lost = {0: "unsupported_format: x", 3: "dicom_corrupt: y", 30: "multi_frame: z"}
    asked["errors"] = lost
    found = _compare(evaluator, tmp_path)
    numbers = [int(sample.path.stem) for sample in evaluator.taken(evaluator.material.held_out)]
    known = np.array([number not in lost for number in numbers], bool)
    shared = evaluator.held_out(_final(evaluator)).take(known)
    assert found.figures["auroc"].second == pytest.approx(measure(shared)["auroc"].value)
    assert (found.on.n_images, found.on.n_patients) == (len(numbers) - 3, len(numbers) - 3)
    assert sum(found.on.n_by_label.values()) == len(numbers) - 3
    assert f"3 of {len(numbers)} held-out images are left out" in found.notes[-1]


def test_a_champion_that_reads_no_image_gives_no_figure(tmp_path: Path, asked: dict[str, Any]) -> None:
    add_champion(tmp_path, rendering=1)
    asked["errors"] = dict.fromkeys(range(N_IMAGES), "unsupported_format: x")
    found = _compare(evaluator_of(), tmp_path)
    assert np.isnan(found.figures["auroc"].difference.value)
    assert found.on.n_images == 0


def test_vectors_are_kept_of_training_images_alone(tmp_path: Path) -> None:
    result = evaluator_of().result
    write_training_vectors(tmp_path, result.material, result.fitted.features)
    kept = read_vectors(tmp_path)
    assert kept is not None
    trained = [sample for n, sample in enumerate(result.material.dataset.samples) if n % 3]
    assert kept.files == tuple(str(sample.path) for sample in trained)
    assert kept.labels == tuple(("normal", "ill")[sample.label] for sample in trained)
    assert kept.find_nearest(result.fitted.features[4], 1)[0][0] == kept.files.index("/x/4.png")


def test_the_model_in_service_is_named_with_what_it_knows(tmp_path: Path) -> None:
    asked = ["a", "b", "c"]
    assert name_served("v1", asked, None) == name_served("v1", asked, tmp_path)
    assert "not known whether it was trained on some of these images" in name_served("v1", asked, tmp_path)
    for listed, said in (("a\nc\nz\n", "2"), ("x\ny\n", "none")):
        (tmp_path / "v1").mkdir(exist_ok=True)
        (tmp_path / "v1" / IMAGES_FILE).write_text(listed, encoding="utf-8")
        wanted = f"v1 (trained on {said} of these 3 images; patients were not compared)"
        assert name_served("v1", asked, tmp_path) == wanted
