"""Java's classes, made ready once for all later starts of the stream (class-data sharing).

A start loads some 18,000 classes. Read from their jars, checked and laid out each time, they take a quarter of the
processor's time until the first prediction. One file beside the jars holds them as the JVM lays them out, and is
mapped.

The file is good for one Java and one set of jars, which its name and the JVM both go by. It is never needed: where it
is missing, of another Java or damaged, the JVM loads its classes as ever.
"""

import gzip
import hashlib
import logging
import os
import subprocess
import threading
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from pyspark.find_spark_home import _find_spark_home

from sparkdl.spark.java import describe_java, find_java

log = logging.getLogger(__name__)

_CLASSES = "classes.lst.gz"
_SCALA = "2.13"
"""Spark's scripts tell its launcher which one pyspark's jars are for."""
_TIMEOUT_S = 600
"""To make the file takes half a minute of a processor; far more on one that is busy."""
_LOWEST_PRIORITY = 19
# The collector is G1 because no other writes Java's own objects to the file. The vector module is among the options of
# Spark's launcher, and the set of modules is a part of the file.
_DUMP = (
    *("-Xshare:dump", "-Xmx128m", "-XX:+UseG1GC", "-XX:TieredStopAtLevel=1"),
    *("-XX:+IgnoreUnrecognizedVMOptions", "--add-modules=jdk.incubator.vector"),
)


class SharedClasses:
    """The file for one set of jars and this machine's Java.

    Parameters
    ----------
    folder : Path
        Where it is kept.
    jars : sequence of Path
        What the class path has besides Spark's own jars.

    Raises
    ------
    DependencyError
        There is no Java.
    """

    def __init__(self, folder: Path, jars: Sequence[Path]) -> None:
        self._folder = folder
        self._jars = jars
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self.make, name="shared-classes", daemon=True)
        self.path = folder / f"classes-{self._key()}.jsa"

    def _key(self) -> str:
        """Name what the file depends on, so that one which fits no more is made anew."""
        found = hashlib.sha256(describe_java().encode() + _read_classes())
        for jar in (*self._jars, *sorted((Path(_find_spark_home()) / "jars").glob("*.jar"))):
            stat = jar.stat()
            # Whole seconds, as the JVM does: a container's layer keeps no more.
            found.update(f"{jar}\0{stat.st_size}\0{int(stat.st_mtime)}\0".encode())
        return found.hexdigest()[:16]

    def java_options(self) -> list[str]:
        """Give the JVM's options; none where the file is not there.

        It compares the file with its checksum: mapped unseen, one with a bad block ends the JVM.
        """
        if not self.path.is_file():
            return []
        return [f'"-XX:SharedArchiveFile={self.path}"', "-Xshare:auto", "-XX:+VerifySharedSpaces"]

    def start_making(self) -> None:
        """Make the file where there is none, in the background and behind everything else."""
        if not self.path.is_file():
            self._thread.start()

    def stop(self) -> None:
        """End what was begun; nothing of it stays."""
        self._ended.set()
        if self._process is not None:
            self._process.kill()
        if self._thread.is_alive():
            self._thread.join()

    def make(self) -> bool:
        """Make the file, in place of those that fit no more; return whether it is there.

        Where it cannot be made there is a line in the log, and no more: nothing needs it.
        """
        try:
            with TemporaryDirectory(dir=self._folder, prefix=".classes-") as scratch:
                made = self._dump(Path(scratch))
                if made is not None:
                    self._publish(made)
        except (OSError, subprocess.SubprocessError) as exc:
            log.info("Java's classes cannot be shared between starts: %s", exc)
        return self.path.is_file()

    def _dump(self, scratch: Path) -> Path | None:
        names, made = scratch / "classes.lst", scratch / "classes.jsa"
        names.write_bytes(_read_classes())
        where = [f"-XX:SharedClassListFile={names}", f"-XX:SharedArchiveFile={made}", "-cp", self._class_path()]
        if self._ended.is_set():
            return None
        self._process = subprocess.Popen(  # noqa: S603
            [str(find_java()), *_DUMP, *where],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for the stream, which ends this.
            process_group=0,
        )
        os.setpriority(os.PRIO_PROCESS, self._process.pid, _LOWEST_PRIORITY)
        code = self._process.wait(_TIMEOUT_S)
        if code != 0:
            log.info("Java's classes cannot be shared between starts: java -Xshare:dump ended with %s", code)
            return None
        return made

    def _publish(self, made: Path) -> None:
        with made.open("rb") as written:
            os.fsync(written.fileno())
        for former in self._folder.glob("classes-*.jsa"):
            former.unlink(missing_ok=True)
        made.rename(self.path)

    def _class_path(self) -> str:
        """Ask Spark's own launcher, which has its ways: the JVM refuses the file where one entry differs."""
        jars = ["--conf", f"spark.driver.extraClassPath={os.pathsep.join(map(str, self._jars))}"] if self._jars else []
        launcher = ["-cp", str(Path(_find_spark_home()) / "jars" / "*"), "org.apache.spark.launcher.Main"]
        command = [str(find_java()), *launcher, "org.apache.spark.deploy.SparkSubmit", *jars, "pyspark-shell"]
        environ = os.environ | {"SPARK_HOME": _find_spark_home(), "SPARK_SCALA_VERSION": _SCALA}
        said = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=True, env=environ).stdout  # noqa: S603
        words = said.decode().split("\0")
        return words[words.index("-cp") + 1]


def _read_classes() -> bytes:
    """Give the names of the classes, one a line: ``python -m tools.classlist`` writes them down."""
    return gzip.decompress((files("streaming.run") / _CLASSES).read_bytes())
