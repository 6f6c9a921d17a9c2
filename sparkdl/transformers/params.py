"""Parameters that the stages share, each checked when it is set."""

from collections.abc import Callable, Collection
from typing import Any

from pyspark.ml.param import Param, Params, TypeConverters

from schemas.errors import SettingsError


def one_of(name: str, choices: Collection[str]) -> Callable[[Any], str]:
    """Make a converter that takes only some words.

    Parameters
    ----------
    name : str
        The parameter's.
    choices : collection of str
        The words.

    Returns
    -------
    callable
        Gives the word back, or raises `SettingsError` with the words it takes.
    """

    def convert(value: Any) -> str:
        if value not in choices:
            msg = f"{name} is {value!r}, wanted one of {', '.join(choices)}"
            raise SettingsError(msg)
        return str(value)

    return convert


def within(name: str, lowest: int, highest: int) -> Callable[[Any], int]:
    """Make a converter for a whole number from ``lowest`` to ``highest``; see `one_of`."""

    def convert(value: Any) -> int:
        number: int = TypeConverters.toInt(value)
        if not lowest <= number <= highest:
            msg = f"{name} is {number}, wanted {lowest} to {highest}"
            raise SettingsError(msg)
        return number

    return convert


class HasDevice(Params):
    """Where the engine runs."""

    device = Param(Params._dummy(), "device", "OpenVINO's device: CPU, GPU, AUTO", TypeConverters.toString)

    def setDevice(self, value: str) -> Any:
        """Name the engine's device; a saved stage remembers it."""
        return self._set(device=value)

    def getDevice(self) -> str:
        """Return the engine's device."""
        return str(self.getOrDefault(self.device))


class HasReasonCol(Params):
    """A column that says why a row has no result."""

    reasonCol = Param(
        Params._dummy(), "reasonCol", "column for why a row has no result; empty for none", TypeConverters.toString
    )

    def setReasonCol(self, value: str) -> Any:
        """Name the column for why a row has no result; empty for none."""
        return self._set(reasonCol=value)

    def getReasonCol(self) -> str:
        """Return the column's name; empty for none."""
        return str(self.getOrDefault(self.reasonCol))


class HasModelFile(Params):
    """A Keras model file."""

    modelFile = Param(Params._dummy(), "modelFile", "path of a Keras model file", TypeConverters.toString)

    def setModelFile(self, value: str) -> Any:
        """Name the Keras file, on the driver's file system."""
        return self._set(modelFile=value)

    def getModelFile(self) -> str:
        """Return the Keras file's path."""
        return str(self.getOrDefault(self.modelFile))


class HasOutputMode(Params):
    """What the output column holds."""

    outputMode = Param(Params._dummy(), "outputMode", "vector or image", one_of("outputMode", ("vector", "image")))

    def setOutputMode(self, value: str) -> Any:
        """Choose ``"vector"`` or ``"image"``."""
        return self._set(outputMode=value)

    def getOutputMode(self) -> str:
        """Return ``"vector"`` or ``"image"``."""
        return str(self.getOrDefault(self.outputMode))
