"""What each codec gives, and what its header says; in DICOM files: test_dicom.py."""

import io
import random
import re
import struct
from contextlib import suppress

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from sparkdl.image.codecs import SYNTAXES, CodecError, decode_frame, decode_rle, frame_size

BASELINE, EXTENDED, LOSSLESS, LOSSLESS_FIRST_ORDER = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
JPEG_LS, JPEG_LS_NEAR, JPEG_2000_LOSSLESS, JPEG_2000 = (f"1.2.840.10008.1.2.4.{n}" for n in (80, 81, 90, 91))
HTJ2K_LOSSLESS, HTJ2K_RPCL, HTJ2K = (f"1.2.840.10008.1.2.4.{n}" for n in (201, 202, 203))
HEIGHT, WIDTH = 37, 53


def noise(bits: int, dtype: str) -> np.ndarray:
    lowest = -(1 << bits - 1) if dtype.startswith("i") else 0
    return np.random.default_rng(bits).integers(lowest, lowest + (1 << bits), (HEIGHT, WIDTH)).astype(dtype)


def jpeg_lossless(pixels: np.ndarray, bits: int, predictor: int = 1) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=bits, predictor=predictor))


def jpeg_2000(pixels: np.ndarray, bits: int, **options: object) -> bytes:
    options = {"codecformat": "j2k", **options}
    return bytes(imagecodecs.jpeg2k_encode(pixels, reversible=True, bitspersample=bits, **options))


def frames() -> list[pytest.param]:
    depths = [(2, "u1"), (7, "u1"), (8, "u1"), (9, "u2"), (10, "u2"), (12, "u2"), (14, "u2"), (15, "u2"), (16, "u2")]
    signed = [(8, "i1"), (12, "i2"), (16, "i2")]
    cases = [
        *((LOSSLESS, bits, dtype, jpeg_lossless(noise(bits, dtype), bits, 6)) for bits, dtype in depths),
        *((LOSSLESS_FIRST_ORDER, bits, dtype, jpeg_lossless(noise(bits, dtype), bits)) for bits, dtype in depths),
        *((JPEG_2000_LOSSLESS, bits, dtype, jpeg_2000(noise(bits, dtype), bits)) for bits, dtype in depths + signed),
        (JPEG_LS, 8, "u1", bytes(imagecodecs.jpegls_encode(noise(8, "u1")))),
        (JPEG_LS, 16, "u2", bytes(imagecodecs.jpegls_encode(noise(16, "u2")))),
        (JPEG_2000, 12, "u2", jpeg_2000(noise(12, "u2"), 12, codecformat="jp2")),
        (HTJ2K_LOSSLESS, 8, "u1", bytes(imagecodecs.htj2k_encode(noise(8, "u1"), reversible=True))),
        (HTJ2K_RPCL, 16, "u2", bytes(imagecodecs.htj2k_encode(noise(16, "u2"), reversible=True))),
        (HTJ2K, 16, "i2", bytes(imagecodecs.htj2k_encode(noise(16, "i2"), reversible=True))),
    ]
    return [pytest.param(*case, id=f"{case[0].rsplit('.')[-1]}, {case[1]} bits, {case[2]}") for case in cases]


@pytest.mark.parametrize(("syntax", "bits", "dtype", "frame"), frames())
def test_lossless_frames_come_back_with_bits_and_sign_of_the_stream(syntax, bits, dtype, frame):
    decoded = decode_frame(frame, syntax)
    assert frame_size(frame, syntax) == (HEIGHT, WIDTH)
    assert (decoded.bits, decoded.signed, decoded.pixels.dtype) == (bits, dtype.startswith("i"), np.dtype(dtype))
    np.testing.assert_array_equal(decoded.pixels, noise(bits, dtype))


