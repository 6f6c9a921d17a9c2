"""A folder of images to a folder of feature vectors, in batches: stoppable at any moment, resumable, memory flat.

One direction: ``list files -> leave out those done -> batch of paths -> decode -> featurize -> one Parquet file``. A
batch's file is written aside, checked and renamed into place, so `out` holds whole batches only, and which files are
done is read from the results themselves: there is no second book that could disagree. A killed run loses at most the
batch it was in, which the next run does again.

Spark's own streaming file source would leave out files of 0 bytes, and files that are added with an old time stamp;
a list that is made anew for each run has neither gap.
"""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import coalesce, col, when

from schemas.errors import DatasetError, JobError, SettingsError
from sparkdl.image.decode import decode_image, sniff_media_type
from sparkdl.image.files import noting_error, read_file
from sparkdl.image.limits import FILE_LIMITS, RENDERING_VERSION, DecodeLimits
from sparkdl.image.row import IMAGE_ARROW_TYPE, IMAGE_DDL
from sparkdl.spark.tasks import count_tasks
from sparkdl.spark.worker import prepare_worker

if TYPE_CHECKING:  # it brings pyspark.ml, and a worker imports this module
    from pyspark.accumulators import Accumulator

    from sparkdl.transformers.featurizer import DeepImageFeaturizer

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)`` with counts of files, on the thread that called `featurize_folder`."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
IDENTITY_FILE = "_featurizer.json"

_log = logging.getLogger(__name__)

_DECODED_DDL = f"path string, image struct<{IMAGE_DDL}>, error string"
_DECODED = pa.schema([("path", pa.string()), ("image", IMAGE_ARROW_TYPE), ("error", pa.string())])
_LOCK_FILE, _SCRATCH = "_lock", "_running-"
_PART = re.compile(r"part-(\d{6,})\.parquet")
_SNIFFED_BYTES = 512  # a DICOM file's preamble is 128, and its first elements follow
_POLL_S = 0.2


@dataclass(frozen=True)
class FolderResult:
    """What one run did.

    Parameters
    ----------
    n_images : int
        Files that this run wrote a row for, the failed ones included.
    n_failed : int
        Those of them that have a reason instead of features.
    n_done_before : int
        Files of the folder that earlier runs had done; left alone.
    seconds : float
        Wall time.
    out : Path
        Folder of the Parquet files.
    """

    n_images: int
    n_failed: int
    n_done_before: int
    seconds: float
    out: Path


def featurize_folder(
    spark: SparkSession,
    folder: str | Path,
    featurizer: "DeepImageFeaturizer",
    out: str | Path,
    *,
    images_per_batch: int = 1000,
    progress: Progress | None = None,
    limits: DecodeLimits = FILE_LIMITS,
) -> FolderResult:
    """Compute the features of every image below a folder; go on where an earlier run was stopped.

    Parameters
    ----------
    spark : SparkSession
        Driver and workers must see ``folder`` and ``out`` under the same path (one machine, or a shared file system).
    folder : str or Path
        Searched with its sub-folders, but not through linked folders. See `find_images`.
    featurizer : DeepImageFeaturizer
        Its column names do not matter here.
    out : str or Path
        New, empty, or of an earlier run. Gets Parquet files with the columns ``path`` (string, absolute), ``features``
        (array of float, ``n_features`` values) and ``reason`` (string, ``"code: detail"``): one row for each file, with
        either features or a reason.
    images_per_batch : int
        Files in a batch, which is what a stop can cost. Another number may be given when a run is resumed.
    progress : callable, optional
        See `Progress`; earlier runs' files count as done. What it raises stops the run, and passes through.
    limits : DecodeLimits
        Larger files and images of other modalities are not read; their row says so. Each worker holds one file at a
        time.

    Returns
    -------
    FolderResult
        Counts of this run.

    Raises
    ------
    SettingsError
        ``out`` was made by another network, precision or rendering version, or holds other files, or another run is
        writing there; or ``images_per_batch`` is below 1.
    DatasetError
        ``folder`` is no folder, cannot be read or holds no image.
    JobError
        A batch came out with another number of rows than it has files.

    Notes
    -----
    Each file is done once, as its path (links in the folder's own path resolved) tells: a file that was added later is
    done by the next run, one that was replaced under the same name is not, one that failed is not tried again, and the
    row of one that is gone stays. To do everything anew, delete ``out``. Memory does not grow with the number of files,
    but for the list of their names.
    """
    started = time.perf_counter()
    if images_per_batch < 1:
        msg = f"images_per_batch is {images_per_batch}, wanted 1 or more"
        raise SettingsError(msg)
    folder, out = Path(folder).resolve(), Path(out).resolve()
    files = find_images(folder, without=out)
    _claim(out)
    with _only_run(out):
        _check_identity(out, _identity(featurizer))
        for left_over in out.glob(f"{_SCRATCH}*"):
            shutil.rmtree(left_over, ignore_errors=True)
        done = _done_paths(out)
        waiting = [file for file in files if _as_text(file) not in done]
        run = _Run(spark, featurizer, out, len(files), len(files) - len(waiting), progress, limits)
        del files, done
        n_failed = run.do(waiting, images_per_batch)
    result = FolderResult(len(waiting), n_failed, run.n_before, time.perf_counter() - started, out)
    _log.info("featurized %d files, %d failed, %.1f s", result.n_images, result.n_failed, result.seconds)
    return result


