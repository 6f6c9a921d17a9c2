"""``xray models``: what was trained, which model serves, and how to change that."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from schemas.envelope import DISCLAIMER
from schemas.errors import ModelLoadError
from schemas.extras import check_extra
from schemas.modelcard import CARD_FILE, ModelCard, read_card
from schemas.registry import (
    CHALLENGER_FILE,
    CHAMPION_FILE,
    Move,
    champion_folder,
    clear_challenger,
    find_model,
    list_models,
    read_aliases,
    read_history,
    set_challenger,
)
from sparkdl.image.limits import RENDERING_VERSION, describe_other_rendering
from streaming.settings import load_settings
from training.lifecycle.promotion import MARGIN
from xray.commands.mirror import mirror_aliases, mirror_all, track_all
from xray.console import err, new_table, out, print_json, step
from xray.modelmoves import describe_rollback, find_report, promote_model, roll_back_model
from xray.tabular import print_listing, print_table

models_app = typer.Typer(
    help=(
        "List trained models, look at one, and say which one the stream serves.\n\n"
        "The [bold]champion[/] is served; the [bold]challenger[/] may be the next one."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output, for a program.")]
Name = Annotated[str, typer.Argument(metavar="VERSION", help="As 'xray models list' shows it, or an alias.")]
Mirror = Annotated[bool, typer.Option("--mirror/--no-mirror", help="Tell MLflow, which takes seconds.")]
Why = Annotated[str, typer.Option(metavar="TEXT", help="For the history.")]

_PAGE_FILE = "report.html"


@models_app.command("list")
def list_versions(json_: Json = False) -> None:
    """List trained models, oldest first, with their verdict, their figure and their alias."""
    settings = load_settings()
    aliases = _aliases_by_version(settings.models_folder)
    rows = []
    for card in list_models(settings.models_folder):
        report, _ = find_report(settings, card.version)
        rows.append((card, report, aliases.get(card.version, [])))
    if json_:
        print_json([_describe_row(*row) for row in rows])
        return
    if not rows:
        out.print("No models yet; train one with: xray train --data FOLDER")
        return
    columns = ("version", "created (UTC)", "alias", "held-out figure, 95 % interval", "verdict", "network")
    shown = [
        (
            escape(card.version),
            escape(card.created_at[:16].replace("T", " ")),
            ", ".join(f"[green]{name}[/]" if name == CHAMPION_FILE else name for name in names),
            _headline(card, report),
            _show_verdict(report),
            escape(f"{card.network} {card.precision}{_name_rendering(card.rendering_version)}"),
        )
        for card, report, names in rows
    ]
    print_listing(columns, shown, whole=2)
    for card, _, names in rows:
        if CHAMPION_FILE in names:
            _warn_of_rendering(card)
    out.print("The champion is served by the stream. Figures of different held-out sets do not compare.")


@models_app.command("show")
def show_version(version: Name, json_: Json = False) -> None:
    """Show a model: card, origin, figures with intervals, verdict, history. Exit code 1: its files were changed."""
    settings = load_settings()
    folder = find_model(settings.models_folder, version)
    card, damage = _read_any_card(folder)
    report, remark = find_report(settings, folder.name)
    moves = [move for move in read_history(settings.models_folder) if folder.name in (move.before, move.after)]
    aliases = _aliases_by_version(settings.models_folder).get(folder.name, [])
    page = settings.reports_folder / folder.name / _PAGE_FILE
    if json_:
        print_json(
            {
                "version": folder.name,
                "aliases": aliases,
                "folder": str(folder),
                "hash_ok": not damage,
                "damage": damage,
                "card": card,
                "report": str(page) if page.is_file() else None,
                "verdict": report and report["verdict"]["verdict"],
                "verdict_reasons": report and report["verdict"]["reasons"],
                "provenance": report and report["provenance"],
                "figures": report and report["internal"]["figures"],
                "others": report and report["others"],
                "in_service": report and report["in_service"],
                "in_service_name": report and report["in_service_name"],
                "history": [move.to_dict() for move in moves],
            }
        )
    else:
        _print_facts(folder, card, damage, aliases, page)
        if report is None:
            out.print(f"No report{f': {remark}' if remark else ''}.", markup=False, soft_wrap=True)
        else:
            _print_report(report)
        _print_history(moves)
        out.print(DISCLAIMER)
    if damage:
        raise typer.Exit(1)


@models_app.command("promote")
def promote_version(
    version: Name,
    force: Annotated[bool, typer.Option("--force", help="Also where it is worse than the champion.")] = False,
    margin: Annotated[float, typer.Option(min=0, max=1, help="How much worse its figure may be.")] = MARGIN,
    why: Why = "",
    mirror: Mirror = True,
    json_: Json = False,
) -> None:
    """Let the stream serve a version: a running one from its next batch on. Exit code 1: refused.

    It is refused where the report on it shows that it is worse than the champion, and, with --force as well, where it
    is for images of an old rendering version.
    """
    settings = load_settings()
    done = promote_model(settings, version, force=force, margin=margin, why=why)
    card, decision = done.card, done.decision
    if done.remark:
        err.print(f"note: {done.remark}", markup=False, soft_wrap=True)
    answer = {
        "version": card.version,
        "before": done.before,
        "promoted": done.promoted,
        "compared": decision.compared,
        "why": decision.why,
        "forced": done.forced,
        "verdict": _verdict_of(done.report) or None,
    }
    if not done.promoted:
        if json_:
            print_json(answer)
        err.print(f"[bold red]refused:[/] {escape(decision.why)}.", soft_wrap=True)
        if not decision.final:
            err.print("It is promoted all the same with --force; --margin says how much worse a model may be.")
        raise typer.Exit(1)
    if not json_:
        out.print(done.said, markup=False)
    if not json_ and done.before != card.version:
        out.print(f"{decision.why[0].upper()}{decision.why[1:]}.", markup=False, soft_wrap=True)
    if done.warning:
        err.print(f"[bold yellow]warning:[/] {escape(done.warning)}.", soft_wrap=True)
    _warn_of_rendering(card)
    mirrored = mirror and mirror_aliases(settings, card.name)
    if json_:
        print_json({**answer, "mirrored": mirrored})


@models_app.command("rollback")
def roll_back(why: Why = "", mirror: Mirror = True, json_: Json = False) -> None:
    """Serve the champion before the last promotion again; once more goes further back."""
    settings = load_settings()
    done = roll_back_model(settings, why=why)
    for version, reason in done.skipped:
        err.print(f"skipped {version}: {reason}", markup=False, soft_wrap=True)
    if not json_:
        out.print(describe_rollback(done), markup=False)
    _warn_of_rendering(done.card)
    mirrored = mirror and mirror_aliases(settings, done.card.name)
    if json_:
        skipped = dict(done.skipped)
        print_json({"version": done.card.version, "before": done.before, "skipped": skipped, "mirrored": mirrored})


@models_app.command("challenge")
def challenge(
    version: Annotated[str | None, typer.Argument(metavar="VERSION", help="As 'xray models list' shows it.")] = None,
    none: Annotated[bool, typer.Option("--none", help="Have no challenger any more.")] = False,
    why: Why = "",
    mirror: Mirror = True,
    json_: Json = False,
) -> None:
    """Make a version the challenger, the one that may be the next champion, or have none any more."""
    if (version is None) != none:
        msg = "wanted a VERSION, or --none"
        raise typer.BadParameter(msg)
    settings = load_settings()
    folder = settings.models_folder
    before = read_aliases(folder).get(CHALLENGER_FILE)
    if version is None:
        clear_challenger(folder, why=why)
        name = _name_of(folder, before)
        said = f"{before} is the challenger no more." if before else "There was no challenger."
    else:
        _refuse_other_rendering(read_card(find_model(folder, version)))
        card = set_challenger(folder, version, why=why)
        name = card.name
        said = f"{card.name} {card.version} is the challenger."
    if not json_:
        out.print(said, markup=False)
    mirrored = mirror and name is not None and mirror_aliases(settings, name)
    if json_:
        print_json({"version": version, "before": before, "mirrored": mirrored})


@models_app.command("shadow")
def show_shadow(
    days: Annotated[int, typer.Option(min=1, help="The last so many, of those in which images were scored.")] = 7,
    json_: Json = False,
) -> None:
    """Show what the challenger would have said of the images that were scored lately, beside what was said.

    It is computed from the archive's feature vectors, so nothing runs in the stream for it. Written beside the
    challenger's report as well.
    """
    check_extra("train", "the comparison", modules=("scipy", "sklearn"))
    from training.lifecycle.shadow import compare_shadow
    from training.lifecycle.shadowpage import capitalize, list_remarks, list_tables, write_shadow

    settings = load_settings()
    rival = find_model(settings.models_folder, CHALLENGER_FILE)
    served = settings.model or champion_folder(settings.models_folder)
    reports = settings.reports_folder
    models = [(folder, read_card(folder)) for folder in (served, rival)]
    with step("asking the challenger"):
        shadow = compare_shadow(settings.tables_folder, models[0], models[1], days=days, reports_folder=reports)
    written = reports / shadow.challenger
    write_shadow(written, shadow)
    if json_:
        print_json({**shadow.to_dict(), "folder": str(written)})
        return
    out.print(f"[bold]{escape(capitalize(shadow.verdict))}.[/]", soft_wrap=True)
    for found in list_tables(shadow):
        table = new_table(*found.columns, title=found.title)
        for column in table.columns:
            column.overflow = "fold"  # half an event's id names nothing
        for row in found.rows:
            table.add_row(*map(escape, row))
        print_table(table)
    for remark in list_remarks(shadow):
        out.print(f"{capitalize(remark)}.", markup=False, soft_wrap=True)
    out.print(f"Written to {written}", markup=False, soft_wrap=True)
    out.print(DISCLAIMER)


@models_app.command("sync")
def sync(json_: Json = False) -> None:
    """Register in MLflow what is missing there, and let its aliases name what ours name."""
    from training.lifecycle.tracking import show_uri

    settings = load_settings()
    cards = list_models(settings.models_folder)
    with step("telling MLflow"):
        track_all(settings, cards)
        for name in sorted({card.name for card in cards}):
            mirror_all(settings, name, ())
    aliases = read_aliases(settings.models_folder)
    uri = show_uri(settings.tracking_uri)
    if json_:
        print_json({"uri": uri, "models": [card.version for card in cards], "aliases": aliases})
        return
    told = ", ".join(f"{alias} {version}" for alias, version in aliases.items()) or "none"
    models = "1 model is" if len(cards) == 1 else f"{len(cards)} models are"
    out.print(f"{models} in MLflow at {uri}; aliases: {told}.", markup=False, soft_wrap=True)


def _aliases_by_version(models_folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for alias, version in read_aliases(models_folder).items():
        found.setdefault(version, []).append(alias)
    return found


def _read_any_card(folder: Path) -> tuple[dict[str, Any], str]:
    """Give a model's card, and what is wrong with the model; of a damaged one what can be read."""
    try:
        return asdict(read_card(folder)), ""
    except ModelLoadError as exc:
        try:
            found = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        return found if isinstance(found, dict) else {}, str(exc)


