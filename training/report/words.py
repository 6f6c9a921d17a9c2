"""The report's words and numbers, the same on the page and in Markdown."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from schemas.modelcard import BINARY, UNDECIDED
from training.evidence.evaluation import DataSummary, Evaluation, SetFigures
from training.evidence.probes import BLIND_SHARE, LABEL_BLIND_PROBES, THUMBNAIL_SHARE, Probe, give_verdict
from training.figures.bootstrap import Estimate
from training.figures.compare import Comparison
from training.figures.curves import OperatingPoint
from training.model.abstain import Abstention
from training.model.novelty import NoveltyFigures

NOTHING = "\N{EM DASH}"
"""Stands where there is no number."""

FIGURE_NAMES: Mapping[str, str] = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "brier": "Brier score",
    "accuracy": "Accuracy",
    "f1": "F1",
    "weightedPrecision": "Weighted precision",
    "weightedRecall": "Weighted recall",
}
"""In the order of the tables' columns."""

PAPER_FIGURES = ("accuracy", "f1", "weightedPrecision", "weightedRecall")
SHORT_FIGURES = ("auroc", "sensitivity", "specificity", "accuracy")

PROBE_NAMES: Mapping[str, str] = {
    "thumbnail": "Thumbnail, 8x8 pixels",
    "borders": "Border of the image",
    "corners": "Corners of the image",
    "metadata": "Size in pixels and bytes",
    "source": "Name of the source",
    "source_from_thumbnail": "From a thumbnail",
    "source_from_features": "From the network's features",
}

CANNOT_SEE = (
    "The probes look at a thumbnail of 8x8 pixels, the border, the corners, the file's size and the source. They "
    "cannot see tubes, drains and wires over the chest, a patient's position, age or sex, small marks away from the "
    "corners, or a device's texture; a model may live on any of these."
)

INTERVALS = (
    "Intervals are 95 %, from a bootstrap that draws patients with all their images, unless a note says otherwise."
)

CALIBRATION = (
    "Slope 1 and intercept 0 are right. A slope below 1 says that probabilities are too extreme, an intercept below 0 "
    "that they are too high on the whole."
)

CANDIDATES = (
    "AUROC on training patients, each predicted by a fit on others. The best of several is a little too good by "
    "choice; the held-out patients took no part in it."
)

_DIGITS = 3
_HUNDRED = 100
_MINUTE_S = 60
_RANGES = re.compile(r"(?<=\.\d{3})-(?=\d)")
_CLASS_NUMBERS = re.compile(r"\bclass ((?:\d+, )*\d+)")

Tone = Literal["confounded", "ok", "unknown"]


@dataclass(frozen=True)
class Banner:
    """The verdict as it is first read.

    Parameters
    ----------
    tone : str
        The verdict.
    title : str
        A few words.
    meaning : str
        A sentence or two.
    """

    tone: Tone
    title: str
    meaning: str


def word_verdict(evaluation: Evaluation) -> Banner:
    """Put the verdict into words; see `Banner`."""
    if evaluation.verdict.verdict == "confounded":
        return Banner(
            "confounded",
            "Confounded: not evidence of disease detection",
            "The label can be told from what shows no disease, nearly as well as the model tells it. The figures "
            "below say how well this collection's labels are guessed, not how well disease is seen.",
        )
    if evaluation.verdict.verdict == "unknown":
        return Banner(
            "unknown",
            "Not judged: no shortcut probe could be measured",
            "Nothing is known of shortcuts, so the figures below are no evidence of disease detection.",
        )
    meaning = f"That is no proof that the model sees disease. {CANNOT_SEE}"
    return Banner("ok", "No shortcut found by these probes", meaning)


def make_sentence(text: str) -> str:
    """Begin with a capital and end with a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def list_reasons(evaluation: Evaluation) -> tuple[str, ...]:
    """Give the verdict's reasons as sentences."""
    reasons = (_RANGES.sub("\N{EN DASH}", reason) for reason in evaluation.verdict.reasons)
    return tuple(map(make_sentence, reasons))


