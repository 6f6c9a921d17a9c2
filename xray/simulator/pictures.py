"""Radiographs drawn ahead: drawing one takes longer than sending it, so a few are sent again and again."""

import threading
from collections import OrderedDict
from collections.abc import Callable

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    HTJ2K,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from xray.phantom import FINDINGS, generate_radiograph
from xray.simulator.habits import NATIVE

_KEPT_FRAMES = 64
"""About 0.3 MB each, compressed or not."""
_STAMP_BITS = 64
_STAMP_CELL_PX = 8
"""A JPEG's own block: a cell of one gray goes through it unchanged."""


class Pictures:
    """A few radiographs, and their frames as devices compress them.

    Parameters
    ----------
    seed : int
        The same one gives the same pictures.
    count : int
        How many there are.
    shape : tuple of int
        Height and width of the first; the others differ a little.
    """

    def __init__(self, seed: int, count: int = 8, shape: tuple[int, int] = (640, 544)) -> None:
        self._drawn = tuple(
            generate_radiograph(
                seed + place, finding=FINDINGS[place % len(FINDINGS)], height=shape[0] + 8 * place, width=shape[1]
            ).pixels
            for place in range(count)
        )
        self._frames: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def pick(self, number: int) -> NDArray[np.uint8]:
        """Give one of them."""
        return self._drawn[number % len(self._drawn)]

    def stamp(self, number: int) -> NDArray[np.uint8]:
        """Give one of them with a number in its corner, so that no two are alike to the last pixel."""
        pixels = self.pick(number).copy()
        for bit in range(_STAMP_BITS):
            row, column = (_STAMP_CELL_PX * part for part in divmod(bit, 16))
            shade = 40 + 120 * (number >> bit & 1)
            pixels[row : row + _STAMP_CELL_PX, column : column + _STAMP_CELL_PX] = shade
        return pixels

    def frame(self, number: int, syntax: str, bits: int, *, inverted: bool) -> tuple[bytes, tuple[int, int]]:
        """Give the pixel data of one of them, and its height and width.

        Parameters
        ----------
        number : int
            Which one.
        syntax : str
            Transfer syntax UID, one of those that `xray.simulator.habits` has.
        bits : int
            Stored in each pixel.
        inverted : bool
            As MONOCHROME1 has it.
        """
        pixels = self.pick(number)
        key = (number % len(self._drawn), syntax, bits, inverted)
        with self._lock:
            if key in self._frames:
                self._frames.move_to_end(key)
                return self._frames[key], pixels.shape
        encoded = encode_frame(store_values(pixels, bits, inverted=inverted), syntax, bits)
        with self._lock:
            self._frames[key] = encoded
            while len(self._frames) > _KEPT_FRAMES:
                self._frames.popitem(last=False)
        return encoded, pixels.shape


def store_values(pixels: NDArray[np.uint8], bits: int, *, inverted: bool) -> NDArray[np.unsignedinteger]:
    """Spread gray levels over the values that so many bits can store."""
    grey = 255 - pixels if inverted else pixels
    if bits == 8:  # noqa: PLR2004
        return np.ascontiguousarray(grey)
    return (grey.astype(np.uint32) * ((1 << bits) - 1) // 255).astype(np.uint16)


def encode_frame(values: NDArray[np.unsignedinteger], syntax: str, bits: int) -> bytes:
    """Encode stored values as a transfer syntax wants them: the bytes of a native one, or a compressed frame."""
    if syntax in NATIVE:
        order = values.dtype.newbyteorder(">") if syntax == ExplicitVRBigEndian else values.dtype.newbyteorder("<")
        return values.astype(order).tobytes()
    return bytes(_ENCODERS[syntax](values, bits))


def _encode_rle(values: NDArray[np.unsignedinteger], bits: int) -> bytes:
    rows, columns = values.shape
    return bytes(
        RLELosslessEncoder.encode(
            values,
            rows=rows,
            columns=columns,
            number_of_frames=1,
            samples_per_pixel=1,
            bits_allocated=8 * values.itemsize,
            bits_stored=bits,
            pixel_representation=0,
            photometric_interpretation="MONOCHROME2",
        )
    )


_ENCODERS: dict[str, Callable[[NDArray[np.unsignedinteger], int], bytes | bytearray]] = {
    JPEGBaseline8Bit: lambda values, _: imagecodecs.jpeg8_encode(values, level=95),
    JPEGExtended12Bit: lambda values, bits: imagecodecs.jpeg8_encode(values, level=95, bitspersample=bits),
    JPEGLossless: lambda values, bits: imagecodecs.jpeg8_encode(values, lossless=True, predictor=4, bitspersample=bits),
    JPEGLosslessSV1: lambda values, bits: imagecodecs.ljpeg_encode(values, bitspersample=bits),
    JPEGLSLossless: lambda values, _: imagecodecs.jpegls_encode(values),
    JPEG2000Lossless: lambda values, bits: imagecodecs.jpeg2k_encode(
        values, level=0, codecformat="j2k", reversible=True, bitspersample=bits
    ),
    HTJ2KLossless: lambda values, _: imagecodecs.htj2k_encode(values, reversible=True),
    HTJ2K: lambda values, _: imagecodecs.htj2k_encode(values, reversible=True),
    RLELossless: _encode_rle,
}