def count_reasons(out: str | Path) -> Counter[str]:
    """Count the failed files of all runs by reason code.

    Parameters
    ----------
    out : str or Path
        What `featurize_folder` wrote.

    Returns
    -------
    Counter of str
        Failed files by code.
    """
    counts: Counter[str] = Counter()
    for part in _parts(Path(out)):
        counts.update(reason.partition(":")[0] for reason in _read_column(part, "reason") if reason is not None)
    return counts


# --- files ------------------------------------------------------------------------------------------------------------


def find_images(folder: Path, *, without: Path | None = None) -> list[str]:
    """List the image files below a folder.

    Parameters
    ----------
    folder : Path
        Where to look, at any depth. Folders that are links are not entered.
    without : Path, optional
        A folder to leave out.

    Returns
    -------
    list of str
        Paths in order: files whose suffix is one of `SUFFIXES` in any case, even empty or broken ones, and others
        that begin as a PNG, JPEG or DICOM file does (DICOM files often have no suffix). Names that begin with a dot are
        left out, files and folders.

    Raises
    ------
    DatasetError
        There is no such folder, a folder in it cannot be read, or there is no image.
    SettingsError
        ``folder`` and ``without`` are one folder.
    """
    if folder == without:
        msg = f"{folder} is both the folder of images and the folder of results; name another folder for the results"
        raise SettingsError(msg)
    found: list[str] = []
    for where, folders, names in os.walk(folder, onerror=_refuse_folder):
        # os.walk goes where this list says.
        folders[:] = [name for name in folders if not name.startswith(".") and Path(where, name) != without]
        paths = (os.path.join(where, name) for name in names if not name.startswith("."))
        found.extend(path for path in paths if _is_image(path))
    if not found:
        msg = f"{folder} holds no image; wanted {', '.join(SUFFIXES)}, or a PNG, JPEG or DICOM file of any name"
        raise DatasetError(msg)
    return sorted(found)


def _refuse_folder(error: OSError) -> None:
    msg = f"folder {error.filename} cannot be read: {error.strerror}"
    raise DatasetError(msg) from error


def _is_image(path: str) -> bool:
    if path.lower().endswith(SUFFIXES):
        return True  # a dangling link too: it gets a row that says so
    if not Path(path).is_file():
        return False  # a pipe would never answer
    try:
        with Path(path).open("rb") as file:
            return sniff_media_type(file.read(_SNIFFED_BYTES)) is not None
    except OSError:
        return False


def _as_text(path: str) -> str:
    """Write a path as valid UTF-8: a file name may hold any bytes."""
    return path.encode("utf-8", "backslashreplace").decode()


# --- out --------------------------------------------------------------------------------------------------------------


