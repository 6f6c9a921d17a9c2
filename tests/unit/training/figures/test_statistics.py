"""Figures with intervals: right against scikit-learn, honest about patients, calm about degenerate data."""

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from training.figures.bootstrap import (
    Outcomes,
    estimate_image_share,
    estimate_share,
    gather_outcomes,
    resample_patients,
)
from training.figures.compare import compare, measure_groups
from training.figures.curves import choose_threshold, trace_precision_recall, trace_roc
from training.figures.measure import FIGURES, count_confusion, measure, weighted_metrics
from training.figures.prevalence import predict_values

metrics = pytest.importorskip("sklearn.metrics", reason="needs the train extra (scikit-learn)")


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _two_classes(n: int, *, images_each: int = 1, seed: int = 0, strength: float = 1.5) -> Outcomes:
    """Scores are rounded, so that there are ties; all of a patient's images are alike."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 2, n // images_each), images_each)
    logits = np.repeat(strength * (labels[::images_each] - 0.5) + rng.normal(size=n // images_each), images_each)
    patients = [f"p{index // images_each}" for index in range(n)]
    return gather_outcomes(labels, np.round(1 / (1 + np.exp(-logits)), 2), patients)


def _three_classes(n: int = 300) -> Outcomes:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, n)
    probabilities = rng.dirichlet([1, 1, 1], n) + 0.4 * np.eye(3)[labels]
    return gather_outcomes(labels, probabilities / 1.4, [str(index) for index in range(n)])


def test_two_classes_agree_with_scikit_learn() -> None:
    outcomes = _two_classes(400)
    labels, scores = outcomes.labels, outcomes.probabilities[:, 1]
    found = {name: estimate.value for name, estimate in measure(outcomes, n_resamples=10).items()}
    assert tuple(found) == FIGURES
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert found["auprc"] == pytest.approx(metrics.average_precision_score(labels, scores))
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(labels, scores))
    assert found["sensitivity"] == pytest.approx(metrics.recall_score(labels, outcomes.predictions))
    assert found["specificity"] == pytest.approx(metrics.recall_score(labels, outcomes.predictions, pos_label=0))


def test_three_classes_agree_with_scikit_learn() -> None:
    outcomes = _three_classes()
    found = measure(outcomes, n_resamples=10)
    one_hot = np.eye(3)[outcomes.labels]
    assert found["auroc"].value == pytest.approx(
        metrics.roc_auc_score(outcomes.labels, outcomes.probabilities, multi_class="ovr")
    )
    assert found["auprc"].value == pytest.approx(metrics.average_precision_score(one_hot, outcomes.probabilities))
    assert found["brier"].value == pytest.approx(metrics.brier_score_loss(outcomes.labels, outcomes.probabilities))
    assert found["sensitivity"].value == pytest.approx(
        metrics.recall_score(outcomes.labels, outcomes.predictions, average="macro")
    )


@pytest.mark.parametrize("outcomes", [_two_classes(200), _three_classes()], ids=["two", "three"])
def test_figures_of_decisions_are_those_of_spark(outcomes: Outcomes) -> None:
    found = measure(outcomes, n_resamples=10)
    for name, value in weighted_metrics(count_confusion(outcomes)).items():
        assert found[name].value == pytest.approx(value), name


def test_a_resample_counts_as_scikit_learn_counts_weights() -> None:
    """The weighted figures inside the bootstrap are right, not only those of all images."""
    outcomes = _two_classes(60, images_each=2)
    weights = np.concatenate(list(resample_patients(outcomes.patients, n_resamples=300, seed=5)))
    wanted = [
        metrics.average_precision_score(outcomes.labels, outcomes.probabilities[:, 1], sample_weight=row)
        for row in weights
    ]
    found = measure(outcomes, n_resamples=300, seed=5)["auprc"]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(wanted, [0.025, 0.975])))


def test_resampling_draws_whole_patients() -> None:
    outcomes = _two_classes(90, images_each=3)
    weights = np.concatenate(list(resample_patients(outcomes.patients, n_resamples=50, seed=0)))
    assert weights.shape == (50, 90)
    assert (weights.sum(axis=1) == 90).all()
    assert (weights.reshape(50, 30, 3) == weights[:, ::3, None]).all()
    assert weights.max() > 1


def test_interval_is_wider_where_patients_have_several_images() -> None:
    outcomes = _two_classes(600, images_each=6)
    alone = gather_outcomes(outcomes.labels, outcomes.probabilities, [str(index) for index in range(600)])
    together, apart = measure(outcomes)["accuracy"], measure(alone)["accuracy"]
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(math.sqrt(6), rel=0.15)


def test_interval_of_independent_images_is_about_wilsons() -> None:
    outcomes = _two_classes(500)
    found = measure(outcomes)["accuracy"]
    wanted = estimate_share(int((outcomes.labels == outcomes.predictions).sum()), 500)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.006)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = 0.5 * (1 + math.erf(1.5 / 2))  # two normal distributions 1.5 deviations apart
    found = [measure(_two_classes(150, seed=seed), n_resamples=200, seed=seed)["auroc"] for seed in range(100)]
    assert 88 <= sum(item.low <= truth <= item.high for item in found) <= 100


def test_a_seed_gives_one_interval() -> None:
    outcomes = _two_classes(100)
    assert measure(outcomes, seed=1) == measure(outcomes, seed=1)
    assert measure(outcomes, seed=1)["auroc"] != measure(outcomes, seed=2)["auroc"]


def test_two_thousand_resamples_of_a_thousand_images_are_fast() -> None:
    outcomes = _two_classes(1000, images_each=2)
    started = time.perf_counter()
    measure(outcomes, n_resamples=2000)
    assert time.perf_counter() - started < 5


def test_no_mistake_is_no_certainty() -> None:
    labels = np.repeat([0, 1], [30, 20])
    found = measure(gather_outcomes(labels, labels * 0.8 + 0.1, [str(index) for index in range(50)]))
    for name, patients in {"accuracy": 50, "sensitivity": 20, "specificity": 30, "auroc": 20}.items():
        assert found[name].value == 1
        assert found[name].low == pytest.approx(estimate_share(patients, patients).low), name
        assert f"over {patients} patients" in found[name].note
    assert found["f1"].value == 1
    assert math.isnan(found["f1"].low)
    assert "no interval" in found["f1"].note


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only_says_so(label: int) -> None:
    found = measure(gather_outcomes([label] * 30, np.linspace(0, 1, 30), [str(index) for index in range(30)]))
    missing = "specificity" if label else "sensitivity"
    for name in ("auroc", "auprc", missing):
        assert math.isnan(found[name].value), name
        assert found[name].note == f"no image of class {1 - label}"
    assert 0 < found["accuracy"].low < found["accuracy"].value < found["accuracy"].high


def test_no_image_and_one_image_give_notes() -> None:
    nothing = gather_outcomes([], np.zeros((0, 2)), [])
    assert {(math.isnan(item.value), item.note) for item in measure(nothing).values()} == {(True, "no image")}
    assert math.isnan(predict_values(nothing)[0].ppv.value)
    assert math.isnan(compare(nothing, nothing)["auroc"].p_like)
    one = gather_outcomes([1], [0.9], ["a"])
    assert measure(one)["accuracy"].value == 1
    assert measure_groups(nothing, []) == ()


def test_few_patients_are_noted() -> None:
    assert "12 patients are too few" in measure(_two_classes(24, images_each=2))["brier"].note


def _with_few_positives(n_positive: int, *, images_each: int = 1) -> Outcomes:
    """100 negative patients, and some positive ones: scores overlap."""
    labels = np.repeat([0, 1], [100, n_positive * images_each])
    logits = np.random.default_rng(n_positive).normal(labels, 1)
    patients = [*range(100), *(100 + index // images_each for index in range(n_positive * images_each))]
    return gather_outcomes(labels, 1 / (1 + np.exp(-logits)), [str(patient) for patient in patients])


def test_patients_of_the_rarer_class_are_those_that_count() -> None:
    few, enough = (measure(_with_few_positives(n, images_each=4), n_resamples=200) for n in (4, 10))
    for name in ("auroc", "auprc", "sensitivity"):
        assert few[name].note == "4 patients of class 1 are too few for a trustworthy interval", name
        assert enough[name].note == "", name
    for name in ("accuracy", "specificity", "brier"):
        assert few[name].note == "", name
    (values, *_) = predict_values(_with_few_positives(4, images_each=4), n_resamples=200)
    assert "4 patients of class 1 are too few" in values.ppv.note


def test_one_patient_of_a_class_gives_no_interval() -> None:
    found = measure(_with_few_positives(1, images_each=3), n_resamples=400)["auroc"]
    assert 0 < found.value < 1
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    missing, few = found.note.split("; ")
    assert missing.startswith("a class was missing in 3")
    assert missing.endswith("% of the resamples: no interval")
    assert few == "1 patient of class 1 is too few for a trustworthy interval"
    assert "was missing" in measure(_with_few_positives(2), n_resamples=400)["auroc"].note


def test_many_classes_keep_their_interval() -> None:
    """Each has patients enough, though in a third of the resamples one of them is missing."""
    labels = np.repeat(np.arange(60), 5)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(60), 300) + 0.1 * np.eye(60)[labels]
    found = measure(gather_outcomes(labels, probabilities / 1.1, [str(i) for i in range(300)]), n_resamples=100)[
        "auroc"
    ]
    assert found.low < found.value
    assert "a class was missing in 3" in found.note
    assert "no interval" not in found.note


# --- shares of images


def test_a_share_of_images_is_resampled_by_patients() -> None:
    alike = np.repeat(np.arange(60) < 12, 20)
    found = estimate_image_share(alike, np.repeat(np.arange(60), 20))
    wanted = estimate_share(12, 60)
    assert found.value == wanted.value == 0.2
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.02)
    assert found.note == ""
    weights = np.concatenate(list(resample_patients(np.repeat(np.arange(60), 20), n_resamples=2000, seed=0)))
    shares = weights @ alike / weights.sum(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(shares, [0.025, 0.975])))


def test_intervals_of_shares_cover_the_truth_though_images_of_a_patient_are_alike() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        inside = rng.random((60, 20)) < rng.beta(0.4, 1.6, 60)[:, None]  # 0.2 on the whole
        found = estimate_image_share(inside.ravel(), np.repeat(np.arange(60), 20), n_resamples=400)
        covered += found.low <= 0.2 <= found.high
    assert covered >= 88


def test_degenerate_shares_have_notes() -> None:
    assert estimate_image_share([], []).note == "nothing to count"
    none = estimate_image_share([False] * 30, [str(index // 3) for index in range(30)])
    assert (none.value, none.low, none.high) == pytest.approx((0, 0, estimate_share(0, 10).high))
    assert "over 10 patients" in none.note
    one = estimate_image_share([True, False], ["a", "a"])
    assert (one.value, one.note) == (0.5, "the same in every resample: no interval")
    assert "5 patients are too few" in estimate_image_share([True] * 6 + [False] * 14, np.arange(20) // 4).note


@pytest.mark.parametrize(
    ("labels", "probabilities", "patients", "message"),
    [
        ([0, 1], [0.5], ["a", "b"], "shapes"),
        ([0, 1], [0.5, 0.5], ["a"], "1 patients"),
        ([0, 2], [0.5, 0.5], ["a", "b"], "labels go from 0 to 2"),
        ([0, 1], [0.5, float("nan")], ["a", "b"], "not a number from 0 to 1"),
    ],
)
def test_mistakes_of_the_program_are_refused(
    labels: list[int], probabilities: list[float], patients: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        gather_outcomes(labels, probabilities, patients)


def test_threshold_decides_from_itself_on() -> None:
    assert gather_outcomes([0, 0, 1], [0.2, 0.3, 0.4], list("abc"), threshold=0.3).predictions.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match="between two classes, found 3"):
        gather_outcomes([0], [[0.2, 0.3, 0.5]], ["a"], threshold=0.3)


# --- curves and thresholds


def test_curves_enclose_their_areas_and_keep_their_ends() -> None:
    outcomes = _two_classes(2000, strength=1)
    figures = measure(outcomes, n_resamples=10)
    roc, precision_recall = trace_roc(outcomes, max_points=60), trace_precision_recall(outcomes)
    assert len(roc.x) <= 60
    assert (roc.x[0], roc.y[0], roc.x[-1], roc.y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(figures["auroc"].value, abs=1e-3)
    assert (np.diff(precision_recall.x) * precision_recall.y[1:]).sum() == pytest.approx(figures["auprc"].value)
    assert (np.diff(roc.thresholds) < 0).all()
    assert (np.diff(precision_recall.thresholds) < 0).all()


def test_curves_of_one_class_are_empty_with_a_note() -> None:
    outcomes = gather_outcomes([0, 0], [0.1, 0.2], ["a", "b"])
    for curve in (trace_roc(outcomes), trace_precision_recall(outcomes)):
        assert curve.x.size == 0
        assert curve.note == "no image of class 1"


def test_curves_want_two_classes() -> None:
    with pytest.raises(ValueError, match="3 classes, expected 2"):
        trace_roc(_three_classes())


@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.95, 1.0])
def test_threshold_is_the_highest_that_reaches_the_sensitivity(wanted: float) -> None:
    outcomes = _two_classes(300)
    point = choose_threshold(outcomes, sensitivity=wanted, n_resamples=20)
    positive = outcomes.probabilities[outcomes.labels == 1, 1]
    assert point.threshold is not None
    assert (positive >= point.threshold).mean() == pytest.approx(point.sensitivity.value)
    assert point.sensitivity.value >= wanted
    higher = outcomes.probabilities[outcomes.probabilities[:, 1] > point.threshold, 1].min()
    assert (positive > higher).mean() < wanted


def test_threshold_asks_for_no_image_more_than_needed() -> None:
    outcomes = gather_outcomes([1] * 20 + [0], [*np.linspace(0.3, 0.9, 20), 0.1], [str(i) for i in range(21)])
    assert choose_threshold(outcomes, sensitivity=0.95).sensitivity.value == pytest.approx(0.95)


def test_threshold_without_positives_is_none() -> None:
    point = choose_threshold(gather_outcomes([0, 0], [0.1, 0.2], ["a", "b"]), sensitivity=0.9)
    assert point.threshold is None
    assert "no image of class 1" in point.sensitivity.note
    with pytest.raises(ValueError, match=r"sensitivity is 1\.5"):
        choose_threshold(_two_classes(10), sensitivity=1.5)


# --- predictive values


def test_predictive_values_by_hand() -> None:
    # Sensitivity 0.9, specificity 0.8: of 1,000 patients with 100 diseased, 90 of 270 positives and 720 of 730
    # negatives are right.
    labels = [1] * 100 + [0] * 100
    scores = [0.9] * 90 + [0.1] * 10 + [0.9] * 20 + [0.1] * 80
    outcomes = gather_outcomes(labels, scores, [str(index) for index in range(200)])
    (found,) = predict_values(outcomes, prevalences=[0.1])
    assert found.ppv.value == pytest.approx(90 / 270)
    assert found.npv.value == pytest.approx(720 / 730)
    assert 0.25 < found.ppv.low < 90 / 270 < found.ppv.high < 0.45
    assert found.npv.low < 720 / 730 < found.npv.high


def test_predictive_values_without_a_false_alarm_are_not_certain() -> None:
    labels = np.repeat([0, 1], 20)
    (found,) = predict_values(gather_outcomes(labels, labels * 0.9, [str(i) for i in range(40)]), prevalences=[0.05])
    assert found.ppv.value == 1
    assert found.ppv.low < 0.3
    assert found.ppv.note


def test_predictive_values_that_hang_on_two_answers_say_so() -> None:
    labels = np.repeat([0, 1], 40)
    scores = np.where(np.isin(np.arange(80), [0, 79]), 0.9, 0.1)
    (found,) = predict_values(gather_outcomes(labels, scores, [str(index) for index in range(80)]), prevalences=[0.5])
    assert found.ppv.value == pytest.approx(0.5)
    assert "a class, or every such answer, was missing in 1" in found.ppv.note
    assert found.npv.note == ""


def test_predictive_values_refuse_an_impossible_prevalence() -> None:
    with pytest.raises(ValueError, match="prevalence is 0, expected"):
        predict_values(_two_classes(20), prevalences=[0.5, 0])


# --- groups and comparisons


def test_groups_are_measured_by_themselves() -> None:
    outcomes = _two_classes(200)
    groups = ["b" if index < 80 else "a" for index in range(200)]
    first, second = measure_groups(outcomes, groups, n_resamples=50)
    assert (first.name, first.n_images, second.name, second.n_images) == ("a", 120, "b", 80)
    assert first.n_patients == 120
    assert sum(first.n_by_class) == 120
    assert (first.confusion + second.confusion == count_confusion(outcomes)).all()
    labels, scores = outcomes.labels[:80], outcomes.probabilities[:80, 1]
    assert second.figures["auroc"].value == pytest.approx(metrics.roc_auc_score(labels, scores))


def test_a_group_of_one_class_has_notes_and_the_rest_of_its_figures() -> None:
    outcomes = gather_outcomes([0, 0, 1], [0.1, 0.8, 0.9], ["a", "b", "c"])
    first, second = measure_groups(outcomes, ["x", "x", "y"])
    assert (first.figures["accuracy"].value, second.figures["accuracy"].value) == (0.5, 1.0)
    assert first.figures["auroc"].note == "no image of class 1"
    assert second.n_by_class == (0, 1)


def test_a_better_model_is_told_from_a_worse_one() -> None:
    better = _two_classes(300, strength=3)
    noise = np.random.default_rng(0).uniform(size=300)
    worse = gather_outcomes(better.labels, noise, [f"p{index}" for index in range(300)])
    found = compare(worse, better)["auroc"]
    assert found.difference.value == pytest.approx(found.second - found.first)
    assert found.difference.low > 0
    assert 0 < found.p_like < 0.01
    assert compare(better, worse)["auroc"].difference.high < 0


def test_pairs_make_the_difference_surer_than_the_figures() -> None:
    """A model that is a little better on the very same images is found out, though its own interval is wide."""
    first = _two_classes(300)
    mended = np.where(np.arange(300) % 30 == 0, first.labels, first.probabilities[:, 1])
    second = gather_outcomes(first.labels, mended, [f"p{index}" for index in range(300)])
    figures, found = measure(first)["brier"], compare(first, second)["brier"]
    assert found.difference.high < 0
    assert found.difference.high - found.difference.low < (figures.high - figures.low) / 2


def test_a_model_beside_itself_makes_no_difference() -> None:
    outcomes = _two_classes(100)
    found = compare(outcomes, outcomes)["auroc"]
    assert (found.difference.value, found.difference.low, found.difference.high, found.p_like) == (0, 0, 0, 1)


@pytest.mark.parametrize("worse", [-0.03, 0.03])
def test_two_patients_make_no_difference_sure(worse: float) -> None:
    labels, patients = np.repeat([0, 1], 10), ["a"] * 10 + ["b"] * 10
    scores = np.clip(np.random.default_rng(0).normal(0.4 + 0.2 * labels, 0.1), 0.05, 0.95)
    first, second = (gather_outcomes(labels, scores + change * labels, patients) for change in (0, worse))
    found = compare(first, second)["auroc"]
    assert found.difference.value == pytest.approx(found.second - found.first)
    assert abs(found.difference.value) > 0.01
    assert [math.isnan(value) for value in (found.difference.low, found.difference.high, found.p_like)] == [True] * 3
    assert "the same in every resample: no interval" in found.difference.note
    assert "1 patient of class 0 is too few" in found.difference.note


def test_one_positive_patient_among_many_makes_no_difference_sure() -> None:
    first = _with_few_positives(1, images_each=3)
    second = replace(first, probabilities=first.probabilities * np.where(first.labels == 1, 0.8, 1)[:, None])
    found = compare(first, second)
    assert found["auroc"].difference.value < 0
    assert math.isnan(found["auroc"].difference.low)
    assert "a class was missing in 3" in found["auroc"].difference.note
    assert math.isfinite(found["brier"].difference.low)
    assert found["brier"].difference.note == ""


def test_comparisons_of_few_positive_patients_say_so() -> None:
    first = _with_few_positives(4)
    noise = np.random.default_rng(1).normal(0, 0.1, first.probabilities.shape)
    found = compare(first, replace(first, probabilities=np.clip(first.probabilities + noise, 0, 1)))
    assert found["auroc"].difference.note == "4 patients of class 1 are too few for a trustworthy interval"
    assert math.isfinite(found["auroc"].difference.low)
    assert found["accuracy"].difference.note == ""


def test_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different images"):
        compare(_two_classes(50, seed=1), _two_classes(50, seed=2))
