"""The file of Java's classes: what it is named by, and that nothing which goes wrong with it matters.

Java is a script.
"""

import stat
import subprocess
import threading
from pathlib import Path

import pytest

from streaming.run import sharedclasses
from streaming.run.sharedclasses import SharedClasses

_LAUNCHER = r"""case "$*" in *launcher.Main*) printf 'java\0-cp\0%s\0Main\0' "one.jar:two.jar"; exit 0;; esac"""
_WRITES = 'for word in "$@"; do case "$word" in -XX:SharedArchiveFile=*) echo made > "${word#*=}";; esac; done'


@pytest.fixture
def jars(tmp_path: Path) -> list[Path]:
    """Two jars of the stream's, and Spark's home with one."""
    spark = tmp_path / "spark" / "jars"
    spark.mkdir(parents=True)
    found = [tmp_path / "one.jar", tmp_path / "two.jar", spark / "spark.jar"]
    for jar in found:
        jar.write_bytes(b"jar")
    return found[:2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the file is kept."""
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


@pytest.fixture(autouse=True)
def java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Java that makes the file."""
    script = tmp_path / "java"
    monkeypatch.setattr(sharedclasses, "find_java", lambda: script)
    monkeypatch.setattr(sharedclasses, "describe_java", lambda: 'openjdk version "17"')
    monkeypatch.setattr(sharedclasses, "_find_spark_home", lambda: str(tmp_path / "spark"))
    behave(script, _WRITES)
    return script


def behave(java: Path, *lines: str) -> None:
    java.write_text("\n".join(("#!/bin/sh", _LAUNCHER, *lines)) + "\n", encoding="utf-8")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)


def test_without_the_file_java_has_no_option(folder: Path, jars: list[Path]) -> None:
    assert SharedClasses(folder, jars).java_options() == []


def test_a_file_that_is_made_is_used_and_checked(folder: Path, jars: list[Path]) -> None:
    shared = SharedClasses(folder, jars)
    assert shared.make()
    assert shared.path.read_text(encoding="utf-8") == "made\n"
    options = shared.java_options()
    assert f'"-XX:SharedArchiveFile={shared.path}"' in options
    assert {"-Xshare:auto", "-XX:+VerifySharedSpaces"} <= set(options)
    assert list(folder.iterdir()) == [shared.path]


def test_it_is_made_of_the_class_path_that_spark_has(folder: Path, jars: list[Path], java: Path) -> None:
    behave(java, 'echo "$@" > ' + str(folder.parent / "said"), _WRITES)
    SharedClasses(folder, jars).make()
    said = (folder.parent / "said").read_text(encoding="utf-8")
    assert "-Xshare:dump" in said
    assert "-cp one.jar:two.jar" in said


@pytest.mark.parametrize("change", ["java", "jar", "spark", "another"])
def test_what_it_depends_on_is_in_its_name(
    folder: Path, jars: list[Path], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    before = SharedClasses(folder, jars)
    before.make()
    if change == "java":
        monkeypatch.setattr(sharedclasses, "describe_java", lambda: 'openjdk version "21"')
    elif change == "another":
        jars = jars[:1]
    else:
        (jars[0] if change == "jar" else folder.parent / "spark" / "jars" / "spark.jar").write_bytes(b"a newer one")
    after = SharedClasses(folder, jars)
    assert after.path != before.path
    assert after.java_options() == []
    after.make()
    assert list(folder.iterdir()) == [after.path], "the former one is gone"


@pytest.mark.parametrize(
    "lines", [("exit 1",), ("kill -9 $$",), ("exit 0",)], ids=["fails", "is killed", "writes none"]
)
def test_a_java_that_cannot_make_it_leaves_nothing(
    folder: Path, jars: list[Path], java: Path, lines: tuple[str, ...]
) -> None:
    behave(java, *lines)
    shared = SharedClasses(folder, jars)
    assert not shared.make()
    assert shared.java_options() == []
    assert list(folder.iterdir()) == []


def test_a_failure_keeps_the_file_that_is_there(folder: Path, jars: list[Path], java: Path) -> None:
    shared = SharedClasses(folder, jars)
    shared.make()
    behave(java, "exit 1")
    assert SharedClasses(folder, jars).make()
    assert shared.path.read_text(encoding="utf-8") == "made\n"


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path, jars: list[Path]) -> None:
    assert not SharedClasses(tmp_path / "none", jars).make()


def test_a_launcher_that_fails_is_no_error(folder: Path, jars: list[Path], java: Path) -> None:
    java.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    assert not SharedClasses(folder, jars).make()


def test_what_is_begun_in_the_background_ends_with_the_stream(
    folder: Path, jars: list[Path], java: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    popen = subprocess.Popen
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], **options: object) -> object:
        process = popen(command, **options)  # type: ignore[call-overload]
        if "-Xshare:dump" in command:
            started.append(process)
            begun.set()
        return process

    behave(java, "exec sleep 600")
    monkeypatch.setattr(sharedclasses.subprocess, "Popen", start)
    shared = SharedClasses(folder, jars)
    shared.start_making()
    assert begun.wait(30)
    shared.stop()
    assert started[0].poll() is not None
    assert list(folder.iterdir()) == []


def test_a_file_that_is_there_is_not_made_again(folder: Path, jars: list[Path], java: Path) -> None:
    shared = SharedClasses(folder, jars)
    shared.make()
    behave(java, "echo again > " + str(folder.parent / "again"))
    other = SharedClasses(folder, jars)
    other.start_making()
    other.stop()
    assert not (folder.parent / "again").exists()
