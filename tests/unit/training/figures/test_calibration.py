"""Calibration is told and mended on other images, the band and the detector hold what was asked for."""

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from schemas.modelcard import AbstainBand
from training.figures.bootstrap import Outcomes, gather_outcomes
from training.figures.calibration import measure_calibration
from training.figures.measure import measure
from training.model.abstain import choose_abstain_band, measure_abstention
from training.model.novelty import fit_detector
from training.model.probability import Calibrator, calibrate, fit_calibrator

linear_model = pytest.importorskip("sklearn.linear_model", reason="needs the train extra (scikit-learn)")


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _overconfident(n: int, seed: int, *, slope: float = 2.5, intercept: float = 1.0) -> Outcomes:
    """The truth is ``sigmoid(z)``; the model says ``sigmoid(slope * z + intercept)``."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, n)
    labels = (rng.uniform(size=n) < _sigmoid(z)).astype(int)
    return gather_outcomes(labels, _sigmoid(slope * z + intercept), [str(index) for index in range(n)])


@pytest.fixture(scope="module")
def validation() -> Outcomes:
    return _overconfident(1500, 1)


@pytest.fixture(scope="module")
def test_images() -> Outcomes:
    return _overconfident(3000, 2)


# --- calibrators


def test_platt_undoes_the_distortion() -> None:
    found = fit_calibrator(_overconfident(20_000, 1))
    assert found.method == "platt"
    assert (found.slope, found.intercept) == pytest.approx((0.4, -0.4), abs=0.06)


def test_platt_is_logistic_regression_on_logits(validation: Outcomes) -> None:
    scores = validation.probabilities[:, 1]
    wanted = linear_model.LogisticRegression(C=np.inf).fit(np.log(scores / (1 - scores))[:, None], validation.labels)
    found = fit_calibrator(validation)
    assert found.slope == pytest.approx(wanted.coef_.item(), rel=0.01)
    assert found.intercept == pytest.approx(wanted.intercept_.item(), abs=0.01)


def test_calibration_gets_better_on_images_it_never_saw(validation: Outcomes, test_images: Outcomes) -> None:
    before = measure_calibration(test_images, n_resamples=100)
    after = measure_calibration(calibrate(test_images, fit_calibrator(validation)), n_resamples=100)
    assert before.brier.low > after.brier.high
    assert before.slope.high < 0.5
    assert after.slope.low < 1 < after.slope.high
    assert before.intercept.high < -0.5
    assert after.intercept.value == pytest.approx(0, abs=0.15)
    assert after.expected_error < before.expected_error / 3


def test_calibration_leaves_the_order_alone(validation: Outcomes, test_images: Outcomes) -> None:
    after = calibrate(test_images, fit_calibrator(validation))
    figures = [measure(outcomes, n_resamples=10) for outcomes in (test_images, after)]
    for name in ("auroc", "auprc"):
        assert figures[0][name].value == pytest.approx(figures[1][name].value), name


def test_temperature_for_three_classes() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 3))
    truth = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (truth.cumsum(axis=1) < rng.uniform(size=(3000, 1))).sum(axis=1)
    said = np.exp(3 * logits) / np.exp(3 * logits).sum(axis=1, keepdims=True)
    outcomes = gather_outcomes(labels, said, [str(index) for index in range(3000)])
    found = fit_calibrator(outcomes)
    assert (found.method, found.intercept) == ("temperature", 0)
    assert found.slope == pytest.approx(1 / 3, abs=0.03)
    calibrated = calibrate(outcomes, found)
    assert calibrated.probabilities.sum(axis=1) == pytest.approx(1)
    np.testing.assert_allclose(calibrated.probabilities, truth, atol=0.05)
    with pytest.raises(ValueError, match="Platt's method is for two classes, found 3"):
        fit_calibrator(outcomes, "platt")


def test_separated_classes_give_a_finite_slope() -> None:
    labels = np.repeat([0, 1], 20)
    found = fit_calibrator(gather_outcomes(labels, 0.3 + 0.4 * labels, [str(index) for index in range(40)]))
    assert 1 < found.slope < 10


@pytest.mark.parametrize("scores", [[0.9, 0.8, 0.2, 0.1], None], ids=["backwards", "one class"])
def test_what_cannot_be_calibrated_is_left_as_it_is(scores: list[float] | None) -> None:
    labels = [0] * 4 if scores is None else [0, 0, 1, 1]
    outcomes = gather_outcomes(labels, scores or [0.1, 0.2, 0.3, 0.4], list("abcd"))
    found = fit_calibrator(outcomes)
    assert found == Calibrator("platt", 1.0)
    np.testing.assert_allclose(found.apply(outcomes.probabilities), outcomes.probabilities)


def test_certain_probabilities_stay_finite() -> None:
    found = Calibrator("platt", 0.5, 0.1).apply([[0.0, 1.0], [1.0, 0.0]])
    assert np.isfinite(found).all()
    assert found.sum(axis=1) == pytest.approx(1)


def test_threshold_is_in_calibrated_probability(test_images: Outcomes) -> None:
    calibrator = Calibrator("platt", 0.4, -0.4)
    decided = calibrate(test_images, calibrator, threshold=0.2)
    np.testing.assert_array_equal(decided.predictions, decided.probabilities[:, 1] >= 0.2)


# --- how well calibrated


def test_slope_and_intercept_are_those_of_logistic_regression(test_images: Outcomes) -> None:
    scores = test_images.probabilities[:, 1]
    logits = np.log(scores / (1 - scores))
    found = measure_calibration(test_images, n_resamples=100)
    wanted = linear_model.LogisticRegression(C=np.inf).fit(logits[:, None], test_images.labels).coef_.item()
    assert found.slope.value == pytest.approx(wanted, rel=1e-3)
    assert found.slope.low < wanted < found.slope.high
    # At the right offset as many are expected as found.
    assert _sigmoid(logits + found.intercept.value).sum() == pytest.approx(test_images.labels.sum())


def test_reliability_table_counts_every_image(test_images: Outcomes) -> None:
    table = measure_calibration(test_images, n_bins=5, n_resamples=10).table
    assert sum(item.n_images for item in table) == 3000
    scores, last = test_images.probabilities[:, 1], table[-1]
    inside = scores >= 0.8
    assert (last.low, last.high, last.n_images) == (0.8, 1.0, inside.sum())
    assert last.mean_probability == pytest.approx(scores[inside].mean())
    assert last.observed.value == pytest.approx(test_images.labels[inside].mean())
    assert last.observed.low < last.observed.value < last.observed.high


def test_degenerate_data_give_notes() -> None:
    separated = measure_calibration(gather_outcomes([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], list("abcd")))
    assert math.isnan(separated.slope.value)
    assert "separate the classes" in separated.slope.note
    assert separated.intercept.value == pytest.approx(0)
    one_class = measure_calibration(gather_outcomes([0, 0], [0.1, 1.0], ["a", "b"]))
    assert "both classes" in one_class.slope.note
    assert [item.n_images for item in one_class.table] == [1, 1]
    nothing = measure_calibration(gather_outcomes([], np.zeros((0, 2)), []))
    assert nothing.table == ()
    assert math.isnan(nothing.expected_error)
    with pytest.raises(ValueError, match="3 classes, expected 2"):
        measure_calibration(gather_outcomes([0], [[0.2, 0.3, 0.5]], ["a"]))


def test_bins_say_that_their_intervals_ignore_patients(test_images: Outcomes) -> None:
    for item in measure_calibration(test_images, n_resamples=10).table:
        assert "Wilson's, which take images for independent" in item.observed.note


def test_probabilities_that_are_all_the_same_are_not_called_separating() -> None:
    labels = np.repeat([0, 1], [40, 20])
    found = measure_calibration(gather_outcomes(labels, np.full(60, 0.4), [str(i) for i in range(60)]))
    assert math.isnan(found.slope.value)
    assert found.slope.note == "all probabilities are the same: there is no slope"
    assert found.intercept.low < found.intercept.value < found.intercept.high
    assert found.intercept.value == pytest.approx(math.log(20 / 40) - math.log(0.4 / 0.6))
    assert found.intercept.note == ""


@pytest.mark.parametrize(("n_crossed", "noted", "shown"), [(1, True, False), (3, True, True), (9, False, True)])
def test_resamples_without_a_slope_are_counted(n_crossed: int, noted: bool, shown: bool) -> None:
    """As many images of each class are where the other's are; a resample without them has no slope."""
    labels = np.repeat([0, 1], 20)
    logits = np.r_[np.linspace(-3, -0.5, 20), np.linspace(0.5, 3, 20)]
    crossed = slice(20 - n_crossed, 20 + n_crossed)
    logits[crossed] = logits[crossed][::-1]
    outcomes = gather_outcomes(labels, _sigmoid(logits), [str(index) for index in range(40)])
    found = measure_calibration(outcomes, n_resamples=200).slope
    assert math.isfinite(found.value)
    assert math.isfinite(found.low) is math.isfinite(found.high) is shown
    assert found.note.startswith("a class was missing, or the classes were separated, in ") is noted
    assert found.note.endswith("no interval") is not shown


