"""Retraining without Spark: which patients are held out, the fit, and what the command shows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from schemas.errors import DatasetError, SettingsError
from tests.stored import NO_CARD, add_champion, score_images
from training.classifier import PAPER, ClassifierSettings, Head
from training.drift import ENERGY_LIMIT, MIN_IMAGES, P_LIMIT, PSI_LIMIT, WINDOW_DAYS
from training.gate import MARGIN
from training.labels import Confirmation, record_labels
from training.regression import fit_regression
from training.retrain import HELD_OUT_SHARE, MIN_LABELS, check_labels, choose_held_out, predict_rows
from training.stored import StoredSet
from xray import console
from xray.__main__ import run

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
    features, labels = draw(200, 6)
    features[:, 4] = 7
    head = fit_regression(features, np.arange(200), labels, PAPER, 2)
    assert head.coefficients[0, 4] == 0
    assert np.isfinite(head.coefficients).all()


@pytest.mark.parametrize(
    ("labels", "settings"),
    [
        ([0] * 10, PAPER),
        ([0, 1] * 5, ClassifierSettings(class_weights=True)),
        ([0, 1] * 5, ClassifierSettings(elastic_net_param=0.0)),
    ],
)
def test_what_is_not_fitted_as_spark_does_is_refused(labels: list[int], settings: ClassifierSettings) -> None:
    features = np.zeros((10, 2), np.float32)
    with pytest.raises(ValueError, match="expected"):
        fit_regression(features, np.arange(10), np.array(labels), settings, 2)


def test_rows_are_predicted_in_parts() -> None:
    features, labels = draw(9000, 5)
    head = Head(np.ones((1, 5)) / 10, np.array([-2.0]))
    rows = np.flatnonzero(labels == 1)
    assert np.array_equal(predict_rows(head, features, rows), head.predict(features[rows]))


def test_the_page_has_the_real_limits() -> None:
    page = (Path(__file__).parents[2] / "docs" / "retraining.md").read_text(encoding="utf-8")
    for said in (
        PAPER.describe(),
        f"about {HELD_OUT_SHARE:.0%}".replace("%", " %"),
        f"in service, {MARGIN:g} by default",
        f"{MIN_LABELS} by default",
        f"PSI is {PSI_LIMIT:g} or more and the Kolmogorov-Smirnov p below {P_LIMIT:g}",
        f"is {ENERGY_LIMIT:g} or more and its p {P_LIMIT:g} or less. Nothing is said of fewer than {MIN_IMAGES} images",
        f"archive's last {WINDOW_DAYS} days",
    ):
        assert said in " ".join(page.split())


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


def test_a_model_of_other_decoding_rules_is_refused() -> None:
    nobody = np.array([], dtype=str)
    stored = StoredSet(np.zeros((0, 1), np.float32), np.zeros(0, np.int64), nobody, nobody, nobody, 0)
    with pytest.raises(SettingsError, match="train anew"):
        check_labels(stored, replace(NO_CARD, rendering_version=0))


def test_force_without_promote_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["xray", "retrain", "--force"])
    assert run() == 2
