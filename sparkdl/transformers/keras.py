"""Stages that apply a user's own Keras model: to image files by their paths, or to a column of arrays."""

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from pyspark import keyword_only
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.param import Param, Params
from pyspark.sql import Column, DataFrame
from pyspark.sql.functions import arrow_udf, col, when
from pyspark.sql.types import ArrayType, DataType, FloatType, NumericType, StringType

from schemas.errors import ContractError, CorruptImageError, Reason, SettingsError, UnsupportedImageError
from sparkdl.image.bitdepth import fits_14_bits, keeps_high_bytes
from sparkdl.image.imageIO import imageArrayToStruct, imageSchema
from sparkdl.image.row import IMAGE_ARROW_TYPE
from sparkdl.network.base import Network
from sparkdl.network.catalog import PRECISIONS
from sparkdl.network.kerasmodels import convert_tensor_model
from sparkdl.transformers.base import NetworkTransformer
from sparkdl.transformers.batches import ReadInput, fit_shape
from sparkdl.transformers.params import HasModelFile, HasOutputMode, one_of

ImageLoader = Callable[[str], npt.NDArray[Any]]
"""Reads one image file, named by its URI, as the model's input: its shape, or its shape behind a 1; any number type."""

_IMAGE_NDIM = 3
_WHITE = 255


class KerasStage(NetworkTransformer, HasModelFile):
    """What the stages with a Keras model of the user's own share."""

    precision = Param(Params._dummy(), "precision", "fp32 or bf16", one_of("precision", PRECISIONS))

    _build_params = frozenset({"modelFile", "precision"})

    def __init__(self) -> None:
        super().__init__()
        self._setDefault(precision="fp32")

    def _build(self) -> Network:
        return convert_tensor_model(self.getModelFile(), precision=self.getOrDefault("precision"))


class KerasTransformer(KerasStage):
    """Applies a Keras model to a column of arrays.

    Parameters
    ----------
    inputCol : str
        Column of arrays or vectors of numbers. An array longer than one axis is given flat, in row-major order.
    outputCol : str
        Column to add: the model's output as an array of floats, flat. Null, with a reason, where the input is null or
        has another length than the model takes.
    modelFile : str
        ``.keras`` or ``.h5``, a whole model with one input and one output of fixed shapes.
    precision : str
        ``"fp32"`` or ``"bf16"``.
    device : str
        OpenVINO's device.
    reasonCol : str
        Where not empty, a column with this name is added: ``"code: detail"`` where a row has no output.

    Raises
    ------
    SettingsError
        A parameter has a value that is not among those above.
    """

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str | None = None,
        outputCol: str | None = None,
        modelFile: str | None = None,
        precision: str | None = None,
        device: str | None = None,
        reasonCol: str | None = None,
    ) -> None:
        super().__init__()
        self.setParams(**self._input_kwargs)

    def _read_input(self) -> ReadInput:
        return read_tensor

    def _prepare_input(self, dataset: DataFrame) -> Column:
        column = super()._prepare_input(dataset)
        # A vector crosses to Python as a struct of four fields; an array is what it stands for.
        return vector_to_array(column) if isinstance(dataset.schema[self.getInputCol()].dataType, VectorUDT) else column

    def _check_input(self, found: DataType) -> None:
        numbers = isinstance(found, ArrayType) and isinstance(found.elementType, NumericType)
        if not numbers and not isinstance(found, VectorUDT):
            msg = f"inputCol {self.getInputCol()!r} is {found.simpleString()}, wanted an array of numbers or a vector"
            raise SettingsError(msg)

    def _output_type(self) -> DataType:
        return ArrayType(FloatType())

    def _output(self, values: Column) -> Column:
        return values


def read_tensor(values: list[float | None], network: Network) -> npt.NDArray[np.float32]:
    """Read one row's array as the network's input.

    Parameters
    ----------
    values : list of float
        Row-major.
    network : Network
        One that takes float32.

    Returns
    -------
    numpy.ndarray
        float32, shape ``input_shape``.

    Raises
    ------
    ContractError
        There are more or fewer values, or one of them is null.
    """
    wanted = int(np.prod(network.input_shape))
    if len(values) != wanted or None in values:
        nulls = sum(value is None for value in values)
        detail = f"array has {len(values)} values, {nulls} of them null, expected {wanted} for {network.input_shape}"
        raise ContractError(Reason.UNSUPPORTED_FORMAT, "array", detail)
    return np.asarray(values, np.float32).reshape(network.input_shape)


