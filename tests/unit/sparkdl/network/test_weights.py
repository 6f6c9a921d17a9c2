"""Reading torch's old files without torch, and random weights."""

import os
import pickle
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import DependencyError, ModelLoadError
from schemas.extras import install_line
from sparkdl.network import lite0
from sparkdl.network.weights import read_torch_file

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


class FloatStorage:
    """Stands in for torch's class of that name; pickled as `torch.FloatStorage`."""

    __module__ = "torch"

    def __init__(self, key: str, values: np.ndarray, length: int | None = None) -> None:
        self.key, self.values = key, values
        self.length = values.size if length is None else length


def _rebuild_tensor_v2(*_: Any) -> None: ...


_rebuild_tensor_v2.__module__ = "torch._utils"


class Tensor:
    def __init__(self, storage: FloatStorage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.state = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_tensor_v2, self.state


class Call:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, FloatStorage):
            return ("storage", FloatStorage, obj.key, "cpu", obj.length, None)
        return None


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Write a file as torch < 1.6 did, without torch."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage, utils._rebuild_tensor_v2 = FloatStorage, _rebuild_tensor_v2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    def write_file(state: Any, *storages: FloatStorage, magic: int = MAGIC) -> Path:
        path = tmp_path / "state.pth"
        with path.open("wb") as file:
            for item in (magic, VERSION, {"little_endian": True}, state, [storage.key for storage in storages]):
                Pickler(file, protocol=2).dump(item)
            for storage in storages:
                file.write(storage.values.size.to_bytes(8, "little") + storage.values.tobytes())
        return path

    return write_file


@pytest.fixture
def storage() -> FloatStorage:
    return FloatStorage("94", np.arange(12, dtype=np.float32))


def test_tensors_keep_their_offset_shape_and_strides(write: Callable[..., Path], storage: FloatStorage) -> None:
    other = FloatStorage("7", np.float32([0.5]))
    state = {
        "plain": Tensor(storage, 0, (3, 4), (4, 1)),
        "transposed": Tensor(storage, 0, (4, 3), (1, 4)),
        "tail": Tensor(storage, 10, (2,), (1,)),
        "scalar": Tensor(other, 0, (), ()),
    }
    found = read_torch_file(write(OrderedDict(state), other, storage))
    values = np.arange(12).reshape(3, 4)
    assert list(found) == list(state)
    np.testing.assert_array_equal(found["plain"], values)
    np.testing.assert_array_equal(found["transposed"], values.T)
    np.testing.assert_array_equal(found["tail"], [10, 11])
    assert found["scalar"] == 0.5


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (13,), (1,)), (11, (2,), (1,)), (0, (2, 2), (11, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (1,))],
)
def test_a_tensor_outside_its_storage_is_refused(
    write: Callable[..., Path], storage: FloatStorage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    path = write(OrderedDict(w=Tensor(storage, offset, shape, strides)), storage)
    with pytest.raises(ModelLoadError, match="not a readable torch state dict"):
        read_torch_file(path)


@pytest.mark.parametrize("function", [os.system, eval, getattr, __import__, np.load])
def test_a_malicious_file_is_refused_and_runs_nothing(
    write: Callable[..., Path], function: Callable[..., Any], tmp_path: Path
) -> None:
    trap = tmp_path / "ran"
    path = write(OrderedDict(w=Call(function, f"touch {trap}")))
    with pytest.raises(ModelLoadError, match=r"\w+\.\w+ is not allowed in a weights file"):
        read_torch_file(path)
    assert not trap.exists()


def test_a_truncated_file_is_refused_wherever_it_ends(write: Callable[..., Path], storage: FloatStorage) -> None:
    path = write(OrderedDict(w=Tensor(storage, 0, (12,), (1,))), storage)
    whole = path.read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelLoadError):
            read_torch_file(path)


def test_other_formats_are_refused(write: Callable[..., Path], storage: FloatStorage, tmp_path: Path) -> None:
    wrong_magic = write(OrderedDict(), magic=1)
    with pytest.raises(ModelLoadError, match="magic 1, "):
        read_torch_file(wrong_magic)
    wrong_length = FloatStorage("1", storage.values, length=11)
    with pytest.raises(ModelLoadError, match="has 12 values, expected 11"):
        read_torch_file(write(OrderedDict(w=Tensor(wrong_length, 0, (11,), (1,))), wrong_length))
    not_tensors = write({"w": "text"})
    with pytest.raises(ModelLoadError):
        read_torch_file(not_tensors)
    with pytest.raises(ModelLoadError, match="No such file"):
        read_torch_file(tmp_path / "none.pth")


@pytest.mark.train
def test_the_packages_file_is_read() -> None:
    state = read_torch_file(lite0._checked_file())
    assert len(state) == 296
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert state["_fc.weight"].shape == (1000, 1280)
    assert all(np.isfinite(values).all() for values in state.values())


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "PACKAGE", "no_such_package")
    with pytest.raises(DependencyError, match=re.escape(install_line("train"))):
        lite0._checked_file()


@pytest.mark.train
def test_another_file_in_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "_PACKAGE_FILE", "__init__.py")
    with pytest.raises(ModelLoadError, match=r"SHA-256 is [0-9a-f]{64}, expected 57934424"):
        lite0._checked_file()
