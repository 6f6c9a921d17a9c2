"""The report in Markdown: the same in the same order, without pictures and curves."""

from collections.abc import Iterable, Mapping, Sequence

from schemas.envelope import DISCLAIMER
from training.evidence.evaluation import Evaluation
from training.figures.bootstrap import Estimate
from training.report import words
from training.report.tables import draw_table, escape


def render_markdown(evaluation: Evaluation) -> str:
    """Render as GitHub's Markdown.

    Parameters
    ----------
    evaluation : Evaluation
        What to say.

    Returns
    -------
    str
        What the page says, but for curves, copies and files by name. Everything that comes from data is escaped.
    """
    made = evaluation.provenance
    parts = [
        f"# Training report: {escape(f'{made.name} {made.version}')}",
        f"**{DISCLAIMER}** {escape(made.created_at)}",
        escape(words.describe_positive(evaluation.data)),
        *_verdict(evaluation),
        *_figures(evaluation),
        *_data(evaluation),
        *_confusion(evaluation),
        *_calibration(evaluation),
        *_predictive_values(evaluation),
        *_sources(evaluation),
        *_ways_to_decide(evaluation),
        *_mistakes(evaluation),
        *_in_service(evaluation),
        *_provenance(evaluation),
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, of_text: bool = False) -> str:
    """Make a table whose first column is text and whose others are numbers, or text as well."""
    numbers = [False, *[not of_text] * (len(header) - 1)]
    return draw_table(header, rows, numbers=numbers, escape_cell=escape, gap=" ")


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {escape(item)}" for item in items)


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


def _notes(evaluation: Evaluation, noted: Iterable[tuple[str, Estimate]]) -> list[str]:
    """List the notes of a table's estimates, each once."""
    names: dict[str, list[str]] = {}
    for name, estimate in noted:
        if estimate.note and name not in names.setdefault(estimate.note, []):
            names[estimate.note].append(name)
    lines = [f"{'; '.join(of)}: {note}" for note, of in names.items()]
    return [_bullets(_named(evaluation, lines))] if lines else []


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
    parts = ["## Figures", f"{escape(words.describe_figures(evaluation))} {words.INTERVALS}", _table(header, rows)]
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
    labels = [escape(label) for label in data.labels]
    return [
        "## Data",
        f"{data.n_images:,} images of {data.n_patients:,} patients. {escape(words.describe_patients(data))}",
        _table(("Source", *labels), by_source),
        escape(words.make_sentence(data.split)),
        _table(("Side", "Images", "Patients", *labels), sides),
        f"{words.describe_copies(data)} {escape(words.describe_left_out(data))}",
    ]


def _confusion(evaluation: Evaluation) -> list[str]:
    labels = evaluation.data.labels
    rows = [
        (label, *(f"{count:,}" for count in row))
        for label, row in zip(labels, evaluation.confusion.tolist(), strict=True)
    ]
    header = ("Actual", *map(escape, labels))
    return ["## Confusion matrix", "Rows are the actual classes, columns the predicted ones.", _table(header, rows)]


def _calibration(evaluation: Evaluation) -> list[str]:
    rows = [
        (
            variant.name,
            *map(words.format_estimate, (variant.calibration.brier, variant.calibration.slope)),
            words.format_estimate(variant.calibration.intercept),
            words.format_number(variant.calibration.expected_error),
        )
        for variant in evaluation.variants
        if variant.calibration is not None
    ]
    header = ("Variant", "Brier score", "Slope", "Intercept", "Expected error")
    noted = [
        (f"{variant.name}, {title}", estimate)
        for variant in evaluation.variants
        if (found := variant.calibration) is not None
        for title, estimate in zip(header[1:], (found.brier, found.slope, found.intercept), strict=False)
    ]
    return ["## Calibration", words.CALIBRATION, _table(header, rows), *_notes(evaluation, noted)] if rows else []


