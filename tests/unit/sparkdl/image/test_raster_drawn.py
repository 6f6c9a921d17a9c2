"""PNG and JPEG files drawn at random: a PNG is what was written, a JPEG what Pillow makes of all of it.

The PNG writer knows every colour type and depth, each filter, interlacing, and data in pieces.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from schemas.errors import Reason, RecordError
from sparkdl.image.decode import decode_image
from sparkdl.image.row import array_from_row
from tests.profiles import LONG, SHORT
from tests.testimages import png_chunk

GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {GRAY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GRAY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
WHOLE = ((0, 0, 1, 1),)
NOTHING_OF_PIXELS = (
    png_chunk(b"tEXt", b"Comment\0nothing"),
    png_chunk(b"gAMA", struct.pack(">I", 45455)),
    png_chunk(b"pHYs", struct.pack(">IIB", 300, 300, 1)),
    png_chunk(b"vpAg", b"any"),
)


def decoded(payload, size=None):
    """Give the pixels, gray or BGR; None where they would be blank."""
    try:
        pixels = array_from_row(decode_image(payload, origin="here", size=size).image)
    except RecordError as exc:
        assert exc.reason == Reason.BLANK_RENDERING, exc
        return None
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


# --- PNG --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Png:
    """What a file holds: samples of shape (height, width, channels), the palette, bits that count, orientation."""

    samples: np.ndarray
    color_type: int
    depth: int
    interlaced: bool
    filters: list[int]
    pieces: int
    level: int
    palette: list[tuple[int, int, int]]
    significant: int | None
    orientation: int | None
    others: list[bytes]


@st.composite
def pngs(draw: st.DrawFn) -> Png:
    color_type = draw(st.sampled_from(sorted(CHANNELS)))
    depth = draw(st.sampled_from(DEPTHS[color_type]))
    height, width = draw(st.tuples(st.integers(1, 17), st.integers(1, 17)))
    bits = draw(st.sampled_from([8, 10, 12, 14, 16])) if depth == 16 else depth
    largest = (1 << bits) - 1
    palette = draw(palettes(1 << depth)) if color_type == PALETTE else []
    few = draw(st.lists(st.integers(0, largest), min_size=1, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    shape = height, width, CHANNELS[color_type]
    is_noise = rng.random(shape) < draw(st.sampled_from([0.0, 0.1, 1.0]))
    samples = np.where(is_noise, rng.integers(0, largest + 1, shape), rng.choice(few, shape))
    if color_type in (RGB, RGB_ALPHA) and draw(st.booleans()):
        samples[..., :3] = samples[..., :1]
    return Png(
        samples=samples,
        color_type=color_type,
        depth=depth,
        interlaced=draw(st.booleans()),
        filters=draw(st.lists(st.integers(0, 4), min_size=1, max_size=7)),
        pieces=draw(st.integers(1, 4)),
        level=draw(st.sampled_from([0, 1, 9])),
        palette=palette,
        significant=draw(st.none() | st.integers(1, 16)) if depth == 16 else None,
        orientation=draw(st.none() | st.integers(0, 9)),
        others=draw(st.lists(st.sampled_from(NOTHING_OF_PIXELS), max_size=3)),
    )


def palettes(count: int) -> st.SearchStrategy[list[tuple[int, int, int]]]:
    """Draw so many colours; sometimes they are grays."""
    color = st.integers(0, (1 << 24) - 1).map(lambda code: (code >> 16, code >> 8 & 255, code & 255))
    gray = st.integers(0, 255).map(lambda shade: (shade, shade, shade))
    few = st.lists(color, min_size=1, max_size=6) | st.lists(gray, min_size=1, max_size=6)
    return few.map(lambda colors: [colors[n * 5 % len(colors)] for n in range(count)])


def write_png(png: Png) -> bytes:
    height, width, _ = png.samples.shape
    header = struct.pack(">IIBBBBB", width, height, png.depth, png.color_type, 0, 0, png.interlaced)
    data = zlib.compress(write_rows(png), png.level)
    cuts = [len(data) * n // png.pieces for n in range(png.pieces + 1)]
    chunks = [png_chunk(b"IHDR", header), *png.others]
    if png.significant is not None:
        chunks.append(png_chunk(b"sBIT", bytes([png.significant] * CHANNELS[png.color_type])))
    if png.palette:
        chunks.append(png_chunk(b"PLTE", bytes(value for color in png.palette for value in color)))
    if png.orientation is not None:
        entry = struct.pack("<HHIHH", 0x0112, 3, 1, png.orientation, 0)
        chunks.append(png_chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0" + entry + bytes(4)))
    chunks += [png_chunk(b"IDAT", data[a:b]) for a, b in pairwise(cuts)]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, png_chunk(b"IEND", b"")])


def write_rows(png: Png) -> bytes:
    """Filter the rows of each pass, every one by the next of the drawn filters (PNG 9.2)."""
    distance = max(1, CHANNELS[png.color_type] * png.depth // 8)
    written, number = b"", 0
    for top, left, down, right in ADAM7 if png.interlaced else WHOLE:
        part = png.samples[top::down, left::right]
        if not part.size:
            continue
        above: list[int] = []
        for samples in part:
            row = list(pack(samples.reshape(-1), png.depth))
            kind = png.filters[number % len(png.filters)]
            number += 1
            above = above or [0] * len(row)
            line = [(value - predict(kind, row, above, at, distance)) % 256 for at, value in enumerate(row)]
            written += bytes([kind, *line])
            above = row
    return written


def pack(samples: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return samples.astype(">u2").tobytes()
    bits = "".join(f"{sample:0{depth}b}" for sample in samples)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


def predict(kind: int, row: list[int], above: list[int], at: int, distance: int) -> int:
    left, corner = (row[at - distance], above[at - distance]) if at >= distance else (0, 0)
    up = above[at]
    if kind == 4:
        guess = left + up - corner
        return min((left, up, corner), key=lambda value: abs(guess - value))  # the first of equals
    return (0, left, up, (left + up) // 2)[kind]


def expected_png(png: Png) -> np.ndarray | None:
    """Give gray or BGR pixels, upright; None where they are one colour and the samples are not."""
    samples = png.samples
    if png.color_type == PALETTE:
        shown = np.array(png.palette, np.uint8)[samples[..., 0]]
    else:
        colors = samples[..., : 3 if png.color_type in (RGB, RGB_ALPHA) else 1]
        white = white_of(colors, png.significant) if png.depth == 16 else (1 << png.depth) - 1
        shown = np.rint(np.minimum(colors * 255 / white, 255)).astype(np.uint8)
    if (shown == shown[0, 0]).all() and (samples != samples[0, 0]).any():
        return None
    if shown.shape[2] == 3 and (shown[..., 0] == shown[..., 1]).all() and (shown[..., 1] == shown[..., 2]).all():
        shown = shown[..., :1]
    upright = turned(shown, png.orientation or 1)
    return upright[..., 0] if upright.shape[2] == 1 else upright[..., ::-1]


def white_of(colors: np.ndarray, significant: int | None) -> int:
    """Find white as docs/publishing.md says."""
    if colors.shape[2] == 3 and (colors == colors[..., :1]).all():
        colors = colors[..., :1]

    def usual(values: np.ndarray) -> int:
        ordered = sorted(values.reshape(-1).tolist())
        return ordered[-(-len(ordered) * 99 // 100) - 1]

    if significant is None:
        return usual(colors) or int(colors.max()) or 1
    fit = all(usual(colors[..., channel]) < 1 << significant for channel in range(colors.shape[2]))
    return (1 << significant) - 1 if fit else 65535


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn upright what is stored as EXIF says: where the first row and the first column are to be."""
    if orientation not in range(2, 9):
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows_up = orientation in (3, 4, 7, 8)
    columns_left = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if rows_up else 1, :: -1 if columns_left else 1]


