"""PNG, JPEG and the checks before them: every reason, every layout, and nothing but a `RecordError` for damage."""

import pickle
import random
import subprocess
import sys
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from schemas.errors import ContractError, CorruptImageError, Reason, RecordError, UnsupportedImageError
from sparkdl.image.decode import decode_image, sniff_media_type
from sparkdl.image.limits import RENDERING_VERSIONS, DecodeLimits
from sparkdl.image.pixels import resize_pixels
from sparkdl.image.row import array_from_row
from tests import testimages
from tests.testimages import (
    HEIGHT,
    WIDTH,
    deep_samples,
    dicom,
    encode,
    gray_pixels,
    jpeg,
    png,
    png16,
    rgb_pixels,
    twelve_bit_pixels,
)

ORIGIN = "xray.images-3@1024"
GOOD, WRONG = testimages.good_files(), testimages.wrong_files()
LIMITS = DecodeLimits(max_payload_bytes=testimages.MAX_PAYLOAD_BYTES)
COLOUR = {"colour.png", "colour16.png", "rgba.png", "palette.png", "colour.jpg"}
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "dcm": "application/dicom"}


def pixels_of(payload, **options):
    """Give (height, width) for gray and (height, width, 3) for colour."""
    pixels = array_from_row(decode_image(payload, origin=ORIGIN, **options).image)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def reason_of(payload, **options):
    with pytest.raises(RecordError) as failure:
        decode_image(payload, origin=ORIGIN, **options)
    return failure.value.reason


# --- every good file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("size", [None, (20, 24), (96, 100)])
def test_good_files_give_a_row_of_the_size_asked_for(name, size):
    media_type = MEDIA_TYPES[name.rpartition(".")[2]]
    assert sniff_media_type(GOOD[name]) == media_type
    decoded = decode_image(GOOD[name], origin=ORIGIN, content_type=media_type, size=size)
    assert decoded.media_type == media_type
    assert (decoded.original_height, decoded.original_width) == (HEIGHT, WIDTH)
    assert (decoded.image.height, decoded.image.width) == (size or (HEIGHT, WIDTH))
    assert decoded.image.nChannels == (3 if name in COLOUR else 1)
    assert decoded.image.origin == ORIGIN
    assert array_from_row(decoded.image).std() > 10


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_give_their_reason(name):
    wrong = WRONG[name]
    with pytest.raises(RecordError) as failure:
        decode_image(wrong.payload, origin=ORIGIN, content_type=wrong.content_type, size=(20, 24), limits=LIMITS)
    error = failure.value
    assert error.reason == wrong.reason
    assert error.origin == ORIGIN
    assert str(error).startswith(f"{ORIGIN}: ")
    assert " at 0x" not in error.detail, "a memory address would make a replayed dead letter another one"
    assert pickle.loads(pickle.dumps(error)).reason == wrong.reason  # noqa: S301


def test_the_wrong_files_reach_every_reason_of_this_module():
    bounds = {Reason.RECORD_TOO_LARGE, Reason.KEY_TOO_LARGE, Reason.HEADER_TOO_LARGE, Reason.HEADERS_TOO_LARGE}
    elsewhere = {*bounds, Reason.INVALID_HEADER, Reason.DECODER_CRASH, Reason.NO_FEATURES, Reason.UNEXPECTED}
    assert {wrong.reason for wrong in WRONG.values()} >= set(Reason) - elsewhere


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("tombstone", ContractError),
        ("mismatch", ContractError),
        ("structured", ContractError),
        ("text", UnsupportedImageError),
        ("bomb.png", UnsupportedImageError),
        ("cmyk.jpg", UnsupportedImageError),
        ("truncated.jpg", CorruptImageError),
        ("damaged_data.png", CorruptImageError),
    ],
)
def test_reasons_come_in_their_branch_of_the_tree(name, error):
    with pytest.raises(error):
        decode_image(WRONG[name].payload, origin=ORIGIN, content_type=WRONG[name].content_type)


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_gray_is_exact_and_of_one_channel():
    np.testing.assert_array_equal(pixels_of(png()), gray_pixels())


@pytest.mark.parametrize("name", ["colour.png", "rgba.png", "colour16.png"])
def test_colour_is_blue_green_red_and_alpha_is_dropped(name):
    pixels = pixels_of(GOOD[name])
    np.testing.assert_array_equal(pixels, rgb_pixels()[..., ::-1])
    assert pixels[..., 0].max() == 30  # the example's blue
    assert pixels[..., 2].min() >= 60  # its red


