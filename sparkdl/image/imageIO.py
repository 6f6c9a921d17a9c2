"""Image structs, numpy arrays, Pillow images and files of images: one into the other.

The successor of sparkdl 1.x's module of this name, with its names and its column order. It is one module because users
import all of these names from it. An array is always (height, width, nChannels) with channels in the order of the
struct: gray, BGR or BGRA. Alpha is never moved.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from numbers import Integral
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from pyspark import SparkContext
from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql.functions import col, udf
from pyspark.sql.types import BinaryType, IntegerType, StringType, StructField, StructType

from schemas.errors import RecordError
from sparkdl.image.bitdepth import fits_14_bits, keeps_high_bytes
from sparkdl.image.pixels import PILLOW_ERRORS, resize_pixels
from sparkdl.image.row import IMAGE_ARROW_TYPE, IMAGE_DDL, ImageRowLike
from sparkdl.spark.session import find_session

Pixels = npt.NDArray[Any]


class OcvType(NamedTuple):
    """One OpenCV type an image can have.

    Parameters
    ----------
    name : str
        OpenCV's name, e.g. ``"CV_8UC3"``.
    ord : int
        OpenCV's number for it: what the struct's ``mode`` holds.
    nChannels : int
        1 (gray), 3 (BGR) or 4 (BGRA).
    dtype : str
        numpy's name of a value's type: ``"uint8"`` (0 to 255) or ``"float32"`` (no fixed range).
    """

    name: str
    ord: int
    nChannels: int
    dtype: str


# The number is depth + 8 x (channels - 1), where depth is 0 for 8U and 5 for 32F (OpenCV's CV_MAKETYPE).
supportedOcvTypes = (
    OcvType("CV_8UC1", 0, 1, "uint8"),
    OcvType("CV_32FC1", 5, 1, "float32"),
    OcvType("CV_8UC3", 16, 3, "uint8"),
    OcvType("CV_32FC3", 21, 3, "float32"),
    OcvType("CV_8UC4", 24, 4, "uint8"),
    OcvType("CV_32FC4", 29, 4, "float32"),
)

# The type of an image column, in the order of Spark's ImageSchema: Spark takes a Row by position.
imageSchema = StructType(
    [
        StructField("origin", StringType()),
        StructField("height", IntegerType()),
        StructField("width", IntegerType()),
        StructField("nChannels", IntegerType()),
        StructField("mode", IntegerType()),
        StructField("data", BinaryType()),
    ]
)

_ImageStruct = Row(*imageSchema.names)
_TYPE_BY_NAME = {kind.name: kind for kind in supportedOcvTypes}
_TYPE_BY_ORDINAL = {kind.ord: kind for kind in supportedOcvTypes}
_TYPE_BY_LAYOUT = {(kind.dtype, kind.nChannels): kind for kind in supportedOcvTypes}

_GRAY_NDIM, _INTERLEAVED_NDIM, _BATCH_NDIM = 2, 3, 4
_SWAPPED = {3: [2, 1, 0], 4: [2, 1, 0, 3]}  # red and blue change places, alpha stays the last
_PILLOW_MODES = ("L", "RGB", "RGBA")
_CONVERTED_MODES = {"1": "L", "LA": "RGBA", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB"}

_READ_DDL = f"image struct<{IMAGE_DDL}>, reason string, origin string"


# --- types ------------------------------------------------------------------------------------------------------------


def imageTypeByOrdinal(ordinal: int) -> OcvType:
    """Find an OpenCV type by its number.

    Parameters
    ----------
    ordinal : int
        What a struct's ``mode`` holds, e.g. 16.

    Returns
    -------
    OcvType
        From `supportedOcvTypes`.

    Raises
    ------
    KeyError
        It is none of them.
    """
    if ordinal not in _TYPE_BY_ORDINAL:
        msg = f"image type is {ordinal}, expected one of {sorted(_TYPE_BY_ORDINAL)}"
        raise KeyError(msg)
    return _TYPE_BY_ORDINAL[ordinal]


def imageTypeByName(name: str) -> OcvType:
    """Find an OpenCV type by its name.

    Parameters
    ----------
    name : str
        E.g. ``"CV_8UC3"``.

    Returns
    -------
    OcvType
        From `supportedOcvTypes`.

    Raises
    ------
    KeyError
        It is none of them.
    """
    if name not in _TYPE_BY_NAME:
        msg = f"image type is {name!r}, expected one of {', '.join(_TYPE_BY_NAME)}"
        raise KeyError(msg)
    return _TYPE_BY_NAME[name]


def imageType(imageRow: ImageRowLike) -> OcvType:
    """Find the OpenCV type of an image struct.

    Parameters
    ----------
    imageRow : Row
        Of `imageSchema`; only its ``mode`` is read.

    Returns
    -------
    OcvType
        From `supportedOcvTypes`.

    Raises
    ------
    KeyError
        Its ``mode`` is none of them.
    """
    return imageTypeByOrdinal(imageRow.mode)


# --- struct and array -------------------------------------------------------------------------------------------------


def imageArrayToStruct(imgArray: Pixels, origin: str | None = "") -> Row:
    """Build an image struct from pixels.

    Parameters
    ----------
    imgArray : numpy.ndarray
        uint8 or float32, of shape (height, width) or (height, width, 1 | 3 | 4), channel order BGR / BGRA; a leading
        batch axis of length 1 is dropped. Need not be contiguous.
    origin : str, optional
        Where the image came from.

    Returns
    -------
    Row
        Of `imageSchema`, its fields in that order; ``data`` is a copy of the pixels, as bytes.

    Raises
    ------
    ValueError
        Another dtype, number of axes or number of channels, or a side of zero. Nothing is converted or scaled.
    """
    if imgArray.ndim == _BATCH_NDIM and imgArray.shape[0] == 1:
        imgArray = imgArray[0]
    if imgArray.ndim == _GRAY_NDIM:
        imgArray = imgArray[..., np.newaxis]
    if imgArray.ndim != _INTERLEAVED_NDIM or imgArray.size == 0:
        msg = f"image array has shape {imgArray.shape}, expected (height, width) or (height, width, 1 | 3 | 4)"
        raise ValueError(msg)
    height, width, channels = imgArray.shape
    return _ImageStruct(origin, height, width, channels, _typeOf(imgArray).ord, imgArray.tobytes())


def _typeOf(pixels: Pixels) -> OcvType:
    # str() names a foreign byte order too (">f4"), which the struct cannot express.
    layout = str(pixels.dtype), pixels.shape[-1]
    if layout not in _TYPE_BY_LAYOUT:
        msg = f"image array is {layout[0]} with {layout[1]} channels, expected uint8 or float32 with 1, 3 or 4 channels"
        raise ValueError(msg)
    return _TYPE_BY_LAYOUT[layout]


def imageStructToArray(imageRow: ImageRowLike) -> Pixels:
    """View the pixels of an image struct as an array, without copying them.

    Parameters
    ----------
    imageRow : Row
        Of `imageSchema`.

    Returns
    -------
    numpy.ndarray
        uint8 or float32 as ``mode`` says, of shape (height, width, nChannels), channel order BGR / BGRA. It is a view
        of the struct's ``data``, hence read-only where that is bytes, as in rows that Spark 4 collects; ``.copy()`` is
        writable.

    Raises
    ------
    KeyError
        ``mode`` is no supported type.
    ValueError
        ``nChannels`` is not that of ``mode``, a side is missing or below 1, or ``data`` is missing or has another
        length than the sizes say.
    """
    kind = imageType(imageRow)
    if imageRow.nChannels != kind.nChannels:
        msg = f"{_name(imageRow)}: nChannels is {imageRow.nChannels}, expected {kind.nChannels} for mode {kind.ord}"
        raise ValueError(msg)
    shape = (imageRow.height, imageRow.width, kind.nChannels)
    if None in shape or min(shape) < 1:
        msg = f"{_name(imageRow)}: size is {shape[0]}x{shape[1]}, expected 1x1 or more"
        raise ValueError(msg)
    if imageRow.data is None:
        msg = f"{_name(imageRow)}: data is missing"
        raise ValueError(msg)
    flat = np.frombuffer(imageRow.data, np.uint8)
    wanted = shape[0] * shape[1] * shape[2] * np.dtype(kind.dtype).itemsize
    if flat.size != wanted:
        msg = f"{_name(imageRow)}: data has {flat.size} bytes, expected {wanted} for {kind.name} of {shape}"
        raise ValueError(msg)
    return flat.view(kind.dtype).reshape(shape)


def _name(imageRow: ImageRowLike) -> str:
    return imageRow.origin or "image"


# --- Pillow -----------------------------------------------------------------------------------------------------------


def imageStructToPIL(imageRow: ImageRowLike) -> Image.Image:
    """Turn an image struct into a Pillow image.

    Parameters
    ----------
    imageRow : Row
        Of `imageSchema`, 8 bits a channel.

    Returns
    -------
    PIL.Image.Image
        Mode L, RGB or RGBA.

    Raises
    ------
    KeyError, ValueError
        As `imageStructToArray`; ValueError also for a float32 image, whose range Pillow could only guess.
    """
    kind = imageType(imageRow)
    if kind.dtype != "uint8":
        msg = f"{_name(imageRow)}: image type is {kind.name}, expected 8 bits a channel (scale it to 0..255 first)"
        raise ValueError(msg)
    pixels = imageStructToArray(imageRow)
    return Image.fromarray(pixels[..., 0] if kind.nChannels == 1 else _swapRedAndBlue(pixels))


def PIL_to_imageStruct(img: Image.Image) -> npt.NDArray[np.uint8]:
    """Turn a Pillow image into an array in the struct's layout, whatever the name says.

    Parameters
    ----------
    img : PIL.Image.Image
        Of 8 bits a channel or less. Palettes are expanded; CMYK and YCbCr become RGB; 1 bit becomes 0 / 255.

    Returns
    -------
    numpy.ndarray
        uint8 of shape (height, width, 1 | 3 | 4): gray, BGR or BGRA; for `imageArrayToStruct`.

    Raises
    ------
    ValueError
        Another mode, e.g. 16-bit gray, of which Pillow would only keep what fits 8 bits. For these
        `decode_image` has a rule. 16-bit colours have lost their low bits when Pillow opened the file,
        which only `PIL_decode` can see.
    """
    if img.mode not in _PILLOW_MODES:
        img = img.convert(_pillowMode(img))
    pixels = np.asarray(img)
    return pixels[..., np.newaxis] if pixels.ndim == _GRAY_NDIM else _swapRedAndBlue(pixels)


def _pillowMode(img: Image.Image) -> str:
    if img.mode == "P":
        return "RGBA" if img.has_transparency_data else "RGB"
    if img.mode not in _CONVERTED_MODES:
        wanted = ", ".join([*_PILLOW_MODES, "P", *_CONVERTED_MODES])
        msg = f"Pillow's image mode is {img.mode}, expected one of {wanted}"
        raise ValueError(msg)
    return _CONVERTED_MODES[img.mode]


def PIL_decode(raw_bytes: bytes) -> npt.NDArray[np.uint8] | None:
    """Decode an image file with Pillow, in any format it knows.

    Parameters
    ----------
    raw_bytes : bytes
        Encoded file.

    Returns
    -------
    numpy.ndarray or None
        As `PIL_to_imageStruct`; None where the bytes do not decode. An EXIF orientation is not applied.

    Raises
    ------
    ValueError
        As `PIL_to_imageStruct`, or the file has 16-bit colours that fit in 14 bits: it decodes, but not to its picture.
    """
    img = _open(raw_bytes)
    return None if img is None else PIL_to_imageStruct(img)


def PIL_decode_and_resize(size: Sequence[int]) -> Callable[[bytes], npt.NDArray[np.uint8] | None]:
    """Build a decoder for `readImagesWithCustomFn` that resizes too.

    Parameters
    ----------
    size : sequence of int
        **(width, height)** in pixels: Pillow's order, which this function has always taken, unlike
        `createResizeImageUDF`.

    Returns
    -------
    Callable
        Like `PIL_decode`; the resize is bilinear with antialiasing.

    Raises
    ------
    ValueError
        ``size`` is not two whole numbers of 1 or more.
    """
    width, height = _checkedSize(size, "(width, height)")

    def decode(raw_bytes: bytes) -> npt.NDArray[np.uint8] | None:
        pixels = PIL_decode(raw_bytes)
        return None if pixels is None else resize_pixels(pixels, (height, width))

    return decode


def _open(raw_bytes: bytes) -> Image.Image | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            img = Image.open(BytesIO(raw_bytes))
            highBytes = keeps_high_bytes(img)
            img.load()
    except (*PILLOW_ERRORS, Image.DecompressionBombError):
        return None
    if highBytes and fits_14_bits(img):
        msg = "file has 16 bits a channel, of which Pillow keeps the high 8, but its values fit in 14; expected 8 bits"
        raise ValueError(msg)
    return img


# --- channels and sizes -----------------------------------------------------------------------------------------------


def fixColorChannelOrdering(currentOrder: str, imgAry: Pixels) -> Pixels:
    """Bring an array's channels into the struct's order.

    Parameters
    ----------
    currentOrder : str
        ``"L"``, ``"RGB"`` or ``"BGR"``: the order they are in. An alpha channel after the colours is left alone.
    imgAry : numpy.ndarray
        Any dtype; for L of shape (height, width) or (..., height, width, 1), else (..., height, width, 3 | 4).

    Returns
    -------
    numpy.ndarray
        ``imgAry`` itself for L and BGR; for RGB a copy in the order BGR.

    Raises
    ------
    ValueError
        Another order, or a shape that contradicts it.
    """
    if currentOrder not in ("L", "RGB", "BGR"):
        msg = f"channel order is {currentOrder!r}, expected 'L', 'RGB' or 'BGR'"
        raise ValueError(msg)
    channels = imgAry.shape[-1] if imgAry.ndim >= _INTERLEAVED_NDIM else 1
    if (channels == 1) != (currentOrder == "L") or channels not in (1, *_SWAPPED):
        wanted = "(height, width) or (height, width, 1)" if currentOrder == "L" else "(height, width, 3 | 4)"
        msg = f"image array of channel order {currentOrder} has shape {imgAry.shape}, expected {wanted}"
        raise ValueError(msg)
    return _swapRedAndBlue(imgAry) if currentOrder == "RGB" else imgAry


def _swapRedAndBlue(pixels: Pixels) -> Pixels:
    """Turn RGB into BGR or back; the same with alpha behind."""
    return pixels[..., _SWAPPED[pixels.shape[-1]]]


def createResizeImageUDF(size: Sequence[int]) -> Any:
    """Build a Spark function that resizes an image column.

    Parameters
    ----------
    size : sequence of int
        (height, width) wanted, in pixels; the aspect ratio is not kept.

    Returns
    -------
    UserDefinedFunction
        From an image column to one of `imageSchema`: bilinear with antialiasing, each channel by itself; type, channels
        and origin stay. Null stays null, and a struct that contradicts itself, or Spark's row for an image it could not
        read (``mode`` -1), becomes null.

    Raises
    ------
    ValueError
        ``size`` is not two whole numbers of 1 or more.

    Examples
    --------
    >>> frame.select(createResizeImageUDF((299, 224))("image"))  # doctest: +SKIP
    """
    height, width = _checkedSize(size, "(height, width)")

    def resize(imageRow: Row | None) -> Row | None:
        if imageRow is None:
            return None
        try:
            pixels = imageStructToArray(imageRow)
        except (KeyError, ValueError):
            return None
        # Never the row itself: its fields may be in another order, and Spark takes them by position.
        return imageArrayToStruct(resize_pixels(pixels, (height, width)), imageRow.origin)

    # Pickled rows travel by the hundred; Arrow would gather up to 10,000 images, or what the session says.
    return udf(resize, imageSchema, useArrow=False)


def _checkedSize(size: Sequence[int], order: str) -> tuple[int, int]:
    if len(size) != 2 or not all(isinstance(side, Integral) and side > 0 for side in size):  # noqa: PLR2004
        msg = f"size is {size}, expected {order} in whole pixels of 1 or more"
        raise ValueError(msg)
    return int(size[0]), int(size[1])


# --- files ------------------------------------------------------------------------------------------------------------


def filesToDF(sc: SparkContext | SparkSession, path: str | list[str], numPartitions: int | None = None) -> DataFrame:
    """Read whole files into a frame, by Spark's ``binaryFile`` source, empty files included.

    It looks at each file's status at once, to find those of 0 bytes; contents are read when the frame is used.

    Parameters
    ----------
    sc : SparkContext or SparkSession
        A context stands for the session that is active.
    path : str or list of str
        File, folder or glob on any file system Hadoop reads. Of a folder's subfolders only those that Spark takes for
        partitions, ``name=value``, are read.
    numPartitions : int, optional
        Shuffle into that many partitions, contents and all. None leaves the split to Spark, which moves nothing.

    Returns
    -------
    DataFrame
        ``filePath`` string, as Hadoop writes it (``file:/data/a b.png``, nothing escaped), and ``fileData`` binary; one
        row a file.

    Raises
    ------
    AnalysisException
        The path does not exist.
    RuntimeError
        The file system writes paths in a way that empty files cannot be told by.
    """
    session = _session(sc)
    files = session.read.format("binaryFile").load(path)
    named = files.select(col("path").alias("filePath"), col("content").alias("fileData"))
    empty = _emptyFiles(files)
    if empty:
        named = named.union(session.createDataFrame([(name, b"") for name in empty], named.schema))
    return named.repartition(numPartitions) if numPartitions else named


def _emptyFiles(files: DataFrame) -> list[str]:
    """Find the files that Spark listed but will not read: every file source of its leaves out those of 0 bytes."""
    read = {row.path for row in files.select("path").collect()}
    # The list has URIs ("file:///data/a%20b.png"), the column has Hadoop's form of them ("file:/data/a b.png").
    listed = {unquote(uri).replace(":///", ":/", 1) for uri in files.inputFiles()}
    if not read <= listed:  # else a file whose name is written in some third way would be taken for an empty one
        msg = f"Spark reads {min(read - listed)}, which is not among the {len(listed)} files it listed"
        raise RuntimeError(msg)
    return sorted(listed - read)


def _session(given: SparkContext | SparkSession | None) -> SparkSession:
    # By its reader, not its class: the session of Spark Connect is another one.
    if hasattr(given, "read"):
        return given
    return find_session()


def readImagesWithCustomFn(
    path: str | list[str],
    decode_f: Callable[[bytes], Pixels | None],
    numPartition: int | None = None,
    *,
    spark: SparkSession | None = None,
    reasonCol: str | None = None,
    originCol: str | None = None,
) -> DataFrame:
    """Read image files with a decoder of one's own; one row a file, also for a file that fails.

    Parameters
    ----------
    path : str or list of str
        As `filesToDF`.
    decode_f : Callable
        From a file's bytes to an array for `imageArrayToStruct`, or None if they do not decode; e.g. `PIL_decode`.
    numPartition : int, optional
        As ``numPartitions`` of `filesToDF`.
    spark : SparkSession, optional
        The active one by default.
    reasonCol : str, optional
        Add a column of this name that says why ``image`` is null: ``"<name>: <detail>"``. The name is ``undecodable``
        where ``decode_f`` gave None, the `schemas.errors.Reason` of a `RecordError`, else the exception's class. Null
        where there is an image.
    originCol : str, optional
        Add a column of this name with the file's path, for failed files too.

    Returns
    -------
    DataFrame
        ``image`` of `imageSchema`, then the columns asked for. Its ``origin`` is the path as `filesToDF` gives it
        (Spark's own image source escapes it). It is null where ``decode_f`` raised, gave None or gave an array that no
        image type fits.

    Raises
    ------
    ValueError
        Two columns would have the same name.
    AnalysisException
        The path does not exist.

    Examples
    --------
    >>> images = readImagesWithCustomFn("s3a://bucket/chest/*.png", PIL_decode, reasonCol="reason")  # doctest: +SKIP
    >>> images.where("image is null").groupBy("reason").count()  # doctest: +SKIP
    """
    names = {"image": "image", "reason": reasonCol, "origin": originCol}
    wanted = {field: name for field, name in names.items() if name is not None}
    if len({name.lower() for name in wanted.values()}) < len(wanted):  # Spark's names ignore case
        msg = f"columns are {', '.join(wanted.values())}, expected different names"
        raise ValueError(msg)

    # Not a udf: a filter on one of its fields would decode each file once more.
    def decode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for origin, payload in zip(*batch.columns, strict=True):
                yield _decoded(origin.as_py(), payload.as_py(), decode_f)

    decoded = filesToDF(_session(spark), path, numPartition).mapInArrow(decode, _READ_DDL)
    return decoded.select(*[col(field).alias(name) for field, name in wanted.items()])


def _decoded(origin: str, payload: bytes, decode_f: Callable[[bytes], Pixels | None]) -> pa.RecordBatch:
    """Decode one file into a batch of its own: images are large, and none waits in memory for the next."""
    image, reason = None, None
    try:
        pixels = decode_f(payload)
        if pixels is None:
            reason = "undecodable: the decoder gave None"
        else:
            image = imageArrayToStruct(pixels, origin).asDict()
    except ImportError:
        raise  # a package that is missing, not the file's fault
    except RecordError as exc:
        reason = f"{exc.reason}: {exc.detail}"
    except Exception as exc:  # the record boundary: a stranger's decoder may raise anything
        reason = f"{type(exc).__name__}: {exc}"
    columns = [pa.array([image], IMAGE_ARROW_TYPE), pa.array([reason], pa.string()), pa.array([origin], pa.string())]
    return pa.RecordBatch.from_arrays(columns, names=["image", "reason", "origin"])
