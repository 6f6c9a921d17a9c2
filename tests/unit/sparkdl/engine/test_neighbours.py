"""Nearest training images."""

from pathlib import Path

import numpy as np
import pytest

from schemas.errors import ModelLoadError
from sparkdl.engine.neighbours import MAX_VECTORS, VECTORS_FILE, choose_vectors, read_vectors, write_vectors


def test_the_nearest_come_first_and_an_image_is_nearest_to_itself(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.random((50, 64), np.float32)
    names, labels = [f"/data/{n}.png" for n in range(50)], ["normal", "opacities"] * 25
    write_vectors(tmp_path, choose_vectors(features, names, labels))
    stored = read_vectors(tmp_path)
    assert stored is not None
    found = stored.find_nearest(features[17] * 3, 8)  # length does not count
    exact = 1 - (features @ features[17]) / (np.linalg.norm(features, axis=1) * np.linalg.norm(features[17]))
    assert stored.files[found[0][0]] == "/data/17.png"
    assert stored.labels[found[0][0]] == "opacities"
    assert {place for place, _ in found[:4]} == set(np.argsort(exact)[:4].tolist())
    np.testing.assert_allclose([distance for _, distance in found], np.sort(exact)[:8], atol=1e-3)


def test_the_file_is_bounded(tmp_path: Path) -> None:
    n = MAX_VECTORS + 10
    vectors = choose_vectors(np.ones((n, 2), np.float32), [str(i) for i in range(n)], ["a"] * n)
    assert len(vectors.files) == len(vectors.units) == MAX_VECTORS
    assert vectors.files == choose_vectors(np.ones((n, 2), np.float32), [str(i) for i in range(n)], ["a"] * n).files


def test_no_file_is_nothing_unusual_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    assert read_vectors(tmp_path) is None
    (tmp_path / VECTORS_FILE).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ModelLoadError, match="cannot read"):
        read_vectors(tmp_path)
