"""Which files of a folder are images, and which folders may hold results: no Spark."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import DatasetError, SettingsError
from sparkdl.folders import IDENTITY_FILE, featurize_folder, find_images
from tests.testimages import good_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(good_files()["gray.png"])
    return images


def _run(folder: Path, out: Path, **options: Any) -> None:
    featurize_folder(None, folder, None, out, **options)  # type: ignore[arg-type]


def test_images_are_known_by_suffix_or_by_their_first_bytes(folder: Path) -> None:
    for name in ("b.JPG", "c.dicom", "sub/d.jpeg", "sub/deep/e.dcm"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "1.2.840").write_bytes((folder / "a.png").read_bytes())
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").touch()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "thumb.png").touch()
    (folder / "results").mkdir()
    (folder / "results" / "f.png").touch()
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    found = [str(Path(path).relative_to(folder)) for path in find_images(folder, without=folder / "results")]
    assert found == ["1.2.840", "a.png", "b.JPG", "c.dicom", "sub/d.jpeg", "sub/deep/e.dcm"]


def test_a_folder_without_images_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "a.png").unlink()
    with pytest.raises(DatasetError, match="holds no image"):
        find_images(folder)
    with pytest.raises(DatasetError, match="nowhere cannot be read: No such file"):
        find_images(tmp_path / "nowhere")


def test_results_do_not_go_among_other_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="name another folder"):
        _run(folder, folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(SettingsError, match=r"holds other files, e\.g\. thesis\.tex"):
        _run(folder, other)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    with pytest.raises(SettingsError, match="cannot write results"):
        _run(folder, other / "thesis.tex")
    with pytest.raises(SettingsError, match="images_per_batch is 0"):
        _run(folder, tmp_path / "out", images_per_batch=0)


def test_two_runs_do_not_write_to_one_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / "_lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SettingsError, match="another run is writing"):
            _run(folder, out)
    assert not (out / IDENTITY_FILE).exists()