def smooth(bits: int) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((rows + columns) * ((1 << bits) - 1) // (HEIGHT + WIDTH)).astype("u1" if bits <= 8 else "u2")


@pytest.mark.parametrize(
    ("syntax", "bits", "frame"),
    [
        pytest.param(BASELINE, 8, imagecodecs.jpeg8_encode(smooth(8), level=95), id="baseline"),
        pytest.param(EXTENDED, 8, imagecodecs.jpeg8_encode(smooth(8), level=95), id="extended, 8 bits"),
        pytest.param(EXTENDED, 12, imagecodecs.jpeg8_encode(smooth(12), level=95, bitspersample=12), id="extended, 12"),
        pytest.param(JPEG_LS_NEAR, 8, imagecodecs.jpegls_encode(smooth(8), level=2), id="JPEG-LS near-lossless"),
        pytest.param(JPEG_2000, 8, imagecodecs.jpeg2k_encode(smooth(8), level=60, codecformat="j2k"), id="JPEG 2000"),
        pytest.param(HTJ2K, 8, imagecodecs.htj2k_encode(smooth(8), reversible=False), id="HTJ2K"),
    ],
)
def test_lossy_frames_come_back_nearly(syntax, bits, frame):
    decoded = decode_frame(bytes(frame), syntax)
    assert (decoded.bits, decoded.signed) == (bits, False)
    difference = decoded.pixels.astype(int) - smooth(bits)
    assert np.abs(difference).mean() < 0.004 * (1 << bits)


def colored(syntax: str) -> bytes:
    pixels = np.dstack([noise(8, "u1")] * 3)
    encode = {
        BASELINE: imagecodecs.jpeg8_encode,
        JPEG_LS: imagecodecs.jpegls_encode,
        JPEG_2000: lambda rgb: imagecodecs.jpeg2k_encode(rgb, codecformat="j2k"),
        HTJ2K: imagecodecs.htj2k_encode,
    }
    return bytes(encode[syntax](pixels))


@pytest.mark.parametrize("syntax", [BASELINE, JPEG_LS, JPEG_2000, HTJ2K])
def test_several_components_are_refused(syntax):
    with pytest.raises(CodecError, match="3 components, expected 1"):
        decode_frame(colored(syntax), syntax)


def good_frame(syntax: str) -> bytes:
    """Give a frame of noise, so that every byte of it counts."""
    if syntax in {BASELINE, EXTENDED}:
        return bytes(imagecodecs.jpeg8_encode(noise(8, "u1"), level=95))
    if syntax in {LOSSLESS, LOSSLESS_FIRST_ORDER}:
        return jpeg_lossless(noise(12, "u2"), 12)
    if syntax in {JPEG_LS, JPEG_LS_NEAR}:
        return bytes(imagecodecs.jpegls_encode(noise(16, "u2")))
    if syntax in {JPEG_2000, JPEG_2000_LOSSLESS}:
        return jpeg_2000(noise(12, "u2"), 12)
    return bytes(imagecodecs.htj2k_encode(noise(16, "u2"), reversible=True))


@pytest.mark.parametrize("kept", [0, 2, 20, 0.3, 0.9])
@pytest.mark.parametrize("syntax", sorted(SYNTAXES))
def test_what_ends_too_early_is_refused(syntax, kept):
    frame = good_frame(syntax)
    cut = frame[: int(kept if kept > 1 else kept * len(frame))]
    with pytest.raises(CodecError):
        decode_frame(cut, syntax)


@pytest.mark.parametrize("syntax", sorted(SYNTAXES))
@pytest.mark.parametrize("junk", [b"", b"\0" * 64, b"Not an image at all, and long enough for a header of any kind."])
def test_what_is_no_stream_has_no_size_and_is_refused(syntax, junk):
    assert frame_size(junk, syntax) is None
    with pytest.raises(CodecError, match="no header"):
        decode_frame(junk, syntax)


@pytest.mark.parametrize("syntax", sorted(SYNTAXES))
def test_padding_behind_the_end_does_not_count(syntax):
    frame = good_frame(syntax)
    expected = decode_frame(frame, syntax).pixels
    for padding in (b"\0", b"\0" * 8, b"\xff"):
        np.testing.assert_array_equal(decode_frame(frame + padding, syntax).pixels, expected)


def with_size(syntax: str, height: int, width: int) -> bytes:
    """Put another size into the header of `good_frame`."""
    frame = bytearray(good_frame(syntax))
    if syntax in {JPEG_2000, HTJ2K}:
        struct.pack_into(">II", frame, frame.index(b"\xff\x4f\xff\x51") + 8, width, height)
    else:
        marker = b"\xff\xf7" if syntax == JPEG_LS else b"\xff\xc3" if syntax == LOSSLESS else b"\xff\xc0"
        struct.pack_into(">HH", frame, frame.index(marker) + 5, height, width)
    return bytes(frame)


@pytest.mark.parametrize("syntax", [BASELINE, LOSSLESS, JPEG_LS, JPEG_2000, HTJ2K])
def test_the_size_is_what_the_header_says_before_anything_is_decoded(syntax):
    assert frame_size(with_size(syntax, 60_000, 50_000), syntax) == (60_000, 50_000)


@pytest.mark.parametrize("syntax", [BASELINE, LOSSLESS, JPEG_LS, JPEG_2000, HTJ2K])
def test_no_pixels_are_refused(syntax):
    frame = with_size(syntax, 0, WIDTH)
    assert frame_size(frame, syntax) == (0, WIDTH)
    with pytest.raises(CodecError, match=f"0x{WIDTH}, expected 1x1 or more"):
        decode_frame(frame, syntax)


def test_a_frame_header_that_only_other_readers_would_find_is_none():
    """A restart marker has no length: a walk that gives it one would find the second header, a library the first."""
    frame = good_frame(LOSSLESS)
    decoy = struct.pack(">BBHBHHB", 0xFF, 0xC3, 11, 8, 60_000, 60_000, 1) + b"\1\x11\0"
    crafted = frame[:2] + b"\xff\xd0" + decoy + frame[2:]
    assert frame_size(crafted, LOSSLESS) == (60_000, 60_000)


# --- JPEG lossless, by an encoder that is no library's ----------------------------------------------------------------


def encode_lossless(pixels, bits, *, predictor, shift=0, rows_between_restarts=0):
    """Encode as ITU-T T.81 Annex H says, with a code of 5 bits for each length of a difference."""
    samples = pixels.astype(int) >> shift
    height, width = samples.shape
    out, accumulated, waiting, restarts = bytearray(), 0, 0, 0

    def put(value, count):
        nonlocal accumulated, waiting
        accumulated, waiting = accumulated << count | value, waiting + count
        while waiting >= 8:
            byte = accumulated >> (waiting - 8) & 255
            out.extend([byte, 0] if byte == 255 else [byte])
            waiting -= 8
            accumulated &= (1 << waiting) - 1

    def flush():
        if waiting:
            put((1 << (8 - waiting)) - 1, 8 - waiting)

    for row in range(height):
        first = row == 0
        if rows_between_restarts and row and row % rows_between_restarts == 0:
            flush()
            out.extend([0xFF, 0xD0 + restarts % 8])
            restarts, first = restarts + 1, True
        for column in range(width):
            left, above, corner = (
                int(samples[row - up, column - back]) if row >= up and column >= back else 0
                for up, back in ((0, 1), (1, 0), (1, 1))
            )
            if first:
                guess = left if column else 1 << (bits - shift - 1)
            elif not column:
                guess = above
            else:
                guess = [
                    left,
                    above,
                    corner,
                    left + above - corner,
                    left + (above - corner >> 1),
                    above + (left - corner >> 1),
                    left + above >> 1,
                ][predictor - 1]
            difference = (int(samples[row, column]) - guess) % 65536
            difference -= 65536 if difference > 32768 else 0
            length = abs(difference).bit_length() if difference != 32768 else 16
            put(length, 5)
            if 0 < length < 16:
                put(difference if difference > 0 else difference + (1 << length) - 1, length)
    flush()
    counts = bytes([0, 0, 0, 0, 17, *[0] * 11])
    table = b"\xff\xc4" + struct.pack(">HB", 2 + 1 + 16 + 17, 0) + counts + bytes(range(17))
    header = b"\xff\xc3" + struct.pack(">HBHHB", 11, bits, height, width, 1) + b"\1\x11\0"
    restart = b"\xff\xdd" + struct.pack(">HH", 4, rows_between_restarts * width) if rows_between_restarts else b""
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes([1, 0, predictor, 0, shift])
    return b"\xff\xd8" + header + table + restart + scan + bytes(out) + b"\xff\xd9"


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("bits", [2, 8, 10, 12, 16])
def test_every_predictor_of_jpeg_lossless(predictor, bits):
    pixels = noise(bits, "u1" if bits <= 8 else "u2")
    decoded = decode_frame(encode_lossless(pixels, bits, predictor=predictor), LOSSLESS)
    assert decoded.bits == bits
    np.testing.assert_array_equal(decoded.pixels, pixels)


@pytest.mark.parametrize("shift", [1, 2, 4])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_point_transform_leaves_out_the_low_bits(shift, bits):
    pixels = noise(bits, "u1" if bits <= 8 else "u2")
    decoded = decode_frame(encode_lossless(pixels, bits, predictor=1, shift=shift), LOSSLESS)
    np.testing.assert_array_equal(decoded.pixels, pixels >> shift << shift)


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("predictor", [1, 4, 7])
def test_restart_markers(rows, predictor):
    pixels = noise(12, "u2")
    frame = encode_lossless(pixels, 12, predictor=predictor, rows_between_restarts=rows)
    np.testing.assert_array_equal(decode_frame(frame, LOSSLESS_FIRST_ORDER).pixels, pixels)


def test_the_encoders_of_other_libraries():
    for bits in (9, 12, 14, 16):
        pixels = noise(bits, "u2")
        frame = bytes(imagecodecs.ljpeg_encode(pixels, bitspersample=bits))
        np.testing.assert_array_equal(decode_frame(frame, LOSSLESS).pixels, pixels)
        np.testing.assert_array_equal(imagecodecs.jpegsof3_decode(jpeg_lossless(pixels, bits)), pixels)


# --- the pieces of JPEG 2000 ------------------------------------------------------------------------------------------


def in_tiles(tile):
    image = Image.fromarray(noise(8, "u1"))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG2000", no_jp2=True, tile_size=(tile, tile))
    return buffer.getvalue()


@pytest.mark.parametrize("tile", [16, 32, 64])
def test_tiles_are_put_together(tile):
    np.testing.assert_array_equal(decode_frame(in_tiles(tile), JPEG_2000).pixels, noise(8, "u1"))


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_missing_tiles_are_refused(kept):
    """OpenJPEG leaves them black."""
    whole = in_tiles(32)
    parts = [at.start() for at in re.finditer(b"\xff\x90\0\x0a", whole)]
    assert len(parts) == 4
    with pytest.raises(CodecError, match=f"{kept} of its 4 tiles"):
        decode_frame(whole[: parts[kept]] + b"\xff\xd9", JPEG_2000)


@pytest.mark.parametrize("tile", [1, 4, 10])
@pytest.mark.parametrize("syntax", [JPEG_2000, HTJ2K])
def test_a_codestream_of_tiny_tiles_is_refused(syntax, tile):
    frame = bytearray(good_frame(syntax))
    start = frame.index(b"\xff\x4f\xff\x51")
    struct.pack_into(">II", frame, start + 8, 200 * tile, 200 * tile)
    struct.pack_into(">II", frame, start + 24, tile, tile)
    with pytest.raises(CodecError, match="40000 tiles, expected at most"):
        decode_frame(bytes(frame), syntax)


def codestream(side, precinct, levels, *, where="COD"):
    """Cut side x side pixels into precincts of 2 ** precinct on each level; all packets are empty."""
    sizes = bytes([precinct | precinct << 4] * (levels + 1))
    styles = bytes([levels, 2, 2, 0, 1])  # code-blocks of 16 x 16, reversible
    plain = struct.pack(">BBHB", 0, 0, 1, 0) + styles
    own = {"COD": b"\1" + plain[1:] + sizes, "COC": b"\0\1" + styles + sizes, "tile": b"\1" + plain[1:] + sizes}[where]

    def segment(marker, body):
        return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(body)) + body

    size = struct.pack(">H8IH", 0, side, side, 0, 0, side, side, 0, 0, 1) + b"\x0b\1\1"
    quantisation = segment(0x5C, b"\x40" + b"\x48" * (3 * levels + 1))
    main = segment(0x51, size) + (segment(0x52, own) if where == "COD" else segment(0x52, plain)) + quantisation
    main += segment(0x53, own) if where == "COC" else b""
    tile = segment(0x52, own) if where == "tile" else b""
    return (
        b"\xff\x4f"
        + main
        + segment(0x90, struct.pack(">HIBB", 0, 0, 0, 1))
        + tile
        + b"\xff\x93"
        + bytes(8)
        + b"\xff\xd9"
    )