def label_probes(evaluation: Evaluation) -> tuple[Probe, ...]:
    """Take the probes of the label, the best first, those without a figure last."""
    found = [probe for probe in evaluation.probes if probe.target == "label"]
    return tuple(sorted(found, key=lambda probe: -probe.auroc.value if math.isfinite(probe.auroc.value) else math.inf))


def source_probes(evaluation: Evaluation) -> tuple[Probe, ...]:
    """Take the probes of the source."""
    return tuple(probe for probe in evaluation.probes if probe.target == "source")


def is_shortcut(probe: Probe, evaluation: Evaluation) -> bool:
    """Tell whether a probe is among the reasons of a verdict of confounded."""
    if evaluation.verdict.verdict != "confounded" or probe.target != "label":
        return False
    model = figure_of(evaluation.internal.figures, "auroc").value
    return give_verdict(model, [probe, *source_probes(evaluation)]).verdict == "confounded"


def describe_probe(probe: Probe) -> str:
    """Say what a probe knows and may reach."""
    values = f"{probe.n_values:,} number{'' if probe.n_values == 1 else 's'} of each image"
    if probe.target == "source":
        return f"predicts the source, from {values}"
    sees, share = ("no lung", BLIND_SHARE) if probe.name in LABEL_BLIND_PROBES else ("the whole chest", THUMBNAIL_SHARE)
    return f"{values}; sees {sees}: a shortcut from {share:g} of the model's advantage over chance on"


# --- numbers ----------------------------------------------------------------------------------------------------------


def figure_of(figures: Mapping[str, Estimate], name: str) -> Estimate:
    """Take a figure, or one that is not a number where it was not measured."""
    return figures.get(name) or Estimate(math.nan, math.nan, math.nan, "not measured")


def format_number(value: float | None, digits: int = _DIGITS) -> str:
    """Write a figure with three decimals; `NOTHING` where it is none."""
    if value is None or not math.isfinite(value):
        return NOTHING
    # Of a difference, -0.0004 is no less than nothing.
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def format_interval(estimate: Estimate) -> str:
    """Write ``0.947-0.998`` with an en dash; ``to`` stands between numbers of which one is negative."""
    if not (math.isfinite(estimate.low) and math.isfinite(estimate.high)):
        return NOTHING
    low, high = format_number(estimate.low), format_number(estimate.high)
    between = " to " if "\N{MINUS SIGN}" in low + high else "\N{EN DASH}"
    return f"{low}{between}{high}"


def format_estimate(estimate: Estimate) -> str:
    """Write ``0.990 (0.947-0.998)``."""
    if not math.isfinite(estimate.value):
        return NOTHING
    return f"{format_number(estimate.value)} ({format_interval(estimate)})"


def format_percent(share: float) -> str:
    """Write 0.05 as ``5 %``, with a space that does not break."""
    return f"{share * _HUNDRED:.3g}\N{NO-BREAK SPACE}%" if math.isfinite(share) else NOTHING


def format_seconds(seconds: float) -> str:
    """Write a duration, beyond a minute with its minutes."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _MINUTE_S)
    return f"{minutes} min {rest} s"


def of_hundred(share: float) -> str:
    """Say how many of 100; never ``0`` or ``100`` where it is not exactly that."""
    if not math.isfinite(share):
        return "an unknown number"
    count = round(share * _HUNDRED)
    if count == _HUNDRED and share < 1:
        return "more than 99"
    if count == 0 and share > 0:
        return "fewer than 1"
    return str(count)


def say_of_hundred(answers: str, prevalence: float, estimate: Estimate) -> str:
    """Say a predictive value as a clinician reads it: ``Of 100 positive answers ..., 49 are right (39 to 60).``."""
    start = f"Of 100 {answers} answers at a prevalence of {format_percent(prevalence)}, "
    if not math.isfinite(estimate.value):
        return f"{start}it is not known how many are right."
    verb = "is" if of_hundred(estimate.value) in ("1", "fewer than 1") else "are"
    sentence = f"{start}{of_hundred(estimate.value)} {verb} right"
    low, high = of_hundred(estimate.low), of_hundred(estimate.high)
    if not math.isfinite(estimate.low + estimate.high) or low == high:
        return f"{sentence}."
    return f"{sentence} ({low} to {high})."


def judge_difference(name: str, comparison: Comparison) -> str:
    """Say in a word what a difference to the model in service means."""
    low, high = comparison.difference.low, comparison.difference.high
    if not (math.isfinite(low) and math.isfinite(high)):
        return NOTHING
    if low <= 0 <= high:
        return "no clear difference"
    return "better" if (low > 0) != (name == "brier") else "worse"


def name_classes(note: str, labels: Sequence[str]) -> str:
    """Write classes in a note by name: of two, ``class 1`` is ``class 'covid'``."""

    def named(found: re.Match[str]) -> str:
        numbers = [int(number) for number in found[1].split(", ")]
        return "class " + ", ".join(
            f"'{labels[number]}'" if number < len(labels) else str(number) for number in numbers
        )

    return _CLASS_NUMBERS.sub(named, note)


def file_name(path: str | PurePath) -> str:
    """Give the last part of a path: folders may name patients, and are nobody's business."""
    return PurePath(path).name


