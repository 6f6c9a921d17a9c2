"""Finds out what a trained model is worth: figures with intervals, other sources and sets, shortcuts, calibration.

Everything is computed from features that are there already and one prediction of each held-out image; only external
sets and the model in service ask Spark for features.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from schemas.errors import DatasetError, ModelLoadError
from schemas.modelcard import BINARY, ModelCard, read_card
from schemas.registry import CHAMPION_FILE, champion_folder
from sparkdl.image.limits import RENDERING_VERSION, RENDERING_VERSIONS
from training.arrays import Mask
from training.data.dataset import MANIFEST_FILE, Dataset, Sample, count_by_class, read_dataset
from training.data.duplicates import find_duplicates, union_groups
from training.evidence.evaluation import DataSummary, Evaluation, Mistake, Provenance, SetFigures, Side, Variant
from training.evidence.probes import Probe, give_verdict, run_probes
from training.evidence.served import load_served, name_served
from training.features.cache import FeatureCache
from training.features.extract import Progress, Session, compute_features, examine, ignore
from training.figures.bootstrap import Estimate, Outcomes, gather_outcomes
from training.figures.calibration import measure_calibration
from training.figures.compare import Comparison, GroupFigures, compare, measure_groups
from training.figures.curves import trace_precision_recall, trace_roc
from training.figures.measure import count_confusion, measure
from training.figures.prevalence import predict_values
from training.model.decision import flag_images, measure_decision
from training.model.material import Material, Step, TrainingResult
from training.model.regression import fit_regression

_MAX_COPIES_SHOWN = 10
_MAX_MISTAKES = 12
_COMPARED = "comparison with the model in service"


@dataclass(frozen=True)
class External:
    """A set of images from elsewhere to measure the model on.

    Parameters
    ----------
    name : str
        To show.
    dataset : Dataset
        Its labels are those of the training data.
    """

    name: str
    dataset: Dataset


def read_external(source: Path, labels: Sequence[str]) -> External:
    """Read an external set.

    Parameters
    ----------
    source : Path
        Folder or manifest, see `read_dataset`.
    labels : sequence of str
        The training data's classes, the positive one last, whatever this set says of it; images of others are left
        out.

    Raises
    ------
    DatasetError
        It cannot be read, or lacks a class.
    """
    found = read_dataset(source, classes=labels, positive=labels[-1])
    place = [labels.index(label) for label in found.labels]
    samples = tuple(replace(sample, label=place[sample.label]) for sample in found.samples)
    whole = source.absolute()
    name = whole.parent.name if whole.name == MANIFEST_FILE else whole.stem
    return External(name, replace(found, samples=samples, labels=tuple(labels)))


def evaluate_model(
    spark: Session,
    result: TrainingResult,
    *,
    seed: int = 0,
    external: Sequence[External] = (),
    models_folder: Path | None = None,
    reports_folder: Path | None = None,
    cache: FeatureCache | None = None,
    report: Progress = ignore,
) -> Evaluation:
    """Judge a trained model.

    Parameters
    ----------
    spark : callable
        See `Session`; for features of other sets.
    result : TrainingResult
        What training made.
    seed : int
        What it was made with.
    external : sequence of External
        Other sets. An image that is a copy of one of this data set, or of a patient with such a copy, is left out, and
        the note says how many: the figure stays one of images never seen, and the work before it is not lost.
    models_folder : Path, optional
        Where the model in service is looked for; by default nowhere.
    reports_folder : Path, optional
        Where the lists of images are that earlier models were trained on.
    cache : FeatureCache, optional
        What is there is not computed.
    report : callable
        See `Progress`.

    Returns
    -------
    Evaluation
        All of it, but for what nobody asked for.

    Raises
    ------
    DatasetError
        Of an external set nothing is left, or most of it does not decode.
    """
    evaluator = _Evaluator(spark, result, seed, cache, report)
    outcomes = evaluator.held_out(result.fitted.final)
    figures = measure(outcomes, seed=seed)
    report("judging", 0, 3)
    probes = evaluator.probe()
    report("judging", 1, 3)
    without_source, notes = evaluator.leave_sources_out()
    report("judging", 2, 3)
    others = (*without_source, *(evaluator.measure_external(one) for one in external))
    verdict = give_verdict(figures["auroc"].value, probes)
    service = evaluator.compare_with_service(outcomes, models_folder, reports_folder)
    two = outcomes.n_classes == BINARY
    held_out = result.fitted.features[result.material.held_out]
    abstention, novelty = measure_decision(result.fitted.decision, outcomes, held_out, seed=seed)
    evaluation = Evaluation(
        verdict=replace(verdict, notes=(*verdict.notes, *notes, *service.notes)),
        provenance=evaluator.provenance(),
        data=evaluator.summarize_data(),
        metrics={key: result.metrics[key] for key in ("accuracy", "f1", "weightedPrecision", "weightedRecall")},
        internal=evaluator.describe_set(
            "held-out patients", "internal", evaluator.taken(result.material.held_out), figures
        ),
        confusion=count_confusion(outcomes),
        roc=trace_roc(outcomes) if two else None,
        precision_recall=trace_precision_recall(outcomes) if two else None,
        predictive_values=predict_values(outcomes, seed=seed) if two else (),
        others=others,
        by_source=evaluator.by_source(outcomes),
        probes=probes,
        variants=evaluator.variants(),
        operating_point=result.fitted.operating_point,
        abstention=abstention,
        novelty=novelty,
        candidates=result.fitted.candidates,
        mistakes=evaluator.mistakes(outcomes),
        in_service=service.figures,
        in_service_name=service.name,
        in_service_on=service.on,
    )
    report("judging", 3, 3)
    return evaluation


@dataclass(frozen=True)
class _InService:
    """What came of asking the model in service; the fields are those of `Evaluation`."""

    notes: tuple[str, ...] = ()
    figures: Mapping[str, Comparison] | None = None
    name: str = ""
    on: Side | None = None


@dataclass(frozen=True)
class _Evaluator:
    """One training run, and what is needed to find out more about it."""

    spark: Session
    result: TrainingResult
    seed: int
    cache: FeatureCache | None
    report: Progress

    @property
    def material(self) -> Material:
        return self.result.material

    @property
    def labels(self) -> tuple[str, ...]:
        return self.material.dataset.labels

    @property
    def sources(self) -> npt.NDArray[np.str_]:
        return np.array([sample.source for sample in self.material.dataset.samples], dtype=str)

    def held_out(self, step: Step) -> Outcomes:
        """Give what a step says of the held-out images."""
        probabilities = step.head.predict(self.result.fitted.features[self.material.held_out])
        return self.material.gather(probabilities, held_out=True, threshold=step.threshold)

    def describe_set(
        self, name: str, kind: str, samples: Sequence[Sample], figures: Mapping[str, Estimate], note: str = ""
    ) -> SetFigures:
        return SetFigures(
            name=name,
            kind=kind,
            n_images=len(samples),
            n_patients=len({sample.patient_id for sample in samples}),
            n_by_label=count_by_class(samples, self.labels),
            figures=figures,
            note=note,
        )

    # -- the set itself

    def taken(self, mask: Mask) -> list[Sample]:
        return [sample for sample, taken in zip(self.material.dataset.samples, mask, strict=True) if taken]

    def probe(self) -> tuple[Probe, ...]:
        """Look for shortcuts in all images, held out or not: a probe is measured by cross-validation."""
        material = self.material
        summaries = [fact.summary for fact in material.facts if fact.summary is not None]
        sources = self.sources.tolist() if any(self.sources) else []
        return run_probes(
            summaries,
            material.labels.tolist(),
            material.groups,
            sources=sources,
            features=self.result.fitted.features,
            seed=self.seed,
        )

    def by_source(self, outcomes: Outcomes) -> tuple[GroupFigures, ...]:
        held_out = self.sources[self.material.held_out]
        return measure_groups(outcomes, held_out.tolist(), seed=self.seed) if np.unique(held_out).size > 1 else ()

    def variants(self) -> tuple[Variant, ...]:
        """Measure the model after each part of the procedure."""
        found = []
        for step in self.result.fitted.steps:
            outcomes = self.held_out(step)
            calibration = measure_calibration(outcomes, seed=self.seed) if outcomes.n_classes == BINARY else None
            found.append(Variant(step.name, measure(outcomes, seed=self.seed), calibration, step.note))
        return tuple(found)

    def mistakes(self, outcomes: Outcomes) -> tuple[Mistake, ...]:
        wrong = [(row, item) for row, item in enumerate(self.result.held_out) if item.prediction != item.sample.label]
        wrong.sort(key=lambda found: (-found[1].probabilities[found[1].prediction], found[1].sample.path))
        worst = wrong[:_MAX_MISTAKES]
        rows = np.array([row for row, _ in worst], np.int64)
        features = self.result.fitted.features[self.material.held_out]
        flags = flag_images(self.result.fitted.decision, outcomes.probabilities[rows, 1], features[rows])
        return tuple(
            Mistake(
                path=item.sample.path,
                patient=item.sample.patient_id,
                source=item.sample.source,
                actual=self.labels[item.sample.label],
                predicted=self.labels[item.prediction],
                probability=item.probabilities[item.prediction],
                flags=own,
            )
            for (_, item), own in zip(worst, flags, strict=True)
        )

    def summarize_data(self) -> DataSummary:
        material, samples = self.material, self.material.dataset.samples
        names = np.unique(self.sources)
        table = [
            tuple(np.bincount(material.labels[self.sources == name], minlength=len(self.labels)).tolist())
            for name in names
        ]
        exact = sum(pair.kind == "exact" for pair in material.pairs)
        label_of = {str(sample.path): sample.label for sample in samples}
        given = material.dataset.sides_given
        return DataSummary(
            labels=self.labels,
            n_images=len(samples),
            n_patients=len({sample.patient_id for sample in samples}),
            sources=tuple(names.tolist()),
            label_by_source=tuple(table),
            patient_ids_known=material.dataset.patient_ids_known,
            failed=tuple((str(file.path), file.error) for file in self.result.failed),
            exact_copies=exact,
            near_copies=len(material.pairs) - exact,
            copies=tuple((pair.first, pair.second, pair.kind) for pair in material.pairs[:_MAX_COPIES_SHOWN]),
            copies_across=0,  # `split_dataset` refuses any other
            split="as the manifest gives it" if given else "drawn by patient, copies kept together",
            train=self.side(~material.held_out),
            test=self.side(material.held_out),
            unlike_copies=sum(label_of[pair.first] != label_of[pair.second] for pair in material.pairs),
            positive_known_by=material.dataset.positive_known_by,
        )

    def side(self, mask: Mask) -> Side:
        samples = self.taken(mask)
        return Side(len(samples), len({sample.patient_id for sample in samples}), count_by_class(samples, self.labels))

    def provenance(self) -> Provenance:
        result, network = self.result, self.result.fitted.network
        rows = sorted(
            (digest, self.labels[sample.label], sample.patient_id, sample.source)
            for sample, digest in zip(self.material.dataset.samples, self.material.digests, strict=True)
        )
        return Provenance(
            name=result.card.name,
            version=result.card.version,
            sha256=result.card.sha256,
            network=network.name,
            weights=network.weights,
            weights_sha256=network.weights_sha256,
            precision=network.precision,
            rendering_version=result.card.rendering_version,
            classifier=result.fitted.settings.describe(),
            procedure=result.procedure.describe(),
            seed=self.seed,
            code_version=version("xray-stream"),
            data_sha256=hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            created_at=result.card.created_at,
            seconds=result.seconds,
        )

    # -- other sources and sets

    def leave_sources_out(self) -> tuple[tuple[SetFigures, ...], tuple[str, ...]]:
        """Fit without one source and measure on it, for each that leaves both classes on both sides."""
        names = np.unique(self.sources)
        if names.size < BINARY:
            return (), ("leave-one-source-out: the data name one source, or none",)
        found, notes = [], []
        for name in names.tolist():
            test = self.sources == name
            # Patients of the source that have images elsewhere are in neither fit.
            shared = {group for group, inside in zip(self.material.groups, test, strict=True) if inside}
            train = np.array([group not in shared for group in self.material.groups], bool)
            lacking = [side for side, mask in (("it", test), ("the others", train)) if not self.has_all_classes(mask)]
            if lacking:
                shown = name or "(unknown)"
                notes.append(f"leave-one-source-out: not for {shown}, as a class is missing in {lacking[0]}")
            else:
                found.append(self.measure_without(name, train, test))
        return tuple(found), tuple(notes)

    def has_all_classes(self, mask: Mask) -> bool:
        return np.unique(self.material.labels[mask]).size == len(self.labels)

    def measure_without(self, name: str, train: Mask, test: Mask) -> SetFigures:
        fitted, labels = self.result.fitted, self.material.labels
        rows = np.flatnonzero(train)
        head = fit_regression(fitted.features, rows, labels[rows], fitted.settings, len(self.labels))
        if fitted.calibrator is not None:
            head = head.calibrate(fitted.calibrator)
        groups = [group for group, inside in zip(self.material.groups, test, strict=True) if inside]
        probabilities = head.predict(fitted.features[test])
        outcomes = gather_outcomes(labels[test], probabilities, groups, threshold=fitted.final.threshold)
        note = f"a model fitted on the {int(train.sum())} images of other sources, measured on this one"
        parts = {
            "settings": self.result.procedure.tune,
            "calibration": fitted.calibrator is not None,
            "threshold": fitted.operating_point is not None,
        }
        if taken := [name for name, chosen in parts.items() if chosen]:
            note += f"; {', '.join(taken)} as the model's, chosen on all sources"
        shown = f"without source {name or '(unknown)'}"
        figures = measure(outcomes, seed=self.seed)
        return self.describe_set(shown, "leave-one-source-out", self.taken(test), figures, note)

    def measure_external(self, external: External) -> SetFigures:
        """Measure the model on another set, without what is also in this one."""
        samples = external.dataset.samples
        paths = [sample.path for sample in samples]
        facts = examine(self.spark, paths, self.cache, self.report, limits=self.material.limits)
        readable = [(sample, fact) for sample, fact in zip(samples, facts, strict=True) if not fact.error]
        own = {f"own:{path}": group for path, group in zip(self.material.paths, self.material.groups, strict=True)}
        theirs = {f"external:{sample.path}": sample.patient_id for sample, _ in readable}
        # An id means one patient within its set only; what joins the sets is copies.
        patients = {name: f"{name.partition(':')[0]}:{patient}" for name, patient in (own | theirs).items()}
        known = [*self.material.facts, *(fact for _, fact in readable)]
        pairs = find_duplicates(
            [fact.picture for fact in known], list(patients), digests=[fact.digest for fact in known]
        )
        groups = union_groups(patients, pairs)
        taken = {groups[name] for name in own}
        kept = [(sample, fact) for sample, fact in readable if groups[f"external:{sample.path}"] not in taken]
        if not kept:
            msg = (
                f"external set {external.name}: of {len(samples)} images {len(readable)} decode and none is left "
                "without copies of the training data; wanted images from elsewhere"
            )
            raise DatasetError(msg)
        chosen = [sample for sample, _ in kept]
        features, errors = compute_features(
            self.spark,
            [sample.path for sample in chosen],
            [fact.digest for _, fact in kept],
            self.result.fitted.featurizer,
            self.cache,
            self.report,
            limits=self.material.limits,
        )
        good = np.array([not error for error in errors], bool)
        chosen = [sample for sample, fine in zip(chosen, good, strict=True) if fine]
        final = self.result.fitted.final
        outcomes = gather_outcomes(
            [sample.label for sample in chosen],
            final.head.predict(features[good]),
            [groups[f"external:{sample.path}"] for sample in chosen],
            threshold=final.threshold,
        )
        notes = {
            "do not decode": len(samples) - len(chosen) - (len(readable) - len(kept)),
            "left out: copies of images of the training data, or their patients": len(readable) - len(kept),
        }
        note = "; ".join(f"{count} images {why}" for why, count in notes.items() if count)
        figures = measure(outcomes, seed=self.seed)
        return self.describe_set(external.name, "external", chosen, figures, note)

    # -- the model in service

    def compare_with_service(
        self, outcomes: Outcomes, models_folder: Path | None, reports_folder: Path | None
    ) -> _InService:
        """Ask the promoted model about the same held-out files, each rendered as that model knows images."""
        if models_folder is None or not (models_folder / CHAMPION_FILE).exists():
            return _InService()
        try:
            folder = champion_folder(models_folder)
            card = read_card(folder)
            if why := self.why_incomparable(card):
                return _InService((f"{_COMPARED}: {card.version} {why}",))
            featurizer, head = load_served(folder)
        except ModelLoadError as exc:
            return _InService((f"{_COMPARED}: {exc}",))
        mask = self.material.held_out
        samples = self.taken(mask)
        digests = [digest for digest, out in zip(self.material.digests, mask, strict=True) if out]
        features, errors = compute_features(
            self.spark,
            [sample.path for sample in samples],
            digests,
            featurizer,
            self.cache,
            self.report,
            limits=self.material.limits,
            rendering=card.rendering_version,
        )
        head = head.reorder([card.labels.index(label) for label in self.labels])
        served = self.material.gather(head.predict(features), held_out=True, threshold=card.threshold)
        # A file that it gets no features of becomes a dead letter where it serves: nothing to compare with.
        known = np.array([not error for error in errors], bool)
        asked = [digest for digest, good in zip(digests, known, strict=True) if good]
        shared = outcomes.take(known)
        counts = count_by_class([sample for sample, good in zip(samples, known, strict=True) if good], self.labels)
        return _InService(
            self.describe_comparison(card, known),
            compare(served.take(known), shared, seed=self.seed),
            name_served(card.version, asked, reports_folder),
            None if known.all() else Side(len(asked), shared.n_patients, counts),
        )

    def describe_comparison(self, card: ModelCard, known: Mask) -> tuple[str, ...]:
        notes = {
            f"{card.version} was asked about images as rendering version {card.rendering_version} makes them, which "
            f"it was trained on and is served with; this one is for version {RENDERING_VERSION}": (
                card.rendering_version != RENDERING_VERSION
            ),
            f"{int((~known).sum())} of {known.size} held-out images are left out, as {card.version} gets no features "
            "of them": not known.all(),
        }
        return tuple(f"{_COMPARED}: {note}" for note, applies in notes.items() if applies)

    def why_incomparable(self, card: ModelCard) -> str:
        if set(card.labels) == set(self.labels) and card.positive_label != self.labels[-1]:
            return f"has {card.positive_label!r} as its positive class, this one {self.labels[-1]!r}"
        if set(card.labels) != set(self.labels):
            return f"is for {', '.join(card.labels)}"
        if card.rendering_version not in RENDERING_VERSIONS:
            return f"is for images of rendering version {card.rendering_version}, which are not made any more"
        return ""
