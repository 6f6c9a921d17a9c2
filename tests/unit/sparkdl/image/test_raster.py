"""PNG and JPEG to 8 bits: the range of 16, what is upright, which pictures and processes are read, and what is told."""

import base64
import io
import logging
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps

from schemas.errors import Reason, RecordError
from sparkdl.image.decode import decode_image
from sparkdl.image.pixels import resize_pixels
from sparkdl.image.row import array_from_row
from tests import testimages
from tests.testimages import (
    HEIGHT,
    WIDTH,
    deep_samples,
    encode,
    gray_pixels,
    jpeg,
    png,
    png16,
    png_chunk,
    rgb_pixels,
    twelve_bit_pixels,
)

ORIGIN = "xray.images-3@1024"


def pixels_of(payload, size=None):
    pixels = array_from_row(decode_image(payload, origin=ORIGIN, size=size).image)
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def failure_of(payload, size=None):
    with pytest.raises(RecordError) as failure:
        decode_image(payload, origin=ORIGIN, size=size)
    return failure.value


def steps_of(payload, size=None):
    return {step.name: step for step in decode_image(payload, origin=ORIGIN, size=size).steps}


def scaled(samples, white):
    """Black is 0, what is between linear, white and above 255."""
    return np.rint(np.clip(samples.astype(float) * 255 / white, 0, 255)).astype(np.uint8)


def usual_largest(samples):
    return float(np.quantile(samples, 0.99, method="inverted_cdf"))


def sbit(*bits):
    return png_chunk(b"sBIT", bytes(bits))


# --- 16 bits without sBIT ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [12, 13, 14, 15, 16])
@pytest.mark.parametrize("interlaced", [False, True])
def test_gray_goes_to_the_value_that_99_percent_do_not_exceed(bits, interlaced):
    samples = deep_samples(1, bits=bits)
    wanted = scaled(samples[..., 0], usual_largest(samples))
    np.testing.assert_array_equal(pixels_of(png16(samples, interlaced=interlaced)), wanted)


@pytest.mark.parametrize("seed", range(5))
def test_any_distribution_goes_by_its_quantile(seed):
    generator = np.random.default_rng(seed)
    samples = np.minimum(generator.gamma(2, 10 ** generator.uniform(0.5, 4), (HEIGHT, WIDTH, 1)), 65535).astype("u2")
    np.testing.assert_array_equal(pixels_of(png16(samples)), scaled(samples[..., 0], usual_largest(samples)))


@pytest.mark.parametrize("edge", [255, 1023, 4095, 16383, 32767])
def test_there_is_no_cliff_at_a_power_of_two(edge):
    """The next value above takes one bit more, and is the same picture."""
    ramp = np.linspace(0, edge, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1)
    below, above = np.rint(ramp).astype("u2"), np.rint(ramp * (edge + 1) / edge).astype("u2")
    assert below.max() == edge
    assert above.max() == edge + 1
    difference = np.abs(pixels_of(png16(below)).astype(int) - pixels_of(png16(above)))
    assert difference.mean() < 0.5
    assert difference.max() <= 1


@pytest.mark.parametrize("largest", [1000, 3900, 12_000])
@pytest.mark.parametrize(
    "marked",
    [
        pytest.param((slice(0, 1), slice(0, 1)), id="hot pixel"),
        pytest.param((slice(3, 7), slice(60, 67)), id="letter"),
        pytest.param((slice(20, 21), slice(0, 38)), id="line"),
    ],
)
def test_what_is_burned_in_changes_next_to_nothing(largest, marked):
    samples = (deep_samples(1) * (largest / 3840)).astype("u2")
    plain = pixels_of(png16(samples)).astype(int)
    samples[marked] = 65535
    shown = pixels_of(png16(samples)).astype(int)
    assert (shown[marked] == 255).all()
    beside = np.ones((HEIGHT, WIDTH), bool)
    beside[marked] = False
    assert np.abs(shown - plain)[beside].mean() < 2
    assert shown[beside].mean() > 0.97 * plain[beside].mean()


