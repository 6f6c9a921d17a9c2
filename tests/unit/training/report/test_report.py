"""The training report: nobody can miss the verdict, nothing from data becomes markup, nothing is loaded."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.envelope import DISCLAIMER
from schemas.errors import DependencyError
from sparkdl.image.limits import MAX_FILE_BYTES, MAX_PAYLOAD_BYTES, RENDERING_VERSION
from training.evidence.evaluation import DataSummary, Evaluation, Mistake, Provenance, SetFigures, Side, Variant
from training.evidence.probes import Probe, give_verdict
from training.figures.bootstrap import Estimate, Outcomes, estimate_share, gather_outcomes
from training.figures.calibration import measure_calibration
from training.figures.compare import Comparison, compare, measure_groups
from training.figures.curves import choose_threshold, trace_precision_recall, trace_roc
from training.figures.measure import count_confusion, measure, weighted_metrics
from training.figures.prevalence import predict_values
from training.model.abstain import choose_abstain_band, measure_abstention
from training.model.material import Candidate
from training.model.novelty import NoveltyFigures
from training.model.probability import calibrate, fit_calibrator
from training.report import render_markdown, render_page, words, write_report
from training.report.thumbnails import make_thumbnail

pytest.importorskip("sklearn", reason="needs the train extra (scikit-learn)")
pytest.importorskip("jinja2", reason="needs the train extra (Jinja)")

pytestmark = pytest.mark.train

N_RESAMPLES = 100
NAN = Estimate(math.nan, math.nan, math.nan, "not measured: one label")


# --- evaluations on made-up numbers -----------------------------------------------------------------------------------


def _outcomes(n: int, *, strength: float, seed: int, n_classes: int = 2) -> Outcomes:
    """Two images of each patient, as alike as two of one chest are."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, n_classes, n // 2), 2)
    logits = np.repeat(rng.normal(size=(n // 2, n_classes)), 2, axis=0) + 0.3 * rng.normal(size=(n, n_classes))
    logits += strength * np.eye(n_classes)[labels]
    powers = np.exp(logits * 1.6)
    patients = [f"patient-{index // 2}" for index in range(n)]
    return gather_outcomes(labels, powers / powers.sum(axis=1, keepdims=True), patients)


def _measure(outcomes: Outcomes) -> dict[str, Estimate]:
    return measure(outcomes, n_resamples=N_RESAMPLES)


def _set(name: str, kind: str, outcomes: Outcomes, labels: tuple[str, ...], note: str = "") -> SetFigures:
    counts = dict(zip(labels, np.bincount(outcomes.labels, minlength=len(labels)).tolist(), strict=True))
    figures = _measure(outcomes)
    return SetFigures(name, kind, outcomes.labels.size, outcomes.n_patients, counts, figures, note)


def _provenance(**changes: object) -> Provenance:
    made = Provenance(
        name="cxr",
        version="20261123T101500Z-4f1c2a9e",
        sha256="9d2f" * 16,
        network="EfficientNetLite0",
        weights="imagenet",
        weights_sha256="51c0" * 16,
        precision="fp32",
        rendering_version=RENDERING_VERSION,
        classifier="logistic regression, regParam 0.01, standardised",
        procedure="paper",
        seed=0,
        code_version="0.1.0 (50c2ce2)",
        data_sha256="07ab" * 16,
        created_at="2026-11-23T10:15:00Z",
        seconds=83.4,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def _probe(name: str, value: float, width: float = 0.03) -> Probe:
    target = "source" if name.startswith("source_from") else "label"
    n_values = {"thumbnail": 64, "borders": 240, "corners": 48, "metadata": 5, "source": 2}.get(name, 64)
    return Probe(name, target, Estimate(value, value - width, min(1.0, value + width)), n_values)  # type: ignore[arg-type]


def _data(labels: tuple[str, ...], sources: tuple[str, ...], table: tuple[tuple[int, ...], ...]) -> DataSummary:
    n = sum(map(sum, table))
    by_label = {label: sum(row[place] for row in table) for place, label in enumerate(labels)}
    test = {label: round(0.3 * count) for label, count in by_label.items()}
    train = {label: count - test[label] for label, count in by_label.items()}
    return DataSummary(
        labels=labels,
        n_images=n,
        n_patients=n // 2,
        sources=sources,
        label_by_source=table,
        patient_ids_known=True,
        failed=(("/data/xrays/patient-7/broken.png", "truncated_image: PNG ends at byte 412 inside a chunk"),),
        exact_copies=2,
        near_copies=1,
        copies=(
            ("/data/xrays/patient-3/a.png", "/data/xrays/patient-3/a-copy.png", "exact"),
            ("/data/xrays/patient-8/b.png", "/data/xrays/patient-8/b (1).png", "exact"),
            ("/data/xrays/patient-9/c.png", "/data/xrays/patient-9/c-small.jpg", "near"),
        ),
        copies_across=0,
        split="drawn by patient, copies kept together",
        train=Side(sum(train.values()), sum(train.values()) // 2, train),
        test=Side(sum(test.values()), sum(test.values()) // 2, test),
        positive_known_by="'normal' is the negative class" if len(labels) == 2 else "given with --positive",
    )


@cache
def confounded() -> Evaluation:
    """The public set of normal and covid: as the paper has it, and what the probes say to it."""
    labels = ("normal", "covid")
    outcomes = _outcomes(102, strength=2.6, seed=1)
    internal = _set("held-out patients", "internal", outcomes, labels)
    probes = (
        _probe("thumbnail", 0.945),
        _probe("borders", 0.803, 0.05),
        _probe("corners", 0.792, 0.05),
        _probe("metadata", 0.796, 0.05),
        Probe("source", "label", Estimate(1.0, 0.978, 1.0), 2, (1.0, 1.0)),
        _probe("source_from_thumbnail", 0.97),
        _probe("source_from_features", 0.99, 0.01),
    )
    auroc = internal.figures["auroc"].value
    sources = ["kaggle" if label == 0 else "ieee8023" for label in outcomes.labels.tolist()]
    return Evaluation(
        verdict=give_verdict(auroc, probes),
        provenance=_provenance(),
        data=_data(labels, ("ieee8023", "kaggle"), ((0, 196), (144, 0))),
        metrics=weighted_metrics(count_confusion(outcomes)),
        internal=internal,
        confusion=count_confusion(outcomes),
        roc=trace_roc(outcomes),
        precision_recall=trace_precision_recall(outcomes),
        predictive_values=predict_values(outcomes, n_resamples=N_RESAMPLES),
        others=(
            _set("hospital in Valencia", "external", _outcomes(400, strength=0.3, seed=2), labels),
            _set("hospital in Bethesda", "external", _outcomes(300, strength=0.45, seed=3), labels),
        ),
        by_source=measure_groups(outcomes, sources, n_resamples=N_RESAMPLES),
        probes=probes,
        variants=(Variant("as fitted", _measure(outcomes), measure_calibration(outcomes, n_resamples=N_RESAMPLES)),),
    )


@cache
def complete() -> Evaluation:
    """Everything that can be asked for, and no shortcut."""
    labels = ("normal", "pneumonia")
    outcomes, validation = _outcomes(600, strength=1.6, seed=4), _outcomes(400, strength=1.6, seed=5)
    before = _outcomes(600, strength=1.4, seed=4)
    calibrator = fit_calibrator(validation)
    calibrated, on_validation = calibrate(outcomes, calibrator), calibrate(validation, calibrator)
    point = choose_threshold(on_validation, sensitivity=0.95, n_resamples=N_RESAMPLES)
    decided = calibrate(outcomes, calibrator, threshold=point.threshold)
    band = choose_abstain_band(on_validation, threshold=point.threshold or 0.5, share=0.1)
    internal = _set("held-out patients", "internal", decided, labels, "decided at the operating point")
    probes = (
        _probe("thumbnail", 0.621),
        _probe("borders", 0.438),
        _probe("corners", 0.55),
        _probe("metadata", 0.517),
        _probe("source", 0.61),
        _probe("source_from_thumbnail", 0.58),
    )
    sources = np.random.default_rng(7).choice(["north", "south", ""], decided.labels.size).tolist()
    of_calibrated = measure_calibration(calibrated, n_resamples=N_RESAMPLES)
    return Evaluation(
        verdict=give_verdict(internal.figures["auroc"].value, probes),
        provenance=_provenance(procedure="tuned, calibrated, operating point at sensitivity 0.95"),
        data=_data(labels, ("", "north", "south"), ((210, 180), (540, 320), (410, 340))),
        metrics=weighted_metrics(count_confusion(decided)),
        internal=internal,
        confusion=count_confusion(decided),
        roc=trace_roc(decided),
        precision_recall=trace_precision_recall(decided),
        predictive_values=predict_values(decided, n_resamples=N_RESAMPLES),
        others=(
            _set("without source north", "leave-one-source-out", _outcomes(860, strength=1.3, seed=8), labels),
            _set("without source south", "leave-one-source-out", _outcomes(750, strength=1.2, seed=9), labels),
            _set("county hospital 2024", "external", _outcomes(220, strength=1.1, seed=10), labels, "JPEG, lossy"),
        ),
        by_source=measure_groups(decided, sources, n_resamples=N_RESAMPLES),
        probes=probes,
        variants=(
            Variant("as fitted", _measure(outcomes), measure_calibration(outcomes, n_resamples=N_RESAMPLES)),
            Variant("calibrated", _measure(calibrated), of_calibrated, "Platt, on validation patients"),
            Variant("at the operating point", _measure(decided), of_calibrated, f"threshold {point.threshold:.3f}"),
            Variant("class weights", _measure(before), None, "fitted anew"),
        ),
        operating_point=point,
        abstention=measure_abstention(decided, band, n_resamples=N_RESAMPLES),
        novelty=NoveltyFigures(
            0.2134, estimate_share(7, 600), _measure(decided.take(np.arange(600) >= 7)), _measure(decided)
        ),
        candidates=(
            Candidate("EfficientNetLite0, C = 0.1", Estimate(0.921, 0.90, 0.94), False),
            Candidate("EfficientNetLite0, C = 1", Estimate(0.934, 0.915, 0.95), True),
            Candidate("InceptionV3, C = 0.1", Estimate(0.918, 0.897, 0.939), False),
        ),
        mistakes=_mistakes(Path("/nowhere"), 3),
        in_service=compare(before, decided, n_resamples=N_RESAMPLES),
        in_service_name="20260901T080000Z-77aa01bc (trained on 31 of these images)",
    )


@cache
def three_classes() -> Evaluation:
    labels = ("normal", "bacterial pneumonia", "viral pneumonia")
    outcomes = _outcomes(450, strength=1.8, seed=11, n_classes=3)
    internal = _set("held-out patients", "internal", outcomes, labels)
    probes = (_probe("thumbnail", 0.60), _probe("borders", 0.52), _probe("corners", 0.53), _probe("metadata", 0.50))
    data = _data(labels, ("kermany",), ((500, 480, 520),))
    return Evaluation(
        verdict=give_verdict(internal.figures["auroc"].value, probes),
        provenance=_provenance(),
        data=replace(data, patient_ids_known=False, failed=(), exact_copies=0, near_copies=0, copies=()),
        metrics=weighted_metrics(count_confusion(outcomes)),
        internal=internal,
        confusion=count_confusion(outcomes),
        roc=None,
        precision_recall=None,
        predictive_values=(),
        others=(),
        by_source=measure_groups(outcomes, ["kermany"] * 450, n_resamples=N_RESAMPLES),
        probes=probes,
        variants=(Variant("as fitted", _measure(outcomes)),),
    )


@cache
def nearly_empty() -> Evaluation:
    """Six held-out images of one class: hardly anything is a number."""
    labels = ("normal", "covid")
    outcomes = gather_outcomes([0] * 6, np.linspace(0.1, 0.6, 6), [f"p{index}" for index in range(6)])
    probes = tuple(Probe(name, "label", NAN, 5) for name in ("thumbnail", "borders", "corners", "metadata"))
    internal = _set("held-out patients", "internal", outcomes, labels)
    return Evaluation(
        verdict=give_verdict(internal.figures["auroc"].value, probes),
        provenance=_provenance(),
        data=replace(_data(labels, ("",), ((20, 0),)), copies=(), exact_copies=0, near_copies=0),
        metrics={},
        internal=internal,
        confusion=count_confusion(outcomes),
        roc=trace_roc(outcomes),
        precision_recall=trace_precision_recall(outcomes),
        predictive_values=predict_values(outcomes, n_resamples=N_RESAMPLES),
        others=(),
        by_source=measure_groups(outcomes, [""] * 6, n_resamples=N_RESAMPLES),
        probes=probes,
        variants=(Variant("as fitted", _measure(outcomes), measure_calibration(outcomes, n_resamples=N_RESAMPLES)),),
    )


def _mistakes(folder: Path, n: int) -> tuple[Mistake, ...]:
    return tuple(
        Mistake(folder / f"image-{index}.png", f"secret-{index}", "north", "normal", "pneumonia", 0.99 - index / 100)
        for index in range(n)
    )


ALL = {
    "confounded": confounded,
    "complete": complete,
    "three classes": three_classes,
    "nearly empty": nearly_empty,
}


# --- a page as a tree -------------------------------------------------------------------------------------------------

VOID = {"meta", "img", "br"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parts: list["Element | str"] = field(default_factory=list)

    def walk(self) -> "Iterator[Element]":
        yield self
        for part in self.parts:
            if isinstance(part, Element):
                yield from part.walk()

    def find(self, tag: str = "", **attributes: str) -> "list[Element]":
        return [
            element
            for element in self.walk()
            if tag in ("", element.tag)
            and all(value in element.attributes.get(name.strip("_"), "").split() for name, value in attributes.items())
        ]

    @property
    def text(self) -> str:
        words_in = (part if isinstance(part, str) else part.text for part in self.parts)
        return " ".join(" ".join(words_in).split())


class Page(HTMLParser):
    """Fails where tags are not nested properly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].parts.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].parts.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].parts.append(data)


def _page(evaluation: Evaluation, *, with_thumbnails: bool = False) -> Element:
    return Page(render_page(evaluation, with_thumbnails=with_thumbnails)).root


def _rows(page: Element, table: str) -> list[list[str]]:
    return [
        [cell.text for cell in row.parts if isinstance(cell, Element)]
        for body in page.find("table", id=table)[0].find("tbody")
        for row in body.find("tr")
    ]


@pytest.fixture(params=ALL.values(), ids=ALL.keys())
def evaluation(request: pytest.FixtureRequest) -> Evaluation:
    made: Callable[[], Evaluation] = request.param
    return made()


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_verdict_comes_first(evaluation: Evaluation) -> None:
    page = _page(evaluation)
    main = page.find("main")[0]
    banner = next(part for part in main.parts if isinstance(part, Element))
    assert "banner" in banner.attributes["class"]
    assert page.find("h2")[0].text == words.word_verdict(evaluation).title
    before = page.find("header")[0].text
    assert DISCLAIMER in before
    assert len(before) < 200  # a title and two lines: the banner is on the first screen


def test_the_positive_class_is_named_at_the_top(evaluation: Evaluation) -> None:
    # Health taken for the finding would turn every figure below round.
    said = f"Positive class: {evaluation.data.labels[-1]} ({evaluation.data.positive_known_by})."
    assert _page(evaluation).find("header")[0].find("p", id="positive")[0].text == said
    assert words.describe_positive(evaluation.data) == said
    text = render_markdown(evaluation)
    assert text.index(said) < text.index("\n## ")
    document = evaluation.to_dict()
    assert list(document)[:3] == ["disclaimer", "positive_label", "positive_known_by"]
    assert document["positive_label"] == document["data"]["labels"][-1]
    assert document["positive_known_by"] == document["data"]["positive_known_by"] != ""


def test_a_confounded_model_is_called_so_with_the_probes_beside_it() -> None:
    banner = _page(confounded()).find("section", class_="confounded")[0]
    assert banner.find("h2")[0].text == "Confounded: not evidence of disease detection"
    reasons = [item.text for item in banner.find("ul", class_="reasons")[0].find("li")]
    assert len(reasons) == len(confounded().verdict.reasons) == 5
    assert reasons[0].startswith("A thumbnail of 8x8 pixels tells the label with an AUROC of 0.945 (0.915\u20130.975)")
    rows = banner.find("table", class_="probes")[0].find("tbody")[0].find("tr")
    assert rows[0].text.startswith("The model")
    assert [row.find("th")[0].text for row in rows[1:3]] == ["Name of the source", "Thumbnail, 8x8 pixels"]
    assert len(banner.find("tr", class_="shortcut")) == 5
    assert all(row.find("rect") and len(row.find("line", class_="whisker")) == 3 for row in rows)


def test_a_verdict_of_ok_says_what_the_probes_cannot_see() -> None:
    page = _page(complete())
    banner = page.find("section", class_="ok")[0]
    assert banner.find("h2")[0].text == "No shortcut found by these probes"
    assert "cannot see tubes, drains and wires" in banner.text
    assert "source: the images do not betray it" in banner.text
    assert not page.find("tr", class_="shortcut")


def test_ok_without_any_measured_probe_is_not_called_ok() -> None:
    assert nearly_empty().verdict.verdict == "unknown"
    page = _page(nearly_empty())
    assert not page.find("section", class_="ok")
    assert page.find("h2")[0].text == "Not judged: no shortcut probe could be measured"
    assert "Not judged" in render_markdown(nearly_empty())


def test_figures_of_all_sets_stand_in_one_table() -> None:
    rows = _rows(_page(complete()), "headline")
    assert rows[1][0] == "without source north leave one source out 860 images of 430 patients"
    counts = [re.findall(r"(\d+) images of (\d+) patients", row[0]) for row in rows]
    assert counts == [[("600", "300")], [("860", "430")], [("750", "375")], [("220", "110")]]
    auroc = complete().others[2].figures["auroc"]
    assert rows[3][1] == f"{auroc.value:.3f} {auroc.low:.3f}\u2013{auroc.high:.3f}"
    assert {len(row) for row in rows} == {10}
    assert "No set from outside" in _page(three_classes()).text
    assert "No set from outside" not in _page(complete()).text


def test_data_are_counted() -> None:
    page = _page(confounded())
    assert _rows(page, "label-by-source") == [["ieee8023", "0", "196", "196"], ["kaggle", "144", "0", "144"]]
    assert page.find("table", id="label-by-source")[0].find("tfoot")[0].text == "All 144 196 340"
    assert "Drawn by patient, copies kept together." in page.text
    assert _rows(page, "split")[1] == ["Held out", "102", "51", "43", "59"]
    assert "2 exact and 1 near" in page.text
    assert "truncated_image: PNG ends at byte 412" in page.text
    assert "no patient is on both sides" in page.text
    assert "file name counts as one" in _page(three_classes()).text


def test_curves_have_text_and_say_what_they_show() -> None:
    charts = _page(complete()).find("svg", class_="chart")
    # A threshold changes no probability: the third variant has no diagram of its own.
    assert [chart.attributes["data-chart"] for chart in charts] == [
        "roc",
        "precision-recall",
        "reliability",
        "reliability",
    ]
    assert all(chart.attributes["role"] == "img" and chart.attributes["aria-label"] for chart in charts)
    assert "Sensitivity" in charts[0].text
    assert f"area {complete().internal.figures['auroc'].value:.3f}" in charts[0].attributes["aria-label"]


def test_more_classes_have_a_confusion_matrix_alone() -> None:
    page = _page(three_classes())
    assert not page.find("svg", class_="chart")
    assert not page.find(id="predictive-values")
    counts = [
        [cell.find("b")[0].text for cell in row.find("td")]
        for row in page.find("table", id="confusion")[0].find("tr")[1:]
    ]
    assert counts == [[str(count) for count in row] for row in three_classes().confusion.tolist()]
    assert "means over the 3 classes" in page.text
    for text in (page.text, render_markdown(three_classes())):
        assert (
            "The model answers with the most probable class; its score is the probability of 'viral pneumonia'." in text
        )


def test_what_an_answer_means_is_said_in_words() -> None:
    row = complete().predictive_values[1]
    said = f"Of 100 positive answers at a prevalence of 5 %, {round(100 * row.ppv.value)} are right ("
    assert said in _page(complete()).text
    assert said in render_markdown(complete())


def test_every_part_that_is_there_is_shown_and_no_other() -> None:
    shown = [link.attributes["href"] for link in _page(complete()).find("nav")[0].find("a")]
    assert shown == [
        *("#verdict", "#figures", "#data", "#curves", "#predictive-values", "#sources", "#variants", "#mistakes"),
        *("#in-service", "#provenance"),
    ]
    page = _page(complete())
    for table, n_rows in {
        "ways": 4,
        "abstention": 2,
        "novelty": 2,
        "candidates": 3,
        "comparison": 9,
        "by-source": 3,
    }.items():
        assert len(_rows(page, table)) == n_rows, table
    assert _rows(page, "candidates")[1][2] == "chosen"
    assert "A sensitivity of 0.950 was asked for" in page.text
    assert "above 0.213 from the training images" in page.text
    assert "trained on 31 of these images" in page.text
    sparse = _page(three_classes())
    for absent in ("variants", "mistakes", "in-service", "ways", "abstention", "candidates", "comparison"):
        assert not sparse.find(id=absent), absent


def test_links_lead_somewhere(evaluation: Evaluation) -> None:
    page = _page(evaluation)
    anchors = [element.attributes["id"] for element in page.walk() if "id" in element.attributes]
    assert len(anchors) == len(set(anchors))
    assert {link.attributes["href"].removeprefix("#") for link in page.find("a")} <= set(anchors)


def test_provenance_is_complete_and_gaps_are_named() -> None:
    page = _page(confounded())
    made = dict(_rows(page, "made"))
    assert made["Model's SHA-256"] == "9d2f" * 16
    assert made["Procedure"] == "paper (the default one)"
    assert made["Took"] == "1 min 23 s"
    shown = " ".join(made.values())
    for name, value in vars(confounded().provenance).items():
        assert name == "seconds" or str(value) in shown, name
    assert "A source left out of training: the data name 2 sources, and none was left out." in page.text
    assert "no external set was given" not in page.text
    assert "no external set was given" in _page(three_classes()).text


def test_a_gap_that_a_note_explains_is_named_once() -> None:
    made = three_classes()
    notes = ("leave-one-source-out: the data name one source", "comparison with the model in service: 1 is for cats")
    listed = words.list_unexamined(replace(made, verdict=replace(made.verdict, notes=notes)))
    assert listed[:2] == notes
    assert not [
        sentence for sentence in listed if "source left out of training" in sentence or "not compared" in sentence
    ]
    assert "The model in service: it was not compared with." in words.list_unexamined(made)


def test_what_is_no_number_says_why() -> None:
    page = _page(nearly_empty())
    row = page.find("table", id="headline")[0].find("tbody")[0]
    empty = row.find("td", class_="nothing")
    assert [cell.text for cell in empty] == ["\u2014 1"] * 3
    assert {cell.attributes["title"] for cell in empty} == {"no image of class 'covid'"}
    assert any(notes.text.startswith("1 no image of class 'covid'") for notes in page.find("div", class_="footnotes"))
    assert "Not defined: no image of class 'covid'." in page.text


def test_notes_on_intervals_stand_beside_them() -> None:
    made = complete()
    few = "8 patients are too few for a trustworthy interval"
    share = Estimate(0.2, 0.1, 0.4, few)
    sure = Estimate(-0.04, math.nan, math.nan, "1 patient of class 1 is too few for a trustworthy interval")
    assert made.abstention is not None
    assert made.novelty is not None
    assert made.operating_point is not None
    made = replace(
        made,
        abstention=replace(made.abstention, share=share),
        novelty=replace(made.novelty, flagged=share),
        operating_point=replace(made.operating_point, specificity=share),
        in_service={"auroc": Comparison(0.9, 0.86, sure, math.nan)},
    )
    page, markdown = _page(made).text, render_markdown(made)
    for text in (page, markdown):
        assert text.count(f") of the held-out images. {few}.") == 1
        assert text.count(f"it flags 0.200 (0.100\u20130.400). {few}.") == 1
        assert text.count(f", specificity 0.200 (0.100\u20130.400). {few}.") == 1
        assert f"1 patient of class '{made.data.labels[1]}' is too few for a trustworthy interval" in text
    [row] = _rows(_page(made), "comparison")
    assert row[3:] == ["\u22120.040 1 \u2014", "\u2014", "\u2014"]
    pictures = [figure for figure in _page(made).find("figure") if "Reliability" in figure.text]
    assert pictures
    assert all("Wilson's, which take images for independent" in figure.text for figure in pictures)


def test_nothing_is_written_as_nan(evaluation: Evaluation) -> None:
    for text in (render_page(evaluation), render_markdown(evaluation)):
        assert not re.search(r"\b(nan|inf|None|undefined)\b", re.sub(r"(?s)<style>.*</style>", "", text))


def test_the_page_loads_nothing(evaluation: Evaluation, tmp_path: Path) -> None:
    Image.new("L", (20, 30), 90).save(tmp_path / "image-0.png")
    with_pictures = replace(evaluation, mistakes=_mistakes(tmp_path, 2))
    text = render_page(with_pictures)
    page = Page(text).root
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert not page.find("script") and not page.find("link") and not page.find("iframe")
    assert [image.attributes["src"][:23] for image in page.find("img")] == ["data:image/jpeg;base64,"]
    assert "default-src 'none'" in page.find("meta")[1].attributes["content"]


# --- what comes from data ---------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>|`[a](b)*\n# x"


def _hostile(folder: Path) -> Evaluation:
    """`complete`, with markup wherever text comes from outside."""
    made = complete()
    data = replace(
        made.data,
        labels=("normal", EVIL),
        positive_known_by=EVIL,
        sources=(EVIL, "north", "south"),
        failed=((EVIL, EVIL),),
        copies=((EVIL, EVIL, EVIL),),
        split=EVIL,
        patient_ids_known=False,
        unknown_patients=EVIL,
        left_out={EVIL: 3},
    )
    return replace(
        made,
        data=data,
        verdict=replace(made.verdict, verdict="confounded", reasons=(EVIL,), notes=(EVIL,)),
        provenance=_provenance(name=EVIL, classifier=EVIL, procedure=EVIL),
        internal=replace(made.internal, name=EVIL, note=EVIL, figures={"auroc": replace(NAN, note=EVIL)}),
        others=(replace(made.others[0], name=EVIL, kind=EVIL),),
        by_source=tuple(replace(group, name=EVIL) for group in made.by_source),
        variants=(*(replace(variant, name=EVIL, note=EVIL) for variant in made.variants),),
        candidates=(Candidate(EVIL, NAN, True),),
        mistakes=(Mistake(folder / EVIL.replace("/", "_"), EVIL, EVIL, EVIL, EVIL, 0.9),),
        probes=(replace(made.probes[0], name=EVIL),),
        in_service_name=EVIL,
    )


@pytest.mark.parametrize("with_thumbnails", [True, False])
def test_markup_in_data_stays_text(tmp_path: Path, with_thumbnails: bool) -> None:
    page = _page(_hostile(tmp_path), with_thumbnails=with_thumbnails)
    assert not page.find("script") and not page.find("img")
    assert not [name for element in page.walk() for name in element.attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") > 15
    tags = {element.tag for element in page.walk()}
    clean = {element.tag for element in _page(complete(), with_thumbnails=with_thumbnails).walk()}
    assert tags <= clean | {element.tag for element in _page(confounded()).walk()}


def test_markup_in_data_stays_text_in_markdown(tmp_path: Path) -> None:
    text = render_markdown(_hostile(tmp_path))
    assert "<" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"(?m)^# x", text)
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 5
    for table in tables:
        # An escaped bar is no border of a cell.
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_no_patient_and_no_folder_is_named(tmp_path: Path) -> None:
    secret = tmp_path / "name-of-a-patient"
    shown = replace(complete(), mistakes=_mistakes(secret, 3))
    for text in (render_page(shown), render_page(shown, with_thumbnails=False), render_markdown(shown)):
        assert "secret-0" not in text
        assert "name-of-a-patient" not in text
        assert "/data/xrays" not in text
    assert "image-0.png" in render_page(shown)


# --- thumbnails -------------------------------------------------------------------------------------------------------


def test_thumbnails_are_small_and_a_lost_file_has_a_placeholder(tmp_path: Path) -> None:
    Image.new("L", (300, 600), 90).save(tmp_path / "image-0.png")
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "image-1.png")
    (tmp_path / "image-2.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    page = _page(replace(complete(), mistakes=_mistakes(tmp_path, 4)), with_thumbnails=True)
    sizes = [(image.attributes["width"], image.attributes["height"]) for image in page.find("img")]
    assert sizes == [("80", "160"), ("40", "30")]  # the aspect ratio is kept, and nothing is enlarged
    assert "judged pneumonia with probability 0.99" in page.find("img")[0].attributes["alt"]
    gone = [element.text for element in page.find("span", class_="gone")]
    assert gone == ["No picture: truncated image", "No picture: No such file or directory"]
    assert "may not be passed on freely" in page.find("p", class_="warning")[0].text


def test_a_flagged_mistake_names_its_flags_and_no_class(tmp_path: Path) -> None:
    sure, flagged = _mistakes(tmp_path, 2)
    without = replace(complete(), mistakes=(sure,))
    shown = replace(without, mistakes=(sure, replace(flagged, flags=("uncertain", "of_a_later_version"))))
    Image.new("L", (30, 30), 90).save(tmp_path / "image-1.png")
    page, text = _page(shown, with_thumbnails=True), render_markdown(shown)
    [gallery] = page.find("ul", class_="gallery")
    assert "judged undecided" in gallery.text
    assert "probability of pneumonia 0.98" in gallery.text
    assert "flags: uncertain, of_a_later_version" in gallery.text
    assert gallery.text.count("judged pneumonia") == 1
    [image] = gallery.find("img")
    assert "judged undecided with probability of pneumonia 0.98" in image.attributes["alt"]
    assert "| image-1.png | north | normal | undecided | uncertain, of\\_a\\_later\\_version | 0.980 |" in text
    for found in (page.text, text):
        assert "nobody is to act on it" in found
    assert "undecided" not in _page(without).find("ul", class_="gallery")[0].text
    assert "nobody is to act on it" not in render_markdown(without)


def test_a_page_without_thumbnails_reads_no_file(tmp_path: Path) -> None:
    Image.new("L", (30, 30), 90).save(tmp_path / "image-0.png")
    page = _page(replace(complete(), mistakes=_mistakes(tmp_path, 1)), with_thumbnails=False)
    assert not page.find("img") and not page.find("span", class_="gone")
    assert "written without pictures" in page.find("p", class_="warning")[0].text
    assert "image-0.png" in page.text


def test_a_page_stays_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)  # what compresses worst
    for index in range(30):
        Image.fromarray(noise).save(tmp_path / f"image-{index}.png", compress_level=0)
    made = replace(
        complete(),
        mistakes=_mistakes(tmp_path, 30),
        data=replace(complete().data, failed=tuple((f"{index}.png", "truncated_image") for index in range(5000))),
    )
    page = write_report(made, tmp_path)
    assert page.stat().st_size < 3_000_000
    root = Page(page.read_text("utf-8")).root
    assert len(root.find("img")) == 30
    assert "5,000 files were left out" in root.text


@pytest.mark.parametrize("n_bytes", [MAX_PAYLOAD_BYTES + 1, MAX_FILE_BYTES, MAX_FILE_BYTES + 1])
def test_a_file_that_training_has_read_has_a_picture_however_large_it_is(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30)).save(path)
    with path.open("ab") as stream:
        stream.truncate(n_bytes)
    thumbnail = make_thumbnail(path)
    assert (thumbnail.error, thumbnail.width, thumbnail.height) == ("", 30, 20)


# --- files ------------------------------------------------------------------------------------------------------------


def test_three_files_are_written(evaluation: Evaluation, tmp_path: Path) -> None:
    page = write_report(evaluation, tmp_path)
    assert page == tmp_path / "report.html"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == json.loads(json.dumps(evaluation.to_dict()))
    write_report(evaluation, tmp_path, with_thumbnails=False)  # again, over the first


def test_a_name_that_is_no_utf8_can_be_written(tmp_path: Path) -> None:
    odd = Mistake(tmp_path / "a\udcff.png", "p", "north", "normal", "pneumonia", 0.9)
    text = write_report(replace(complete(), mistakes=(odd,)), tmp_path).read_text("utf-8")
    assert "a?.png" in text


def test_without_jinja_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(DependencyError, match=r"pip install .*\[train\]"):
        write_report(complete(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_markdown_says_the_same_in_the_same_order() -> None:
    headings = re.findall(r"(?m)^#+ (.*)$", render_markdown(complete()))
    assert headings[1:] == [
        *("No shortcut found by these probes", "Figures", "Data", "Confusion matrix", "Calibration"),
        *("What an answer means", "Per source", "Ways to decide", "Operating point", "Abstain band"),
        *("Flag for unlike images", "Settings tried", "Worst mistakes"),
        *("Model in service", "Provenance", "What was not looked at"),
    ]
    text = render_markdown(confounded())
    assert text.index("Confounded: not evidence of disease detection") < 300
    assert DISCLAIMER in text
    assert "| Label: Thumbnail, 8x8 pixels | 0.945 (0.915\u20130.975) |" in text
    assert "hospital in Valencia (external) | 400 | 200 |" in text


def test_every_figure_of_the_pages_tables_is_in_markdown(evaluation: Evaluation) -> None:
    page, text = _page(evaluation), render_markdown(evaluation)
    tables = {
        "headline",
        "split",
        "confusion",
        "calibration",
        "by-source",
        "ways",
        "abstention",
        "novelty",
        "candidates",
    }
    shown = tables & {table.attributes["id"] for table in page.find("table", class_="data")}
    assert shown == tables or evaluation is not complete()
    for table in shown:
        for cell in (cell for row in _rows(page, table) for cell in row[1:]):
            # On the page an interval stands below its figure, behind the number of a footnote.
            number = cell.split(" ")[0]
            assert number in text, (table, cell)
    for mistake in evaluation.mistakes:
        assert words.file_name(mistake.path) in text


def test_a_report_that_looked_for_no_copies_does_not_say_there_are_none() -> None:
    data = replace(
        three_classes().data,
        copies_across=None,
        unknown_patients="of 3 of all 9 images the patient is not known; each counts as a patient of its own",
        left_out={"whose vector is of another network": 4},
    )
    retrained = replace(three_classes(), data=data)
    for text in (_page(retrained).text, render_markdown(retrained)):
        assert "Near copies were not looked for" in text
        assert "No image is a copy" not in text
        assert "Of 3 of all 9 images the patient is not known" in text
        assert "each file name counts as one" not in text
        assert "4 images whose vector is of another network were left out." in text
        assert "Nothing was left out" not in text


def test_copies_with_different_labels_are_counted() -> None:
    made = replace(complete(), data=replace(complete().data, unlike_copies=2))
    for text in (_page(made).text, render_markdown(made)):
        assert "The labels of 2 pairs differ: of each, one is wrong." in text


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(0.99, 0.947, 0.998), "0.990 (0.947\u20130.998)"),
        (Estimate(-0.1, -0.2, 0.05), "\u22120.100 (\u22120.200 to 0.050)"),
        (Estimate(-0.0001, -0.0002, 0.0), "0.000 (0.000\u20130.000)"),
        (Estimate(0.5, math.nan, math.nan), "0.500 (\u2014)"),
        (NAN, "\u2014"),
    ],
)
def test_estimates_are_written_with_three_decimals(estimate: Estimate, text: str) -> None:
    assert words.format_estimate(estimate) == text


def test_counts_of_a_hundred_never_claim_certainty() -> None:
    shares = (0.0, 0.002, 0.494, 0.9999, 1.0, math.nan)
    assert [words.of_hundred(share) for share in shares] == [
        *("0", "fewer than 1", "49", "more than 99", "100", "an unknown number")
    ]
    said = words.say_of_hundred("negative", 0.01, Estimate(0.9993, 0.998, 0.9997))
    assert said == "Of 100 negative answers at a prevalence of 1\N{NO-BREAK SPACE}%, more than 99 are right."
    assert words.say_of_hundred("positive", 0.2, NAN).endswith("it is not known how many are right.")


def test_less_of_the_brier_score_is_better() -> None:
    less = replace(complete().in_service["brier"], difference=Estimate(-0.02, -0.03, -0.01))  # type: ignore[index]
    assert words.judge_difference("brier", less) == "better"
    assert words.judge_difference("auroc", less) == "worse"
    assert words.judge_difference("auroc", replace(less, difference=Estimate(0.0, -0.1, 0.1))) == "no clear difference"
    assert words.judge_difference("auroc", replace(less, difference=NAN)) == words.NOTHING
