"""What processes use, read from Linux's /proc: processor time and memory, of one or of all that it has started."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A living process.

    Parameters
    ----------
    pid, parent, session : int
        As Linux counts them.
    name : str
        Of its program.
    command : str
        Its command line; a NUL is behind each word.
    cpu_s : float
        Processor time so far, that of its ended children included: what a child has used is not lost with it.
    rss_bytes : int
        Resident memory; pages that processes share count in each.
    """

    pid: int
    parent: int
    session: int
    name: str
    command: str
    cpu_s: float
    rss_bytes: int

    @property
    def is_java(self) -> bool:
        """Whether it is a JVM."""
        return self.name == "java"


def read_processes() -> Iterator[Process]:
    """Read every living process of the machine."""
    for entry in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            head, _, tail = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
            # Counted from the third field of proc_pid_stat(5), the state.
            fields = tail.split()
            if fields[0] in "ZX":
                continue
            yield Process(
                pid=int(entry.name),
                parent=int(fields[1]),
                session=int(fields[3]),
                name=head.partition("(")[2],
                command=(entry / "cmdline").read_text(encoding="utf-8", errors="replace"),
                cpu_s=sum(map(int, fields[11:15])) / _TICKS,
                rss_bytes=int(fields[21]) * _PAGE_BYTES,
            )


def with_children(roots: Iterable[int], living: Iterable[Process]) -> list[Process]:
    """Give processes and all below them; one that has ended is left out, and so are its children."""
    by_parent: dict[int, list[Process]] = {}
    waiting, wanted = [], set(roots)
    for process in living:
        by_parent.setdefault(process.parent, []).append(process)
        if process.pid in wanted:
            waiting.append(process)
    found: dict[int, Process] = {}
    while waiting:
        process = waiting.pop()
        if process.pid not in found:
            found[process.pid] = process
            waiting += by_parent.get(process.pid, [])
    return list(found.values())


def cpu_seconds(roots: Iterable[int]) -> float:
    """Add up the processor time of processes and all below them."""
    return sum(process.cpu_s for process in with_children(roots, read_processes()))


def pss_bytes(roots: Iterable[int]) -> int:
    """Add up the memory of processes and all below them; a page that several share counts once in all (PSS)."""
    return sum(_read_pss(process.pid) for process in with_children(roots, read_processes()))


def _read_pss(pid: int) -> int:
    with suppress(OSError):  # it ended meanwhile
        for line in (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
