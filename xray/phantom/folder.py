"""Labelled sets of radiographs, in memory and as a folder with its manifest."""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from xray.phantom.chance import SIZE, open_stream
from xray.phantom.files import encode_dicom, encode_jpeg, encode_png
from xray.phantom.radiograph import FINDINGS, SOURCE, Radiograph, generate_radiograph

MANIFEST_NAME = "manifest.csv"

MANIFEST_HEADER = ("file", "label", "finding", "patient_id", "source")

Format = Literal["png", "jpeg", "dicom"]

_ENCODERS: dict[Format, tuple[str, Callable[[Radiograph], bytes]]] = {
    "png": (".png", encode_png),
    "jpeg": (".jpeg", encode_jpeg),
    "dicom": (".dcm", encode_dicom),
}


def generate_set(n: int, *, seed: int, marker: bool = False) -> Iterator[Radiograph]:
    """Generate ``n`` patients, normal and opacities in turn, in sizes that vary alike in both.

    Parameters
    ----------
    n : int
        How many; 0 gives none.
    seed : int
        0 or more; the same seed gives the same set, and a longer set begins with a shorter one.
    marker : bool
        Plant a shortcut: `PLANTED_LETTER` in one corner of every image with opacities, and of no other.
    """
    for index in range(n):
        patient = int(np.random.default_rng([seed, index]).integers(0, 2**32))
        rng = open_stream(patient, SIZE)
        height, width = int(rng.integers(600, 681)), int(rng.integers(512, 577))
        finding = FINDINGS[index % 2]
        planted = marker and finding == "opacities"
        yield generate_radiograph(patient, finding=finding, height=height, width=width, marker=planted)


def write_folder(
    folder: Path,
    n: int,
    *,
    seed: int,
    formats: Sequence[Format] = ("png", "jpeg", "dicom"),
    marker: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a labelled set of images and its manifest.

    Parameters
    ----------
    folder : Path
        Gets ``<finding>/<patient_id>.<extension>`` and ``manifest.csv``; made where missing.
    n, seed, marker
        As in :func:`generate_set`.
    formats : sequence of str
        Used in turn, the same for both findings.
    progress : callable, optional
        Called with (images written, images in all) after each.

    Returns
    -------
    Path
        The manifest: ``file`` (relative to the folder), ``label`` (0 normal, 1 opacities), ``finding``, ``patient_id``
        and ``source``.

    Raises
    ------
    ValueError
        A format is unknown, or there is none.
    """
    _check_formats(formats)
    rows = []
    for index, radiograph in enumerate(generate_set(n, seed=seed, marker=marker)):
        # A pair of findings shares its format, or the format would tell the label.
        suffix, encode = _ENCODERS[formats[index // 2 % len(formats)]]
        name = f"{radiograph.finding}/{radiograph.patient_id}{suffix}"
        _write(folder / name, encode(radiograph))
        rows.append((name, FINDINGS.index(radiograph.finding), radiograph.finding, radiograph.patient_id, SOURCE))
        if progress:
            progress(index + 1, n)
    return _write_manifest(folder, rows)


def _check_formats(formats: Sequence[str]) -> None:
    if not formats or set(formats) - set(_ENCODERS):
        msg = f"formats are {list(formats)}, expected one or more of {', '.join(_ENCODERS)}"
        raise ValueError(msg)


def _write(path: Path, payload: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)


def _write_manifest(folder: Path, rows: list[tuple[str, int, str, str, str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST_NAME
    with manifest.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([MANIFEST_HEADER, *rows])
    return manifest
