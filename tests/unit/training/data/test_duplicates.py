"""Copies are found, look-alikes are not, and a split with either on both sides is refused by name."""

import hashlib
import io
import pickle
import random
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.errors import DatasetError, LeakError
from training.data.duplicates import (
    HASH_BITS,
    MAX_DISTANCE,
    DuplicatePair,
    check_split,
    find_duplicates,
    hash_image,
    union_groups,
)
from training.features.decoding import examine_files
from xray.phantom import generate_radiograph

pytest.importorskip("scipy.fft", reason="needs the train extra (scipy)")

Pixels = np.ndarray


@pytest.fixture(scope="module")
def radiographs() -> list[Pixels]:
    findings = ("normal", "opacities")
    return [generate_radiograph(seed, finding=findings[seed % 2], height=320, width=272).pixels for seed in range(16)]


def _jpeg(pixels: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def _resized(pixels: Pixels, height: int, width: int) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _brightened(pixels: Pixels, gain: float, offset: float) -> Pixels:
    return np.clip(pixels.astype(np.float64) * gain + offset, 0, 255).astype(np.uint8)


_COPIES = {
    "jpeg": lambda pixels: _jpeg(pixels, 30),
    "smaller": lambda pixels: _resized(pixels, 160, 136),
    "square": lambda pixels: _resized(pixels, 224, 224),
    "brighter": lambda pixels: _brightened(pixels, 1, 20),
    "darker": lambda pixels: _brightened(pixels, 1, -20),
    "contrast": lambda pixels: _brightened(pixels, 1.15, -19),
    "gamma": lambda pixels: (255 * (pixels / 255) ** 1.25).astype(np.uint8),
    "colour": lambda pixels: np.repeat(pixels[..., None], 3, axis=2),
    "all": lambda pixels: _brightened(_jpeg(_resized(pixels, 200, 180), 50), 1.1, 8),
}


def _distance(first: int, second: int) -> int:
    return (first ^ second).bit_count()


@pytest.mark.parametrize("change", _COPIES)
def test_copies_are_near(radiographs: list[Pixels], change: str) -> None:
    distances = [_distance(hash_image(pixels), hash_image(_COPIES[change](pixels))) for pixels in radiographs]
    assert max(distances) <= MAX_DISTANCE * 0.75


def test_patients_are_far_apart(radiographs: list[Pixels]) -> None:
    hashes = [hash_image(pixels) for pixels in radiographs]
    assert min(_distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > MAX_DISTANCE * 1.25
    assert max(hashes) < 2**HASH_BITS


def test_a_picture_without_a_pattern_has_hash_zero() -> None:
    assert hash_image(np.full((70, 50), 17, np.uint8)) == 0
    assert hash_image(np.zeros((300, 200, 3), np.uint8)) == 0


def test_copies_among_radiographs_are_found_and_nothing_else(radiographs: list[Pixels]) -> None:
    pictures = [*radiographs, _COPIES["all"](radiographs[3]), _COPIES["jpeg"](radiographs[5])]
    pairs = find_duplicates([hash_image(pixels) for pixels in pictures], [f"i{n}" for n in range(18)])
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [("i3", "i16", "near"), ("i5", "i17", "near")]


def test_copies_among_files_are_found(tmp_path: Path, radiographs: list[Pixels]) -> None:
    Image.fromarray(radiographs[0]).save(tmp_path / "a.png")
    Image.fromarray(radiographs[0]).save(tmp_path / "b.jpeg", quality=60)
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    names = ["a.png", "b.jpeg", "c.png"]
    rows = examine_files([str(tmp_path / name) for name in names]).to_pylist()
    digests = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names]
    pairs = find_duplicates([int.from_bytes(row["picture"]) for row in rows], names, digests=digests)
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [
        ("a.png", "b.jpeg", "near"),
        ("a.png", "c.png", "exact"),
    ]
    assert pairs[1].distance == 0


# --- search


def _flipped(value: int, n_bits: int, rng: random.Random) -> int:
    for bit in rng.sample(range(HASH_BITS), n_bits):
        value ^= 1 << bit
    return value


def test_distance_limit_is_exact_across_blocks() -> None:
    rng = random.Random(1)
    hashes = [rng.getrandbits(HASH_BITS) for _ in range(5000)]  # more than one block
    hashes[4990] = _flipped(hashes[7], MAX_DISTANCE, rng)
    hashes[4991] = _flipped(hashes[8], MAX_DISTANCE + 1, rng)
    hashes[4992] = _flipped(hashes[4993], 1, rng)
    hashes[12] = hashes[4000]
    ids = [f"i{index}" for index in range(5000)]
    assert find_duplicates(hashes, ids) == (
        DuplicatePair("i7", "i4990", "near", MAX_DISTANCE),
        DuplicatePair("i12", "i4000", "near", 0),
        DuplicatePair("i4992", "i4993", "near", 1),
    )


def test_thousands_of_equal_pictures_make_no_square_of_pairs() -> None:
    started = time.perf_counter()
    pairs = find_duplicates([0] * 30_000, [str(index) for index in range(30_000)])
    assert len(pairs) == 29_999
    assert {pair.first for pair in pairs} == {"0"}
    assert time.perf_counter() - started < 5


def test_a_collection_of_look_alikes_is_refused() -> None:
    hashes = [1 << (bit % HASH_BITS) | 1 << (bit // HASH_BITS) for bit in range(HASH_BITS * 4)]
    with pytest.raises(DatasetError, match="pairs of images are the same picture"):
        find_duplicates(hashes, [str(index) for index in range(len(hashes))])


def test_mistakes_of_the_program_are_refused() -> None:
    for hashes, ids, digests in (([1], ["a", "b"], None), ([1, 2], ["a", "a"], None), ([1, 2], ["a", "b"], ["x"])):
        with pytest.raises(ValueError, match="expected as many of each"):
            find_duplicates(hashes, ids, digests=digests)


def test_nothing_has_no_duplicates() -> None:
    assert find_duplicates([], []) == ()


# --- groups and splits


def _pair(first: str, second: str) -> DuplicatePair:
    return DuplicatePair(first, second, "near", 3)


def test_groups_join_patients_by_way_of_copies() -> None:
    patients = {"1": "ann", "2": "ann", "3": "bob", "4": "cid", "5": "dan", "6": "cid"}
    groups = union_groups(patients, [_pair("2", "3"), _pair("3", "4")])
    assert groups == {"1": "ann", "2": "ann", "3": "ann", "4": "ann", "5": "dan", "6": "ann"}


def test_groups_do_not_depend_on_the_order_of_pairs() -> None:
    rng = random.Random(0)
    patients = {str(image): f"p{image // 3:03d}" for image in range(300)}
    pairs = [_pair(*rng.sample(sorted(patients), 2)) for _ in range(60)]
    wanted = union_groups(patients, pairs)
    assert union_groups(patients, rng.sample(pairs, 60)) == wanted
    assert all(wanted[pair.first] == wanted[pair.second] for pair in pairs)


def test_a_clean_split_passes() -> None:
    patients = {"1": "ann", "2": "ann", "3": "bob", "4": "cid"}
    check_split(["1", "2"], ["3", "4"], patients, [_pair("1", "2"), _pair("3", "4")])


def test_a_patient_on_both_sides_is_named() -> None:
    with pytest.raises(LeakError, match=r"1 patient\(s\): ann\. Give all images of one patient") as caught:
        check_split(["1", "3"], ["2"], {"1": "ann", "2": "ann", "3": "bob"}, [])
    assert caught.value.patients == ("ann",)
    assert isinstance(caught.value, DatasetError)


def test_a_copy_on_both_sides_is_named_with_its_file() -> None:
    with pytest.raises(LeakError, match=r"a\.png = b\.png") as caught:
        check_split(
            ["a.png", "c.png"], ["b.png"], {"a.png": "1", "b.png": "2", "c.png": "3"}, [_pair("b.png", "a.png")]
        )
    assert caught.value.pairs == (("a.png", "b.png"),)
    assert caught.value.patients == ()


def test_a_copy_of_a_copy_that_is_on_neither_side_counts() -> None:
    patients = {"a": "1", "b": "2", "validation": "3"}
    with pytest.raises(LeakError, match="a = b"):
        check_split(["a"], ["b"], patients, [_pair("validation", "a"), _pair("validation", "b")])


def test_patients_who_share_a_copy_elsewhere_are_not_parted() -> None:
    patients = {"a": "1", "a2": "1", "b": "2", "b2": "2"}
    with pytest.raises(LeakError, match=r"a = b"):
        check_split(["a"], ["b"], patients, [_pair("a2", "b2")])


def test_five_are_named_and_all_are_carried() -> None:
    patients = {f"{side}{n}": f"p{n:02d}" for side in "ab" for n in range(20)}
    train = [name for name in patients if name[0] == "a"]
    with pytest.raises(LeakError, match=r"20 patient\(s\): p00, p01, p02, p03, p04 and 15 more") as caught:
        check_split(train, [name for name in patients if name[0] == "b"], patients, [])
    assert len(caught.value.patients) == 20
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  our own
    assert (str(again), again.patients) == (str(caught.value), caught.value.patients)
