"""Runs a module of this package in a process of its own, and hands back the error that it ended with.

A process has one Keras backend for good, so what needs the other one is done by a child: ``python -m module ...``. It
leaves its results as files in a folder, or its `XrayError` as `ERROR_FILE`, which is raised again in the parent.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas import errors
from schemas.errors import JobError, XrayError
from sparkdl.network.backends import KERAS_BACKEND

ERROR_FILE = "error.json"


def run_child(
    module: str, *arguments: str, folder: Path, backend: str, what: str, failure: type[JobError], shown: bool = False
) -> None:
    """Run ``python -m module arguments``, and wait for its end.

    Parameters
    ----------
    module : str
        Its program calls `handing_back_errors` with the same folder.
    *arguments : str
        Of its command line.
    folder : Path
        Where the child leaves its files.
    backend : str
        Of Keras in the child.
    what : str
        What it does, for a message: ``"building a network"``.
    failure : type
        Of the error where the child ended without a word; also where its error is of no kind that is known here.
    shown : bool
        Whether its standard output is shown.

    Raises
    ------
    XrayError
        The very error that the child ended with, or ``failure``.
    """
    environment = {**os.environ, KERAS_BACKEND: backend, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # else TensorFlow tells of CPU features and missing GPUs
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=environment, stdout=None if shown else subprocess.DEVNULL, check=False)  # noqa: S603
    if (folder / ERROR_FILE).is_file():
        raise _revive(json.loads((folder / ERROR_FILE).read_text()), failure)
    if done.returncode:
        # A negative code is a signal: -9 is what a machine out of memory sends.
        msg = f"{what} in its own process ended with code {done.returncode}"
        raise failure(msg)


def _revive(error: dict[str, str], failure: type[JobError]) -> XrayError:
    revived: XrayError = getattr(errors, error["type"], failure)(error["message"])
    return revived


@contextmanager
def handing_back_errors(folder: Path) -> Iterator[None]:
    """In the child: leave an `XrayError` for the parent, and end as if nothing had been."""
    try:
        yield
    except XrayError as exc:
        (folder / ERROR_FILE).write_text(json.dumps({"type": type(exc).__name__, "message": str(exc)}))
