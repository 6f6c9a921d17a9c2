"""Figures from a confusion matrix; that they are Spark's is shown in the integration test."""

import math

import numpy as np
import pytest

from training.figures.confusion import confusion_matrix, weighted_metrics, wilson_interval


def test_rows_are_actual_and_columns_predicted() -> None:
    matrix = confusion_matrix([0, 0, 1, 2], [0, 2, 2, 2], n_classes=3)
    assert matrix.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 1]]


def test_figures_by_hand() -> None:
    # Class 0: precision 3/4, recall 3/5, f1 2/3; class 1: precision 4/6, recall 4/5, f1 8/11.
    metrics = weighted_metrics(np.array([[3, 2], [1, 4]]))
    assert metrics == pytest.approx(
        {"accuracy": 0.7, "f1": (2 / 3 + 8 / 11) / 2, "weightedPrecision": (3 / 4 + 4 / 6) / 2, "weightedRecall": 0.7}
    )


def test_a_class_never_predicted_has_precision_zero() -> None:
    with np.errstate(all="raise"):
        metrics = weighted_metrics(np.array([[3, 0], [1, 0]]))
    assert metrics["weightedPrecision"] == pytest.approx(0.75 * 0.75)


def test_wilson_matches_the_published_figure() -> None:
    # From the project's conventions: 101 of 102 is 0.947-0.998.
    assert wilson_interval(101, 102) == pytest.approx((0.947, 0.998), abs=5e-4)


@pytest.mark.parametrize(("successes", "trials"), [(3, 10), (50, 100), (1, 7)])
def test_wilson_bounds_are_where_the_score_test_turns(successes: int, trials: int) -> None:
    for bound in wilson_interval(successes, trials):
        z = (successes / trials - bound) / math.sqrt(bound * (1 - bound) / trials)
        assert abs(z) == pytest.approx(1.96, abs=1e-3)


def test_wilson_has_a_width_at_the_ends() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