def test_colour_of_a_jpeg_is_blue_green_red():
    difference = np.abs(pixels_of(GOOD["colour.jpg"]).astype(int) - rgb_pixels()[..., ::-1])
    assert difference.mean() < 2


def test_palette_is_expanded():
    difference = np.abs(pixels_of(GOOD["palette.png"]).astype(int) - rgb_pixels()[..., ::-1])
    assert difference.mean() < 20


@pytest.mark.parametrize("name", ["gray_alpha.png", "gray_as_colour.png"])
def test_gray_in_another_layout_is_the_same_gray(name):
    np.testing.assert_array_equal(pixels_of(GOOD[name]), gray_pixels())
    np.testing.assert_array_equal(pixels_of(GOOD[name], size=(20, 24)), pixels_of(png(), size=(20, 24)))


def test_one_different_pixel_keeps_three_channels():
    pixels = np.stack([gray_pixels()] * 3, axis=-1)
    pixels[-1, -1, 0] ^= 1
    assert pixels_of(png(pixels)).shape == (HEIGHT, WIDTH, 3)


def test_one_bit_becomes_black_and_white():
    np.testing.assert_array_equal(pixels_of(GOOD["bilevel.png"]), np.where(gray_pixels() > 100, 255, 0))


def test_a_large_jpeg_shrinks_in_its_decoder_without_moving():
    """The decoder makes 129 x 193 of 1025 x 1537 pixels, the last row and column from one: without the draft's box the
    picture would be squeezed by 0.7 percent, which the steep slope shows at its far end.
    """
    rows, columns = np.mgrid[0:1025, 0:1537]
    full = (155 * columns / 1537 + 100 * rows / 1025).astype(np.uint8)
    error = pixels_of(jpeg(full), size=(60, 80)) - resize_pixels(full, (60, 80)).astype(float)
    assert np.abs(error).mean() < 0.5
    assert abs(error[-20:, -20:].mean()) < 0.4


@pytest.mark.parametrize("name", [name for name in GOOD if not name.endswith("jpg")])
def test_resizing_while_decoding_equals_resizing_after(name):
    """The featurizer resizes rows of another size by the same function: training and serving agree."""
    after = resize_pixels(pixels_of(GOOD[name]), (20, 24))
    np.testing.assert_array_equal(pixels_of(GOOD[name], size=(20, 24)), after)


# --- one gray or colour -----------------------------------------------------------------------------------------------


def in_palette(indices, colour=(10, 20, 30), **options):
    image = Image.fromarray(indices, "P")
    image.putpalette([*colour] * 256)
    return png(image, **options)


def with_alpha(colour, alpha):
    """Build gray or RGB of one colour with an alpha channel."""
    return png(np.dstack([*(np.full_like(alpha, value) for value in colour), alpha]))


SBIT_16 = testimages.png_chunk(b"sBIT", b"\x10")


def nearly_even(step=1):
    """Hold one pixel of another gray, which a smaller picture has not."""
    pixels = np.full((400, 480), 100, np.uint8)
    pixels[201, 151] += step
    return pixels


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(png(65534 + twelve_bit_pixels() % 2), id="16 bits, all white"),
        pytest.param(png(4094 + twelve_bit_pixels() % 2), id="12 bits, all white"),
        pytest.param(png16(65534 + deep_samples(1) % 2, interlaced=True), id="16 bits, interlaced"),
        pytest.param(png16(65534 + deep_samples(3) % 2), id="16 bits, colour"),
        pytest.param(png16(np.dstack([deep_samples(1) * 0, deep_samples(1)])), id="16 bits, gray and alpha"),
        pytest.param(in_palette(gray_pixels()), id="palette"),
        pytest.param(in_palette(gray_pixels(), (90, 90, 90)), id="gray palette"),
        pytest.param(in_palette(gray_pixels() // 100, bits=2), id="palette of 2 bits"),
        pytest.param(in_palette(gray_pixels(), transparency=bytes(range(256))), id="palette with alpha"),
        pytest.param(with_alpha([0], gray_pixels()), id="gray and alpha"),
        pytest.param(with_alpha([255], gray_pixels()), id="white and alpha"),
        pytest.param(with_alpha([0, 0, 0], gray_pixels()), id="black and alpha"),
        pytest.param(with_alpha([10, 20, 30], gray_pixels()), id="colour and alpha"),
    ],
)
@pytest.mark.parametrize("size", [None, (20, 24), (96, 100)])
def test_different_pixels_that_become_one_colour_are_refused(payload, size):
    assert reason_of(payload, size=size) == Reason.BLANK_RENDERING


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(png(nearly_even()), id="gray.png"),
        pytest.param(png16(nearly_even()[..., None] * np.uint16(257), chunks=SBIT_16), id="gray16.png"),
        pytest.param(png(np.stack([nearly_even(), nearly_even(0), nearly_even(0)], axis=-1)), id="colour.png"),
        pytest.param(jpeg(nearly_even(8), quality=100), id="gray.jpg, shrunk in its decoder"),
        pytest.param(jpeg(nearly_even(8), quality=100, exif=b"Exif\0\0"), id="gray.jpg with EXIF"),
        pytest.param(jpeg(np.stack([nearly_even(8)] * 3, axis=-1), quality=100), id="colour.jpg"),
    ],
)
def test_a_picture_that_is_one_gray_at_the_networks_size_is_refused(payload):
    assert array_from_row(decode_image(payload, origin=ORIGIN).image).std() > 0
    with pytest.raises(
        UnsupportedImageError, match="pixels of the file differ, but as 20x24 image all are "
    ) as failure:
        decode_image(payload, origin=ORIGIN, size=(20, 24))
    assert failure.value.reason == Reason.BLANK_RENDERING


