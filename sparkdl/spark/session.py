"""Starts the Spark session that the library, training and the stream share.

Whoever reaches a port of Spark and is not asked who he is runs code. So on one machine every port is on the loopback
address, and the processes of a session prove to one another that they know its secret, on one machine and on a cluster.
"""

import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from schemas.errors import JobError, SettingsError
from sparkdl.spark.java import find_java
from sparkdl.spark.jvm import Jvm

SECRET_PROPERTY = "spark.authenticate.secret"  # noqa: S105 - its name
"""Spark's name for what the processes of a cluster must know to take part."""

_STANDARD_STREAMS = (1, 2)
_LOOPBACK = "127.0.0.1"
_ADDRESS_VARIABLES = ("SPARK_LOCAL_IP", "SPARK_LOCAL_HOSTNAME")

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

# Spark's defaults are older and weaker, for the sake of Spark 2 and 3. A cluster's master and workers need the same.
_AUTHENTICATION = {
    "spark.authenticate": "true",
    "spark.network.crypto.enabled": "true",
    "spark.network.crypto.authEngineVersion": "2",
    "spark.network.crypto.cipher": "AES/GCM/NoPadding",
    "spark.network.crypto.saslFallback": "false",
}


@dataclass(frozen=True)
class SessionOptions:
    """What a session is started with; `start_session` says what each of them means."""

    app_name: str
    log_folder: Path
    master: str
    driver_memory: str
    jars: Sequence[Path]
    java_options: Sequence[str]
    conf: Mapping[str, str] = field(repr=False)  # a cluster's secret may be among them
    verbose: bool


def start_session(  # noqa: PLR0913  each is a thing of its own, and named in every call
    *,
    app_name: str,
    log_folder: Path,
    master: str = "local[*]",
    driver_memory: str = "2g",
    jars: Sequence[Path] = (),
    java_options: Sequence[str] = (),
    conf: Mapping[str, str] | None = None,
    verbose: bool = False,
    jvm: Jvm | None = None,
) -> SparkSession:
    """Start Spark, or return the session that runs already.

    With a local master every port that Spark opens is on 127.0.0.1, whatever the environment says of this machine's
    address. With any master its processes authenticate one another, and encrypt what they send; Spark makes up the
    secret itself, but for a ``spark://`` cluster.

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
        More Spark properties; they win over the ones set here. A ``spark://`` cluster's `SECRET_PROPERTY` is one of
        them; it is on no command line.
    verbose : bool
        Log at INFO, and leave the JVM's own words on the terminal.
    jvm : Jvm, optional
        Of `launch_jvm`, with the same arguments.

    Returns
    -------
    SparkSession
        The time zone is UTC.

    Raises
    ------
    DependencyError
        Java is missing or too old.
    SettingsError
        The master is a cluster that makes up no secret, and ``conf`` has none.
    JobError
        Spark did not start; the message has the line of its own that says why, and where the others are.
    """
    options = SessionOptions(app_name, log_folder, master, driver_memory, jars, java_options, conf or {}, verbose)
    return start_with(options, jvm)


def start_with(options: SessionOptions, jvm: Jvm | None = None) -> SparkSession:
    """Start Spark, or return the session that runs already, as `start_session` does with the same options.

    Parameters
    ----------
    options : SessionOptions
        Of the session.
    jvm : Jvm, optional
        Of `launch_jvm`, with the same options.

    Returns
    -------
    SparkSession
        See `start_session`, also for what is raised.
    """
    plan = _plan(options)
    before = jvm.printed_before if jvm is not None else plan.count_printed()
    try:
        with _console_to(plan.console), _same_interrupt_handler(), _own_address(plan.master):
            if jvm is not None and SparkContext._gateway is None:
                jvm.connect()
            return _create(plan.settings)
    except (PySparkException, Py4JError) as exc:
        printed = "" if plan.console is None else plan.console.read_bytes()[before:].decode(errors="replace")
        where = "" if plan.console is None else f"; all that Spark said is in {plan.console} and beside it"
        cause = _find_cause("\n".join((printed, str(exc))))
        msg = f"Spark did not start with the master {plan.master}: {cause}{where}"
        raise JobError(msg) from exc


def launch_jvm(options: SessionOptions) -> Jvm | None:
    """Launch the JVM of a session that `start_with` will start with the same options, and return at once.

    Parameters
    ----------
    options : SessionOptions
        Of the session.

    Returns
    -------
    Jvm or None
        None where this process has a JVM already.

    Raises
    ------
    DependencyError, SettingsError
        See `start_session`.
    """
    plan = _plan(options)
    if SparkContext._gateway is not None:
        return None
    with _own_address(plan.master):
        public = {name: value for name, value in plan.settings.items() if name != SECRET_PROPERTY}
        return Jvm(public, os.environ, plan.console)


@dataclass(frozen=True)
class _Plan:
    """A session's properties, and the file that its JVM prints to."""

    settings: Mapping[str, str]
    console: Path | None

    @property
    def master(self) -> str:
        return self.settings["spark.master"]

    def count_printed(self) -> int:
        return self.console.stat().st_size if self.console is not None and self.console.is_file() else 0


