"""Files of 16 bits a channel that Pillow opens as 8: it keeps the high byte of each value.

A picture that uses all 16 bits survives that. One of 12 bits, stored as 0 to 4095, comes out as 0 to 15: black. Pillow
has modes of more than 8 bits for a single gray channel only. `decode_image` reads 16-bit PNG by other means; this is
for those who open files with Pillow: `imageIO` and the loader of Keras image files.

PPM, JPEG 2000 and AVIF files say how many bits a value has, and Pillow scales by that: they are none of these.
"""

import re

from PIL.Image import Image
from PIL.ImageFile import ImageFile, _Tile
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

# Pillow's name for how a file's bytes are unpacked. "BGR;16", without a letter, has 16 bits a pixel, not a channel.
_UNPACKS_16_BITS = re.compile(r";16[BLN]$")
_SGI_16_BITS = "SGI16"
_DEEP_MODES = ("I", "F")  # and with them I;16 and I;16B
_BYTE = 8
# The high bytes of 15 bits hold 7 of them, half as bright: a picture still, and what Keras's own loader gives.
_FULL_SCALE_FROM = 1 << 14
# A hot pixel or a burned-in marker is no picture: a black image with one white letter is as wrong as a black one.
_PICTURE_SHARE = 0.01


def keeps_high_bytes(image: ImageFile) -> bool:
    """Tell whether Pillow reads no more than the high byte of a file's values.

    Parameters
    ----------
    image : PIL.ImageFile.ImageFile
        As ``Image.open`` gives it: once it is loaded, it no longer knows.

    Returns
    -------
    bool
        True for 16-bit PNG and SGI files and for TIFF files of more than 8 bits a channel, except those of one gray
        channel that Pillow opens in a mode of more than 8 bits.
    """
    if image.mode.startswith(_DEEP_MODES):
        return False
    return _tiff_bits(image) > _BYTE or any(_unpacks_16_bits(tile) for tile in image.tile)


def fits_14_bits(high_bytes: Image) -> bool:
    """Tell whether the high bytes are no picture: all but a few of the file's values fit in 14 bits or less.

    Parameters
    ----------
    high_bytes : PIL.Image.Image
        What Pillow has made of a file for which `keeps_high_bytes` is true.

    Returns
    -------
    bool
        True where no colour reaches a quarter of the full scale in one pixel of a hundred; alpha does not count.
    """
    colors = [high_bytes.getchannel(band) for band in high_bytes.getbands() if band != "A"]
    enough = max(1, _PICTURE_SHARE * high_bytes.width * high_bytes.height)
    return not any(sum(color.histogram()[_FULL_SCALE_FROM >> _BYTE :]) >= enough for color in colors)


def _tiff_bits(image: ImageFile) -> int:
    """Give the bits of a TIFF file's values; 0 for other files."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    return max(tags.get(BITSPERSAMPLE, (0,)))


def _unpacks_16_bits(tile: _Tile) -> bool:
    packing = tile.args[0] if isinstance(tile.args, tuple) else tile.args
    return tile.codec_name == _SGI_16_BITS or _UNPACKS_16_BITS.search(str(packing)) is not None
