"""The classifier's numbers: a calibrator folds in exactly, and folds keep groups together."""

import numpy as np
import pytest

from training.model.classifier import PAPER, TUNED, Head
from training.model.folds import deal_folds
from training.model.probability import Calibrator


def _head(n_classes: int) -> Head:
    rng = np.random.default_rng(n_classes)
    rows = 1 if n_classes == 2 else n_classes
    return Head(rng.normal(size=(rows, 7)), rng.normal(size=rows))


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_probabilities_add_up_and_follow_the_margins(n_classes: int, features: np.ndarray) -> None:
    head = _head(n_classes)
    probabilities = head.predict(features)
    assert (probabilities.shape, head.n_classes) == ((50, n_classes), n_classes)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    margin = features[0].astype(np.float64) @ head.coefficients[-1] + head.intercepts[-1]
    if n_classes == 2:
        assert probabilities[0, 1] == pytest.approx(1 / (1 + np.exp(-margin)))
    else:
        assert np.log(probabilities[0, -1] / probabilities[0, 0]) == pytest.approx(
            margin - features[0] @ head.coefficients[0] - head.intercepts[0]
        )


@pytest.mark.parametrize(
    ("n_classes", "calibrator"), [(2, Calibrator("platt", 0.4, -1.3)), (4, Calibrator("temperature", 2.5))]
)
def test_a_calibrator_folds_in_exactly(n_classes: int, calibrator: Calibrator, features: np.ndarray) -> None:
    head = _head(n_classes)
    wanted = calibrator.apply(head.predict(features))
    assert np.abs(wanted - head.predict(features)).max() > 0.05
    np.testing.assert_allclose(head.calibrate(calibrator).predict(features), wanted, atol=1e-9)


def test_folds_keep_groups_together_and_classes_alike() -> None:
    labels = np.array([0] * 30 + [1] * 30)
    groups = [f"p{index // 2}" for index in range(60)]
    folds = deal_folds(labels, groups, seed=0)
    assert len(folds) == 5
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(60))
    for train, test in folds:
        assert {groups[i] for i in train}.isdisjoint({groups[i] for i in test})
        assert 0.3 < labels[test].mean() < 0.7


def test_few_groups_make_fewer_folds_or_none() -> None:
    assert len(deal_folds(np.array([0, 0, 0, 1, 1, 1]), list("abcdef"), seed=0)) == 3
    assert deal_folds(np.array([0, 0, 1, 1]), list("abcc"), seed=0) == []


def test_the_papers_settings_are_the_default() -> None:
    assert PAPER.describe() == "LogisticRegression(maxIter=10, regParam=0.05, elasticNetParam=0.3)"
    assert PAPER not in TUNED