@pytest.mark.parametrize("where", ["COD", "COC", "tile"])
@pytest.mark.parametrize(
    ("precinct", "levels", "count"), [(0, 0, 1_000_000), (1, 0, 250_000), (1, 5, 333_374), (2, 2, 82_094)]
)
def test_a_codestream_of_tiny_precincts_is_refused(where, precinct, levels, count):
    """Read, one of 50 million pixels would take 28 GB."""
    with pytest.raises(CodecError, match=f"{count} precincts, expected at most"):
        decode_frame(codestream(1000, precinct, levels, where=where), JPEG_2000)


@pytest.mark.parametrize("marker", [0x30, 0x54, 0x5A, 0xFF])
def test_what_hides_behind_an_unknown_marker_is_refused(marker):
    """OpenJPEG looks for a marker where a reader of lengths sees a length, and goes on there."""
    whole = codestream(1000, 0, 0)
    style, tile = whole.index(b"\xff\x52"), whole.index(b"\xff\x90")
    hiding = bytearray(whole[:style] + bytes([0xFF, marker]) + whole[style:-2])
    hiding += bytes(style + 2 + 0xFF52 - len(hiding))
    hiding += b"\xff\x90\0\x0a" + bytes(7) + b"\1\xff\x93" + bytes(100)  # where the length would lead
    struct.pack_into(">I", hiding, tile + 2 + 6, len(hiding) - tile - 2)
    with pytest.raises(CodecError, match="0 of its 1 tiles"):
        decode_frame(bytes(hiding) + b"\xff\xd9", JPEG_2000)


