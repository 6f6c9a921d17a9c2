"""The image row: Spark's ``ImageSchema`` struct as a plain Python object, to and from numpy.

Decoding produces it, Spark carries it, the featurizer consumes it. No Spark is needed to build or to read one.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from schemas.errors import CorruptImageError, Reason, UnsupportedImageError

# The struct's fields in the order of Spark's ImageSchema; a consumer may read them by position.
IMAGE_DDL = "origin string, height int, width int, nChannels int, mode int, data binary"
IMAGE_ARROW_TYPE = pa.struct(
    [
        ("origin", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("nChannels", pa.int32()),
        ("mode", pa.int32()),
        ("data", pa.binary()),
    ]
)

# OpenCV's type number of an unsigned 8-bit image is 8 x (channels - 1): CV_8UC1, CV_8UC3, CV_8UC4.
MODE_BY_CHANNELS = {1: 0, 3: 16, 4: 24}

_GRAY_NDIM, _INTERLEAVED_NDIM = 2, 3


class ImageRowLike(Protocol):
    """Anything with the image struct's fields: an `ImageRow`, a Spark ``Row``, a named tuple from a pandas frame."""

    @property
    def origin(self) -> str | None:
        """See `ImageRow`."""

    @property
    def height(self) -> int:
        """See `ImageRow`."""

    @property
    def width(self) -> int:
        """See `ImageRow`."""

    @property
    def nChannels(self) -> int:
        """See `ImageRow`."""

    @property
    def mode(self) -> int:
        """See `ImageRow`."""

    @property
    def data(self) -> Any:
        """Like ``ImageRow.data``, as any buffer: bytes, bytearray, memoryview, pyarrow.Buffer."""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image in the fields, order and layout of Spark's ``ImageSchema``.

    Parameters
    ----------
    origin : str
        Where the image came from: a file's path, or ``"xray.images-3@1024"`` (topic-partition@offset).
    height, width : int
        Size in pixels.
    nChannels : int
        1 (gray), 3 (BGR) or 4 (BGRA).
    mode : int
        OpenCV type: 0 = CV_8UC1, 16 = CV_8UC3, 24 = CV_8UC4.
    data : bytes
        ``height * width * nChannels`` uint8 values, row-major, channels interleaved as blue, green, red, alpha.

    References
    ----------
    ``pyspark.ml.image.ImageSchema``.
    """

    origin: str
    height: int
    width: int
    nChannels: int
    mode: int
    data: bytes


def row_from_array(pixels: npt.NDArray[np.uint8], *, origin: str) -> ImageRow:
    """Build an image row from pixels.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 of shape (height, width) or (height, width, 1 | 3 | 4), channel order BGR / BGRA. Need not be contiguous.
    origin : str
        Where the image came from.

    Returns
    -------
    ImageRow
        With a copy of the pixels.

    Raises
    ------
    UnsupportedImageError
        ``UNSUPPORTED_FORMAT``: another dtype, number of dimensions or number of channels, or a side of zero.
    """
    if pixels.dtype != np.uint8:
        raise _unsupported(origin, f"pixels are {pixels.dtype}, expected uint8")
    if pixels.ndim not in (_GRAY_NDIM, _INTERLEAVED_NDIM) or pixels.size == 0:
        raise _unsupported(origin, f"pixels have shape {pixels.shape}, expected (height, width) or (height, width, n)")
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == _INTERLEAVED_NDIM else 1
    return ImageRow(origin, height, width, channels, _mode(channels, origin), pixels.tobytes())


def array_from_row(row: ImageRowLike) -> npt.NDArray[np.uint8]:
    """View the pixels of an image row as an array, without copying them.

    Parameters
    ----------
    row : ImageRowLike
        Any object with the struct's fields.

    Returns
    -------
    numpy.ndarray
        uint8 of shape (height, width, nChannels), channel order BGR / BGRA. A view of ``row.data``, so it is read-only
        where that is (``bytes``).

    Raises
    ------
    UnsupportedImageError
        ``UNSUPPORTED_FORMAT``: ``nChannels`` is not 1, 3 or 4, or ``mode`` is not the 8-bit type of that many channels.
    CorruptImageError
        ``CORRUPT_IMAGE``: a side is below 1, or ``data`` is missing or has another length than the sizes say.
    """
    origin = row.origin or "image"
    mode = _mode(row.nChannels, origin)
    if row.mode != mode:
        raise _unsupported(origin, f"mode is {row.mode}, expected {mode} for {row.nChannels} channels of 8 bits")
    shape = (row.height, row.width, row.nChannels)
    if None in shape or min(shape) < 1:
        raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, f"size is {shape[0]}x{shape[1]}, expected 1x1 or more")
    if row.data is None:
        raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, "data is missing")
    flat = np.frombuffer(row.data, dtype=np.uint8)
    wanted = shape[0] * shape[1] * shape[2]
    if flat.size != wanted:
        sizes = "x".join(map(str, shape))
        detail = f"data has {flat.size} bytes, expected {wanted} for {sizes} (height x width x nChannels)"
        raise CorruptImageError(Reason.CORRUPT_IMAGE, origin, detail)
    return flat.reshape(shape)


def _mode(channels: int, origin: str) -> int:
    if channels not in MODE_BY_CHANNELS:
        raise _unsupported(origin, f"nChannels is {channels}, expected 1, 3 or 4")
    return MODE_BY_CHANNELS[channels]


def _unsupported(origin: str, detail: str) -> UnsupportedImageError:
    return UnsupportedImageError(Reason.UNSUPPORTED_FORMAT, origin, detail)
