"""Splits a data set into training and held-out samples so that no patient and no copy is on both sides."""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from schemas.errors import DatasetError, SettingsError
from training.data.dataset import Dataset, Sample
from training.data.duplicates import DuplicatePair, check_split, union_groups


@dataclass(frozen=True)
class Split:
    """The two sides; one with a patient on both cannot be made.

    Parameters
    ----------
    train, test : tuple of Sample
        Neither is a sample lost nor used twice.

    Raises
    ------
    DatasetError
        A patient is on both sides.
    """

    train: tuple[Sample, ...]
    test: tuple[Sample, ...]

    def __post_init__(self) -> None:
        both = {sample.patient_id for sample in self.train} & {sample.patient_id for sample in self.test}
        if both:
            msg = f"{len(both)} patients are in both training and test, wanted none"
            raise DatasetError(msg)


def group_samples(samples: Sequence[Sample], pairs: Collection[DuplicatePair]) -> dict[str, str]:
    """Give each sample's group, by its path: its patient, joined with those that have a copy in common.

    Parameters
    ----------
    samples : sequence of Sample
        All of them.
    pairs : collection of DuplicatePair
        Copies among them, their ids being paths.
    """
    return union_groups({str(sample.path): sample.patient_id for sample in samples}, pairs)


def split_dataset(
    dataset: Dataset, pairs: Collection[DuplicatePair] = (), *, test_fraction: float = 0.3, seed: int = 0
) -> Split:
    """Split as the data say, else hold out a share of each class's groups of patients and copies.

    The same samples, fraction and seed give the same split, in whatever order the samples come. A group with images of
    several classes counts for the rarest of them.

    Parameters
    ----------
    dataset : Dataset
        What to split.
    pairs : collection of DuplicatePair
        Copies among the samples, see `group_samples`.
    test_fraction : float
        Share of groups to hold out, between 0 and 1, both excluded; of each class at least one, and never all. Where
        the data give the sides it means nothing.
    seed : int
        Which groups.

    Returns
    -------
    Split
        Each class is on both sides; samples keep their order.

    Raises
    ------
    SettingsError
        ``test_fraction`` is not between 0 and 1.
    DatasetError
        A class has too few patients to be on both sides, or the data give it one side only.
    LeakError
        The data put a patient, or copies, on both sides.
    """
    if not 0 < test_fraction < 1:
        msg = f"test_fraction is {test_fraction}, wanted more than 0 and less than 1"
        raise SettingsError(msg)
    if dataset.sides_given:
        test = {str(sample.path) for sample in dataset.samples if sample.side == "test"}
    else:
        test = _draw_test(dataset, group_samples(dataset.samples, pairs), test_fraction, seed)
    patients = {str(sample.path): sample.patient_id for sample in dataset.samples}
    check_split(patients.keys() - test, test, patients, pairs)
    sides = [tuple(s for s in dataset.samples if (str(s.path) in test) == held_out) for held_out in (False, True)]
    _check_classes(dataset, *sides)
    return Split(*sides)


def _draw_test(dataset: Dataset, groups: Mapping[str, str], test_fraction: float, seed: int) -> set[str]:
    rng = random.Random(seed)
    held_out: set[str] = set()
    for stratum in _groups_by_class(dataset, groups):
        held_out.update(rng.sample(stratum, _count_held_out(len(stratum), test_fraction)))
    return {path for path, group in groups.items() if group in held_out}


def _count_held_out(n_groups: int, test_fraction: float) -> int:
    return min(max(1, round(n_groups * test_fraction)), n_groups - 1) if n_groups else 0


def _groups_by_class(dataset: Dataset, groups: Mapping[str, str]) -> list[list[str]]:
    """Sort each group into one class; sorted names, so that the order of samples does not matter."""
    n_images = Counter(sample.label for sample in dataset.samples)
    classes: dict[str, set[int]] = defaultdict(set)
    for sample in dataset.samples:
        classes[groups[str(sample.path)]].add(sample.label)
    strata: list[list[str]] = [[] for _ in dataset.labels]
    for group in sorted(classes):
        strata[min(classes[group], key=lambda label: (n_images[label], label))].append(group)
    return strata


def _check_classes(dataset: Dataset, train: Sequence[Sample], test: Sequence[Sample]) -> None:
    for index, label in enumerate(dataset.labels):
        sides = [any(sample.label == index for sample in side) for side in (train, test)]
        if not all(sides):
            if dataset.sides_given:
                msg = f"class {label!r} has no image on one side of the split that the data give"
                raise DatasetError(msg)
            patients = {sample.patient_id for sample in dataset.samples if sample.label == index}
            msg = f"class {label!r} has {len(patients)} patients: too few to have some in training and some in test"
            raise DatasetError(msg if dataset.patient_ids_known else f"{msg} (patients told by file name)")
