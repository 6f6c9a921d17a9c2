"""Drift: what is found, what is not, and how often nothing is taken for something."""

import json
import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from schemas.errors import ModelLoadError
from schemas.modelcard import ModelCard
from tests.stored import FIRST_DAY, add_champion, score_images
from training.features.stored import describe_featurizer
from training.figures.shift import (
    REFERENCE_FILE,
    Reference,
    chance_of_distance,
    compare_scores,
    compare_vectors,
    load_reference,
    make_reference,
    save_reference,
)
from training.lifecycle.drift import ENERGY_LIMIT, P_LIMIT, PSI_LIMIT, WINDOW_DAYS, Drift, measure_drift
from training.lifecycle.driftpage import list_figures, write_drift

_N_FEATURES = 100
_MIX = np.random.default_rng(0).standard_normal((8, _N_FEATURES))


def draw(n: int, seed: int, *, shift: float = 0.0, spread: float = 1.0) -> np.ndarray:
    """Vectors as a network's: correlated, none below 0."""
    rng = np.random.default_rng(seed)
    causes = spread * rng.standard_normal((n, 8))
    noisy = causes @ _MIX / 2 + rng.standard_normal((n, _N_FEATURES)) / 2
    return np.maximum(noisy, 0).astype(np.float32) + np.float32(shift)


def count(scores: np.ndarray) -> np.ndarray:
    return make_reference(np.zeros((2, 1), np.float32), scores).scores


# --- the reference ----------------------------------------------------------------------------------------------------


def test_a_reference_comes_back_as_it_was(tmp_path: Path) -> None:
    features = draw(5000, 1)
    made = make_reference(features, np.linspace(0, 1, 300), seed=3)
    assert made.sample.shape == (2000, _N_FEATURES)
    assert made.means == pytest.approx(features.mean(axis=0, dtype=np.float64))
    assert made.deviations == pytest.approx(features.std(axis=0, dtype=np.float64))
    assert (made.n_images, made.scores.sum()) == (5000, 300)
    path = save_reference(tmp_path / "reports" / "v", made)
    found = load_reference(path.parent)
    assert found is not None
    for name in ("scores", "means", "deviations", "sample"):
        assert np.array_equal(getattr(found, name), getattr(made, name))
    assert found.n_images == 5000


def test_a_missing_reference_is_none_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    assert load_reference(tmp_path) is None
    (tmp_path / REFERENCE_FILE).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ModelLoadError, match=REFERENCE_FILE):
        load_reference(tmp_path)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_scores_are_compared_as_scipy_does() -> None:
    rng = np.random.default_rng(1)
    old, new = (np.round(rng.beta(*shape, size), 4) for shape, size in (((2, 5), 900), ((2.4, 5), 400)))
    found = compare_scores(count(old), count(new))
    other = ks_2samp(old, new, method="asymp")
    assert found.ks == pytest.approx(other.statistic, abs=0.01)  # a thousand bins
    assert found.p_value == pytest.approx(other.pvalue, rel=0.3)
    assert (found.n_reference, found.n_recent) == (900, 400)


@pytest.mark.parametrize("n_second", [100, 5000])
def test_chance_of_a_distance_is_the_sum_of_the_series(n_second: int) -> None:
    def sum_series(distance: float) -> float:
        root = math.sqrt(900 * n_second / (900 + n_second))
        scaled = (root + 0.12 + 0.11 / root) * distance
        if scaled < 0.2:
            return 1.0
        total = 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * (k * scaled) ** 2) for k in range(1, 101))
        return min(1.0, max(0.0, total))

    for distance in np.linspace(0, 1, 401).tolist():
        assert chance_of_distance(distance, 900, n_second) == pytest.approx(sum_series(distance), rel=1e-9, abs=1e-9)


def test_index_of_scores_is_the_textbooks() -> None:
    old = np.repeat(np.arange(10) / 10 + 0.05, 10)
    new = np.repeat(np.arange(10) / 10 + 0.05, [1, 1, 1, 1, 1, 1, 1, 1, 1, 11])
    shares = np.array([1.0] * 9 + [11]) / 20
    assert compare_scores(count(old), count(old)).psi == pytest.approx(0)
    assert compare_scores(count(old), count(new)).psi == pytest.approx(((shares - 0.1) * np.log(shares / 0.1)).sum())


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_scores_that_are_all_alike_are_compared(value: float) -> None:
    same = count(np.full(200, value))
    assert compare_scores(same, same).psi == 0
    assert compare_scores(same, count(np.linspace(0, 1, 200))).ks > 0.2


# --- vectors ----------------------------------------------------------------------------------------------------------


def find_shift(seed: int, n: int = 200, **shift: float) -> bool:
    reference = make_reference(draw(1000, seed), [])
    found = compare_vectors(reference, draw(n, seed + 1000, **shift), seed=seed)
    return found.p_value <= P_LIMIT


