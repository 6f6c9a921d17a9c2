"""Whether what is scored now still looks like what the model was made with: scores, and feature vectors.

The reference is a small file beside the model's report, which training writes: a histogram of scores, each feature's
mean and spread, and a sample of vectors. Where a model has none, the first days of the archive stand for it. Neither
needs an image.

A training set seldom has the share of positive images that a ward has, and another share alone moves scores as much as
a real change does. So scores are compared with those of the model's own first days in service. Before it has so many
days behind it, they are compared with the training set's held-out ones and told, but call for nothing.

Scores are compared by the population stability index and the Kolmogorov-Smirnov distance. Feature vectors are compared
as a whole, by the energy distance of two samples with a permutation test; see `compare_vectors` for why. A shift is no
proof that a model has become worse, only labels are; and where none is found, a new disease may still look like the old
images. Images of one patient are alike, so many images of few patients look like a shift.
"""

from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from schemas.deltatable import failing_as
from schemas.envelope import DISCLAIMER
from schemas.errors import DatasetError
from schemas.modelcard import ModelCard
from training.arrays import Features, Ints
from training.data.archive import open_features, open_predictions
from training.features.extract import ignore
from training.features.stored import Featurizer, made_by, read_vectors
from training.figures.shift import (
    MAX_SAMPLE,
    N_BINS,
    REFERENCE_FILE,
    Reference,
    ScoreShift,
    VectorShift,
    compare_scores,
    compare_vectors,
    count_scores,
    variances_of,
)

WINDOW_DAYS = 7
"""Days of the archive, the newest, that are compared; and the first, of scores and where there is no reference."""

MIN_IMAGES = 100
"""Below it nothing is said: at 100 images the index of scores that did not shift reaches 0.2 in one of a hundred."""

PSI_LIMIT = 0.25
"""Index of scores from which the shift is called for: the customary line to "a major change"."""

ENERGY_LIMIT = 0.01
"""Share of the distance between images that the two samples account for, from which vectors have shifted."""

P_LIMIT = 0.01
"""Chance of a permutation as large, below which it is taken for a shift."""

_MAX_NAMED = 10

_NOT_BY_ITSELF = "another share of positive images is enough for that, so it does not call for retraining by itself"


@dataclass(frozen=True)
class Drift:
    """What was found out.

    Parameters
    ----------
    reference : str
        What recent images were compared with, in words.
    recent : str
        Which images are recent, in words.
    scores : ScoreShift or None
        None where there are too few.
    vectors : VectorShift or None
        None where there are too few.
    called_for : bool or None
        Whether it calls for retraining; None where nothing could be compared.
    reasons : tuple of str
        Why, or why it cannot be told; and what is to be known besides.
    """

    reference: str
    recent: str
    scores: ScoreShift | None
    vectors: VectorShift | None
    called_for: bool | None
    reasons: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Say it in a sentence without a full stop."""
        if self.called_for is None:
            return "whether retraining is called for cannot be told"
        return "retraining is called for" if self.called_for else "drift does not call for retraining"

    def to_dict(self) -> dict[str, Any]:
        """Render for JSON."""
        return {"disclaimer": DISCLAIMER, "verdict": self.verdict, **asdict(self), "rule": RULE}


RULE = (
    "retraining is called for where scores differ from those of the model's first days in service: index (PSI) "
    f"{PSI_LIMIT:g} or more and a Kolmogorov-Smirnov p below {P_LIMIT:g}; or where feature vectors differ: energy "
    f"{ENERGY_LIMIT:g} or more with a permutation p of {P_LIMIT:g} or less; scores that differ from the training set's "
    f"alone do not call for it; nothing is said of fewer than {MIN_IMAGES} images"
)
"""The rule, in words."""


# --- the archive ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Archive:
    """What one model, and others with its featurizer, have left in the tables."""

    folder: str
    card: ModelCard
    featurizer: Featurizer
    features: ds.Dataset
    predictions: ds.Dataset | None
    condition: ds.Expression

    def days(self) -> tuple[date, date] | None:
        """Give the first and the last day."""
        found = self.features.to_table(columns=["date"], filter=self.condition)["date"]
        edges = pc.min_max(found).as_py()
        return None if edges["min"] is None else (edges["min"], edges["max"])

    def sample(self, first: date, last: date) -> Features:
        """Give up to 2,000 vectors of different images: those of the lowest digests, which is as good as by lot."""
        days = (pc.field("date") >= pa.scalar(first)) & (pc.field("date") <= pa.scalar(last))
        rows = self.features.to_table(columns=["sha256", "event_id", "date"], filter=self.condition & days)
        rows = rows.sort_by([("sha256", "ascending"), ("event_id", "ascending")])
        found = rows.group_by("sha256", use_threads=False).aggregate([("event_id", "first"), ("date", "first")])
        chosen = found.rename_columns([name.removesuffix("_first") for name in found.column_names]).slice(0, MAX_SAMPLE)
        if not chosen.num_rows:
            return np.zeros((0, self.featurizer.n_features), np.float32)
        vectors, whole = read_vectors(self.features, chosen, self.featurizer.n_features, ignore)
        return vectors[whole]

    def find_first_days(self, before: date) -> tuple[date, date] | None:
        """Give this very model's first days in service; None where they do not end before a day."""
        if self.predictions is None:
            return None
        own = pc.field("model_sha256") == self.card.sha256
        first = pc.min(self.predictions.to_table(columns=["date"], filter=own)["date"]).as_py()
        if first is None:
            return None
        last = first + timedelta(days=WINDOW_DAYS - 1)
        return (first, last) if last < before else None

    def scores(self, first: date, last: date) -> Ints:
        """Count this very model's scores."""
        if self.predictions is None:
            return np.zeros(N_BINS, np.int64)
        days = (pc.field("date") >= pa.scalar(first)) & (pc.field("date") <= pa.scalar(last))
        own = pc.field("model_sha256") == self.card.sha256
        return count_scores(self.predictions.to_table(columns=["score"], filter=days & own)["score"].to_numpy())