def _predictive_values(evaluation: Evaluation) -> list[str]:
    if not evaluation.predictive_values:
        return []
    sentences = [
        words.say_of_hundred(answers, row.prevalence, estimate)
        for row in evaluation.predictive_values
        for answers, estimate in (("positive", row.ppv), ("negative", row.npv))
    ]
    noted = [
        (f"{answers} answers", estimate)
        for row in evaluation.predictive_values
        for answers, estimate in (("Positive", row.ppv), ("negative", row.npv))
    ]
    return ["## What an answer means", _bullets(sentences), *_notes(evaluation, noted)]


def _sources(evaluation: Evaluation) -> list[str]:
    if not evaluation.by_source:
        return []
    labels = [escape(label) for label in evaluation.data.labels]
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
    noted = [
        (f"{words.name_source(group.name)}, {words.FIGURE_NAMES[name]}", words.figure_of(group.figures, name))
        for group in evaluation.by_source
        for name in words.SHORT_FIGURES
    ]
    return ["## Per source", _table(header, rows), *_notes(evaluation, noted)]


def _ways_to_decide(evaluation: Evaluation) -> list[str]:
    variants, point = evaluation.variants, evaluation.operating_point
    parts = []
    if len(variants) > 1:
        shown = [(f"{one.name} ({one.note})" if one.note else one.name, one.figures) for one in variants]
        parts += ["The same held-out patients, decided on in different ways.", _all_figures("Variant", shown)]
    if point is not None:
        [sentence] = _named(evaluation, [words.describe_point(point, evaluation.data.positive)])
        parts += ["### Operating point", escape(sentence)]
    if (band := evaluation.abstention) is not None:
        shown = [("All", band.all_images), ("Outside the band", band.decided)]
        parts += ["### Abstain band", words.describe_abstention(band), _all_figures("Images", shown)]
    if (novelty := evaluation.novelty) is not None:
        shown = [("All", novelty.all_images), ("Not flagged", novelty.judged)]
        parts += ["### Flag for unlike images", words.describe_novelty(novelty), _all_figures("Images", shown)]
    if evaluation.candidates:
        rows = [
            (one.name, words.format_estimate(one.auroc), "chosen" if one.chosen else "")
            for one in evaluation.candidates
        ]
        parts += ["### Settings tried", words.CANDIDATES, _table(("Setting", "AUROC (95 %)", "Chosen"), rows)]
    return ["## Ways to decide", *parts] if parts else []


def _all_figures(what: str, shown: Iterable[tuple[str, Mapping[str, Estimate]]]) -> str:
    rows = (
        (name, *(words.format_estimate(words.figure_of(figures, figure)) for figure in words.FIGURE_NAMES))
        for name, figures in shown
    )
    return _table((what, *words.FIGURE_NAMES.values()), rows)


def _mistakes(evaluation: Evaluation) -> list[str]:
    if not evaluation.mistakes:
        return []
    rows = [
        (
            words.file_name(one.path),
            one.source,
            one.actual,
            one.said,
            ", ".join(one.flags),
            words.format_number(one.probability),
        )
        for one in evaluation.mistakes
    ]
    return [
        "## Worst mistakes",
        f"{words.describe_mistakes(evaluation)} File names may tell who the patients are: "
        "this text may not be passed on freely.",
        _table(("File", "Source", "Actual", "Judged", "Flags", "Probability"), rows),
    ]


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
    compared = [(words.FIGURE_NAMES.get(name, name), one.difference) for name, one in evaluation.in_service.items()]
    name = escape(evaluation.in_service_name)
    return ["## Model in service", name, _table(header, rows), *_notes(evaluation, compared)]


def _provenance(evaluation: Evaluation) -> list[str]:
    return [
        "## Provenance",
        _table(("What", "Value"), words.list_provenance(evaluation), of_text=True),
        "### What was not looked at",
        _bullets(words.list_unexamined(evaluation)),
    ]