@pytest.mark.parametrize("syntax", [JPEG_2000, HTJ2K])
@pytest.mark.parametrize("sides", [(0, 0), (1, 0), (0, 1)])
@pytest.mark.parametrize("where", ["COD", "COC", "tile"])
def test_tiny_code_blocks_are_refused(where, sides, syntax):
    """Of 4 x 4 pixels each, those of 50 million pixels would take 1.5 GB."""
    frame = codestream(1000, 15, 1, where=where)
    assert frame.count(b"\2\2\0\1\xff\xff") == 1
    cut = frame.replace(b"\2\2\0\1\xff\xff", bytes(sides) + b"\0\1\xff\xff")
    with pytest.raises(CodecError, match=f"have {1 << sum(sides) + 4} pixels, expected 64 or more"):
        decode_frame(cut, syntax)


@pytest.mark.parametrize("length", [1, 12, 14, 18, 24])
def test_a_tile_part_that_leads_back_ends_the_walk(length):
    """Two comments are in its header, at 12 and 18, and its data begin at 24."""
    frame = codestream(1000, 15, 1)
    tile, data = frame.index(b"\xff\x90"), frame.index(b"\xff\x93")
    comments = b"\xff\x64\0\4\0\1" * 2
    crafted = bytearray(frame[:data] + comments + frame[data:])
    struct.pack_into(">I", crafted, tile + 6, length)
    assert frame_size(bytes(crafted), JPEG_2000) == (1000, 1000)
    with suppress(CodecError):  # what OpenJPEG makes of it is its own matter
        decode_frame(bytes(crafted), JPEG_2000)


