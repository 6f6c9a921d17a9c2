"""Frame headers of JPEG streams, and where their data begin."""

import struct

import imagecodecs
import numpy as np
import pytest

from sparkdl.image import raster
from sparkdl.image.decode import decode_image
from sparkdl.image.jpeg import find_first_scan, limit_exif, read_jpeg_header
from sparkdl.image.limits import DecodeLimits
from sparkdl.image.row import array_from_row
from tests.testimages import HEIGHT, WIDTH, gray_pixels, jpeg, rgb_pixels, rotated_jpeg, twelve_bit_pixels

DEEP, GRAY = twelve_bit_pixels(), gray_pixels()


@pytest.mark.parametrize(
    ("stream", "name", "bits", "components"),
    [
        pytest.param(jpeg(), "SOF0", 8, 1, id="baseline, gray"),
        pytest.param(jpeg(rgb_pixels()), "SOF0", 8, 3, id="baseline, colour"),
        pytest.param(jpeg(progressive=True), "SOF2", 8, 1, id="progressive"),
        pytest.param(jpeg(exif=b"Exif\0\0" + jpeg(np.zeros((8, 8), np.uint8))), "SOF0", 8, 1, id="thumbnail before"),
        pytest.param(jpeg(icc_profile=bytes(200_000)), "SOF0", 8, 1, id="profile before"),
        pytest.param(imagecodecs.jpeg8_encode(DEEP, bitspersample=12), "SOF1", 12, 1, id="12 bits"),
        pytest.param(imagecodecs.jpeg8_encode(GRAY, lossless=True), "SOF3", 8, 1, id="lossless"),
        pytest.param(imagecodecs.jpeg8_encode(DEEP, lossless=True, bitspersample=14), "SOF3", 14, 1, id="lossless, 14"),
        pytest.param(imagecodecs.jpegls_encode(DEEP), "SOF55", 16, 1, id="JPEG-LS"),
    ],
)
def test_headers_of_other_encoders(stream, name, bits, components):
    header = read_jpeg_header(bytes(stream))
    assert (header.name, header.bits, header.components) == (name, bits, components)
    assert (header.height, header.width) == (HEIGHT, WIDTH)
    assert stream[header.start + 1] == header.process


HEADER = b"\xff\xc0\0\x0b\x08\0\x10\0\x20\1\1\x11\0"  # 16 x 32
LARGE = b"\xff\xc0\0\x0b\x08\xff\0\xff\0\1\1\x11\0"


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\xff\xff", id="fill bytes"),
        pytest.param(b"\xff\xd0", id="restart marker"),
        pytest.param(b"\xff\x01", id="TEM"),
        pytest.param(b"\xff\xe1\0\x0f" + LARGE, id="a header inside a segment"),
        pytest.param(b"\xff\xfe\0\2", id="empty comment"),
        pytest.param(b"\xff\xc4\0\2\xff\xcc\0\2", id="tables"),
    ],
)
def test_segments_before_are_passed(before):
    header = read_jpeg_header(b"\xff\xd8" + before + HEADER)
    assert (header.height, header.width) == (16, 32)
    assert header.start == 2 + len(before)


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(HEADER, id="no start of image"),
        pytest.param(b"\xff\xd8" + HEADER[:9], id="cut"),
        pytest.param(b"\xff\xd8\xff\xda\0\2" + HEADER, id="behind the scan"),
        pytest.param(b"\xff\xd8\xff\xd8" + HEADER, id="two starts"),
        pytest.param(b"\xff\xd8\xff\xd9" + HEADER, id="behind the end"),
        pytest.param(b"\xff\xd8\xff\0" + HEADER, id="stuffing"),
        pytest.param(b"\xff\xd8\0\0" + HEADER, id="garbage"),
        pytest.param(b"\xff\xd8\xff\xe1\xff\xff" + HEADER, id="a segment that leads past the end"),
    ],
)
def test_where_libraries_may_read_otherwise_there_is_no_header(stream):
    assert read_jpeg_header(stream) is None


@pytest.mark.parametrize(
    ("stream", "offset"),
    [
        pytest.param(b"\xff\xd8" + HEADER + b"\xff\xda\0\2\1\2\3", 15, id="scan"),
        pytest.param(b"\xff\xd8\xff\xe1\0\x08\xff\xda\0\2\0\0\xff\xda\0\2", 12, id="not one in a segment"),
        pytest.param(b"\xff\xd8" + HEADER + b"\7\xff\xd9", None, id="too short for another segment"),
        pytest.param(b"\xff\xd8\xff\xe1\0\4\0\0\7\xff\xd9\0\0", None, id="damage alone"),
        pytest.param(b"\xff\xd8\xff\xe1\0\4\0\0\7\xff\0\7\xff\xd9\0\xff\xff\xff\xda\0", 17, id="behind damage"),
        pytest.param(b"\xff\xd8\xff\xe1\xff\xff\0\0", None, id="past the end"),
        pytest.param(b"\xff\xd8", None, id="nothing"),
    ],
)
def test_where_compressed_data_begin(stream, offset):
    assert find_first_scan(stream) == offset


@pytest.mark.parametrize(
    ("unit", "most"),
    [
        pytest.param(b"\xff\xe1\0\2", 499, id="segments"),
        pytest.param(b"\xff\xe1\0\4\xff\xda", 499, id="segments that hold a marker"),
        pytest.param(b"\xff\xd0", 499, id="markers without length"),
        pytest.param(b"\xff\xf0", 499, id="markers that Pillow does not know"),
        pytest.param(b"\0", 65_536, id="zeros"),
        pytest.param(b"\xff", 65_536, id="fill bytes"),
        pytest.param(b"\xff\0", 32_768, id="stuffed bytes"),
        pytest.param(b"\xff\xf0" + bytes(9998), 6, id="segments of no meaning"),
    ],
)
def test_so_much_may_stand_before_the_first_scan(unit, most):
    assert find_first_scan(b"\xff\xd8" + unit * most + b"\xff\xda") == 2 + most * len(unit)
    assert find_first_scan(b"\xff\xd8" + unit * (most + 1) + b"\xff\xda") is None


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_exif_block_in_many_pieces_is_read_as_far_as_its_first(orientation):
    """Pillow copies all that it has of the block for each piece: seconds, and gigabytes, of a file of 30 MB."""
    whole = rotated_jpeg(orientation)
    start = whole.index(b"\xff\xe1")
    end = start + 2 + int.from_bytes(whole[start + 2 : start + 4], "big")
    head, tail = whole[:end], whole[end:]
    assert head[start + 4 : start + 10] == b"Exif\0\0"
    further = b"\xff\xe1" + struct.pack(">H", 60_008) + b"Exif\0\0" + bytes(60_000)
    other = b"\xff\xe1" + struct.pack(">H", 8) + b"else\0\0"
    many = head + 10 * further + other + 40 * further + tail

    kept = limit_exif(many)
    assert kept == head + 10 * further + other + 5 * further + tail
    assert limit_exif(kept) is kept
    assert limit_exif(whole) is whole

    images = [decode_image(stream, origin="a.jpg") for stream in (many, whole)]
    np.testing.assert_array_equal(*[array_from_row(one.image) for one in images])
    _, opened = raster._open_jpeg(many, "a.jpg", DecodeLimits())
    assert len(opened.info["exif"]) < 1 << 20