EVEN = np.full((HEIGHT, WIDTH), 77, np.uint8)


@pytest.mark.parametrize(
    ("payload", "wanted"),
    [
        pytest.param(png(EVEN), [77], id="gray"),
        pytest.param(png(EVEN * 0), [0], id="black"),
        pytest.param(png16(EVEN[..., None] * np.uint16(257), chunks=SBIT_16), [77], id="16 bits"),
        pytest.param(png(EVEN.astype(np.uint16) * 0 + 4095), [255], id="12 bits"),
        pytest.param(png(EVEN.astype(np.uint16) * 0), [0], id="16 bits, black"),
        pytest.param(png(np.dstack([EVEN, EVEN // 2, EVEN // 3])), [25, 38, 77], id="colour"),
        pytest.param(in_palette(EVEN), [30, 20, 10], id="palette"),
        pytest.param(with_alpha([9], EVEN), [9], id="gray and alpha"),
        pytest.param(with_alpha([10, 20, 30], EVEN), [30, 20, 10], id="RGBA"),
        pytest.param(encode(Image.new("1", (WIDTH, HEIGHT), 1), "PNG"), [255], id="one bit"),
        pytest.param(jpeg(EVEN), [77], id="gray.jpg"),
        pytest.param(jpeg(np.full((403, 501), 77, np.uint8)), [77], id="gray.jpg, shrunk in its decoder"),
        pytest.param(jpeg(np.stack([EVEN] * 3, axis=-1)), [77], id="colour.jpg"),
        pytest.param(dicom(EVEN, bits_stored=8, WindowCenter=128, WindowWidth=256), [77], id="DICOM"),
    ],
)
@pytest.mark.parametrize("size", [None, (20, 24), (96, 100)])
def test_pixels_that_do_not_differ_are_shown_as_ever(payload, wanted, size):
    image = decode_image(payload, origin=ORIGIN, size=size).image
    assert image.data == bytes(wanted) * (image.height * image.width)


@pytest.mark.parametrize("level", range(0, 256, 15))
@pytest.mark.parametrize("side", [33, 640, 1531])
def test_resizing_keeps_one_gray(level, side):
    resized = resize_pixels(np.full((side, side + 7), level, np.uint8), (224, 299))
    assert (resized.min(), resized.max()) == (level, level)


@pytest.mark.parametrize(
    ("payload", "shades"),
    [
        pytest.param(png(254 + gray_pixels() % 2), {254, 255}, id="gray"),
        pytest.param(png(65535 - 257 * (twelve_bit_pixels() % 2)), {254, 255}, id="16 bits"),
        pytest.param(testimages.gray_alpha_png(), set(gray_pixels().flat), id="gray, all transparent"),
    ],
)
def test_two_grays_are_a_picture(payload, shades):
    assert set(pixels_of(payload).flat) == shades


# --- resize_pixels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_resize_keeps_layout_and_treats_channels_alike(channels):
    plane = gray_pixels()
    pixels = plane if channels is None else np.stack([np.roll(plane, 9 * n, 1) for n in range(channels)], axis=-1)
    resized = resize_pixels(pixels, (20, 24))
    assert resized.shape == (20, 24, *pixels.shape[2:])
    assert resized.dtype == np.uint8
    for n in range(channels or 0):
        np.testing.assert_array_equal(resized[..., n], resize_pixels(np.roll(plane, 9 * n, 1), (20, 24)))


def test_resize_is_antialiased():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    inner = resize_pixels(stripes, (8, 8))[:, 1:-1]
    assert np.abs(inner.astype(int) - 127).max() <= 8  # without antialiasing: 0 or 255


def test_resize_to_the_same_size_copies_nothing():
    pixels = gray_pixels()
    assert resize_pixels(pixels, (HEIGHT, WIDTH)) is pixels


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_an_impossible_size_is_a_programs_mistake(size):
    with pytest.raises(ValueError, match="expected \\(height, width\\)"):
        resize_pixels(gray_pixels(), size)


# --- the message ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content_type",
    [None, "", "application/octet-stream", "image/png", "IMAGE/PNG", "image/png; charset=binary", " image/png "],
)
def test_content_types_that_agree(content_type):
    assert decode_image(png(), origin=ORIGIN, content_type=content_type).media_type == "image/png"


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/jpg; q=1", "application/dicom", "text/plain", "png"])
def test_content_types_that_disagree(content_type):
    assert reason_of(png(), content_type=content_type) == Reason.CONTENT_TYPE_MISMATCH


def test_a_content_type_is_repeated_only_where_it_is_a_known_one():
    with pytest.raises(ContractError, match="content-type is 'image/jpeg'"):
        decode_image(png(), origin=ORIGIN, content_type="image/jpeg")
    with pytest.raises(ContractError) as caught:
        decode_image(png(), origin=ORIGIN, content_type="image/mustermann")
    assert "mustermann" not in str(caught.value)


def test_the_jpg_alias():
    assert decode_image(jpeg(), origin=ORIGIN, content_type="image/jpg").media_type == "image/jpeg"


@pytest.mark.parametrize(
    ("payload", "content_type", "limits", "reason"),
    [
        (None, "application/cloudevents+json", DecodeLimits(), Reason.TOMBSTONE),
        (b"", "application/cloudevents+json", DecodeLimits(), Reason.EMPTY_PAYLOAD),
        (b"{}", "application/cloudevents+json", DecodeLimits(1), Reason.PAYLOAD_TOO_LARGE),
        (png(), "Application/CloudEvents-Batch+json; charset=utf-8", DecodeLimits(), Reason.STRUCTURED_MODE),
        (b"text", "image/png", DecodeLimits(), Reason.UNSUPPORTED_FORMAT),
        (png(), "image/jpeg", DecodeLimits(max_pixels=1), Reason.CONTENT_TYPE_MISMATCH),
        (png_cut := png()[:-40], None, DecodeLimits(max_pixels=1), Reason.TOO_MANY_PIXELS),
        (png_cut, None, DecodeLimits(), Reason.TRUNCATED_IMAGE),
    ],
)
def test_the_first_fault_in_the_order_of_the_checks_is_named(payload, content_type, limits, reason):
    assert reason_of(payload, content_type=content_type, limits=limits) == reason


@pytest.mark.parametrize("name", ["gray.png", "gray.jpg", "explicit.dcm", "jpeg_baseline.dcm", "jpeg2000.dcm"])
def test_limits_hold_to_the_unit(name):
    payload = GOOD[name]
    exact = DecodeLimits(max_payload_bytes=len(payload), max_pixels=HEIGHT * WIDTH)
    assert decode_image(payload, origin=ORIGIN, limits=exact).original_height == HEIGHT
    below = DecodeLimits(max_pixels=HEIGHT * WIDTH - 1)
    assert reason_of(payload, limits=below) == Reason.TOO_MANY_PIXELS
    below = DecodeLimits(max_payload_bytes=len(payload) - 1)
    assert reason_of(payload, limits=below) == Reason.PAYLOAD_TOO_LARGE


@pytest.mark.parametrize("payload", [jpeg(gray_pixels(48, 80)), png()])
def test_a_header_of_monstrous_size_is_refused_before_any_work(payload):
    monster = bytearray(payload)
    if payload.startswith(b"\xff"):
        at = monster.index(b"\xff\xc0")
        monster[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    else:
        monster[8:33] = testimages.png_chunk(b"IHDR", b"\x7f\xff\xff\xff" * 2 + bytes([8, 0, 0, 0, 0]))
    assert reason_of(bytes(monster)) == Reason.TOO_MANY_PIXELS


def test_an_unknown_payload_is_not_quoted():
    with pytest.raises(RecordError) as failure:
        decode_image(b"Example^Synthetic, born 1950", origin=ORIGIN)
    assert "Example" not in str(failure.value)


@pytest.mark.parametrize("payload", [b"\x89PNG", b"\xff\xd8", b"\0" * 200, b"DICM", bytes(300), b"\x08\0\x05\0"])
def test_fragments_of_signatures_are_no_format(payload):
    assert sniff_media_type(payload) is None


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in GOOD if name.endswith(("png", "jpg"))])
def test_no_cut_png_or_jpeg_passes_for_an_image(name):
    whole = GOOD[name]
    for length in range(16, len(whole)):
        assert reason_of(whole[:length]) == Reason.TRUNCATED_IMAGE, length


def test_a_jpeg_cut_behind_its_exif_thumbnail_is_truncated():
    """The thumbnail brings an end marker of its own."""
    payload = jpeg(exif=b"Exif\0\0" + jpeg())
    assert decode_image(payload, origin=ORIGIN).original_width == WIDTH
    assert reason_of(payload[:-2]) == reason_of(payload[:-60]) == Reason.TRUNCATED_IMAGE


def test_bytes_after_the_end_are_no_fault():
    np.testing.assert_array_equal(pixels_of(png() + b"\0" * 100), gray_pixels())
    np.testing.assert_array_equal(pixels_of(jpeg() + b"camera notes"), pixels_of(jpeg()))


def mutated(payload, seed):
    """Cut a quarter of the copies, flip bits of the others: in the header for every second one."""
    generator = random.Random(seed)
    copy = bytearray(payload)
    if seed % 4 == 0:
        return bytes(copy[: generator.randrange(len(copy))])
    reach = min(len(copy), 700) if seed % 2 else len(copy)
    for _ in range(generator.choice((1, 1, 2, 8, 40))):
        copy[generator.randrange(reach)] ^= 1 << generator.randrange(8)
    return bytes(copy)


@pytest.mark.parametrize("name", GOOD)
def test_damage_ends_as_an_image_or_a_record_error(name, capfd):
    """The seeds are fixed: a failure repeats. Nothing is printed, nothing hangs, no patient tag is told."""
    started = time.monotonic()
    outcomes = set()
    for seed in range(300):
        try:
            decoded = decode_image(mutated(GOOD[name], seed), origin=ORIGIN, size=(20, 24) if seed % 3 else None)
        except RecordError as error:
            outcomes.add(error.reason)
            assert "Example" not in str(error)
            assert "SYN-" not in str(error)
        else:
            outcomes.add("image")
            assert array_from_row(decoded.image).size > 0
    assert len(outcomes) > 1
    assert time.monotonic() - started < 60
    assert capfd.readouterr() == ("", "")


def test_pillows_globals_are_left_alone_and_nothing_warns():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for payload in [*GOOD.values(), *(wrong.payload for wrong in WRONG.values())]:
            try:
                decode_image(payload, origin=ORIGIN)
            except RecordError:
                continue
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before == (89_478_485, False)


def test_damage_of_the_caller_is_not_swallowed():
    with pytest.raises(TypeError):
        decode_image("a string", origin=ORIGIN)


def test_decoding_imports_no_spark():
    """Only these modules, without the package's front door."""
    code = (
        "import sys, types; package = types.ModuleType('sparkdl'); package.__path__ = ['sparkdl'];"
        "sys.modules['sparkdl'] = package; import sparkdl.image.decode;"
        "sys.exit('pyspark' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("shape", [(3520, 4280), (3408, 3320)])
@pytest.mark.parametrize("version", RENDERING_VERSIONS)
def test_plates_are_read_with_the_limits_of_the_stream(shape, version):
    """The largest CR plates, uncompressed: up to 30.1 MB."""
    pixels = (np.arange(shape[0] * shape[1], dtype=np.uint32) % 4096).astype(np.uint16).reshape(shape)
    payload = testimages.dicom(pixels)
    assert len(payload) > 2 * shape[0] * shape[1]
    decoded = decode_image(payload, origin=ORIGIN, size=(20, 24), rendering=version)
    assert (decoded.original_height, decoded.original_width) == shape


@pytest.mark.parametrize("rendering", RENDERING_VERSIONS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparency", [b"", testimages.png_chunk(b"tRNS", b"\xff\xff\xff\0")])
def test_palette_colours_without_a_palette_are_damage(transparency, bits, rendering):
    header = testimages.png_chunk(b"IHDR", (8).to_bytes(4, "big") * 2 + bytes([bits, 3, 0, 0, 0]))
    rows = zlib.compress(bytes(8 * (1 + bits)))
    payload = b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            header,
            transparency,
            testimages.png_chunk(b"IDAT", rows),
            testimages.png_chunk(b"IEND", b""),
        ]
    )
    with pytest.raises(CorruptImageError) as failure:
        decode_image(payload, origin=ORIGIN, rendering=rendering)
    assert failure.value.reason == Reason.CORRUPT_IMAGE
