"""Fits a new classifier on stored feature vectors, and compares it with the model in service on patients neither knows.

The featurizer is the champion's, unchanged; only the classifier on top of it is new. So no image is read, and 100,000
vectors take seconds. Which patients are held out follows from their ids alone: the same ones in every retraining, so a
model that was retrained has never learned from those that the next one is compared on.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from schemas.errors import DatasetError, SettingsError
from schemas.modelcard import ModelCard, hash_model_folder, write_card
from sparkdl.engine.neighbours import choose_vectors, write_vectors
from sparkdl.image.limits import RENDERING_VERSION
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from training.evidence.evaluation import Evaluation
from training.evidence.served import IMAGES_FILE, load_served, name_served
from training.features.extract import Progress, ignore
from training.features.stored import StoredSet
from training.figures.compare import Comparison, compare
from training.figures.measure import count_confusion, weighted_metrics
from training.figures.shift import make_reference, save_reference
from training.lifecycle.findings import Findings
from training.lifecycle.promotion import read_report
from training.lifecycle.refit import Refit, Refitted, choose_held_out
from training.model.classifier import PAPER, Head
from training.model.decision import store_decision
from training.model.save import reserve_version

MIN_LABELS = 100
"""Below it the comparison is about some dozen held-out images, and says nothing."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Retrained:
    """A new model, compared with the one in service.

    Parameters
    ----------
    folder : Path
        The saved ``PipelineModel``.
    card : ModelCard
        Its card.
    evaluation : Evaluation
        What the report shows.
    by_source : mapping of str to mapping
        `Comparison` by figure, of each source's held-out images; without those that lack a class.
    n_train, n_held_out : mapping of str to int
        Images by label.
    left_out : mapping of str to int
        Labelled images that could not be taken, by reason.
    seconds : float
        Wall time.
    """

    folder: Path
    card: ModelCard
    evaluation: Evaluation
    by_source: Mapping[str, Mapping[str, Comparison]]
    n_train: Mapping[str, int]
    n_held_out: Mapping[str, int]
    left_out: Mapping[str, int]
    seconds: float