def test_a_codestream_of_a_million_tile_parts_has_no_header():
    part = b"\xff\x90\0\x0a\0\0" + struct.pack(">I", 14) + b"\0\0\xff\x93"
    frame = codestream(100, 15, 1)
    tile = frame.index(b"\xff\x90")
    assert frame_size(frame[:tile] + part * 60_000 + frame[tile:], JPEG_2000) == (100, 100)
    assert frame_size(frame[:tile] + part * 70_000 + frame[tile:], JPEG_2000) is None


@pytest.mark.parametrize("where", ["COD", "COC", "tile"])
@pytest.mark.parametrize(("precinct", "levels"), [(4, 5), (6, 5), (7, 3), (15, 0)])
def test_precincts_that_encoders_make_are_read(where, precinct, levels):
    decoded = decode_frame(codestream(1000, precinct, levels, where=where), JPEG_2000)
    assert decoded.pixels.shape == (1000, 1000)
    assert np.unique(decoded.pixels).size == 1


@pytest.mark.parametrize("syntax", [JPEG_2000, HTJ2K])
@pytest.mark.parametrize("seed", range(200))
def test_damage_ends_as_pixels_or_a_codec_error(syntax, seed):
    generator = random.Random(seed)
    frame = bytearray(good_frame(syntax))
    for _ in range(generator.choice((1, 2, 5))):
        frame[generator.randrange(120)] ^= 1 << generator.randrange(8)
    size = frame_size(bytes(frame), syntax)
    if size and size[0] * size[1] <= 1_000_000:
        with suppress(CodecError):
            assert decode_frame(bytes(frame), syntax).pixels.shape == size


