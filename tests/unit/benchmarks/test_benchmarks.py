"""The benchmarks start, and say what they take."""

import json
import subprocess
import sys
from functools import partial

import pytest

from benchmarks import decoding
from benchmarks.featurize import Result, summarize
from tests.paths import ROOT

_NAMES = ["decoding", "featurize", "fuzz", "gateway", "latency", "peers", "precision", "starting", "throughput"]


_ASK_ALL = """
import contextlib, io, json, runpy, sys

told = {}
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        except SystemExit as exc:
            told[name] = exc.code, said.getvalue()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict[str, tuple[int, str]]:
    """What each benchmark says to --help, and its exit code; all in one process, for they import much the same."""
    command = [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-c", _ASK_ALL, *_NAMES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.slow
def test_help_names_the_options(name: str, told: dict[str, tuple[int, str]]) -> None:
    code, text = told[name]
    assert code == 0
    assert "--json" in text


def test_ratios_are_taken_within_a_round() -> None:
    tensorflow = Result("TensorFlow", "fp32", rates=[2.0, 4.0])
    ours = Result("ours", "fp32", rates=[8.0, 20.0], bare_rates=[10.0, 20.0])
    summarize([ours, tensorflow], tensorflow)
    assert (ours.img_s, ours.of_bare, ours.of_tensorflow) == (14.0, 0.9, 4.5)
    assert (tensorflow.img_s, tensorflow.of_bare, tensorflow.of_tensorflow) == (3.0, None, None)


def test_a_party_that_was_not_measured_has_no_ratio() -> None:
    tensorflow = Result("TensorFlow", "fp32", note="not installed")
    ours = Result("ours", "fp32", rates=[8.0], bare_rates=[10.0])
    summarize([ours, tensorflow], tensorflow)
    assert (ours.of_bare, ours.of_tensorflow, tensorflow.img_s) == (0.8, None, None)


def test_our_time_is_compared_within_a_turn() -> None:
    """The machine is half as fast in the second turn: the ratio does not see it, medians over both would."""
    seconds = {"decode_image": iter([9, 0.010, 0.020, 0.030]), "Pillow": iter([9, 0.020, 0.040, 0.040])}
    file = decoding.File("PNG", {name: partial(next, values) for name, values in seconds.items()}, {"Pillow": 0.55})
    mine, others = decoding.measure(file, 3)
    assert (mine.way, mine.ms, mine.ratio, mine.aim) == ("decode_image", 20, 1, None)
    assert (others.way, others.ms, others.ratio, others.aim) == ("Pillow", 40, 0.5, 0.55)
