"""What retraining learns from: the archive's feature vectors, joined with confirmed findings.

No image is read and nothing is computed. Vectors of different featurizers mean different things, so only those of one
are taken: made by a model whose network has the same files, precision and decoding rules. The table names the model;
which network that model has is looked up in the folder of models, so rows of models that are gone are left out.

The vectors go from the table's column straight into one array: 100,000 of 1,280 values are 512 MB, and little more than
that is needed.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from schemas.deltatable import failing_as
from schemas.errors import DatasetError, ModelLoadError
from schemas.modelcard import ModelCard, read_card
from schemas.registry import list_models
from training.arrays import Features, Ints
from training.data.archive import is_one_of, open_features
from training.data.labelstable import read_labels
from training.features.extract import Progress, ignore

_BATCH_ROWS = 2048  # of 1,280 values, 10 MB
_READING = "reading stored features"
_NETWORK_FILE = "stages/0_*/network/network.json"


@dataclass(frozen=True)
class Featurizer:
    """What a feature vector follows from besides the image.

    Parameters
    ----------
    network, precision : str
        As the features table has them.
    rendering_version : int
        Of the decoding rules.
    n_features : int
        Values of a vector.
    sha256 : str
        Of the network's files, its precision and its pooling.
    """

    network: str
    precision: str
    rendering_version: int
    n_features: int
    sha256: str


@dataclass(frozen=True, eq=False)
class StoredSet:
    """Stored feature vectors with confirmed findings, by the images' SHA-256.

    Parameters
    ----------
    features : numpy.ndarray
        float32, shape (n, n_features).
    labels : numpy.ndarray
        int64, shape (n,): positions in the model's labels.
    patients : numpy.ndarray
        str, shape (n,): who is on each image; the image's own SHA-256 where that is not known.
    sources : numpy.ndarray
        str, shape (n,): who published each image; "" where that is not known.
    digests : numpy.ndarray
        str, shape (n,), rising.
    n_unknown_patients : int
        Images whose patient is not known.
    left_out : mapping of str to int
        Labelled images that could not be taken, by reason.
    """

    features: Features
    labels: Ints
    patients: npt.NDArray[np.str_]
    sources: npt.NDArray[np.str_]
    digests: npt.NDArray[np.str_]
    n_unknown_patients: int
    left_out: Mapping[str, int] = field(default_factory=dict)


def describe_featurizer(folder: Path, card: ModelCard) -> Featurizer:
    """Find out what features a model's vectors are.

    Parameters
    ----------
    folder : Path
        Of the model.
    card : ModelCard
        Its card.

    Raises
    ------
    ModelLoadError
        It has no network of its own, so it is another kind of pipeline.
    """
    paths = list(folder.glob(_NETWORK_FILE))
    try:
        manifest = json.loads(paths[0].read_text(encoding="utf-8"))
        parts = {name: manifest[name] for name in ("files", "precision", "pooling")}
        n_features = manifest["n_features"] if "n_features" in manifest else math.prod(manifest["output_shape"])
    except (IndexError, OSError, ValueError, KeyError) as exc:
        msg = f"the model at {folder} does not begin with a featurizer that can be read ({type(exc).__name__})"
        raise ModelLoadError(msg) from exc
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Featurizer(card.network, card.precision, card.rendering_version, n_features, digest)


def find_models_with(models_folder: Path, featurizer: Featurizer) -> dict[str, str]:
    """Find the models that have a featurizer.

    Returns
    -------
    dict
        Version by the hash that stands in the features table. Models that cannot be read are left out.
    """
    found = {}
    for card in list_models(models_folder):
        try:
            own = describe_featurizer(models_folder / card.version, card)
        except ModelLoadError:
            continue
        if own == featurizer:
            found[card.sha256] = card.version
    return found


def made_by(featurizer: Featurizer, hashes: Sequence[str]) -> ds.Expression:
    """Give the condition on rows of the features table: vectors of one featurizer."""
    return (
        (pc.field("network") == featurizer.network)
        & (pc.field("precision") == featurizer.precision)
        & (pc.field("rendering_version") == featurizer.rendering_version)
        & is_one_of("model_sha256", pa.array(hashes, pa.string()))
    )


def read_stored(
    tables_folder: str,
    models_folder: Path,
    version: str,
    *,
    report: Progress = ignore,
) -> StoredSet:
    """Read the vectors of labelled images.

    Parameters
    ----------
    tables_folder : str
        Path or URI of the tables.
    models_folder : Path
        Where the models are.
    version : str
        The model whose featurizer and labels count.
    report : callable
        See `training.features.extract.Progress`.

    Returns
    -------
    StoredSet
        Each image once, however often it was scored.

    Raises
    ------
    DatasetError
        There is no archive, no label, or no vector of a labelled image.
    ModelLoadError
        The model cannot be read.
    JobError
        A table cannot be read.
    """
    card = read_card(models_folder / version)
    featurizer = describe_featurizer(models_folder / version, card)
    hashes = sorted(find_models_with(models_folder, featurizer))
    labelled = read_labels(tables_folder)
    if not labelled.num_rows:
        msg = f"no labels yet: record confirmed findings with 'xray label FILE.csv' (they are kept in {tables_folder})"
        raise DatasetError(msg)
    with failing_as(f"the table {tables_folder}/features cannot be read"):
        dataset = open_features(tables_folder).to_pyarrow_dataset()
        chosen, left_out = _choose_rows(dataset, labelled, card.labels, made_by(featurizer, hashes))
        if not chosen.num_rows:
            reasons = "; ".join(f"{count} {why}" for why, count in left_out.items())
            msg = f"none of the {labelled.num_rows} labelled images has a vector of {version}'s featurizer: {reasons}"
            raise DatasetError(msg)
        features, complete = read_vectors(dataset, chosen, featurizer.n_features, report)
    if not complete.all():
        left_out["whose vector is incomplete"] = int((~complete).sum())
        features, chosen = features[complete], chosen.filter(pa.array(complete))
    return _gather(features, chosen, card.labels, left_out)


def _choose_rows(
    dataset: ds.Dataset, labelled: pa.Table, labels: Sequence[str], condition: ds.Expression
) -> tuple[pa.Table, Counter[str]]:
    """Give one row of each labelled image, by SHA-256: the one with the lowest event id, and count what is left out.

    No vector is read here, so this is quick however large the table is.
    """
    left_out: Counter[str] = Counter()
    known = labelled.filter(pc.is_in(labelled["label"], pa.array(labels, pa.string())))
    left_out["with a label that the model does not have"] = labelled.num_rows - known.num_rows
    own = is_one_of("sha256", known["sha256"].combine_chunks())
    columns = ["event_id", "sha256", "source", "date"]
    rows = dataset.to_table(columns=columns, filter=own & condition).sort_by("event_id")
    # One thread, so that the first is the first: a table whose files were joined since gives the same rows.
    first = rows.group_by("sha256", use_threads=False).aggregate(
        [(name, "first") for name in ("event_id", "source", "date")]
    )
    first = first.rename_columns([name.removesuffix("_first") for name in first.column_names])
    seen = pc.unique(dataset.to_table(columns=["sha256"], filter=own)["sha256"])
    left_out["that are not in the archive any more"] = known.num_rows - len(seen)
    left_out["scored with other featurizers, or by models that are gone, only"] = len(seen) - first.num_rows
    chosen = first.join(known.select(["sha256", "label", "patient_id"]), "sha256", join_type="inner").sort_by("sha256")
    return chosen, Counter({why: count for why, count in left_out.items() if count})


def read_vectors(
    dataset: ds.Dataset, chosen: pa.Table, n_features: int, report: Progress
) -> tuple[Features, npt.NDArray[np.bool_]]:
    """Read the vectors of chosen events.

    Parameters
    ----------
    dataset : pyarrow.dataset.Dataset
        The features table.
    chosen : pyarrow.Table
        ``event_id``, each once, and ``date``.
    n_features : int
        Values of a vector.
    report : callable
        See `training.features.extract.Progress`.

    Returns
    -------
    tuple of numpy.ndarray
        float32, shape (n, n_features), in the order of ``chosen``; and bool, shape (n,): whose values are all there,
        and numbers.
    """
    events = chosen["event_id"].combine_chunks()
    features, done = np.zeros((len(events), n_features), np.float32), np.zeros(len(events), bool)
    report(_READING, 0, len(events))
    for names, lists in _scan(dataset, chosen):
        places = pc.index_in(names, value_set=events)
        whole = pc.equal(pc.list_value_length(lists), n_features)
        taken = pc.fill_null(pc.and_(pc.is_valid(places), whole), fill_value=False)
        targets = pc.filter(places, taken).to_numpy(zero_copy_only=False)
        # The lists' own buffer of values, seen as a matrix: no Python object for any of them.
        values = pc.filter(lists, taken).flatten().to_numpy(zero_copy_only=False).reshape(len(targets), n_features)
        features[targets] = values
        done[targets] = np.isfinite(values).all(axis=1)
        report(_READING, int(done.sum()), len(events))
    report(_READING, len(events), len(events))
    return features, done


def _scan(dataset: ds.Dataset, chosen: pa.Table) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Give ids and vectors of the days that have chosen events, file by file, a few megabytes at a time.

    Over the whole dataset Arrow reads ahead as far as it can: of 512 MB of vectors it held 330 MB, and was no faster.
    """
    days = pc.field("date").isin(pc.unique(chosen["date"]))
    for fragment in dataset.get_fragments(days):
        scanner = fragment.scanner(
            schema=dataset.schema,
            columns=["event_id", "features"],
            batch_size=_BATCH_ROWS,
            batch_readahead=1,
            use_threads=False,
            fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=False),
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield batch["event_id"], batch["features"]


def _gather(features: Features, chosen: pa.Table, labels: Sequence[str], left_out: Counter[str]) -> StoredSet:
    digests = np.array(chosen["sha256"].to_pylist(), dtype=str)
    patients = chosen["patient_id"]
    return StoredSet(
        features=features,
        labels=pc.index_in(chosen["label"], pa.array(labels, pa.string())).to_numpy().astype(np.int64),
        patients=np.array(pc.coalesce(patients, chosen["sha256"]).to_pylist(), dtype=str),
        sources=np.array(pc.fill_null(chosen["source"], "").to_pylist(), dtype=str),
        digests=digests,
        n_unknown_patients=patients.null_count,
        left_out=dict(left_out),
    )