# --- JPEG: how much a stream may ask for ------------------------------------------------------------------------------


def progressive(scans):
    """Repeat the last scan of a progressive JPEG."""
    stream = io.BytesIO()
    Image.fromarray(smooth(8)).save(stream, "JPEG", progressive=True, quality=90)
    frame = stream.getvalue()
    last = frame.rindex(b"\xff\xda")
    return frame[:last] + frame[last:-2] * (scans - frame.count(b"\xff\xda") + 1) + b"\xff\xd9"


@pytest.mark.parametrize("scans", [101, 150, 5000])
@pytest.mark.parametrize("syntax", [BASELINE, EXTENDED])
def test_a_jpeg_of_hundreds_of_scans_is_refused(syntax, scans):
    with pytest.raises(CodecError, match=f"{scans} scans, expected at most 100"):
        decode_frame(progressive(scans), syntax)
    assert decode_frame(progressive(10), syntax).pixels.shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("unit", [b"\xff\xff\xd0", b"\xff\xef\0\2", b"\xff\xfe\0\4ab"])
@pytest.mark.parametrize("syntax", [BASELINE, LOSSLESS, JPEG_LS])
def test_a_frame_header_behind_hundreds_of_segments_is_none(syntax, unit):
    frame = good_frame(syntax)
    assert frame_size(frame[:2] + unit * 501 + frame[2:], syntax) is None
    assert frame_size(frame[:2] + unit * 490 + frame[2:], syntax) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("syntax", [BASELINE, LOSSLESS, JPEG_LS])
