"""Ports of this machine that a server can be given before it starts."""

import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000
_HIGHEST = 65_535
_FEWEST = 1_000


def find_ports(count: int = 2) -> int:
    """Find so many free ports in a row, none of which the system gives to an outgoing connection.

    A port that the system chose itself (``bind`` to 0) comes from the range of outgoing connections: between the
    question and the server's start, any client on the machine may be given it. Outside that range only another server
    can take it, and two that ask at once draw by chance.

    Parameters
    ----------
    count : int
        Two by default: a broker's controller takes the port after the broker's.

    Returns
    -------
    int
        The first of them.
    """
    ports = _outside(*(int(text) for text in _EPHEMERAL.read_text().split()))
    while True:
        first = random.SystemRandom().choice(ports[:-count])
        if first + count - 1 in ports and all(map(_is_free, range(first, first + count))):
            return first


def _outside(low: int, high: int) -> range:
    """Give what lies below or above the range of outgoing connections, the longer; all, where neither is long."""
    longer = max(range(_LOWEST, low), range(high + 1, _HIGHEST + 1), key=len)
    return longer if len(longer) >= _FEWEST else range(_LOWEST, _HIGHEST + 1)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
