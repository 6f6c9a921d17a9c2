"""Retraining without Spark: which patients are held out, the fit, and what the command shows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from schemas.errors import DatasetError
from schemas.modelcard import ModelCard, hash_model_folder, write_card
from schemas.registry import promote, read_aliases
from sparkdl.engine.neighbours import read_vectors
from sparkdl.image.limits import RENDERING_VERSION
from tests.paths import ROOT
from tests.savedmodels import as_json, evaluate
from tests.stored import NO_CARD, add_champion, score_images
from training.data.labelfile import Confirmation
from training.data.labelstable import record_labels
from training.evidence.served import load_served
from training.features.stored import StoredSet, read_stored
from training.figures.bootstrap import estimate_image_share
from training.figures.measure import measure
from training.lifecycle.drift import ENERGY_LIMIT, MIN_IMAGES, P_LIMIT, PSI_LIMIT, WINDOW_DAYS
from training.lifecycle.findings import Findings, describe_inherited
from training.lifecycle.promotion import MARGIN, PromotionDecision
from training.lifecycle.refit import HELD_OUT_SHARE, Refit, choose_held_out
from training.lifecycle.retrain import MIN_LABELS, check_labels, retrain_model
from training.model.classifier import PAPER, ClassifierSettings, Head, predict_rows
from training.model.decision import Decision
from training.model.novelty import fit_detector
from training.model.regression import fit_regression
from training.report.words import describe_copies, describe_left_out, describe_patients
from xray import console
from xray.__main__ import run
from xray.commands import retrain as command

_CONVERGED = ClassifierSettings(reg_param=0.02, elastic_net_param=0.5, max_iter=1000)


def draw(n: int, n_features: int, n_classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    labels = np.minimum(rng.integers(0, n_classes + 1, n), n_classes - 1)
    features = (rng.standard_normal((n, n_features)) * rng.uniform(0.5, 3, n_features) + 5).astype(np.float32)
    features[:, :3] += labels[:, None]
    return features, labels


# --- the split --------------------------------------------------------------------------------------------------------


def test_a_patient_stays_on_one_side_whoever_else_is_there() -> None:
    patients = np.array([f"patient {number // 3}" for number in range(6000)])
    held_out = choose_held_out(patients)
    assert 0.27 < held_out.mean() < 0.33
    assert held_out.reshape(-1, 3).all(axis=1).sum() == held_out.reshape(-1, 3).any(axis=1).sum()
    some = np.random.default_rng(0).permutation(6000)[:100]
    assert np.array_equal(choose_held_out(patients[some]), held_out[some])


def test_the_sides_are_those_of_every_release() -> None:
    # Another key would have patients trained on that a champion was compared on.
    patients = np.array([f"p{number}" for number in range(12)])
    assert "".join("h" if out else "t" for out in choose_held_out(patients)) == "hhtthhhhthtt"


# --- the fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_optimum_is_scikit_learns(n_classes: int) -> None:
    features, labels = draw(400, 12, n_classes)
    found = fit_regression(features, np.arange(400), labels, _CONVERGED, n_classes)
    mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64, ddof=1)
    other = LogisticRegression(
        l1_ratio=_CONVERGED.elastic_net_param,
        C=1 / (_CONVERGED.reg_param * 400),
        solver="saga",
        tol=1e-9,
        max_iter=20_000,
    ).fit((features - mean) / scale, labels)
    # Both stop near the optimum, each in its own way.
    assert found.coefficients * scale == pytest.approx(other.coef_, abs=2e-3)
    assert found.predict(features) == pytest.approx(other.predict_proba((features - mean) / scale), abs=2e-3)


def test_the_same_rows_give_the_same_bits() -> None:
    features, labels = draw(5000, 40)
    rows = np.flatnonzero(np.arange(5000) % 3 != 0)
    first, second = (fit_regression(features, rows, labels[rows], PAPER, 2) for _ in range(2))
    alone = fit_regression(features[rows].copy(), np.arange(rows.size), labels[rows], PAPER, 2)
    for other in (second, alone):
        assert other.coefficients.tobytes() == first.coefficients.tobytes()
        assert other.intercepts.tobytes() == first.intercepts.tobytes()


def test_a_feature_that_never_changes_has_no_coefficient() -> None:
    features, labels = draw(5000, 6)
    features[:, 4] = 0.1  # whose sum is rounded
    head = fit_regression(features, np.arange(5000), labels, PAPER, 2)
    assert head.coefficients[0, 4] == 0
    assert np.isfinite(head.coefficients).all()


@pytest.mark.parametrize(
    ("labels", "settings"),
    [
        ([0] * 10, PAPER),
        ([0, 1] * 5, ClassifierSettings(elastic_net_param=0.0)),
    ],
)
def test_what_is_not_fitted_as_spark_does_is_refused(labels: list[int], settings: ClassifierSettings) -> None:
    features = np.zeros((10, 2), np.float32)
    with pytest.raises(ValueError, match="expected"):
        fit_regression(features, np.arange(10), np.array(labels), settings, 2)


def test_class_weights_count_an_image_as_often_as_it_would_have_to_be_there() -> None:
    features, labels = draw(600, 5)
    rare = np.flatnonzero(labels == 0)
    common = np.flatnonzero(labels == 1)[: 2 * rare.size]
    rows, repeated = np.sort([*rare, *common]), np.sort([*rare, *rare, *common])
    weighted = fit_regression(features, rows, labels[rows], replace(_CONVERGED, class_weights=True), 2)
    plain = fit_regression(features, repeated, labels[repeated], _CONVERGED, 2)
    # Only the unbiased deviation knows a weight from a copy.
    assert weighted.coefficients == pytest.approx(plain.coefficients, abs=5e-3)
    assert weighted.intercepts == pytest.approx(plain.intercepts, abs=5e-2)
    unweighted = fit_regression(features, rows, labels[rows], _CONVERGED, 2)
    assert abs(unweighted.intercepts[0] - plain.intercepts[0]) > 0.3


def test_rows_are_predicted_in_parts() -> None:
    features, labels = draw(9000, 5)
    head = Head(np.ones((1, 5)) / 10, np.array([-2.0]))
    rows = np.flatnonzero(labels == 1)
    assert np.array_equal(predict_rows(head, features, rows), head.predict(features[rows]))


def test_the_page_has_the_real_limits() -> None:
    page = (ROOT / "docs" / "retraining.md").read_text(encoding="utf-8")
    for said in (
        PAPER.describe(),
        f"about {HELD_OUT_SHARE:.0%}".replace("%", " %"),
        f"the champion, {MARGIN:g} by default",
        f"{MIN_LABELS} by default",
        f"PSI is {PSI_LIMIT:g} or more and the Kolmogorov-Smirnov p below {P_LIMIT:g}",
        f"is {ENERGY_LIMIT:g} or more and its p {P_LIMIT:g} or less. Nothing is said of fewer than {MIN_IMAGES} images",
        f"archive's last {WINDOW_DAYS} days",
    ):
        assert said in " ".join(page.split())


# --- what is said of it -----------------------------------------------------------------------------------------------


def findings_on(served: Mapping[str, Any] | None = None, *, sources: Sequence[str] = ("",)) -> Findings:
    """Two images of each of 150 patients, of whom one in four is not known."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    features = (rng.standard_normal((300, 6)) + labels[:, None]).astype(np.float32)
    digests = np.array(sorted(f"{number:064x}" for number in range(300)))
    patients = np.array([digests[n] if n % 4 == 0 else f"p{n // 2}" for n in range(300)])
    places = np.array([sources[label % len(sources)] for label in labels])
    stored = StoredSet(features, labels, patients, places, digests, 75, {"that are not in the archive": 3})
    return Findings(Refit(stored, NO_CARD, choose_held_out(patients), 0, served, lambda *_: None))


