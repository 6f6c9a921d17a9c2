"""Figures from a confusion matrix, and Wilson's interval; that they are Spark's is shown in the integration test."""

import math

import numpy as np
import pytest

from training.figures.bootstrap import gather_outcomes, wilson_interval
from training.figures.measure import count_confusion, from_confusion, weighted_metrics

pytest.importorskip("sklearn", reason="needs the train extra (scikit-learn)")


def test_rows_are_actual_and_columns_predicted() -> None:
    outcomes = gather_outcomes([0, 0, 1, 2], np.eye(3)[[0, 2, 2, 2]], list("abcd"))
    matrix = count_confusion(outcomes)
    assert matrix.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 1]]
    assert matrix.dtype == np.int64


def test_a_class_that_no_image_has_keeps_its_row_and_column() -> None:
    outcomes = gather_outcomes([0, 0], np.eye(3)[[0, 0]], list("ab"))
    assert count_confusion(outcomes).tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_figures_are_those_inside_the_bootstrap(n_classes: int) -> None:
    matrix = np.random.default_rng(n_classes).integers(0, 40, (n_classes, n_classes))
    matrix[:, -1] = 0  # never predicted
    inside = from_confusion(matrix[None].astype(float))
    for name, value in weighted_metrics(matrix).items():
        assert value == pytest.approx(inside[name][0], rel=1e-12), name


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


def _wilson_by_hand(successes: int, trials: int) -> tuple[float, float]:
    z = 1.959963984540054
    share = successes / trials
    centre = share + z**2 / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    low, high = ((centre + sign * spread) / (1 + z**2 / trials) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


@pytest.mark.parametrize("trials", [1, 2, 7, 30, 101, 20_000])
def test_wilson_is_the_formula(trials: int) -> None:
    for successes in sorted({0, 1, trials // 3, trials - 1, trials}):
        assert wilson_interval(successes, trials) == pytest.approx(
            _wilson_by_hand(successes, trials), rel=1e-12, abs=1e-15
        )


def test_wilson_has_a_width_at_the_ends() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
