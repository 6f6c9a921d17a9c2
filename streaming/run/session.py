"""The stream's Spark session, and its JVM ahead of it: that takes a while, in which Kafka can be checked."""

from contextlib import suppress
from dataclasses import dataclass, replace

from pyspark.sql import SparkSession

from schemas.errors import DependencyError
from sparkdl.spark.jvm import Jvm
from sparkdl.spark.session import SessionOptions, is_one_process, launch_jvm, start_with
from streaming.folders import make_scratch
from streaming.run.jars import SPARK_JARS, resolve_jars
from streaming.run.sharedclasses import SharedClasses
from streaming.settings import StreamSettings


@dataclass(frozen=True)
class SessionStart:
    """How the stream's session is started, known before it is.

    Parameters
    ----------
    options : SessionOptions
        Of the session.
    classes : SharedClasses or None
        See `find_shared_classes`.
    jvm : Jvm or None
        Where it runs up already.
    """

    options: SessionOptions
    classes: SharedClasses | None
    jvm: Jvm | None = None

    def open(self) -> SparkSession:
        """Start Spark with the Kafka connector; see `sparkdl.spark.session.start_session`, also for what is raised."""
        return start_with(self.options, self.jvm)

    def end_jvm(self) -> None:
        """End the JVM, where there is one and no session was opened."""
        if self.jvm is not None:
            self.jvm.end()


def open_session(settings: StreamSettings, *, verbose: bool = False) -> SparkSession:
    """Start Spark with the Kafka connector.

    Parameters
    ----------
    settings : StreamSettings
        All settings.
    verbose : bool
        Leave Spark's own words on the terminal.

    Returns
    -------
    SparkSession
        See `sparkdl.spark.session.start_session`, also for what is raised.
    """
    return plan_start(settings, verbose=verbose).open()


def launch_ahead(settings: StreamSettings, *, verbose: bool = False) -> SessionStart | None:
    """Launch the JVM of a session, and return at once; None where it is not the time for that.

    That is where something about it is missing or wrong: `plan_start` says so, after what is checked before it. The
    JVM does nothing until the session is opened. Whoever opens none ends it, with `SessionStart.end_jvm`.
    """
    fetched = (settings.jars_folder / SPARK_JARS.name).is_dir()
    if not fetched or not is_one_process(settings.spark.master):
        return None
    with suppress(DependencyError, OSError):
        start = plan_start(settings, verbose=verbose)
        return replace(start, jvm=launch_jvm(start.options))
    return None


def find_shared_classes(settings: StreamSettings) -> SharedClasses | None:
    """Give the file of Java's classes that fits the stream's session; None by a cluster, whose jars are sent to it.

    Raises
    ------
    DependencyError
        Java or the jars cannot be found.
    """
    if not is_one_process(settings.spark.master):
        return None
    return SharedClasses(settings.jars_folder, resolve_jars(SPARK_JARS, settings.jars_folder))


def plan_start(settings: StreamSettings, *, verbose: bool = False) -> SessionStart:
    """Find what the stream's session is started with.

    Raises
    ------
    DependencyError
        Java or the jars cannot be found.
    """
    shared = find_shared_classes(settings)
    options = SessionOptions(
        app_name="xray-stream",
        log_folder=settings.logs_folder,
        master=settings.spark.master,
        driver_memory=settings.spark.driver_memory,
        jars=resolve_jars(SPARK_JARS, settings.jars_folder),
        java_options=[
            *_java_options(settings.spark.driver_memory),
            *([] if shared is None else shared.java_options()),
        ],
        conf={
            **settings.spark.to_conf(),
            # Beyond the end of a process that is killed, nothing of it stays in /tmp for everybody to read.
            "spark.local.dir": str(make_scratch(settings.scratch_folder)),
            **_CONF,
        },
        verbose=verbose,
    )
    return SessionStart(options, shared)


_CONF = {
    # Rows wait beside every Python stage in what this leaves, and go to disk beyond it. At Spark's 0.6 a
    # backlog of the largest messages fills the heap with rows that wait, and the JVM ends.
    "spark.memory.fraction": "0.1",
    # A task that is tried again publishes again. Let the batch fail instead: it is done again with what was
    # published left out. On one machine that is Spark's own way; a cluster's default is four.
    "spark.task.maxFailures": "1",
    # Nothing is shuffled, so to plan each micro-batch once more by what it found gains nothing.
    "spark.sql.adaptive.streaming.stateless.enabled": "false",
    # Every plan is written out as text, and kept, for a page that is off.
    "spark.sql.maxPlanStringLength": "1000",
    "spark.sql.ui.explainMode": "simple",
    "spark.sql.ui.retainedExecutions": "1",
    "spark.ui.retainedJobs": "1",
    "spark.ui.retainedStages": "1",
    # To generate code for each plan takes longer than its few rows take without.
    "spark.sql.codegen.wholeStage": "false",
    # How long an idle query rests before it asks Kafka for new images again. Each image waits half of it; at Spark's
    # 10 ms the asking takes 0.27 of a core day and night, at this 0.15, at 2 ms 0.53 (JVM and broker together).
    "spark.sql.streaming.pollingDelay": "20ms",
    # Imports what a worker needs before it forks them, so that it is imported once.
    "spark.python.daemon.module": "streaming.run.workerdaemon",
}


def _java_options(driver_memory: str) -> list[str]:
    """Tune the JVM for what it does here: it carries images past, while Python does the work on the same cores.

    Measured with EfficientNetLite0 on 2 cores, 600 images: 65 images a second without these options; 75 with one
    compiler and this collector, for the second compiler took a tenth of the machine for code that waits for Python; 84
    with the large young generation too: almost every byte is dead before it is full, and a small one copies what is
    still on its way.
    """
    size, unit = int(driver_memory[:-1]), driver_memory[-1]
    young_mb = size * (1024 if unit == "g" else 1) * 6 // 10
    # One compiler alone gets 48 MB of code cache, which Spark's generated code fills within a minute; the JVM then
    # stops compiling. 240 MB is what both together get.
    compiler = ["-XX:TieredStopAtLevel=1", "-XX:ReservedCodeCacheSize=240m"]
    collector = ["-XX:+UseParallelGC", f"-Xmn{young_mb}m", "-XX:-UseAdaptiveSizePolicy", "-XX:SurvivorRatio=8"]
    return [*compiler, *collector]
