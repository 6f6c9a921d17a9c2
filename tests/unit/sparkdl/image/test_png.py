"""Chunks of PNG files, and samples as they are stored: every filter and layout, and what if a library fails."""

import struct
import zlib
from itertools import pairwise

import kornia_rs.io
import numpy as np
import pytest
from PIL import Image

from schemas.errors import Reason, RecordError
from sparkdl.image import png as module
from sparkdl.image.limits import DecodeLimits
from sparkdl.image.png import PNG_SIGNATURE, decode_samples, read_png
from tests import testimages
from tests.testimages import HEIGHT, WIDTH, deep_samples, gray_pixels, png, png16, png_chunk, rgb_pixels

LIMITS = DecodeLimits()
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def read(payload):
    return read_png(payload, "here", LIMITS)


def samples_of(payload):
    found = decode_samples(read(payload))
    return None if found is None else found[0]


def reason_of(payload):
    with pytest.raises(RecordError) as failure:
        read(payload)
    return failure.value.reason


def filtered(samples, kind):
    """Filter rows by the standard's five kinds, 9.2: ``kind`` 5 takes all in turn."""
    height, _, channels = samples.shape
    step = channels * samples.itemsize
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8).astype(int)
    above, out = np.zeros(rows.shape[1], int), b""
    for n, row in enumerate(rows):
        left, corner = np.r_[np.zeros(step, int), row[:-step]], np.r_[np.zeros(step, int), above[:-step]]
        guess = left + above - corner
        distances = np.abs(guess - [left, above, corner])
        paeth = np.choose(distances.argmin(axis=0), [left, above, corner])
        number = n % 5 if kind == 5 else kind
        predicted = [0 * row, left, above, (left + above) // 2, paeth][number]
        out += bytes([number]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
        above = row
    return out


def build(samples, *, kind=5, level=6, pieces=1, before=b"", between=b"", behind=b""):
    """Write samples of shape (height, width, 1 to 4), uint8 or uint16, with chunks around the data."""
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 8 * samples.itemsize, COLOR_TYPES[channels], 0, 0, 0)
    data = zlib.compress(filtered(samples, kind), level)
    cuts = [len(data) * n // pieces for n in range(pieces + 1)]
    chunks = [png_chunk(b"IDAT", data[start:end]) for start, end in pairwise(cuts)]
    body = png_chunk(b"IHDR", header) + before + between.join(chunks) + behind
    return PNG_SIGNATURE + body + png_chunk(b"IEND", b"")


def noise(channels, dtype, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(channels).integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)


# --- samples ----------------------------------------------------------------------------------------------------------

QUICK = [(1, "u1"), (3, "u1"), (1, "u2"), (3, "u2")]


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize(("channels", "dtype"), [*QUICK, (2, "u2"), (4, "u2")])
def test_every_filter_gives_the_samples_back(channels, dtype, kind):
    samples = noise(channels, dtype)
    found = samples_of(build(samples, kind=kind))
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, samples[..., 0] if channels == 1 else samples)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (301, 7)])
@pytest.mark.parametrize(("channels", "dtype"), QUICK)
def test_every_size_gives_the_samples_back(channels, dtype, size):
    samples = noise(channels, dtype, *size)
    found = samples_of(build(samples))
    np.testing.assert_array_equal(found, samples[..., 0] if channels == 1 else samples)


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("pieces", [1, 2, 7, 100])
def test_compression_and_pieces_do_not_matter(level, pieces):
    samples = noise(1, "u2")
    np.testing.assert_array_equal(samples_of(build(samples, level=level, pieces=pieces)), samples[..., 0])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_interlaced_give_the_samples_back(channels):
    samples = noise(channels, "u2")
    found = samples_of(png16(samples, interlaced=True))
    np.testing.assert_array_equal(found, samples[..., 0] if channels == 1 else samples)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_what_pillow_writes_comes_as_pillow_reads_it(mode):
    image = Image.fromarray(gray_pixels() if mode == "L" else rgb_pixels())
    np.testing.assert_array_equal(samples_of(testimages.encode(image, "PNG", optimize=True)), np.asarray(image))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(testimages.palette_png(), id="palette"),
        pytest.param(testimages.bilevel_png(), id="1 bit"),
        pytest.param(build(noise(2, "u1")), id="gray and alpha"),
        pytest.param(build(noise(4, "u1")), id="RGB and alpha"),
        pytest.param(testimages.png_with_short_data(), id="too few rows"),
        pytest.param(testimages.png_with_damaged_data(), id="data that do not inflate"),
    ],
)
def test_the_rest_is_pillows(payload):
    assert samples_of(payload) is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("missing", [0.1, 0.5, 0.99])
