"""A comparison in shadow as tables and as files."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from schemas.envelope import DISCLAIMER
from schemas.modelcard import UNDECIDED
from training.figures.bootstrap import Estimate
from training.lifecycle.shadowresult import QUANTILES, Disagreement, LabelledShadow, Shadow, SourceShadow, show_signed
from training.report.tables import draw_table, escape_bars

JSON_NAME, MARKDOWN_NAME = "shadow.json", "shadow.md"
"""Beside the challenger's report."""

_SHOWN_FIGURES = ("auroc", "accuracy", "sensitivity", "specificity", "brier")


# --- the page ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShadowTable:
    """A table to show.

    Parameters
    ----------
    title : str
        Over it.
    columns : tuple of str
        Their names; those of numbers begin with ``#``.
    rows : tuple of tuple of str
        Cells. Nothing in them controls a terminal.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def list_tables(shadow: Shadow) -> list[ShadowTable]:
    """Give what there is to show, the most important first; tables without rows are left out."""
    labelled = ("figure", "#champion", "#challenger", "#difference, 95 % interval")
    answers = ("champion \\ challenger", *(f"#{answer}" for answer in next(iter(shadow.answers.values()), {})))
    sources = ("source", "#images", "#same answer, 95 % interval", "#mean difference of scores")
    disagreements = ("event", "source", "id", "champion", "challenger", "#its score", "#challenger's score")
    tables = [
        ShadowTable("All images", ("what", "#how much"), _list_figures(shadow)),
        ShadowTable("Labelled images that neither has learned from", labelled, _list_labelled(shadow.labelled)),
        ShadowTable("Answers", answers, _list_answers(shadow)),
        ShadowTable("By source", sources, tuple(map(_list_source, shadow.by_source))),
        ShadowTable("Largest disagreements", disagreements, tuple(map(_list_disagreement, shadow.disagreements))),
    ]
    return [table for table in tables if table.rows]


def _list_answers(shadow: Shadow) -> tuple[tuple[str, ...], ...]:
    if not shadow.n_images:
        return ()
    return tuple((answer, *(f"{count:,}" for count in row.values())) for answer, row in shadow.answers.items())


def _list_source(one: SourceShadow) -> tuple[str, ...]:
    name = _printable(one.name) or "(unknown)"
    return name, f"{one.n_images:,}", _share(one.agreement), f"{one.mean_difference:+.3f}"


def _list_disagreement(one: Disagreement) -> tuple[str, ...]:
    scores = (f"{one.champion_score:.3f}", f"{one.challenger_score:.3f}")
    champion = UNDECIDED if one.champion_undecided else one.champion
    challenger = UNDECIDED if one.challenger_undecided else one.challenger
    return one.event_id, _printable(one.source), _printable(one.id), champion, challenger, *scores


def _list_figures(shadow: Shadow) -> tuple[tuple[str, str], ...]:
    rows = [("images", f"{shadow.n_images:,}"), ("of them judged by both", f"{shadow.n_judged:,}")]
    if shadow.agreement is not None:
        rows.append(("same answer", _share(shadow.agreement)))
    if any(asdict(shadow.n_undecided).values()):
        rows.append(("uncertain: champion", f"{shadow.n_undecided.champion:,}"))
        rows.append(("uncertain: challenger", f"{shadow.n_undecided.challenger:,}"))
    if shadow.positive_shares is not None:
        for name, share in zip(("champion", "challenger"), shadow.positive_shares, strict=True):
            rows.append((f"{shadow.positive_label}: {name}", _share(share)))
    if shadow.difference is not None:
        rows.append(("score, challenger's less champion's: mean", f"{shadow.difference.mean:+.3f}"))
        for place, value in zip(QUANTILES, shadow.difference.quantiles, strict=True):
            rows.append((f"its {place:.0%} quantile", f"{value:+.3f}"))
    return tuple(rows)


def _list_labelled(labelled: LabelledShadow | None) -> tuple[tuple[str, ...], ...]:
    if labelled is None or labelled.figures is None:
        return ()
    return tuple(
        (name, f"{found.first:.3f}", f"{found.second:.3f}", show_signed(found.difference))
        for name, found in labelled.figures.items()
        if name in _SHOWN_FIGURES
    )


def list_remarks(shadow: Shadow) -> list[str]:
    """Give what is to be said beside the tables, in sentences without a full stop."""
    remarks = list(shadow.notes)
    if (labelled := shadow.labelled) is not None:
        counts = ", ".join(f"{count:,} {label}" for label, count in labelled.by_label.items())
        without = "" if labelled.figures is not None else "; a class is missing, so nothing is compared"
        remarks.append(
            f"labelled images that neither has learned from: {labelled.n_images:,} ({counts}) of "
            f"{labelled.n_patients:,} patients{without}; {labelled.n_learned:,} others are left out, as one of the two "
            "has learned from them or their patients"
        )
    return remarks


def write_shadow(folder: Path, shadow: Shadow) -> None:
    """Write ``shadow.json`` and ``shadow.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = json.dumps(shadow.to_dict(), indent=2, allow_nan=False)
    (folder / JSON_NAME).write_text(stored + "\n", encoding="utf-8")
    lines = [
        "# In shadow",
        f"**{DISCLAIMER}**",
        f"**{capitalize(shadow.verdict)}.**",
        f"Challenger {shadow.challenger}, champion {shadow.champion}.",
        *(f"- {remark}" for remark in list_remarks(shadow)),
        *(part for table in list_tables(shadow) for part in (f"## {table.title}", _to_markdown(table))),
    ]
    (folder / MARKDOWN_NAME).write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def _to_markdown(table: ShadowTable) -> str:
    header = [escape_bars(name.removeprefix("#")) for name in table.columns]
    return draw_table(header, table.rows, numbers=[name.startswith("#") for name in table.columns])


def capitalize(sentence: str) -> str:
    """Give a sentence its first capital letter, and leave all others as they are."""
    return sentence[:1].upper() + sentence[1:]


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"


def _printable(text: str | None) -> str:
    """Give what a publisher wrote, without what would move a cursor or break a line."""
    return "".join(sign if sign.isprintable() else " " for sign in text or "")
