"""Files to image rows as serving makes them; failures carry their reason and stop nothing."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from sparkdl.image.decode import decode_image
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