def test_without_a_probe_nothing_is_known_of_shortcuts() -> None:
    probes, verdict = findings_on().look_for_shortcuts(0.99)
    assert (probes, verdict.verdict, verdict.reasons) == ((), "unknown", ())
    assert any("shortcut probes: they look at images" in note for note in verdict.notes)


def test_a_confounded_champion_is_not_forgotten() -> None:
    confounded = as_json(evaluate(NO_CARD, confounded=True))
    found = "a thumbnail of 8x8 pixels tells the label [too] well"
    _, first = findings_on(confounded).look_for_shortcuts(0.99)
    assert (first.verdict, first.reasons) == ("unknown", (f"the model in service was confounded: {found}",))
    for _ in range(2):  # however often
        confounded["verdict"] = {"verdict": first.verdict, "reasons": list(first.reasons), "notes": []}
        _, first = findings_on(confounded).look_for_shortcuts(0.99)
        assert first.reasons == (f"an earlier model in service was confounded: {found}",)
    _, honest = findings_on(as_json(evaluate(NO_CARD))).look_for_shortcuts(0.99)
    assert (honest.verdict, honest.reasons) == ("unknown", ())


def test_a_source_that_is_the_label_makes_it_confounded() -> None:
    [probe], verdict = findings_on(sources=("ward 1", "ward 2")).look_for_shortcuts(0.99)
    assert (probe.name, verdict.verdict) == ("source", "confounded")


