"""``xray gateway`` with a sampler beside it, started by the benchmark alone: which code its processor time goes to.

Run as ``python -m benchmarks.gateway.profiler FILE CORE ...``: the arguments behind are those of ``xray``. CORE is the
one core that it may use, or ``all``; FILE gets the profile, or is ``none``.
"""

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

_EVERY_S = 0.005
_TASKS = Path("/proc/self/task")
_NO_PYTHON = "no Python: librdkafka, and threads of libraries"
_OWN = ("streaming/", "schemas/", "sparkdl/")


class Sampler:
    """Looks at every thread 200 times a second, and books the processor time since the last look to where it stands.

    Time that a library takes in C is booked to the Python line that called it; that of threads without Python together.
    """

    def __init__(self) -> None:
        self._used: dict[int, int] = {}
        self._by_place: Counter[str] = Counter()
        self._by_own: Counter[str] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> dict[str, object]:
        """End; gives seconds by innermost function, and by the product's own function that called it."""
        self._ended.set()
        self._thread.join()
        return {
            "cpu_s": round(sum(self._by_place.values()) / 1e9, 3),
            "functions": _rank(self._by_place),
            "callers": _rank(self._by_own),
        }

    def _run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        frames = sys._current_frames()
        natives = {thread.native_id: thread.ident for thread in threading.enumerate()}
        for task, used in _read_tasks().items():
            spent = used - self._used.get(task, used)
            self._used[task] = used
            ident = natives.get(task)
            if spent <= 0 or ident == self._thread.ident:
                continue
            frame = frames.get(ident) if ident is not None else None
            self._by_place[_NO_PYTHON if frame is None else _name(frame)] += spent
            self._by_own[_NO_PYTHON if frame is None else _find_own(frame)] += spent


def _read_tasks() -> dict[int, int]:
    """Nanoseconds on a processor so far, by thread."""
    found = {}
    for entry in _TASKS.iterdir():
        try:
            found[int(entry.name)] = int((entry / "schedstat").read_text().split()[0])
        except OSError:  # it ended meanwhile
            continue
    return found


def _name(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"{'/'.join(path.parts[-2:])}:{frame.f_code.co_name}"


def _find_own(frame: FrameType) -> str:
    """Give the innermost function of the product, or, where there is none, the outermost file's."""
    place: FrameType | None = frame
    outermost = frame
    while place is not None:
        if any(
            f"/{own}" in place.f_code.co_filename and "site-packages" not in place.f_code.co_filename for own in _OWN
        ):
            return _name(place)
        outermost, place = place, place.f_back
    return f"under {_name(frame)}" if outermost is frame else _name(_below_threading(frame))


def _below_threading(frame: FrameType) -> FrameType:
    """Give the outermost frame that is not the threading module's."""
    place, found = frame, frame
    while place.f_back is not None:
        place = place.f_back
        if not place.f_code.co_filename.endswith("threading.py"):
            found = place
    return found


def _rank(counted: Counter[str]) -> dict[str, float]:
    return {name: round(spent / 1e9, 3) for name, spent in counted.most_common(25)}


def main() -> int:
    """Run the command line of ``xray``; the profile is written when it has ended."""
    file, core, *arguments = sys.argv[1:]
    if core != "all":
        os.sched_setaffinity(0, {int(core)})
    from xray.__main__ import run  # noqa: PLC0415  what it starts inherits the core

    sys.argv = ["xray", *arguments]
    if file == "none":
        return run()
    return _run_sampled(run, Path(file))


def _run_sampled(run: Callable[[], int], file: Path) -> int:
    sampler = Sampler()
    sampler.start()
    started = time.monotonic()
    code = run()
    file.write_text(json.dumps({"seconds": round(time.monotonic() - started, 3), **sampler.stop()}))
    return code


if __name__ == "__main__":
    sys.exit(main())