@pytest.mark.parametrize("count", [1, 5, 38])
@pytest.mark.parametrize("value", [40, 900, 65535])
def test_where_nearly_all_are_black_the_largest_is_white(count, value):
    samples = np.zeros((HEIGHT, WIDTH, 1), "u2")
    samples.reshape(-1)[:count] = np.linspace(value / 2, value, count)
    pixels = pixels_of(png16(samples))
    assert pixels.max() == 255
    np.testing.assert_array_equal(pixels, scaled(samples[..., 0], samples.max()))


@pytest.mark.parametrize("factor", [2, 5])
def test_the_range_does_not_depend_on_the_size(factor):
    samples = deep_samples(1)
    larger = samples.repeat(factor, axis=0).repeat(factor, axis=1)
    np.testing.assert_array_equal(pixels_of(png16(larger))[::factor, ::factor], pixels_of(png16(samples)))


# --- sBIT -------------------------------------------------------------------------------------------------------------


def marked_black():
    """Hold a dark picture of 12 bits with a burned-in white marker of 65535."""
    samples = deep_samples(1) // 2
    samples[3:7, 60:67] = 65535
    return samples


@pytest.mark.parametrize("bits", [10, 12, 14, 15])
@pytest.mark.parametrize("share", [0.3, 1])
def test_samples_that_are_stored_as_they_are(bits, share):
    """The picture may be dark: its largest value is not white, that of the device is."""
    samples = (deep_samples(1) * (share * (1 << bits) / 4096)).astype("u2")
    np.testing.assert_array_equal(
        pixels_of(png16(samples, chunks=sbit(bits))), scaled(samples[..., 0], (1 << bits) - 1)
    )


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("share", [0.3, 1])
def test_samples_that_are_scaled_up_as_the_standard_wants(bits, share):
    device = (deep_samples(1) * (share * (1 << bits) / 4096)).astype("u2").astype(int)
    samples = (device * 65535 // ((1 << bits) - 1)).astype("u2")
    np.testing.assert_array_equal(pixels_of(png16(samples, chunks=sbit(bits))), scaled(samples[..., 0], 65535))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_marker_does_not_make_stored_samples_scaled_ones(bits):
    samples = (deep_samples(1) >> 12 - bits if bits < 12 else deep_samples(1) << bits - 12).copy()
    samples[3:7, 60:67] = 65535
    np.testing.assert_array_equal(
        pixels_of(png16(samples, chunks=sbit(bits))), scaled(samples[..., 0], (1 << bits) - 1)
    )


@pytest.mark.parametrize("chunk", [sbit(0), sbit(17), sbit(12, 12), sbit()])
def test_an_impossible_sbit_is_none(chunk):
    np.testing.assert_array_equal(pixels_of(png16(deep_samples(1), chunks=chunk)), pixels_of(png16(deep_samples(1))))


@pytest.mark.parametrize("bits", [(12, 12, 12), (12, 10, 11), (9, 12, 12)])
def test_each_colour_has_bits_of_its_own(bits):
    samples = np.dstack([deep_samples(1) >> 12 - n for n in bits])
    wanted = np.dstack([scaled(samples[..., n], (1 << bits[n]) - 1) for n in (2, 1, 0)])
    shown = pixels_of(png16(samples, chunks=sbit(*bits)))
    np.testing.assert_array_equal(shown, wanted[..., 0] if len(set(bits)) == 1 else wanted)


@pytest.mark.parametrize(("channels", "chunk"), [(2, sbit(12, 1)), (4, sbit(12, 12, 12, 1))])
def test_bits_of_alpha_do_not_count(channels, chunk):
    np.testing.assert_array_equal(
        pixels_of(png16(deep_samples(channels), chunks=chunk)), scaled(twelve_bit_pixels(), 4095)
    )


def test_8_bits_are_as_they_are_whatever_sbit_says():
    payload = png()
    with_chunk = payload[:33] + sbit(7) + payload[33:]
    np.testing.assert_array_equal(pixels_of(with_chunk), gray_pixels())


# --- 16 bits in several channels --------------------------------------------------------------------------------------

COLOURS = {"gray and alpha": 2, "RGB": 3, "RGBA": 4}


@pytest.mark.parametrize("channels", COLOURS.values(), ids=COLOURS)
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [12, 14, 15, 16])
@pytest.mark.parametrize("size", [None, (20, 24)])
def test_gray_in_several_channels_is_the_same_gray(channels, interlaced, bits, size):
    payload = png16(deep_samples(channels, bits=bits), interlaced=interlaced)
    np.testing.assert_array_equal(pixels_of(payload, size), pixels_of(png16(deep_samples(1, bits=bits)), size))


