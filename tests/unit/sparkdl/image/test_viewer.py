"""What a browser gets: sizes, windows, and that it is what the stream renders."""

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian

from schemas.errors import RecordError
from sparkdl.image.decode import decode_image
from sparkdl.image.row import array_from_row
from sparkdl.image.viewer import STEP_PX, View, make_full, make_steps, make_thumbnail
from tests.testimages import (
    dicom,
    good_files,
    gray_pixels,
    jpeg,
    png,
    rgb_pixels,
    rotated_jpeg,
    twelve_bit_pixels,
    wrong_files,
)

ORIGIN = "xray.images-0@1"
NETWORK = (32, 40)


def opened(view: View) -> Image.Image:
    image = Image.open(io.BytesIO(view.content))
    assert (image.width, image.height) == (view.width, view.height)
    assert image.get_format_mimetype() == view.media_type
    return image


def rendered(payload: bytes) -> np.ndarray:
    return array_from_row(decode_image(payload, origin=ORIGIN).image)[..., 0]


def windowed(view: View) -> np.ndarray:
    """What a browser shows before anybody moves the window."""
    values = np.asarray(opened(view)).astype(float)
    return np.rint(np.clip((values - view.low) / (view.high - view.low), 0, 1) * 255)


def test_a_thumbnail_is_a_few_kilobytes_and_keeps_the_shape() -> None:
    view = make_thumbnail(png(gray_pixels(1000, 800)), origin=ORIGIN)
    assert (view.height, view.width) == (256, 205)
    assert len(view.content) < 8000
    assert opened(view).convert("L").getpixel((20, 20)) == pytest.approx(240, abs=6)


def test_a_small_image_is_not_made_larger() -> None:
    view = make_thumbnail(png(), origin=ORIGIN)
    assert (view.height, view.width) == gray_pixels().shape


def test_colours_are_not_swapped() -> None:
    pixels = rgb_pixels(400, 300)
    found = np.asarray(opened(make_thumbnail(png(pixels), origin=ORIGIN)).convert("RGB")).reshape(-1, 3)
    np.testing.assert_allclose(found.mean(axis=0), pixels.reshape(-1, 3).mean(axis=0), atol=4)


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"WindowCenter": 2000, "WindowWidth": 1500},
        {"WindowCenter": 2000, "WindowWidth": 1500, "photometric": "MONOCHROME1"},
        {"WindowCenter": 500, "WindowWidth": 900, "RescaleSlope": 0.5, "RescaleIntercept": -300},
        {"WindowCenter": 100, "WindowWidth": 9000, "RescaleSlope": 1, "RescaleIntercept": -1024},
        {"PixelPaddingValue": 3840, "photometric": "MONOCHROME1"},
    ],
)
def test_a_full_view_of_12_bits_in_its_own_window_is_what_the_stream_shows(elements: dict[str, Any]) -> None:
    payload = dicom(twelve_bit_pixels(), **elements)
    view = make_full(payload, origin=ORIGIN)
    assert view.bits == 16
    assert np.abs(windowed(view) - rendered(payload)).max() <= 1
    # More than the stream's 256 grays is there to be windowed.
    assert len(np.unique(np.asarray(opened(view)))) > 256


def test_a_png_of_16_bits_keeps_them() -> None:
    payload = png(twelve_bit_pixels())
    view = make_full(payload, origin=ORIGIN)
    assert view.bits == 16
    np.testing.assert_array_equal(np.asarray(opened(view)), twelve_bit_pixels())
    assert np.abs(windowed(view) - rendered(payload)).max() <= 1


@pytest.mark.parametrize("payload", [png(), jpeg(), rotated_jpeg(), dicom(gray_pixels(), bits_stored=8)])
def test_a_full_view_of_8_bits_is_what_the_stream_renders(payload: bytes) -> None:
    view = make_full(payload, origin=ORIGIN)
    assert (view.bits, view.low, view.high) == (8, 0, 255)
    np.testing.assert_array_equal(np.asarray(opened(view)), rendered(payload))