def check_png(png: Png) -> None:
    found, expected = decoded(write_png(png)), expected_png(png)
    assert (found is None) == (expected is None)
    if found is not None:
        np.testing.assert_array_equal(found, expected)


@SHORT
@given(pngs())
def test_a_png_is_what_was_written(png: Png) -> None:
    check_png(png)


@pytest.mark.long
@LONG
@given(pngs())
def test_a_png_is_what_was_written_at_length(png: Png) -> None:
    check_png(png)


# --- JPEG -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Jpeg:
    """A file, and the size it is to be shown at."""

    payload: bytes
    size: tuple[int, int] | None


@st.composite
def jpegs(draw: st.DrawFn) -> Jpeg:
    height, width = draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 20)))
    rows, columns = np.mgrid[:height, :width]
    slope = (rows * draw(st.integers(-3, 3)) + columns * draw(st.integers(-3, 3)) + 128)[..., None]
    noise = rng.integers(0, draw(st.sampled_from([1, 10, 100])), (height, width, 3))
    image = Image.fromarray(np.clip(slope + noise, 0, 255).astype(np.uint8))
    if draw(st.booleans()):
        image = image.convert("L")
    options = {
        "quality": draw(st.sampled_from([75, 90, 95])),
        "progressive": draw(st.booleans()),
        "optimize": draw(st.booleans()),
        "restart_marker_blocks": draw(st.integers(0, 3)),
    }
    if image.mode == "RGB":
        options["subsampling"] = draw(st.integers(0, 2))
    if (orientation := draw(st.none() | st.integers(1, 8))) is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return Jpeg(stream.getvalue(), draw(st.none() | st.tuples(st.integers(6, 40), st.integers(6, 40))))


def check_jpeg(jpeg: Jpeg) -> None:
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(jpeg.payload)))
    if jpeg.size:
        whole = whole.resize((jpeg.size[1], jpeg.size[0]), Image.Resampling.BILINEAR)
    expected = np.asarray(whole.convert("RGB"))[..., ::-1].astype(int)
    found = decoded(jpeg.payload, jpeg.size)
    if found is None:
        assert np.ptp(expected, axis=(0, 1)).max() <= 8  # shrunk inside its decoder it may be one colour
        return
    found = np.atleast_3d(found).astype(int)
    assert found.shape[:2] == expected.shape[:2]
    # Shrinking inside the decoder moves pixels of noise by up to 0.7 in the mean; those of pictures by less than 0.3.
    assert np.abs(found - expected).mean() <= (0 if jpeg.size is None else 1)


@SHORT
@given(jpegs())
def test_a_jpeg_is_what_pillow_makes_of_all_of_it(jpeg: Jpeg) -> None:
    check_jpeg(jpeg)


@pytest.mark.long
@LONG
@given(jpegs())
def test_a_jpeg_is_what_pillow_makes_of_all_of_it_at_length(jpeg: Jpeg) -> None:
    check_jpeg(jpeg)
