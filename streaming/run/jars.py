"""The jars that Spark's Kafka connector and the local broker are made of.

They come from Maven Central through the Ivy that pyspark ships, once, into one folder; later starts only look there.
Each must have the SHA-256 that ``jars.json`` has of it: Ivy itself only compares it with a checksum of the same server.
"""

import hashlib
import json
import logging
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from schemas.errors import DependencyError
from sparkdl.spark.java import find_java

log = logging.getLogger(__name__)

_RESOLVE_TIMEOUT_S = 600
"""A first resolve fetches about 55 MB; ten minutes is a slow line, not a stuck one."""


@dataclass(frozen=True)
class JarSet:
    """Artifacts that are resolved together.

    Parameters
    ----------
    name : str
        Folder name; it holds the versions, so that another version never meets this one's jars.
    coordinates : tuple of str
        ``organisation:name:revision``.
    excluded : tuple of str
        Organisations whose jars are left out.
    is_locked : bool
        Every jar must be in ``jars.json``, with its hash, and no other may come.
    """

    name: str
    coordinates: tuple[str, ...]
    excluded: tuple[str, ...] = ()
    is_locked: bool = False


@dataclass(frozen=True)
class LockedJar:
    """A jar that may be fetched.

    Parameters
    ----------
    organisation, name, version : str
        What it is on Maven Central.
    file : str
        Name of its file.
    sha256 : str
        Of the file, in hexadecimal.
    licences : tuple of str
        As its authors name them; any of several may be chosen.
    """

    organisation: str
    name: str
    version: str
    file: str
    sha256: str
    licences: tuple[str, ...]


SPARK_JARS = JarSet(
    name="spark-4.2.0",
    coordinates=("org.apache.spark:spark-sql-kafka-0-10_2.13:4.2.0",),
    # pyspark brings these itself, in the versions it was tested with.
    excluded=(
        "org.apache.hadoop",
        "org.apache.parquet",
        "org.scala-lang",
        "org.scala-lang.modules",
        "org.apache.logging.log4j",
        "org.slf4j",
        "com.fasterxml.jackson.core",
        "com.fasterxml.jackson.datatype",
        "com.github.luben",
        "org.xerial.snappy",
        "org.roaringbitmap",
        "io.airlift",
        "org.lz4",
        "at.yawk.lz4",
    ),
    is_locked=True,
)
KAFKA_JARS = JarSet(name="kafka-4.4.0", coordinates=("org.apache.kafka:kafka_2.13:4.4.0",), is_locked=True)


def resolve_jars(jars: JarSet, folder: Path) -> list[Path]:
    """Return the jars of a set, fetching them the first time.

    Parameters
    ----------
    jars : JarSet
        What is wanted.
    folder : Path
        Where all sets are kept.

    Returns
    -------
    list of Path
        The jar files, sorted.

    Raises
    ------
    DependencyError
        Java is missing, Maven Central did not answer as wanted, or a jar is not the one that is locked.
    """
    target = folder / jars.name
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        # Retrieved beside the target and renamed, so that a broken download never looks complete.
        with TemporaryDirectory(dir=folder, prefix=".resolving-") as scratch:
            _retrieve(jars, Path(scratch), cache=folder / "ivy-cache" / jars.name)
            if jars.is_locked:
                check_jars(Path(scratch) / "jars", read_jar_lock().get(jars.name, ()))
            _publish(Path(scratch) / "jars", target)
    return sorted(target.glob("*.jar"))


def read_jar_lock() -> dict[str, tuple[LockedJar, ...]]:
    """Read ``jars.json``: the jars of each locked set, by the set's name."""
    listed = json.loads((files("streaming.run") / "jars.json").read_text(encoding="utf-8"))
    return {
        name: tuple(LockedJar(**{**jar, "licences": tuple(jar["licences"])}) for jar in jars)
        for name, jars in listed.items()
    }


def check_jars(folder: Path, locked: Iterable[LockedJar]) -> None:
    """Hold fetched jars against what is locked.

    Parameters
    ----------
    folder : Path
        Holds the fetched jars.
    locked : iterable of LockedJar
        What must be there, and nothing else.

    Raises
    ------
    DependencyError
        A jar is missing, is none of the locked ones, or has another SHA-256.
    """
    wanted = {jar.file: jar.sha256 for jar in locked}
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in folder.glob("*.jar")}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        msg = (
            f"{len(wrong)} of {len(found)} jars from Maven Central are not the locked ones, and none is used: {name} "
            f"has SHA-256 {found.get(name, 'none, for it did not come')}, wanted {wanted.get(name, 'no such jar')}. "
            f"Remove the folder ivy-cache beside them and try again; if it says so again, trust that server no more"
        )
        raise DependencyError(msg)


def _publish(fetched: Path, target: Path) -> None:
    try:
        fetched.rename(target)
    except OSError:
        # Another process finished the same resolve first; its jars are the same ones.
        if not target.is_dir():
            raise


def _retrieve(jars: JarSet, scratch: Path, *, cache: Path) -> None:
    module = scratch / "ivy.xml"
    module.write_text(_module_xml(jars), encoding="utf-8")
    with as_file(files("streaming.run") / "ivysettings.xml") as settings:
        command = [str(find_java()), f"-Dxray.ivy.cache={cache}", "-jar", str(_ivy_jar())]
        command += ["-settings", str(settings), "-ivy", str(module), "-confs", "default", "-types", "jar", "bundle"]
        command += ["-retrieve", f"{scratch}/jars/[artifact]-[revision](-[classifier]).[ext]", "-warn"]
        log.info("fetching %s from Maven Central", ", ".join(jars.coordinates))
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_RESOLVE_TIMEOUT_S, check=False)  # noqa: S603
    if answer.returncode != 0:
        tail = "\n".join((answer.stdout + answer.stderr).strip().splitlines()[-15:])
        msg = f"could not fetch {', '.join(jars.coordinates)} from Maven Central; is it reachable from here?\n{tail}"
        raise DependencyError(msg)


def _module_xml(jars: JarSet) -> str:
    wanted = []
    for coordinate in jars.coordinates:
        organisation, name, revision = coordinate.split(":")
        wanted.append(f'<dependency org="{organisation}" name="{name}" rev="{revision}" conf="default->default"/>')
    excluded = [f'<exclude org="{organisation}"/>' for organisation in jars.excluded]
    body = "\n".join(wanted + excluded)
    return (
        f'<ivy-module version="2.0"><info organisation="xray" module="{jars.name}"/>'
        f'<configurations><conf name="default"/></configurations><dependencies>{body}</dependencies></ivy-module>'
    )


def _ivy_jar() -> Path:
    """Find the Ivy inside pyspark, found without importing pyspark."""
    spec = find_spec("pyspark")
    if spec is None or spec.origin is None:
        msg = "pyspark is not installed; run 'pip install xray-stream'"
        raise DependencyError(msg)
    found = sorted((Path(spec.origin).parent / "jars").glob("ivy-*.jar"))
    if not found:
        msg = f"no ivy-*.jar beside {spec.origin}; reinstall pyspark 4.2.0"
        raise DependencyError(msg)
    return found[-1]
