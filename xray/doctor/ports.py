"""Who listens on the ports that settings name."""

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from streaming.scraping import ALERTS, ARCHIVE, GATEWAY, REPORTS, STREAM, ask_part, find_addresses
from streaming.settings import StreamSettings
from xray.broker import LOCAL_HOSTS
from xray.doctor.finding import Finding, Verdict

_LISTEN = "0A"
"""State of a socket that takes connections, in /proc/net/tcp."""
_CONNECT_S = 1.0
_OWN_WORDS = ("xray", "streaming")
_SERIES = {
    STREAM: "xray_query_up",
    ARCHIVE: "xray_archive_",
    GATEWAY: "xray_gateway_",
    ALERTS: "xray_alerts_",
    REPORTS: "xray_reports_",
}
"""What the metrics page of a part has, and no other."""


@dataclass(frozen=True)
class Owner:
    """The process that listens on a port.

    Parameters
    ----------
    pid : int
        Its id.
    name : str
        Of its program; not its command line, which may hold what nobody should see.
    is_ours : bool
        Whether it is a program of this product, as its command line says.
    """

    pid: int
    name: str
    is_ours: bool


def list_ports(settings: StreamSettings) -> dict[str, int]:
    """List the ports that programs listen on, by their variables; not those that are off, or any free one."""
    gateway = settings.gateway
    ports = {
        "XRAY_METRICS__PORT": settings.metrics.port,
        "XRAY_ARCHIVE__METRICS_PORT": settings.archive.metrics_port,
        "XRAY_GATEWAY__METRICS_PORT": gateway.metrics_port,
        "XRAY_ALERTS__METRICS_PORT": settings.alerts.metrics_port,
        "XRAY_REPORTS__METRICS_PORT": settings.reports.metrics_port,
        "XRAY_GATEWAY__DICOM_PORT": gateway.dicom_port,
        "XRAY_GATEWAY__HTTP_PORT": gateway.http_port,
        "XRAY_PAGE__PORT": settings.page.port,
    }
    return {name: port for name, port in ports.items() if isinstance(port, int) and port}


_PARTS = {
    "XRAY_METRICS__PORT": STREAM,
    "XRAY_ARCHIVE__METRICS_PORT": ARCHIVE,
    "XRAY_GATEWAY__METRICS_PORT": GATEWAY,
    "XRAY_ALERTS__METRICS_PORT": ALERTS,
    "XRAY_REPORTS__METRICS_PORT": REPORTS,
}


def check_ports(settings: StreamSettings) -> Iterator[Finding]:
    """Look at every port that settings name: free, taken by its own program, or by another."""
    yield from _check_broker(settings)
    owners = find_owners(list_ports(settings).values())
    addresses = find_addresses(settings)
    for variable, port in list_ports(settings).items():
        if port not in owners:
            yield Finding("ports", Verdict.OK, f"{port} ({variable}) is free: its program does not run here")
            continue
        part = _PARTS.get(variable)
        if part is not None:
            yield _judge_metrics(variable, port, part, addresses[part], owners[port])
        else:
            yield _judge_owner(variable, port, owners[port])


def _check_broker(settings: StreamSettings) -> Iterator[Finding]:
    """Say who listens where the local broker should, which the check of Kafka asks."""
    host, _, port = settings.kafka.bootstrap_servers.rpartition(":")
    if host in LOCAL_HOSTS:
        owners = find_owners([int(port)])
        held = f"is listened on{_name(owners[int(port)])}" if int(port) in owners else "is free: no broker runs here"
        yield Finding("ports", Verdict.OK, f"{port} (XRAY_KAFKA__BOOTSTRAP_SERVERS) {held}")


def _judge_metrics(variable: str, port: int, part: str, address: str, owner: Owner | None) -> Finding:
    answer = ask_part(address, has_health=part != STREAM)
    if any(name.startswith(_SERIES[part]) for name in answer.series):
        if not answer.why:
            return Finding("ports", Verdict.OK, f"{port} ({variable}) is the {part}'s{_name(owner)}")
        return Finding(
            "ports",
            Verdict.WARNING,
            f"{port} ({variable}) is the {part}'s{_name(owner)}, and {answer.why}",
            "Look at its log, and at deploy/runbook.md.",
        )
    found = f"{port} ({variable}) does not answer as the {part} does{_name(owner)}"
    if answer.why:
        found += f": {answer.why}"
    return Finding(
        "ports",
        Verdict.FAULT,
        found,
        f"End what listens there if it hangs or is no part of this, or change {variable}.",
    )


def _judge_owner(variable: str, port: int, owner: Owner | None) -> Finding:
    where = f"{port} ({variable})"
    if owner is None:
        advice = f"'ss -ltnp' as root says who. If it is another program, change {variable}."
        return Finding("ports", Verdict.WARNING, f"{where} is taken by a process of another user", advice)
    if owner.is_ours:
        return Finding("ports", Verdict.OK, f"{where} is listened on{_name(owner)}")
    advice = f"End that program, or change {variable}."
    return Finding("ports", Verdict.FAULT, f"{where} is taken by another program{_name(owner)}", advice)


def _name(owner: Owner | None) -> str:
    return "" if owner is None else f" ({owner.name}, process {owner.pid})"


def find_owners(ports: Iterable[int], *, proc: Path = Path("/proc")) -> dict[int, Owner | None]:
    """Find who listens on ports of this machine.

    Parameters
    ----------
    ports : iterable of int
        Which ones.
    proc : Path
        Where the kernel tells of processes; without that each port is connected to.

    Returns
    -------
    dict
        Of those that are taken; None where the process is another user's.
    """
    wanted = set(ports)
    if not (proc / "net" / "tcp").is_file():
        return {port: None for port in wanted if _answers(port)}
    listening = _read_listening(proc)
    inodes = {inode: port for inode, port in listening.items() if port in wanted}
    owners: dict[int, Owner | None] = dict.fromkeys(inodes.values())
    for pid, inode in _list_sockets(proc):
        if inode in inodes:
            owners[inodes[inode]] = _describe_process(proc, pid)
    return owners


def _answers(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(_CONNECT_S)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _read_listening(proc: Path) -> Mapping[str, int]:
    """Read the inode of each listening socket and its port."""
    found: dict[str, int] = {}
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (proc / "net" / name).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN:
                    found[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    return found


def _list_sockets(proc: Path) -> Iterator[tuple[int, str]]:
    """List the sockets of the processes that this user may look at."""
    for folder in proc.glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            for entry in (folder / "fd").iterdir():
                with suppress(OSError):
                    target = os.readlink(entry)
                    if target.startswith("socket:["):
                        yield int(folder.name), target[len("socket:[") : -1]


def _describe_process(proc: Path, pid: int) -> Owner | None:
    try:
        name = (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
        words = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended meanwhile
        return None
    return Owner(pid, name, any(Path(word).name in _OWN_WORDS for word in words))