@pytest.mark.parametrize("channels", COLOURS.values(), ids=COLOURS)
def test_a_picture_in_the_low_bytes_is_not_lost(channels):
    samples = deep_samples(channels) & 0xFF
    samples[..., -1] |= 0 if channels == 3 else 0xFF00
    np.testing.assert_array_equal(pixels_of(png16(samples)), pixels_of(png16(deep_samples(1) & 0xFF)))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("factor", [1, 16, 257])
@pytest.mark.parametrize("alpha", [False, True])
def test_colours_are_scaled_together_and_are_blue_green_red(interlaced, factor, alpha):
    colors = rgb_pixels().astype("u2") * factor
    white = usual_largest(colors)
    samples = np.dstack([colors, np.arange(WIDTH) * 800 + 0 * colors[..., 0]]).astype("u2") if alpha else colors
    pixels = pixels_of(png16(samples, interlaced=interlaced))
    np.testing.assert_array_equal(pixels, scaled(colors, white)[..., ::-1])
    assert pixels[..., 0].max() < pixels[..., 2].min()


def test_a_hot_pixel_in_one_colour_changes_next_to_nothing():
    samples = np.array(deep_samples(3))
    samples[..., 1] //= 2
    plain = pixels_of(png16(samples)).astype(int)
    samples[3, 4, 1] = 65535
    assert np.abs(pixels_of(png16(samples)) - plain).mean() < 0.5


