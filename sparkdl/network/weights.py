"""Where a network's weights come from: a Keras file, a seed, or a torch file read without torch.

Nothing read here can run code. A Keras file is only asked for its numbers (``load_weights``), never for a model
description; a torch file goes through an unpickler that knows four names. That reader is own code because torch itself
is a gigabyte, which nothing else here needs.
"""

import hashlib
import io
import math
import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from schemas.errors import ModelLoadError, SettingsError

Array = npt.NDArray[Any]

KERAS_SUFFIXES = (".keras", ".h5")  # .h5 also covers .weights.h5

# What torch.save wrote before 1.6 (torch/serialization.py): four pickles (magic, version, machine, object), a fifth
# with the storages' keys in file order, then for each storage its length and its raw values.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_VERSION = 1001
_LENGTH = struct.Struct("<q")


@dataclass(frozen=True)
class _Storage:
    """Where a tensor's values are; they come after the pickle."""

    key: str
    dtype: np.dtype[Any]
    length: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor as the pickle describes it: offset, shape and strides (in values) into a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_unused: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


_TORCH_NAMES: Mapping[tuple[str, str], Any] = MappingProxyType(
    {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        # Plain strings: a pickle can also change the state of what it names, and a string has none.
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }
)


class _TorchUnpickler(pickle.Unpickler):
    """Knows the four names a state dict needs, as stand-ins of our own, and refuses every other one."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up in the closed list; nothing is imported."""
        if (module, name) not in _TORCH_NAMES:
            msg = f"{module}.{name} is not allowed in a weights file"
            raise pickle.UnpicklingError(msg)
        return _TORCH_NAMES[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Note which storage a tensor lies in."""
        kind, dtype, key, _device, length, view = pid
        if kind != "storage" or dtype not in ("<f4", "<i8") or view is not None:
            msg = f"storage description {pid!r} is not supported"
            raise pickle.UnpicklingError(msg)
        return _Storage(str(key), np.dtype(dtype), int(length))


def read_torch_file(path: Path) -> dict[str, Array]:
    """Read a state dict that torch saved in its format from before 1.6, without torch.

    Parameters
    ----------
    path : Path
        The ``.pth`` file. It is read whole, but no name in it beyond four is resolved, so it cannot run code.

    Returns
    -------
    dict
        Parameter name to its values, float32 or int64, in torch's own axis order.

    Raises
    ------
    ModelLoadError
        The file is missing, truncated, of another format, or asks for anything a state dict does not need.

    References
    ----------
    ``torch/serialization.py``, ``_legacy_load`` and ``_legacy_save``.
    """
    # Broken pickles raise whatever the opcode that trips over them raises; these are the types the module names.
    broken = (pickle.UnpicklingError, EOFError, struct.error, ValueError, TypeError, KeyError, IndexError)
    try:
        return _read_torch(io.BytesIO(path.read_bytes()))
    except (OSError, AttributeError, ImportError, OverflowError, MemoryError, *broken) as exc:
        msg = f"weights {path}: not a readable torch state dict: {exc}"
        raise ModelLoadError(msg) from exc


def _read_torch(stream: io.BytesIO) -> dict[str, Array]:
    magic, version, machine, state, keys = (_TorchUnpickler(stream).load() for _ in range(5))
    if (magic, version) != (_TORCH_MAGIC, _TORCH_VERSION) or not machine["little_endian"]:
        msg = f"magic {magic!r}, version {version!r}, expected {_TORCH_MAGIC}, {_TORCH_VERSION}, little-endian"
        raise ValueError(msg)
    storages = {tensor.storage.key: tensor.storage for tensor in state.values()}
    values = {key: _read_storage(stream, storages[key]) for key in keys}
    return {str(name): _view(tensor, values[tensor.storage.key]) for name, tensor in state.items()}


def _read_storage(stream: io.BytesIO, storage: _Storage) -> Array:
    (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
    if length != storage.length:
        msg = f"storage {storage.key} has {length} values, expected {storage.length}"
        raise ValueError(msg)
    return np.frombuffer(stream.read(length * storage.dtype.itemsize), storage.dtype, count=length)


def _view(tensor: _Tensor, values: Array) -> Array:
    # as_strided checks nothing, so a wrong shape or stride would read other memory.
    steps = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)]
    if min(tensor.offset, *tensor.shape, *tensor.strides, 0) < 0 or tensor.offset + sum(steps) >= values.size:
        msg = f"tensor of shape {tensor.shape} does not lie in its storage of {values.size} values"
        raise ValueError(msg)
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides).copy()


def fill_random(model: Any, *, seed: int, gain: float) -> None:
    """Fill a Keras model with seeded random weights.

    Kernels are normal with variance gain / fan-in, biases zero; batch normalisations change nothing. The values come
    from NumPy, so they do not depend on Keras's backend or on how it draws.

    Parameters
    ----------
    model : keras.Model
        Without nested models; changed in place.
    seed : int
        The same seed gives the same bytes.
    gain : float
        2 (He) keeps the activations' size through convolution and ReLU.
    """
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        depthwise = type(layer).__name__ == "DepthwiseConv2D"
        layer.set_weights([_random_value(variable, rng, gain=gain, depthwise=depthwise) for variable in layer.weights])


def _random_value(variable: Any, rng: np.random.Generator, *, gain: float, depthwise: bool) -> Array:
    shape = tuple(variable.shape)
    if len(shape) == 1:
        return np.full(shape, 1.0 if variable.name in ("gamma", "moving_variance") else 0.0, np.float32)
    # A depthwise kernel (height, width, channels, 1) sees one channel at a time, every other kernel all of them.
    one_channel = depthwise or variable.name == "depthwise_kernel"
    fan_in = math.prod(shape[:2] if one_channel else shape[:-1])
    return rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(gain / fan_in))


def load_keras_file(model: Any, path: Path, *, with_top: Callable[[], Any] | None) -> None:
    """Fill a Keras model from a weights or model file, which may have been saved with its 1000-class head.

    Parameters
    ----------
    model : keras.Model
        Changed in place.
    path : Path
        ``.keras``, ``.weights.h5`` or ``.h5``. Only numbers are read from it; a model description in it is ignored.
    with_top : callable or None
        Builds the same network with its head, for a headless ``model`` that the file does not fit. None where
        ``model`` has its head.

    Raises
    ------
    SettingsError
        There is no such file, or its name ends otherwise.
    ModelLoadError
        The file is damaged, lacks a layer, holds values that are not finite, or another architecture.
    """
    if not path.is_file() or not path.name.endswith(KERAS_SUFFIXES):
        found = "is not a Keras file" if path.is_file() else "is not a file"
        msg = (
            f"weights: {path} {found}, expected 'imagenet', 'random' or a path ending in {' or '.join(KERAS_SUFFIXES)}"
        )
        raise SettingsError(msg)
    try:
        _load_all(model, path)
    except _KERAS_ERRORS as headless:
        if with_top is None:
            msg = f"weights {path}: does not fit {model.name} with its 1000-class head: {headless}"
            raise ModelLoadError(msg) from headless
        full = with_top()
        try:
            _load_all(full, path)
        except _KERAS_ERRORS as exc:
            msg = f"weights {path}: does not fit {model.name}: {headless}; nor with its 1000-class head: {exc}"
            raise ModelLoadError(msg) from exc
        model.set_weights(full.get_weights()[: len(model.weights)])  # the head comes last


def _load_all(model: Any, path: Path) -> None:
    """Load every weight or raise: Keras only warns about layers it did not find, which then keep random values."""
    # By shape: reading the initial values would make Keras draw every random one first.
    model.set_weights([np.full(tuple(variable.shape), np.nan, np.float32) for variable in model.weights])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.load_weights(path)
    for variable, value in zip(model.weights, model.get_weights(), strict=True):
        if not np.isfinite(value).all():
            msg = f"{variable.path} is not in the file, or holds values that are not finite"
            raise ValueError(msg)


# What load_weights raises for a damaged file (OSError, BadZipFile, KeyError) and for another architecture (ValueError).
_KERAS_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, BadZipFile)


def weights_sha256(model: Any) -> str:
    """Hash the values of a Keras model's weights.

    Parameters
    ----------
    model : keras.Model
        Any model.

    Returns
    -------
    str
        SHA-256 over each variable's shape and float32 values in the model's order; names and file formats, which
        differ between Keras versions, play no part.
    """
    digest = hashlib.sha256()
    for value in model.get_weights():
        digest.update(repr(value.shape).encode())
        digest.update(np.ascontiguousarray(value, "<f4").tobytes())
    return digest.hexdigest()
