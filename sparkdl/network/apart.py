"""Builds a network in a process of its own, for callers that have Keras on another backend.

A process has one Keras backend for good. A notebook that trains with TensorFlow can still make and save a stage, as
what it needs from Keras on OpenVINO is a few files.
"""

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from schemas.errors import ModelLoadError
from sparkdl.network.base import Network
from sparkdl.network.child import handing_back_errors, run_child


def build_apart(function: str, **arguments: Any) -> Network:
    """Call a function that builds a network, in a new process.

    Parameters
    ----------
    function : str
        ``"module:name"``; it returns a `Network`.
    **arguments
        Its keyword arguments; values that JSON can carry.

    Returns
    -------
    Network
        What it returned.

    Raises
    ------
    XrayError
        The very error that it raised; `ModelLoadError` where the process ended otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="xray-network-") as name:
        folder = Path(name)
        run_child(
            "sparkdl.network.apart", function, json.dumps(arguments), name,
            folder=folder, backend="openvino", what="building a network", failure=ModelLoadError,
        )  # fmt: skip
        return Network.from_files({path.name: path.read_bytes() for path in folder.iterdir()})


def _main(function: str, arguments: str, folder: str) -> None:
    module, name = function.split(":")
    with handing_back_errors(Path(folder)):
        files = getattr(importlib.import_module(module), name)(**json.loads(arguments)).to_files()
        for file_name, content in files.items():
            (Path(folder) / file_name).write_bytes(content)


if __name__ == "__main__":
    _main(*sys.argv[1:])
