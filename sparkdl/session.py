"""Starts the Spark session that the library, training and the stream share."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from pyspark.sql import SparkSession

from sparkdl.java import find_java

_STANDARD_STREAMS = (1, 2)

_BASE_CONF = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
    # Small frames on few cores: the default of 200 would make every shuffle cost seconds.
    "spark.sql.shuffle.partitions": "4",
    # Rows that cross to Python hold images: eight at a time bounds a worker's memory and keeps the JVM's writer, the
    # decoder and the network busy at once.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "8",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(64 * 1024 * 1024),
    # The default 64 kB makes several system calls of one image.
    "spark.buffer.size": str(1024 * 1024),
    "spark.sql.execution.arrow.pyspark.enabled": "true",
}


def start_session(
    *,
    app_name: str,
    log_folder: Path,
    master: str = "local[*]",
    driver_memory: str = "2g",
    jars: Sequence[Path] = (),
    java_options: Sequence[str] = (),
    conf: Mapping[str, str] | None = None,
    verbose: bool = False,
) -> SparkSession:
    """Start Spark, or return the session that runs already.

    Parameters
    ----------
    app_name : str
        Name that Spark shows.
    log_folder : Path
        Spark logs to ``spark.log`` here, and what the JVM prints goes to ``spark-console.log``.
    master, driver_memory : str
        As Spark names them.
    jars : sequence of Path
        Connector jars.
    java_options : sequence of str
        More options of the driver's JVM.
    conf : Mapping, optional
        More Spark properties; they win over the ones set here.
    verbose : bool
        Log at INFO, and leave the JVM's own words on the terminal.

    Returns
    -------
    SparkSession
        The time zone is UTC.

    Raises
    ------
    DependencyError
        Java is missing or too old.
    """
    find_java()
    log_folder.mkdir(parents=True, exist_ok=True)
    # Workers must run this very interpreter, whatever "python3" means on the search path.
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(master).appName(app_name).config("spark.driver.memory", driver_memory)
    settings = {
        **_BASE_CONF,
        **_jvm_conf(log_folder, java_options, verbose=verbose),
        **_jar_conf(master, jars),
        **(conf or {}),
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    with _console_to(None if verbose else log_folder / "spark-console.log"), _same_interrupt_handler():
        return builder.getOrCreate()


class LateSession:
    """A session that is started when it is first called for: what is known already needs none.

    Parameters
    ----------
    start : callable
        Starts it.
    """

    def __init__(self, start: Callable[[], SparkSession]) -> None:
        self._start = start
        self._session: SparkSession | None = None

    def __call__(self) -> SparkSession:
        """Return the session."""
        if self._session is None:
            self._session = self._start()
        return self._session

    def stop(self) -> None:
        """End it, where it was started."""
        if self._session is not None:
            self._session.stop()


def _jvm_conf(log_folder: Path, java_options: Sequence[str], *, verbose: bool) -> dict[str, str]:
    config = files("sparkdl") / "log4j2.properties"
    level = "INFO" if verbose else "WARN"
    logging = f'-Dlog4j2.configurationFile="{config}" -Dxray.log.dir="{log_folder}" -Dxray.log.level={level}'
    return {"spark.driver.extraJavaOptions": " ".join([logging, *java_options])}


def _jar_conf(master: str, jars: Sequence[Path]) -> dict[str, str]:
    """On one machine the class path will do; a cluster's executors must be sent the files."""
    if not jars:
        return {}
    if master.startswith("local"):
        return {"spark.driver.extraClassPath": os.pathsep.join(map(str, jars))}
    return {"spark.jars": ",".join(map(str, jars))}


@contextmanager
def _same_interrupt_handler() -> Iterator[None]:
    """Keep the program's own answer to Ctrl-C: pyspark puts one in its place that cancels what runs."""
    saved = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, saved)


@contextmanager
def _console_to(path: Path | None) -> Iterator[None]:
    """Send what the JVM and its workers print to a file.

    The JVM inherits the standard streams of the moment it starts in and keeps them; ours are put back afterwards.
    """
    if path is None:
        yield
        return
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {stream: os.dup(stream) for stream in _STANDARD_STREAMS}
    try:
        with path.open("ab") as log:
            for stream in saved:
                os.dup2(log.fileno(), stream)
        yield
    finally:
        for stream, original in saved.items():
            os.dup2(original, stream)
            os.close(original)
