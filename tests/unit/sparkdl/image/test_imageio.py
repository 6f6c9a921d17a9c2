"""`sparkdl.image.imageIO` without Spark: types, both directions, Pillow, channel order and sizes."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pyspark.sql import Row

from sparkdl.image import imageIO
from sparkdl.image.pixels import resize_pixels
from sparkdl.image.row import IMAGE_DDL, array_from_row
from tests import testimages

HEIGHT, WIDTH = 5, 7
FIELDS = ["origin", "height", "width", "nChannels", "mode", "data"]
TYPES = [
    ("CV_8UC1", 0, 1, "uint8"),
    ("CV_8UC3", 16, 3, "uint8"),
    ("CV_8UC4", 24, 4, "uint8"),
    ("CV_32FC1", 5, 1, "float32"),
    ("CV_32FC3", 21, 3, "float32"),
    ("CV_32FC4", 29, 4, "float32"),
]


def bgr(channels=3, dtype="uint8", height=HEIGHT, width=WIDTH):
    """Every value tells its row, column and channel apart."""
    values = np.arange(height * width * channels).reshape(height, width, channels)
    return (values / 3 - 10).astype(dtype) if dtype == "float32" else values.astype(dtype)


def broken(**change):
    good = {"origin": "o", "height": 2, "width": 3, "nChannels": 3, "mode": 16, "data": bytes(18)}
    return Row(*FIELDS)(*{**good, **change}.values())


# --- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_types_are_opencvs(kind):
    assert imageIO.imageTypeByName(kind[0]) == kind == imageIO.imageTypeByOrdinal(kind[1])
    assert imageIO.imageTypeByOrdinal(kind[1])._fields == ("name", "ord", "nChannels", "dtype")
    assert imageIO.imageType(broken(mode=kind[1])) == kind


def test_there_are_no_other_types():
    assert len(imageIO.supportedOcvTypes) == len(TYPES)
    with pytest.raises(KeyError, match=r"image type is 8, expected one of \[0, 5, 16, 21, 24, 29\]"):
        imageIO.imageTypeByOrdinal(8)
    with pytest.raises(KeyError, match="image type is 'CV_8UC2', expected one of CV_8UC1"):
        imageIO.imageTypeByName("CV_8UC2")
    with pytest.raises(KeyError, match="image type is -1"):
        imageIO.imageType(broken(mode=-1))


def test_schema_is_that_of_the_image_row():
    assert imageIO.imageSchema.names == FIELDS
    fields = [f"{field.name} {field.dataType.simpleString()}" for field in imageIO.imageSchema.fields]
    assert ", ".join(fields) == IMAGE_DDL


# --- struct and array -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "mode", "channels", "dtype"), TYPES)
def test_round_trip_keeps_every_value(name, mode, channels, dtype):
    pixels = bgr(channels, dtype)
    struct = imageIO.imageArrayToStruct(pixels, origin="a.png")
    assert list(struct.asDict()) == FIELDS
    assert tuple(struct) == ("a.png", HEIGHT, WIDTH, channels, mode, pixels.tobytes())
    assert type(struct.data) is bytes
    back = imageIO.imageStructToArray(struct)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, pixels, strict=True)


def test_the_engine_reads_the_same_pixels():
    pixels = bgr()
    np.testing.assert_array_equal(array_from_row(imageIO.imageArrayToStruct(pixels)), pixels)


def test_a_gray_array_of_two_axes_and_a_batch_of_one():
    gray = bgr(1)
    assert tuple(imageIO.imageArrayToStruct(gray[..., 0]))[1:5] == (HEIGHT, WIDTH, 1, 0)
    assert imageIO.imageArrayToStruct(gray[np.newaxis]) == imageIO.imageArrayToStruct(gray)
    assert imageIO.imageArrayToStruct(gray).origin == ""


def test_a_strided_view_is_written_in_its_own_order():
    pixels = bgr()[:, ::-1, ::-1]
    np.testing.assert_array_equal(imageIO.imageStructToArray(imageIO.imageArrayToStruct(pixels)), pixels)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_the_array_is_a_view_of_the_structs_data(kind, dtype):
    pixels = bgr(4, dtype)
    data = kind(pixels.tobytes())
    struct = broken(height=HEIGHT, width=WIDTH, nChannels=4, mode={"uint8": 24, "float32": 29}[dtype], data=data)
    array = imageIO.imageStructToArray(struct)
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))
    np.testing.assert_array_equal(array, pixels, strict=True)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((2, 3, 3), np.float64), "is float64 with 3 channels, expected uint8 or float32 with 1, 3 or 4"),
        (np.zeros((2, 3, 3), np.int64), "is int64"),
        (np.zeros((2, 3), np.uint16), "is uint16 with 1 channels"),
        (np.zeros((2, 3, 3), ">f4"), "is >f4"),
        (np.zeros((2, 3, 2), np.uint8), "is uint8 with 2 channels"),
        (np.zeros((2, 3, 5), np.float32), "is float32 with 5 channels"),
        (np.zeros(6, np.uint8), r"shape \(6,\), expected \(height, width\)"),
        (np.zeros((2, 2, 3, 3), np.uint8), r"shape \(2, 2, 3, 3\)"),
        (np.zeros((0, 3, 3), np.uint8), r"shape \(0, 3, 3\)"),
    ],
)
def test_other_arrays_are_refused(pixels, words):
    with pytest.raises(ValueError, match=words):
        imageIO.imageArrayToStruct(pixels)


BROKEN = [
    ({"nChannels": 1}, ValueError, "o: nChannels is 1, expected 3 for mode 16"),
    ({"nChannels": None}, ValueError, "nChannels is None"),
    ({"height": 0}, ValueError, "o: size is 0x3"),
    ({"height": -2, "width": -3}, ValueError, "size is -2x-3"),
    ({"height": None}, ValueError, "size is Nonex3"),
    ({"data": None, "origin": None}, ValueError, "image: data is missing"),
    ({"data": bytes(17)}, ValueError, r"data has 17 bytes, expected 18 for CV_8UC3 of \(2, 3, 3\)"),
    ({"data": bytes(19)}, ValueError, "data has 19 bytes"),
    ({"mode": 21}, ValueError, "data has 18 bytes, expected 72 for CV_32FC3"),
    ({"mode": 13}, KeyError, "image type is 13"),
    ({"mode": None}, KeyError, "image type is None"),
    ({"height": -1, "width": -1, "nChannels": -1, "mode": -1, "data": b""}, KeyError, "image type is -1"),
]


@pytest.mark.parametrize(("change", "error", "words"), BROKEN)
def test_a_struct_that_contradicts_itself_is_refused(change, error, words):
    with pytest.raises(error, match=words):
        imageIO.imageStructToArray(broken(**change))


# --- Pillow -----------------------------------------------------------------------------------------------------------


def test_struct_to_pillow_swaps_red_and_blue_and_leaves_alpha():
    blue, green, red, alpha = (bgr(4)[..., channel] for channel in range(4))
    for channels, mode, wanted in [
        (1, "L", [blue]),
        (3, "RGB", [red, green, blue]),
        (4, "RGBA", [red, green, blue, alpha]),
    ]:
        image = imageIO.imageStructToPIL(imageIO.imageArrayToStruct(bgr(4)[..., :channels]))
        assert (image.mode, image.size) == (mode, (WIDTH, HEIGHT))
        for band, pixels in zip(image.split(), wanted, strict=True):
            np.testing.assert_array_equal(np.asarray(band), pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_float_images_have_no_pillow_form(channels):
    struct = imageIO.imageArrayToStruct(bgr(channels, "float32"), "f.npy")
    with pytest.raises(ValueError, match=f"^f.npy: image type is CV_32FC{channels}, expected 8 bits a channel"):
        imageIO.imageStructToPIL(struct)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pillow_and_back(channels):
    pixels = bgr(channels)
    image = imageIO.imageStructToPIL(imageIO.imageArrayToStruct(pixels))
    np.testing.assert_array_equal(imageIO.PIL_to_imageStruct(image), pixels, strict=True)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_decode_gives_the_structs_layout(channels):
    pixels = bgr(channels)
    rgb = pixels[..., 0] if channels == 1 else pixels[..., [2, 1, 0, 3][:channels]]
    np.testing.assert_array_equal(imageIO.PIL_decode(testimages.png(rgb)), pixels, strict=True)


def test_decode_expands_what_pillow_stores_otherwise():
    palette = Image.open(io.BytesIO(testimages.palette_png()))
    wanted = np.asarray(palette.convert("RGB"))[..., ::-1]
    np.testing.assert_array_equal(imageIO.PIL_decode(testimages.palette_png()), wanted)
    assert len(np.unique(wanted.reshape(-1, 3), axis=0)) > 2

    bilevel = imageIO.PIL_decode(testimages.bilevel_png())
    assert bilevel.shape == (testimages.HEIGHT, testimages.WIDTH, 1)
    assert set(np.unique(bilevel)) == {0, 255}

    gray_alpha = imageIO.PIL_decode(testimages.gray_alpha_png())
    assert gray_alpha.shape == (testimages.HEIGHT, testimages.WIDTH, 4)
    np.testing.assert_array_equal(gray_alpha[..., 0], testimages.gray_pixels())
    assert not gray_alpha[..., 3].any()


def test_a_transparent_palette_keeps_its_transparency():
    image = Image.fromarray(testimages.rgb_pixels()).quantize(8)
    decoded = imageIO.PIL_decode(testimages.encode(image, "PNG", transparency=0))
    transparent = np.asarray(image) == 0
    np.testing.assert_array_equal(decoded[..., 3], np.where(transparent, 0, 255))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not an image",
        b"\x89PNG\r\n\x1a\n garbage",
        testimages.png(testimages.rgb_pixels())[:100],
        testimages.jpeg()[:-100],
        None,
    ],
    ids=["empty", "text", "signature only", "half a PNG", "half a JPEG", "null"],
)
def test_decode_of_garbage_is_none(payload):
    assert imageIO.PIL_decode(payload) is None
    assert imageIO.PIL_decode_and_resize((4, 6))(payload) is None


def test_sixteen_bits_are_refused_not_clipped():
    with pytest.raises(ValueError, match="Pillow's image mode is I;16, expected one of L, RGB, RGBA, P"):
        imageIO.PIL_decode(testimages.png(testimages.twelve_bit_pixels()))


# --- channels and sizes -----------------------------------------------------------------------------------------------


def test_channel_order_is_brought_to_bgr_and_alpha_stays():
    pixels = bgr(4)
    np.testing.assert_array_equal(imageIO.fixColorChannelOrdering("RGB", pixels[..., :3]), pixels[..., [2, 1, 0]])
    np.testing.assert_array_equal(imageIO.fixColorChannelOrdering("RGB", pixels), pixels[..., [2, 1, 0, 3]])
    floats = bgr(3, "float32")[np.newaxis]
    np.testing.assert_array_equal(imageIO.fixColorChannelOrdering("RGB", floats), floats[..., ::-1], strict=True)
    assert imageIO.fixColorChannelOrdering("BGR", pixels) is pixels


@pytest.mark.parametrize("gray", [bgr(1), bgr(1)[..., 0], bgr(1)[np.newaxis]])
def test_gray_has_no_order(gray):
    assert imageIO.fixColorChannelOrdering("L", gray) is gray


@pytest.mark.parametrize(
    ("order", "pixels", "words"),
    [
        ("L", bgr(3), r"of channel order L has shape \(5, 7, 3\), expected \(height, width\) or"),
        ("RGB", bgr(1), r"of channel order RGB has shape \(5, 7, 1\), expected \(height, width, 3 \| 4\)"),
        ("RGB", bgr(1, width=3)[..., 0], r"has shape \(5, 3\)"),
        ("BGR", bgr(2), r"has shape \(5, 7, 2\)"),
        ("bgr", bgr(3), "channel order is 'bgr', expected 'L', 'RGB' or 'BGR'"),
    ],
)
def test_an_order_that_contradicts_the_shape_is_refused(order, pixels, words):
    with pytest.raises(ValueError, match=words):
        imageIO.fixColorChannelOrdering(order, pixels)


@pytest.mark.parametrize(("name", "mode", "channels", "dtype"), TYPES)
@pytest.mark.parametrize("size", [(3, 11), (11, 3), (5, 4), (7, 5)])
def test_resize_gives_height_then_width(name, mode, channels, dtype, size):
    pixels = bgr(channels, dtype)
    resized = imageIO.createResizeImageUDF(size).func(imageIO.imageArrayToStruct(pixels, "a.png"))
    assert tuple(resized)[:5] == ("a.png", *size, channels, mode)
    array = imageIO.imageStructToArray(resized)
    if dtype == "uint8":
        np.testing.assert_array_equal(array, resize_pixels(pixels, size))
    else:
        # The same picture, value / 3 - 10; resizing 8 bits rounds once for each axis.
        eight_bit = resize_pixels(bgr(channels), size).astype(float) / 3 - 10
        np.testing.assert_allclose(array, eight_bit, atol=1 / 3 + 1e-4)


def test_resize_is_antialiased():
    stripes = np.zeros((40, 60, 3), np.uint8)
    stripes[:, ::2] = 255
    resized = imageIO.createResizeImageUDF((10, 6)).func(imageIO.imageArrayToStruct(stripes))
    # One pixel of ten takes in both colours; picking or mixing neighbours would leave stripes of 0 and 255.
    assert np.ptp(imageIO.imageStructToArray(resized)) <= 20


def test_only_the_size_itself_is_left_alone(monkeypatch):
    """The first sparkdl compared (height, width) with (width, height): spy on whether Pillow is asked."""
    asked = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, *rest, **more: asked.append(size) or resize(image, size)
    )
    struct = imageIO.imageArrayToStruct(bgr(1))
    assert imageIO.createResizeImageUDF((HEIGHT, WIDTH)).func(struct) == struct
    assert asked == []
    assert imageIO.createResizeImageUDF((WIDTH, HEIGHT)).func(struct) != struct
    assert asked == [(HEIGHT, WIDTH)]  # Pillow's (width, height) of 7 high and 5 wide


def test_resize_leaves_colour_under_transparency_alone():
    pixels = np.full((6, 8, 4), 200, np.uint8)
    pixels[..., 3] = 0
    resized = imageIO.createResizeImageUDF((3, 2)).func(imageIO.imageArrayToStruct(pixels))
    np.testing.assert_array_equal(imageIO.imageStructToArray(resized), pixels[:3, :2])


@pytest.mark.parametrize("change", [change for change, _, _ in BROKEN])
def test_a_broken_struct_resizes_to_null(change):
    assert imageIO.createResizeImageUDF((2, 3)).func(broken(**change)) is None


def test_null_resizes_to_null():
    assert imageIO.createResizeImageUDF((2, 3)).func(None) is None


def test_a_struct_with_its_fields_in_another_order_resizes_into_the_schemas():
    struct = Row(mode=16, height=2, width=3, nChannels=3, data=bytes(18), origin="old")
    assert tuple(imageIO.createResizeImageUDF((2, 3)).func(struct)) == ("old", 2, 3, 3, 16, bytes(18))


@pytest.mark.parametrize("size", [(1, 2, 3), (4,), (0, 4), (4, -1), (4.5, 4), ("4", "4")])
def test_a_size_is_two_whole_numbers(size):
    with pytest.raises(ValueError, match=r"expected \(height, width\) in whole pixels"):
        imageIO.createResizeImageUDF(size)
    with pytest.raises(ValueError, match=r"expected \(width, height\) in whole pixels"):
        imageIO.PIL_decode_and_resize(size)


def test_decode_and_resize_takes_pillows_order():
    decoded = imageIO.PIL_decode_and_resize([8, 6])(testimages.png(testimages.rgb_pixels()))
    np.testing.assert_array_equal(decoded, resize_pixels(testimages.rgb_pixels(), (6, 8))[..., ::-1], strict=True)


def test_it_imports_neither_decoders_nor_engines():
    heavy = "{'pydicom', 'gdcm', 'openvino', 'keras', 'pandas', 'pyspark.ml'}"
    code = f"import sys, sparkdl.image.imageIO; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
