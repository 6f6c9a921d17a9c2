"""Computes features and facts of image files in Spark, each image once: what is in the cache is read from it.

Files are known by the SHA-256 of their bytes. What is missing is computed in blocks of a few hundred images, each a
Spark job whose rows come to the driver and into the cache, so that a stopped run goes on where it was. Only what was
computed goes there: a file that cannot be read or decoded today may be tomorrow, and one that changed while it was read
is not the one that is asked for.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.accumulators import Accumulator
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col

from sparkdl.image.limits import FILE_LIMITS, RENDERING_VERSION, DecodeLimits
from sparkdl.network.base import Network
from sparkdl.spark.tasks import count_tasks
from sparkdl.transformers.featurizer import DeepImageFeaturizer
from training.arrays import Features
from training.data.summary import ImageSummary
from training.features.cache import DIGEST, FeatureCache, make_key
from training.features.decoding import DECODED_DDL, FACTS_DDL, decode_files, examine_files

Session = Callable[[], SparkSession]
"""Gives the Spark session; called only where something is to be computed."""

Progress = Callable[[str, int, int], None]
"""Called as ``report(what, done, total)`` with counts of images, also from another thread."""

_FACTS_VERSION = 1  # to be raised when hash or probes change

_IMAGES_PER_BLOCK = 512  # what a stop can cost; between blocks the cores wait for about 0.2 s

_POLL_S = 0.1

_READERS = 8

_TEXT = pa.string()

_VALUES = pa.list_(pa.float64())

_FACTS = pa.schema(
    [
        (DIGEST, _TEXT),
        ("picture", pa.binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("n_bytes", pa.int64()),
        *[(name, _VALUES) for name in ("thumbnail", "borders", "corners", "metadata")],
        ("error", _TEXT),
    ]
)

_FEATURES = pa.schema([(DIGEST, _TEXT), ("features", pa.list_(pa.float32())), ("error", _TEXT)])


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """What training must know of an image besides its features.

    Parameters
    ----------
    digest : str
        SHA-256 of the file; empty where it cannot be read.
    picture : int
        See `training.data.duplicates.hash_image`.
    summary : ImageSummary or None
        For the probes.
    error : str
        Why it does not decode; empty where it does, and else picture and summary mean nothing.
    """

    digest: str
    picture: int = 0
    summary: ImageSummary | None = None
    error: str = ""


def ignore(what: str, done: int, total: int) -> None:
    """Report to nobody."""


# --- files ------------------------------------------------------------------------------------------------------------


def examine(
    spark: Session,
    paths: Sequence[Path],
    cache: FeatureCache | None = None,
    report: Progress = ignore,
    *,
    limits: DecodeLimits = FILE_LIMITS,
) -> list[ImageFacts]:
    """Find out what training must know of files.

    Parameters
    ----------
    spark : callable
        See `Session`; its workers must be able to read the files.
    paths : sequence of Path
        Image files.
    cache : FeatureCache, optional
        What is there is not computed.
    report : callable
        See `Progress`.
    limits : DecodeLimits
        What one file may cost.

    Returns
    -------
    list of ImageFacts
        In the order of ``paths``. A file that cannot be read or decoded has an error.
    """
    digests = digest_files(paths)

    def compute(session: SparkSession, chosen: Sequence[str], done: Accumulator[int]) -> DataFrame:
        return _map_files(session, chosen, done, lambda some: examine_files(some, limits=limits), FACTS_DDL)

    job = _Job(spark, f"images-r{RENDERING_VERSION}-{_FACTS_VERSION}", _FACTS, compute, "examining images")
    known = {row[DIGEST]: row for row in job.run(paths, digests, cache, report).to_pylist()}
    return [_to_facts(known[digest]) if digest else ImageFacts("", error="cannot be read") for digest in digests]


def digest_files(paths: Sequence[Path]) -> list[str]:
    """Give the SHA-256 of each file; empty for one that cannot be read."""
    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
        return list(pool.map(_digest_file, paths))


def _digest_file(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def _to_facts(row: Mapping[str, Any]) -> ImageFacts:
    if row["error"] is not None:
        return ImageFacts(row[DIGEST], error=row["error"])
    names = ("thumbnail", "borders", "corners", "metadata")
    summary = ImageSummary(**{name: np.array(row[name]) for name in names})
    return ImageFacts(row[DIGEST], int.from_bytes(row["picture"]), summary)


def compute_features(
    spark: Session,
    paths: Sequence[Path],
    digests: Sequence[str],
    featurizer: DeepImageFeaturizer,
    cache: FeatureCache | None = None,
    report: Progress = ignore,
    *,
    limits: DecodeLimits = FILE_LIMITS,
    rendering: int = RENDERING_VERSION,
) -> tuple[Features, list[str]]:
    """Compute the features of files that decode.

    Parameters
    ----------
    spark, paths, cache, report, limits
        See `examine`.
    digests : sequence of str
        SHA-256 of the files.
    featurizer : DeepImageFeaturizer
        From ``image`` to ``features``.
    rendering : int
        Rendering version of the images that the features' model is for.

    Returns
    -------
    tuple of numpy.ndarray and list of str
        float32, shape (n, n_features), in the order of ``paths``; and for each why it has none, or "".
    """
    network = featurizer.network

    def compute(session: SparkSession, chosen: Sequence[str], done: Accumulator[int]) -> DataFrame:
        def decode(some: Sequence[str]) -> pa.RecordBatch:
            return decode_files(some, network.input_size, limits=limits, rendering=rendering)

        decoded = _map_files(session, chosen, done, decode, DECODED_DDL)
        features = vector_to_array(col("features"), dtype="float32").alias("features")
        return featurizer.transform(decoded).select("path", DIGEST, features, "error")

    job = _Job(spark, f"features-{features_key(network, rendering)}", _FEATURES, compute, "computing features")
    rows = job.run(paths, digests, cache, report)
    return _to_matrix(rows, digests, network.n_features)


def features_key(network: Network, rendering: int) -> str:
    """Name what features follow from besides the image."""
    return make_key(sha256=network.sha256, precision=network.precision, pooling=network.pooling, rendering=rendering)


def _to_matrix(rows: pa.Table, digests: Sequence[str], n_features: int) -> tuple[Features, list[str]]:
    place = {digest: index for index, digest in enumerate(rows[DIGEST].to_pylist())}
    errors = [error or "" for error in rows["error"].to_pylist()]
    values = np.zeros((len(rows), n_features), np.float32)
    failed = np.array([bool(error) for error in errors], bool)
    # Without rows there is nothing to flatten, and lists that are null hold nothing.
    flat = rows["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    values[~failed] = flat.reshape(-1, n_features)
    chosen = [place[digest] for digest in digests]
    return values[chosen], [errors[index] for index in chosen]


@dataclass(frozen=True)
class _Job:
    """One kind of rows, and how Spark computes them from paths."""

    spark: Session
    kind: str
    schema: pa.Schema
    compute: Callable[[SparkSession, Sequence[str], Accumulator[int]], DataFrame]
    what: str

    def run(
        self, paths: Sequence[Path], digests: Sequence[str], cache: FeatureCache | None, report: Progress
    ) -> pa.Table:
        """Give a row for each digest that is not empty."""
        path_of = {digest: str(path) for path, digest in zip(paths, digests, strict=True) if digest}
        known = cache.read_rows(self.kind, path_of.keys(), self.schema) if cache else self.schema.empty_table()
        known = keep_computed(known)  # earlier versions kept errors, too
        missing = sorted(path_of.keys() - set(known[DIGEST].to_pylist()), key=path_of.__getitem__)
        if not missing:
            report(self.what, len(path_of), len(path_of))
            return known
        session = self.spark()
        done = session.sparkContext.accumulator(0)
        blocks = [known]
        with _reporting(report, self.what, done, len(path_of), len(path_of) - len(missing)):
            for start in range(0, len(missing), _IMAGES_PER_BLOCK):
                digest_of = {path_of[digest]: digest for digest in missing[start : start + _IMAGES_PER_BLOCK]}
                found = self.compute(session, list(digest_of), done).toArrow()
                blocks.append(accept_rows(found, digest_of, self.schema))
                if cache and (computed := keep_computed(blocks[-1])).num_rows:
                    cache.add_rows(self.kind, computed)
        return pa.concat_tables(blocks)


def accept_rows(found: pa.Table, digest_of: Mapping[str, str], schema: pa.Schema) -> pa.Table:
    """Make rows of what workers computed, with an error for each file that is not any more what was asked for.

    Parameters
    ----------
    found : pyarrow.Table
        A column ``path``, that of `DIGEST` with the SHA-256 of the bytes that were read, null where they were not, and
        those of the schema.
    digest_of : mapping of str to str
        The SHA-256 that each path had when it was asked for.
    schema : pyarrow.Schema
        Of the rows: `DIGEST` first, ``error`` last.

    Returns
    -------
    pyarrow.Table
        A row for each path.
    """
    wanted = pa.array([digest_of[path] for path in found["path"].to_pylist()], _TEXT)
    changed = pc.fill_null(pc.not_equal(found[DIGEST].cast(_TEXT), wanted), False)
    values = [pc.if_else(changed, pa.scalar(None, found[name].type), found[name]) for name in schema.names[1:-1]]
    errors = pc.if_else(changed, "changed while it was read", found["error"])
    return pa.table([wanted, *values, errors], names=schema.names).cast(schema)


def keep_computed(rows: pa.Table) -> pa.Table:
    """Leave out the rows that have an error: it may be the moment's, e.g. a folder that is away or a missing codec."""
    return rows.filter(pc.is_null(rows["error"]))


def _map_files(
    spark: SparkSession,
    paths: Sequence[str],
    done: Accumulator[int],
    make: Callable[[Sequence[str]], pa.RecordBatch],
    ddl: str,
) -> DataFrame:
    """Make rows of files in the workers, counting them."""

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield make([paths[index] for index in batch.column("id").to_pylist()])
            done.add(batch.num_rows)

    return spark.range(0, len(paths), 1, count_tasks(spark, len(paths))).mapInArrow(run, ddl)


@contextmanager
def _reporting(report: Progress, what: str, done: Accumulator[int], total: int, before: int) -> Iterator[None]:
    """Tell how far Spark is: it adds up an accumulator as tasks end, but calls nobody."""
    if report is ignore:
        yield
        return
    ended = Event()

    def poll() -> None:
        while not ended.wait(_POLL_S):
            report(what, min(before + done.value, total), total)  # a repeated task counts again

    poller = Thread(target=poll, name="training-progress", daemon=True)
    report(what, before, total)
    poller.start()
    try:
        yield
    finally:
        ended.set()
        poller.join()
    report(what, total, total)
