"""Fuzzing tells what became of each file, makes finds small, and the decoders hold against it."""

import json
import os
import random
import subprocess
import sys
import zlib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.fuzz.__main__ import choose_kinds
from benchmarks.fuzz.bombs import BOMB_LIMITS, build_bombs
from benchmarks.fuzz.finds import shrink
from benchmarks.fuzz.formats import Map, map_png, mend_png
from benchmarks.fuzz.guided import GUIDED
from benchmarks.fuzz.hunt import Hunt
from benchmarks.fuzz.jail import Jail, Limits, Outcome, name_place
from benchmarks.fuzz.kinds import KEPT, KINDS, SECRET
from benchmarks.fuzz.mutation import mutate
from benchmarks.fuzz.report import Tally, draw_table
from schemas.errors import Reason
from tests import testimages
from tests.paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").is_file(), reason="how much memory a file takes is read from /proc"
    ),
]

REFUSED = {"png": "multi_frame", "jpeg": "unsupported_color", "j2k": "dicom_corrupt", "htj2k": "dicom_corrupt"}
"""Of the whole files of a kind one is refused: an animation, CMYK, colour in DICOM. It is damaged all the same."""


@pytest.fixture(scope="module")
def jail():
    with Jail() as jail:
        yield jail


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_every_whole_file_has_numbers_and_pieces_to_damage(name):
    kind = KINDS[name]
    for payload in kind.build():
        found = kind.map(payload)
        assert len(found.numbers) >= 10
        assert len(found.pieces) >= 2
        assert all(0 <= number.offset <= len(payload) - number.width for number in found.numbers[:3])