def _claim(out: Path) -> None:
    """Take a new or empty folder, or one that this module made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / _LOCK_FILE).touch()
        foreign = not (out / IDENTITY_FILE).exists() and {path.name for path in out.iterdir()} - {_LOCK_FILE}
    except OSError as exc:
        msg = f"cannot write results to {out}: {exc.strerror}"
        raise SettingsError(msg) from exc
    if foreign:
        (out / _LOCK_FILE).unlink()
        msg = f"{out} holds other files, e.g. {min(foreign)}; name a new or empty folder for the results"
        raise SettingsError(msg)


@contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """Keep a second run out; the lock goes with the process, however it ends."""
    with (out / _LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            msg = f"another run is writing to {out}; wait for it, or name another folder"
            raise SettingsError(msg) from exc
        yield


def _identity(featurizer: "DeepImageFeaturizer") -> dict[str, Any]:
    network = featurizer.network
    return {
        "network": network.name,
        "sha256": network.sha256,
        "precision": network.precision,
        "rendering_version": RENDERING_VERSION,
    }


def _check_identity(out: Path, wanted: dict[str, Any]) -> None:
    """Refuse to mix features that do not compare."""
    file = out / IDENTITY_FILE
    if not file.exists():
        scratch = out / f"{_SCRATCH}{IDENTITY_FILE}"
        scratch.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        scratch.replace(file)
        return
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as exc:
        msg = f"{file} is damaged, so nobody knows which network made {out}; name a new folder for the results"
        raise SettingsError(msg) from exc
    unlike = [f"{name} {found.get(name)}, not {value}" for name, value in wanted.items() if found.get(name) != value]
    if unlike:
        msg = (
            f"{out} was made with {'; '.join(unlike)}. Features of two networks or renderings do not compare: name a "
            "new folder for these, give the network that it was made with, or delete it to start anew"
        )
        raise SettingsError(msg)


def _parts(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if _PART.fullmatch(path.name))


def _read_column(part: Path, name: str) -> list[str | None]:
    values: list[str | None] = pq.ParquetFile(part).read(columns=[name]).column(name).to_pylist()
    return values


def _done_paths(out: Path) -> set[str | None]:
    return {path for part in _parts(out) for path in _read_column(part, "path")}


# --- batches ----------------------------------------------------------------------------------------------------------


class _Run:
    """One run over the files that wait."""

    def __init__(
        self,
        spark: SparkSession,
        featurizer: "DeepImageFeaturizer",
        out: Path,
        n_total: int,
        n_before: int,
        progress: Progress | None,
        limits: DecodeLimits,
    ) -> None:
        self.limits = limits
        self.spark, self.out, self.n_total, self.n_before = spark, out, n_total, n_before
        self.progress = progress or (lambda done, total: None)
        # One copy and one accumulator for all batches: Spark keeps what each of them registers.
        names = {"inputCol": "image", "outputCol": "features", "reasonCol": "reason", "timingCol": ""}
        self.featurizer = featurizer.copy({getattr(featurizer, name): value for name, value in names.items()})
        self.seen = spark.sparkContext.accumulator(0)
        self.tag = f"featurize-{uuid.uuid4().hex}"

    def do(self, waiting: Sequence[str], images_per_batch: int) -> int:
        """Do all batches; return how many files failed."""
        n_failed = 0
        parts = _parts(self.out)
        number = int(parts[-1].stem.removeprefix("part-")) + 1 if parts else 0
        self.progress(self.n_before, self.n_total)
        with ThreadPoolExecutor(1, thread_name_prefix="featurize") as pool:
            for first in range(0, len(waiting), images_per_batch):
                paths = waiting[first : first + images_per_batch]
                scratch = self.out / f"{_SCRATCH}{uuid.uuid4().hex}"
                self._await(pool.submit(self._write, paths, scratch), first, len(paths))
                n_failed += _put_in_place(scratch, self.out / f"part-{number:06}.parquet", len(paths))
                number += 1
                self.progress(self.n_before + first + len(paths), self.n_total)
        return n_failed

    def _featurize(self, paths: Sequence[str]) -> DataFrame:
        from pyspark.ml.functions import vector_to_array  # noqa: PLC0415  a worker imports this module

        n_tasks = count_tasks(self.spark, len(paths))
        indices = self.spark.range(0, len(paths), 1, n_tasks)
        decode = _decoder(paths, self.featurizer.network.input_size, self.limits, self.seen)
        decoded = indices.mapInArrow(decode, _DECODED_DDL)
        features = when(col("features").isNotNull(), vector_to_array("features", "float32"))
        return self.featurizer.transform(decoded).select(
            "path", features.alias("features"), coalesce("error", "reason").alias("reason")
        )

    def _write(self, paths: Sequence[str], scratch: Path) -> None:
        self.spark.sparkContext.addJobTag(self.tag)  # of this thread
        # A path as Hadoop reads it: with a scheme, whatever the default file system is, and not percent-encoded.
        self._featurize(paths).repartition(1).write.parquet(f"file://{scratch}")

    def _await(self, job: "Future[None]", n_earlier: int, n_files: int) -> None:
        """Wait on this thread without Spark, so that Ctrl-C meets no half call; tell how far the batch is."""
        before = self.seen.value
        try:
            while not wait([job], timeout=_POLL_S).done:
                # A repeated task counts again, and a batch is done when it is in its place.
                seen = min(self.seen.value - before, n_files - 1)
                self.progress(self.n_before + n_earlier + seen, self.n_total)
        except BaseException:
            while not job.done():  # again and again: it may not have begun
                self.spark.sparkContext.cancelJobsWithTag(self.tag)
                wait([job], timeout=_POLL_S)
            raise
        job.result()


def _put_in_place(scratch: Path, part: Path, n_files: int) -> int:
    """Check a batch's only file and rename it, which is what makes it done; return how many rows failed."""
    (written,) = scratch.glob("part-*.parquet")
    reasons = _read_column(written, "reason")
    if len(reasons) != n_files:
        msg = f"a batch of {n_files} files came out as {len(reasons)} rows; it is left out. Run again"
        raise JobError(msg)
    with written.open("rb") as file:
        os.fsync(file.fileno())  # else a power failure could leave the name without the content
    written.replace(part)
    shutil.rmtree(scratch, ignore_errors=True)
    return n_files - reasons.count(None)


# --- inside a worker --------------------------------------------------------------------------------------------------


def _decoder(
    paths: Sequence[str], size: tuple[int, int], limits: DecodeLimits, seen: "Accumulator[int]"
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    def decode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        prepare_worker("decode")
        for batch in batches:
            rows = [_decode_file(paths[index], size, limits) for index in batch.column("id").to_pylist()]
            yield pa.RecordBatch.from_pylist(rows, schema=_DECODED)
            seen.add(batch.num_rows)

    return decode


def _decode_file(path: str, size: tuple[int, int], limits: DecodeLimits) -> dict[str, Any]:
    row: dict[str, Any] = {"path": _as_text(path)}
    with noting_error(row):
        payload = read_file(path, limits.max_payload_bytes)
        row["image"] = asdict(decode_image(payload, origin=row["path"], size=size, limits=limits).image)
    return row
