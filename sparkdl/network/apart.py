"""Builds a network in a process of its own, for callers that have Keras on another backend.

A process has one Keras backend for good. A notebook that trains with TensorFlow can still make and save a stage, as
what it needs from Keras on OpenVINO is a few files.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from schemas import errors
from schemas.errors import ModelLoadError, XrayError
from sparkdl.network.backends import KERAS_BACKEND
from sparkdl.network.base import Network

_ERROR_FILE = "error.json"


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
    with tempfile.TemporaryDirectory(prefix="xray-network-") as folder:
        environment = {**os.environ, KERAS_BACKEND: "openvino", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "sparkdl.network.apart", function, json.dumps(arguments), folder]
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)  # noqa: S603
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    if _ERROR_FILE in files:
        raise _revive(json.loads(files[_ERROR_FILE]))
    if done.returncode:
        msg = f"building a network in its own process ended with code {done.returncode}"
        raise ModelLoadError(msg)
    return Network.from_files(files)


def _revive(error: dict[str, str]) -> XrayError:
    kind = getattr(errors, error["type"], ModelLoadError)
    revived: XrayError = kind(error["message"])
    return revived


def _main(function: str, arguments: str, folder: str) -> None:
    module, name = function.split(":")
    try:
        network = getattr(importlib.import_module(module), name)(**json.loads(arguments))
        files = network.to_files()
    except XrayError as exc:
        files = {_ERROR_FILE: json.dumps({"type": type(exc).__name__, "message": str(exc)}).encode()}
    for file_name, content in files.items():
        (Path(folder) / file_name).write_bytes(content)


if __name__ == "__main__":
    _main(*sys.argv[1:])
