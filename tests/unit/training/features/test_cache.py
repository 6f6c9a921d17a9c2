"""The cache: what was written is read by anyone, whole or not at all; damage costs work, never an answer."""

import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from schemas.errors import JobError
from sparkdl.network.base import Network
from training.features.cache import FeatureCache, make_key

_SCHEMA = pa.schema([("digest", pa.string()), ("features", pa.list_(pa.float32()))])


def _rows(*names: str) -> pa.Table:
    return pa.table({"digest": list(names), "features": [[float(len(name)), 2.0] for name in names]}, schema=_SCHEMA)


def _digests(cache: FeatureCache, *names: str) -> list[str]:
    return sorted(cache.read_rows("f", names, _SCHEMA)["digest"].to_pylist())


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def test_an_empty_cache_has_nothing(cache: FeatureCache, tmp_path: Path) -> None:
    assert cache.read_rows("f", ["a"], _SCHEMA).num_rows == 0
    assert cache.read_network("k") is None
    assert not (tmp_path / "cache").exists()


def test_rows_asked_for_are_read_and_no_others(cache: FeatureCache) -> None:
    cache.add_rows("f", _rows("a", "bb"))
    cache.add_rows("f", _rows("ccc"))
    cache.add_rows("g", _rows("d"))
    found = cache.read_rows("f", ["bb", "ccc", "d"], _SCHEMA)
    assert sorted(found.to_pylist(), key=lambda row: row["digest"]) == [
        {"digest": "bb", "features": [2.0, 2.0]},
        {"digest": "ccc", "features": [3.0, 2.0]},
    ]


@pytest.mark.parametrize("place", [40, -6], ids=["page", "footer"])
def test_a_damaged_part_is_removed_and_the_others_stay(
    cache: FeatureCache, tmp_path: Path, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    cache.add_rows("f", _rows("a"))
    [part] = (tmp_path / "cache" / "f").iterdir()
    content = bytearray(part.read_bytes())
    content[place] ^= 0xFF
    part.write_bytes(content)
    cache.add_rows("f", _rows("bb"))
    assert _digests(cache, "a", "bb") == ["bb"]
    assert not part.exists()
    assert "computed anew" in caplog.text
    cache.add_rows("f", _rows("a"))
    assert _digests(cache, "a", "bb") == ["a", "bb"]


def test_a_part_cut_short_or_of_other_columns_is_removed(cache: FeatureCache, tmp_path: Path) -> None:
    cache.add_rows("f", _rows("a"))
    [part] = (tmp_path / "cache" / "f").iterdir()
    part.write_bytes(part.read_bytes()[:-20])
    cache.add_rows("f", pa.table({"digest": ["bb"], "other": [1]}))
    assert _digests(cache, "a", "bb") == []
    assert list((tmp_path / "cache" / "f").iterdir()) == []


def test_what_a_killed_run_left_aside_is_not_read(cache: FeatureCache, tmp_path: Path) -> None:
    cache.add_rows("f", _rows("a"))
    [part] = (tmp_path / "cache" / "f").iterdir()
    (tmp_path / "cache" / "f" / ".half").write_bytes(part.read_bytes()[:50])
    assert _digests(cache, "a") == ["a"]


def test_many_writers_and_readers_at_once(cache: FeatureCache) -> None:
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for n in range(10):
                cache.add_rows("f", _rows(f"{name}{n}"))
                assert f"{name}{n}" in _digests(cache, f"{name}{n}")
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(_digests(cache, *[f"{name}{n}" for name in "abcd" for n in range(10)])) == 40


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(JobError, match="cannot write the cache"):
        FeatureCache(tmp_path / "file").add_rows("f", _rows("a"))


@pytest.fixture
def network() -> Network:
    return Network(
        name="EfficientNetLite0",
        engine="openvino",
        graph={"network.xml": b"<net/>", "network.bin": b"\1\2\3"},
        input_shape=(4, 4, 3),
        input_type="uint8",
        output_shape=(2,),
        weights="random",
        weights_sha256="0" * 64,
        precision="fp32",
        pooling="avg",
    )


def test_a_network_comes_back_and_the_first_of_two_stays(cache: FeatureCache, network: Network, tmp_path: Path) -> None:
    cache.add_network("k", network)
    cache.add_network("k", replace(network, weights="imagenet"))
    assert cache.read_network("k") == network
    assert [path.name for path in (tmp_path / "cache" / "networks").iterdir()] == ["k"]


@pytest.mark.parametrize("name", ["network.bin", "network.xml", "network.json"])
def test_a_damaged_network_is_removed(cache: FeatureCache, network: Network, tmp_path: Path, name: str) -> None:
    cache.add_network("k", network)
    (tmp_path / "cache" / "networks" / "k" / name).write_bytes(b"<cut")
    assert cache.read_network("k") is None
    cache.add_network("k", network)
    assert cache.read_network("k") == network


def test_keys_follow_from_values_not_from_their_order() -> None:
    assert make_key(a=1, b="x") == make_key(b="x", a=1)
    assert make_key(a=1) != make_key(a=2)