def test_one_patient_gives_no_interval() -> None:
    scores = np.random.default_rng(0).uniform(0.2, 0.8, 10)
    found = measure_calibration(gather_outcomes([0, 1] * 5, scores, ["a"] * 10), n_resamples=50)
    for figure in (found.slope, found.intercept):
        assert math.isfinite(figure.value)
        assert math.isnan(figure.low)
        assert figure.note.startswith("the same in every resample: no interval; 1 patient of class 0 is too few")


# --- abstain band


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_band_holds_the_share_and_the_threshold(validation: Outcomes, threshold: float) -> None:
    band = choose_abstain_band(validation, threshold=threshold, share=0.15)
    assert band.low < threshold < band.high
    assert band.covers(validation.probabilities[:, 1]).mean() == pytest.approx(0.15, abs=0.002)


def test_abstaining_makes_the_rest_better(validation: Outcomes, test_images: Outcomes) -> None:
    band = choose_abstain_band(validation, threshold=0.5, share=0.2)
    found = measure_abstention(test_images, band, n_resamples=200)
    assert found.share.value == pytest.approx(0.2, abs=0.03)
    assert found.decided["accuracy"].low > found.all_images["accuracy"].value


def test_the_share_in_the_band_is_resampled_by_patients() -> None:
    scores = np.repeat(np.where(np.arange(50) < 10, 0.5, 0.9), 10)
    outcomes = gather_outcomes(np.arange(500) % 2, scores, [str(index // 10) for index in range(500)])
    found = measure_abstention(outcomes, AbstainBand(0.4, 0.6)).share
    assert found.value == 0.2
    assert (found.low, found.high) == pytest.approx((0.1, 0.32), abs=0.03), "of 500 images 0.17 to 0.24"


def test_no_share_is_an_empty_band(validation: Outcomes) -> None:
    band = choose_abstain_band(validation, threshold=0.3, share=0)
    assert not band.covers(np.array([0.0, 0.3, 1.0])).any()


def test_band_of_everything_leaves_nothing_to_measure() -> None:
    found = measure_abstention(gather_outcomes([0, 1], [0.4, 0.6], ["a", "b"]), AbstainBand(0.1, 0.9))
    assert found.share.value == 1
    assert found.decided["accuracy"].note == "no image"


def test_impossible_bands_are_refused(validation: Outcomes) -> None:
    with pytest.raises(ValueError, match=r"share is 0\.9"):
        choose_abstain_band(validation, threshold=0.5, share=0.9)
    with pytest.raises(ValueError, match="0 images of 2 classes"):
        choose_abstain_band(gather_outcomes([], np.zeros((0, 2)), []), threshold=0.5, share=0.1)


# --- novelty detector


def _features(n: int, seed: int, *, shift: float = 0.0) -> np.ndarray:
    """Like a network's: not negative, on few directions of many, with some noise."""
    directions = np.random.default_rng(0).normal(size=(12, 200))
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, 12)) @ directions + rng.normal(size=(n, 200)) + 4
    mixed[:, :100] += shift
    return np.maximum(mixed, 0).astype(np.float32)


def _patients(n: int) -> list[str]:
    return [f"p{index}" for index in range(n)]


def test_detector_accepts_the_stated_share_of_new_patients() -> None:
    detector = fit_detector(_features(800, 1), _patients(800), quantile=0.95)
    assert detector.flags(_features(1000, 2)).mean() == pytest.approx(0.05, abs=0.025)


def test_detector_flags_what_is_unlike() -> None:
    detector = fit_detector(_features(400, 1), _patients(400))
    assert detector.flags(_features(100, 3, shift=15)).all()
    assert detector.flags(np.random.default_rng(0).uniform(0, 5, (100, 200))).mean() > 0.95


def test_detector_does_not_count_a_patient_s_own_images() -> None:
    """Ten near-copies of each patient: with them as neighbours no new patient would be accepted."""
    rng = np.random.default_rng(5)
    features = np.repeat(_features(60, 1), 10, axis=0) + rng.normal(0, 0.01, (600, 200)).astype(np.float32)
    grouped = fit_detector(features, [f"p{index // 10}" for index in range(600)])
    apart = fit_detector(features, _patients(600))
    new = _features(200, 9)
    assert grouped.flags(new).mean() < 0.3
    assert apart.flags(new).mean() > 0.9


def test_detector_keeps_a_bounded_number_of_references() -> None:
    detector = fit_detector(_features(600, 1), _patients(600), max_references=100, quantile=0.9)
    assert detector.references.shape == (100, 200)
    assert detector.references.dtype == np.float32
    assert detector.flags(_features(500, 2)).mean() == pytest.approx(0.1, abs=0.05)


def test_detector_flags_numbers_that_are_none() -> None:
    detector = fit_detector(_features(100, 1), _patients(100))
    features = _features(3, 2)
    features[0], features[1, 5] = 0, np.nan
    assert detector.flags(features)[:2].tolist() == [True, True]


def test_a_seed_gives_one_detector() -> None:
    first, second = (fit_detector(_features(300, 1), _patients(300), max_references=50, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.references, second.references)
    assert first.threshold == second.threshold


def test_detectors_that_cannot_be_fitted_are_refused() -> None:
    with pytest.raises(ValueError, match="5 images of 5 patients, expected 20 of 6 or more"):
        fit_detector(_features(5, 1), _patients(5))
    with pytest.raises(ValueError, match="50 images of 1 patients"):
        fit_detector(_features(50, 1), ["same"] * 50)
    with pytest.raises(ValueError, match="quantile is 1"):
        fit_detector(_features(50, 1), _patients(50), quantile=1)