def test_nothing_is_seldom_taken_for_a_shift() -> None:
    assert sum(find_shift(seed) for seed in range(40)) <= 3


def test_shifts_are_found() -> None:
    assert all(find_shift(seed, shift=0.2) for seed in range(5))
    assert all(find_shift(seed, spread=1.3) for seed in range(5))


def test_energy_grows_with_the_shift_and_names_the_feature() -> None:
    reference = make_reference(draw(1000, 1), [])
    energies = [compare_vectors(reference, draw(300, 2, shift=shift)).energy for shift in (0.0, 0.1, 0.3, 5.0)]
    assert energies == sorted(energies)
    assert abs(energies[0]) < ENERGY_LIMIT < energies[2] < energies[3] <= 1
    recent = draw(300, 3)
    recent[:, 17] += 4
    found = compare_vectors(reference, recent)
    assert found.largest[0][0] == 17
    assert found == compare_vectors(reference, recent)


@pytest.mark.parametrize("varied", [0.0, 1e-3], ids=["constant", "hardly varied"])
def test_a_feature_that_never_varied_does_not_decide(varied: float) -> None:
    rng = np.random.default_rng(5)
    mix = rng.standard_normal((30, 1280))
    old, new = (
        (rng.standard_normal((n, 30)) @ mix + rng.standard_normal((n, 1280))).astype(np.float32) for n in (600, 200)
    )
    old[:, 7] = varied * rng.standard_normal(600)
    new[:, 7] = varied * rng.standard_normal(200)
    reference = make_reference(old, [])
    before = compare_vectors(reference, new)
    assert before.still_moved == ()
    new[:20, 7] = 1.0
    found = compare_vectors(reference, new)
    assert (found.energy, found.p_value) == (before.energy, before.p_value)
    assert abs(found.energy) < ENERGY_LIMIT
    assert found.still_moved == (7,)
    assert 7 not in dict(found.largest)


def test_vectors_that_never_varied_have_no_energy() -> None:
    found = compare_vectors(make_reference(np.ones((200, 3), np.float32), []), np.full((200, 3), 2, np.float32))
    assert (found.energy, found.p_value, found.still_moved) == (0, 1, (0, 1, 2))


# --- the archive ------------------------------------------------------------------------------------------------------


@pytest.fixture
def card(tmp_path: Path) -> ModelCard:
    return add_champion(tmp_path)


def look(home: Path, card: ModelCard, reference: Reference | None = None) -> Drift:
    featurizer = describe_featurizer(home / "models" / card.version, card)
    return measure_drift(str(home / "tables"), card, featurizer, [card.sha256], reference)


def test_an_archive_that_stays_as_it_was_calls_for_nothing(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, card, 1200, days=3 * WINDOW_DAYS)
    found = look(tmp_path, card)
    assert found.called_for is False
    assert found.verdict == "drift does not call for retraining"
    assert found.scores is not None
    assert found.vectors is not None
    assert (found.scores.n_recent, found.vectors.n_recent) == (400, 400)
    assert "2026-01-19 to 2026-01-25" in found.recent
    assert "2026-01-05 to 2026-01-11" in found.reference


def test_an_archive_that_shifts_calls_for_retraining(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, card, 400, days=WINDOW_DAYS)
    later = FIRST_DAY + timedelta(days=30)
    score_images(tmp_path, card, 400, seed=1, days=WINDOW_DAYS, first_day=later, shift=1.5)
    found = look(tmp_path, card)
    assert found.called_for is True
    assert found.scores is not None
    assert found.scores.psi > PSI_LIMIT
    assert [reason.partition(" have")[0] for reason in found.reasons] == ["scores", "feature vectors"]


def test_the_models_own_reference_is_what_counts(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 400, days=1)
    recent = make_reference(scored.features, 1 / (1 + np.exp(1 - scored.features[:, 1])))
    assert look(tmp_path, card, recent).called_for is False
    shifted = replace(recent, sample=recent.sample + 2, means=recent.means + 2)
    found = look(tmp_path, card, shifted)
    assert found.called_for is True
    assert found.reference == "the 400 images of the model's training set"


def count_positive(share: float) -> np.ndarray:
    """Scores of 1,000 images, of which a share is positive."""
    rng = np.random.default_rng(8)
    logits = rng.normal(np.where(np.arange(1000) < 1000 * share, 1.2, -1.2), 1)
    return count(1 / (1 + np.exp(-2.4 * logits)))


