"""Retraining without Spark: which patients are held out, the fit, and what the command shows."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.stored import add_champion, score_images
from training.classifier import PAPER, ClassifierSettings, Head
from training.regression import fit_regression
from training.retrain import choose_held_out, predict_rows
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


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("nothing", "no model was promoted"),
        ("model", "no labels yet"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prepare: str, said: str
) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "400")
    if prepare == "model":
        score_images(tmp_path, add_champion(tmp_path), 10)
    monkeypatch.setattr("sys.argv", ["xray", "retrain"])
    assert run() == 1
    assert said in capsys.readouterr().err