def _name_of(models_folder: Path, version: str | None) -> str | None:
    return None if version is None else _read_any_card(models_folder / version)[0].get("name")


def _verdict_of(report: Mapping[str, Any] | None) -> str:
    return "" if report is None else str(report["verdict"]["verdict"])


def _show_verdict(report: Mapping[str, Any] | None) -> str:
    verdict = _verdict_of(report)
    if verdict == "confounded":
        return f"[red]{verdict}[/]"
    if report is not None and verdict == "unknown":
        return f"[yellow]{verdict}[/]{', after a confounded one' if report['verdict']['reasons'] else ''}"
    return escape(verdict)


def _warn_of_rendering(card: ModelCard) -> None:
    if told := describe_other_rendering(card.rendering_version):
        err.print(f"[bold yellow]warning:[/] {escape(told)}", soft_wrap=True)


def _refuse_other_rendering(card: ModelCard) -> None:
    if told := describe_other_rendering(card.rendering_version):
        msg = f"{card.version} cannot be the next champion. {told}"
        raise ModelLoadError(msg)


def _name_rendering(version: int) -> str:
    """Give what stands behind a network; nothing where images are rendered as now."""
    if version == RENDERING_VERSION:
        return ""
    return f", {'old ' if version < RENDERING_VERSION else ''}rendering {version}"