@pytest.mark.parametrize("channels", COLOURS.values(), ids=COLOURS)
def test_what_is_transparent_is_shown(channels):
    samples = np.array(deep_samples(channels))
    chunks = b""
    if channels == 3:
        chunks = png_chunk(b"tRNS", struct.pack(">3H", *samples[5, 6]))
    else:
        samples[:, : WIDTH // 2, -1] = 0
    np.testing.assert_array_equal(pixels_of(png16(samples, chunks=chunks)), pixels_of(png16(deep_samples(1))))


def test_a_transparent_gray_does_not_cost_the_16_bits_of_gray():
    payload = png16(deep_samples(1), chunks=png_chunk(b"tRNS", b"\0\5"))
    np.testing.assert_array_equal(pixels_of(payload), pixels_of(png16(deep_samples(1))))


# --- upright ----------------------------------------------------------------------------------------------------------


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def with_chunk(payload, chunk, *, at_end=False):
    place = payload.index(png_chunk(b"IEND", b"")) if at_end else 33
    return payload[:place] + chunk + payload[place:]


LYING = {
    "gray": png(),
    "colour": png(rgb_pixels()),
    "16 bits": png16(deep_samples(1), chunks=sbit(12)),
    "16 bits, colour": png16(rgb_pixels().astype("u2") * 257, chunks=sbit(16, 16, 16)),
    "palette": testimages.palette_png(),
    "1 bit": testimages.bilevel_png(),
    "gray and alpha": testimages.gray_alpha_png(),
}


@pytest.mark.parametrize("name", LYING)
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("size", [None, (24, 20)])
def test_a_png_is_turned_as_exif_says(name, orientation, at_end, size):
    exif = exif_of(orientation).removeprefix(b"Exif\0\0")
    payload = with_chunk(LYING[name], png_chunk(b"eXIf", exif), at_end=at_end)
    plain = pixels_of(LYING[name])
    upright = np.asarray(ImageOps.exif_transpose(_with_orientation(plain, orientation)))
    decoded = decode_image(payload, origin=ORIGIN, size=size)
    assert (decoded.original_height, decoded.original_width) == upright.shape[:2]
    np.testing.assert_array_equal(pixels_of(payload, size), upright if size is None else resize_pixels(upright, size))


def _with_orientation(pixels, orientation):
    """Give a Pillow image that says of itself how it lies."""
    return Image.open(
        io.BytesIO(encode(Image.fromarray(np.ascontiguousarray(pixels)), "PNG", exif=exif_of(orientation)))
    )


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_png_of_imagemagick_is_turned_too(kind, orientation):
    exif = exif_of(orientation)
    text = b"\nexif\n%8d\n" % len(exif) + b"\n".join(
        exif.hex().encode()[n : n + 72] for n in range(0, 2 * len(exif), 72)
    )
    rest = {b"tEXt": text, b"zTXt": b"\0" + zlib.compress(text), b"iTXt": b"\0\0\0\0" + text}[kind]
    payload = with_chunk(png(), png_chunk(kind, b"Raw profile type exif\0" + rest))
    in_chunk = with_chunk(png(), png_chunk(b"eXIf", exif))
    np.testing.assert_array_equal(pixels_of(payload), pixels_of(in_chunk))
    assert not np.array_equal(pixels_of(payload), gray_pixels())


DAMAGED_EXIF = [
    b"",
    b"Exif\0\0",
    b"Exif\0\0II*\0garbage",
    b"Exif\0\0" + bytes(40),
    b"MM\0*\0\0\xff\xff",
    b"II*\0\x08\0\0\0\xff\xff",
]


@pytest.mark.parametrize("exif", DAMAGED_EXIF)
def test_a_damaged_exif_block_does_not_cost_the_image(exif):
    np.testing.assert_array_equal(pixels_of(with_chunk(png(), png_chunk(b"eXIf", exif))), gray_pixels())
    if exif:
        block = exif if exif.startswith(b"Exif") else b"Exif\0\0" + exif
        np.testing.assert_array_equal(pixels_of(jpeg(exif=block)), pixels_of(jpeg()))


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_an_orientation_that_is_none_is_upright(orientation):
    np.testing.assert_array_equal(pixels_of(with_chunk(png(), png_chunk(b"eXIf", exif_of(orientation)))), gray_pixels())


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)
NO_ORIENTATION = Image.Exif()
NO_ORIENTATION[0x010F] = "maker"


@pytest.mark.parametrize(
    ("payload", "plain"),
    [
        pytest.param(with_chunk(png(), png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)), png(), id="PNG"),
        pytest.param(jpeg(xmp=XMP), jpeg(), id="JPEG"),
        pytest.param(jpeg(xmp=XMP, exif=NO_ORIENTATION), jpeg(), id="JPEG with EXIF that does not say"),
    ],
)
def test_xmp_alone_does_not_turn(payload, plain):
    np.testing.assert_array_equal(pixels_of(payload), pixels_of(plain))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [None, (24, 20)])
def test_a_jpeg_is_turned_as_exif_says(orientation, size):
    payload = testimages.rotated_jpeg(orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(payload)))
    decoded = decode_image(payload, origin=ORIGIN, size=size)
    assert (decoded.original_height, decoded.original_width) == (upright.height, upright.width)
    wanted = np.asarray(upright) if size is None else resize_pixels(np.asarray(upright), size)
    np.testing.assert_allclose(array_from_row(decoded.image)[..., 0].astype(int), wanted, atol=2)


# --- several pictures in one JPEG -------------------------------------------------------------------------------------


def mpo(*frames, **options):
    images = [Image.fromarray(frame) for frame in frames]
    return encode(images[0], "MPO", save_all=True, append_images=images[1:], quality=95, **options)