@pytest.mark.parametrize("name", KINDS)
def test_the_same_seed_damages_in_the_same_way_and_another_in_another(name):
    kind = KINDS[name]
    drawn = [[kind.draw(random.Random(f"{seed} {n}")) for n in range(20)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sum(payload not in kind.seeds() for payload in drawn[0]) >= 15


@pytest.mark.parametrize("name", KINDS)
def test_a_map_of_anything_can_be_drawn(name):
    rng = random.Random(name)
    for size in (0, 1, 7, 200):
        noise = rng.randbytes(size)
        assert isinstance(KINDS[name].map(noise), Map)
        assert isinstance(KINDS[name].damage(noise, rng), bytes)


def test_numbers_move_to_borders_and_by_little():
    found = Map()
    found.add(0, "2")
    values = Counter(
        int.from_bytes(mutate(b"\1\0", found, [b"xx"], SECRET, random.Random(n))[:2], "big") for n in range(3000)
    )
    assert all(values[value] for value in (0, 1, 255, 257, 264, 0xFFFF, 0x8000, 128, 512))


def test_a_damaged_png_has_good_sums():
    damaged = bytearray(testimages.png())
    damaged[20] ^= 1
    damaged[60] ^= 1
    mended = mend_png(bytes(damaged))
    assert mended != bytes(damaged)
    for start, end in map_png(mended).pieces:
        assert zlib.crc32(mended[start + 4 : end - 4]) == int.from_bytes(mended[end - 4 : end], "big")


# --- jail -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_whole_files_are_images(name, jail):
    outcomes = [jail.decode(payload, name, Limits()) for payload in KINDS[name].build()]
    refused = [outcome.detail for outcome in outcomes if outcome.kind == "refused"]
    assert refused == ([REFUSED[name]] if name in REFUSED else [])
    assert len(outcomes) - len(refused) == sum(outcome.kind == "image" for outcome in outcomes) >= 3


@pytest.fixture(scope="module")
def faulty_jail():
    with Jail([sys.executable, str(Path(__file__).with_name("faultychild.py"))]) as jail:
        yield jail


@pytest.mark.parametrize(
    ("what", "kind", "detail"),
    [
        ("die", "died", "SIGSEGV"),
        ("exit", "died", "exit code 3"),
        ("count", "slow", "more time than the limit"),
        ("fill", "memory", "more than the limit (image)"),
        ("ask", "memory", "more addresses than the limit"),
        ("escape", "escaped", "KeyError"),
        ("drop", "dropped", "KeyError"),
        ("quote", "quotes", "corrupt_image"),
        ("vary", "differs", "two images of the same bytes"),
        ("short", "no image", "the row contradicts itself"),
        ("large", "no image", "more pixels than the limits allow"),
        ("resize", "no image", "another size than was asked for"),
        ("be good", "image", ""),
    ],
)
def test_each_fault_is_told(what, kind, detail, faulty_jail):
    outcome = faulty_jail.decode(what.encode(), "jpeg", Limits(max_seconds=1))
    assert (outcome.kind, outcome.detail) == (kind, detail)
    assert outcome.is_find == (kind != "image")


def test_what_a_file_cost_is_told(faulty_jail):
    outcome = faulty_jail.decode(b"fill", "jpeg", Limits(max_memory_mb=500))
    assert outcome.kind == "image"
    assert 95 < outcome.memory_mb < 200


def test_a_child_that_does_not_start_is_no_find():
    with (
        Jail([sys.executable, "-c", "import sys; sys.exit('no child')"]) as jail,
        pytest.raises(RuntimeError, match="no child"),
    ):
        jail.decode(b"", "png", Limits())


OUTERMOST_FIRST = """Traceback (most recent call last):
  File "/a/sparkdl/image/decode.py", line 1, in decode_image
  File "/a/sparkdl/image/png.py", line 2, in _walk
  File "/a/zlib.py", line 3, in crc32
"""
INNERMOST_FIRST = """Current thread 0x1 (most recent call first):
  File "/a/sparkdl/image/codecs.py", line 5 in _decode
  File "/a/sparkdl/image/dicom.py", line 6 in render_dicom
"""


@pytest.mark.parametrize(
    ("trace", "place"),
    [(OUTERMOST_FIRST, "image/png.py _walk"), (INNERMOST_FIRST, "image/codecs.py _decode"), ("", "nowhere")],
)
def test_a_find_is_named_by_the_innermost_place_of_the_product(trace, place):
    assert name_place(trace) == place


# --- finds ------------------------------------------------------------------------------------------------------------


def test_a_find_is_made_small():
    tried = []

    def is_same(payload):
        tried.append(payload)
        return b"X" in payload and b"Y" in payload

    assert shrink(b"a" * 500 + b"X" + b"b" * 300 + b"Y" + b"c" * 200, KINDS["jpeg"], is_same) == b"XY"
    assert len(tried) < 200


def test_a_find_is_kept_once_and_counted(faulty_jail, tmp_path):
    said = []
    hunt = Hunt(faulty_jail, 7, tmp_path, said.append)
    tally = Tally()
    for what in (b"escape", b"be good", b"escape", b"escape"):
        hunt.try_file(what, KINDS["jpeg"], tally)
    ((signature, find),) = tally.finds.items()
    assert (signature, find.times, find.payload) == ("escaped: KeyError, nowhere", 3, b"escape")
    assert find.path.read_bytes() == b"escape"
    assert find.path.parent == tmp_path / "jpeg"
    assert "seed 7" in find.path.with_suffix(".txt").read_text()
    assert (tally.inputs, tally.images) == (4, 1)
    assert len(said) == 2
    assert tally.to_dict()["finds"][0]["times"] == 3
    assert draw_table({"jpeg": tally}).row_count == 1


class OnceSlow:
    """A double of the jail, on a machine that has other work at the first try of each file."""

    def __init__(self):
        self.tried = []

    def decode(self, payload, kind, limits):
        self.tried.append(payload)
        is_slow = payload == b"slow" or self.tried.count(payload) == 1
        return Outcome("slow", "more time than the limit") if is_slow else Outcome("image", "")


def test_what_was_slow_once_is_no_find(tmp_path):
    hunt, tally = Hunt(OnceSlow(), 7, tmp_path, lambda text: None), Tally()
    hunt.try_file(b"a large file", KINDS["jpeg"], tally)
    assert (tally.inputs, tally.images, tally.finds) == (1, 1, {})
    hunt.try_file(b"slow", KINDS["jpeg"], tally)
    assert [find.outcome.kind for find in tally.finds.values()] == ["slow"]


@pytest.mark.parametrize("path", sorted(KEPT.glob("*/*")), ids=lambda path: f"{path.parent.name} {path.name}")
def test_finds_of_the_past_are_none_any_more(path, jail):
    kind = KINDS[path.parent.name]
    outcome = jail.decode(path.read_bytes(), kind.name, Limits(max_seconds=kind.max_seconds))
    assert not outcome.is_find, outcome


CHEAP = (
    "1000 sequences deep",
    "a million elements",
    "a million items",
    "a million fragments",
    "4 GB",
    "a million values",
)


@pytest.mark.parametrize(
    ("name", "bomb"), [("dicom", bomb) for bomb in build_bombs("dicom") if any(word in bomb for word in CHEAP)]
)
def test_cheap_bombs_cost_little(name, bomb, jail):
    outcome = jail.decode(build_bombs(name)[bomb](), name, BOMB_LIMITS)
    assert not outcome.is_find, outcome
    assert outcome.kind == "image" or outcome.detail in set(Reason)


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.fuzz", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600, check=False)


def test_a_few_seconds_of_it(tmp_path):
    done = run("--seconds", "2", "--no-bombs", "--seed", "1", "--json", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert list(found["decoders"]) == list(KINDS)
    assert all(each["inputs"] > 0 and each["reasons"] for each in found["decoders"].values())
    assert not list(tmp_path.iterdir())


def test_one_file_again():
    path = next(KEPT.glob("*/*"))
    done = run(str(path), "--json")
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["decoders"][path.parent.name]["inputs"] == 1


@pytest.mark.long
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed")
def test_a_few_seconds_by_what_code_is_reached(tmp_path):
    done = run("--guided", "--decoder", "dicom", "--seconds", "2", "--json", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["decoders"]["dicom"]["inputs"] > 100


def test_unknown_decoders_are_refused():
    assert [kind.name for kind in choose_kinds("png,rle", list(KINDS))] == ["png", "rle"]
    assert [kind.name for kind in choose_kinds("all", list(GUIDED))] == list(GUIDED)
    done = run("--decoder", "gif")
    assert done.returncode == 2
    assert "there are png, jpeg" in done.stderr.replace("\n", " ")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_half_a_minute_of_it(tmp_path):
    """Every decoder and every bomb, the same ones each time; how far it gets is up to the machine."""
    done = run("--seconds", "30", "--seed", "20260101", "--json", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(done.stdout)["decoders"]
    assert sum(each["inputs"] for each in found.values()) > 3000
    assert all(each["images"] for each in found.values())
