"""Fetches what must come from Maven Central, all sets at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from streaming.run.jars import KAFKA_JARS, SPARK_JARS, JarSet, resolve_jars


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
