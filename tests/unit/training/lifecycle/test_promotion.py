"""A model that is worse than the one in service is refused, and nothing else is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.errors import ModelLoadError
from sparkdl.image.limits import RENDERING_VERSION
from tests.savedmodels import add_model, add_report, as_json, evaluate
from training.evidence.evaluation import Side
from training.figures.bootstrap import Estimate
from training.figures.compare import Comparison
from training.lifecycle.promotion import REPORT_FILE, decide, read_report


@pytest.mark.parametrize(
    ("difference", "allowed"),
    [
        ((0.02, 0.01, 0.03), True),
        ((0.0, -0.02, 0.02), True),
        ((-0.009, -0.03, 0.02), True),
        ((-0.011, -0.03, 0.02), False),  # beyond the margin, though nobody is sure
        ((-0.005, -0.009, -0.001), False),  # within the margin, and surely worse
        ((-0.005, -0.01, 0.0), True),
        ((-0.5, float("nan"), float("nan")), False),  # no interval
        ((-0.005, float("nan"), float("nan")), True),
    ],
)
@pytest.mark.parametrize("labels", [("normal", "ill"), ("normal", "ill", "very ill")])
def test_the_rule(
    tmp_path: Path, difference: tuple[float, float, float], allowed: bool, labels: tuple[str, ...]
) -> None:
    card = add_model(tmp_path, "new", labels=labels)
    decision = decide(card, as_json(evaluate(card, served="old", difference=difference)), "old")
    assert decision.allowed is allowed
    assert decision.compared
    assert decision.figures is not None
    assert decision.figures.name == ("auroc" if len(labels) == 2 else "accuracy")
    assert decision.figures.difference == difference[0]


def test_the_margin_can_be_chosen(tmp_path: Path) -> None:
    card = add_model(tmp_path, "new")
    report = as_json(evaluate(card, served="old", difference=(-0.04, -0.09, 0.01)))
    assert not decide(card, report, "old").allowed
    assert decide(card, report, "old", margin=0.05).allowed
    sure = as_json(evaluate(card, served="old", difference=(-0.04, -0.09, -0.01)))
    assert not decide(card, sure, "old", margin=0.05).allowed


def test_a_refusal_says_all_that_it_rests_on(tmp_path: Path) -> None:
    card = add_model(tmp_path, "new")
    remark = "old (trained on 12 of these 48 images)"
    decision = decide(card, as_json(evaluate(card, served=remark, difference=(-0.02, -0.05, 0.01))), "old")
    for part in ("AUROC 0.970", f"{remark} 0.990", "-0.020", "-0.050 to +0.010", "48", "24 patients", "0.01:"):
        assert part in decision.why


def test_an_interval_with_a_remark_makes_nothing_sure(tmp_path: Path) -> None:
    card = add_model(tmp_path, "new")
    evaluation = evaluate(card, served="old", difference=(-0.005, -0.009, -0.001))
    assert evaluation.in_service is not None
    auroc = evaluation.in_service["auroc"]
    few = replace(auroc, difference=replace(auroc.difference, note="12 patients are too few"))
    decision = decide(card, as_json(replace(evaluation, in_service={"auroc": few})), "old")
    assert decision.allowed
    assert "-0.009 to -0.001 (12 patients are too few)" in decision.why


@pytest.mark.parametrize(
    ("difference", "note", "margin", "allowed"),
    [
        ((-0.83, -0.9, -0.7), "", 0.01, False),
        ((-0.83, -0.9, -0.7), "3 patients are too few", 0.01, True),
        ((-0.83, -0.9, -0.7), "", 0.9, True),
        ((-0.1, -0.3, 0.1), "", 0.01, True),  # by luck, maybe
        ((-0.005, -0.009, -0.001), "", 0.01, True),  # surely, and little
        ((0.2, 0.1, 0.3), "", 0.01, True),
    ],
)
def test_a_model_that_surely_finds_fewer_is_refused(
    tmp_path: Path, difference: tuple[float, float, float], note: str, margin: float, allowed: bool
) -> None:
    def judge(*labels: str) -> bool:
        card = add_model(tmp_path, f"new-{len(labels)}", labels=labels)
        found = evaluate(card, served="old", difference=(0.0, -0.01, 0.01))
        sensitivity = Comparison(0.95, 0.95 + difference[0], Estimate(*difference, note), 0.5)
        compared = {**(found.in_service or {}), "sensitivity": sensitivity}
        decision = decide(card, as_json(replace(found, in_service=compared)), "old", margin=margin)
        said = f"sensitivity {0.95 + difference[0]:.3f}, that of old 0.950, difference {difference[0]:+.3f}"
        assert (said in decision.why) is (len(labels) == 2)
        return decision.allowed

    assert judge("normal", "ill") is allowed
    assert judge("normal", "ill", "very ill")  # which has no threshold


def test_a_wide_interval_is_no_proof_of_being_as_good(tmp_path: Path) -> None:
    card = add_model(tmp_path, "new")
    decision = decide(card, as_json(evaluate(card, served="old", difference=(-0.005, -0.25, 0.24))), "old")
    assert decision.why.startswith("not shown to be worse than the model in service: AUROC 0.970")


def test_without_a_comparison_with_the_champion_it_is_said_and_allowed(tmp_path: Path) -> None:
    card, worse = add_model(tmp_path, "new"), (-0.5, -0.6, -0.4)
    compared = as_json(evaluate(card, served="old", difference=worse))
    of_other_files = {**compared, "provenance": {**compared["provenance"], "sha256": "0" * 64}}
    undefined = as_json(evaluate(card, served="old", difference=(float("nan"),) * 3))
    cases = [
        (compared, None, "no model in service"),
        (None, "old", "no report"),
        (as_json(evaluate(card)), "old", "has no comparison"),
        (compared, "older", "compares it with old"),
        (compared, "ol", "compares it with old"),
        (of_other_files, "old", "other files"),
        (undefined, "old", "could not be computed"),
    ]
    for report, champion, said in cases:
        decision = decide(card, report, champion)
        assert decision.allowed, said
        assert not decision.compared, said
        assert said in decision.why
        if champion:
            assert f"not compared with the model in service, {champion}" in decision.why


def test_reports_are_read_back(tmp_path: Path) -> None:
    card = add_model(tmp_path, "new")
    evaluation = evaluate(card, served="old")
    folder = add_report(tmp_path, evaluation)
    assert read_report(folder) == as_json(evaluation)
    assert read_report(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", json.dumps({"verdict": {}}), "\udcff"])
def test_a_damaged_report_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / REPORT_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelLoadError, match="cannot read the report"):
        read_report(tmp_path)


OTHER_RENDERINGS = [0, 1, RENDERING_VERSION + 1]


@pytest.mark.parametrize("version", OTHER_RENDERINGS)
@pytest.mark.parametrize("champion", ["old", None])
def test_a_model_of_another_rendering_is_refused_however_good_it_is(
    tmp_path: Path, version: int, champion: str | None
) -> None:
    card = add_model(tmp_path, "new", rendering=version)
    decision = decide(card, as_json(evaluate(card, served="old", difference=(0.1, 0.05, 0.2))), champion)
    assert not decision.permits(force=False)
    assert not decision.permits(force=True)
    for part in (f"rendering version {version}", f"version {RENDERING_VERSION}", "xray train", "xray models rollback"):
        assert part in decision.why
    assert not decision.why.endswith(".")


def test_a_champion_of_another_rendering_may_be_replaced_and_stays_where_it_is(tmp_path: Path) -> None:
    old, new = add_model(tmp_path, "old", rendering=1), add_model(tmp_path, "new")
    assert decide(new, as_json(evaluate(new, served="old")), "old").allowed
    assert decide(old, None, "old").allowed  # nothing is changed


def test_only_what_is_not_final_is_promoted_by_force(tmp_path: Path) -> None:
    card = add_model(tmp_path, "new")
    worse = decide(card, as_json(evaluate(card, served="old", difference=(-0.5, -0.6, -0.4))), "old")
    assert (worse.permits(force=False), worse.permits(force=True)) == (False, True)
    better = decide(card, as_json(evaluate(card, served="old", difference=(0.5, 0.4, 0.6))), "old")
    assert (better.permits(force=False), better.permits(force=True)) == (True, True)


def test_a_decision_names_the_images_that_both_were_asked_about(tmp_path: Path) -> None:
    card = add_model(tmp_path, "new")
    found = replace(evaluate(card, served="old"), in_service_on=Side(41, 22, {"normal": 20, "ill": 21}))
    assert "on the same 41 held-out images of 22 patients" in decide(card, as_json(found), "old").why
    former = as_json(evaluate(card, served="old"))
    del former["in_service_on"]  # a report of the release before
    assert "on the same 48 held-out images of 24 patients" in decide(card, former, "old").why