LARGE = np.asarray(Image.fromarray(gray_pixels()).resize((1300, 1100), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("first", "others", "options"),
    [
        pytest.param(rgb_pixels(), [255 - rgb_pixels()], {}, id="two, colour"),
        pytest.param(gray_pixels(), [255 - gray_pixels()], {}, id="two, gray"),
        pytest.param(gray_pixels(), [rgb_pixels(), 255 - gray_pixels()], {}, id="three"),
        pytest.param(gray_pixels(), [LARGE], {}, id="another size"),
        pytest.param(LARGE, [gray_pixels()], {}, id="large"),
        pytest.param(gray_pixels(), [255 - gray_pixels()], {"exif": exif_of(6)}, id="turned"),
    ],
)
@pytest.mark.parametrize("size", [None, (20, 24)])
def test_of_several_pictures_the_first_is_read(first, others, options, size):
    alone = encode(Image.fromarray(first), "JPEG", quality=95, **options)
    np.testing.assert_array_equal(pixels_of(mpo(first, *others, **options), size), pixels_of(alone, size))


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_index_of_pictures_does_not_cost_the_first(seed):
    payload = bytearray(mpo(gray_pixels(), 255 - gray_pixels()))
    index = payload.index(b"MPF\0")
    generator = np.random.default_rng(seed)
    for _ in range(3):
        payload[index + 4 + int(generator.integers(80))] = int(generator.integers(256))
    np.testing.assert_array_equal(pixels_of(bytes(payload)), pixels_of(mpo(gray_pixels())))


# --- processes and depths of JPEG -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        pytest.param(
            imagecodecs.jpeg8_encode(twelve_bit_pixels(), bitspersample=12), "12 bits a sample (SOF1)", id="12"
        ),
        pytest.param(
            imagecodecs.jpeg8_encode(deep_samples(3), bitspersample=12), "12 bits a sample (SOF1)", id="12, colour"
        ),
        *(
            pytest.param(
                imagecodecs.jpeg8_encode(twelve_bit_pixels() >> max(12 - bits, 0), lossless=True, bitspersample=bits),
                f"{bits} bits a sample (SOF3)",
                id=f"lossless, {bits}",
            )
            for bits in (9, 10, 12, 14, 16)
        ),
        pytest.param(
            imagecodecs.jpeg8_encode(gray_pixels() >> 3, lossless=True, bitspersample=5),
            "5 bits a sample",
            id="lossless, 5",
        ),
    ],
)
@pytest.mark.parametrize("size", [None, (20, 24)])
def test_other_depths_than_8_are_named(payload, found, size):
    failure = failure_of(bytes(payload), size)
    assert failure.reason == Reason.UNSUPPORTED_BIT_DEPTH
    assert found in failure.detail


def of_process(number):
    """Say another process in a baseline file's frame header."""
    return jpeg().replace(b"\xff\xc0", bytes([0xFF, 0xC0 + number]), 1)


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        *(pytest.param(of_process(n), f"SOF{n}", id=f"SOF{n}") for n in (5, 6, 7, 11, 13, 14, 15)),
        pytest.param(imagecodecs.jpegls_encode(gray_pixels()), "a JPEG-LS", id="JPEG-LS"),
        pytest.param(imagecodecs.jpegls_encode(twelve_bit_pixels()), "a JPEG-LS", id="JPEG-LS, 16 bits"),
        pytest.param(imagecodecs.jpegls_encode(rgb_pixels()), "a JPEG-LS", id="JPEG-LS, colour"),
    ],
)
def test_other_processes_are_named(payload, found):
    failure = failure_of(bytes(payload))
    assert failure.reason == Reason.UNSUPPORTED_FORMAT
    assert found in failure.detail


@pytest.mark.parametrize("pixels", [gray_pixels(), rgb_pixels(), LARGE])
@pytest.mark.parametrize("size", [None, (20, 24)])
def test_lossless_of_8_bits_is_exact(pixels, size):
    """Its decoder cannot shrink it: the file is decoded whole."""
    payload = bytes(imagecodecs.jpeg8_encode(pixels, lossless=True))
    np.testing.assert_array_equal(pixels_of(payload, size), pixels_of(png(pixels), size))