def retrain_model(
    stored: StoredSet,
    champion: Path,
    card: ModelCard,
    *,
    reports_folder: Path,
    min_labels: int = MIN_LABELS,
    seed: int = 0,
    report: Progress = ignore,
) -> Retrained:
    """Fit, compare and save; the model appears beside the champion, complete or not at all.

    Parameters
    ----------
    stored : StoredSet
        What to learn from.
    champion : Path
        Folder of the model in service.
    card : ModelCard
        Its card.
    reports_folder : Path
        Where the models' reports are: how the champion decides and what it was trained on is read there, and the list
        of images and the reference for drift are written there.
    min_labels : int
        Labelled images that are wanted at least.
    seed : int
        Of resamples and folds. The split does not depend on it.
    report : callable
        See `training.features.extract.Progress`.

    Returns
    -------
    Retrained
        The same rows and seed give the same coefficients.

    Raises
    ------
    DatasetError
        There are too few labels, or a class is missing on one side.
    SettingsError
        See `check_rendering`.
    ModelLoadError
        It cannot be loaded, or is another kind of pipeline.

    Notes
    -----
    The classifier is fitted with the paper's settings. Where the champion's report says that it was calibrated, or
    decides at a threshold that was chosen for a sensitivity, the same is done for the new one, on training patients out
    of fold: a promotion must not move the point at which people are alarmed. For the same reason the positive class
    stays the champion's. Where the champion abstains near its threshold, or does not judge images unlike its training
    images, the new one does so for the same share of images.
    """
    started = time.perf_counter()
    check_rendering(card)
    check_labels(stored, card, min_labels=min_labels)
    held_out = choose_held_out(stored.patients)
    featurizer, served = load_served(champion)
    stored, served, card = _put_positive_last(stored, served, card)
    work = Refit(stored, card, held_out, seed, read_report(reports_folder / card.version), report)
    findings = Findings(work)
    fitted = work.fit(served)
    threshold = fitted.threshold
    outcomes, before = work.ask(fitted.head, threshold), work.ask(served, card.threshold)
    metrics = {**weighted_metrics(count_confusion(outcomes)), "n_train": int((~held_out).sum())}
    metrics["n_test"] = int(held_out.sum())
    new_card = replace(
        card,
        threshold=threshold,
        operating_point=_describe_decision(fitted, card) + fitted.decision.describe(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        metrics=metrics,
        abstain=fitted.decision.abstain,
        novelty=fitted.decision.novelty,
    )
    report("saving", 0, 1)
    folder, new_card = _save(featurizer, fitted, champion.parent, new_card)
    report("saving", 1, 1)
    name = name_served(card.version, stored.digests[held_out].tolist(), reports_folder)
    compared = compare(before, outcomes, n_resamples=work.n_resamples, seed=seed)
    by_source = findings.compare_sources(before, outcomes)
    report("judging", 2, 3)
    evaluation = findings.evaluate(new_card, featurizer.network, fitted, outcomes, compared, name)
    evaluation = replace(
        evaluation, provenance=replace(evaluation.provenance, seconds=round(time.perf_counter() - started, 3))
    )
    own = reports_folder / new_card.version
    scores = outcomes.probabilities[:, card.labels.index(card.positive_label)]
    save_reference(own, make_reference(stored.features, scores, seed=seed))
    digests = stored.digests[~held_out].tolist()
    (own / IMAGES_FILE).write_text("\n".join(digests) + "\n", encoding="utf-8")
    shown = [card.labels[label] for label in stored.labels[~held_out]]
    write_vectors(own, choose_vectors(stored.features[~held_out], digests, shown, seed=seed))
    report("judging", 3, 3)
    _log.info(
        "retrained %s from %s: %d train, %d held out",
        new_card.version,
        card.version,
        metrics["n_train"],
        held_out.sum(),
    )
    return Retrained(
        folder,
        new_card,
        evaluation,
        by_source,
        findings.count(~held_out),
        findings.count(held_out),
        stored.left_out,
        time.perf_counter() - started,
    )


def _put_positive_last(stored: StoredSet, served: Head, card: ModelCard) -> tuple[StoredSet, Head, ModelCard]:
    """Order the classes as training does: what is fitted and measured here takes the last one for the positive one."""
    order = sorted(range(len(card.labels)), key=lambda place: card.labels[place] == card.positive_label)
    labels = np.argsort(order)[stored.labels]
    names = tuple(card.labels[place] for place in order)
    return replace(stored, labels=labels), served.reorder(order), replace(card, labels=names)


def check_rendering(card: ModelCard) -> None:
    """Refuse a champion from whose vectors no model may be made any more; to be called before they are read.

    Raises
    ------
    SettingsError
        It is for images of another rendering version than this release's.
    """
    if card.rendering_version != RENDERING_VERSION:
        msg = (
            f"{card.version}, the model in service, is for images of rendering version {card.rendering_version}, and "
            f"models are made for version {RENDERING_VERSION} alone: its stored vectors are of no use for them. Train "
            "anew with 'xray train --data FOLDER', and retrain that one once it has scored images with labels."
        )
        raise SettingsError(msg)


def check_labels(stored: StoredSet, card: ModelCard, *, min_labels: int = MIN_LABELS) -> None:
    """Refuse what nothing can be learned from; to be called before Spark is started.

    Raises
    ------
    DatasetError
        See `retrain_model`.
    """
    held_out = choose_held_out(stored.patients)
    n_images = len(stored.labels)
    if n_images < min_labels:
        msg = (
            f"{n_images} labelled images have a vector, wanted {min_labels}: record more with 'xray label FILE.csv', "
            "or lower --min-labels"
        )
        raise DatasetError(msg)
    for side, mask in (("held-out", held_out), ("training", ~held_out)):
        counts = np.bincount(stored.labels[mask], minlength=len(card.labels))
        if missing := [label for label, count in zip(card.labels, counts, strict=True) if not count]:
            msg = (
                f"no labelled image of {', '.join(missing)} is among the {mask.sum()} images of {side} patients: "
                "record more with 'xray label FILE.csv'"
            )
            raise DatasetError(msg)


def _save(featurizer: DeepImageFeaturizer, fitted: Refitted, out: Path, card: ModelCard) -> tuple[Path, ModelCard]:
    """Save beside the final place and rename, as training does."""
    with reserve_version(out) as (version, scratch):
        place = scratch / version
        fitted.head.save(place, featurizer, PAPER, fitted.threshold)
        store_decision(place, fitted.decision)
        card = replace(card, version=version, sha256=hash_model_folder(place))
        write_card(place, card)
        folder = place.rename(out / version)
    return folder, card


def _describe_decision(fitted: Refitted, card: ModelCard) -> str:
    if fitted.threshold is None:
        return "the most probable class"
    if fitted.point is None:
        return f"probability of {card.positive_label} at least 0.5, not tuned"
    return (
        f"probability of {card.positive_label} at least {fitted.threshold:.4g}, chosen for sensitivity "
        f"{fitted.point.wanted_sensitivity:g} on training patients, out of fold"
    )
