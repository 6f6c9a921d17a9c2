"""``xray retrain``: a new classifier from the archive's stored features, compared with the champion."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from schemas.envelope import DISCLAIMER
from schemas.errors import ChampionChangedError
from schemas.extras import check_extra
from schemas.modelcard import read_card
from schemas.registry import CHAMPION_FILE, champion_folder, promote, read_aliases, set_challenger
from streaming.settings import StreamSettings, load_settings
from training.lifecycle.promotion import MARGIN, PromotionDecision, decide, read_report
from xray.console import err, new_progress, new_table, out, print_json, say_positive, step
from xray.tabular import print_table

if TYPE_CHECKING:
    from training.figures.compare import Comparison
    from training.lifecycle.drift import Drift
    from training.lifecycle.retrain import Retrained

COMPARISON_NAME = "comparison.json"
"""Beside the report: champion and challenger on the same held-out patients, of all and of each source."""

_COMMAND = "xray retrain"
_NEEDED = ("scipy", "sklearn", "jinja2", "threadpoolctl")
_FIGURES = ("auroc", "sensitivity", "specificity", "accuracy")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for a program.")]


@dataclass(frozen=True)
class Outcome:
    """All that a retraining came to.

    Parameters
    ----------
    retrained : Retrained
        The new model.
    drift : Drift
        Whether it was called for.
    decision : PromotionDecision
        Whether the new model may be promoted.
    champion : str
        The champion that it was compared with.
    report : Path
        The page.
    seconds : float
        Wall time, reading included.
    """

    retrained: "Retrained"
    drift: "Drift"
    decision: PromotionDecision
    champion: str
    report: Path
    seconds: float


def retrain(
    promote_: Annotated[
        bool, typer.Option("--promote", help="Let the stream serve the new model, unless it is refused.")
    ] = False,
    margin: Annotated[float, typer.Option(min=0, max=1, help="How much worse its figure may be.")] = MARGIN,
    force: Annotated[bool, typer.Option("--force", help="With --promote: also where it is worse.")] = False,
    min_labels: Annotated[int, typer.Option(min=2, help="Labelled images that are wanted at least.")] = 100,
    seed: Annotated[int, typer.Option(help="Of intervals and folds; the held-out patients do not depend on it.")] = 0,
    json_: Json = False,
) -> None:
    """Fit a new classifier on stored features and confirmed findings, and compare it with the champion.

    No image is read: the archive has every scored image's features, and xray label recorded what was found. About 30 %
    of the patients are held out, the same ones each time; both models are asked about their images.

    The new model becomes the challenger. With --promote it becomes the champion, which the stream serves, unless its
    AUROC (accuracy, of more than two classes) is worse by more than --margin, or surely worse, or its sensitivity is
    both: then it is refused, with exit code 1. [bold]xray models rollback[/] goes back.
    """
    if force and not promote_:
        msg = "--force goes with --promote"
        raise typer.BadParameter(msg)
    settings = load_settings()
    outcome = retrain_on(settings, min_labels=min_labels, margin=margin, seed=seed)
    decision, version = outcome.decision, outcome.retrained.card.version
    promoted = promote_ and decision.permits(force=force)
    refused = promote_ and not promoted
    if promoted:
        promote(
            settings.models_folder,
            version,
            expected=outcome.champion,
            why=decision.why,
            forced=not decision.allowed,
            command=f"{_COMMAND} --promote",
        )
    elif not refused:
        set_challenger(settings.models_folder, version, why=decision.why, command=_COMMAND)
    if not json_:
        show_outcome(outcome)
        _say_what_was_done(version, promoted=promoted, refused=refused, decision=decision)
    mirrored = _mirror(settings, outcome.retrained.card.name)
    if json_:
        alias = CHAMPION_FILE if promoted else None if refused else "challenger"
        print_json({**describe_outcome(outcome), "promoted": promoted, "alias": alias, "mirrored": mirrored})
    if refused:
        err.print(f"[bold red]refused:[/] {escape(decision.why)}.", soft_wrap=True)
        err.print(
            f"It is kept as {version}. All the same: xray models promote {version} --force; --margin says how much "
            "worse a model may be.",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def retrain_on(settings: StreamSettings, *, min_labels: int, margin: float, seed: int) -> Outcome:
    """Read, fit, judge and decide; no alias is moved.

    Parameters
    ----------
    settings : StreamSettings
        The folders.
    min_labels, seed
        See `training.lifecycle.retrain.retrain_model`.
    margin : float
        See `training.lifecycle.promotion.decide`.

    Raises
    ------
    DependencyError
        A package of the extra ``train`` is missing.
    JobError
        Nothing to learn from, a damaged model, or (`ChampionChangedError`) the champion was changed meanwhile.
    """
    check_extra("train", "retraining", modules=_NEEDED)
    from training.features.stored import describe_featurizer, find_models_with, read_stored
    from training.figures.shift import load_reference
    from training.lifecycle.drift import measure_drift
    from training.lifecycle.driftpage import write_drift
    from training.lifecycle.findings import describe_inherited
    from training.lifecycle.retrain import check_labels, check_rendering, retrain_model
    from training.report import write_report

    started = time.perf_counter()
    folder = champion_folder(settings.models_folder)
    card = read_card(folder)
    check_rendering(card)
    reports = settings.reports_folder
    say_positive(card.positive_label, describe_inherited(card))
    with new_progress() as progress:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        stored = read_stored(settings.tables_folder, settings.models_folder, card.version, report=tell)
        check_labels(stored, card, min_labels=min_labels)
        retrained = retrain_model(
            stored,
            folder,
            card,
            reports_folder=reports,
            min_labels=min_labels,
            seed=seed,
            report=tell,
        )
    own = reports / retrained.card.version
    page = write_report(retrained.evaluation, own, with_thumbnails=False)
    (own / COMPARISON_NAME).write_text(json.dumps(_describe_comparison(retrained), indent=2) + "\n", encoding="utf-8")
    with step("looking for drift"):
        featurizer = describe_featurizer(folder, card)
        hashes = sorted(find_models_with(settings.models_folder, featurizer))
        reference = load_reference(reports / card.version)
        drift = measure_drift(settings.tables_folder, card, featurizer, hashes, reference, seed=seed)
        write_drift(own, drift)
    champion = read_aliases(settings.models_folder).get(CHAMPION_FILE)
    if champion != card.version:
        msg = (
            f"{champion} was promoted meanwhile, and {retrained.card.version} was compared with {card.version}; "
            "start again: xray retrain"
        )
        raise ChampionChangedError(msg)
    decision = decide(retrained.card, read_report(own), champion, margin=margin)
    return Outcome(retrained, drift, decision, champion, page, time.perf_counter() - started)


def _mirror(settings: StreamSettings, name: str) -> bool:
    from xray.commands.mirror import mirror_aliases

    return mirror_aliases(settings, name)


# --- what is shown ----------------------------------------------------------------------------------------------------


def show_outcome(outcome: Outcome) -> None:
    """Print the comparison, the drift, and where the report is."""
    from training.lifecycle.driftpage import list_figures

    retrained, evaluation = outcome.retrained, outcome.retrained.evaluation
    compared = {"all": evaluation.in_service or {}, **retrained.by_source}
    table = new_table(
        "held-out images of", "figure", "#in service", "#new", "#difference, 95 % interval", title="The same images"
    )
    for name, figures in compared.items():
        for figure in _FIGURES if name == "all" else _FIGURES[:1]:
            if (found := figures.get(figure)) is not None:
                shown = escape(name or "(unknown source)")
                table.add_row(shown, figure, f"{found.first:.3f}", f"{found.second:.3f}", _describe_difference(found))
    print_table(table)
    counts = evaluation.data
    out.print(
        f"{counts.train.n_images:,} images of {counts.train.n_patients:,} patients to learn from, "
        f"{counts.test.n_images:,} of {counts.test.n_patients:,} held out; {outcome.seconds:.1f} s."
    )
    out.print(f"In service: {evaluation.in_service_name}", markup=False, soft_wrap=True)
    if evaluation.internal.note:
        out.print(f"[yellow]Note:[/] {escape(evaluation.internal.note)}.", soft_wrap=True)
    for why, count in retrained.left_out.items():
        out.print(f"Left out: {count:,} labelled images {why}.", markup=False, soft_wrap=True)
    if evaluation.verdict.verdict == "confounded":
        reasons = "; ".join(evaluation.verdict.reasons)
        out.print(
            f"[bold red]Confounded:[/] {escape(reasons)}: no evidence that a disease is detected.", soft_wrap=True
        )
    if evaluation.verdict.verdict == "unknown":
        known = "".join(f"; {reason}" for reason in evaluation.verdict.reasons)
        out.print(f"[bold yellow]Not judged:[/] shortcuts were not looked for{escape(known)}.", soft_wrap=True)
    drift = new_table("drift", "#how much", "read it by")
    for row in list_figures(outcome.drift):
        drift.add_row(*map(escape, row))
    if drift.row_count:
        print_table(drift)
    verdict = outcome.drift.verdict
    reasons = "; ".join(outcome.drift.reasons)
    out.print(f"{verdict[0].upper()}{verdict[1:]}{': ' if reasons else ''}{reasons}.", markup=False, soft_wrap=True)
    out.print(f"Report: {outcome.report}", markup=False, soft_wrap=True)
    out.print(DISCLAIMER)


def _describe_difference(found: "Comparison") -> str:
    difference = found.difference
    if math.isnan(difference.low):
        return f"{difference.value:+.3f}"
    return f"{difference.value:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"


def _say_what_was_done(version: str, *, promoted: bool, refused: bool, decision: PromotionDecision) -> None:
    if refused:
        return
    if promoted:
        by_force = "" if decision.allowed else " by force"
        out.print(f"Promoted {version}{by_force}: {decision.why}.", markup=False, soft_wrap=True)
        out.print("A running stream serves it from its next batch on. Back: xray models rollback")
        return
    out.print(f"{version} is the challenger: {decision.why}.", markup=False, soft_wrap=True)
    out.print(f"Serve it with: xray models promote {version}", markup=False)


def describe_outcome(outcome: Outcome) -> dict[str, Any]:
    """Render for JSON."""
    retrained = outcome.retrained
    return {
        "version": retrained.card.version,
        "in_service": retrained.evaluation.in_service_name,
        "positive_label": retrained.card.positive_label,
        "positive_known_by": retrained.evaluation.data.positive_known_by,
        "allowed": outcome.decision.allowed,
        "why": outcome.decision.why,
        "comparison": _describe_comparison(retrained),
        "n_train": dict(retrained.n_train),
        "n_held_out": dict(retrained.n_held_out),
        "left_out": dict(retrained.left_out),
        "verdict": retrained.evaluation.verdict.verdict,
        "verdict_reasons": list(retrained.evaluation.verdict.reasons),
        "drift": {"called_for": outcome.drift.called_for, "reasons": list(outcome.drift.reasons)},
        "report": str(outcome.report),
        "model": str(retrained.folder),
        "seconds": round(outcome.seconds, 3),
    }


def _describe_comparison(retrained: "Retrained") -> dict[str, Any]:
    found: Mapping[str, Any] = {"all": retrained.evaluation.in_service or {}, "by_source": retrained.by_source}
    return {
        "in_service": retrained.evaluation.in_service_name,
        "new": retrained.card.version,
        "all": {name: _describe_figure(one) for name, one in found["all"].items()},
        "by_source": {
            source: {name: _describe_figure(one) for name, one in figures.items()}
            for source, figures in found["by_source"].items()
        },
    }


def _describe_figure(found: "Comparison") -> dict[str, float | None]:
    values = {
        "in_service": found.first,
        "new": found.second,
        "difference": found.difference.value,
        "low": found.difference.low,
        "high": found.difference.high,
    }
    return {name: None if math.isnan(value) else value for name, value in values.items()}
