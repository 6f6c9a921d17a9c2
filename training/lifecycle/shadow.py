"""What the challenger would have said of the images that the champion scored, from the same stored feature vectors.

The stream archives the vector of every image that it scores, and champion and challenger begin with the same
featurizer. So the challenger's answer needs neither the image nor a second scoring path: it is computed afterwards from
the vector and the challenger's own classifier, and is what the stream would have said. Nothing more is stored for it.
The champion's answer is the one that was given, as the predictions table has it. Needs no Spark.

Two models that agree may both be wrong. Which one is right only confirmed findings tell, so where images have them, and
neither model has learned from those images or their patients, the two are compared pair by pair as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from schemas.deltatable import failing_as
from schemas.errors import ModelLoadError
from schemas.modelcard import BINARY, NOVELTY_FILE, Flag, ModelCard
from sparkdl.engine.novelty import StoredDetector, read_detector
from training.arrays import Features, Floats, Ints, Mask, Names
from training.data.archive import open_features, open_predictions
from training.data.labelstable import read_labels
from training.evidence.served import IMAGES_FILE
from training.features.extract import ignore
from training.features.stored import describe_featurizer, read_vectors
from training.figures.bootstrap import Outcomes, estimate_share, gather_outcomes
from training.figures.compare import Comparison, compare
from training.lifecycle.drift import MIN_IMAGES, WINDOW_DAYS
from training.lifecycle.shadowresult import (
    QUANTILES,
    Disagreement,
    LabelledShadow,
    Pair,
    ScoreDifference,
    Shadow,
    SourceShadow,
)
from training.model.classifier import Head

MAX_IMAGES = 20_000
"""Vectors that are held at once; of 1,280 values 100 MB."""

_UNLIKE = Flag.UNLIKE_TRAINING.value


_BLOCK_ROWS = 2048  # as float64 21 MB

_MAX_DISAGREEMENTS = 12

_MAX_SOURCES = 20

_MANY_IMAGES, _RESAMPLES, _FEW_RESAMPLES = 5000, 2000, 500  # as in retraining

_COLUMNS = ("event_id", "sha256", "source", "id", "label", "score", "received_at", "date")

_Model = tuple[Path, ModelCard]


def compare_shadow(
    tables_folder: str,
    champion: _Model,
    challenger: _Model,
    *,
    days: int = WINDOW_DAYS,
    max_images: int = MAX_IMAGES,
    reports_folder: Path | None = None,
    seed: int = 0,
) -> Shadow:
    """Put what the challenger would have said beside what the champion said.

    Parameters
    ----------
    tables_folder : str
        Path or URI of the tables.
    champion, challenger : tuple of (Path, ModelCard)
        Folder and card of each, the card checked against the folder.
    days : int
        Images of so many days, the last in which the champion scored any.
    max_images : int
        The newest so many of them.
    reports_folder : Path, optional
        Where the lists of training images are. By default labels are not looked at.
    seed : int
        Of the resamples.

    Returns
    -------
    Shadow
        The same rows and models give the same.

    Raises
    ------
    DatasetError
        There is no archive yet.
    ModelLoadError
        The challenger has another featurizer, rendering version or labels than the champion, or is another kind of
        pipeline.
    JobError
        The archive cannot be read.
    """
    card = champion[1]
    rival = _load(champion, challenger)
    with failing_as(f"the tables in {tables_folder} cannot be read"):
        chosen = _choose_images(open_predictions(tables_folder).to_pyarrow_dataset(), card, days, max_images)
        vectors = open_features(tables_folder).to_pyarrow_dataset()
        # Files of one table may have another kind of text than those of another.
        names = chosen["event_id"].cast(vectors.schema.field("event_id").type)
        chosen = chosen.set_column(chosen.column_names.index("event_id"), "event_id", names)
        features, whole = read_vectors(vectors, chosen, rival.n_features, ignore)
    if not whole.all():  # else there is nothing to copy
        chosen, features = chosen.filter(pa.array(whole)), features[whole]
    answers = _answer(chosen, features, card, rival)
    shadow = _describe(answers, card, rival.card, int((~whole).sum()))
    if whole.size == max_images:
        shadow = replace(shadow, notes=(*shadow.notes, f"only the newest {max_images:,} images were taken"))
    return shadow if reports_folder is None else _look_at_labels(shadow, answers, tables_folder, reports_folder, seed)


# --- the models -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Rival:
    """The challenger, ready to answer from vectors; its classes in the champion's order."""

    card: ModelCard
    head: Head
    detector: StoredDetector | None
    n_features: int
    threshold: float | None
    labels: tuple[str, ...]

    def answer(self, features: Features) -> tuple[Floats, Mask]:
        """Give probabilities, shape (n, n_classes), and which images are unlike its training images."""
        probabilities, novel = np.zeros((len(features), len(self.labels))), np.zeros(len(features), bool)
        order = [self.card.labels.index(label) for label in self.labels]
        for start in range(0, len(features), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            probabilities[part] = self.head.predict(features[part])[:, order]
            if self.detector is not None:
                novel[part] = self.detector.flags(features[part])
        return probabilities, novel


def _load(champion: _Model, challenger: _Model) -> _Rival:
    """Read the challenger's classifier, where it can be asked about the champion's vectors."""
    (folder, card), (own_folder, own) = champion, challenger
    featurizer = describe_featurizer(folder, card)
    if own.rendering_version != card.rendering_version:
        msg = (
            f"{own.version} is for images of rendering version {own.rendering_version} and {card.version} for those of "
            f"{card.rendering_version}, so the stored vectors say nothing about it; its comparison is that of 'xray "
            f"train', see 'xray models show {own.version}'"
        )
        raise ModelLoadError(msg)
    if describe_featurizer(own_folder, own) != featurizer:
        msg = (
            f"{own.version} has another featurizer than {card.version}, so the stored vectors say nothing about it. "
            "'xray retrain' makes a challenger with the same one; this one's comparison is that of 'xray train', see "
            f"'xray models show {own.version}'"
        )
        raise ModelLoadError(msg)
    if set(own.labels) != set(card.labels) or own.positive_label != card.positive_label:
        msg = (
            f"{own.version} tells {', '.join(own.labels)} ({own.positive_label} is positive) and {card.version} "
            f"{', '.join(card.labels)} ({card.positive_label}): their answers do not compare"
        )
        raise ModelLoadError(msg)
    head = Head.read(own_folder)
    if head.coefficients.shape[1] != featurizer.n_features or head.n_classes != len(own.labels):
        msg = (
            f"the classifier of {own.version} is for {head.coefficients.shape[1]} features and {head.n_classes} "
            f"classes, expected {featurizer.n_features} and {len(own.labels)}"
        )
        raise ModelLoadError(msg)
    detector = None if own.novelty is None else read_detector(own_folder / NOVELTY_FILE)
    threshold = own.threshold if len(own.labels) == BINARY else None
    return _Rival(own, head, detector, featurizer.n_features, threshold, card.labels)


# --- the archive ------------------------------------------------------------------------------------------------------


def _choose_images(predictions: ds.Dataset, card: ModelCard, days: int, max_images: int) -> pa.Table:
    """Give the champion's predictions of the last days, the newest first and each picture once, a day at a time."""
    columns = [*_COLUMNS, "probabilities"] if len(card.labels) > BINARY else [*_COLUMNS]
    own = pc.field("model_sha256") == card.sha256
    dates = sorted(pc.unique(predictions.to_table(columns=["date"], filter=own)["date"]).to_pylist(), reverse=True)
    found = [pa.schema([predictions.schema.field(name) for name in columns]).empty_table()]
    seen: set[str] = set()
    for day in (day for day in dates if day > dates[0] - timedelta(days=days)):
        if len(seen) == max_images:
            break
        rows = predictions.to_table(columns=columns, filter=own & (pc.field("date") == pa.scalar(day)))
        rows = rows.sort_by([("received_at", "descending"), ("event_id", "ascending")])
        places = []
        for place, digest in enumerate(rows["sha256"].to_pylist()):
            if digest not in seen and len(seen) < max_images:
                seen.add(digest)
                places.append(place)
        found.append(rows.take(pa.array(places, pa.int64())))
    return pa.concat_tables(found)


# --- the figures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Answers:
    """What both said of the same images.

    ``said`` and ``shadowed`` are labels, str of shape (n,); ``scores`` and ``probabilities`` (n, n_classes; columns as
    the champion's labels) are the challenger's.
    """

    rows: pa.Table
    card: ModelCard
    said: Names
    shadowed: Names
    old_scores: Floats
    scores: Floats
    probabilities: Floats

    @property
    def judged(self) -> Mask:
        return np.asarray((self.said != _UNLIKE) & (self.shadowed != _UNLIKE))

    def column(self, name: str) -> Names:
        """Give a text column; "" where it is null."""
        return np.array(pc.fill_null(self.rows[name], "").to_pylist(), dtype=str)

    def old_probabilities(self, places: Ints) -> Floats:
        """Give the champion's, as the table has them."""
        labels = self.card.labels
        if len(labels) > BINARY:
            maps = (dict(pairs) for pairs in self.rows["probabilities"].take(pa.array(places)).to_pylist())
            return np.array([[one[label] for label in labels] for one in maps], np.float64).reshape(-1, len(labels))
        found = np.empty((places.size, BINARY))
        positive = labels.index(self.card.positive_label)
        found[:, positive] = self.old_scores[places]
        found[:, 1 - positive] = 1 - self.old_scores[places]
        return found


def _answer(rows: pa.Table, features: Features, card: ModelCard, rival: _Rival) -> _Answers:
    probabilities, novel = rival.answer(features)
    scores = probabilities[:, card.labels.index(card.positive_label)]
    if rival.threshold is None:
        shadowed = np.array(card.labels)[probabilities.argmax(axis=1)]
    else:
        negative = next(label for label in card.labels if label != card.positive_label)
        shadowed = np.where(scores >= rival.threshold, card.positive_label, negative)
    return _Answers(
        rows=rows,
        card=card,
        said=np.array(rows["label"].to_pylist(), dtype=str),
        shadowed=np.where(novel, _UNLIKE, shadowed).astype(str),
        old_scores=rows["score"].to_numpy().astype(np.float64),
        scores=scores,
        probabilities=probabilities,
    )


def _describe(answers: _Answers, card: ModelCard, rival: ModelCard, n_without_vector: int) -> Shadow:
    judged = answers.judged
    n_judged = int(judged.sum())
    enough = n_judged >= MIN_IMAGES
    same = answers.said[judged] == answers.shadowed[judged]
    old, new = answers.old_scores[judged], answers.scores[judged]
    dates = answers.rows["date"].to_pylist()
    n_unlike = Pair(int((answers.said == _UNLIKE).sum()), int((answers.shadowed == _UNLIKE).sum()))
    shares = [
        estimate_share(int((labels[judged] == card.positive_label).sum()), n_judged)
        for labels in (answers.said, answers.shadowed)
    ]
    by_source, notes = _by_source(answers) if enough else ((), [])
    if n_judged < len(dates):
        notes.append(
            f"{len(dates) - n_judged} images are in the table of answers only: {card.version} did not judge "
            f"{n_unlike.champion} and {rival.version} would not have judged {n_unlike.challenger}, as unlike their "
            "training images"
        )
    if n_without_vector:
        notes.append(f"{n_without_vector} images have no whole vector in the archive and are left out")
    if enough:
        notes.append("intervals of shares are over images: where one patient has many, they are too narrow")
    return Shadow(
        champion=card.version,
        challenger=rival.version,
        positive_label=card.positive_label,
        first=min(dates, default=None),
        last=max(dates, default=None),
        n_images=len(dates),
        n_without_vector=n_without_vector,
        n_unlike=n_unlike,
        n_judged=n_judged,
        n_undecided=Pair(_count_undecided(card, old), _count_undecided(rival, new)),
        answers={
            one: {other: int(((answers.said == one) & (answers.shadowed == other)).sum()) for other in rival.answers}
            for one in card.answers
        },
        agreement=estimate_share(int(same.sum()), n_judged) if enough else None,
        positive_shares=(shares[0], shares[1]) if enough else None,
        difference=_describe_difference(new - old) if enough else None,
        by_source=by_source,
        disagreements=_list_disagreements(answers, rival),
        labelled=None,
        notes=tuple(notes),
    )


def _count_undecided(card: ModelCard, scores: Floats) -> int:
    return int(_find_undecided(card, scores).sum())


def _find_undecided(card: ModelCard, scores: Floats) -> Mask:
    band = card.abstain
    return np.zeros(scores.shape, bool) if band is None else np.asarray(band.covers(scores))


def _describe_difference(values: Floats) -> ScoreDifference:
    return ScoreDifference(float(values.mean()), tuple(np.quantile(values, QUANTILES).tolist()))


def _by_source(answers: _Answers) -> tuple[tuple[SourceShadow, ...], list[str]]:
    sources, judged = answers.column("source"), answers.judged
    found = []
    for name in np.unique(sources[judged]).tolist():
        mask = judged & (sources == name)
        same = int((answers.said[mask] == answers.shadowed[mask]).sum())
        mean = float((answers.scores[mask] - answers.old_scores[mask]).mean())
        found.append(SourceShadow(name, int(mask.sum()), estimate_share(same, int(mask.sum())), mean))
    found.sort(key=lambda one: (-one.n_images, one.name))
    more = len(found) - _MAX_SOURCES
    return tuple(found[:_MAX_SOURCES]), [
        f"{more} more sources, with fewer images each, are not shown"
    ] if more > 0 else []


def _list_disagreements(answers: _Answers, rival: ModelCard) -> tuple[Disagreement, ...]:
    places = np.flatnonzero(answers.judged & (answers.said != answers.shadowed))
    gaps = np.abs(answers.scores[places] - answers.old_scores[places])
    worst = places[np.argsort(-gaps, kind="stable")][:_MAX_DISAGREEMENTS]
    rows = answers.rows.select(["event_id", "source", "id"]).take(pa.array(worst)).to_pylist()
    undecided = _find_undecided(answers.card, answers.old_scores), _find_undecided(rival, answers.scores)
    return tuple(
        Disagreement(
            **row,
            champion=str(answers.said[place]),
            challenger=str(answers.shadowed[place]),
            champion_score=float(answers.old_scores[place]),
            challenger_score=float(answers.scores[place]),
            champion_undecided=bool(undecided[0][place]),
            challenger_undecided=bool(undecided[1][place]),
        )
        for row, place in zip(rows, worst.tolist(), strict=True)
    )


# --- labels -----------------------------------------------------------------------------------------------------------


def _look_at_labels(shadow: Shadow, answers: _Answers, tables_folder: str, reports_folder: Path, seed: int) -> Shadow:
    """Compare the two on images with a confirmed finding that neither has learned from."""
    labels = {row["sha256"]: row for row in read_labels(tables_folder).to_pylist()}
    digests = answers.column("sha256").tolist()
    lists = {version: _read_learned(reports_folder / version) for version in (shadow.champion, shadow.challenger)}
    notes = []
    if known := len(set(digests) & (lists[shadow.challenger] or set())):
        notes.append(f"{shadow.challenger} has learned from {known:,} of these images")
    labelled = [
        place
        for place in np.flatnonzero(answers.judged).tolist()
        if digests[place] in labels and labels[digests[place]]["label"] in answers.card.labels
    ]
    if not labelled:
        return replace(shadow, notes=(*shadow.notes, *notes))
    notes += [
        f"it is not known whether {version} has learned from some of the labelled images"
        for version, found in lists.items()
        if found is None
    ]
    learned = set().union(*(found for found in lists.values() if found is not None))
    # Images of one patient are alike: who was learned from is known, and so is every image of that person.
    patients = {labels[digest]["patient_id"] for digest in learned if digest in labels} - {None}
    fresh = [
        place
        for place in labelled
        if digests[place] not in learned and labels[digests[place]]["patient_id"] not in patients
    ]
    rows = [labels[digests[place]] for place in fresh]
    names, people = [row["label"] for row in rows], [row["patient_id"] or row["sha256"] for row in rows]
    by_label = {label: names.count(label) for label in answers.card.labels}
    figures = _compare(answers, np.array(fresh), names, people, seed) if all(by_label.values()) else None
    told = LabelledShadow(len(fresh), len(set(people)), by_label, len(labelled) - len(fresh), figures)
    return replace(shadow, labelled=told, notes=(*shadow.notes, *notes))


def _read_learned(folder: Path) -> set[str] | None:
    """Give the digests of the images that a model has learned from; None where there is no list of them."""
    path = folder / IMAGES_FILE
    return set(path.read_text(encoding="utf-8").split()) if path.is_file() else None


def _compare(
    answers: _Answers, places: Ints, names: Sequence[str], people: Sequence[str], seed: int
) -> dict[str, Comparison]:
    """Compare pair by pair; of two classes the positive one is class 1, as the figures want it."""
    card = answers.card
    order = list(card.labels)
    if len(order) == BINARY:
        order.sort(key=lambda label: label == card.positive_label)
    columns = [card.labels.index(label) for label in order]

    def gather(probabilities: Floats, said: Names) -> Outcomes:
        found = gather_outcomes([order.index(name) for name in names], probabilities[:, columns], people)
        # What was decided is known, and need not be decided again.
        return replace(found, predictions=np.array([order.index(label) for label in said.tolist()], np.int64))

    first = gather(answers.old_probabilities(places), answers.said[places])
    second = gather(answers.probabilities[places], answers.shadowed[places])
    n_resamples = _RESAMPLES if places.size <= _MANY_IMAGES else _FEW_RESAMPLES
    return compare(first, second, n_resamples=n_resamples, seed=seed)
