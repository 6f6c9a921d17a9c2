"""Fetches what must come from Maven Central, all sets at once, and makes what starts are quick by."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from streaming.run.jars import KAFKA_JARS, SPARK_JARS, JarSet, resolve_jars
from streaming.run.session import find_shared_classes
from streaming.settings import StreamSettings


def fetch_jars(folder: Path) -> dict[str, int]:
    """Resolve every set of jars.

    Side by side: a resolve waits for the line, not for the processor.

    Returns
    -------
    dict of str to int
        Number of jars by set.

    Raises
    ------
    DependencyError
        Java is missing, or Maven Central did not answer as wanted.
    """

    def count(jars: JarSet) -> tuple[str, int]:
        return jars.name, len(resolve_jars(jars, folder))

    with ThreadPoolExecutor() as pool:
        return dict(pool.map(count, (SPARK_JARS, KAFKA_JARS)))


def share_classes(settings: StreamSettings) -> bool:
    """Make Java's classes ready for all starts of the stream, where they are not; return whether they are now.

    Raises
    ------
    DependencyError
        Java is missing.
    """
    classes = find_shared_classes(settings)
    return classes is not None and (classes.path.is_file() or classes.make())