# (rows * 2 + columns) of 48 x 80 pixels, by libjpeg-turbo's cjpeg -arithmetic -quality 90, the second -progressive.
ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMU"
    "FRUVDA8XGBYUGBIUFRT/yQALCAAwAFABAREA/8wABgAQEAX/2gAIAQEAAD8A/wDtDowHj+DhvL7zuEi8xXOB18FoyP8AUYx7iGSp"
    "yaqek2DfKSeqpJP7A/nJUXcHW2l3zdVNywjbJhM4iZOZbKTR5HCVNrS84Pzc3BtufmbAnDwjJ+AJPN768Yut787D/mNXaTwP/bd7"
    "/fu5WN+EYoRD36y+eEfgDMdzjaRJf0x7jTxdyz3ybolK+bpJ3UD38b0qO10yoAKUMI7/2Q==",
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMU"
    "FRUVDA8XGBYUGBIUFRT/ygALCAAwAFABAREA/8wABAAQ/9oACAEBAAAAAf8A2iyEJ7mGEQiylxgoM239NSIjKMVRTWPqLW6NiUcw"
    "bCmhsU1I/8wABBAF/9oACAEBAAEFAh6o1TernxcThuOJhx81T+IdRv8AIclkli5kzYSlKUpSlKUpSlKUpSlKUv/MAAQQBf/aAAgB"
    "AQAGPwKo/8wABBAF/9oACAEBAAE/If/aAAgBAQAAABDMlQL+kCwL+P/MAAQQBf/aAAgBAQABPxCoE6/VSqxtWLP/AIMU2XZUNaW7"
    "Q60/JjJe5X6cFY7v8ID/2Q==",
)


@pytest.mark.parametrize("text", ARITHMETIC)
def test_arithmetic_coding_is_read(text):
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    difference = pixels_of(base64.b64decode(text)).astype(int) - (2 * rows + columns)
    assert np.abs(difference).max() <= 3


