"""The phantom: the same twice, two findings that differ in the lungs alone, and files that others can read."""

import csv
import io
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image

from xray.phantom import (
    FINDINGS,
    Radiograph,
    encode_dicom,
    encode_jpeg,
    encode_png,
    generate_radiograph,
    generate_set,
    write_folder,
)
from xray.phantom.chest import Chest
from xray.phantom.geometry import Plane
from xray.phantom.patient import draw_anatomy

SEEDS = range(5)
HEIGHT, WIDTH = 320, 272


@cache
def radiograph(seed: int, finding: str = "normal") -> Radiograph:
    return generate_radiograph(seed, finding=finding, height=HEIGHT, width=WIDTH)


def added(seed: int) -> NDArray[np.int16]:
    """Grey levels that the opacities of one seed add to its normal chest."""
    return radiograph(seed, "opacities").pixels.astype(np.int16) - radiograph(seed).pixels


def displayed(payload: bytes) -> NDArray[np.float64]:
    """Show a DICOM image the way a viewer does: rescale, window, and invert MONOCHROME1."""
    dataset = pydicom.dcmread(io.BytesIO(payload))
    stored = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    centre, width = float(dataset.WindowCenter) - 0.5, float(dataset.WindowWidth) - 1
    grey = np.clip(((stored - centre) / width + 0.5) * 255, 0, 255)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


@pytest.fixture(scope="module")
def small_set() -> list[Radiograph]:
    return list(generate_set(16, seed=5))


@pytest.mark.parametrize("finding", FINDINGS)
def test_same_seed_gives_same_bytes(finding: str) -> None:
    first, second = (generate_radiograph(3, finding=finding, height=HEIGHT, width=WIDTH) for _ in range(2))
    for encode in (encode_png, encode_jpeg, encode_dicom):
        assert encode(first) == encode(second)


def test_seeds_give_unlike_patients() -> None:
    assert len({radiograph(seed).pixels.tobytes() for seed in SEEDS}) == len(SEEDS)
    assert len({radiograph(seed).patient_id for seed in SEEDS}) == len(SEEDS)


@pytest.mark.parametrize(("height", "width"), [(640, 544), (301, 257), (200, 400), (64, 64)])
def test_size_and_type(height: int, width: int) -> None:
    pixels = generate_radiograph(1, finding="opacities", height=height, width=width).pixels
    assert pixels.shape == (height, width)
    assert pixels.dtype == np.uint8
    assert pixels.max() > 180
    assert pixels.min() < 30


def test_default_size_is_portrait() -> None:
    assert generate_radiograph(1, finding="normal").pixels.shape == (640, 544)


def test_unknown_finding_says_found_and_wanted() -> None:
    with pytest.raises(ValueError, match=r"finding is 'covid', expected one of normal, opacities"):
        radiograph(1, "covid")


def test_too_small_says_found_and_wanted() -> None:
    with pytest.raises(ValueError, match=r"radiograph is 40x300 px, expected at least 64x64"):
        generate_radiograph(1, finding="normal", height=40, width=300)


def lungs_and_blur(seed: int) -> NDArray[np.bool_]:
    """Where rays pass through lung, and the one pixel around it that the detector's blur reaches."""
    anatomy = draw_anatomy(seed)
    lungs = Chest(Plane.over(anatomy, HEIGHT, WIDTH), anatomy, seed).lungs > 0
    wide = np.pad(lungs, 1)
    shifts = [wide[i : i + HEIGHT, j : j + WIDTH] for i in range(3) for j in range(3)]
    return np.logical_or.reduce(shifts)


@pytest.mark.parametrize("seed", SEEDS)
def test_findings_differ_in_the_lungs_and_nowhere_else(seed: int) -> None:
    change = added(seed)
    assert not change[~lungs_and_blur(seed)].any()
    assert 0.01 < (change != 0).mean() < 0.5
    assert change.min() >= -3, "fluid only adds shadow, but for the noise that grows with it"


