"""The child of `benchmarks.fuzz.jail`: decodes what comes in, and answers with a line for each file."""

import ctypes
import faulthandler
import json
import os
import resource
import signal
import sys
import time
import traceback
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from benchmarks.fuzz.jail import HEADER, Limits, Outcome
from benchmarks.fuzz.kinds import KINDS, SECRET, Kind
from schemas.errors import RecordError
from sparkdl.image.decode import DecodedImage, decode_image
from sparkdl.image.limits import DecodeLimits

_SIZE = (20, 28)
"""(height, width) that half of the files are resized to."""

_SPARE_MB = 1024
"""Of address space beyond what is used at first: a library may ask for memory that it never touches."""

_MB = 1 << 20
_PERTURB = -6  # M_PERTURB of glibc's malloc.h: fill memory that is given out, and that is given back
_GRAY, _COLOR = 1, 3

_dropped: list["sys.UnraisableHookArgs"] = []
"""Exceptions that compiled code could not hand on: what it was doing is not done, and its caller does not know."""


def judge(payload: bytes, kind: Kind, limits: Limits) -> Outcome:
    """Wrap and decode a file, and tell what became of it, its time and memory included."""
    _reset_peak()
    before = _read_status("VmRSS")
    signal.setitimer(signal.ITIMER_PROF, limits.max_seconds)  # ends the process
    started = time.process_time()
    outcome = _decode(kind.wrap(payload), limits)
    seconds = time.process_time() - started
    signal.setitimer(signal.ITIMER_PROF, 0)
    memory_mb = (_read_status("VmHWM") - before) / _MB
    if memory_mb > limits.max_memory_mb and not outcome.is_find:
        outcome = Outcome("memory", f"more than the limit ({outcome.detail or outcome.kind})")
    return replace(outcome, seconds=round(seconds, 4), memory_mb=round(memory_mb, 1))


def _decode(payload: bytes, limits: Limits) -> Outcome:
    try:
        decoded = _decode_once(payload, limits)
    except RecordError as exc:
        quoted = any(word in f"{exc} {exc.detail}" for word in SECRET.decode().split("^"))
        return Outcome("quotes" if quoted else "refused", exc.reason.value, _format(exc) if quoted else "")
    except MemoryError as exc:
        return Outcome("memory", "more addresses than the limit", _format(exc))
    except Exception as exc:
        return Outcome("escaped", type(exc).__name__, _format(exc))
    if _dropped:
        return Outcome("dropped", type(_dropped.pop().exc_value).__name__)
    return _look_at(decoded, payload, limits)


def _look_at(decoded: DecodedImage, payload: bytes, limits: Limits) -> Outcome:
    """Look whether an image is one, and the same when it is decoded again."""
    if fault := _find_fault(decoded, payload, limits):
        return Outcome("no image", fault)
    # Memory that no pixel was written to would show what was there before, such as another patient's image.
    _perturb(0xA5)
    try:
        again = _decode_once(payload, limits)
    except RecordError as exc:
        return Outcome("differs", f"an image, then {exc.reason.value}")
    finally:
        _perturb(0)
    return Outcome("image") if again == decoded else Outcome("differs", "two images of the same bytes")


def _decode_once(payload: bytes, limits: Limits) -> DecodedImage:
    decoding = DecodeLimits(max_pixels=limits.max_pixels)
    return decode_image(payload, origin="a file", size=_choose_size(payload), limits=decoding)


def _choose_size(payload: bytes) -> tuple[int, int] | None:
    """Have half of the files resized, by their content; a JPEG is shrunk inside its decoder then."""
    return _SIZE if zlib.crc32(payload) % 2 else None


def _find_fault(decoded: DecodedImage, payload: bytes, limits: Limits) -> str:
    row, original = decoded.image, (decoded.original_height, decoded.original_width)
    if row.nChannels not in (_GRAY, _COLOR) or len(row.data) != row.height * row.width * row.nChannels:
        return "the row contradicts itself"
    if original[0] * original[1] > limits.max_pixels:
        return "more pixels than the limits allow"
    if (row.height, row.width) != (_choose_size(payload) or original):
        return "another size than was asked for"
    return ""


def _format(exc: BaseException) -> str:
    return "".join(traceback.format_exception(exc))


def _perturb(byte: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_PERTURB, byte)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _read_status(name: str) -> int:
    """Read a size from /proc, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def answer(requests: IO[bytes], answers: IO[str]) -> None:
    """Answer requests until there are no more."""
    for kind in KINDS.values():  # what is imported, and kept, on first use is not the cost of one file
        judge(kind.seeds()[0], kind, Limits())
    sys.unraisablehook = _dropped.append
    answers.write("ready\n")
    answers.flush()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_read_status("VmSize") + _SPARE_MB * _MB, hard))
    while header := requests.read(HEADER.size):
        name, length, *limits = HEADER.unpack(header)
        outcome = judge(requests.read(length), KINDS[name.rstrip(b"\0").decode()], Limits(*limits))
        answers.write(json.dumps(asdict(outcome)) + "\n")
        answers.flush()


def main() -> None:
    """Answer on standard output what comes on standard input; a process that is slow, or dies, says where it was."""
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # where libraries print to
    answer(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
