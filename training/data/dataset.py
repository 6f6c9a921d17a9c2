"""Reads labelled image files: one folder per class, or a manifest."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from schemas.errors import DatasetError
from schemas.modelcard import BINARY
from training.data.positive import ClassFacts, Positive, choose_positive, is_negative

MANIFEST_FILE = "manifest.csv"

_WANTED_COLUMNS = ("file", "label")
_MIN_CLASSES = 2
_SIDES = ("", "train", "test")
_MARKS = {"": None, **dict.fromkeys(("1", "yes", "true"), True), **dict.fromkeys(("0", "no", "false"), False)}


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image file.

    Parameters
    ----------
    path : Path
        Absolute.
    label : int
        Position in ``Dataset.labels``.
    patient_id : str
        Who is on it; where that is unknown, the file's name without its suffix.
    source : str
        Where the image was made; empty where unknown.
    side : str
        ``"train"`` or ``"test"`` where the data say which; else empty.
    """

    path: Path
    label: int
    patient_id: str
    source: str = ""
    side: str = ""


@dataclass(frozen=True)
class Dataset:
    """Labelled image files.

    Parameters
    ----------
    samples : tuple of Sample
        Ordered by path, each path once.
    labels : tuple of str
        Class names, at least two. The last is the positive class, the finding that score, sensitivity and alerts are
        about. All that is fitted and measured here relies on that order.
    patient_ids_known : bool
        False where any sample's patient is only its file's name; two files of one patient may then end on both sides
        of a split.
    positive_known_by : str
        How it is known that the last class is the positive one, as a part of a sentence:
        ``"'normal' is the negative class"``, ``"given with --positive"``.
    """

    samples: tuple[Sample, ...]
    labels: tuple[str, ...]
    patient_ids_known: bool
    positive_known_by: str = "it is the last of the labels that were given"

    @property
    def positive(self) -> str:
        """The positive class, which is the last one."""
        return self.labels[-1]

    @property
    def sides_given(self) -> bool:
        """Whether the data say which samples are for training and which are held out."""
        return all(sample.side for sample in self.samples)

    def count_by_class(self) -> dict[str, int]:
        """Count the samples of each class, in the order of ``labels``."""
        return count_by_class(self.samples, self.labels)


def count_by_class(samples: Sequence[Sample], labels: Sequence[str]) -> dict[str, int]:
    """Count the samples of each class, in the order of ``labels``."""
    counts = Counter(sample.label for sample in samples)
    return {label: counts[index] for index, label in enumerate(labels)}


class _Entry(NamedTuple):
    """One line of a manifest, or one file of a class folder."""

    path: Path
    label: str
    patient_id: str = ""
    source: str = ""
    finding: str = ""
    side: str = ""
    mark: bool | None = None


def read_dataset(source: Path, *, classes: Sequence[str] | None = None, positive: str | None = None) -> Dataset:
    """Find the labelled image files of a folder or manifest.

    Files are not opened: those that turn out not to be images are reported by training.

    Parameters
    ----------
    source : Path
        A folder with one sub-folder per class, whose name is the label and which may have folders inside; hidden files
        are left out. Or a CSV file in UTF-8 with the columns ``file`` (relative to the CSV's folder) and ``label``,
        and, if known, ``patient_id``, ``source``, ``finding``, ``split`` (``train`` or ``test``) and ``positive``
        (``1``, ``yes`` or ``true`` in the lines of the positive class, ``0``, ``no`` or ``false`` in others). A folder
        that holds a ``manifest.csv`` is read by it.
    classes : sequence of str, optional
        Names of the classes to keep; the order of names here means nothing.
    positive : str, optional
        Name of the positive class; without it, the manifest or the classes' names must say which it is, see
        `training.data.positive`.

    Returns
    -------
    Dataset
        Labels that are all integers are ordered by value, and named by their findings where each integer has exactly
        one finding and each finding one integer. Other labels are ordered with names like "normal" first, then by the
        alphabet. The positive class, whichever it is, is the last.

    Raises
    ------
    DatasetError
        There is nothing to read, a file is missing or listed twice, a column or label is missing, a class asked for
        does not exist, fewer than two classes are left, only some images have a side of the split, or it is not known
        which class is the positive one.
    """
    source = source.absolute()
    entries = sorted(_read_entries(source), key=lambda entry: entry.path)
    if not entries:
        raise DatasetError(_explain_nothing(source))
    names = _name_classes(entries)
    labels = _filter_classes(tuple(names.values()), classes, source)
    kept = [entry for entry in entries if names[entry.label] in labels]
    _check_entries(kept, source)
    chosen = _choose_positive(kept, names, positive, source)
    labels = (*(label for label in labels if label != chosen.label), chosen.label)
    return Dataset(
        samples=tuple(_to_sample(entry, labels.index(names[entry.label])) for entry in kept),
        labels=labels,
        patient_ids_known=all(entry.patient_id for entry in kept),
        positive_known_by=chosen.known_by,
    )


def _choose_positive(entries: Sequence[_Entry], names: Mapping[str, str], given: str | None, source: Path) -> Positive:
    findings: dict[str, set[str]] = {}
    marks: dict[str, set[bool]] = {}
    for entry in entries:
        findings.setdefault(entry.label, set()).update([entry.finding] if entry.finding else [])
        marks.setdefault(entry.label, set()).update([] if entry.mark is None else [entry.mark])
    classes = [
        ClassFacts(name, label, frozenset(findings[label]), frozenset(marks[label]))
        for label, name in names.items()
        if label in findings
    ]
    # Of all labels, not of those that are kept: 0 and 1 out of 0, 1 and 2 are numbers of classes, not no and yes.
    yes_or_no = len(names) == BINARY and all(map(_is_integer, names)) and {int(name) for name in names} == {0, 1}
    return choose_positive(classes, given, yes_or_no=yes_or_no, place=str(source))


