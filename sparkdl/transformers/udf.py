"""`registerKerasImageUDF`: a Keras model as a function of Spark SQL."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from pyspark.sql import SparkSession

from schemas.errors import SettingsError
from sparkdl.image.imageIO import imageStructToPIL
from sparkdl.image.row import ImageRow
from sparkdl.network.base import Network
from sparkdl.network.kerasmodels import convert_image_model, convert_tensor_model
from sparkdl.transformers.base import network_udf
from sparkdl.transformers.batches import fit_shape, read_image
from sparkdl.transformers.sentnetwork import send_network

Preprocessor = Callable[[str], npt.NDArray[Any]]
"""Reads an image file, given its path, as the model's input."""


def registerKerasImageUDF(
    udf_name: str,
    keras_model_or_file_path: Any,
    preprocessor: Preprocessor | None = None,
    *,
    spark: SparkSession | None = None,
) -> Any:
    """Make a Keras model of images a function for Spark SQL: ``SELECT my_model(image) FROM images``.

    Parameters
    ----------
    udf_name : str
        The function's name; one of that name is replaced.
    keras_model_or_file_path : keras.Model or str
        The model, or the path of its file (``.keras``, ``.h5``).
    preprocessor : callable, optional
        See `Preprocessor`. The image is written to a PNG file for it, which costs time: better put preprocessing into
        the model. Without one the model gets RGB from 0 to 255, resized to its size.
    spark : SparkSession, optional
        Where to register it; the active session if not given.

    Returns
    -------
    callable
        The registered function, for use on columns too: from an image struct to the model's output as a flat array
        of floats. Null where the image is null or broken.

    Raises
    ------
    SettingsError, ModelLoadError, DependencyError
        See `sparkdl.network.kerasmodels.convert_image_model`; also where no session is active.
    """
    session = spark or SparkSession.getActiveSession()
    if session is None:
        msg = "no Spark session is active: start one, or pass spark="
        raise SettingsError(msg)
    network = _convert(keras_model_or_file_path, as_image=preprocessor is None)
    read = read_image if preprocessor is None else _PreprocessedInput(preprocessor)
    sent = send_network(session, network, holder=uuid4().hex)  # withdrawn by nobody: a query may name it at any time
    function = network_udf(sent, read, output_only=True)
    return session.udf.register(udf_name, function)


def _convert(model: Any, *, as_image: bool) -> Network:
    convert = convert_image_model if as_image else convert_tensor_model
    if isinstance(model, str | Path):
        return convert(str(model))
    if not hasattr(model, "save"):
        msg = f"keras_model_or_file_path is {type(model).__name__}, wanted a Keras model or the path of its file"
        raise SettingsError(msg)
    with tempfile.TemporaryDirectory(prefix="xray-network-") as folder:
        path = str(Path(folder) / "model.keras")
        model.save(path)
        return convert(path)


class _PreprocessedInput:
    """Hands an image to a preprocessor the way Keras's own take them: as a file."""

    def __init__(self, preprocessor: Preprocessor) -> None:
        self.preprocessor = preprocessor

    def __call__(self, image: dict[str, Any], network: Network) -> npt.NDArray[np.float32]:
        row = ImageRow(**image)
        # PNG keeps every pixel as it is.
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            imageStructToPIL(row).save(file.name)
            loaded = np.asarray(self.preprocessor(file.name))
        return fit_shape(loaded, network, row.origin)
