"""A package that is missing is never the record's fault: it passes every record boundary. The lack is simulated."""

from pathlib import Path
from typing import Any

import pytest

from sparkdl import folders
from sparkdl.estimators import loading
from sparkdl.image import imageIO
from sparkdl.image.limits import FILE_LIMITS
from sparkdl.transformers import batches


def need(*_: Any, **__: Any) -> Any:
    message = "No module named 'scipy'"
    raise ModuleNotFoundError(message)


class _Engine:
    network: Any = None


def test_of_a_row() -> None:
    with pytest.raises(ModuleNotFoundError):
        batches._run({"data": b""}, _Engine(), need)  # type: ignore[arg-type]


def test_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr(folders, "decode_image", need)
    with pytest.raises(ModuleNotFoundError):
        folders._decode_file(str(tmp_path / "a.png"), (8, 8), FILE_LIMITS)


def test_of_a_strangers_decoder() -> None:
    with pytest.raises(ModuleNotFoundError):
        imageIO._decoded("a.png", b"x", need)


def test_of_a_strangers_loader() -> None:
    with pytest.raises(ModuleNotFoundError):
        loading._load_image("a.png", _Engine.network, need)