def test_any_number_of_fill_bytes_may_stand_before_a_marker(syntax):
    frame = good_frame(syntax)
    assert frame_size(frame[:2] + b"\xff" * 1_000_000 + frame[2:], syntax) == (HEIGHT, WIDTH)
    assert frame_size(frame[:2] + b"\xff" * 1_000_000, syntax) is None


# --- RLE --------------------------------------------------------------------------------------------------------------


def rle(*segments, count=None):
    """Write a frame of segments as they are."""
    ends = np.cumsum([64, *map(len, segments)]).tolist()
    starts = [*ends[:-1], *[0] * (15 - len(segments))]
    return struct.pack("<16I", len(segments) if count is None else count, *starts) + b"".join(segments)


def packed(row):
    return bytes([len(row) - 1, *row])


HIGH, LOW = packed([1, 2, 3, 4]), packed([10, 20, 30, 40])


def test_rle_has_the_high_bytes_first():
    assert decode_rle(rle(HIGH, LOW), 2, 2, 16).tolist() == [[266, 532], [798, 1064]]
    assert decode_rle(rle(LOW), 2, 2, 8).tolist() == [[10, 20], [30, 40]]
    assert decode_rle(rle(b"\xfd\7"), 2, 2, 8).tolist() == [[7, 7], [7, 7]]
    assert decode_rle(rle(b"\xff\7\1\5\6"), 2, 2, 8).tolist() == [[7, 7], [5, 6]]


@pytest.mark.parametrize("tail", [b"\0", b"\0\0", b"\x80", b"\0\7\0\7"])
@pytest.mark.parametrize("bits", [8, 16])
def test_what_follows_a_whole_segment_of_rle_does_not_count(bits, tail):
    segments = [segment + tail for segment in ((HIGH, LOW) if bits == 16 else (LOW,))]
    wanted = [[266, 532], [798, 1064]] if bits == 16 else [[10, 20], [30, 40]]
    assert decode_rle(rle(*segments), 2, 2, bits).tolist() == wanted


@pytest.mark.parametrize(
    ("frame", "bits", "message"),
    [
        pytest.param(b"", 8, "no header of 1 segments", id="nothing"),
        pytest.param(rle(LOW)[:63], 8, "no header of 1 segments", id="half a header"),
        pytest.param(rle(LOW), 16, "no header of 2 segments", id="a segment is missing"),
        pytest.param(rle(HIGH, LOW), 8, "no header of 1 segments", id="a segment too many"),
        pytest.param(rle(LOW, count=1 << 31), 8, "no header of 1 segments", id="billions of segments"),
        pytest.param(rle(HIGH, packed([1, 2, 3])), 16, "segment 2 has 3 bytes, expected 4", id="a pixel is missing"),
        pytest.param(rle(b"", LOW), 16, "segment 1 has 0 bytes, expected 4", id="nothing in it"),
        pytest.param(rle(HIGH, LOW[:3]), 16, "segment 2 does not decode", id="cut"),
        pytest.param(rle(b"\x81\0"), 8, "segment 1 does not decode", id="128 for 4"),
        pytest.param(struct.pack("<16I", 1, 4_000_000_000, *[0] * 14) + LOW, 8, "segment 1 has 0", id="beyond the end"),
        pytest.param(struct.pack("<16I", 2, 70, 64, *[0] * 13) + HIGH + LOW, 16, "segment 1 has 0", id="backwards"),
    ],
)
def test_damaged_rle_is_refused(frame, bits, message):
    with pytest.raises(CodecError, match=message):
        decode_rle(frame, 2, 2, bits)


@pytest.mark.parametrize("bits", [8, 16])
def test_rle_that_unpacks_to_a_gigabyte_is_refused_before_it_does(bits):
    run = b"\x81\0" * (1 << 22)
    with pytest.raises(CodecError, match="does not decode"):
        decode_rle(rle(*[run] * (bits // 8)), 300, 300, bits)
