"""Splits a data set into training and held-out samples so that no patient is on both sides."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.errors import DatasetError, SettingsError
from training.dataset import Dataset, Sample


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


def split_by_patient(dataset: Dataset, *, test_fraction: float = 0.3, seed: int) -> Split:
    """Hold out a share of each class's patients, with all their images.

    The same samples, fraction and seed give the same split, in whatever order the samples come. A patient with images
    of several classes counts for the rarest of them.

    Parameters
    ----------
    dataset : Dataset
        What to split.
    test_fraction : float
        Share of patients to hold out, between 0 and 1, both excluded; of each class at least one, and never all.
    seed : int
        Which patients.

    Returns
    -------
    Split
        Each class is on both sides; samples keep their order.

    Raises
    ------
    SettingsError
        ``test_fraction`` is not between 0 and 1.
    DatasetError
        A class has too few patients to be on both sides.
    """
    if not 0 < test_fraction < 1:
        msg = f"test_fraction is {test_fraction}, wanted more than 0 and less than 1"
        raise SettingsError(msg)
    rng = random.Random(seed)
    held_out: set[str] = set()
    for patients in _patients_by_class(dataset):
        held_out.update(rng.sample(patients, _count_held_out(len(patients), test_fraction)))
    train = tuple(sample for sample in dataset.samples if sample.patient_id not in held_out)
    test = tuple(sample for sample in dataset.samples if sample.patient_id in held_out)
    _check_classes(dataset, train, test)
    return Split(train, test)


def _count_held_out(n_patients: int, test_fraction: float) -> int:
    return min(max(1, round(n_patients * test_fraction)), n_patients - 1) if n_patients else 0


def _patients_by_class(dataset: Dataset) -> list[list[str]]:
    """Sort each patient into one class; sorted names, so that the order of samples does not matter."""
    n_images = Counter(sample.label for sample in dataset.samples)
    classes: dict[str, set[int]] = defaultdict(set)
    for sample in dataset.samples:
        classes[sample.patient_id].add(sample.label)
    strata: list[list[str]] = [[] for _ in dataset.labels]
    for patient in sorted(classes):
        strata[min(classes[patient], key=lambda label: (n_images[label], label))].append(patient)
    return strata


def _check_classes(dataset: Dataset, train: Sequence[Sample], test: Sequence[Sample]) -> None:
    for index, label in enumerate(dataset.labels):
        sides = [any(sample.label == index for sample in side) for side in (train, test)]
        if not all(sides):
            patients = {sample.patient_id for sample in dataset.samples if sample.label == index}
            msg = f"class {label!r} has {len(patients)} patients: too few to have some in training and some in test"
            raise DatasetError(msg if dataset.patient_ids_known else f"{msg} (patients told by file name)")
