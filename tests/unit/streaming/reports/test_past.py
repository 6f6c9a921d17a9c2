"""Findings that there are already: which of them amends a report."""

from dataclasses import replace
from datetime import timedelta

import pytest

from streaming.reports.findings import Finding
from streaming.reports.past import choose_correction, keep_newest
from streaming.reports.report import Correction
from tests.reportparts import CORRECTION, report

SAID = report().prediction
LATER = replace(CORRECTION, label="opacities", confirmed_at=CORRECTION.confirmed_at + timedelta(days=1))
UNKNOWN = replace(LATER, label="hernia", confirmed_at=LATER.confirmed_at + timedelta(days=1))


@pytest.mark.parametrize("n_names", [1, 2, 3])
@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ((), None),
        ((CORRECTION,), CORRECTION),
        ((LATER, CORRECTION), LATER),
        ((CORRECTION, LATER), LATER),
        ((UNKNOWN,), None),
        ((CORRECTION, UNKNOWN), CORRECTION),
        ((UNKNOWN, CORRECTION), CORRECTION),
        ((UNKNOWN, LATER, CORRECTION), LATER),
    ],
)
def test_the_newest_that_the_model_knows_amends(
    found: tuple[Correction, ...], wanted: Correction | None, n_names: int
) -> None:
    findings = (Finding(SAID.names[number % n_names], one) for number, one in enumerate(found))
    assert choose_correction(keep_newest(findings), SAID) == wanted