def test_too_few_rows_are_no_samples(channels, dtype, missing):
    samples = noise(channels, dtype)
    rows = filtered(samples, 4)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8 * samples.itemsize, COLOR_TYPES[channels], 0, 0, 0)
    data = zlib.compress(rows[: int(len(rows) * (1 - missing))])
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    assert samples_of(PNG_SIGNATURE + chunks) is None


class Panic(BaseException):
    """Like pyo3's PanicException, which cannot be imported."""


Panic.__module__ = "pyo3_runtime"


@pytest.mark.parametrize("error", [Panic("index out of bounds"), Exception("limits are exceeded"), ValueError("size")])
def test_what_the_quick_decoder_raises_is_no_fault_of_the_image(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(kornia_rs.io, "decode_image_png_u8", fail)
    monkeypatch.setattr(kornia_rs.io, "decode_image_png_u16", fail)
    assert samples_of(build(noise(1, "u1"))) is None
    np.testing.assert_array_equal(samples_of(build(noise(3, "u2"))), noise(3, "u2"))  # libpng's


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes(monkeypatch, error):
    def stop(*_):
        raise error

    monkeypatch.setattr(kornia_rs.io, "decode_image_png_u8", stop)
    with pytest.raises(error):
        samples_of(build(noise(1, "u1")))


# --- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunk", "samples", "wanted"),
    [
        (b"\x0c", noise(1, "u2"), (12,)),
        (b"\x0a\x0b\x0c", noise(3, "u2"), (10, 11, 12)),
        (b"\x0c\x01", noise(2, "u2"), (12,)),
        (b"\x0a\x0b\x0c\x10", noise(4, "u2"), (10, 11, 12)),
        (b"\x07", noise(1, "u1"), (7,)),
        (b"\x00", noise(1, "u2"), ()),
        (b"\x11", noise(1, "u2"), ()),
        (b"\x0c\x0c\x0c", noise(1, "u2"), ()),
        (b"\x0c", noise(3, "u2"), ()),
        (b"", noise(1, "u2"), ()),
        (b"\x0c\x00\x0c", noise(3, "u2"), ()),
    ],
)
def test_significant_bits(chunk, samples, wanted):
    assert read(build(samples, before=png_chunk(b"sBIT", chunk))).significant_bits == wanted
    assert read(build(samples)).significant_bits == ()


NOTES = {
    "profile": png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(1_500_000))),
    "text": png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 3_000_000)),
    "international text": png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"a" * 3_000_000)),
    "many texts": b"".join(png_chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(b"a" * 900_000)) for n in range(80)),
    "plain text": png_chunk(b"tEXt", b"Comment\0" + b"a" * 2_000_000),
    "gamma cut short": png_chunk(b"gAMA", b"\1"),
    "transparency cut short": png_chunk(b"tRNS", b"\1"),
    "animation of no frame, cut short": png_chunk(b"acTL", b"\0"),
    "profile that does not inflate": png_chunk(b"iCCP", b"profile\0\0damage"),
    "a kind of its own": png_chunk(b"vpAg", bytes(9)),
    "an unknown kind that calls itself critical": png_chunk(b"ABCD", b"?"),
    "another header": png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)),
}


@pytest.mark.parametrize("name", NOTES)
@pytest.mark.parametrize("place", ["before", "between", "behind"])
@pytest.mark.parametrize(("channels", "dtype"), QUICK)
def test_chunks_that_say_nothing_about_pixels_cost_nothing(name, place, channels, dtype):
    samples = noise(channels, dtype)
    found = samples_of(build(samples, pieces=3, **{place: NOTES[name]}))
    np.testing.assert_array_equal(found, samples[..., 0] if channels == 1 else samples)


@pytest.mark.parametrize("name", NOTES)
@pytest.mark.parametrize("place", ["before", "behind"])
def test_their_checksums_count(name, place):
    damaged = NOTES[name][:-1] + bytes([NOTES[name][-1] ^ 1])
    assert reason_of(build(noise(1, "u1"), **{place: damaged})) == Reason.CORRUPT_IMAGE


@pytest.mark.parametrize("name", NOTES)
def test_their_end_counts(name):
    whole = build(noise(1, "u1"), behind=NOTES[name])
    assert reason_of(whole[: -len(png_chunk(b"IEND", b"")) - 5]) == Reason.TRUNCATED_IMAGE


def frame_control(sequence):
    return png_chunk(b"fcTL", struct.pack(">5I2H2B", sequence, WIDTH, HEIGHT, 0, 0, 1, 10, 0, 0))


FRAME = frame_control(1) + png_chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(filtered(noise(1, "u1"), 0)))


def animation(frames):
    return png_chunk(b"acTL", struct.pack(">II", frames, 0))


