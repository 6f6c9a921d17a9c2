"""Jars are those that are locked, or none."""

import hashlib
import re
from pathlib import Path

import pytest

from schemas.errors import DependencyError
from streaming.run.jars import KAFKA_JARS, SPARK_JARS, JarSet, LockedJar, check_jars, read_jar_lock, resolve_jars
from streaming.settings import load_settings


def locked(file: str, content: bytes) -> LockedJar:
    return LockedJar("org.example", "one", "1", file, hashlib.sha256(content).hexdigest(), ("MIT",))


def test_what_is_locked_is_taken(tmp_path: Path) -> None:
    (tmp_path / "one-1.jar").write_bytes(b"one")
    check_jars(tmp_path, [locked("one-1.jar", b"one")])


@pytest.mark.parametrize(
    ("present", "wanted", "said"),
    [
        ({"one-1.jar": b"other"}, {"one-1.jar": b"one"}, r"1 of 1 jars.*one-1\.jar has SHA-256 \w{64}, wanted \w{64}"),
        ({"one-1.jar": b"one", "two-2.jar": b"two"}, {"one-1.jar": b"one"}, r"two-2\.jar .*wanted no such jar"),
        ({}, {"one-1.jar": b"one"}, r"one-1\.jar has SHA-256 none, for it did not come"),
    ],
    ids=["another", "one too many", "one too few"],
)  # fmt: skip
def test_what_is_not_locked_is_refused(
    tmp_path: Path, present: dict[str, bytes], wanted: dict[str, bytes], said: str
) -> None:
    for name, content in present.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DependencyError, match=said):
        check_jars(tmp_path, [locked(name, content) for name, content in wanted.items()])


def fetch_by_hand(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Stands for Maven Central, which a unit test does not reach."""

    def retrieve(jars: JarSet, scratch: Path, *, cache: Path) -> None:
        (scratch / "jars").mkdir()
        (scratch / "jars" / "one-1.jar").write_bytes(content)

    monkeypatch.setattr("streaming.run.jars._retrieve", retrieve)
    monkeypatch.setattr("streaming.run.jars.read_jar_lock", lambda: {"set-1": (locked("one-1.jar", b"one"),)})


@pytest.mark.parametrize(("name", "content"), [("set-1", b"changed"), ("set-2", b"one")])
def test_a_jar_that_was_changed_or_a_set_that_nobody_listed_never_looks_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    fetch_by_hand(monkeypatch, content)
    with pytest.raises(DependencyError, match="not the locked ones"):
        resolve_jars(JarSet(name, ("org.example:one:1",), is_locked=True), tmp_path)
    assert not (tmp_path / name).exists()


def test_a_jar_as_it_is_locked_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_by_hand(monkeypatch, b"one")
    found = resolve_jars(JarSet("set-1", ("org.example:one:1",), is_locked=True), tmp_path)
    assert [jar.name for jar in found] == ["one-1.jar"]


@pytest.mark.parametrize("jars", [SPARK_JARS, KAFKA_JARS], ids=lambda jars: jars.name)
def test_every_jar_of_the_product_is_locked(jars: JarSet) -> None:
    assert jars.is_locked
    listed = read_jar_lock()[jars.name]
    wanted = {tuple(coordinate.split(":")) for coordinate in jars.coordinates}
    assert wanted <= {(jar.organisation, jar.name, jar.version) for jar in listed}
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) and jar.licences for jar in listed)
    assert not {jar.organisation for jar in listed} & set(jars.excluded)
    folder = load_settings().jars_folder / jars.name
    if folder.is_dir():
        check_jars(folder, listed)
