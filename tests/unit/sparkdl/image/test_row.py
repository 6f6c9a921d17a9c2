"""The image row: layout, order, no copies, and what is refused."""

import pickle
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest

from schemas.errors import CorruptImageError, Reason, UnsupportedImageError
from sparkdl.image.row import IMAGE_DDL, ImageRow, array_from_row, row_from_array


def bgr(height=2, width=3, channels=3):
    """Every byte tells its row, column and channel apart."""
    return np.arange(height * width * channels, dtype=np.uint8).reshape(height, width, channels)


def test_fields_are_in_the_order_of_sparks_schema():
    names = [field.name for field in fields(ImageRow)]
    assert names == ["origin", "height", "width", "nChannels", "mode", "data"]
    assert [part.split()[0] for part in IMAGE_DDL.split(", ")] == names
    assert IMAGE_DDL == "origin string, height int, width int, nChannels int, mode int, data binary"


@pytest.mark.parametrize(("channels", "mode"), [(1, 0), (3, 16), (4, 24)])
def test_round_trip_keeps_every_pixel(channels, mode):
    pixels = bgr(channels=channels)
    row = row_from_array(pixels, origin="a.png")
    assert row == ImageRow("a.png", 2, 3, channels, mode, bytes(range(6 * channels)))
    np.testing.assert_array_equal(array_from_row(row), pixels)


def test_a_gray_array_of_two_dimensions_gets_one_channel():
    row = row_from_array(bgr(channels=1)[..., 0], origin="a")
    assert (row.height, row.width, row.nChannels, row.mode) == (2, 3, 1, 0)
    assert array_from_row(row).shape == (2, 3, 1)


def test_a_strided_view_is_written_in_its_own_order():
    pixels = bgr()
    row = row_from_array(pixels[:, ::-1, ::-1], origin="a")
    np.testing.assert_array_equal(array_from_row(row), pixels[:, ::-1, ::-1])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_the_array_is_a_view_of_the_rows_data(kind):
    data = kind(bytes(range(18)))
    row = SimpleNamespace(origin="a", height=2, width=3, nChannels=3, mode=16, data=data)
    assert np.shares_memory(array_from_row(row), np.frombuffer(data, np.uint8))


def test_a_row_survives_pickling():
    row = row_from_array(bgr(), origin="a")
    assert pickle.loads(pickle.dumps(row)) == row  # noqa: S301


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((2, 3), np.uint16), "pixels are uint16, expected uint8"),
        (np.zeros((2, 3), np.float32), "pixels are float32"),
        (np.zeros((2, 3, 2), np.uint8), "nChannels is 2, expected 1, 3 or 4"),
        (np.zeros(6, np.uint8), "shape (6,)"),
        (np.zeros((1, 2, 3, 3), np.uint8), "shape (1, 2, 3, 3)"),
        (np.zeros((0, 3), np.uint8), "shape (0, 3)"),
    ],
)
def test_other_arrays_are_refused(pixels, words):
    with pytest.raises(UnsupportedImageError) as failure:
        row_from_array(pixels, origin="images-3@1024")
    assert failure.value.reason == Reason.UNSUPPORTED_FORMAT
    assert str(failure.value).startswith("images-3@1024: ")
    assert words in str(failure.value)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"nChannels": 2}, UnsupportedImageError, "nChannels is 2, expected 1, 3 or 4"),
        ({"mode": 21}, UnsupportedImageError, "mode is 21, expected 16 for 3 channels"),
        ({"mode": -1, "nChannels": -1, "height": -1, "width": -1}, UnsupportedImageError, "nChannels is -1"),
        ({"height": 0}, CorruptImageError, "size is 0x3"),
        ({"height": -2, "width": -3}, CorruptImageError, "size is -2x-3"),
        ({"data": None}, CorruptImageError, "data is missing"),
        ({"data": b"123"}, CorruptImageError, "data has 3 bytes, expected 18 for 2x3x3"),
        ({"data": bytes(19)}, CorruptImageError, "data has 19 bytes, expected 18"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(change, error, words):
    good = {"origin": "o", "height": 2, "width": 3, "nChannels": 3, "mode": 16, "data": bytes(18)}
    with pytest.raises(error, match=r"^o: ") as failure:
        array_from_row(SimpleNamespace(**{**good, **change}))
    assert words in str(failure.value)


def test_a_row_without_origin_still_says_what_is_wrong():
    row = SimpleNamespace(origin=None, height=2, width=3, nChannels=3, mode=0, data=bytes(18))
    with pytest.raises(UnsupportedImageError, match=r"^image: mode is 0, expected 16"):
        array_from_row(row)