def _to_sample(entry: _Entry, label: int) -> Sample:
    return Sample(entry.path, label, entry.patient_id or entry.path.stem, entry.source, entry.side)


def _read_entries(source: Path) -> Iterator[_Entry]:
    if source.is_file():
        return _read_manifest(source)
    if (source / MANIFEST_FILE).is_file():
        return _read_manifest(source / MANIFEST_FILE)
    if source.is_dir():
        return _read_class_folders(source)
    msg = f"no training data at {source}: wanted a folder with one sub-folder per class, or a manifest in CSV"
    raise DatasetError(msg)


def _explain_nothing(source: Path) -> str:
    """Say what a set without an image lacks; the usual mistake is a folder with all images side by side."""
    n_files = sum(path.is_file() for path in source.iterdir()) if source.is_dir() else 0
    if not n_files or (source / MANIFEST_FILE).is_file():
        return f"{source} lists no images"
    files = f"{n_files} file{'' if n_files == 1 else 's'}"
    return (
        f"{source} lists no images: it has no sub-folder per class, and its {files} no label; put each class into a "
        f"sub-folder of its name, or write {MANIFEST_FILE} with the columns file,label"
    )


def _read_class_folders(source: Path) -> Iterator[_Entry]:
    for folder in source.iterdir():
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        for path in folder.rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.is_file() and not hidden:
                yield _Entry(path, folder.name)


def _read_manifest(manifest: Path) -> Iterator[_Entry]:
    try:
        # A spreadsheet program may put a byte order mark in front, which is no part of the first column's name.
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_header(reader.fieldnames or (), manifest)
            for row in reader:
                yield _read_line(row, f"{manifest}, line {reader.line_num}", manifest.parent)
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        msg = f"cannot read the manifest {manifest}: {exc}"
        raise DatasetError(msg) from exc


def _check_header(found: Sequence[str], manifest: Path) -> None:
    if missing := [name for name in _WANTED_COLUMNS if name not in found]:
        msg = (
            f"manifest {manifest} has no column {' or '.join(missing)}: found {', '.join(found) or 'nothing'}; "
            f"wanted {','.join(_WANTED_COLUMNS)} and, if known, patient_id,source,finding,split,positive, separated by "
            "commas"
        )
        raise DatasetError(msg)


def _read_line(row: Mapping[str, str | None], place: str, folder: Path) -> _Entry:
    def cell(name: str) -> str:
        return (row.get(name) or "").strip()

    if missing := [name for name in _WANTED_COLUMNS if not cell(name)]:
        msg = f"{place}: {' and '.join(missing)} is empty"
        raise DatasetError(msg)
    if cell("split") not in _SIDES:
        msg = f"{place}: split is {cell('split')!r}, wanted train or test, or nothing in every line"
        raise DatasetError(msg)
    if cell("positive").casefold() not in _MARKS:
        msg = (
            f"{place}: positive is {cell('positive')!r}, wanted 1 for the finding that score and alerts are about, "
            "0 for another class, or nothing"
        )
        raise DatasetError(msg)
    return _Entry(
        path=folder / cell("file"),
        label=cell("label"),
        patient_id=cell("patient_id"),
        source=cell("source"),
        finding=cell("finding"),
        side=cell("split"),
        mark=_MARKS[cell("positive").casefold()],
    )


def _check_entries(entries: Sequence[_Entry], source: Path) -> None:
    paths = [entry.path for entry in entries]
    # One image listed twice counts double, and may be on both sides of a split or contradict itself.
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        msg = f"{source} lists {_some(twice)} more than once"
        raise DatasetError(msg)
    if missing := [path for path in paths if not path.is_file()]:
        msg = f"{source} lists {_some(missing)}, but there is no such file"
        raise DatasetError(msg)
    without = [entry.path for entry in entries if not entry.side]
    if 0 < len(without) < len(entries):
        msg = f"{source} gives a split, but none for {_some(without)}: wanted one for every image, or for none"
        raise DatasetError(msg)


def _some(paths: Sequence[Path]) -> str:
    return f"{paths[0]}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def _name_classes(entries: Sequence[_Entry]) -> dict[str, str]:
    """Map each label as written to its class's name, in the order of classes."""
    labels = {entry.label for entry in entries}
    if not all(map(_is_integer, labels)):
        return {label: label for label in sorted(labels, key=_by_name)}
    pairs = {(entry.label, entry.finding) for entry in entries}
    findings = {finding for _, finding in pairs}
    one_to_one = len(pairs) == len(labels) == len(findings) and "" not in findings
    names = dict(pairs) if one_to_one else {label: label for label in labels}
    return {label: names[label] for label in sorted(labels, key=lambda label: (int(label), label))}


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _by_name(label: str) -> tuple[bool, str, str]:
    return not is_negative(label), label.casefold(), label


def _filter_classes(names: tuple[str, ...], classes: Sequence[str] | None, source: Path) -> tuple[str, ...]:
    wanted = names if classes is None else tuple(classes)
    if unknown := [name for name in wanted if name not in names]:
        msg = f"no class {', '.join(map(repr, unknown))} in {source}: found {', '.join(names)}"
        raise DatasetError(msg)
    kept = tuple(name for name in names if name in wanted)
    if len(kept) < _MIN_CLASSES:
        msg = f"training needs at least two classes, found only {', '.join(kept) or 'none'} in {source}"
        raise DatasetError(msg)
    return kept
