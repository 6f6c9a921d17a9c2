"""What is listed is what the locks name."""

import hashlib
import re
from pathlib import Path

import pytest

from streaming.run.jars import KAFKA_JARS, SPARK_JARS
from tests.paths import ROOT
from tools.components import SCRIPTS, Component, list_components, read_lock

LISTED = list_components()


def test_a_lock_is_read_with_markers_and_hashes(tmp_path: Path) -> None:
    one, two = "1" * 64, "2" * 64
    lock = tmp_path / "some.lock"
    lock.write_text(
        "# made by make lock\n"
        f"colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:{one} \\\n    --hash=sha256:{two}\n"
        f"numpy==2.4.6 ; python_full_version < '3.12' \\\n    --hash=sha256:{one}\n"
    )
    assert read_lock(lock, is_shipped=True) == [
        Component("pypi", "colorama", "0.4.6", "some", True, files=(("", one), ("", two))),
        Component("pypi", "numpy", "2.4.6", "some", True, files=(("", one),)),
    ]


def test_a_package_without_a_hash_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "some.lock"
    lock.write_text(f"one==1\ntwo==2 \\\n    --hash=sha256:{'2' * 64}\n")
    with pytest.raises(ValueError, match=r"some\.lock: one 1 has no hash"):
        read_lock(lock, is_shipped=True)


def test_every_line_of_every_lock_is_listed() -> None:
    wanted = {
        pin
        for lock in (ROOT / "locks").glob("*.lock")
        for pin in re.findall(r"^([^\s#=]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {(one.name, one.version) for one in LISTED if one.kind == "pypi"} == wanted


def test_what_users_get_is_told_from_what_tests_use() -> None:
    shipped = {one.name: one.is_shipped for one in LISTED}
    assert (shipped["pyspark"], shipped["kafka-clients"], shipped["uplot"]) == (True, True, True)
    assert (shipped["pytest"], shipped["uv"], shipped["kafkajs"]) == (False, False, False)
    assert {one.used_in for one in LISTED if one.kind == "maven"} == {SPARK_JARS.name, KAFKA_JARS.name}


def test_scripts_of_others_are_the_files_that_are_listed() -> None:
    """Each was compared with its package on npm's registry when it was listed."""
    listed = dict(file for one in LISTED if one.kind == "npm" for file in one.files)
    folder = ROOT / SCRIPTS
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    assert {name: digest for name, digest in found.items() if not name.endswith("-LICENSE.txt")} == listed