def test_its_data_are_told_as_they_are() -> None:
    data = findings_on().summarize()
    assert describe_copies(data).startswith("Each image is there once, by its bytes. Near copies were not looked for")
    assert describe_patients(data).startswith("Of 75 of all 300 images the patient is not known")
    assert describe_left_out(data) == "3 images that are not in the archive were left out."


def test_the_detectors_figures_are_given_with_and_without() -> None:
    findings = findings_on()
    work = findings.work
    rows = np.flatnonzero(~work.held_out)
    detector = fit_detector(work.stored.features[rows], work.stored.patients[rows].tolist(), quantile=0.8)
    outcomes = work.ask(Head(np.ones((1, 6)), np.array([-3.0])), 0.5)
    found = findings.measure_novelty(Decision(None, detector), outcomes, measure(outcomes))
    assert found is not None
    flagged = detector.flags(work.stored.features[work.held_out])
    assert 0 < flagged.sum() < flagged.size
    assert found.judged["accuracy"].value == pytest.approx(
        (outcomes.predictions == outcomes.labels)[~flagged].mean(), abs=1e-12
    )
    assert found.all_images == measure(outcomes)
    assert found.flagged == estimate_image_share(flagged, outcomes.patients)


# --- the positive class: a retraining that changed it would give alerts about healthy people --------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_classifier_whose_classes_are_reordered_says_the_same(n_classes: int) -> None:
    rng = np.random.default_rng(1)
    n_rows = 1 if n_classes == 2 else n_classes
    head = Head(rng.standard_normal((n_rows, 4)), rng.standard_normal(n_rows))
    features = rng.standard_normal((20, 4)).astype(np.float32)
    for order in permutations(range(n_classes)):
        assert head.reorder(order).predict(features) == pytest.approx(head.predict(features)[:, order])


def _with_positive_first(home: Path) -> tuple[ModelCard, Path]:
    """The fixture's model as somebody's own pipeline might be: the same answers, its classes the other way round."""
    card = add_champion(home)
    featurizer, head = load_served(home / "models" / card.version)
    folder = home / "models" / "own"
    head.reorder((1, 0)).save(folder, featurizer, PAPER, 0.5)
    own = replace(card, version="own", labels=("ill", "normal"), sha256=hash_model_folder(folder))
    write_card(folder, own)
    return own, folder


@pytest.mark.parametrize("positive_first", [False, True])
def test_a_retrained_model_keeps_the_champions_positive_class(tmp_path: Path, positive_first: bool) -> None:
    card, folder = _with_positive_first(tmp_path) if positive_first else (add_champion(tmp_path), None)
    scored = score_images(tmp_path, card, 400)
    labels = {
        digest: Confirmation(2, (), label, patient)
        for digest, label, patient in zip(scored.digests, scored.labels, scored.patients, strict=True)
    }
    # Whatever is confirmed besides, "an aneurysm" before all by the alphabet, changes nothing.
    labels[scored.digests[0]] = Confirmation(2, (), "an aneurysm", scored.patients[0])
    record_labels(str(tmp_path / "tables"), labels)
    stored = read_stored(str(tmp_path / "tables"), tmp_path / "models", card.version)
    assert stored.left_out == {"with a label that the model does not have": 1}

    folder = folder or tmp_path / "models" / card.version
    found = retrain_model(stored, folder, card, reports_folder=tmp_path / "reports")

    assert (found.card.labels, found.card.positive_label) == (("normal", "ill"), "ill")
    assert found.evaluation.data.positive_known_by == f"as in {card.version}, the model in service"
    vectors = read_vectors(tmp_path / "reports" / found.card.version)
    assert vectors is not None
    known = dict(zip(scored.digests, scored.labels, strict=True))
    assert vectors.labels == tuple(known[digest] for digest in vectors.files)
    _, head = load_served(found.folder)
    ill = np.array([label == "ill" for label in scored.labels])
    scores = head.predict(scored.features)[:, found.card.labels.index("ill")]
    assert scores[ill].mean() > scores[~ill].mean() + 0.3
    compared = found.evaluation.in_service
    assert compared is not None
    assert compared["auroc"].second > 0.8
    # The champion, good or not, was asked about the same class.
    held_out = choose_held_out(stored.patients)
    truth = np.array([card.labels[label] == "ill" for label in stored.labels[held_out]])
    served = load_served(folder)[1].predict(stored.features[held_out])[:, card.labels.index("ill")]
    assert compared["auroc"].first == pytest.approx(roc_auc_score(truth, served))
    assert compared["sensitivity"].first == pytest.approx((served[truth] >= 0.5).mean())


