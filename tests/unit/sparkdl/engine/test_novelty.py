"""What a model does not decide on: its card, its file, and the same answer in training and serving."""

import json
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pytest

from schemas.documents import load_schema
from schemas.errors import DatasetError, ModelLoadError, SettingsError
from schemas.modelcard import (
    CARD_FILE,
    NOVELTY_FILE,
    AbstainBand,
    Flag,
    ModelCard,
    Novelty,
    hash_model_folder,
    read_card,
    write_card,
)
from sparkdl.engine import novelty as serving
from sparkdl.engine.novelty import StoredDetector, find_detector, read_detector, write_detector
from sparkdl.image.limits import RENDERING_VERSION
from sparkdl.transformers.batches import run_batches
from training.figures.bootstrap import Outcomes, estimate_image_share, gather_outcomes
from training.model.decision import (
    Decision,
    check_decision,
    fit_decision,
    flag_images,
    measure_decision,
    store_decision,
)
from training.model.novelty import fit_detector

_N = 60
_LENGTH = 24


def make_features(seed: int, n: int = _N, centre: float = 5.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(seed)
    return (centre * np.eye(_LENGTH)[0] + rng.normal(0, 1, (n, _LENGTH))).astype(np.float32)


def patients(n: int = _N) -> list[str]:
    return [f"p{number // 2}" for number in range(n)]


def known() -> Outcomes:
    rng = np.random.default_rng(3)
    labels = np.arange(_N) % 2
    positive = np.clip(0.3 + 0.4 * labels + rng.normal(0, 0.2, _N), 0.01, 0.99)
    return gather_outcomes(labels.tolist(), np.stack([1 - positive, positive], axis=1), patients(), threshold=0.5)


@pytest.fixture
def decision() -> Decision:
    return fit_decision(
        known(), make_features(0), patients(), threshold=0.5, abstain_share=0.2, novelty_quantile=0.95, seed=1
    )


@pytest.fixture
def card() -> ModelCard:
    return ModelCard(
        name="cxr", version="1", labels=("normal", "opacities"), positive_label="opacities", threshold=0.5,
        operating_point="", network="EfficientNetLite0", precision="fp32", rendering_version=RENDERING_VERSION,
        sha256="0" * 64, created_at="2026-01-01T00:00:00Z", metrics={"accuracy": 0.9},
    )  # fmt: skip


def save(folder: Path, card: ModelCard, decision: Decision) -> ModelCard:
    """Save as training does: files, hash, card."""
    folder.mkdir()
    (folder / "weights").write_bytes(b"w")
    store_decision(folder, decision)
    card = replace(card, abstain=decision.abstain, novelty=decision.novelty, sha256=hash_model_folder(folder))
    write_card(folder, card)
    return card


# --- the card ---------------------------------------------------------------------------------------------------------


def test_a_card_of_an_earlier_version_still_loads(card: ModelCard, tmp_path: Path) -> None:
    saved = save(tmp_path / "model", card, Decision())
    values = json.loads((tmp_path / "model" / CARD_FILE).read_text())
    del values["abstain"], values["novelty"]
    (tmp_path / "model" / CARD_FILE).write_text(json.dumps(values))
    assert read_card(tmp_path / "model") == saved
    assert saved.flags == ()
    assert saved.answers == saved.labels


def test_a_needed_field_is_still_missed(card: ModelCard, tmp_path: Path) -> None:
    save(tmp_path / "model", card, Decision())
    values = json.loads((tmp_path / "model" / CARD_FILE).read_text())
    del values["threshold"]
    (tmp_path / "model" / CARD_FILE).write_text(json.dumps(values))
    with pytest.raises(ModelLoadError, match="threshold"):
        read_card(tmp_path / "model")


def test_band_and_detector_come_back_as_they_were_chosen(card: ModelCard, decision: Decision, tmp_path: Path) -> None:
    saved = save(tmp_path / "model", card, decision)
    found = read_card(tmp_path / "model")
    assert found == saved
    assert decision.band is not None
    assert decision.detector is not None
    assert found.abstain == AbstainBand(decision.band.low, decision.band.high)
    assert found.novelty == Novelty(decision.detector.threshold, 0.95)
    assert found.flags == (Flag.UNCERTAIN, Flag.UNLIKE_TRAINING)
    assert found.answers == ("normal", "opacities", "unlike_training")


@pytest.mark.parametrize(
    "change",
    [
        {"abstain": {"low": 0.6, "high": 0.4}},
        {"abstain": {"low": 0.4}},
        {"abstain": {"low": 0.4, "high": 1.4}},
        {"abstain": {"low": float("nan"), "high": 0.5}},
        {"abstain": {"low": 0.4, "high": 0.6}, "labels": ["a", "b", "opacities"]},
        {"novelty": {"threshold": 0.1, "quantile": 0.9}, "labels": ["unlike_training", "opacities"]},
    ],
)
def test_a_card_that_cannot_be_decided_with_is_refused(change: dict[str, Any], card: ModelCard, tmp_path: Path) -> None:
    save(tmp_path / "model", card, Decision())
    (tmp_path / "model" / CARD_FILE).write_text(json.dumps(asdict(card) | change))
    with pytest.raises(ModelLoadError, match="cannot read the model card"):
        read_card(tmp_path / "model")


def test_the_detector_cannot_be_taken_away_or_changed(card: ModelCard, decision: Decision, tmp_path: Path) -> None:
    saved = save(tmp_path / "model", card, decision)
    for name in ("lost", "changed", "unsaid"):
        shutil.copytree(tmp_path / "model", tmp_path / name)
    (tmp_path / "lost" / NOVELTY_FILE).unlink()
    with pytest.raises(ModelLoadError, match="was changed after training"):
        read_card(tmp_path / "lost")
    content = bytearray((tmp_path / "changed" / NOVELTY_FILE).read_bytes())
    content[500] ^= 1
    (tmp_path / "changed" / NOVELTY_FILE).write_bytes(content)
    with pytest.raises(ModelLoadError, match="was changed after training"):
        read_card(tmp_path / "changed")
    # The card is not part of the hash.
    write_card(tmp_path / "unsaid", replace(saved, novelty=None))
    with pytest.raises(ModelLoadError, match="has a file"):
        read_card(tmp_path / "unsaid")


def test_a_detector_that_was_not_stored_is_missed(card: ModelCard, decision: Decision, tmp_path: Path) -> None:
    saved = save(tmp_path / "model", card, Decision())
    write_card(tmp_path / "model", replace(saved, novelty=decision.novelty))
    with pytest.raises(ModelLoadError, match="has no file"):
        read_card(tmp_path / "model")


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_stored_detector_says_what_the_fitted_one_says(decision: Decision, tmp_path: Path) -> None:
    store_decision(tmp_path, decision)
    stored, fitted = read_detector(tmp_path / NOVELTY_FILE), decision.detector
    assert fitted is not None
    assert stored.threshold == fitted.threshold
    seen = np.concatenate([make_features(7), make_features(8, centre=-5.0)])
    assert stored.measure_distances(seen) == pytest.approx(fitted.measure_distances(seen), abs=2e-6)
    flags = stored.flags(seen).tolist()
    assert flags == fitted.flags(seen).tolist()
    assert all(flags[_N:])
    assert sum(flags[:_N]) < _N / 4
    assert stored.flags(np.full((1, _LENGTH), np.nan, np.float32)).all()


def test_the_same_detector_is_the_same_file(decision: Decision, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        store_decision(tmp_path / name, decision)
    first, second = (read_detector(tmp_path / name / NOVELTY_FILE) for name in ("a", "b"))
    assert first.sha256 == second.sha256
    store_decision(tmp_path, Decision())
    assert not (tmp_path / NOVELTY_FILE).exists()


def _whole(**change: Any) -> dict[str, Any]:
    references = np.ones((3, 4), np.float32)
    return {"references": references, "threshold": np.array(0.1), "quantile": np.array(0.9)} | change


@pytest.mark.parametrize(
    "arrays",
    [
        _whole(references=np.ones(4, np.float32)),
        _whole(references=np.ones((3, 4))),
        _whole(references=np.ones((0, 4), np.float32)),
        _whole(references=np.full((3, 4), np.nan, np.float32)),
        _whole(threshold=np.array(np.inf)),
        _whole(threshold=np.ones(2)),
        {"references": np.ones((3, 4), np.float32)},
    ],
)
def test_a_file_that_is_no_detector_is_refused(arrays: dict[str, Any], tmp_path: Path) -> None:
    write_detector(tmp_path / NOVELTY_FILE, arrays)
    with pytest.raises(ModelLoadError, match=NOVELTY_FILE):
        read_detector(tmp_path / NOVELTY_FILE)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 cut off"])
def test_junk_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / NOVELTY_FILE).write_bytes(content)
    with pytest.raises(ModelLoadError, match="cannot read"):
        read_detector(tmp_path / NOVELTY_FILE)


class _Executed:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a detector's file was executed",)


def test_nothing_in_the_file_is_executed(tmp_path: Path) -> None:
    np.savez(tmp_path / NOVELTY_FILE, **_whole(threshold=np.array([_Executed()], dtype=object)))
    with pytest.raises(ModelLoadError, match="cannot read"):
        read_detector(tmp_path / NOVELTY_FILE)
    (tmp_path / NOVELTY_FILE).write_bytes(pickle.dumps(_Executed()))
    with pytest.raises(ModelLoadError, match="cannot read"):
        read_detector(tmp_path / NOVELTY_FILE)


def test_a_worker_keeps_two_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_detectors", {})
    loaded: list[str] = []

    def ask(sha256: str) -> StoredDetector:
        def load() -> StoredDetector:
            loaded.append(sha256)
            return StoredDetector(np.ones((1, 2), np.float32), 0.1, sha256)

        return find_detector(sha256, load)

    assert ask("a") is ask("a")
    ask("b")
    ask("a")
    ask("c")
    ask("a")
    ask("b")
    assert loaded == ["a", "b", "c", "b"]


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_nothing_is_chosen_unless_asked() -> None:
    found = fit_decision(None, make_features(0), patients(), threshold=0.5)
    assert (found.band, found.detector, found.abstain, found.novelty, found.describe()) == (None, None, None, None, "")
    assert measure_decision(found, known(), make_features(0)) == (None, None)


def test_a_decision_is_measured_on_other_images(decision: Decision) -> None:
    abstention, novelty = measure_decision(decision, known(), make_features(9))
    assert abstention is not None
    assert novelty is not None
    assert abstention.share.value == pytest.approx(0.2, abs=0.02)
    assert novelty.threshold == decision.detector.threshold  # type: ignore[union-attr]
    assert 0 <= novelty.flagged.value < 0.4


def test_the_detectors_figures_are_given_with_and_without(decision: Decision) -> None:
    outcomes, features = known(), make_features(9)
    features[:30] = 0  # unlike everything
    _, novelty = measure_decision(decision, outcomes, features)
    assert novelty is not None
    assert decision.detector is not None
    flagged = decision.detector.flags(features)
    assert flagged[:30].all()
    right = outcomes.predictions == outcomes.labels
    assert novelty.all_images["accuracy"].value == pytest.approx(right.mean())
    assert novelty.judged["accuracy"].value == pytest.approx(right[~flagged].mean())


def test_shares_of_images_are_those_of_patients(decision: Decision) -> None:
    outcomes, features = known(), make_features(9)
    features[:30] = 0  # unlike everything
    abstention, novelty = measure_decision(decision, outcomes, features)
    assert abstention is not None
    assert novelty is not None
    assert decision.band is not None
    assert decision.detector is not None
    inside = decision.band.covers(outcomes.probabilities[:, 1])
    assert abstention.share == estimate_image_share(inside, outcomes.patients, n_resamples=500)
    assert novelty.flagged == estimate_image_share(decision.detector.flags(features), outcomes.patients)
    assert outcomes.n_patients < outcomes.labels.size


def test_images_are_flagged_as_the_stream_flags_them(decision: Decision) -> None:
    assert decision.band is not None
    low, high = decision.band.low, decision.band.high
    features = make_features(0)[:4]
    features[3] = 0  # unlike everything
    scores = np.array([low, high, (low + high) / 2, low])
    flags = flag_images(replace(decision, detector=None), scores, features)
    assert flags == ((Flag.UNCERTAIN,), (), (Flag.UNCERTAIN,), (Flag.UNCERTAIN,))
    assert flag_images(decision, scores, features)[3] == (Flag.UNLIKE_TRAINING,)
    assert flag_images(Decision(), scores, features) == ((), (), (), ())
    assert flag_images(decision, scores[:0], features[:0]) == ()


def test_a_decision_is_said_in_words() -> None:
    detector = fit_detector(make_features(0), patients(), quantile=0.99)
    words = Decision(AbstainBand(0.41234, 0.6), detector).describe()
    assert words == "; undecided from 0.4123 to 0.6; not judged where less like the training images than 0.99 of them"


@pytest.mark.parametrize(
    ("n_classes", "wish"),
    [
        (2, {"abstain_share": 0.0}),
        (2, {"abstain_share": 0.6}),
        (3, {"abstain_share": 0.1}),
        (2, {"novelty_quantile": 1.0}),
        (2, {"novelty_quantile": 0.0}),
    ],
)
def test_wishes_out_of_range_are_refused(n_classes: int, wish: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        check_decision(n_classes, **{"abstain_share": None, "novelty_quantile": None, **wish})


def test_a_band_needs_a_threshold_and_a_detector_images() -> None:
    with pytest.raises(SettingsError, match="two classes and their threshold"):
        fit_decision(None, make_features(0), patients(), threshold=0.5, abstain_share=0.1)
    with pytest.raises(DatasetError, match="cannot be chosen: 10 images of 5 patients"):
        fit_decision(None, make_features(0, 10), patients(10), threshold=0.5, novelty_quantile=0.99)


# --- serving ----------------------------------------------------------------------------------------------------------


class _Engine:
    """Gives its input back."""

    network: Any = None

    def infer(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
        return values


@pytest.mark.parametrize("size", [1, 3, _N])
def test_an_answer_does_not_depend_on_its_neighbours(size: int, decision: Decision, tmp_path: Path) -> None:
    store_decision(tmp_path, decision)
    detector = read_detector(tmp_path / NOVELTY_FILE)
    features = np.concatenate([make_features(7), make_features(8, centre=-5.0)])
    seen = [*features.tolist(), None]
    batches = [pa.array(seen[start : start + size]) for start in range(0, len(seen), size)]
    read = lambda value, _network: np.array(value, np.float32)  # noqa: E731
    found = [row for batch in run_batches(iter(batches), _Engine(), read, detector.flags) for row in batch.to_pylist()]
    alone = [bool(detector.flags(row[None])[0]) for row in features]
    assert [row["novel"] for row in found] == [*alone, None]
    assert len(set(alone)) > 1
    without = [row for batch in run_batches(iter(batches), _Engine(), read) for row in batch.to_pylist()]
    assert {row["novel"] for row in without} == {None}
    assert [row["output"] for row in without] == [row["output"] for row in found]


def test_an_image_at_the_threshold_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(0)
    references = np.abs(rng.normal(0, 1, (300, 1280))).astype(np.float32)
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    seen = np.abs(rng.normal(0, 1, (64, 1280))).astype(np.float32)
    detector = StoredDetector(references, 0.0, "")
    together = detector.measure_distances(seen)
    alone = np.array([detector.measure_distances(row[None])[0] for row in seen])
    assert (together != alone).any(), "rounding differs, or there is nothing to test"
    # At each image's own distance, the last digit decides.
    for place, distance in enumerate(alone):
        assert not StoredDetector(references, float(distance), "").flags(seen)[place]
        assert StoredDetector(references, float(np.nextafter(distance, 0)), "").flags(seen)[place]


# --- the message ------------------------------------------------------------------------------------------------------


def test_flags_of_the_schema_are_the_codes() -> None:
    schema = load_schema("prediction")
    assert schema["properties"]["flags"]["items"]["enum"] == [flag.value for flag in Flag]
    assert "flags" not in schema["required"]


@pytest.mark.parametrize("flags", [None, "uncertain", ["odd"], ["uncertain", "uncertain"]])
def test_other_flags_break_the_schema(flags: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(flags, load_schema("prediction")["properties"]["flags"])
