"""A network on its way to the Python workers: they get where its files are, and each compiles it once.

It imports no ``pyspark.ml``, so that a worker starts fast.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sparkdl.engine.base import Engine
from sparkdl.engine.cache import find_engine
from sparkdl.engine.novelty import StoredDetector, find_detector
from sparkdl.network.base import Network
from sparkdl.spark.sentfiles import SentFiles, send_files, withdraw_files
from sparkdl.spark.worker import prepare_worker
from sparkdl.transformers.batches import TellNovel

if TYPE_CHECKING:  # a worker imports this module
    from pyspark.sql import SparkSession

_REFERENCES_FILE = "references.npy"


@dataclass(frozen=True)
class SentDetector:
    """What a worker opens a detector with.

    Parameters
    ----------
    sha256 : str
        The detector's.
    threshold : float
        The detector's.
    files : SentFiles
        Its references.
    """

    sha256: str
    threshold: float
    files: SentFiles

    def open(self) -> StoredDetector:
        """Give this process's detector; its references are mapped."""
        return find_detector(self.sha256, self._load)

    def _load(self) -> StoredDetector:
        mapped = np.load(self.files.find() / _REFERENCES_FILE, mmap_mode="r", allow_pickle=False)
        return StoredDetector(np.asarray(mapped), self.threshold, self.sha256)


@dataclass(frozen=True)
class SentNetwork:
    """What a worker opens a network with; pickled, it is a kilobyte.

    Parameters
    ----------
    network : Network
        All but its files.
    sha256 : str
        The network's.
    files : SentFiles
        Its files.
    holder : str
        Whose `withdraw` ends it.
    n_threads : int
        CPU threads of one inference.
    device : str
        OpenVINO's device.
    detector : SentDetector, optional
        What tells which inputs are novel.
    """

    network: Network
    sha256: str
    files: SentFiles
    holder: str
    n_threads: int = 1
    device: str = "CPU"
    detector: SentDetector | None = None

    def open(self) -> tuple[Engine, TellNovel | None]:
        """Give this process's engine, and what tells novel inputs from the outputs; for a worker, in every task.

        Raises
        ------
        JobError
            The files are not there, or are damaged.
        SettingsError, ModelLoadError, DependencyError
            See `find_engine`.
        """
        engine = find_engine(
            self.sha256, self.network.precision, self._load, n_threads=self.n_threads, device=self.device
        )
        tell_novel = None if self.detector is None else self.detector.open().flags
        prepare_worker(self.sha256)
        return engine, tell_novel

    def withdraw(self) -> None:
        """Remove its files, where nobody else uses them; on the driver, when no task will open them any more."""
        withdraw_files(self.holder)

    def _load(self) -> Network:
        return replace(self.network, folder=self.files.find())


def send_network(
    spark: "SparkSession",
    network: Network,
    holder: str,
    *,
    device: str = "CPU",
    detector: StoredDetector | None = None,
) -> SentNetwork:
    """Send a network to a session's workers; what was sent before is only looked over.

    Parameters
    ----------
    spark : SparkSession
        Whose workers will open it.
    network : Network
        With its files.
    holder : str
        Who uses it. The files are there until every holder of the same ones has withdrawn them, or the session ends.
    device : str
        OpenVINO's device.
    detector : StoredDetector, optional
        What tells which inputs are novel.

    Raises
    ------
    OSError
        The files cannot be written.
    """
    return SentNetwork(
        replace(network, graph={}),
        network.sha256,
        send_files(spark, f"network-{network.sha256}", network.graph, holder),
        holder,
        # As many threads as Spark counts cores for a task: more would have workers fight over the cores.
        n_threads=int(spark.conf.get("spark.task.cpus", "1")),
        device=device,
        detector=None if detector is None else _send_detector(spark, detector, holder),
    )


def _send_detector(spark: "SparkSession", detector: StoredDetector, holder: str) -> SentDetector:
    name = f"detector-{detector.sha256}"
    files = send_files(spark, name, _to_files(detector), holder)
    return SentDetector(detector.sha256, detector.threshold, files)


def _to_files(detector: StoredDetector) -> Mapping[str, bytes]:
    file = io.BytesIO()
    np.save(file, detector.references, allow_pickle=False)
    return {_REFERENCES_FILE: file.getvalue()}