@pytest.mark.parametrize(
    ("before", "behind"),
    [
        pytest.param(animation(2) + frame_control(0), FRAME, id="two frames"),
        pytest.param(animation(3), FRAME + FRAME, id="three, and a still picture"),
        pytest.param(animation(1), FRAME, id="one, and a still picture"),
        pytest.param(b"", animation(2), id="said too late"),
    ],
)
def test_several_pictures_are_refused(before, behind):
    assert reason_of(build(noise(1, "u1"), before=before, behind=behind)) == Reason.MULTI_FRAME


@pytest.mark.parametrize("before", [animation(1) + frame_control(0), animation(0), b""])
def test_one_picture_is_read(before):
    np.testing.assert_array_equal(samples_of(build(noise(1, "u1"), before=before)), noise(1, "u1")[..., 0])


def test_the_cap_comes_before_everything_else():
    payload = bytearray(build(noise(1, "u1")))
    payload[-5] ^= 1
    with pytest.raises(RecordError) as failure:
        read_png(bytes(payload), "here", DecodeLimits(max_pixels=HEIGHT * WIDTH - 1))
    assert failure.value.reason == Reason.TOO_MANY_PIXELS


EXIF = b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
RAW = b"\nexif\n      %2d\n" % len(EXIF) + EXIF.hex().encode() + b"\n"


@pytest.mark.parametrize(
    ("chunk", "name"),
    [
        pytest.param(png_chunk(b"eXIf", EXIF), "eXIf", id="eXIf"),
        pytest.param(png_chunk(b"tEXt", b"Raw profile type exif\0" + RAW), "tEXt", id="tEXt"),
        pytest.param(png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW)), "zTXt", id="zTXt"),
        pytest.param(png_chunk(b"iTXt", b"Raw profile type exif\0\0\0en\0\0" + RAW), "iTXt", id="iTXt"),
        pytest.param(
            png_chunk(b"iTXt", b"Raw profile type exif\0\1\0\0\0" + zlib.compress(RAW)), "iTXt", id="iTXt, compressed"
        ),
    ],
)
@pytest.mark.parametrize("place", ["before", "between", "behind"])
def test_exif_is_found_wherever_it_stands(chunk, name, place):
    comment = png_chunk(b"tEXt", b"Comment\0Raw profile type exif")
    found = read(build(noise(1, "u1"), pieces=2, **{place: comment + chunk}))
    assert (found.exif, found.exif_chunk) == (EXIF, name)


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(png_chunk(b"tEXt", b"Raw profile type exif\0" + RAW.replace(b"4d", b"xx", 1)), id="no digits"),
        pytest.param(png_chunk(b"zTXt", b"Raw profile type exif\0\0damage"), id="does not inflate"),
        pytest.param(png_chunk(b"zTXt", b"Raw profile type exif\0"), id="nothing"),
        pytest.param(png_chunk(b"iTXt", b"Raw profile type exif\0\1"), id="cut"),
        pytest.param(png_chunk(b"tEXt", b"Raw profile type iptc\0" + RAW), id="another profile"),
        pytest.param(png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n3\nabc"), id="half a byte"),
    ],
)
def test_a_damaged_profile_is_none(chunk):
    assert read(build(noise(1, "u1"), before=chunk)).exif == b""


def test_a_profile_does_not_inflate_without_end():
    bomb = png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n8\n" + b"0" * 50_000_000))
    assert len(read(build(noise(1, "u1"), before=bomb)).exif) <= module._MOST_TEXT_BYTES


@pytest.mark.parametrize("kind", [b"IDAT", b"tEXt", b"vpAg", b"sBIT"])
def test_a_png_may_have_65536_chunks(kind):
    """Rows in pieces of no byte cost 280 bytes each, and 3 microseconds."""
    empty = png_chunk(kind, b"")
    assert reason_of(build(noise(1, "u1"), before=empty * 65_534)) == Reason.CORRUPT_IMAGE
    assert read(build(noise(1, "u1"), before=empty * 65_533)).bits == 8


def test_of_thousands_of_profiles_ten_are_tried():
    wrong, right = (png_chunk(b"tEXt", b"Raw profile type exif\0" + raw) for raw in (b"\nexif\n1\nx", RAW))
    assert read(build(noise(1, "u1"), before=wrong * 9 + right)).exif == EXIF
    assert read(build(noise(1, "u1"), before=wrong * 10 + right)).exif == b""


@pytest.mark.parametrize(
    ("payload", "library"),
    [
        (png(), "png in Rust"),
        (png(rgb_pixels()), "png in Rust"),
        (png16(deep_samples(1)), "png in Rust"),
        (png16(deep_samples(3)), "png in Rust"),
        (png16(deep_samples(2)), "libpng"),
        (png16(deep_samples(4)), "libpng"),
        (png16(deep_samples(1), interlaced=True), "libpng"),
    ],
)
def test_the_library_is_named(payload, library):
    assert decode_samples(read(payload))[1] == library
