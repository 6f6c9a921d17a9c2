"""The report in Markdown: the same order, without pictures, and short."""

import re
from collections.abc import Iterable, Sequence

from schemas.envelope import DISCLAIMER
from training.evaluation import Evaluation
from training.report import words

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&!])")


def render_markdown(evaluation: Evaluation) -> str:
    """Render as GitHub's Markdown.

    Parameters
    ----------
    evaluation : Evaluation
        What to say.

    Returns
    -------
    str
        Verdict, figures, data, predictive values, figures of sources, the model in service, provenance. Everything that
        comes from data is escaped.
    """
    made = evaluation.provenance
    parts = [
        f"# Training report: {_escape(f'{made.name} {made.version}')}",
        f"**{DISCLAIMER}** {_escape(made.created_at)}",
        *_verdict(evaluation),
        *_figures(evaluation),
        *_data(evaluation),
        *_predictive_values(evaluation),
        *_sources(evaluation),
        *_in_service(evaluation),
        *_provenance(evaluation),
    ]
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    """Make text stand for itself, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a table whose first column is text and whose others are numbers."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *([_escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {_escape(item)}" for item in items)


def _verdict(evaluation: Evaluation) -> list[str]:
    banner, verdict = words.word_verdict(evaluation), evaluation.verdict
    parts = [f"## {banner.title}", banner.meaning]
    if verdict.reasons:
        parts.append(_bullets(words.list_reasons(evaluation)))
    probes = [("Label: the model", words.figure_of(evaluation.internal.figures, "auroc"))]
    for probe in (*words.label_probes(evaluation), *words.source_probes(evaluation)):
        kind = "Source" if probe.target == "source" else "Label"
        probes.append((f"{kind}: {words.PROBE_NAMES.get(probe.name, probe.name)}", probe.auroc))
    parts.append(
        _table(
            ("What is told, from what", "AUROC (95 %)"),
            ((name, words.format_estimate(auroc)) for name, auroc in probes),
        )
    )
    if verdict.notes:
        parts += ["What could not be looked at:", _bullets(_named(evaluation, verdict.notes))]
    return parts


def _named(evaluation: Evaluation, notes: Iterable[str]) -> list[str]:
    return [words.name_classes(note, evaluation.data.labels) for note in notes]


def _figures(evaluation: Evaluation) -> list[str]:
    sets = (evaluation.internal, *evaluation.others)
    header = ("Set", "Images", "Patients", *words.FIGURE_NAMES.values())
    rows = [
        (
            f"{measured.name} ({words.name_set(measured)})",
            f"{measured.n_images:,}",
            f"{measured.n_patients:,}",
            *(words.format_estimate(words.figure_of(measured.figures, name)) for name in words.FIGURE_NAMES),
        )
        for measured in sets
    ]
    parts = ["## Figures", f"{_escape(words.describe_figures(evaluation))} {words.INTERVALS}", _table(header, rows)]
    notes = [f"{measured.name}: {measured.note}" for measured in sets if measured.note]
    for measured in sets:
        for name, title in words.FIGURE_NAMES.items():
            if note := words.figure_of(measured.figures, name).note:
                notes.append(f"{measured.name}, {title}: {note}")
    return [*parts, _bullets(_named(evaluation, notes))] if notes else parts


def _data(evaluation: Evaluation) -> list[str]:
    data = evaluation.data
    by_source = [
        (words.name_source(source), *(f"{count:,}" for count in row))
        for source, row in zip(data.sources, data.label_by_source, strict=True)
    ]
    sides = [
        (
            name,
            f"{side.n_images:,}",
            f"{side.n_patients:,}",
            *(f"{side.n_by_label.get(label, 0):,}" for label in data.labels),
        )
        for name, side in (("Training", data.train), ("Held out", data.test))
    ]
    labels = [_escape(label) for label in data.labels]
    return [
        "## Data",
        f"{data.n_images:,} images of {data.n_patients:,} patients. {words.describe_patients(data)}",
        _table(("Source", *labels), by_source),
        _escape(words.make_sentence(data.split)),
        _table(("Side", "Images", "Patients", *labels), sides),
        f"{words.describe_copies(data)} Files left out: {len(data.failed):,}.",
    ]


def _predictive_values(evaluation: Evaluation) -> list[str]:
    if not evaluation.predictive_values:
        return []
    sentences = [
        words.say_of_hundred(answers, row.prevalence, estimate)
        for row in evaluation.predictive_values
        for answers, estimate in (("positive", row.ppv), ("negative", row.npv))
    ]
    return ["## What an answer means", _bullets(sentences)]


def _sources(evaluation: Evaluation) -> list[str]:
    if not evaluation.by_source:
        return []
    labels = [_escape(label) for label in evaluation.data.labels]
    header = ("Source", "Images", "Patients", *labels, *(words.FIGURE_NAMES[name] for name in words.SHORT_FIGURES))
    rows = [
        (
            words.name_source(group.name),
            f"{group.n_images:,}",
            f"{group.n_patients:,}",
            *(f"{count:,}" for count in group.n_by_class),
            *(words.format_estimate(words.figure_of(group.figures, name)) for name in words.SHORT_FIGURES),
        )
        for group in evaluation.by_source
    ]
    return ["## Per source", _table(header, rows)]


def _in_service(evaluation: Evaluation) -> list[str]:
    if not evaluation.in_service:
        return []
    rows = [
        (
            words.FIGURE_NAMES.get(name, name),
            words.format_number(compared.first),
            words.format_number(compared.second),
            words.format_estimate(compared.difference),
            words.judge_difference(name, compared),
        )
        for name, compared in evaluation.in_service.items()
    ]
    header = ("Figure", "In service", "This model", "Difference (95 %)", "This model is")
    return ["## Model in service", _escape(evaluation.in_service_name), _table(header, rows)]


def _provenance(evaluation: Evaluation) -> list[str]:
    return [
        "## Provenance",
        _table(("What", "Value"), words.list_provenance(evaluation)).replace("| --: |", "| :-- |"),
        "### What was not looked at",
        _bullets(words.list_unexamined(evaluation)),
    ]