def test_another_share_of_positive_images_does_not_call_for_retraining(tmp_path: Path, card: ModelCard) -> None:
    shift = compare_scores(count_positive(0.5), count_positive(0.1))
    assert shift.psi > PSI_LIMIT
    scored = score_images(tmp_path, card, 400, days=1)
    made = replace(make_reference(scored.features, []), scores=count_positive(0.1))
    found = look(tmp_path, card, made)
    assert found.called_for is False
    assert found.scores is not None
    assert found.scores.psi > PSI_LIMIT
    [note] = found.reasons
    assert note.startswith("scores differ from the training set's: PSI ")
    assert "another share of positive images is enough for that" in note
    assert look(tmp_path, card, replace(made, sample=made.sample[:50])).called_for is None, "nothing else was compared"


def test_scores_are_compared_with_the_models_first_days_in_service(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, replace(card, sha256="0" * 64), 300, seed=2, days=WINDOW_DAYS)
    first, later = FIRST_DAY + timedelta(days=30), FIRST_DAY + timedelta(days=60)
    score_images(tmp_path, card, 400, seed=1, days=WINDOW_DAYS, first_day=first)
    scored = score_images(tmp_path, card, 400, days=WINDOW_DAYS, first_day=later)
    made = replace(make_reference(scored.features, []), scores=count_positive(0.1))
    found = look(tmp_path, card, made)
    assert (found.called_for, found.reasons) == (False, ())
    assert found.scores is not None
    assert found.scores.psi < 0.1
    assert found.reference == (
        "the 400 images of the model's training set; scores with the model's first days in service, 2026-02-04 to "
        "2026-02-10"
    )


def test_scores_that_leave_the_first_days_call_for_retraining(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, card, 400, seed=1, days=WINDOW_DAYS, shift=1.5)
    scored = score_images(tmp_path, card, 400, days=WINDOW_DAYS, first_day=FIRST_DAY + timedelta(days=30))
    recent = make_reference(scored.features, 1 / (1 + np.exp(1 - scored.features[:, 1])))
    found = look(tmp_path, card, recent)
    assert found.called_for is True
    assert [reason.partition(":")[0] for reason in found.reasons] == ["scores have shifted"]


def test_first_days_of_few_scores_or_that_are_not_over_do_not_count(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, card, 99, seed=1, days=WINDOW_DAYS, shift=1.5)
    scored = score_images(tmp_path, card, 400, days=WINDOW_DAYS, first_day=FIRST_DAY + timedelta(days=30))
    recent = make_reference(scored.features, 1 / (1 + np.exp(1 - scored.features[:, 1])))
    assert look(tmp_path, card, recent).called_for is False
    score_images(tmp_path, card, 400, seed=2, days=2 * WINDOW_DAYS - 1, first_day=FIRST_DAY + timedelta(days=90))
    young = replace(card, sha256="1" * 64)
    score_images(tmp_path, young, 400, seed=3, days=2 * WINDOW_DAYS - 1, first_day=FIRST_DAY + timedelta(days=120))
    featurizer = describe_featurizer(tmp_path / "models" / card.version, card)
    found = measure_drift(str(tmp_path / "tables"), young, featurizer, [card.sha256, young.sha256], recent)
    assert found.reference == "the 400 images of the model's training set"


def test_features_that_never_varied_are_named(tmp_path: Path, card: ModelCard) -> None:
    scored = score_images(tmp_path, card, 400, days=1)
    still = scored.features.copy()
    still[:, 2] = 0.5
    found = look(tmp_path, card, make_reference(still, []))
    assert found.called_for is False
    assert "feature 2: hardly varied before and moved; not in the energy" in found.reasons


def test_other_models_scores_are_not_this_ones(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, replace(card, sha256="0" * 64), 300, days=3 * WINDOW_DAYS)
    assert look(tmp_path, card).called_for is None
    score_images(tmp_path, card, 150, seed=1, days=3 * WINDOW_DAYS)
    found = look(tmp_path, card)
    assert (found.called_for, found.scores, found.vectors) == (None, None, None)
    assert found.reasons[0] == "50 and 50 scores, fewer than 100: not compared"


def test_a_young_archive_says_so(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, card, 400, days=WINDOW_DAYS + 1)
    found = look(tmp_path, card)
    assert found.called_for is None
    assert found.reasons == ("the archive has less than 14 days",)


def test_the_files_say_what_was_found(tmp_path: Path, card: ModelCard) -> None:
    score_images(tmp_path, card, 1200, days=3 * WINDOW_DAYS)
    found = look(tmp_path, card)
    write_drift(tmp_path / "report", found)
    stored = json.loads((tmp_path / "report" / "drift.json").read_text(encoding="utf-8"))
    assert stored["called_for"] is False
    assert stored["scores"]["psi"] == found.scores.psi  # type: ignore[union-attr]
    text = (tmp_path / "report" / "drift.md").read_text(encoding="utf-8")
    assert "**Drift does not call for retraining.**" in text
    for name, value, _ in list_figures(found):
        assert f"| {name} | {value} |" in text
