"""What a retraining found out about its new classifier: all that its report shows."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np

from schemas.modelcard import BINARY, ModelCard
from sparkdl.network.base import Network
from training.arrays import Mask
from training.data.positive import describe_choice
from training.evidence.evaluation import DataSummary, Evaluation, Mistake, Provenance, SetFigures, Side, Variant
from training.evidence.probes import Probe, Verdict, give_verdict, predict_probe
from training.figures.bootstrap import Estimate, Outcomes, estimate_image_share, gather_outcomes
from training.figures.calibration import Calibration, measure_calibration
from training.figures.compare import Comparison, compare, measure_groups
from training.figures.curves import trace_precision_recall, trace_roc
from training.figures.measure import count_confusion, measure
from training.figures.prevalence import predict_values
from training.lifecycle.refit import (
    EVEN,
    FEW_RESAMPLES,
    FOLDS_KEY,
    MANY_IMAGES,
    MAX_COMPARED,
    N_RESAMPLES,
    Refit,
    Refitted,
    hash_patients,
)
from training.model.abstain import measure_abstention
from training.model.classifier import PAPER, Head
from training.model.decision import Decision, flag_images
from training.model.novelty import NoveltyFigures

_FEW_CALIBRATIONS = 200
_MAX_PROBED = 20_000
_MIN_PROBED_PATIENTS = 4
_MAX_MISTAKES = 12
_INHERITED = "model in service was confounded: "


def describe_inherited(card: ModelCard) -> str:
    """Say how it is known which class of a retrained model is the positive one.

    Parameters
    ----------
    card : ModelCard
        Of the model in service.
    """
    return describe_choice(card.positive_label, f"as in {card.version}, the model in service")


@dataclass(frozen=True, eq=False)
class Findings:
    """Looks at what one retraining made.

    Parameters
    ----------
    work : Refit
        The retraining.
    """

    work: Refit

    def compare_sources(self, before: Outcomes, after: Outcomes) -> dict[str, Mapping[str, Comparison]]:
        """Compare on each source's held-out images, where every class is among them."""
        sources = self.work.stored.sources[self.work.held_out]
        names = np.unique(sources)
        found: dict[str, Mapping[str, Comparison]] = {}
        for name in names.tolist() if names.size > 1 else []:
            mask = sources == name
            if np.unique(after.labels[mask]).size == self.work.n_classes:
                found[name] = compare(
                    before.take(mask), after.take(mask), n_resamples=self.work.n_resamples, seed=self.work.seed
                )
        return found

    def evaluate(
        self,
        card: ModelCard,
        network: Network,
        fitted: Refitted,
        outcomes: Outcomes,
        compared: Mapping[str, Comparison],
        name: str,
    ) -> Evaluation:
        """Find out what the report shows."""
        figures = measure(outcomes, n_resamples=self.work.n_resamples, seed=self.work.seed)
        probes, verdict = self.look_for_shortcuts(figures["auroc"].value)
        two = outcomes.n_classes == BINARY
        sources = self.work.stored.sources[self.work.held_out].tolist()
        groups = measure_groups(outcomes, sources, n_resamples=self.work.n_resamples, seed=self.work.seed)
        return Evaluation(
            verdict=verdict,
            provenance=self.provenance(card, network, fitted),
            data=self.summarize(),
            metrics={key: card.metrics[key] for key in ("accuracy", "f1", "weightedPrecision", "weightedRecall")},
            internal=SetFigures(
                name="held-out patients",
                kind="internal",
                n_images=outcomes.labels.size,
                n_patients=outcomes.n_patients,
                n_by_label=self.count(self.work.held_out),
                figures=figures,
                note=self.describe_patients(),
            ),
            confusion=count_confusion(outcomes),
            roc=trace_roc(outcomes) if two else None,
            precision_recall=trace_precision_recall(outcomes) if two else None,
            predictive_values=predict_values(outcomes, n_resamples=self.work.n_resamples, seed=self.work.seed)
            if two
            else (),
            others=(),
            by_source=groups if len(groups) > 1 else (),
            probes=probes,
            variants=(
                *(self.measure_variant(*variant) for variant in fitted.variants[:-1]),
                Variant(fitted.variants[-1][0], figures, self.calibration_of(outcomes), fitted.variants[-1][-1]),
            ),
            operating_point=fitted.point,
            abstention=None
            if fitted.decision.band is None
            else measure_abstention(
                outcomes, fitted.decision.band, n_resamples=self.work.n_resamples, seed=self.work.seed
            ),
            novelty=self.measure_novelty(fitted.decision, outcomes, figures),
            mistakes=self.mistakes(outcomes, fitted.decision),
            in_service=compared,
            in_service_name=name,
        )

    def measure_variant(self, name: str, head: Head, threshold: float | None, note: str) -> Variant:
        """Measure the classifier after one part of the procedure."""
        outcomes = self.work.ask(head, threshold)
        figures = measure(outcomes, n_resamples=self.work.n_resamples, seed=self.work.seed)
        return Variant(name, figures, self.calibration_of(outcomes), note)

    def calibration_of(self, outcomes: Outcomes) -> Calibration | None:
        """Tell whether probabilities come true; of two classes only."""
        if outcomes.n_classes != BINARY:
            return None
        few = self.work.n_resamples < N_RESAMPLES
        return measure_calibration(outcomes, n_resamples=_FEW_CALIBRATIONS if few else N_RESAMPLES, seed=self.work.seed)

    def measure_novelty(
        self, decision: Decision, outcomes: Outcomes, figures: Mapping[str, Estimate]
    ) -> NoveltyFigures | None:
        """Count the held-out images that are taken for unlike the training images, and measure with and without."""
        if decision.detector is None:
            return None
        rows = np.flatnonzero(self.work.held_out)[:MAX_COMPARED]
        flagged = decision.detector.flags(self.work.stored.features[rows])
        share = estimate_image_share(
            flagged, self.work.stored.patients[rows], n_resamples=self.work.n_resamples, seed=self.work.seed
        )
        looked_at = outcomes.take(np.arange(outcomes.labels.size) < rows.size)
        judged = measure(looked_at.take(~flagged), n_resamples=self.work.n_resamples, seed=self.work.seed)
        every = figures
        if rows.size < outcomes.labels.size:
            every = measure(looked_at, n_resamples=self.work.n_resamples, seed=self.work.seed)
        return NoveltyFigures(decision.detector.threshold, share, judged, every)

    def look_for_shortcuts(self, auroc: float) -> tuple[tuple[Probe, ...], Verdict]:
        """Ask the one probe that needs no image; it can speak against the model, not for it."""
        notes = [
            "shortcut probes: they look at images, and retraining has none; see the report of the last training",
            "leave-one-source-out: retraining does not do it",
            "copies: the same bytes count once; pictures that are nearly the same were not looked for",
        ]
        if self.work.served_report and PAPER.describe() != (
            used := self.work.served_report["provenance"]["classifier"]
        ):
            notes.append(f"the model in service was fitted as {used}, this one as {PAPER.describe()}")
        if self.work.served_report is None and self.work.card.threshold not in (None, EVEN):
            notes.append(
                f"the model in service decides at {self.work.card.threshold:g}, and no report says how that was chosen"
                f"; this one decides at {EVEN:g}"
            )
        if self.work.n_resamples < N_RESAMPLES:
            notes.append(
                f"intervals are from {self.work.n_resamples} resamples, those of calibration from {_FEW_CALIBRATIONS}, "
                "as there are many images"
            )
        notes += [f"left out: {count} labelled images {why}" for why, count in self.work.stored.left_out.items()]
        inherited = self.inherit_reasons()
        probe = self.probe_source()
        if probe is None:
            return (), Verdict("unknown", inherited, tuple(notes))
        verdict = give_verdict(auroc, [probe])
        if verdict.verdict == "confounded":
            return (probe,), replace(verdict, reasons=(*verdict.reasons, *inherited), notes=(*verdict.notes, *notes))
        notes.append(f"source: its name alone tells the label with an AUROC of {probe.auroc.value:.3f}")
        return (), Verdict("unknown", inherited, tuple(notes))

    def inherit_reasons(self) -> tuple[str, ...]:
        """Say what was found against the model in service: the new one sees the same features of the same places."""
        if self.work.served_report is None:
            return ()
        reasons = self.work.served_report["verdict"]["reasons"]
        if own := [reason for reason in reasons if _INHERITED not in reason]:
            return (f"the {_INHERITED}{'; '.join(own)}",)
        return tuple(f"an earlier {reason[reason.index(_INHERITED) :]}" for reason in reasons)

    def probe_source(self) -> Probe | None:
        """Predict the label from the source's name, by cross-validation; None where that says nothing."""
        chosen = np.sort(np.random.default_rng(self.work.seed).permutation(len(self.work.stored.labels))[:_MAX_PROBED])
        labels, patients = self.work.stored.labels[chosen], self.work.stored.patients[chosen]
        names, codes = np.unique(self.work.stored.sources[chosen], return_inverse=True)
        fewest = min(np.unique(patients[labels == label]).size for label in range(self.work.n_classes))
        if names.size < BINARY or fewest < _MIN_PROBED_PATIENTS:
            return None
        values = np.eye(names.size)[codes]
        # Folds by a group of patients each: there may be as many patients as images, and folds are dealt one by one.
        groups = (
            [f"{number:.2f}" for number in hash_patients(patients, FOLDS_KEY)] if patients.size > MANY_IMAGES else None
        )
        probabilities = predict_probe(values, labels, groups or patients.tolist(), seed=self.work.seed)
        outcomes = gather_outcomes(labels, probabilities, patients.tolist())
        found = measure(outcomes, n_resamples=FEW_RESAMPLES, seed=self.work.seed)["auroc"]
        return Probe("source", "label", found, names.size)

    def mistakes(self, outcomes: Outcomes, decision: Decision) -> tuple[Mistake, ...]:
        """Give the worst ones, named by their digests: there are no files."""
        rows = np.flatnonzero(self.work.held_out)
        surety = outcomes.probabilities[np.arange(rows.size), outcomes.predictions]
        wrong = np.flatnonzero(outcomes.predictions != outcomes.labels)
        worst = wrong[np.argsort(-surety[wrong], kind="stable")][:_MAX_MISTAKES]
        flags = flag_images(decision, outcomes.probabilities[worst, 1], self.work.stored.features[rows[worst]])
        return tuple(
            Mistake(
                path=Path(str(self.work.stored.digests[rows[index]])),
                patient=str(self.work.stored.patients[rows[index]]),
                source=str(self.work.stored.sources[rows[index]]),
                actual=self.work.card.labels[outcomes.labels[index]],
                predicted=self.work.card.labels[outcomes.predictions[index]],
                probability=float(surety[index]),
                flags=own,
            )
            for index, own in zip(worst.tolist(), flags, strict=True)
        )

    # -- describing

    def count(self, mask: Mask) -> dict[str, int]:
        """Count images by label."""
        counts = np.bincount(self.work.stored.labels[mask], minlength=self.work.n_classes)
        return dict(zip(self.work.card.labels, counts.tolist(), strict=True))

    def describe_patients(self) -> str:
        """Say of how many images the patient is not known."""
        stored = self.work.stored
        if not stored.n_unknown_patients:
            return ""
        return (
            f"of {stored.n_unknown_patients} of all {len(stored.labels)} images the patient is not known; "
            "each counts as a patient of its own, so one person may be on both sides"
        )

    def summarize(self) -> DataSummary:
        """Describe the labelled images."""
        stored = self.work.stored
        names, codes = np.unique(stored.sources, return_inverse=True)
        table = np.zeros((names.size, self.work.n_classes), np.int64)
        np.add.at(table, (codes, stored.labels), 1)
        return DataSummary(
            labels=self.work.card.labels,
            n_images=len(stored.labels),
            n_patients=np.unique(stored.patients).size,
            sources=tuple(names.tolist()),
            label_by_source=tuple(tuple(row) for row in table.tolist()),
            patient_ids_known=not stored.n_unknown_patients,
            failed=(),
            exact_copies=0,
            near_copies=0,
            copies=(),
            copies_across=None,
            split="by a keyed hash of the patient's id: the same patients are held out in every retraining",
            train=self.side(~self.work.held_out),
            test=self.side(self.work.held_out),
            unknown_patients=self.describe_patients(),
            left_out=stored.left_out,
            positive_known_by=describe_inherited(self.work.card),
        )

    def side(self, mask: Mask) -> Side:
        """Count one side's images and patients."""
        return Side(int(mask.sum()), np.unique(self.work.stored.patients[mask]).size, self.count(mask))

    def provenance(self, card: ModelCard, network: Network, fitted: Refitted) -> Provenance:
        """Say what the model was made from, and how."""
        stored = self.work.stored
        rows = sorted(
            zip(
                stored.digests.tolist(),
                (self.work.card.labels[label] for label in stored.labels.tolist()),
                stored.patients.tolist(),
                stored.sources.tolist(),
                strict=True,
            )
        )
        return Provenance(
            name=card.name,
            version=card.version,
            sha256=card.sha256,
            network=network.name,
            weights=network.weights,
            weights_sha256=network.weights_sha256,
            precision=network.precision,
            rendering_version=card.rendering_version,
            classifier=PAPER.describe(),
            procedure=fitted.procedure,
            seed=self.work.seed,
            code_version=package_version("xray-stream"),
            data_sha256=hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            created_at=card.created_at,
            seconds=0.0,
        )
