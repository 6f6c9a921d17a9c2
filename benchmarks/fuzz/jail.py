"""Decodes in a child process with limits, and tells what became of each file.

A file ends in an image or in a named reason. All else is a find: the child died of a signal, a file took too long or
too much memory, an exception escaped or was dropped on its way through a library, an error quotes the file, or the same
bytes gave two images.
"""

import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

HEADER: Final = struct.Struct("<16sQQQd")
"""Before each file on the way to the child: the name of its kind, its length, and the limits."""

_STUCK_S = 60.0
"""By the clock: a child that waits for something uses no processor."""

ROOT = Path(__file__).parent.parent.parent
_OWN_PLACE = re.compile(r'File ".*/sparkdl/(\S+)", line \d+,? in (\S+)')


@dataclass(frozen=True)
class Limits:
    """What a file may cost.

    Parameters
    ----------
    max_pixels : int
        As in `sparkdl.image.limits.DecodeLimits`.
    max_memory_mb : int
        That the child may have more than before, at its peak.
    max_seconds : float
        Of a processor.
    """

    max_pixels: int = 1 << 16
    max_memory_mb: int = 64
    max_seconds: float = 2.0


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Parameters
    ----------
    kind : str
        ``"image"``, ``"refused"``, or what kind of find it is: ``"died"``, ``"slow"``, ``"stuck"``, ``"memory"``,
        ``"escaped"``, ``"dropped"``, ``"quotes"``, ``"differs"``, ``"no image"``.
    detail : str
        The reason, or what was found.
    trace : str
        Where, for a find.
    seconds : float
        Of a processor.
    memory_mb : float
        That the child had more than before, at its peak.
    """

    kind: str
    detail: str = ""
    trace: str = ""
    seconds: float = 0.0
    memory_mb: float = 0.0

    @property
    def is_find(self) -> bool:
        """Whether it is neither an image nor a named reason."""
        return self.kind not in ("image", "refused")

    @property
    def signature(self) -> str:
        """What finds of one cause have in common: what happened, and the innermost place of this project."""
        return f"{self.kind}: {self.detail}, {name_place(self.trace)}"


def name_place(trace: str) -> str:
    """Name the innermost place of `sparkdl` in a stack as Python or its fault handler prints it."""
    places = [f"{file} {function}" for file, function in _OWN_PLACE.findall(trace)]
    innermost_first = "most recent call first" in trace
    return (places[0] if innermost_first else places[-1]) if places else "nowhere"


class Jail:
    """A child process that decodes; a context manager that ends it. It is started again after each death.

    Parameters
    ----------
    command : sequence of str
        Starts the child.
    """

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "benchmarks.fuzz.child")) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._stderr = tempfile.TemporaryFile()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._stderr.close()

    def decode(self, payload: bytes, kind: str, limits: Limits) -> Outcome:
        """Wrap and decode a file of a kind in the child."""
        child = self._child or self._start()
        asked, answers = child.stdin, child.stdout
        if asked is None or answers is None:
            msg = "the child has no pipes"
            raise RuntimeError(msg)
        try:
            bounds = limits.max_pixels, limits.max_memory_mb, limits.max_seconds
            asked.write(HEADER.pack(kind.encode(), len(payload), *bounds) + payload)
            asked.flush()
        except BrokenPipeError:
            return self._describe_death(child)
        if not select.select([answers], [], [], _STUCK_S)[0]:
            self._end()
            return Outcome("stuck", f"no answer within {_STUCK_S:.0f} s")
        answer = answers.readline()
        return Outcome(**json.loads(answer)) if answer else self._describe_death(child)

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._child = subprocess.Popen(  # noqa: S603
            self._command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        if self._child.stdout is None or not self._child.stdout.readline():
            msg = f"the child did not start: {self._describe_death(self._child).trace}"
            raise RuntimeError(msg)
        return self._child

    def _describe_death(self, child: "subprocess.Popen[bytes]") -> Outcome:
        code = child.wait()
        self._stderr.seek(0)
        trace = self._stderr.read().decode(errors="replace")
        self._end()
        if code == -signal.SIGPROF:
            return Outcome("slow", "more time than the limit", trace)
        return Outcome("died", signal.Signals(-code).name if code < 0 else f"exit code {code}", trace)

    def _end(self) -> None:
        child, self._child = self._child, None
        self._stderr.seek(0)
        self._stderr.truncate()
        if child is not None:
            child.kill()
            child.communicate()
