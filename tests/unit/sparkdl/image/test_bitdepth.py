"""Files of 16 bits a channel: which of them Pillow opens as 8, and of those, which lose their picture."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sparkdl.image import imageIO
from sparkdl.image.bitdepth import fits_14_bits, keeps_high_bytes
from tests import testimages
from tests.testimages import deep_samples, gray_pixels, jpeg, png, png16, rgb_pixels, twelve_bit_pixels


def tiff16(samples, *, big=False, planar=False, deflated=False):
    """Write uint16 samples of 1 (gray), 3 (RGB) or 4 (RGB and alpha) channels."""
    height, width, channels = samples.shape
    order = ">" if big else "<"
    planes = [samples[..., n] for n in range(channels)] if planar else [samples]
    strips = [plane.astype(f"{order}u2").tobytes() for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if deflated else strips
    tags = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [16] * channels),
        259: (3, [8 if deflated else 1]),
        262: (3, [2 if channels > 1 else 1]),
        273: (4, [8 + sum(map(len, strips[:n])) for n in range(len(strips))]),
        277: (3, [channels]),
        278: (3, [height]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [2 if planar else 1]),
    }
    if channels == 4:
        tags[338] = (3, [2])
    directory_at = 8 + sum(map(len, strips))
    behind_at = directory_at + 2 + 12 * len(tags) + 4
    directory, behind = struct.pack(f"{order}H", len(tags)), b""
    for tag, (kind, numbers) in sorted(tags.items()):
        value = struct.pack(f"{order}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(value) > 4:
            value, behind = struct.pack(f"{order}I", behind_at + len(behind)), behind + value
        directory += struct.pack(f"{order}HHI", tag, kind, len(numbers)) + value.ljust(4, b"\0")
    head = (b"MM" if big else b"II") + struct.pack(f"{order}HI", 42, directory_at)
    return head + b"".join(strips) + directory + bytes(4) + behind


def sgi16(samples):
    """Write uint16 samples of 1, 3 or 4 channels as an SGI file, plane by plane."""
    height, width, channels = samples.shape
    head = struct.pack(">HBBHHHHII", 474, 0, 2, 2 if channels == 1 else 3, width, height, channels, 0, 65535)
    return head.ljust(512, b"\0") + b"".join(samples[::-1, :, n].astype(">u2").tobytes() for n in range(channels))


def ppm16(samples, largest):
    """Write uint16 samples of RGB, and what white is."""
    height, width, _ = samples.shape
    return b"P6 %d %d %d\n" % (width, height, largest) + samples.astype(">u2").tobytes()


def opened(payload):
    return Image.open(io.BytesIO(payload))


SHALLOW = {
    "PNG, gray and alpha": lambda bits: png16(deep_samples(2, bits=bits)),
    "PNG, RGB": lambda bits: png16(deep_samples(3, bits=bits)),
    "PNG, RGB, interlaced": lambda bits: png16(deep_samples(3, bits=bits), interlaced=True),
    "PNG, RGB, one colour transparent": lambda bits: png16(
        deep_samples(3, bits=bits), chunks=testimages.png_chunk(b"tRNS", bytes(6))
    ),
    "PNG, RGBA": lambda bits: png16(deep_samples(4, bits=bits)),
    "TIFF, RGB": lambda bits: tiff16(deep_samples(3, bits=bits)),
    "TIFF, RGB, big endian": lambda bits: tiff16(deep_samples(3, bits=bits), big=True),
    "TIFF, RGB, deflated": lambda bits: tiff16(deep_samples(3, bits=bits), deflated=True),
    "TIFF, RGB, deflated, in planes": lambda bits: tiff16(deep_samples(3, bits=bits), deflated=True, planar=True),
    "TIFF, RGBA": lambda bits: tiff16(deep_samples(4, bits=bits)),
    "SGI, gray": lambda bits: sgi16(deep_samples(1, bits=bits)),
    "SGI, RGB": lambda bits: sgi16(deep_samples(3, bits=bits)),
    "SGI, RGBA": lambda bits: sgi16(deep_samples(4, bits=bits)),
}
"""Files that Pillow opens as 8 bits, with their picture in that many bits."""


@pytest.mark.parametrize("name", SHALLOW)
@pytest.mark.parametrize(("bits", "lost"), [(12, True), (14, True), (15, False), (16, False)])
def test_a_picture_of_fewer_bits_than_the_file_is_lost(name, bits, lost):
    image = opened(SHALLOW[name](bits))
    assert keeps_high_bytes(image)
    image.load()
    assert fits_14_bits(image) == lost
    if lost:
        with pytest.raises(ValueError, match="file has 16 bits a channel, of which Pillow keeps the high 8, but its"):
            imageIO.PIL_decode(SHALLOW[name](bits))
    else:
        colour = imageIO.PIL_decode(SHALLOW[name](bits))[..., 0]
        np.testing.assert_array_equal(colour, (twelve_bit_pixels() << (bits - 12)) >> 8)


def test_planes_that_pillow_reads_as_8_bits_are_looked_at_too():
    assert keeps_high_bytes(opened(tiff16(deep_samples(3), planar=True)))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(png(), id="PNG of 8 bits"),
        pytest.param(png(rgb_pixels()), id="PNG, RGB of 8 bits"),
        pytest.param(png(twelve_bit_pixels()), id="PNG, 16-bit gray: Pillow keeps all"),
        pytest.param(png16(deep_samples(1), interlaced=True), id="PNG, 16-bit gray, interlaced"),
        pytest.param(tiff16(deep_samples(1)), id="TIFF, 16-bit gray"),
        pytest.param(tiff16(deep_samples(1), big=True), id="TIFF, 16-bit gray, big endian"),
        pytest.param(testimages.encode(rgb_pixels(), "TIFF"), id="TIFF of 8 bits"),
        pytest.param(testimages.encode(gray_pixels(), "SGI"), id="SGI of 8 bits"),
        pytest.param(ppm16(deep_samples(3), 4095), id="PPM, which says that white is 4095"),
        pytest.param(testimages.palette_png(), id="palette"),
        pytest.param(jpeg(), id="JPEG"),
        pytest.param(testimages.encode(rgb_pixels(), "BMP"), id="BMP"),
    ],
)
def test_other_files_lose_nothing(payload):
    assert not keeps_high_bytes(opened(payload))


def test_alpha_is_no_colour():
    """It is opaque, 65535, in a picture of 12 bits."""
    image = opened(png16(deep_samples(4)))
    image.load()
    assert image.getchannel("A").getextrema() == (255, 255)
    assert fits_14_bits(image)


def test_a_cut_file_of_16_bits_does_not_decode():
    assert imageIO.PIL_decode(png16(deep_samples(3))[:-100]) is None
