"""What each codec gives, and what its header says; in DICOM files: test_dicom.py."""

import struct

import imagecodecs
import numpy as np
import pytest

from sparkdl.image.codecs import SYNTAXES, CodecError, decode_frame, frame_size

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


@pytest.mark.parametrize("tile", [1, 4, 16])
@pytest.mark.parametrize("syntax", [JPEG_2000, HTJ2K])
def test_a_codestream_of_tiny_tiles_is_refused(syntax, tile):
    frame = bytearray(good_frame(syntax))
    start = frame.index(b"\xff\x4f\xff\x51")
    struct.pack_into(">II", frame, start + 8, 200 * tile, 200 * tile)
    struct.pack_into(">II", frame, start + 24, tile, tile)
    with pytest.raises(CodecError, match="40000 tiles, expected at most"):
        decode_frame(bytes(frame), syntax)
