"""What workers computed: taken where it is of the bytes that were asked for, and kept where it is no error."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from sparkdl.image.limits import RENDERING_VERSION, RENDERING_VERSIONS
from tests.testimages import png, rgb_pixels, wrong_files
from training.features.cache import FeatureCache
from training.features.decoding import examine_files
from training.features.extract import _FACTS, _FEATURES, accept_rows, digest_files, features_key, keep_computed
from training.features.featurizer import _network_parts


def _examine(paths: Sequence[Path], digests: Sequence[str]) -> pa.Table:
    """Examine as a worker does, and take its rows as the driver does."""
    found = pa.Table.from_batches([examine_files([str(path) for path in paths])])
    return accept_rows(found, dict(zip(map(str, paths), digests, strict=True)), _FACTS)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Two that decode and one that does not."""
    made = [tmp_path / name for name in ("a.png", "b.png", "bad.png")]
    payloads = png(rgb_pixels(300, 200)), png(rgb_pixels(80, 90)), wrong_files()["truncated.png"].payload or b""
    for path, payload in zip(made, payloads, strict=True):
        path.write_bytes(payload)
    return made


def test_rows_are_known_by_what_was_asked_for(paths: list[Path]) -> None:
    digests = digest_files(paths)
    found = _examine(paths, digests)
    assert found.schema == _FACTS
    rows = found.to_pylist()
    assert [row["digest"] for row in rows] == digests
    assert [(row["height"], row["width"]) for row in rows] == [(300, 200), (80, 90), (None, None)]
    assert [row["error"] is None for row in rows] == [True, True, False]


def test_a_file_that_changed_is_an_error_and_not_another_image(paths: list[Path]) -> None:
    digests = digest_files(paths)
    paths[0].write_bytes(png(rgb_pixels(120, 130)))
    paths[2].write_bytes(b"")
    first, second, third = _examine(paths, digests).to_pylist()
    assert first == {**dict.fromkeys(_FACTS.names), "digest": digests[0], "error": "changed while it was read"}
    assert (second["height"], second["error"]) == (80, None)
    assert (third["digest"], third["error"]) == (digests[2], "changed while it was read")


def test_features_of_a_changed_file_are_dropped() -> None:
    found = pa.table(
        {
            "path": ["x", "y"],
            "digest": ["1", "3"],
            "features": [[1.0, 2.0], [3.0, 4.0]],
            "error": pa.nulls(2, pa.string()),
        }
    )
    assert accept_rows(found, {"x": "1", "y": "2"}, _FEATURES).to_pylist() == [
        {"digest": "1", "features": [1.0, 2.0], "error": None},
        {"digest": "2", "features": None, "error": "changed while it was read"},
    ]


def test_an_error_is_not_kept(paths: list[Path], tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    digests = digest_files(paths)
    paths[1].rename(tmp_path / "away.png")
    found = _examine(paths, digests)
    assert found["error"].to_pylist()[1] == "cannot be read: No such file or directory"
    cache.add_rows("images", keep_computed(found))
    known = cache.read_rows("images", digests, _FACTS)
    assert known["digest"].to_pylist() == digests[:1]
    assert keep_computed(known).num_rows == 1
    (tmp_path / "away.png").rename(paths[1])
    assert _examine(paths, digests)["error"].to_pylist()[1] is None


def test_features_of_two_renderings_are_kept_apart() -> None:
    network: Any = SimpleNamespace(sha256="a" * 64, precision="fp32", pooling="avg")
    keys = [features_key(network, version) for version in (*RENDERING_VERSIONS, 3)]
    assert len(set(keys)) == len(keys)
    # That of version 1 is the key of the release before: what it computed is found again.
    assert keys[0] == "48ef56d59e7bc228e8eed904"


def test_what_an_int8_network_follows_from_names_the_rendering() -> None:
    """Its ranges were measured on pixels; no other network has seen an image."""
    plain = _network_parts("EfficientNetLite0", "random", "fp32", 0)
    assert "rendering" not in plain
    calibrated = _network_parts("EfficientNetLite0", "random", "int8", 0, ["b" * 64])
    assert calibrated["rendering"] == RENDERING_VERSION
