"""Folders and manifests to labelled samples."""

from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import DatasetError, SettingsError
from training.data.dataset import Dataset, read_dataset
from training.model.fit import _check_procedure
from training.model.material import Procedure


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _manifest(folder: Path, *lines: str, make_files: bool = True) -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if make_files:
        _touch(folder, *[line.split(",")[0] for line in lines[1:]])
    return path


def _labels(dataset: Dataset) -> list[tuple[str, str]]:
    return [(sample.path.name, dataset.labels[sample.label]) for sample in dataset.samples]


def test_each_sub_folder_is_a_class(tmp_path: Path) -> None:
    _touch(tmp_path, "covid/b.png", "normal/a.png", "covid/deeper/c.dcm", "covid/.hidden", ".cache/d.png", "readme.txt")
    dataset = read_dataset(tmp_path)
    assert dataset.labels == ("normal", "covid")
    assert _labels(dataset) == [("b.png", "covid"), ("c.dcm", "covid"), ("a.png", "normal")]
    assert [sample.patient_id for sample in dataset.samples] == ["b", "c", "a"]
    assert dataset.patient_ids_known is False
    assert dataset.count_by_class() == {"normal": 1, "covid": 2}


def test_a_folder_with_a_manifest_is_read_by_it(tmp_path: Path) -> None:
    # Its sub-folders are hospitals here: taking them for classes would train a hospital detector.
    _touch(tmp_path, "north/a.png", "south/b.png")
    (tmp_path / "manifest.csv").write_text("file,label\nnorth/a.png,ill\nsouth/b.png,negative\n", encoding="utf-8")
    assert read_dataset(tmp_path).labels == ("negative", "ill")


def test_a_manifest_gives_patients_and_sources(tmp_path: Path) -> None:
    header = "label,file,patient_id,source"
    _touch(tmp_path, "a.png", "b.png")
    manifest = _manifest(tmp_path, header, "x,a.png,P1,north", "y,b.png,P2,south", make_files=False)
    dataset = read_dataset(manifest, positive="y")
    assert [(sample.patient_id, sample.source) for sample in dataset.samples] == [("P1", "north"), ("P2", "south")]
    assert dataset.patient_ids_known is True
    assert all(sample.path.is_absolute() for sample in dataset.samples)


def test_one_missing_patient_id_makes_patients_unknown(tmp_path: Path) -> None:
    dataset = read_dataset(_manifest(tmp_path, "file,label,patient_id", "a.png,x,P1", "b.png,y,"), positive="y")
    assert [sample.patient_id for sample in dataset.samples] == ["P1", "b"]
    assert dataset.patient_ids_known is False


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, "file,label", "a.png,x", "b.png,y")
    manifest.write_bytes(b"\xef\xbb\xbf" + manifest.read_bytes())
    assert len(read_dataset(manifest, positive="y").samples) == 2


@pytest.mark.parametrize(
    ("rows", "positive", "labels"),
    [
        (["1,", "0,"], None, ("0", "1")),
        (["10,", "9,", "2,"], "10", ("2", "9", "10")),  # by value, not by text
        (["1,ill", "0,well"], None, ("well", "ill")),  # the order stays that of the integers
        (["1,ill", "0,"], None, ("0", "1")),  # not every class has a finding
        (["1,ill", "0,ill"], None, ("0", "1")),  # a finding of two integers names neither
        (["1,ill", "0,well", "0,ill"], None, ("0", "1")),
        (["1,ill", "0,well", "0,fit"], None, ("0", "1")),  # nor do two findings of one integer
        (["Zebra,", "NORMAL,", "ant,"], "Zebra", ("NORMAL", "ant", "Zebra")),
        (["Zebra,", "No Finding,", "ant,"], "Zebra", ("No Finding", "ant", "Zebra")),
        (["2,", "0,", "1,"], "1", ("0", "2", "1")),  # the positive one is the last, whatever its place
        (["Zebra,", "NORMAL,", "ant,"], "ant", ("NORMAL", "Zebra", "ant")),
        (["b,well", "a,ill"], "b", ("a", "b")),  # findings name integers only
    ],
)
def test_names_and_order_of_classes(
    tmp_path: Path, rows: list[str], positive: str | None, labels: tuple[str, ...]
) -> None:
    lines = [f"{index}.png,{row}" for index, row in enumerate(rows)]
    dataset = read_dataset(_manifest(tmp_path, "file,label,finding", *lines), positive=positive)
    assert (dataset.labels, dataset.positive) == (labels, labels[-1])
    written = {f"{index}.png": row for index, row in enumerate(rows)}
    for name, label in _labels(dataset):  # each image keeps its class, wherever that stands
        assert label in written[name].split(",")


