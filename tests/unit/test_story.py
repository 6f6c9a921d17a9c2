"""After a failure the rest of a story is skipped, so that a broken one costs no minutes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.slow

MODULE = """
import pytest
{mark}
def test_the_first(): pass
def test_the_second(): {second}
def test_the_third(): pass
"""


def run(folder: Path, *, mark: str, second: str) -> str:
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = story\n", encoding="utf-8")
    (folder / "test_it.py").write_text(MODULE.format(mark=mark, second=second), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "tests.story", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def test_the_rest_of_a_story_is_skipped_and_says_why(tmp_path: Path) -> None:
    said = run(tmp_path, mark="pytestmark = pytest.mark.story", second="assert False")
    assert "1 failed, 1 passed, 1 skipped" in said
    assert "test_the_second has failed" in said


def test_other_modules_go_on(tmp_path: Path) -> None:
    assert "1 failed, 2 passed" in run(tmp_path, mark="", second="assert False")


def test_a_skipped_test_ends_no_story(tmp_path: Path) -> None:
    said = run(tmp_path, mark="pytestmark = pytest.mark.story", second="pytest.skip('not here')")
    assert "2 passed, 1 skipped" in said