def with_scans(count):
    """Repeat the last scan of a progressive JPEG."""
    whole = jpeg(progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * (count - whole.count(b"\xff\xda") + 1) + b"\xff\xd9"


@pytest.mark.parametrize("size", [None, (10, 12)])
@pytest.mark.parametrize("count", [101, 300, 5000])
def test_a_jpeg_of_hundreds_of_scans_is_refused(count, size):
    """Each goes over all pixels: one of a million scans, which fits in a message, would take an hour."""
    failure = failure_of(with_scans(count), size)
    assert (failure.reason, failure.detail) == (Reason.CORRUPT_IMAGE, f"JPEG has {count} scans, expected at most 100")
    assert pixels_of(with_scans(20)).shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "unit", [b"\0", b"\xff", b"\xff\0", b"\xff\xd0", b"\xff\xe1\0\x08Exif\0\0", b"\xff\xf0\xff\xf0" + bytes(65_518)]
)
def test_megabytes_of_nothing_before_the_first_scan_are_refused(unit):
    whole = jpeg()
    failure = failure_of(whole[:2] + b"\xff" + unit * (10_000_000 // len(unit)) + whole[2:])
    assert failure.reason == Reason.TRUNCATED_IMAGE
    assert "without an end marker behind its first scan" in failure.detail


# --- decoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", ["iCCP", "zTXt", "iTXt"])
@pytest.mark.parametrize("payload", [png(), png(rgb_pixels()), png16(deep_samples(1)), testimages.palette_png()])
def test_a_profile_that_inflates_above_1_MB_does_not_cost_the_image(chunk, payload):
    """Pillow refuses to inflate so much, and the image with it."""
    body = {
        "iCCP": b"profile\0\0" + zlib.compress(bytes(1_500_000)),
        "zTXt": b"Comment\0\0" + zlib.compress(b"a" * 1_500_000),
        "iTXt": b"Comment\0\1\0\0\0" + zlib.compress(b"a" * 1_500_000),
    }[chunk]
    np.testing.assert_array_equal(pixels_of(with_chunk(payload, png_chunk(chunk.encode(), body))), pixels_of(payload))


@pytest.mark.parametrize(
    "payload", [png(), testimages.palette_png(), png16(deep_samples(3)), jpeg(), mpo(rgb_pixels())]
)
def test_pillows_own_cap_is_not_asked(monkeypatch, payload):
    """It is the whole process's, and no setting of this project."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode_image(payload, origin=ORIGIN, size=(20, 24)).original_height == HEIGHT


# --- steps ------------------------------------------------------------------------------------------------------------


def test_the_steps_of_a_gray_png():
    steps = steps_of(png(), (20, 24))
    assert list(steps) == ["decode", "resize"]
    assert steps["decode"].what == "48x80 pixels of 8 bits, by png in Rust"
    assert steps["decode"].decided_by == {"IHDR": "bit depth 8, colour type 0"}
    assert steps["resize"].what == "from 48x80 to 20x24, bilinear with antialiasing"


def test_the_steps_of_16_bits():
    white = int(usual_largest(deep_samples(1)))
    step = steps_of(png16(deep_samples(1)))["range"]
    assert (step.what, step.decided_by) == (f"0 is black, {white} white: 99 % of the samples are not above it", {})
    step = steps_of(png16(deep_samples(1), chunks=sbit(12)))["range"]
    assert step.what == "0 is black, 4095 white: samples are stored as they are"
    assert step.decided_by == {"sBIT": "12"}
    step = steps_of(png16(deep_samples(1, bits=16), chunks=sbit(12)))["range"]
    assert step.what == "0 is black, 65535 white: samples are scaled up to 16 bits"
    step = steps_of(png16(rgb_pixels().astype("u2"), chunks=sbit(8, 9, 8)))["range"]
    assert step.what == "0 is black, 255 511 white: samples are stored as they are"
    assert step.decided_by == {"sBIT": "8 9 8"}


@pytest.mark.parametrize(
    ("payload", "words", "decided_by"),
    [
        (testimages.rgba_png(), "alpha dropped", {"IHDR": "colour type 6"}),
        (testimages.gray_alpha_png(), "alpha dropped", {"IHDR": "colour type 4"}),
        (png16(deep_samples(2)), "alpha dropped", {"IHDR": "colour type 4"}),
        (testimages.palette_png(), "palette expanded to red, green and blue", {"IHDR": "colour type 3"}),
        (png(np.dstack([gray_pixels()] * 3)), "red, green and blue are equal: one gray", {}),
        (png16(deep_samples(3)), "red, green and blue are equal: one gray", {}),
        (png16(deep_samples(4)), "alpha dropped; red, green and blue are equal: one gray", {"IHDR": "colour type 6"}),
        (jpeg(np.dstack([gray_pixels()] * 3)), "red, green and blue are equal: one gray", {}),
    ],
)
def test_the_step_of_channels(payload, words, decided_by):
    step = steps_of(payload)["channels"]
    assert (step.what, step.decided_by) == (words, decided_by)


def test_the_steps_of_a_turned_png_and_jpeg():
    step = steps_of(with_chunk(png(), png_chunk(b"eXIf", exif_of(6))))["orient"]
    assert (step.what, step.decided_by) == ("turned by 90 degrees to the right", {"eXIf": "Orientation 6"})
    step = steps_of(testimages.rotated_jpeg(3))["orient"]
    assert (step.what, step.decided_by) == ("turned by 180 degrees", {"APP1": "Orientation 3"})
    assert "orient" not in steps_of(testimages.rotated_jpeg(1))


def test_the_steps_of_a_jpeg():
    steps = steps_of(jpeg(LARGE, progressive=True), (60, 80))
    assert list(steps) == ["decode", "resize"]
    assert steps["decode"].what == "1100x1300 pixels of 8 bits, by Pillow, shrunk to 138x163 inside the decoder"
    assert steps["decode"].decided_by == {"SOF2": "8 bits, components: 1"}
    assert steps["resize"].what == "from 1100x1300 to 60x80, bilinear with antialiasing"
    assert steps_of(jpeg(rgb_pixels()))["decode"].decided_by == {"SOF0": "8 bits, components: 3"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_no_text_of_a_file_is_logged(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    exif = Image.Exif()
    exif[0x010E] = testimages.PATIENT_NAME
    decode_image(testimages.encode(testimages.gray_pixels(), kind, exif=exif), origin="x")
    assert testimages.PATIENT_NAME not in caplog.text