def test_a_champion_whose_positive_class_is_health_is_told() -> None:
    card = replace(NO_CARD, version="old", labels=("Effusion", "No Finding"), positive_label="No Finding")
    assert describe_inherited(card) == "as in old, the model in service, though its name is that of a negative class"


def test_the_positive_class_is_said_before_retraining_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr(console.err, "width", 400)
    card = add_champion(tmp_path)
    monkeypatch.setattr("sys.argv", ["xray", "retrain"])
    assert run() == 1
    first = capsys.readouterr().err.splitlines()[0]
    assert first == f"positive: ill (as in {card.version}, the model in service)"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("nothing", "no model was promoted"),
        ("model", "no labels yet: record confirmed findings with 'xray label FILE.csv'"),
        ("labels", "10 labelled images have a vector, wanted 100"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prepare: str, said: str
) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr(console.err, "width", 400)
    if prepare != "nothing":
        scored = score_images(tmp_path, add_champion(tmp_path), 10)
    if prepare == "labels":
        record_labels(str(tmp_path / "tables"), {digest: Confirmation(2, (), "ill", None) for digest in scored.digests})
    monkeypatch.setattr("sys.argv", ["xray", "retrain"])
    assert run() == 1
    assert said in capsys.readouterr().err


def test_a_class_that_is_missing_on_one_side_is_named() -> None:
    patients = np.array([f"p{number}" for number in range(200)])
    held_out = choose_held_out(patients)
    stored = StoredSet(np.zeros((200, 1), np.float32), held_out.astype(np.int64), patients, patients, patients, 0)
    with pytest.raises(DatasetError, match=r"no labelled image of normal is among the \d+ images of held-out patients"):
        check_labels(stored, NO_CARD, min_labels=10)


@pytest.mark.parametrize("version", [0, 1, RENDERING_VERSION + 1])
def test_a_champion_of_another_rendering_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: int
) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr(console.err, "width", 400)
    add_champion(tmp_path, rendering=version)  # it has no archive, which would be told else
    monkeypatch.setattr("sys.argv", ["xray", "retrain"])
    assert run() != 0
    said = capsys.readouterr().err
    assert f"rendering version {version}" in said
    assert "xray train --data" in said
    assert read_aliases(tmp_path / "models") == {"champion": "20260101T000000Z"}


def test_a_model_that_came_into_service_after_the_comparison_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setattr(console.err, "width", 400)
    old, new = add_champion(tmp_path, "old"), add_champion(tmp_path, "new")
    promote(tmp_path / "models", old.version)

    def retrain_on(*_: object, **__: object) -> Any:
        promote(tmp_path / "models", add_champion(tmp_path, "other").version)
        decision = PromotionDecision(True, "not shown to be worse")
        return SimpleNamespace(retrained=SimpleNamespace(card=new), decision=decision, champion=old.version)

    monkeypatch.setattr(command, "retrain_on", retrain_on)
    monkeypatch.setattr("sys.argv", ["xray", "retrain", "--promote"])
    assert run() == 1
    assert "new was decided on while old was in service, and now other is" in capsys.readouterr().err
    assert read_aliases(tmp_path / "models") == {"champion": "other"}


def test_force_without_promote_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["xray", "retrain", "--force"])
    assert run() == 2
