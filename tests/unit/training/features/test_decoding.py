"""Files to image rows as serving makes them; failures carry their reason and stop nothing."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparkdl.image.decode import DecodedImage, decode_image
from sparkdl.image.limits import (
    MAX_FILE_BYTES,
    MAX_PAYLOAD_BYTES,
    RENDERING_VERSION,
    RENDERING_VERSIONS,
    DecodeLimits,
)
from sparkdl.image.row import ImageRow
from tests.testimages import png, rgb_pixels, wrong_files
from training.features.decoding import decode_files, examine_files

_SIZE = (24, 32)


def _write(folder: Path, name: str, payload: bytes) -> str:
    (folder / name).write_bytes(payload)
    return str(folder / name)


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_row_is_what_serving_decodes(tmp_path: Path) -> None:
    payload = png(rgb_pixels())
    path = _write(tmp_path, "a.png", payload)
    [row] = decode_files([path], _SIZE).to_pylist()
    assert ImageRow(**row["image"]) == decode_image(payload, origin=path, size=_SIZE).image
    assert (row["path"], row["error"]) == (path, None)
    assert row["digest"] == _digest(path)


def test_failures_keep_their_place_and_say_why(tmp_path: Path) -> None:
    good = _write(tmp_path, "good.png", png())
    bad = _write(tmp_path, "bad.png", wrong_files()["truncated.png"].payload or b"")
    gone = str(tmp_path / "gone.png")
    rows = decode_files([bad, good, gone], _SIZE).to_pylist()
    assert [row["image"] is None for row in rows] == [True, False, True]
    assert rows[0]["error"].startswith("truncated_image: ")
    assert rows[2]["error"] == "cannot be read: No such file or directory"
    assert [row["digest"] for row in rows] == [*(_digest(path) for path in (bad, good)), None]


def test_an_unforeseen_error_is_one_files_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> None:
        message = "boom"
        raise ZeroDivisionError(message)

    monkeypatch.setattr("training.features.decoding.decode_image", explode)
    [row] = decode_files([_write(tmp_path, "a.png", png())], _SIZE).to_pylist()
    assert row["error"] == "unexpected: ZeroDivisionError: boom"


def test_a_lack_of_memory_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("training.features.decoding.decode_image", exhaust)
    with pytest.raises(MemoryError):
        decode_files([_write(tmp_path, "a.png", png())], _SIZE)


def test_facts_tell_the_original_size_and_bytes(tmp_path: Path) -> None:
    payload = png(rgb_pixels(300, 200))
    [row] = examine_files([_write(tmp_path, "a.png", payload)]).to_pylist()
    assert (row["height"], row["width"], row["n_bytes"], row["error"]) == (300, 200, len(payload), None)
    assert [len(row[name]) for name in ("picture", "thumbnail", "borders", "corners", "metadata")] == [
        72, 64, 240, 48, 5,
    ]  # fmt: skip
    assert row["metadata"][:3] == pytest.approx(np.log([300, 200, 1.5]))


def test_a_file_that_cannot_be_examined_says_why(tmp_path: Path) -> None:
    bad = _write(tmp_path, "bad.png", wrong_files()["truncated.png"].payload or b"")
    [row] = examine_files([bad]).to_pylist()
    assert row["error"].startswith("truncated_image: ")
    assert row["picture"] is None
    assert row["digest"] == _digest(bad)


def test_a_missing_package_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def need(*_: object, **__: object) -> None:
        message = "No module named 'scipy'"
        raise ModuleNotFoundError(message)

    monkeypatch.setattr("training.features.decoding.decode_image", need)
    path = _write(tmp_path, "a.png", png())
    with pytest.raises(ModuleNotFoundError):
        decode_files([path], _SIZE)
    with pytest.raises(ModuleNotFoundError):
        examine_files([path])


@pytest.mark.parametrize("version", RENDERING_VERSIONS)
def test_files_are_decoded_by_the_rendering_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    asked = []

    def decode(payload: bytes, **options: Any) -> DecodedImage:
        asked.append(options["rendering"])
        return decode_image(payload, **options)

    monkeypatch.setattr("training.features.decoding.decode_image", decode)
    path = _write(tmp_path, "a.png", png())
    [row] = decode_files([path], _SIZE, rendering=version).to_pylist()
    assert row["error"] is None
    examine_files([path])  # what is known of images goes by the present one
    assert asked == [version, RENDERING_VERSION]


def _large(tmp_path: Path, n_bytes: int) -> str:
    """A PNG with bytes behind its end, of which a file system keeps no block."""
    path = Path(_write(tmp_path, "large.png", png()))
    with path.open("ab") as stream:
        stream.truncate(n_bytes)
    return str(path)


@pytest.mark.parametrize("n_bytes", [MAX_PAYLOAD_BYTES + 1, 100_000_000, MAX_FILE_BYTES])
def test_files_may_be_larger_than_messages(tmp_path: Path, n_bytes: int) -> None:
    path = _large(tmp_path, n_bytes)
    [row] = decode_files([path], _SIZE).to_pylist()
    assert row["error"] is None


@pytest.mark.parametrize(
    ("n_bytes", "limit"), [(MAX_FILE_BYTES + 1, MAX_FILE_BYTES), (10**12, MAX_FILE_BYTES), (5000, 4999)]
)
def test_a_larger_file_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_bytes: int, limit: int
) -> None:
    path = _large(tmp_path, n_bytes)

    def read(_: Path) -> bytes:
        pytest.fail("it was read")

    monkeypatch.setattr(Path, "read_bytes", read)
    limits = DecodeLimits(max_payload_bytes=limit)
    for rows in (decode_files([path], _SIZE, limits=limits), examine_files([path], limits=limits)):
        [row] = rows.to_pylist()
        assert row["error"] == f"payload_too_large: file has {n_bytes} bytes, expected at most {limit}"
