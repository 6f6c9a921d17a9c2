"""The report as one HTML page: it loads nothing, runs nothing, and prints."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.envelope import DISCLAIMER
from schemas.errors import DependencyError
from schemas.extras import install_line
from schemas.modelcard import BINARY
from training.evidence.evaluation import Evaluation, Mistake, Variant
from training.evidence.probes import Probe
from training.figures.bootstrap import Estimate
from training.report import charts, words
from training.report.thumbnails import Thumbnail, make_thumbnail

if TYPE_CHECKING:
    from jinja2 import Environment

_MAX_FILES = 20  # of files left out and of copies; the JSON has all


class Footnotes:
    """The notes of one table: each once, in the order they are met.

    Parameters
    ----------
    labels : sequence of str
        Class names, which replace numbers of classes in notes.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self.notes: list[str] = []

    def mark(self, note: str) -> int:
        """Give a note's number, from 1."""
        named = self.name(note)
        if named not in self.notes:
            self.notes.append(named)
        return self.notes.index(named) + 1

    def name(self, note: str) -> str:
        """Write a note with names of classes."""
        return words.name_classes(note, self._labels)


@dataclass(frozen=True)
class _Shown:
    """A mistake and its picture, where pictures are wanted."""

    mistake: Mistake
    name: str
    thumbnail: Thumbnail | None


def render_page(evaluation: Evaluation, *, with_thumbnails: bool = True) -> str:
    """Render the HTML page.

    Parameters
    ----------
    evaluation : Evaluation
        What to say.
    with_thumbnails : bool
        Whether to show the worst mistakes as pictures.

    Returns
    -------
    str
        A whole document. Everything that comes from data is escaped.

    Raises
    ------
    DependencyError
        Jinja is missing.
    """
    template = _environment().get_template("report.html")
    return template.render(
        evaluation=evaluation,
        data=evaluation.data,
        disclaimer=DISCLAIMER,
        banner=words.word_verdict(evaluation),
        sections=_list_sections(evaluation),
        sets=(evaluation.internal, *evaluation.others),
        bars=_draw_bars(evaluation),
        curves=_draw_curves(evaluation),
        reliability=_draw_reliability(evaluation),
        mistakes=_show_mistakes(evaluation, with_thumbnails=with_thumbnails),
        with_thumbnails=with_thumbnails,
        max_files=_MAX_FILES,
    )


def _environment() -> "Environment":
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415  part of the train extra only
    except ImportError as exc:
        msg = f"the training report needs Jinja: {install_line('train')}"
        raise DependencyError(msg) from exc
    environment = Environment(
        loader=PackageLoader("training.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(words=words, charts=charts, footnotes=Footnotes)
    environment.filters.update(number=words.format_number, interval=words.format_interval, percent=words.format_percent)
    return environment


def _list_sections(evaluation: Evaluation) -> Mapping[str, str]:
    """Give the titles of the sections that have something to show, by their anchors."""
    asked_for = evaluation.operating_point, evaluation.abstention, evaluation.novelty, *evaluation.candidates
    titles = {
        "verdict": ("Verdict", True),
        "figures": ("Figures", True),
        "data": ("Data", True),
        "curves": ("Curves" if evaluation.roc else "Confusion matrix", True),
        "predictive-values": ("What an answer means", bool(evaluation.predictive_values)),
        "sources": ("Per source", bool(evaluation.by_source)),
        "variants": ("Ways to decide", len(evaluation.variants) > 1 or any(asked_for)),
        "mistakes": ("Worst mistakes", bool(evaluation.mistakes)),
        "in-service": ("Model in service", bool(evaluation.in_service)),
        "provenance": ("Provenance", True),
    }
    return {anchor: title for anchor, (title, shown) in titles.items() if shown}


@dataclass(frozen=True)
class _Bar:
    """One row of the verdict's chart."""

    name: str
    kind: str
    auroc: Estimate
    about: str
    svg: str


@dataclass(frozen=True)
class _Bars:
    """The verdict's chart: the model above the probes of the label, and the probes of the source."""

    label: tuple[_Bar, ...]
    source: tuple[_Bar, ...]
    axis: str


def _draw_bars(evaluation: Evaluation) -> _Bars:
    model = words.figure_of(evaluation.internal.figures, "auroc")
    label, source = words.label_probes(evaluation), words.source_probes(evaluation)
    start = charts.axis_start([model, *(probe.auroc for probe in (*label, *source))])

    def draw(probe: Probe) -> _Bar:
        kind = "shortcut" if words.is_shortcut(probe, evaluation) else "probe"
        beside = model.value if probe.target == "label" else math.nan
        svg = charts.draw_bar(probe.auroc, start=start, kind=kind, beside=beside)
        return _Bar(words.PROBE_NAMES.get(probe.name, probe.name), kind, probe.auroc, words.describe_probe(probe), svg)

    svg = charts.draw_bar(model, start=start, kind="model", beside=model.value)
    return _Bars(
        label=(_Bar("The model", "model", model, "on held-out patients", svg), *map(draw, label)),
        source=tuple(map(draw, source)),
        axis=charts.draw_bar_axis(start),
    )


def _draw_curves(evaluation: Evaluation) -> tuple[tuple[str, str], ...]:
    """Give title and picture of the curves of two classes; the picture is empty where a curve is."""
    roc, precision_recall, figures = evaluation.roc, evaluation.precision_recall, evaluation.internal.figures
    if roc is None or precision_recall is None:
        return ()
    sensitivity, specificity, auroc, auprc = (
        words.figure_of(figures, name) for name in ("sensitivity", "specificity", "auroc", "auprc")
    )
    matrix = evaluation.confusion.astype(float)
    n_images, n_predicted = matrix.sum(), matrix[:, 1].sum()
    share = matrix[1].sum() / n_images if n_images else 0.0
    precision = matrix[1, 1] / n_predicted if n_predicted else float("nan")
    decided = (sensitivity.value, precision)
    return (
        ("ROC curve", charts.draw_roc(roc, auroc, sensitivity, specificity)),
        ("Precision-recall curve", charts.draw_precision_recall(precision_recall, auprc, share, decided)),
    )


def _draw_reliability(evaluation: Evaluation) -> tuple[tuple[Variant, str], ...]:
    """Draw each variant whose probabilities are unlike those drawn already: a threshold changes none."""
    drawn: dict[str, Variant] = {}
    if len(evaluation.data.labels) == BINARY:
        for variant in evaluation.variants:
            if variant.calibration and (picture := charts.draw_reliability(variant.calibration)):
                drawn.setdefault(picture, variant)
    return tuple((variant, picture) for picture, variant in drawn.items())


def _show_mistakes(evaluation: Evaluation, *, with_thumbnails: bool) -> tuple[_Shown, ...]:
    return tuple(
        _Shown(mistake, words.file_name(mistake.path), make_thumbnail(mistake.path) if with_thumbnails else None)
        for mistake in evaluation.mistakes
    )