class KerasImageFileTransformer(KerasStage, HasOutputMode):
    """Applies a Keras model to image files that a column names.

    Parameters
    ----------
    inputCol : str
        Column of URIs or paths, as ``imageLoader`` understands them.
    outputCol : str
        Column to add. Null, with a reason, where the file cannot be loaded.
    modelFile : str
        ``.keras`` or ``.h5``, a whole model with one input and one output of fixed shapes.
    imageLoader : callable, optional
        See `ImageLoader`; it runs in the workers. Without one a file that workers can read (a path, or ``file:``) is
        loaded as Keras's ``load_img`` does: RGB, resized to the model's size, values 0 to 255.
    outputMode : str
        ``"vector"`` for a dense vector, or ``"image"`` for an image struct of float32 where the model's output has
        the shape (height, width, 1, 3 or 4), its channels as they are.
    precision : str
        ``"fp32"`` or ``"bf16"``.
    device : str
        OpenVINO's device.
    reasonCol : str
        Where not empty, a column with this name is added: ``"code: detail"`` where a row has no output.

    Raises
    ------
    SettingsError
        A parameter has a value that is not among those above.

    Notes
    -----
    A saved stage does not hold the loader, since loading code from a model folder would be running whatever it holds:
    give it again with ``setImageLoader``. Using a loaded stage before is an error, not a different result.
    """

    hasImageLoader = Param(Params._dummy(), "hasImageLoader", "whether it was saved with a loader of the user's own")

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str | None = None,
        outputCol: str | None = None,
        modelFile: str | None = None,
        imageLoader: ImageLoader | None = None,
        outputMode: str | None = None,
        precision: str | None = None,
        device: str | None = None,
        reasonCol: str | None = None,
    ) -> None:
        super().__init__()
        self._image_loader: ImageLoader | None = None
        self._setDefault(outputMode="vector", hasImageLoader=False)
        self.setParams(**self._input_kwargs)

    def setParams(self, **params: Any) -> "KerasImageFileTransformer":
        """Set parameters by name, the loader too; None leaves one as it is."""
        loader = params.pop("imageLoader", None)
        if loader is not None:
            self.setImageLoader(loader)
        return super().setParams(**params)

    def setImageLoader(self, value: ImageLoader) -> "KerasImageFileTransformer":
        """Give the function that loads an image file."""
        self._image_loader = value
        return self._set(hasImageLoader=True)

    def getImageLoader(self) -> ImageLoader:
        """Return the function that loads an image file.

        Raises
        ------
        SettingsError
            The stage was saved with a loader of the user's own, which has not been given again.
        """
        if self._image_loader is None and self.getOrDefault("hasImageLoader"):
            msg = "imageLoader is not saved with the stage: give it again with setImageLoader(...)"
            raise SettingsError(msg)
        return self._image_loader or _DefaultLoader(self.network.input_shape)

    def _read_input(self) -> ReadInput:
        return _LoadedInput(self.getImageLoader())

    def _check_input(self, found: DataType) -> None:
        if not isinstance(found, StringType):
            msg = f"inputCol {self.getInputCol()!r} is {found.simpleString()}, wanted string: a URI or a path"
            raise SettingsError(msg)

    def _output_type(self) -> DataType:
        if self.getOutputMode() == "vector":
            return VectorUDT()
        shape = self.network.output_shape
        if len(shape) != _IMAGE_NDIM:
            msg = f"outputMode is 'image', but the model's output has shape {shape}, wanted (height, width, channels)"
            raise SettingsError(msg)
        return imageSchema

    def _output(self, values: Column) -> Column:
        if self.getOutputMode() == "vector":
            return when(values.isNotNull(), array_to_vector(values))
        return _image_udf(self.network.output_shape)(values, col(f"`{self.getInputCol()}`"))


class _DefaultLoader:
    """Loads a file as Keras's ``load_img`` and ``img_to_array`` do, by Pillow alone."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        modes = {1: "L", 3: "RGB", 4: "RGBA"}
        if len(input_shape) != _IMAGE_NDIM or input_shape[-1] not in modes:
            msg = f"the model's input has shape {input_shape}: give an imageLoader that makes it from a file"
            raise SettingsError(msg)
        self.height, self.width, channels = input_shape
        self.mode = modes[channels]

    def __call__(self, uri: str) -> npt.NDArray[np.float32]:
        try:
            with Image.open(_local_path(uri)) as image:
                _check_depth(image, uri)
                scaled = image.convert(self.mode).resize((self.width, self.height), Image.Resampling.NEAREST)
        except UnidentifiedImageError as exc:
            raise UnsupportedImageError(Reason.UNSUPPORTED_FORMAT, uri, "no image format that is known") from exc
        except OSError as exc:
            raise CorruptImageError(Reason.CORRUPT_IMAGE, uri, f"cannot be read: {exc.strerror or exc}") from exc
        pixels = np.asarray(scaled, np.float32)
        return pixels.reshape(self.height, self.width, -1)


def _check_depth(image: ImageFile, uri: str) -> None:
    """Refuse a file that 8 bits do not hold: Pillow would keep the high bytes of a dark picture, or clip it at 255."""
    lost = keeps_high_bytes(image) and fits_14_bits(image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        lost = not (values.min() >= 0 and values.max() <= _WHITE)
    if lost:
        detail = "file has more than 8 bits a channel, expected 8 or fewer (give an imageLoader for others)"
        raise UnsupportedImageError(Reason.UNSUPPORTED_BIT_DEPTH, uri, detail)


def _local_path(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        detail = f"scheme is {parts.scheme!r}, wanted a path or file: (give an imageLoader for others)"
        raise UnsupportedImageError(Reason.UNSUPPORTED_FORMAT, uri, detail)
    return unquote(parts.path) if parts.scheme else uri


class _LoadedInput:
    """Calls a loader, and brings what it gives to the network's shape."""

    def __init__(self, loader: ImageLoader) -> None:
        self.loader = loader

    def __call__(self, uri: str, network: Network) -> npt.NDArray[np.float32]:
        return fit_shape(np.asarray(self.loader(uri)), network, uri)


def _image_udf(shape: tuple[int, ...]) -> Callable[[Column, Column], Column]:
    @arrow_udf(returnType=imageSchema)
    def to_image(values: pa.Array, origins: pa.Array) -> pa.Array:
        images = [
            None if row is None else imageArrayToStruct(np.asarray(row, np.float32).reshape(shape), origin).asDict()
            for row, origin in zip(values.to_pylist(), origins.to_pylist(), strict=True)
        ]
        return pa.array(images, IMAGE_ARROW_TYPE)

    return to_image


for _stage in (KerasTransformer, KerasImageFileTransformer):
    _stage.__module__ = "sparkdl"  # part of the file format, like the featurizer's