# --- sentences about the data -----------------------------------------------------------------------------------------


def name_source(source: str) -> str:
    """Name a source; an unknown one is told so."""
    return source or "(not stated)"


def name_set(measured: SetFigures) -> str:
    """Say what a set of images is to the model."""
    kinds = {
        "internal": "internal: same collection",
        "leave-one-source-out": "leave one source out",
        "external": "external",
    }
    return kinds.get(measured.kind, measured.kind)


def describe_copies(data: DataSummary) -> str:
    """Say how many copies there are, and on which side."""
    if data.copies_across is None:
        return (
            "Each image is there once, by its bytes. Near copies were not looked for: they may be on both sides of the "
            "split, and have different labels."
        )
    if not data.exact_copies + data.near_copies:
        return "No image is a copy of another, exact or near."
    across = "none is" if data.copies_across == 0 else f"{data.copies_across:,} are"
    unlike = f" The labels of {data.unlike_copies:,} pairs differ: of each, one is wrong." if data.unlike_copies else ""
    return (
        f"Pairs of copies: {data.exact_copies:,} exact and {data.near_copies:,} near. The images of a pair are kept on "
        f"the same side of the split: {across} on both.{unlike}"
    )


def describe_left_out(data: DataSummary) -> str:
    """Say how many files or images took no part."""
    n_failed = len(data.failed)
    sentences = [f"{n_failed:,} file{' was' if n_failed == 1 else 's were'} left out."] if n_failed else []
    sentences += [f"{count:,} images {why} were left out." for why, count in data.left_out.items()]
    return " ".join(sentences) or "Nothing was left out."


def describe_patients(data: DataSummary) -> str:
    """Say whether patients are known, and what it means when not."""
    if data.patient_ids_known:
        return "The data name each image's patient: no patient is on both sides of the split."
    if data.unknown_patients:
        return make_sentence(data.unknown_patients)
    return (
        "The data do not name patients: each file name counts as one. Two images of one patient under different names "
        "may be on both sides of the split, which makes figures too good and intervals too narrow."
    )


def describe_positive(data: DataSummary) -> str:
    """Say which class is the positive one, and how that is known."""
    known_by = f" ({data.positive_known_by})" if data.positive_known_by else ""
    return f"Positive class: {data.positive}{known_by}."


def describe_figures(evaluation: Evaluation) -> str:
    """Say what the figures of decisions and ranks refer to."""
    labels = evaluation.data.labels
    if len(labels) == BINARY:
        return f"Sensitivity, specificity, AUROC and AUPRC are of finding '{labels[1]}' against '{labels[0]}'."
    return (
        f"Sensitivity, specificity, AUROC and AUPRC are means over the {len(labels)} classes, each against the rest; "
        "the Brier score adds up over the classes. The model answers with the most probable class; its score is the "
        f"probability of '{evaluation.data.positive}'."
    )


