"""Files that the Python workers of a session open: once on each machine, and gone when nobody uses them.

A broadcast alone would put them into the memory of every worker, and its own file stays for as long as the session. So
the driver writes the files into the session's temporary folder, which Spark removes with the session, and workers on
this machine open them there. Other machines get the content as a broadcast, and write it down once.
"""

import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import JobError

if TYPE_CHECKING:  # a worker imports this module
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

_MAX_SETS = 4
"""Sets of files that an executor keeps: networks and detectors of two models, as `sparkdl.engine.cache` does."""


@dataclass(frozen=True)
class SentFiles:
    """What workers find a set of files by.

    Parameters
    ----------
    folder : str
        Where they are on the driver's machine; its name is the set's own.
    digests : Mapping of str to str
        Each file's SHA-256, by its name.
    content : Broadcast, optional
        Each file's bytes by its name, where workers run on other machines.
    """

    folder: str
    digests: Mapping[str, str]
    content: Any = field(default=None, repr=False)

    def find(self) -> Path:
        """Give the folder that has the files on this machine; for a worker.

        Raises
        ------
        JobError
            A file is missing, or is not what its digest says.
        """
        folder = Path(self.folder)
        if self.content is not None and not folder.is_dir():
            folder = self._unpack()
        damaged = _list_damaged(folder, self.digests)
        if damaged:
            msg = f"{folder}: {', '.join(damaged)} missing or damaged; the next start of the query writes them anew"
            raise JobError(msg)
        return folder

    def _unpack(self) -> Path:
        """Write the files down, once for all workers of this executor; Spark removes its folder when it ends."""
        sets = Path(os.environ["SPARK_LOCAL_DIRS"].split(",")[0]) / "sent-files"
        folder = sets / Path(self.folder).name
        with _locked(sets):
            if _list_damaged(folder, self.digests):
                _write(folder, self.content.value, self.digests)
                _remove_oldest(sets)
            os.utime(folder)
        # pyspark would keep a copy for as long as the worker lives.
        vars(self.content).pop("_value", None)
        return folder


def send_files(spark: "SparkSession", name: str, content: Mapping[str, bytes], holder: str) -> SentFiles:
    """Bring files to where the session's workers run; what was sent already is looked over, and mended.

    Parameters
    ----------
    spark : SparkSession
        Whose workers will open them.
    name : str
        Of the set: the same for the same content.
    content : Mapping of str to bytes
        Each file's bytes, by its name.
    holder : str
        Who uses them, see `withdraw_files`.

    Returns
    -------
    SentFiles
        Can be pickled.

    Raises
    ------
    OSError
        They cannot be written.
    """
    with _sessions.lock:
        sent = _sessions.sent_in(spark.sparkContext)
        if name not in sent:
            sent[name] = _Sent(_describe(spark, name, content))
        sent[name].holders.add(holder)
        files = sent[name].files
        _write(Path(files.folder), content, files.digests)
    return files


def withdraw_files(holder: str) -> None:
    """Remove the files that were sent for this holder and for nobody else; no task may have them to open still."""
    with _sessions.lock:
        for name, sent in list(_sessions.sent.items()):
            sent.holders.discard(holder)
            if not sent.holders:
                del _sessions.sent[name]
                shutil.rmtree(sent.files.folder, ignore_errors=True)  # the session may have ended, and they with it
                if sent.files.content is not None and _sessions.runs:
                    sent.files.content.destroy()


@dataclass
class _Sent:
    files: SentFiles
    holders: set[str] = field(default_factory=set)


class _Sessions:
    """What was sent in the session that runs: there is one in a process, and what it had goes with it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sent: dict[str, _Sent] = {}
        self._context: SparkContext | None = None

    @property
    def runs(self) -> bool:
        """Whether the session still runs that the files were sent in."""
        return self._context is not None and self._context._jsc is not None

    def sent_in(self, context: "SparkContext") -> dict[str, _Sent]:
        """Give what was sent in this context, by the name of each set."""
        if context is not self._context:
            self._context, self.sent = context, {}
        return self.sent


_sessions = _Sessions()


def _describe(spark: "SparkSession", name: str, content: Mapping[str, bytes]) -> SentFiles:
    from pyspark import SparkFiles  # noqa: PLC0415 - only the driver needs it

    context = spark.sparkContext
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in content.items()}
    # With a master of this name all workers are on this machine.
    elsewhere = not context.master.startswith("local")
    folder = Path(SparkFiles.getRootDirectory()) / name
    return SentFiles(str(folder), digests, context.broadcast(dict(content)) if elsewhere else None)


def _list_damaged(folder: Path, digests: Mapping[str, str]) -> list[str]:
    return [name for name, digest in digests.items() if not _is_sound(folder / name, digest)]


def _is_sound(path: Path, digest: str) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    except FileNotFoundError:
        return False


def _write(folder: Path, content: Mapping[str, bytes], digests: Mapping[str, str]) -> None:
    """Write the files that are missing or damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _list_damaged(folder, digests):
        # Put in place of the other: a worker may have that one mapped, and would die of its becoming shorter.
        part = folder / f".{name}"
        part.write_bytes(content[name])
        part.replace(folder / name)


@contextmanager
def _locked(sets: Path) -> Iterator[None]:
    sets.mkdir(exist_ok=True)
    with (sets / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_oldest(sets: Path) -> None:
    """Keep as many sets as workers use at once, the last used ones: nobody tells an executor what was withdrawn."""
    folders = sorted((one for one in sets.iterdir() if one.is_dir()), key=lambda one: one.stat().st_mtime)
    for folder in folders[:-_MAX_SETS]:
        shutil.rmtree(folder)
