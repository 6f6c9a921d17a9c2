"""Fitting without Spark: what the report shows step by step."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data.dataset import Dataset, Sample
from training.features.extract import ImageFacts
from training.model.classifier import PAPER, TUNED, ClassifierSettings
from training.model.fit import _Fitter
from training.model.material import Material, Procedure

_WEIGHTED = replace(PAPER, class_weights=True)
_TUNED = TUNED[0]


@pytest.fixture(scope="module")
def fitter() -> _Fitter:
    rng = np.random.default_rng(1)
    labels = (rng.random(300) < 0.2).astype(np.int64)  # few, so that weights matter
    features = rng.normal(size=(300, 4)).astype(np.float32)
    features[:, 0] += labels
    samples = tuple(Sample(Path(f"/x/{index}.png"), int(label), f"p{index}") for index, label in enumerate(labels))
    patients = tuple(sample.patient_id for sample in samples)
    dataset = Dataset(samples, ("normal", "ill"), True)
    material = Material(dataset, (ImageFacts(""),) * 300, patients, (), np.arange(300) % 3 == 0)
    return _Fitter(material, features, 0)


@pytest.mark.parametrize(
    ("tune", "class_weights", "settings", "wanted"),
    [
        (False, False, PAPER, ["as fitted"]),
        (False, True, _WEIGHTED, ["as the paper fits it", _WEIGHTED.describe()]),
        (True, False, _TUNED, ["as the paper fits it", _TUNED.describe()]),
        (
            True,
            True,
            replace(_TUNED, class_weights=True),
            ["as the paper fits it", "with class weights", replace(_TUNED, class_weights=True).describe()],
        ),
        (True, True, _WEIGHTED, ["as the paper fits it", _WEIGHTED.describe()]),  # tuning kept the paper's
    ],
)
def test_each_thing_that_was_asked_for_is_a_step_of_its_own(
    fitter: _Fitter, tune: bool, class_weights: bool, settings: ClassifierSettings, wanted: list[str]
) -> None:
    featurizer: Any = None
    steps = fitter.fit(featurizer, settings, Procedure(tune=tune, class_weights=class_weights), (), None).steps
    assert [step.name for step in steps] == wanted
    coefficients = {step.head.coefficients.tobytes() for step in steps}
    assert len(coefficients) == len(steps)
