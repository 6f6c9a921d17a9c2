"""Drift: what is found, what is not, and how often nothing is taken for something."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from schemas.errors import ModelLoadError
from schemas.modelcard import ModelCard
from tests.stored import FIRST_DAY, add_champion, score_images
from training.drift import (
    ENERGY_LIMIT,
    P_LIMIT,
    PSI_LIMIT,
    REFERENCE_FILE,
    WINDOW_DAYS,
    Drift,
    Reference,
    compare_scores,
    compare_vectors,
    list_figures,
    load_reference,
    make_reference,
    measure_drift,
    save_reference,
    write_drift,
)
from training.stored import describe_featurizer

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
