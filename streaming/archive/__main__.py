"""The archive as `xray stream` starts it: settings on standard input, which stays open for as long as the stream runs.

Where the stream ends, however it ends, that input ends, and the archive with it. `xray archive` is the command for
everybody else.
"""

import logging
import os
import pickle
import sys
import threading
from pathlib import Path
from typing import BinaryIO

from schemas.errors import XrayError
from streaming.archive.process import BEAT, BEGUN, Order
from streaming.archive.service import bound_threads, run_archive
from streaming.ending import end_on_signals

log = logging.getLogger(__name__)

_NICENESS = 10
_FIRST_TO_GO = 500
"""Out of memory, the kernel ends this before SCORE: in thousandths of the machine's memory."""
_HIGHEST = 1000


def main() -> int:
    """Run until standard input ends; return the exit code."""
    order: Order = pickle.load(sys.stdin.buffer)  # noqa: S301  from the process that started this one
    logging.basicConfig(level=order.log_level, format="%(asctime)s %(levelname)s archive: %(message)s")
    _stand_back()
    bound_threads()
    ended = threading.Event()
    end_on_signals(ended)
    threading.Thread(target=_await_end, args=(sys.stdin.buffer, ended), daemon=True).start()
    beats = os.dup(sys.stdout.fileno())
    os.set_blocking(beats, False)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else may pass for a beat
    try:
        run_archive(
            order.settings,
            accept_loss=order.accept_loss,
            ended=ended,
            note_turn=lambda: _tell(beats, BEAT),
            on_begun=lambda: _tell(beats, BEGUN),
        )
    except XrayError as exc:
        log.error("%s", exc)
        return 1
    return 0


def _stand_back() -> None:
    os.nice(_NICENESS)
    score = Path("/proc/self/oom_score_adj")
    try:
        # On top of what this stream was given: less than that the kernel refuses, and it would spare the archive.
        score.write_text(str(min(_HIGHEST, int(score.read_text(encoding="ascii")) + _FIRST_TO_GO)), encoding="ascii")
    except (OSError, ValueError) as exc:
        log.info("out of memory, the kernel may end SCORE before the archive: %s", exc)


def _await_end(stream: BinaryIO, ended: threading.Event) -> None:
    while stream.read(1):
        pass
    ended.set()


def _tell(pipe: int, what: bytes) -> None:
    try:
        os.write(pipe, what)
    except BlockingIOError:
        pass  # nobody reads just now: the stream is busy, or frozen
    except BrokenPipeError:
        pass  # it has ended, and so does the input


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # as `xray` does: a native library's thread may abort the process in the interpreter's farewell