def test_a_filter_keeps_classes_in_their_own_order(tmp_path: Path) -> None:
    lines = ["a.png,0,normal", "b.png,1,covid", "c.png,2,pneumonia"]
    manifest = _manifest(tmp_path, "file,label,finding", *lines)
    (tmp_path / "b.png").unlink()  # a class that is left out may lack its files
    dataset = read_dataset(manifest, classes=["pneumonia", "normal"])
    assert dataset.labels == ("normal", "pneumonia")
    assert _labels(dataset) == [("a.png", "normal"), ("c.png", "pneumonia")]


def _no_such_source(folder: Path) -> Path:
    return folder / "nowhere"


def _one_class(folder: Path) -> Path:
    _touch(folder, "only/a.png", "only/b.png")
    return folder


def _no_classes(folder: Path) -> Path:
    _touch(folder, "a.png")
    return folder


def _wrong_header(folder: Path) -> Path:
    return _manifest(folder, "file;label", "a.png;x", make_files=False)


def _empty_file(folder: Path) -> Path:
    (folder / "list.csv").touch()
    return folder / "list.csv"


def _binary_file(folder: Path) -> Path:
    (folder / "list.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    return folder / "list.csv"


def _missing_file(folder: Path) -> Path:
    return _manifest(folder, "file,label", "gone.png,x", "b.png,y", make_files=False)


def _empty_label(folder: Path) -> Path:
    return _manifest(folder, "file,label", "a.png,x", "b.png,")


def _listed_twice(folder: Path) -> Path:
    return _manifest(folder, "file,label", "a.png,x", "a.png,y")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_no_such_source, "no training data at .*nowhere"),
        (_one_class, "at least two classes, found only only"),
        (_no_classes, "no sub-folder per class, and its 1 file no label"),
        (_wrong_header, "found file;label; wanted file,label"),
        (_empty_file, "found nothing; wanted file,label"),
        (_binary_file, "cannot read the manifest"),
        (_missing_file, r"b\.png and 1 more, but there is no such file"),
        (_empty_label, r"list\.csv, line 3: label is empty"),
        (_listed_twice, r"a\.png more than once"),
    ],
)
def test_unusable_data_is_refused_with_its_fault(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        read_dataset(make(tmp_path))


@pytest.mark.parametrize(
    ("classes", "words"),
    [(["x", "flu"], "no class 'flu' in .*: found x, y"), (["x"], "at least two classes, found only x")],
)
def test_an_unusable_filter_is_refused(tmp_path: Path, classes: list[str], words: str) -> None:
    manifest = _manifest(tmp_path, "file,label", "a.png,x", "b.png,y")
    with pytest.raises(DatasetError, match=words):
        read_dataset(manifest, classes=classes)


def test_a_manifest_gives_the_split(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, "file,label,split", "a.png,x,train", "b.png,y,test")
    dataset = read_dataset(manifest, positive="y")
    assert [sample.side for sample in dataset.samples] == ["train", "test"]
    assert dataset.sides_given
    (tmp_path / "other").mkdir()
    other = _manifest(tmp_path / "other", "file,label", "a.png,x", "b.png,y")
    assert not read_dataset(other, positive="y").sides_given


def test_a_split_for_some_images_only_is_refused(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, "file,label,split", "a.png,x,train", "b.png,y,")
    with pytest.raises(DatasetError, match=r"gives a split, but none for .*b\.png: wanted one for every image"):
        read_dataset(manifest)


def test_an_unknown_side_is_refused(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, "file,label,split", "a.png,x,train", "b.png,y,validation")
    with pytest.raises(DatasetError, match=r"line 3: split is 'validation', wanted train or test"):
        read_dataset(manifest)


def test_a_sensitivity_of_three_classes_says_how_to_have_two(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, "file,label", "a.png,x", "b.png,y", "c.png,z")
    dataset = read_dataset(manifest, positive="z")
    with pytest.raises(SettingsError, match=r"--sensitivity\) is for two classes, found 3: x, y, z; .*--classes x,z"):
        _check_procedure(Procedure(sensitivity=0.9), ["EfficientNetLite0"], dataset)