@pytest.mark.parametrize("seed", SEEDS)
def test_opacities_are_on_both_sides(seed: int) -> None:
    change = added(seed)
    assert change[:, : WIDTH // 2].max() > 8
    assert change[:, WIDTH // 2 :].max() > 8


def test_opacities_are_peripheral_and_low_on_the_whole() -> None:
    weight = np.mean([added(seed) for seed in range(12)], axis=0).clip(0)
    rows, columns = np.indices(weight.shape)
    assert np.average(rows, weights=weight) > 0.5 * HEIGHT
    assert np.average(np.abs(columns - WIDTH / 2), weights=weight) > 0.2 * WIDTH


def test_severity_varies() -> None:
    burden = [added(seed).mean() for seed in range(12)]
    assert max(burden) > 3 * min(burden)


@pytest.mark.parametrize("seed", SEEDS)
def test_lungs_are_darker_than_mediastinum_and_abdomen(seed: int) -> None:
    pixels = radiograph(seed).pixels
    middle = slice(int(0.42 * HEIGHT), int(0.55 * HEIGHT))
    lungs = [pixels[middle, int(a * WIDTH) : int(b * WIDTH)].mean() for a, b in ((0.2, 0.35), (0.72, 0.82))]
    mediastinum = pixels[middle, int(0.47 * WIDTH) : int(0.53 * WIDTH)].mean()
    abdomen = pixels[int(0.88 * HEIGHT) : int(0.94 * HEIGHT), int(0.4 * WIDTH) : int(0.6 * WIDTH)].mean()
    assert max(lungs) < mediastinum - 40
    assert max(lungs) < abdomen - 40


def test_lossless_and_lossy_files_decode_to_the_pixels() -> None:
    image = radiograph(2, "opacities")
    png, jpeg = (Image.open(io.BytesIO(encode(image))) for encode in (encode_png, encode_jpeg))
    assert (png.mode, png.format, jpeg.mode, jpeg.format) == ("L", "PNG", "L", "JPEG")
    np.testing.assert_array_equal(np.asarray(png), image.pixels)
    assert np.abs(np.asarray(jpeg, np.int16) - image.pixels).mean() < 3


@pytest.mark.parametrize("seed", SEEDS)
def test_dicom_shows_the_pixels(seed: int) -> None:
    image = radiograph(seed, "opacities")
    np.testing.assert_allclose(displayed(encode_dicom(image)), image.pixels, atol=1)


def test_dicom_attributes() -> None:
    dataset = pydicom.dcmread(io.BytesIO(encode_dicom(radiograph(2))))
    assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert (dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition) == ("CR", "CHEST", "PA")
    assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (16, 12, 11)
    assert (dataset.Rows, dataset.Columns) == (HEIGHT, WIDTH)
    assert dataset.pixel_array.max() < 4096
    assert dataset.BurnedInAnnotation == "NO"
    assert str(dataset.PatientName).startswith("PHANTOM^")


def test_dicom_has_both_photometric_interpretations_and_unique_valid_uids() -> None:
    images = [radiograph(seed, finding) for seed in range(8) for finding in FINDINGS]
    datasets = [pydicom.dcmread(io.BytesIO(encode_dicom(image))) for image in images]
    assert {dataset.PhotometricInterpretation for dataset in datasets} == {"MONOCHROME1", "MONOCHROME2"}
    uids = [dataset.SOPInstanceUID for dataset in datasets]
    assert len(set(uids)) == len(uids)
    assert all(uid.is_valid for uid in uids)


def test_dicom_photometric_interpretation_does_not_tell_the_finding() -> None:
    for seed in SEEDS:
        read = [pydicom.dcmread(io.BytesIO(encode_dicom(radiograph(seed, finding)))) for finding in FINDINGS]
        assert len({dataset.PhotometricInterpretation for dataset in read}) == 1


def test_set_alternates_and_never_repeats_a_patient(small_set: list[Radiograph]) -> None:
    assert all(a.finding != b.finding for a, b in pairwise(small_set))
    assert len({image.patient_id for image in small_set}) == len(small_set)


def test_longer_set_begins_with_the_shorter(small_set: list[Radiograph]) -> None:
    for longer, shorter in zip(small_set, generate_set(2, seed=5), strict=False):
        np.testing.assert_array_equal(longer.pixels, shorter.pixels)


def test_no_shortcut_by_size_brightness_or_border(small_set: list[Radiograph]) -> None:
    """Neither group's mean leaves the other's by more than the chance that 8 against 8 leave."""
    measures = {
        "height": lambda image: image.pixels.shape[0],
        "width": lambda image: image.pixels.shape[1],
        "mean": lambda image: image.pixels.mean(),
        "top": lambda image: image.pixels[:60].mean(),
        "bottom": lambda image: image.pixels[-60:].mean(),
    }
    for name, measure in measures.items():
        groups = [np.array([measure(i) for i in small_set if i.finding == finding]) for finding in FINDINGS]
        deviation = np.sqrt(sum(group.var(ddof=1) for group in groups) / 2)
        assert abs(groups[0].mean() - groups[1].mean()) < 1.4 * deviation, name


def test_a_marker_is_planted_on_the_opacities_alone() -> None:
    height, width = 320, 272
    for finding, differs in (("normal", False), ("opacities", True)):
        plain, marked = (
            [image for image in generate_set(4, seed=5, marker=marker) if image.finding == finding]
            for marker in (False, True)
        )
        for one, other in zip(plain, marked, strict=True):
            assert (one.pixels != other.pixels).any() == differs
    plain, marked = (
        generate_radiograph(1, finding="normal", height=height, width=width, marker=marker).pixels
        for marker in (False, True)
    )
    rows, columns = np.nonzero(plain != marked)
    assert rows.min() > 0.85 * height
    assert columns.max() < 0.18 * width


def test_folder_and_manifest(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = write_folder(tmp_path / "phantoms", 6, seed=9, progress=lambda done, n: seen.append((done, n)))
    with manifest.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert manifest == tmp_path / "phantoms" / "manifest.csv"
    assert list(rows[0]) == ["file", "label", "finding", "patient_id", "source"]
    assert [(row["label"], row["finding"]) for row in rows] == [("0", "normal"), ("1", "opacities")] * 3
    assert [row["file"] for row in rows] == [
        f"{row['finding']}/{row['patient_id']}{suffix}"
        for row, suffix in zip(rows, (".png", ".png", ".jpeg", ".jpeg", ".dcm", ".dcm"), strict=True)
    ]
    assert all((manifest.parent / row["file"]).stat().st_size > 1000 for row in rows)
    assert seen == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize("formats", [(), ("png", "tiff")])
def test_unknown_formats_write_nothing(tmp_path: Path, formats: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected one or more of png, jpeg, dicom"):
        write_folder(tmp_path, 2, seed=1, formats=formats)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
