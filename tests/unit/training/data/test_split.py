"""Splits: no patient on both sides, every class on both."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from schemas.errors import DatasetError, LeakError, SettingsError
from training.data.dataset import Dataset, Sample
from training.data.duplicates import DuplicatePair
from training.data.split import Split, group_samples, split_dataset


def _sample(name: str, label: int, patient_id: str) -> Sample:
    return Sample(Path(f"/{name}.png"), label, patient_id)


def _dataset(patients_by_class: dict[int, int], *, images_each: int = 1) -> Dataset:
    samples = tuple(
        _sample(f"{label}-{patient}-{image}", label, f"{label}-{patient}")
        for label, n_patients in patients_by_class.items()
        for patient in range(n_patients)
        for image in range(images_each)
    )
    return Dataset(samples, tuple(f"class{label}" for label in patients_by_class), patient_ids_known=True)


def test_patients_stay_together_and_no_image_is_lost() -> None:
    dataset = _dataset({0: 20, 1: 10}, images_each=3)
    split = split_dataset(dataset, seed=1)
    assert {s.patient_id for s in split.train}.isdisjoint({s.patient_id for s in split.test})
    assert Counter(split.train + split.test) == Counter(dataset.samples)


def test_each_class_gives_its_share() -> None:
    split = split_dataset(_dataset({0: 100, 1: 10}), test_fraction=0.3, seed=0)
    assert Counter(sample.label for sample in split.test) == {0: 30, 1: 3}


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_small_classes_are_on_both_sides(fraction: float) -> None:
    split = split_dataset(_dataset({0: 50, 1: 2}), test_fraction=fraction, seed=0)
    assert {sample.label for sample in split.train} == {sample.label for sample in split.test} == {0, 1}


def test_a_seed_gives_one_split_whatever_the_order_of_samples() -> None:
    dataset = _dataset({0: 30, 1: 30})
    shuffled = replace(dataset, samples=tuple(random.Random(5).sample(dataset.samples, 60)))
    assert set(split_dataset(dataset, seed=3).test) == set(split_dataset(shuffled, seed=3).test)
    assert set(split_dataset(dataset, seed=3).test) != set(split_dataset(dataset, seed=4).test)


def test_a_patient_with_two_classes_counts_for_the_rarer() -> None:
    # The rare class lives only in patients who also have common images; both sides must get one of them.
    common = [_sample(f"c{index}", 0, f"p{index}") for index in range(20)]
    rare = [_sample(f"r{index}", 1, f"p{index}") for index in range(2)]
    dataset = Dataset((*common, *rare), ("common", "rare"), patient_ids_known=True)
    for seed in range(10):
        split = split_dataset(dataset, seed=seed)
        assert [sum(s.label for s in side) for side in (split.train, split.test)] == [1, 1]


def test_a_class_of_one_patient_is_refused() -> None:
    with pytest.raises(DatasetError, match="class 'class1' has 1 patients: too few"):
        split_dataset(_dataset({0: 10, 1: 1}, images_each=4), seed=0)


def test_a_leak_cannot_be_made() -> None:
    with pytest.raises(DatasetError, match="1 patients are in both training and test"):
        Split(train=(_sample("a", 0, "P1"), _sample("b", 1, "P2")), test=(_sample("c", 0, "P1"),))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_outside_is_refused(fraction: float) -> None:
    with pytest.raises(SettingsError, match="test_fraction"):
        split_dataset(_dataset({0: 10, 1: 10}), test_fraction=fraction, seed=0)


def _pair(first: str, second: str) -> DuplicatePair:
    return DuplicatePair(f"/{first}.png", f"/{second}.png", "near", 3)


def test_copies_stay_together_and_bring_their_patients() -> None:
    dataset = _dataset({0: 10, 1: 10}, images_each=2)
    pairs = [_pair("0-0-0", "0-1-0"), _pair("0-1-1", "1-5-0")]
    together = {"0-0", "0-1", "1-5"}
    groups = group_samples(dataset.samples, pairs)
    assert {sample.patient_id for sample in dataset.samples if groups[str(sample.path)] == "0-0"} == together
    for seed in range(10):
        split = split_dataset(dataset, pairs, seed=seed)
        sides = [together & {sample.patient_id for sample in side} for side in (split.train, split.test)]
        assert sorted(map(len, sides)) == [0, 3]


def _given(dataset: Dataset, test: set[str]) -> Dataset:
    samples = [replace(s, side="test" if s.path.stem in test else "train") for s in dataset.samples]
    return replace(dataset, samples=tuple(samples))


def test_sides_that_the_data_give_are_taken() -> None:
    dataset = _given(_dataset({0: 5, 1: 5}), {"0-1-0", "1-4-0"})
    assert [sample.path.stem for sample in split_dataset(dataset, seed=9).test] == ["0-1-0", "1-4-0"]


def test_a_patient_on_both_given_sides_is_a_leak() -> None:
    dataset = _given(_dataset({0: 5, 1: 5}, images_each=2), {"0-1-0", "1-4-0", "1-4-1"})
    with pytest.raises(LeakError, match=r"1 patient\(s\): 0-1\. Give all"):
        split_dataset(dataset)


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_a_copy_on_both_given_sides_is_a_leak(kind: Literal["exact", "near"]) -> None:
    dataset = _given(_dataset({0: 5, 1: 5}), {"0-1-0", "1-4-0"})
    with pytest.raises(LeakError, match=r"/0-2-0\.png = /0-1-0\.png.*same side; or none") as caught:
        split_dataset(dataset, [DuplicatePair("/0-1-0.png", "/0-2-0.png", kind, 0)])
    assert caught.value.patients == ()


def test_a_given_side_without_a_class_is_refused() -> None:
    with pytest.raises(DatasetError, match="'class1' has no image on one side"):
        split_dataset(_given(_dataset({0: 5, 1: 5}), {"0-1-0"}))
