"""External sets: named by what a person would call them, their classes put in the training data's order."""

from pathlib import Path

import pytest

from schemas.errors import DatasetError
from training.judge import read_external


def _manifest(folder: Path, name: str, *rows: str) -> Path:
    folder.mkdir(parents=True)
    for row in rows:
        (folder / row.split(",")[0]).touch()
    path = folder / name
    path.write_text("\n".join(["file,label,finding", *rows]) + "\n", encoding="utf-8")
    return path


def test_labels_are_put_in_the_training_datas_order(tmp_path: Path) -> None:
    # Integers order these as covid, normal; the training data have them the other way round.
    rows = ("a.png,0,covid", "b.png,1,normal", "c.png,2,pneumonia")
    external = read_external(_manifest(tmp_path / "hospital", "manifest.csv", *rows), ("normal", "covid"))
    assert external.name == "hospital"
    assert external.dataset.labels == ("normal", "covid")
    assert [(s.path.name, s.label) for s in external.dataset.samples] == [("a.png", 1), ("b.png", 0)]


def test_a_set_is_named_by_its_manifest_or_folder(tmp_path: Path) -> None:
    rows = ("a.png,normal,", "b.png,covid,")
    path = _manifest(tmp_path / "data", "north.csv", *rows)
    assert read_external(path, ("normal", "covid")).name == "north"
    for label in ("normal", "covid"):
        (tmp_path / "south" / label).mkdir(parents=True)
        (tmp_path / "south" / label / f"{label}.png").touch()
    assert read_external(tmp_path / "south", ("normal", "covid")).name == "south"


def test_a_set_without_a_class_is_refused(tmp_path: Path) -> None:
    path = _manifest(tmp_path / "data", "m.csv", "a.png,normal,", "b.png,flu,")
    with pytest.raises(DatasetError, match="no class 'covid'"):
        read_external(path, ("normal", "covid"))
