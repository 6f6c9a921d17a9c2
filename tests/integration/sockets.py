"""Which ports processes listen on, as the kernel tells it: Linux only."""

import ipaddress
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

_LISTEN = "0A"  # TCP_LISTEN in the kernel's tcp_states.h

needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks Linux's /proc which ports listen")


@dataclass(frozen=True)
class Listener:
    """A listening socket of a process."""

    program: str
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int

    @property
    def on_loopback(self) -> bool:
        mapped = getattr(self.address, "ipv4_mapped", None)  # Java listens on 127.0.0.1 as ::ffff:127.0.0.1
        return (mapped or self.address).is_loopback

    def __str__(self) -> str:
        return f"{self.program} on {self.address} port {self.port}"


def listeners_below(root: int) -> list[Listener]:
    """Listening sockets of a process and of all that it started, directly or not."""
    found = []
    for pid in processes_below(root):
        sockets = _sockets_of(pid)
        found += [
            Listener(program_of(pid), address, port) for inode, address, port in _listening(pid) if inode in sockets
        ]
    return found


def processes_below(root: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def program_of(pid: int) -> str:
    """Tell the processes of a Spark application apart: the driver, a JVM, Python's daemon and its workers."""
    words = command_line(pid)
    if {"pyspark.daemon", "streaming.run.workerdaemon"} & set(words):
        return "python daemon"
    return "jvm" if words and words[0].endswith("java") else "driver"


def command_line(pid: int) -> list[str]:
    """The words with which a process was started; any user of the machine can read them. None where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _parent(process: Path) -> int | None:
    try:
        status = (process / "status").read_text()
    except OSError:  # it has ended meanwhile
        return None
    match = re.search(r"^PPid:\s+(\d+)$", status, re.MULTILINE)
    return int(match[1]) if match else None


def _sockets_of(pid: int) -> set[str]:
    """Inodes of a process's open sockets."""
    found = set()
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return set()
    for link in links:
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
        except OSError:
            continue
        if match:
            found.add(match[1])
    return found


def _listening(pid: int) -> list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    """Inode, address and port of every listening TCP socket in the process's network."""
    found = []
    for name in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            address, _, port = fields[1].partition(":")
            if fields[3] == _LISTEN:
                found.append((fields[9], _read_address(address), int(port, 16)))
    return found


def _read_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read the kernel's form: words of 32 bits in hexadecimal, each in the machine's own byte order."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    order = "<" if sys.byteorder == "little" else ">"
    return ipaddress.ip_address(struct.pack(f"{order}{len(words)}I", *words))