def _headline(card: ModelCard, report: Mapping[str, Any] | None) -> str:
    """Give the one figure to know a model by; without a report there is no interval."""
    if report is None:
        accuracy = card.metrics.get("accuracy")
        return "" if accuracy is None else f"accuracy {accuracy:.3f}"
    figures = report["internal"]["figures"]
    name = "auroc" if figures["auroc"]["value"] is not None and len(card.labels) == 2 else "accuracy"  # noqa: PLR2004
    return f"{'AUROC' if name == 'auroc' else name} {_with_interval(figures[name])}"


def _with_interval(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "none"
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def _describe_row(card: ModelCard, report: Mapping[str, Any] | None, aliases: list[str]) -> dict[str, Any]:
    return {
        "version": card.version,
        "champion": CHAMPION_FILE in aliases,
        "aliases": aliases,
        "created_at": card.created_at,
        "network": card.network,
        "precision": card.precision,
        "rendering_version": card.rendering_version,
        "labels": list(card.labels),
        "verdict": _verdict_of(report) or None,
        **card.metrics,
        "figures": report and report["internal"]["figures"],
    }


def _print_facts(folder: Path, card: Mapping[str, Any], damage: str, aliases: list[str], page: Path) -> None:
    table = new_table("", "")
    table.show_header = False
    table.columns[1].overflow = "fold"
    labels, rendering = card.get("labels"), card.get("rendering_version")
    facts = {
        "model": f"{card.get('name', '')} {folder.name}",
        "alias": ", ".join(aliases) or "none",
        "created": card.get("created_at"),
        "classes": ", ".join(map(str, labels)) if isinstance(labels, list | tuple) else labels,
        "positive class": card.get("positive_label"),
        "decides": card.get("operating_point"),
        "network": f"{card.get('network', '')} {card.get('precision', '')}",
        "rendering": (describe_other_rendering(rendering) if isinstance(rendering, int) else "") or rendering,
        "folder": folder,
        "report": page if page.is_file() else "none",
        "SHA-256": card.get("sha256"),
    }
    for name, value in facts.items():
        table.add_row(name, escape(str(value)))
    table.add_row("hash check", f"[bold red]not ok[/]: {escape(damage)}" if damage else "[green]ok[/]")
    print_table(table)


def _print_report(report: Mapping[str, Any]) -> None:
    verdict, provenance, internal = report["verdict"], report["provenance"], report["internal"]
    out.print(f"Verdict: {_show_verdict(report)}")
    for reason in (*verdict["reasons"], *verdict["notes"]):
        out.print(f"  {reason}.", markup=False, soft_wrap=True)
    origin = {
        "weights": f"{provenance['weights']}, SHA-256 {provenance['weights_sha256']}",
        "classifier": provenance["classifier"],
        "procedure": f"{provenance['procedure']}, seed {provenance['seed']}",
        "data": f"SHA-256 {provenance['data_sha256']}",
        "code": provenance["code_version"],
    }
    for name, text in origin.items():
        out.print(f"{name}: {text}", markup=False, soft_wrap=True)
    title = f"{internal['n_images']} held-out images of {internal['n_patients']} patients"
    table = new_table("figure", "value (95 % interval)", title=title)
    for name, estimate in internal["figures"].items():
        table.add_row(escape(name), _with_interval(estimate))
    for other in report["others"]:
        table.add_row(escape(f"auroc, {other['name']}"), _with_interval(other["figures"]["auroc"]))
    for name, compared in (report["in_service"] or {}).items():
        if name in ("auroc", "accuracy"):
            table.add_row(f"{name}, less that of {escape(report['in_service_name'])}", _signed(compared["difference"]))
    print_table(table)


def _signed(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return "none"
    ends = "" if estimate["low"] is None else f" ({estimate['low']:+.3f} to {estimate['high']:+.3f})"
    return f"{estimate['value']:+.3f}{ends}"


def _print_history(moves: list[Move]) -> None:
    if not moves:
        out.print("The history has no move of an alias to it or from it.")
        return
    table = new_table("when (UTC)", "alias", "from", "to", "by", "why", title="history")
    for move in moves:
        by = f"{move.command}{', forced' if move.forced else ''}"
        row = (move.moved_at[:19].replace("T", " "), move.alias, move.before or "", move.after or "", by, move.why)
        table.add_row(*map(escape, row))
    print_table(table)
