"""The list of Java's classes: what is joined to one, and that the one in the repository is of the pinned Spark."""

import gzip
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from zipfile import ZipFile

import pyspark
import pytest

from streaming.run.jars import SPARK_JARS
from streaming.settings import load_settings
from tools.classlist import OUT, join_lists

JAVAS_OWN = ("java/", "javax/", "jdk/", "sun/", "com/sun/", "org/ietf/", "org/w3c/", "org/xml/")
CONNECTORS = ("org/apache/kafka/", "org/apache/spark/sql/kafka010/", "org/apache/spark/kafka010/")
CONNECTORS_POOL = "org/apache/commons/pool2/"


@cache
def listed() -> frozenset[str]:
    """Classes of the list; a line that begins with @ names the one that a lambda is in."""
    words = [line.split() for line in gzip.decompress(OUT.read_bytes()).decode().splitlines()]
    lambdas = {line[1] for line in words if line[0] == "@lambda-proxy"}
    return frozenset({line[0] for line in words if not line[0].startswith("@")} | lambdas)


def classes_in(jars: Iterable[Path]) -> set[str]:
    found: set[str] = set()
    for jar in jars:
        with ZipFile(jar) as archive:
            found |= {name.removesuffix(".class") for name in archive.namelist() if name.endswith(".class")}
    return found


def test_the_classes_are_those_of_the_pinned_spark() -> None:
    jars = sorted((Path(pyspark.__file__).parent / "jars").glob("*.jar"))
    wanted = {name for name in listed() if not name.startswith((*JAVAS_OWN, *CONNECTORS, CONNECTORS_POOL))}
    assert len(wanted) > 10_000
    assert sorted(wanted - classes_in(jars)) == [], "python -m tools.classlist makes it anew"


def test_the_connectors_classes_are_those_of_its_pinned_version() -> None:
    jars = list((load_settings().jars_folder / SPARK_JARS.name).glob("*.jar"))
    if not jars:
        pytest.skip("the connector's jars are not fetched yet: xray prepare")
    wanted = {name for name in listed() if name.startswith((*CONNECTORS, CONNECTORS_POOL))}
    assert len(wanted) > 1000
    pyspark_jars = sorted((Path(pyspark.__file__).parent / "jars").glob("*.jar"))
    assert sorted(wanted - classes_in([*jars, *pyspark_jars])) == [], "python -m tools.classlist makes it anew"


def test_the_list_is_as_it_is_written() -> None:
    content = OUT.read_bytes()
    names = gzip.decompress(content)
    assert join_lists([names.decode()]) == names
    assert content[4:8] == bytes(4), "no time, so that the same classes are the same file"


@pytest.mark.parametrize(
    ("lists", "joined"),
    [
        (["b/B\na/A\n"], "a/A\nb/B\n"),
        (["a/A\nc/C\n", "b/B\na/A\n"], "a/A\nb/B\nc/C\n"),
        (["# NOTE: made by a JVM\n# another\na/A\n"], "a/A\n"),
        (["a/$Proxy12\na/A$Proxy\na/Proxy1\ncom/sun/proxy/$Proxy3\n"], "a/A$Proxy\na/Proxy1\n"),
        (["@lambda-proxy b/B run ()V\nb/B\n"], "@lambda-proxy b/B run ()V\nb/B\n"),
        (["@lambda-proxy b/$Proxy1 run ()V\nb/B\n"], "b/B\n"),
        (["b/A$B\nb/A\nb/AB\n"], "b/A\nb/A$B\nb/AB\n"),
    ],
)
def test_lists_are_joined(lists: list[str], joined: str) -> None:
    assert join_lists(lists).decode() == joined


@pytest.mark.parametrize("broken", ["", "a/A\nb/", "a/A\nb/B\n\nc"])
def test_a_list_that_breaks_off_is_refused(broken: str) -> None:
    with pytest.raises(ValueError, match="breaks off"):
        join_lists(["a/A\n", broken])


@pytest.mark.parametrize("word", ["org/apache/spark/sql/kafka010/", "org/apache/spark/sql/execution/streaming/"])
def test_a_stream_ran_when_it_was_made(word: str) -> None:
    assert sum(name.startswith(word) for name in listed()) > 20