def _plan(options: SessionOptions) -> _Plan:
    master = options.conf.get("spark.master", options.master)
    protection = {**protect(master), **options.conf}
    _check_secret(master, protection)
    find_java()
    options.log_folder.mkdir(parents=True, exist_ok=True)
    # Workers must run this very interpreter, whatever "python3" means on the search path.
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    settings = {
        "spark.master": master,
        "spark.app.name": options.app_name,
        "spark.driver.memory": options.driver_memory,
        **_BASE_CONF,
        **_jvm_conf(options),
        **_jar_conf(master, options.jars),
        **protection,
    }
    return _Plan(settings, None if options.verbose else options.log_folder / "spark-console.log")


def find_session() -> SparkSession:
    """Return the session that runs; where none does, start the one that Spark's own configuration describes.

    Where that is a local one, its ports are on 127.0.0.1 as those of `start_session` are, unless the configuration says
    otherwise.
    """
    running = SparkSession.getActiveSession()
    if running is not None:
        return running
    builder = SparkSession.builder
    if SparkContext._active_spark_context is None and "SPARK_REMOTE" not in os.environ:
        SparkContext._ensure_initialized()  # its JVM has read the configuration
        found = SparkConf()
        master = found.get("spark.master", "local[*]")
        if _is_local(master):
            builder = builder.config(map={"spark.ui.enabled": "false", **protect(master), **dict(found.getAll())})
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


def protect(master: str) -> dict[str, str]:
    """Give the properties that keep others away from a session.

    Parameters
    ----------
    master : str
        As Spark names it.

    Returns
    -------
    dict of str to str
        By a local master the address of every port, too. What is shuffled through files is encrypted where there are
        several processes.
    """
    conf = dict(_AUTHENTICATION)
    if _is_local(master):
        conf |= {"spark.driver.host": _LOOPBACK, "spark.driver.bindAddress": _LOOPBACK}
    if not is_one_process(master):
        conf["spark.io.encryption.enabled"] = "true"
    if master.startswith("local-cluster["):
        conf[SECRET_PROPERTY] = secrets.token_hex(32)
    return conf


def is_one_process(master: str) -> bool:
    """Tell whether driver and workers' JVM are one process by this master."""
    return re.fullmatch(r"local(\[.*\])?", master) is not None


def _is_local(master: str) -> bool:
    return is_one_process(master) or master.startswith("local-cluster[")


def _check_secret(master: str, conf: Mapping[str, str]) -> None:
    """Refuse a cluster without a secret; YARN and Kubernetes have Spark make up one for each application."""
    makes_its_own = is_one_process(master) or master == "yarn" or master.startswith("k8s://")
    if makes_its_own or conf["spark.authenticate"] != "true" or conf.get(SECRET_PROPERTY):
        return
    msg = (
        f"XRAY_SPARK__SECRET is not set, and the Spark cluster {master} needs it: without a secret whoever reaches its "
        "ports runs code there. Give its master and workers a spark.authenticate.secret, and XRAY_SPARK__SECRET the "
        "same value; docs/operating.md has the other properties"
    )
    raise SettingsError(msg)


@contextmanager
def _own_address(master: str) -> Iterator[None]:
    """Let the JVM of a local master take this machine for 127.0.0.1, whatever the environment calls it.

    The driver goes by its properties. The processes of ``local-cluster`` and Spark's page know these variables only.
    """
    if not _is_local(master):
        yield
        return
    saved = {name: os.environ.pop(name, None) for name in _ADDRESS_VARIABLES}
    os.environ["SPARK_LOCAL_IP"] = _LOOPBACK
    try:
        yield
    finally:
        del os.environ["SPARK_LOCAL_IP"]
        os.environ.update({name: value for name, value in saved.items() if value is not None})


def _create(settings: Mapping[str, str]) -> SparkSession:
    if SECRET_PROPERTY in settings:
        # pyspark writes every property on the JVM's command line, which any user of this machine can read. So the JVM
        # starts without this one, and is told it afterwards.
        others = {name: value for name, value in settings.items() if name != SECRET_PROPERTY}
        SparkContext._ensure_initialized(conf=SparkConf().setAll(list(others.items())))
    return SparkSession.builder.config(map=dict(settings)).getOrCreate()


def _find_cause(text: str) -> str:
    """Give the line that says what is wrong: Java puts the name of an error in front of it."""
    found = re.search(r"(?:[\w$]+\.)+\w*(?:Exception|Error): (.+)", text)
    return found[1].strip() if found else next((line for line in text.splitlines() if line.strip()), "it said nothing")


def _jvm_conf(options: SessionOptions) -> dict[str, str]:
    config = files("sparkdl.spark") / "log4j2.properties"
    level = "INFO" if options.verbose else "WARN"
    logging = f'-Dlog4j2.configurationFile="{config}" -Dxray.log.dir="{options.log_folder}" -Dxray.log.level={level}'
    return {"spark.driver.extraJavaOptions": " ".join([logging, *options.java_options])}


def _jar_conf(master: str, jars: Sequence[Path]) -> dict[str, str]:
    """In one process the class path will do; a cluster's executors must be sent the files."""
    if not jars:
        return {}
    if is_one_process(master):
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
