"""Decodes the DICOM pixels that only gdcm can read (JPEG lossless, JPEG-LS) in a process of its own.

gdcm is C++ that calls ``abort()`` on some damaged streams; fuzzing soon found one. In the worker's own process
one such file would kill the worker, Spark would start it again, and the same record would kill it again: the stream
would stand still for good. Here it kills a child; the record becomes a dead letter, the next one gets a new child.

The child is this very file, run as a program. It is started once per process on first use (half a second), answers one
request after another over its standard input and output, and ends when its parent does: its input then ends.

``ProcessPoolExecutor`` would not do: once one of its processes has died, it is broken for good.
"""

import atexit
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

if __name__ != "__main__":  # the child knows nothing of this project
    from schemas.errors import DependencyError

# A 3072 x 3072 image takes 0.4 s; a child that needs a hundred times as long hangs.
TIMEOUT_S = 40.0

_ATTEMPTS = 2  # the second in a new child: the first may have died of something else, such as a lack of memory
_READY = b"ready\n"

_Pixels = npt.NDArray[np.integer]


class CodecError(RuntimeError):
    """The frame does not decode: gdcm says so, gives another size, dies or hangs."""


class IsolatedDecoder:
    """A client of the child process. Safe to use from several threads, and after a fork."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def decode(self, frame: bytes, syntax: str, options: Mapping[str, int | str]) -> _Pixels:
        """Decode one compressed frame.

        Parameters
        ----------
        frame : bytes
            The compressed stream of one frame.
        syntax : str
            Transfer syntax UID.
        options : Mapping
            pydicom's decoding options: ``rows``, ``columns``, ``bits_allocated``, ``bits_stored`` and so on.

        Returns
        -------
        numpy.ndarray
            Shape (rows, columns), the integer type that pydicom chooses.

        Raises
        ------
        CodecError
            The frame does not decode.
        DependencyError
            The child does not start: pydicom or gdcm is not installed for ``sys.executable``.
        """
        request = json.dumps({"syntax": syntax, "options": dict(options), "length": len(frame)}).encode()
        with self._lock:
            for _ in range(_ATTEMPTS):
                answer = self._exchange(request, frame)
                if answer is not None:
                    return _pixels(*answer)
        msg = "the codec's process died or hung"
        raise CodecError(msg)

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is None or self._owner != os.getpid():
            return
        child.kill()
        child.communicate()

    def _exchange(self, request: bytes, frame: bytes) -> tuple[bytes, bytes] | None:
        """Send a request and give the answer's header and body; None if the child died on it."""
        child = self._running_child()
        assert child.stdin and child.stdout  # noqa: S101 (both are pipes)
        watchdog = threading.Timer(self._timeout_s, child.kill)
        watchdog.start()
        try:
            child.stdin.write(request + b"\n" + frame)
            child.stdin.flush()
            header = child.stdout.readline()
            length = json.loads(header)["length"] if header.endswith(b"\n") else 0
            body = child.stdout.read(length)
        except OSError:  # a pipe without reader
            header, length, body = b"", 0, b""
        finally:
            watchdog.cancel()
        if not header or len(body) != length:
            self.close()
            return None
        return header, body

    def _running_child(self) -> subprocess.Popen[bytes]:
        # After a fork the child still belongs to the parent, which talks to it: a fork starts its own.
        if self._child is None or self._owner != os.getpid():
            self._child, self._owner = _start_child(), os.getpid()
        return self._child


def _start_child() -> subprocess.Popen[bytes]:
    # -P: this file's folder must not be searched for modules, it holds names such as "dicom". The parent's own path is
    # handed on instead, for Spark extends it at run time.
    child = subprocess.Popen(  # noqa: S603 (our own interpreter and file)
        [sys.executable, "-P", str(Path(__file__).resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # gdcm's libraries print there
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,  # Ctrl-C is for the parent, which then ends the child
    )
    assert child.stdout  # noqa: S101 (a pipe)
    if child.stdout.readline() != _READY:
        child.kill()
        child.communicate()
        msg = f"the DICOM codec does not start; check that pydicom and python-gdcm are installed for {sys.executable}"
        raise DependencyError(msg)
    return child


def _pixels(header: bytes, body: bytes) -> _Pixels:
    answer = json.loads(header)
    if "error" in answer:
        msg = f"gdcm does not decode the frame ({answer['error']})"
        raise CodecError(msg)
    return np.frombuffer(body, answer["dtype"]).reshape(answer["shape"])


DECODER = IsolatedDecoder()
atexit.register(DECODER.close)


# --- the child --------------------------------------------------------------------------------------------------------


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer one request after another until the parent closes the pipe."""
    answers.write(_READY)
    answers.flush()
    while line := requests.readline():
        request = json.loads(line)
        frame = requests.read(request["length"])
        try:
            pixels = _decode(frame, request["syntax"], request["options"])
        except Exception as exc:  # the process is the border: every failure is an answer
            header, body = {"error": type(exc).__name__, "length": 0}, b""
        else:
            body = pixels.tobytes()
            header = {"dtype": pixels.dtype.str, "shape": pixels.shape, "length": len(body)}
        answers.write(json.dumps(header).encode() + b"\n" + body)
        answers.flush()


def _decode(frame: bytes, syntax: str, options: dict[str, int | str]) -> _Pixels:
    decoder = get_decoder(syntax)
    pixels: _Pixels
    pixels, _ = decoder.as_array(encapsulate([frame]), raw=True, index=0, decoding_plugin="gdcm", **options)
    return pixels


if __name__ == "__main__":
    import gdcm  # noqa: F401 (so that its absence shows before the first request)
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a C library prints must not get between the answers
    _serve(sys.stdin.buffer, answers)