def describe_point(point: OperatingPoint, positive: str) -> str:
    """Say what the threshold is that was chosen for a sensitivity, and what it did where it was chosen."""
    asked = f"A sensitivity of {format_number(point.wanted_sensitivity)} was asked for."
    if point.threshold is None:
        return f"{asked} No threshold could be chosen: {point.sensitivity.note}."
    return (
        f"{asked} The stream answers '{positive}' from a probability of {format_number(point.threshold)} on. On the "
        "validation images it was chosen on, so a little too good: sensitivity "
        f"{format_estimate(point.sensitivity)}, specificity {format_estimate(point.specificity)}."
        f"{_remark(point.sensitivity, point.specificity)}"
    )


def describe_abstention(abstention: Abstention) -> str:
    """Say how many images are left to a person."""
    return (
        "Too close to the threshold to decide, so a person does: "
        f"{format_estimate(abstention.share)} of the held-out images.{_remark(abstention.share)}"
    )


def describe_novelty(novelty: NoveltyFigures) -> str:
    """Say what the detector for unlike images flags."""
    return (
        f"An image at a distance above {format_number(novelty.threshold)} from the training images is flagged as "
        "unlike them, and not judged. Of the held-out images, which are alike, it flags "
        f"{format_estimate(novelty.flagged)}.{_remark(novelty.flagged)}"
    )


def describe_mistakes(evaluation: Evaluation) -> str:
    """Say what the list of mistakes is, and what stands there for a class where nothing was decided."""
    said = "Held-out images that were judged wrongly, the most certain first."
    if not any(one.flags for one in evaluation.mistakes):
        return said
    return (
        f"{said} One that the model flags is {UNDECIDED}: nobody is to act on it. It is here because its label would "
        "have been wrong."
    )


def _remark(*estimates: Estimate) -> str:
    """Give the notes of figures that stand in a sentence, as sentences behind it."""
    notes = dict.fromkeys(estimate.note for estimate in estimates if estimate.note)
    return "".join(f" {make_sentence(note)}" for note in notes)


def list_unexamined(evaluation: Evaluation) -> tuple[str, ...]:
    """List what this run did not look at."""
    kinds = {measured.kind for measured in evaluation.others}
    # A note says better why something is not there.
    noted = {note.partition(":")[0] for note in evaluation.verdict.notes}
    n_sources = len(evaluation.data.sources)
    missing = {
        "Images of another hospital: no external set was given.": "external" not in kinds,
        f"A source left out of training: the data name {n_sources} source{'' if n_sources == 1 else 's'}, and none was "
        "left out.": "leave-one-source-out" not in kinds | noted,
        "Whether one patient is on both sides of the split: the data do not name each image's patient.": (
            not evaluation.data.patient_ids_known
        ),
        "Whether the probabilities mean what they say: calibration was not measured.": (
            not any(variant.calibration for variant in evaluation.variants)
        ),
        "Images unlike the training images: none is flagged.": evaluation.novelty is None,
        "The model in service: it was not compared with.": not evaluation.in_service
        and "comparison with the model in service" not in noted,
    }
    return (
        *(name_classes(note, evaluation.data.labels) for note in evaluation.verdict.notes),
        f"Other shortcuts. {CANNOT_SEE}",
        *(sentence for sentence, applies in missing.items() if applies),
        "Groups of patients by age, sex or comorbidity, and the projection (PA or AP): the data are not asked.",
        "Whether the labels are right: they are taken as given.",
        "Where in the image the model looks.",
        "What readers do with the answers, and patients who come later.",
    )


def list_provenance(evaluation: Evaluation) -> tuple[tuple[str, str], ...]:
    """List where the model comes from, all of `Provenance`."""
    made = evaluation.provenance
    procedure = "paper (the default one)" if made.procedure == "paper" else made.procedure
    return (
        ("Model", f"{made.name} {made.version}"),
        ("Model's SHA-256", made.sha256),
        ("Network", f"{made.network}, {made.precision}"),
        ("Weights", made.weights),
        ("Weights' SHA-256", made.weights_sha256),
        ("Rendering of images, version", str(made.rendering_version)),
        ("Classifier", made.classifier),
        ("Procedure", procedure),
        ("Seed", str(made.seed)),
        ("Code", made.code_version),
        ("Data's SHA-256", made.data_sha256),
        ("Made", made.created_at),
        ("Took", format_seconds(made.seconds)),
    )