def measure_drift(
    tables_folder: str,
    card: ModelCard,
    featurizer: Featurizer,
    hashes: list[str],
    reference: Reference | None,
    *,
    seed: int = 0,
) -> Drift:
    """Compare what was scored in the archive's last days with what was before.

    Vectors are compared with those that the model was made with, scores with those of its first days in service. Where
    the archive has no such days, apart from the last ones and with 100 scores or more, scores are compared with the
    reference's; that is told, and calls for nothing.

    Parameters
    ----------
    tables_folder : str
        Path or URI of the tables.
    card : ModelCard
        The model in service; scores are its own.
    featurizer : Featurizer
        Its featurizer.
    hashes : list of str
        The models that have it, see `training.features.stored.find_models_with`; vectors are theirs.
    reference : Reference, optional
        What the model was made with; by default the archive's first days stand for it.
    seed : int
        Of permutations.

    Raises
    ------
    DatasetError
        There is no archive yet.
    JobError
        It cannot be read.
    """
    with failing_as(f"the tables in {tables_folder} cannot be read"):
        features = open_features(tables_folder).to_pyarrow_dataset()
        archive = _Archive(
            tables_folder, card, featurizer, features, _find_predictions(tables_folder), made_by(featurizer, hashes)
        )
        days = archive.days()
        if days is None:
            return _untold("none", "none", "the archive has no vector of this featurizer")
        first, last = days
        start = max(first, last - timedelta(days=WINDOW_DAYS - 1))
        recent = f"{start} to {last}"
        served = archive.find_first_days(start)
        first_scores = np.zeros(N_BINS, np.int64) if served is None else archive.scores(*served)
        in_service = int(first_scores.sum()) >= MIN_IMAGES
        if reference is None:
            end = first + timedelta(days=WINDOW_DAYS - 1)
            told = f"the archive's first days, {first} to {end}, as the model has no {REFERENCE_FILE}"
            if end >= start:
                return _untold(told, recent, f"the archive has less than {2 * WINDOW_DAYS} days")
            reference = _describe_days(archive, first, end, first_scores)
        else:
            told = f"the {reference.n_images} images of the model's training set"
            reference = replace(reference, scores=first_scores) if in_service else reference
        if served is not None and in_service:
            told = f"{told}; scores with the model's first days in service, {served[0]} to {served[1]}"
        vectors, scores = archive.sample(start, last), archive.scores(start, last)
        return _apply_rule(reference, told, vectors, scores, recent, in_service=in_service, seed=seed)


def _find_predictions(folder: str) -> ds.Dataset | None:
    try:
        return open_predictions(folder).to_pyarrow_dataset()
    except DatasetError:  # features come first; nothing was published yet
        return None


def _describe_days(archive: _Archive, first: date, last: date, scores: Ints) -> Reference:
    sample = archive.sample(first, last)
    means = sample.mean(axis=0, dtype=np.float64) if len(sample) else np.zeros(sample.shape[1])
    return Reference(scores, means, np.sqrt(variances_of(sample, means)), sample, len(sample))


def _untold(reference: str, recent: str, why: str) -> Drift:
    return Drift(reference, recent, None, None, None, (why,))


def _apply_rule(
    reference: Reference, told: str, vectors: Features, scores: Ints, recent: str, *, in_service: bool, seed: int
) -> Drift:
    """Compare, and apply the rule; ``in_service``: the reference's scores are of the model's work, not of training."""
    score_shift, vector_shift = None, None
    reasons, notes = [], []
    if min(reference.scores.sum(), scores.sum()) >= MIN_IMAGES:
        score_shift = compare_scores(reference.scores, scores)
        if score_shift.psi >= PSI_LIMIT and score_shift.p_value < P_LIMIT:
            figures = f"PSI {score_shift.psi:.2f}, Kolmogorov-Smirnov distance {score_shift.ks:.2f}"
            if in_service:
                reasons.append(f"scores have shifted: {figures}")
            else:
                notes.append(f"scores differ from the training set's: {figures}; {_NOT_BY_ITSELF}")
    else:
        notes.append(f"{reference.scores.sum()} and {scores.sum()} scores, fewer than {MIN_IMAGES}: not compared")
    if min(len(reference.sample), len(vectors)) >= MIN_IMAGES:
        vector_shift = compare_vectors(reference, vectors, seed=seed)
        if vector_shift.energy >= ENERGY_LIMIT and vector_shift.p_value <= P_LIMIT:
            reasons.append(
                f"feature vectors have shifted: energy {vector_shift.energy:.3f}, p {vector_shift.p_value:.3f}"
            )
    else:
        notes.append(f"{len(reference.sample)} and {len(vectors)} vectors, fewer than {MIN_IMAGES}: not compared")
    if vector_shift is not None and vector_shift.still_moved:
        notes.append(f"{_name_features(vector_shift.still_moved)}: hardly varied before and moved; not in the energy")
    nothing = vector_shift is None and not (score_shift is not None and in_service)
    called_for = None if nothing else bool(reasons)
    return Drift(told, recent, score_shift, vector_shift, called_for, tuple(reasons + notes))


def _name_features(indices: tuple[int, ...]) -> str:
    more = [f"{len(indices) - _MAX_NAMED} more"] if len(indices) > _MAX_NAMED else []
    return ", ".join([*(f"feature {index}" for index in indices[:_MAX_NAMED]), *more])