def test_a_plate_of_32_mib_is_shrunk_in_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    plate = rng.integers(0, 4096, (4280, 3840), np.uint16)
    plate[: 4280 // 2] //= 2
    payload = dicom(plate, syntax=ExplicitVRLittleEndian)
    assert len(payload) > 31 * 2**20
    tracemalloc.start()
    view = make_full(payload, origin=ORIGIN)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (view.height, view.width) == (2048, 1837)
    values = np.asarray(opened(view)).astype(float)
    # Averages, so noise is gone and the halves are told apart.
    assert values[:900].mean() == pytest.approx(plate[:1800].mean(), rel=0.01)
    assert values[1100:].mean() == pytest.approx(plate[2300:].mean(), rel=0.01)
    assert peak < 160e6


def test_steps_end_in_what_the_network_sees() -> None:
    payload = dicom(twelve_bit_pixels(), WindowCenter=2000, WindowWidth=1500, photometric="MONOCHROME1")
    seen = make_steps(payload, origin=ORIGIN, size=NETWORK)
    decoded = decode_image(payload, origin=ORIGIN, size=NETWORK)
    assert [step for step, _ in seen] == list(decoded.steps)
    assert [step.name for step, _ in seen] == ["decode", "voi", "invert", "resize"]
    _, last = seen[-1]
    assert (last.height, last.width) == NETWORK
    before, after = (np.asarray(opened(seen[n][1]).convert("L")).astype(int) for n in (1, 2))
    assert np.abs(before + after - 255).max() < 20
    assert all(max(view.height, view.width) <= STEP_PX for _, view in seen)


@pytest.mark.parametrize("payload", [png(twelve_bit_pixels()), png(rgb_pixels()), rotated_jpeg(), png()])
def test_steps_of_rasters_are_those_of_decoding(payload: bytes) -> None:
    seen = make_steps(payload, origin=ORIGIN, size=NETWORK)
    assert [step for step, _ in seen] == list(decode_image(payload, origin=ORIGIN, size=NETWORK).steps)
    assert {step.name for step, _ in seen} >= {"decode", "resize"}


def test_the_old_rendering_tells_no_steps() -> None:
    assert make_steps(png(), origin=ORIGIN, size=NETWORK, rendering=1) == []


@pytest.mark.parametrize("name", sorted(good_files()))
def test_whatever_the_stream_reads_has_views_and_steps(name: str) -> None:
    payload = good_files()[name]
    decoded = decode_image(payload, origin=ORIGIN)
    for make in (make_thumbnail, make_full):
        view = make(payload, origin=ORIGIN)
        assert (view.height, view.width) == (decoded.image.height, decoded.image.width)
        assert view.low < view.high
    if view.bits == 16:
        assert np.abs(windowed(view) - rendered(payload)).max() <= 1
    seen = make_steps(payload, origin=ORIGIN, size=NETWORK)
    assert [step for step, _ in seen] == list(decode_image(payload, origin=ORIGIN, size=NETWORK).steps)


@pytest.mark.parametrize("name", sorted(name for name, file in wrong_files().items() if file.payload))
def test_what_the_stream_refuses_has_no_view(name: str) -> None:
    wrong = wrong_files()[name]
    try:
        decode_image(wrong.payload, origin=ORIGIN)
    except RecordError as exc:
        reason = exc.reason
    else:  # only its declared type is wrong
        return
    # A PNG of 16 bits that 8 bits make one gray of is still there to be looked at.
    shown = name == "one_gray_16.png"
    for make in (make_thumbnail,) if shown else (make_thumbnail, make_full):
        with pytest.raises(RecordError) as failure:
            make(wrong.payload or b"", origin=ORIGIN)
        assert failure.value.reason == reason
    assert not shown or make_full(wrong.payload or b"", origin=ORIGIN).bits == 16


def test_a_view_has_nothing_but_pixels() -> None:
    payload = dicom(twelve_bit_pixels())
    assert b"Example^Synthetic" in payload
    for make in (make_thumbnail, make_full):
        assert b"Example" not in make(payload, origin=ORIGIN).content
